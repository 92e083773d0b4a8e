//! Text that PostgreSQL would cut without a word.

use std::fmt;

use crate::kind::PgType;

/// How much text a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Bytes(usize),
    /// What follows these is refused by PostgreSQL, but for blanks.
    Characters(usize),
}

impl Room {
    /// Of a column that cuts what is longer; `None` where nothing is cut, or only blanks that do not count.
    pub(crate) fn of(target: &PgType) -> Option<Self> {
        match target.base.as_str() {
            "name" => Some(Self::Bytes(63)),
            "char" => Some(Self::Bytes(1)),
            // The modifier counts a header of four bytes.
            "varchar" => usize::try_from(target.modifier - 4).ok().map(Self::Characters),
            _ => None,
        }
    }

    pub(crate) fn holds(self, text: &str) -> bool {
        match self {
            Self::Bytes(max) => text.len() <= max || is_octal(text),
            Self::Characters(max) => {
                text.len() <= max || !text.ends_with(' ') || text.chars().count() <= max
            }
        }
    }
}

impl fmt::Display for Room {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(max) => write!(formatter, "{max} bytes"),
            Self::Characters(max) => write!(formatter, "{max} characters"),
        }
    }
}

/// How PostgreSQL prints a `"char"` of a byte beyond ASCII: `\351`.
fn is_octal(text: &str) -> bool {
    let digits = text.strip_prefix('\\').map(str::as_bytes);
    matches!(digits, Some([b'0'..=b'3', b'0'..=b'7', b'0'..=b'7']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_behind_the_last_character_are_not_cut() {
        let room = Room::Characters(3);
        for (text, held) in [
            ("abc", true),
            ("한글 ", true),
            ("한글  ", false),
            ("abc ", false),
            ("abcd", true), // PostgreSQL says so itself
        ] {
            assert_eq!(room.holds(text), held, "{text:?}");
        }
    }
}
