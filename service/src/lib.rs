//! What every process of this project shares, and nothing that only one of them uses: logs,
//! shutdown, health, metrics, and the HTTP layer with its problem documents. The last modules are
//! what the two HTTP services have in common: reading bodies, pages, versions, their pool, and requests
//! that share a statement.
#![warn(missing_docs)]

pub mod telemetry;

pub mod shutdown;

pub mod health;
pub mod metrics;

pub mod http;
pub mod problem;
pub mod server;
mod write_limit;

pub mod extract;
pub mod fields;
pub mod page;
pub mod precondition;
pub mod timestamp;

pub mod database;
pub mod heartbeat;
pub mod together;

pub use extract::{Json, Path, Query};
pub use problem::Problem;
