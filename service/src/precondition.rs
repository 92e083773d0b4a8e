//! `ETag` and `If-Match`: the row's version, quoted.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::header::{ETAG, IF_MATCH};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode};

use crate::Problem;

/// The header that tells a client which version it was given.
pub fn etag(version: i64) -> [(HeaderName, String); 1] {
    [(ETAG, format!("\"{version}\""))]
}

/// Which versions a request wants to change: any, if it does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IfMatch(Option<Vec<i64>>);

impl IfMatch {
    /// The versions allowed; none listed means every version is.
    pub fn versions(&self) -> Option<&[i64]> {
        self.0.as_deref()
    }

    /// 412: the row has another version by now.
    pub fn failed() -> Problem {
        Problem::new(StatusCode::PRECONDITION_FAILED, "version-changed", "Version changed")
            .detail("somebody changed this meanwhile; read it again and repeat")
    }

    fn read(headers: &HeaderMap) -> Self {
        let mut versions = vec![];
        let mut given = false;
        for value in headers.get_all(IF_MATCH) {
            given = true;
            for tag in value.to_str().unwrap_or_default().split(',').map(str::trim) {
                if tag == "*" {
                    return Self(None);
                }
                // What is not one of our tags, weak ones included, matches nothing.
                let inner = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
                versions.extend(inner.and_then(|tag| tag.parse::<i64>().ok()));
            }
        }
        Self(given.then_some(versions))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        Ok(Self::read(&parts.headers))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn check(header: Option<&'static str>, versions: Option<&[i64]>) {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(IF_MATCH, HeaderValue::from_static(value));
        }
        assert_eq!(IfMatch::read(&headers).versions(), versions, "{header:?}");
    }

    #[test]
    fn only_strong_tags_of_ours_match() {
        check(None, None);
        check(Some("*"), None);
        check(Some("\"3\""), Some(&[3]));
        check(Some("\"3\", \"5\""), Some(&[3, 5]));
        check(Some("W/\"3\""), Some(&[]));
        check(Some("3"), Some(&[]));
        check(Some("\"abc\""), Some(&[]));
        check(Some(""), Some(&[]));
    }
}
