//! Checking the fields of a body, so that an answer names everything that is wrong with it.

use std::borrow::Cow;

use crate::Problem;
use crate::problem::FieldError;

/// Collects what is wrong. A value read from a bad field is empty and must not be used;
/// [`Fields::finish`] sees to that.
#[derive(Debug, Default)]
pub struct Fields {
    errors: Vec<FieldError>,
}

impl Fields {
    /// Nothing wrong so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// A required line of text, without the white space around it, of at most `chars_max`
    /// characters.
    pub fn line(&mut self, name: &'static str, value: Option<&str>, chars_max: usize) -> String {
        self.text(name, value.map(str::trim), chars_max)
    }

    /// A required text, kept as it is, of at most `chars_max` characters and not blank.
    pub fn text(&mut self, name: &'static str, value: Option<&str>, chars_max: usize) -> String {
        let Some(value) = value else {
            self.reject(name, "must be given");
            return String::new();
        };
        if value.trim().is_empty() {
            self.reject(name, "must not be blank");
        } else if value.chars().count() > chars_max {
            self.reject(name, format!("must not be longer than {chars_max} characters"));
        }
        value.to_owned()
    }

    /// Notes what is wrong with a field.
    pub fn reject(&mut self, name: &'static str, message: impl Into<Cow<'static, str>>) {
        self.errors.push(FieldError::new(name, message));
    }

    /// The id in the body, if there is one, must be the one in the path.
    pub fn same_id(&mut self, path_id: i64, body_id: Option<i64>) {
        if body_id.is_some_and(|id| id != path_id) {
            self.reject("id", format!("must be {path_id}, as in the address, or left out"));
        }
    }

    /// 422 with everything that was noted, if anything was.
    pub fn finish(self) -> Result<(), Problem> {
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::invalid(self.errors)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: Option<&str>, read: &str, messages: &[&str]) {
        let mut fields = Fields::new();
        assert_eq!(fields.line("name", value, 3), read);
        let seen: Vec<_> = fields.errors.iter().map(|error| error.message.as_ref()).collect();
        assert_eq!(seen, messages, "{value:?}");
        assert_eq!(fields.finish().is_err(), !messages.is_empty());
    }

    #[test]
    fn a_line_is_given_not_blank_and_not_too_long() {
        check(None, "", &["must be given"]);
        check(Some(" \t\u{3000}"), "", &["must not be blank"]);
        check(Some("홍길동"), "홍길동", &[]);
        check(Some(" 홍길동 "), "홍길동", &[]);
        check(Some("홍길동 "), "홍길동", &[]);
        check(Some("홍길동이"), "홍길동이", &["must not be longer than 3 characters"]);
    }

    #[test]
    fn an_id_in_the_body_repeats_the_one_in_the_address() {
        for (body_id, accepted) in [(None, true), (Some(7), true), (Some(8), false)] {
            let mut fields = Fields::new();
            fields.same_id(7, body_id);
            assert_eq!(fields.finish().is_ok(), accepted);
        }
    }
}
