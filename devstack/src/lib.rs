//! The local stack: the real `PostgreSQL`, Kafka, schema registry and Kafka Connect with Debezium
//! as ordinary processes of this machine, and the project's own programs beside them.
//!
//! `./dev` is the command line over this library; tests use it to kill, pause and restart single
//! services:
//!
//! ```no_run
//! # async fn example() -> Result<(), devstack::StackError> {
//! use devstack::{Service, Stack};
//!
//! let stack = Stack::from_environment()?;
//! stack.kill(Service::Kafka).await?;
//! stack.start(Service::Kafka).await?; // returns when the broker answers again
//! # Ok(())
//! # }
//! ```

pub mod addresses;
mod artefact;
mod configuration;
mod connectors;
mod fetch;
mod health;
mod java;
mod launch;
mod outdated;
mod port;
mod proc_table;
mod process;
mod progress;
mod registry_database;
mod service;
mod settings;
mod stack;
mod tools;
mod turn;
mod up;

pub use artefact::ArtefactError;
pub use connectors::ConnectorError;
pub use fetch::{fetch_all, fetch_jdbc_sink, relock};
pub use health::Unhealthy;
pub use port::Owner;
pub use proc_table::{alive, paused};
pub use process::{ProcessError, Running};
pub use progress::{Progress, Step};
pub use service::{CONSUMERS_MAX, Service, UnknownService};
pub use settings::{Places, Settings};
pub use stack::{ServiceStatus, Stack, StackError, Started, State};
pub use tools::{ToolError, kafka_tool, kafka_tools};
pub use up::Extent;
