use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use clap::Parser;
use secrecy::SecretString;
use service::telemetry::{LogFilter, LogFormat};

/// The post service: REST in front of the table `posts` and of the views of users.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Settings {
    /// The post service's database, as its own role.
    #[arg(long, env = "POST_DATABASE_URL", hide_env_values = true)]
    pub(crate) database_url: SecretString,

    /// Address to listen on.
    #[arg(long, env = "POST_API_LISTEN", default_value = "127.0.0.1:8082")]
    pub(crate) listen: SocketAddr,

    /// Most database connections to hold open.
    #[arg(long, env = "POST_API_CONNECTIONS", default_value = "16")]
    pub(crate) connections: NonZeroU32,

    /// How long a request waits for a view to catch up: for the author of a new post, and for
    /// `minVersion`.
    #[arg(long, env = "POST_API_VIEW_WAIT", default_value = "2s", value_parser = humantime::parse_duration)]
    pub(crate) view_wait: Duration,

    /// Log lines for people (text) or collectors (json).
    #[arg(long, env = "LOG_FORMAT", default_value_t)]
    pub(crate) log_format: LogFormat,

    /// What is logged, as a directive list.
    #[arg(long, env = "RUST_LOG", default_value = "info,sqlx=warn")]
    pub(crate) log_filter: LogFilter,
}
