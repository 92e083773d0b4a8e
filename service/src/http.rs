//! What every HTTP surface does around its handlers.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tracing::Instrument;
use uuid::Uuid;

use crate::Problem;
use crate::problem::Cause;
use crate::telemetry::chain;

/// Largest request body accepted, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Name of the request duration histogram, in seconds.
pub(crate) const REQUEST_SECONDS_NAME: &str = "http_request_duration_seconds";

/// Longest request id taken over from a client; a longer one is replaced.
const REQUEST_ID_BYTES_MAX: usize = 128;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Wraps a finished router with the common stack.
///
/// * `x-request-id` is taken over or made, returned, and put into the span of every log line.
/// * A handler that takes longer than `timeout` is dropped: 503.
/// * A body above [`BODY_BYTES_MAX`] is a 413, an unknown address a 404, a wrong method a 405, a
///   panic a 500, all of them problem documents.
/// * Requests are counted and timed by method, route and status; the cause of a 5xx is logged
///   once.
pub fn stack(router: Router, timeout: Duration) -> Router {
    let around = move |request: Request, next: Next| around(timeout, request, next);
    router
        .fallback(|| async { Problem::not_found("there is no such address") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed")
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        // One layer for all of it: each layer boxes the whole router and clones it for each request.
        .layer(from_fn(around))
}

async fn answer(timeout: Duration, request: Request, next: Next) -> Response {
    // Unwind safe: nobody sees again what the handler left behind.
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind();
    match tokio::time::timeout(timeout, answered).await {
        Ok(Ok(response)) => response,
        Ok(Err(panic)) => panicked(&*panic),
        Err(_) => Problem::unavailable(Duration::from_secs(1))
            .detail("the request took too long; whether it took effect is not known")
            .into_response(),
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Response {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message");
    Problem::internal(HandlerPanic(message.to_owned())).into_response()
}

#[derive(Debug, thiserror::Error)]
#[error("the handler panicked: {0}")]
struct HandlerPanic(String);

async fn around(timeout: Duration, mut request: Request, next: Next) -> Response {
    let id = request_id(&request);
    let method = request.method().as_str().to_owned();
    let series = method_label(request.method());
    // The route's pattern, not the path: paths hold keys and would make one series each.
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    let span = tracing::info_span!(
        "request",
        request.id = id.to_str().unwrap_or_default(),
        http.method = method,
        http.route = route,
    );
    request.headers_mut().insert(&REQUEST_ID, id.clone());

    let started = Instant::now();
    let mut response = answer(timeout, request, next).instrument(span.clone()).await;
    let elapsed = started.elapsed();

    response.headers_mut().insert(&REQUEST_ID, id);
    span.in_scope(|| log(&response, elapsed));
    let status = response.status().as_u16().to_string();
    let labels = [("method", series.to_owned()), ("route", route), ("status", status)];
    metrics::counter!("http_requests_total", &labels).increment(1);
    metrics::histogram!(REQUEST_SECONDS_NAME, &labels).record(elapsed.as_secs_f64());
    response
}

/// The method, if it is one that a route can have: each that a client invents would make a series.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

fn request_id(request: &Request) -> HeaderValue {
    let made =
        || HeaderValue::from_str(&Uuid::new_v4().to_string()).expect("a UUID is visible ASCII");
    match request.headers().get(&REQUEST_ID) {
        Some(id)
            if (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())
                && id.as_bytes().iter().all(u8::is_ascii_graphic) =>
        {
            id.clone()
        }
        Some(_) | None => made(),
    }
}

fn log(response: &Response, elapsed: Duration) {
    let status = response.status().as_u16();
    let error = response.extensions().get::<Cause>().map(|cause| chain(&*cause.0).to_string());
    if response.status().is_server_error() {
        tracing::error!(http.status = status, ?elapsed, error, "request failed");
    } else {
        tracing::debug!(http.status = status, ?elapsed, error, "request answered");
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use axum::routing::{get, post};
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tower::ServiceExt;

    use super::*;
    use crate::Json;

    async fn panics() {
        panic!("secret");
    }

    fn app() -> Router {
        let router = Router::new()
            .route("/ok", get(|| async { "ok" }))
            .route("/panic", get(panics))
            .route("/slow", get(std::future::pending::<()>))
            .route(
                "/echo",
                post(|Json(value): Json<serde_json::Value>| async move { value.to_string() }),
            );
        stack(router, Duration::from_millis(50))
    }

    async fn check(request: Request<Body>, status: u16, text: &str) -> Response {
        let response = app().oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        assert!(body.contains(text), "{body}");
        assert!(!body.contains("secret"), "{body}");
        if status >= 400 {
            assert_eq!(parts.headers["content-type"], "application/problem+json");
        }
        Response::from_parts(parts, Body::empty())
    }

    fn request(method: &str, path: &str, body: Body) -> Request<Body> {
        Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(body)
            .unwrap()
    }

    #[tokio::test]
    async fn every_failure_is_a_problem_document() {
        check(request("GET", "/ok", Body::empty()), 200, "ok").await;
        check(request("GET", "/missing", Body::empty()), 404, "urn:problem:not-found").await;
        check(request("POST", "/ok", Body::empty()), 405, "urn:problem:method-not-allowed").await;
        check(request("GET", "/panic", Body::empty()), 500, "urn:problem:internal").await;
        let slow = check(request("GET", "/slow", Body::empty()), 503, "took too long").await;
        assert_eq!(slow.headers()["retry-after"], "1");
    }

    #[tokio::test]
    async fn a_body_above_the_limit_is_refused_and_one_at_the_limit_is_not() {
        let json = |length: usize| Body::from(format!("{{\"a\":\"{}\"}}", "a".repeat(length - 8)));
        check(request("POST", "/echo", json(BODY_BYTES_MAX)), 200, "aaa").await;
        check(request("POST", "/echo", json(BODY_BYTES_MAX + 1)), 413, "65536").await;
    }

    #[tokio::test]
    async fn methods_that_clients_invent_make_one_series() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let _guard = metrics::set_default_local_recorder(&recorder);
        for method in ["GET", "INVENTED", "MADE-UP", "get"] {
            app().oneshot(request(method, "/ok", Body::empty())).await.unwrap();
        }
        let text = handle.render();
        let counts: Vec<_> =
            text.lines().filter(|line| line.starts_with("http_requests_total{")).collect();
        assert_eq!(counts.len(), 2, "{counts:?}");
        assert!(counts.iter().any(|line| line.contains("method=\"GET\"")), "{counts:?}");
        assert!(counts.iter().any(|line| line.contains("method=\"other\"")), "{counts:?}");
    }

    #[tokio::test]
    async fn a_request_id_is_taken_over_or_made() {
        let mut given = request("GET", "/ok", Body::empty());
        given.headers_mut().insert(&REQUEST_ID, HeaderValue::from_static("abc-1"));
        let response = check(given, 200, "ok").await;
        assert_eq!(response.headers()["x-request-id"], "abc-1");

        let overlong = "a".repeat(REQUEST_ID_BYTES_MAX + 1);
        for bad in ["", "a b", &overlong] {
            let mut replaced = request("GET", "/ok", Body::empty());
            replaced.headers_mut().insert(&REQUEST_ID, HeaderValue::from_str(bad).unwrap());
            let response = check(replaced, 200, "ok").await;
            assert_eq!(response.headers()["x-request-id"].len(), 36);
        }
    }
}
