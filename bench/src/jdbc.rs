//! The Debezium JDBC sink: its settings, and a connector that runs with them.

use devstack::Service;
use devstack::addresses::{HOST, POSTGRES_PORT};
use serde::Serialize;
use serde_json::{Value as Json, json};
use sqlx::PgConnection;

use crate::connect::Connector;
use crate::servers::{Servers, execute};
use crate::target::{self, Target};
use crate::topic;

const CLASS: &str = "io.debezium.connector.jdbc.JdbcSinkConnector";
/// Connectors of this program are called so, and something random.
pub(crate) const PREFIX: &str = "bench-sink-";
/// The sink's role, and its password.
pub(crate) const ROLE: &str = "bench_sink";

/// Makes the sink's role, unless the server has it. It stays: other databases may know it.
pub(crate) async fn create_role(db: &mut PgConnection) -> anyhow::Result<()> {
    let sql = format!(
        "do $$ begin
             if not exists (select from pg_roles where rolname = '{ROLE}') then
                 create role {ROLE} login password '{ROLE}';
             end if;
         end $$"
    );
    execute(db, &sql).await
}

/// Has Connect offer the sink: fetches it, and restarts a Connect that was started before.
pub(crate) async fn offer(servers: &Servers) -> anyhow::Result<()> {
    let url = format!("{}/connector-plugins", servers.connect);
    if reqwest::get(url).await?.text().await?.contains(CLASS) {
        return Ok(());
    }
    devstack::fetch_jdbc_sink(servers.stack.places(), &servers.progress).await?;
    let step = servers.progress.step("connect", "restarting with the JDBC sink");
    servers.stack.restart(Service::Connect).await?;
    step.done("restarted with the JDBC sink");
    Ok(())
}

/// What a sink reads, and where it writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way<'a> {
    pub(crate) topic: &'a str,
    /// Where in the topic it begins: Kafka's `auto.offset.reset`.
    pub(crate) begin: &'static str,
    pub(crate) database: &'a str,
    pub(crate) table: &'a str,
}

/// What can be tuned without changing what the sink promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Setting {
    pub(crate) tasks: u16,
    /// `batch.size`, and as many records a poll.
    pub(crate) batch: u32,
    /// `use.reduction.buffer`
    pub(crate) reduction: bool,
    /// `reWriteBatchedInserts` of the JDBC driver.
    pub(crate) rewrite: bool,
    /// `dialect.postgres.unnest.insert.enabled`
    pub(crate) unnest: bool,
}

/// As shipped, except that deletes and updates arrive at all (`insert.mode=upsert`,
/// `primary.key.mode=record_key`, `delete.enabled=true`).
pub(crate) const DEFAULT: Setting =
    Setting { tasks: 1, batch: 500, reduction: false, rewrite: false, unnest: false };

/// As many tasks as partitions.
pub(crate) const PARALLEL: Setting = Setting { tasks: 4, ..DEFAULT };

/// Candidates for the best. `unnest` needs the reduction buffer: a statement must not meet a key twice.
pub(crate) const TUNED: [Setting; 5] = [
    Setting { batch: 2000, reduction: true, rewrite: true, ..PARALLEL },
    Setting { batch: 5000, reduction: true, rewrite: true, ..PARALLEL },
    Setting { batch: 2000, reduction: true, unnest: true, ..PARALLEL },
    Setting { batch: 5000, reduction: true, unnest: true, ..PARALLEL },
    Setting { batch: 5000, reduction: true, unnest: true, rewrite: true, ..PARALLEL },
];

impl Setting {
    fn config(&self, servers: &Servers, way: Way<'_>) -> Json {
        let Way { topic, begin, database, table } = way;
        let state = &servers.stack.places().state;
        let secrets = state.join("secrets/connect.properties");
        let registry = format!("${{file:{}:registry.url}}", secrets.display());
        let rewrite = if self.rewrite { "?reWriteBatchedInserts=true" } else { "" };
        let mut config = json!({
            "connector.class": CLASS,
            "tasks.max": self.tasks.to_string(),
            "topics": topic,
            "connection.url": format!("jdbc:postgresql://{HOST}:{POSTGRES_PORT}/{database}{rewrite}"),
            "connection.username": ROLE,
            "connection.password": ROLE,
            "collection.name.format": table,
            "insert.mode": "upsert",
            "primary.key.mode": "record_key",
            "delete.enabled": "true",
            "schema.evolution": "none",
        });
        for side in ["key", "value"] {
            let name = |name: &str| format!("{side}.converter{name}");
            config[name("")] = json!("io.apicurio.registry.utils.converter.AvroConverter");
            config[name(".apicurio.registry.url")] = json!(registry);
            config[name(".apicurio.registry.as-confluent")] = json!("true");
            config[name(".apicurio.registry.use-id")] = json!("contentId");
            config[name(".apicurio.registry.headers.enabled")] = json!("false");
        }
        // What equals the default is left to it.
        if self.batch != DEFAULT.batch {
            config["batch.size"] = json!(self.batch.to_string());
            config["consumer.override.max.poll.records"] = json!(self.batch.to_string());
        }
        if begin != "earliest" {
            config["consumer.override.auto.offset.reset"] = json!(begin);
        }
        if self.reduction {
            config["use.reduction.buffer"] = json!("true");
        }
        if self.unnest {
            config["dialect.postgres.unnest.insert.enabled"] = json!("true");
        }
        config
    }
}

/// A sink at work.
pub(crate) struct Sink {
    connector: Connector,
}

impl Sink {
    pub(crate) async fn start(
        servers: &Servers,
        target: &Target,
        setting: Setting,
    ) -> anyhow::Result<Self> {
        let way = Way {
            topic: &target.filled.topic,
            begin: "earliest",
            database: target::DATABASE,
            table: "bench_sink",
        };
        Self::start_on(servers, way, setting).await
    }

    pub(crate) async fn start_on(
        servers: &Servers,
        way: Way<'_>,
        setting: Setting,
    ) -> anyhow::Result<Self> {
        let name = format!("{PREFIX}{:016x}", rand::random::<u64>());
        let config = setting.config(servers, way);
        Ok(Self { connector: Connector::start(servers, &name, &config).await? })
    }

    /// Fails when a task has failed.
    pub(crate) async fn check(&self) -> anyhow::Result<()> {
        self.connector.running_tasks().await.map(drop)
    }

    pub(crate) async fn stop(self, servers: &Servers) -> anyhow::Result<()> {
        let group = format!("connect-{}", self.connector.name);
        self.connector.remove().await?;
        topic::forget_group(servers, &group).await
    }
}
