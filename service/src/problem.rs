//! Error answers as RFC 9457 problem documents.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// An error answer: `application/problem+json` with `type`, `title`, `status`, and where they
/// apply `detail` and `errors` (one entry per bad field).
///
/// The cause never reaches the client. It rides in the response's extensions to the layer that
/// logs it once, with the request's id.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: Option<Cow<'static, str>>,
    errors: Vec<FieldError>,
    retry_after: Option<Duration>,
    cause: Option<Cause>,
}

/// What is wrong with one field of a request body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Path of the field in the body, such as `email`.
    pub field: Cow<'static, str>,
    /// What is wrong, in words that can follow the field's name.
    pub message: Cow<'static, str>,
}

impl FieldError {
    /// Names the field and what is wrong with it.
    pub fn new(field: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// The error behind a problem, kept for the log.
#[derive(Debug, Clone)]
pub struct Cause(pub(crate) Arc<dyn StdError + Send + Sync>);

impl Problem {
    /// A problem of the kind `code` (stable, kebab case, becomes `urn:problem:<code>`), with a
    /// title that is the same for every occurrence.
    pub fn new(status: StatusCode, code: &'static str, title: &'static str) -> Self {
        Self { status, code, title, detail: None, errors: vec![], retry_after: None, cause: None }
    }

    /// 404: there is nothing under this address.
    pub fn not_found(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found").detail(detail)
    }

    /// 400: the request cannot be read.
    pub fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", "Request cannot be read").detail(detail)
    }

    /// 422: the request was read, but these fields cannot be accepted.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let mut problem =
            Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-fields", "Invalid fields");
        problem.errors = errors;
        problem
    }

    /// 500: our fault; the cause goes to the log only.
    pub fn internal(cause: impl StdError + Send + Sync + 'static) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error").cause(cause)
    }

    /// 503: something we need is away; worth another try after `retry_after`.
    pub fn unavailable(retry_after: Duration) -> Self {
        let mut problem =
            Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Service unavailable");
        problem.retry_after = Some(retry_after);
        problem
    }

    /// Adds what is particular to this occurrence.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds the error behind it, for the log only.
    #[must_use]
    pub fn cause(mut self, cause: impl StdError + Send + Sync + 'static) -> Self {
        self.cause = Some(Cause(Arc::new(cause)));
        self
    }

    /// The HTTP status of the answer.
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = Document {
            kind: format!("urn:problem:{}", self.code),
            title: self.title,
            status: self.status.as_u16(),
            detail: self.detail.as_deref(),
            errors: &self.errors,
        };
        let body = serde_json::to_vec(&document).expect("a problem document is plain strings");
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(wait) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        if let Some(cause) = self.cause {
            response.extensions_mut().insert(cause);
        }
        response
    }
}
