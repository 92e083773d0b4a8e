//! The user service: writes users to its own database. Everything that others know of users they
//! learn from that database's changes; this service sends no events.

use std::time::Duration;

use axum::Router;
use service::{database, health, http};
use sqlx::PgPool;

mod users;

mod inserts;
mod user_body;

/// Longest time a request may take before it is answered with 503.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The whole service but `/metrics`, which belongs to the process.
pub fn app(pool: PgPool) -> Router {
    let probe = pool.clone();
    http::stack(users::router(pool), REQUEST_TIMEOUT)
        .merge(health::router_with_probe(move || database::reasons(probe.clone())))
}
