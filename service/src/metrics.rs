//! Prometheus metrics: recorded through the `metrics` crate's macros, read at `/metrics`.

use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// How often finished histogram samples are folded together, so that memory stays bounded on a
/// process that nobody scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Bucket bounds for request durations, in seconds.
const REQUEST_SECONDS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Installs the process-wide recorder. Call it once, inside a Tokio runtime, before anything is
/// recorded.
///
/// Each entry of `histograms` is a metric's name and its bucket bounds; a histogram without bounds
/// would be exported as a summary, which cannot be added up over processes.
/// Fails if a recorder is installed already or a bound list is empty.
pub fn install(histograms: &[(&str, &[f64])]) -> Result<PrometheusHandle, BuildError> {
    let requests = [(crate::http::REQUEST_SECONDS_NAME, REQUEST_SECONDS.as_slice())];
    let mut builder = PrometheusBuilder::new();
    for (name, bounds) in requests.iter().chain(histograms) {
        builder = builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), bounds)?;
    }
    let handle = builder.install_recorder()?;
    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
        loop {
            ticks.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

/// `/metrics` in the Prometheus text format.
pub fn router(handle: PrometheusHandle) -> Router {
    let render = move || {
        let text = handle.render();
        async move { ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text) }
    };
    Router::new().route("/metrics", get(render))
}
