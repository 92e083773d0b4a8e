//! What a client sends: read leniently, accepted strictly. No I/O.

use serde::Deserialize;
use service::Problem;
use service::fields::Fields;

const NAME_CHARS_MAX: usize = 200;
const DEPARTMENT_CHARS_MAX: usize = 100;
const EMAIL_CHARS_MAX: usize = 254;
const EMAIL_LOCAL_CHARS_MAX: usize = 64;

const STATUSES: [&str; 3] = ["ACTIVE", "INACTIVE", "SUSPENDED"];

/// A user as sent. Times and version may be sent back as they were read and are ignored: the
/// service keeps those itself.
#[derive(Debug, Deserialize)]
pub(crate) struct UserBody {
    id: Option<i64>,
    name: Option<String>,
    email: Option<String>,
    department: Option<String>,
    status: Option<String>,
}

/// A user whose fields can be stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) email: String,
    pub(crate) department: String,
    /// None leaves the choice to the table's default, or leaves the row as it is.
    pub(crate) status: Option<String>,
}

impl UserBody {
    /// As the content of a new user, whose id is ours to give.
    pub(crate) fn create(self) -> Result<User, Problem> {
        self.check(Fields::new())
    }

    /// As the new content of the user `id`.
    pub(crate) fn update(self, id: i64) -> Result<User, Problem> {
        let mut fields = Fields::new();
        fields.same_id(id, self.id);
        self.check(fields)
    }

    fn check(self, mut fields: Fields) -> Result<User, Problem> {
        let name = fields.line("name", self.name.as_deref(), NAME_CHARS_MAX);
        let email = fields.line("email", self.email.as_deref(), EMAIL_CHARS_MAX);
        if !email.is_empty() && !is_email(&email) {
            fields.reject("email", "must be an e-mail address, like name@example.com");
        }
        let department =
            fields.line("department", self.department.as_deref(), DEPARTMENT_CHARS_MAX);
        if self.status.as_deref().is_some_and(|status| !STATUSES.contains(&status)) {
            fields.reject("status", format!("must be one of {}", STATUSES.join(", ")));
        }
        fields.finish()?;
        Ok(User { name, email, department, status: self.status })
    }
}

/// Whether mail could be sent there: one `@`, something before it, a domain with a dot after it.
/// Quoted local parts are refused although the standard knows them; letters of any script are not.
fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.split_once('@') else { return false };
    let visible = |c: char| !c.is_whitespace() && !c.is_control() && !"\"(),:;<>[\\]".contains(c);
    let local_fits = (1..=EMAIL_LOCAL_CHARS_MAX).contains(&local.chars().count())
        && local.chars().all(visible)
        && local.split('.').all(|part| !part.is_empty());
    let label_fits = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_alphanumeric() || c == '-')
    };
    local_fits && domain.contains('.') && domain.split('.').all(label_fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_email_has_a_local_part_and_a_domain_with_a_dot() {
        for (text, accepted) in [
            ("hong@example.com", true),
            ("new_changwng@example.com", true),
            ("first.last+tag@mail.example.co.kr", true),
            ("홍길동@예시.한국", true),
            ("", false),
            ("hong", false),
            ("@example.com", false),
            ("hong@", false),
            ("hong@example", false),
            ("hong@@example.com", false),
            ("a@b@example.com", false),
            ("ho ng@example.com", false),
            ("hong@exa mple.com", false),
            (".hong@example.com", false),
            ("hong.@example.com", false),
            ("hong@.com", false),
            ("hong@example..com", false),
            ("hong@-example.com", false),
            ("<hong@example.com>", false),
            ("hong@example.com\n", false),
        ] {
            assert_eq!(is_email(text), accepted, "{text:?}");
        }
        assert!(!is_email(&format!("{}@example.com", "a".repeat(EMAIL_LOCAL_CHARS_MAX + 1))));
    }
}
