use std::net::SocketAddr;
use std::num::NonZeroU32;

use clap::Parser;
use secrecy::SecretString;
use service::telemetry::{LogFilter, LogFormat};

/// The user service: REST in front of the table `users`.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Settings {
    /// The user service's database, as its own role.
    #[arg(long, env = "USER_DATABASE_URL", hide_env_values = true)]
    pub(crate) database_url: SecretString,

    /// Address to listen on.
    #[arg(long, env = "USER_API_LISTEN", default_value = "127.0.0.1:8081")]
    pub(crate) listen: SocketAddr,

    /// Most database connections to hold open.
    #[arg(long, env = "USER_API_CONNECTIONS", default_value = "16")]
    pub(crate) connections: NonZeroU32,

    /// Log lines for people (text) or collectors (json).
    #[arg(long, env = "LOG_FORMAT", default_value_t)]
    pub(crate) log_format: LogFormat,

    /// What is logged, as a directive list.
    #[arg(long, env = "RUST_LOG", default_value = "info,sqlx=warn")]
    pub(crate) log_filter: LogFilter,
}
