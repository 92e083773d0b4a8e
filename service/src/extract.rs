//! Extractors whose every rejection is a [`Problem`].

use std::time::Duration;

use axum::RequestExt;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use crate::Problem;
use crate::problem::FieldError;

/// How long a body may take to arrive. Shorter than any handler may take: whoever sends none in time hears that
/// nothing was done.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// A JSON request body.
///
/// | body | answer |
/// |---|---|
/// | no `application/json` content type | 415 |
/// | not all there after [`BODY_TIMEOUT`] | 408 |
/// | above the body limit | 413 |
/// | not JSON, not UTF-8, lone surrogate | 400 |
/// | JSON but no object | 422 |
/// | JSON of the wrong shape | 422, naming the field |
/// | NUL character in any string (PostgreSQL cannot store it) | 422, naming the field |
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Self::Rejection> {
        if !is_json(request.headers()) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                "Unsupported media type",
            )
            .detail("send the body as content-type: application/json"));
        }
        read(&receive(request, BODY_TIMEOUT).await?).map(Self)
    }
}

/// Path parameters; a value that does not fit its type is a 400.
#[derive(Debug, Clone, Copy)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(value)| Self(value))
            .map_err(|rejection| Problem::bad_request(rejection.body_text()))
    }
}

/// Query parameters; a value that does not fit its type is a 400.
#[derive(Debug, Clone, Copy)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        query
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|rejection| Problem::bad_request(rejection.body_text()))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

async fn receive(request: Request, limit: Duration) -> Result<Bytes, Problem> {
    let received = timeout(limit, request.extract::<Bytes, _>()).await.map_err(|_| {
        Problem::new(StatusCode::REQUEST_TIMEOUT, "body-timeout", "Body did not arrive in time")
            .detail(format!("the limit is {limit:?}; nothing was done"))
    })?;
    received.map_err(|rejection| body(&rejection))
}

fn body(rejection: &BytesRejection) -> Problem {
    if let BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) = rejection {
        return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "Body too large")
            .detail(format!("the limit is {} bytes", crate::http::BODY_BYTES_MAX));
    }
    Problem::bad_request("the body could not be received")
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| Problem::bad_request(format!("the body is not JSON: {error}")))?;
    // Read as a struct, an array would give its items to the fields in order.
    if !value.is_object() {
        return Err(Problem::invalid(vec![FieldError::new(".", "expected an object")]));
    }
    let mut path = String::new();
    if holds_nul(&value, &mut path) {
        return Err(Problem::invalid(vec![FieldError::new(
            path,
            "must not contain the NUL character",
        )]));
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let message = error.inner().to_string();
        Problem::invalid(vec![FieldError::new(error.path().to_string(), message)])
    })
}

/// Whether any string or key holds a NUL; if so `path` names where.
fn holds_nul(value: &Value, path: &mut String) -> bool {
    let parent_length = path.len();
    match value {
        Value::String(text) => return text.contains('\0'),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                path.push('[');
                path.push_str(&index.to_string());
                path.push(']');
                if holds_nul(item, path) {
                    return true;
                }
                path.truncate(parent_length);
            }
        }
        Value::Object(fields) => {
            for (name, item) in fields {
                if parent_length > 0 {
                    path.push('.');
                }
                path.push_str(&name.replace('\0', "\u{fffd}"));
                if name.contains('\0') || holds_nul(item, path) {
                    return true;
                }
                path.truncate(parent_length);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    false
}

#[cfg(test)]
mod tests {
    use std::io;

    use axum::body::Body;
    use futures_util::stream;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Shape {
        #[serde(rename = "name")]
        _name: Option<String>,
        #[serde(rename = "id")]
        _id: Option<i64>,
    }

    fn check(body: &[u8], status: u16, field: &str) {
        let problem = read::<Shape>(body).unwrap_err();
        assert_eq!(problem.status().as_u16(), status, "{problem:?}");
        assert!(format!("{problem:?}").contains(field), "{problem:?}");
    }

    #[test]
    fn a_body_that_cannot_be_used_is_a_problem_that_says_why() {
        check(b"", 400, "");
        check(b"{", 400, "not JSON");
        check(b"\xff", 400, "not JSON");
        check(b"{\"name\":\"a\x00b\"}", 400, "control character");
        check(br#"{"name":"\ud800"}"#, 400, "not JSON");
        check(br#"{"nobody reads this":"\ud800"}"#, 400, "not JSON");
        check(br#"{"name":"\ud800x"}"#, 400, "not JSON");
        check(br#"{"name":"\udc00"}"#, 400, "not JSON");
        check(&[b"[".repeat(200), b"]".repeat(200)].concat(), 400, "recursion limit");
        check(br#"{"name":"a\u0000b"}"#, 422, "\"name\"");
        check(br#"{"x":[1,{"y":"\u0000"}]}"#, 422, "\"x[1].y\"");
        check(br#"{"a\u0000":1}"#, 422, "NUL");
        check(br#"{"name":7}"#, 422, "\"name\"");
        check(br#"{"id":"seven"}"#, 422, "\"id\"");
        check(br#"{"id":99999999999999999999}"#, 422, "\"id\"");
        check(b"[]", 422, "");
        check(br#"["text",7]"#, 422, "");
        check(br#""text""#, 422, "expected");
    }

    #[tokio::test]
    async fn a_body_that_does_not_arrive_is_408() {
        let never = Body::from_stream(stream::pending::<io::Result<Bytes>>());
        let problem = receive(Request::new(never), Duration::from_millis(10)).await.unwrap_err();
        assert_eq!(problem.status().as_u16(), 408);
    }

    #[test]
    fn unknown_fields_and_surrogate_pairs_are_accepted() {
        read::<Shape>(br#"{"name":"\ud83d\ude00","id":1,"createdAt":"x"}"#).unwrap();
    }

    #[test]
    fn a_backslash_before_what_would_be_a_nul_is_a_backslash() {
        read::<Shape>(br#"{"name":"\\u0000"}"#).unwrap();
    }

    #[test]
    fn only_json_content_types_are_json() {
        let mut headers = HeaderMap::new();
        assert!(!is_json(&headers));
        for (value, json) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/merge-patch+json", true),
            ("text/plain", false),
            ("application/x-www-form-urlencoded", false),
        ] {
            headers.insert(CONTENT_TYPE, value.parse().unwrap());
            assert_eq!(is_json(&headers), json, "{value}");
        }
    }
}
