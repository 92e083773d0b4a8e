//! What every process of this project shares, and nothing that only one of them uses: logs,
//! shutdown, health, metrics, and the HTTP layer with its problem documents.
#![warn(missing_docs)]

pub mod extract;
pub mod health;
pub mod http;
pub mod metrics;
pub mod problem;
pub mod server;
pub mod shutdown;
pub mod telemetry;

pub use extract::{Json, Path, Query};
pub use problem::Problem;
