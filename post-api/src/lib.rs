//! The post service: keeps posts, and answers questions about posts and their authors.
//!
//! Authors are read from the views that cdc-consumer keeps (`public.user_view` and others), joined
//! at read time. This service never writes a view and never asks the user service.

use std::time::Duration;

use axum::Router;
use service::{database, health, http};
use sqlx::PgPool;

mod posts;
mod views;

mod post;
mod waiting;

/// Longest time a request may take, apart from waiting for a view, before it is answered with 503.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The whole service but `/metrics`, which belongs to the process.
///
/// `view_wait` is how long a request waits for a view to show what it needs.
pub fn app(pool: PgPool, view_wait: Duration) -> Router {
    let probe = pool.clone();
    let service = Service { posts: posts::reads(&pool), pool, view_wait };
    let routes = posts::router().merge(views::router()).with_state(service);
    http::stack(routes, REQUEST_TIMEOUT + view_wait)
        .merge(health::router_with_probe(move || database::reasons(probe.clone())))
}

/// What handlers work with.
#[derive(Clone)]
struct Service {
    pool: PgPool,
    posts: posts::Reads,
    view_wait: Duration,
}
