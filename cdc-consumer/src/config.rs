//! Settings: one documented struct per concern, read from flags or the environment. No other module knows
//! the environment exists.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use secrecy::SecretString;
use service::telemetry::{LogFilter, LogFormat};

/// How to reach Kafka, and as whom.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Kafka")]
pub struct KafkaSettings {
    /// Brokers to begin with, as host:port, comma separated
    #[arg(long, env = "KAFKA_BROKERS", default_value = "127.0.0.1:9092")]
    pub kafka_brokers: String,

    /// Consumer group. Members of one group share the partitions; a second group reads everything again
    #[arg(long, env = "CONSUMER_GROUP", default_value = "post-service-streams")]
    pub consumer_group: String,

    /// Name of this member that survives a restart (static membership): its partitions wait for it
    /// instead of moving. Must differ between members. Without it a stopped member's partitions move
    #[arg(long, env = "CONSUMER_INSTANCE")]
    pub consumer_instance: Option<String>,

    /// `plaintext`, `ssl`, `sasl_plaintext` or `sasl_ssl`
    #[arg(long, env = "KAFKA_SECURITY_PROTOCOL", default_value = "plaintext")]
    pub kafka_security_protocol: String,

    /// PEM file of the authorities to trust; without it, the system's
    #[arg(long, env = "KAFKA_SSL_CA")]
    pub kafka_ssl_ca: Option<PathBuf>,

    /// PEM file of our certificate, for brokers that ask for one
    #[arg(long, env = "KAFKA_SSL_CERTIFICATE")]
    pub kafka_ssl_certificate: Option<PathBuf>,

    /// PEM file of our private key
    #[arg(long, env = "KAFKA_SSL_KEY")]
    pub kafka_ssl_key: Option<PathBuf>,

    /// Password of the private key
    #[arg(long, env = "KAFKA_SSL_KEY_PASSWORD", hide_env_values = true)]
    pub kafka_ssl_key_password: Option<SecretString>,

    /// PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
    #[arg(long, env = "KAFKA_SASL_MECHANISM")]
    pub kafka_sasl_mechanism: Option<String>,

    /// User for SASL
    #[arg(long, env = "KAFKA_SASL_USERNAME")]
    pub kafka_sasl_username: Option<String>,

    /// Password for SASL
    #[arg(long, env = "KAFKA_SASL_PASSWORD", hide_env_values = true)]
    pub kafka_sasl_password: Option<SecretString>,
}

/// How to reach the schema registry.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Schema registry")]
pub struct RegistrySettings {
    /// Address of the Confluent-compatible API; several, comma separated, are tried in order
    #[arg(
        long,
        env = "SCHEMA_REGISTRY_URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8085/apis/ccompat/v7"
    )]
    pub schema_registry_url: Vec<String>,

    /// User for basic authentication
    #[arg(long, env = "SCHEMA_REGISTRY_USERNAME")]
    pub schema_registry_username: Option<String>,

    /// Password for basic authentication
    #[arg(long, env = "SCHEMA_REGISTRY_PASSWORD", hide_env_values = true)]
    pub schema_registry_password: Option<SecretString>,
}

/// The view database.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Database")]
pub struct DatabaseSettings {
    /// URL of the view database; TLS by its parameters (sslmode, sslrootcert, sslcert, sslkey)
    #[arg(
        long,
        env = "CONSUMER_DATABASE_URL",
        hide_env_values = true,
        default_value = "postgres://cdc_consumer:cdc_consumer@127.0.0.1:5432/materialized_view_db",
        hide_default_value = true
    )]
    pub consumer_database_url: SecretString,
}

/// Which views to keep.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Views")]
pub struct ViewSettings {
    /// File that declares the views
    #[arg(long, env = "VIEWS_FILE", default_value = "views.toml")]
    pub views_file: PathBuf,
}

/// Limits. The defaults suit a small machine; nothing is unbounded.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitSettings {
    /// Connections that write, each with its own partitions and transactions
    #[arg(long, env = "CONSUMER_WRITERS", default_value = "2")]
    pub writers: NonZeroUsize,

    /// A batch is closed at this many records
    #[arg(long, env = "CONSUMER_BATCH_RECORDS_MAX", default_value = "4000")]
    pub batch_records_max: NonZeroUsize,

    /// A batch is closed at about this many bytes
    #[arg(long, env = "CONSUMER_BATCH_BYTES_MAX", default_value = "2000000")]
    pub batch_bytes_max: NonZeroUsize,

    /// From this many inserts into a view in a batch on, rows of new keys are written by COPY: less
    /// write-ahead log, three more round trips
    #[arg(long, env = "CONSUMER_COPY_ROWS_MIN", default_value = "100")]
    pub copy_rows_min: NonZeroUsize,

    /// Records fetched ahead, in KiB
    #[arg(long, env = "CONSUMER_PREFETCH_KIB", default_value = "4096")]
    pub prefetch_kib: NonZeroUsize,

    /// How long the key of a deleted row is remembered, so that a replay does not bring it back for a
    /// moment. Longer than the topics are replayed is long enough
    #[arg(long, env = "CONSUMER_DELETED_KEYS_KEPT", default_value = "7d", value_parser = humantime::parse_duration)]
    pub deleted_keys_kept: Duration,

    /// Keys with a refused record above which the consumer stops: a flood is a wrong setting, not bad data.
    /// It also stops at a hundred times as many records kept aside, with those that only wait behind one
    #[arg(long, env = "CONSUMER_DEAD_LETTERS_MAX", default_value = "1000")]
    pub dead_letters_max: u32,
}

/// Logs of the process.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logs")]
pub struct LogSettings {
    /// Which log lines to write, for example `info,cdc_consumer=debug`
    #[arg(long, env = "RUST_LOG", default_value = "info,sqlx=error", global = true)]
    pub log_filter: LogFilter,

    /// text or json
    #[arg(long, env = "LOG_FORMAT", default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,
}

/// Settings of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunSettings {
    /// Address of the admin page, metrics and health
    #[arg(long, env = "CONSUMER_LISTEN", default_value = "127.0.0.1:8084")]
    pub consumer_listen: SocketAddr,

    #[command(flatten)]
    pub views: ViewSettings,

    #[command(flatten)]
    pub kafka: KafkaSettings,

    #[command(flatten)]
    pub registry: RegistrySettings,

    #[command(flatten)]
    pub database: DatabaseSettings,

    #[command(flatten)]
    pub limits: LimitSettings,
}
