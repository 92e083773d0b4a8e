//! The servers that `./dev bench` brought up, and what of their settings makes figures comparable.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use devstack::addresses::{self, CONNECT_PORT, HOST, KAFKA_PORT, REGISTRY_PORT};
use devstack::{Progress, Stack};
use serde::Serialize;
use sqlx::{Connection, PgConnection};

/// Where everything is, and how to tell people what is going on.
pub(crate) struct Servers {
    pub(crate) stack: Stack,
    pub(crate) brokers: String,
    pub(crate) registry: String,
    pub(crate) connect: String,
    pub(crate) progress: Progress,
}

/// The machine and the settings under which something was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Conditions {
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory_mib: u64,
    pub(crate) system: String,
    pub(crate) kafka: &'static str,
    pub(crate) debezium: &'static str,
    pub(crate) jdbc_sink: &'static str,
    /// Name and value, of `PostgreSQL`.
    pub(crate) postgres: Vec<(String, String)>,
    /// Runnable processes of the last minute, at the beginning: above zero, others use the machine.
    pub(crate) load_average: f64,
}

const SETTINGS: [&str; 8] = [
    "server_version",
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "shared_buffers",
    "max_wal_size",
    "wal_level",
    "autovacuum",
];

impl Servers {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            stack: Stack::from_environment()?,
            brokers: format!("{HOST}:{KAFKA_PORT}"),
            registry: format!("http://{HOST}:{REGISTRY_PORT}/apis/ccompat/v7"),
            connect: format!("http://{HOST}:{CONNECT_PORT}"),
            progress: Progress::to_terminal(),
        })
    }

    /// What the figures of this run are worth. Refuses a server that does not keep what it commits.
    pub(crate) async fn conditions(&self) -> anyhow::Result<Conditions> {
        let mut db = admin("postgres").await?;
        let mut postgres = Vec::new();
        for name in SETTINGS {
            let value: String =
                sqlx::query_scalar(&format!("show {name}")).fetch_one(&mut db).await?;
            let durable = ["fsync", "full_page_writes", "synchronous_commit"].contains(&name);
            ensure!(
                !durable || value == "on",
                "{name} is {value}: figures without it are worthless"
            );
            postgres.push((name.to_owned(), value));
        }
        let text = |path| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| -> Option<String> {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = field(&text("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let load = text("/proc/loadavg");
        Ok(Conditions {
            processor: field(&text("/proc/cpuinfo"), "model name").unwrap_or_default(),
            processors: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            memory_mib: memory.trim_end_matches(" kB").parse::<u64>().unwrap_or(0) >> 10,
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            kafka: addresses::KAFKA_VERSION,
            debezium: addresses::DEBEZIUM_VERSION,
            jdbc_sink: addresses::JDBC_SINK_VERSION,
            postgres,
            load_average: load.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0),
        })
    }
}

/// A superuser's connection.
pub(crate) async fn admin(database: &str) -> anyhow::Result<PgConnection> {
    let url = addresses::admin_url(database);
    PgConnection::connect(&url).await.with_context(|| format!("no connection to {database}"))
}

/// Drops a replication slot, if it is there. Who used it a moment ago may still hold it; its session ends
/// by itself.
pub(crate) async fn drop_slot(
    db: &mut PgConnection,
    slot: &str,
    patience: Duration,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let sql = format!(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots
             where slot_name = '{slot}'"
        );
        match execute(db, &sql).await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                bail!("the replication slot {slot} is held for {patience:?}: {error:#}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Bytes of log that a slot's reader has not confirmed; `None` if there is no such slot or it is of no use.
pub(crate) async fn slot_behind(db: &mut PgConnection, slot: &str) -> anyhow::Result<Option<i64>> {
    let sql = "select pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint
               from pg_replication_slots where slot_name = $1 and wal_status <> 'lost'";
    Ok(sqlx::query_scalar(sql).bind(slot).fetch_optional(db).await?.flatten())
}

/// Statements without results.
pub(crate) async fn execute(db: &mut PgConnection, sql: &str) -> anyhow::Result<()> {
    let done = sqlx::raw_sql(sql).execute(db).await;
    done.map(drop).with_context(|| format!("PostgreSQL refused: {sql}"))
}
