//! `/health/live` and `/health/ready`.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

/// Why the process is not ready, one reason per topic. No reasons means ready. Cheap to clone;
/// every clone sees the same reasons.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    reasons: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl Readiness {
    /// Ready, until told otherwise.
    pub fn new() -> Self {
        Self::default()
    }

    /// Not ready because of `topic`; replaces an earlier reason of the same topic.
    pub fn block(&self, topic: &'static str, reason: impl Into<String>) {
        self.lock().insert(topic, reason.into());
    }

    /// `topic` no longer stands in the way.
    pub fn clear(&self, topic: &'static str) {
        self.lock().remove(topic);
    }

    /// What stands in the way now, as `topic: reason`, sorted by topic.
    pub fn reasons(&self) -> Vec<String> {
        self.lock().iter().map(|(topic, reason)| format!("{topic}: {reason}")).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, String>> {
        // The map is whole after any panic: each change is a single insert or remove.
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The health routes of a process whose own tasks keep `readiness` up to date.
pub fn router(readiness: Readiness) -> Router {
    router_with_probe(move || std::future::ready(readiness.reasons()))
}

/// The health routes of a process that finds out on request whether it is ready: `probe` returns
/// the reasons why not, and must be quick or bring its own timeout.
///
/// `/health/live` always answers 200 while the process can answer at all. `/health/ready` answers
/// 200, or 503 with the reasons.
pub fn router_with_probe<P, F>(probe: P) -> Router
where
    P: Fn() -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Vec<String>> + Send + 'static,
{
    let ready = move || {
        let reasons = probe();
        async move { answer(reasons.await) }
    };
    Router::new()
        .route("/health/live", get(|| async { Json(Health { status: "live", reasons: vec![] }) }))
        .route("/health/ready", get(ready))
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
}

fn answer(reasons: Vec<String>) -> Response {
    if reasons.is_empty() {
        return Json(Health { status: "ready", reasons }).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(Health { status: "not ready", reasons })).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_when_no_reason_is_left() {
        let readiness = Readiness::new();
        let clone = readiness.clone();
        clone.block("database", "connection refused");
        clone.block("broker", "not reached yet");
        clone.block("broker", "timed out");
        assert_eq!(readiness.reasons(), ["broker: timed out", "database: connection refused"]);
        readiness.clear("broker");
        readiness.clear("database");
        readiness.clear("database");
        assert!(clone.reasons().is_empty());
    }
}
