//! The source: a table of its own, changed by several writers, streamed by Debezium into a topic.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value as Json, json};
use sqlx::PgConnection;

use crate::changes;
use crate::cli::Mix;
use crate::connect::Connector;
use crate::servers::{Servers, admin, drop_slot, execute};
use crate::topic;

pub(crate) const DATABASE: &str = "bench_source";

/// Connections that write at once: transactions overlap, and their changes reach the log interleaved.
const WRITERS: u16 = 4;
/// Departments the rows are spread over, unless something else is asked for.
const DEPARTMENTS: u32 = 20;
/// Rows made last: when all of them are visible, everything before them is, in each partition.
const LAST_ROWS: i64 = 64;

/// For a connector that ended to let go of its slot.
const SLOT_MAX: Duration = Duration::from_secs(10);

/// Columns of the source table. Those of a user in the reference system, then, for comparing what is
/// written, a few that may be null.
pub(crate) const COLUMNS: [&str; 8] =
    ["id", "name", "email", "department", "status", "created_at", "updated_at", "version"];
pub(crate) const NULLABLE_COLUMNS: [&str; 3] = ["note", "balance", "seen_on"];

/// Definitions of [`COLUMNS`] and [`NULLABLE_COLUMNS`], as they stand in `create table`.
pub(crate) fn definitions(nullable: bool) -> String {
    let users = "id bigint primary key, name text not null, email text not null,
        department text not null, status text not null, created_at timestamptz not null,
        updated_at timestamptz not null, version bigint not null";
    let more = ", note text, balance numeric(12, 2), seen_on date";
    format!("{users}{}", if nullable { more } else { "" })
}

/// What a topic shall hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) mix: Mix,
    pub(crate) changes: u64,
    pub(crate) seed: u64,
    /// Of each source transaction; `None` leaves it to the mix.
    pub(crate) transaction_rows: Option<usize>,
    pub(crate) departments: u32,
}

impl Plan {
    pub(crate) fn new(mix: Mix, changes: u64, seed: u64) -> Self {
        Self { mix, changes, seed, transaction_rows: None, departments: DEPARTMENTS }
    }

    /// Names table, topic, slot and connector.
    fn name(&self) -> String {
        let mix = format!("{:?}", self.mix).to_lowercase();
        let rows = self.transaction_rows.map(|rows| format!("_t{rows}")).unwrap_or_default();
        let other = self.departments != DEPARTMENTS;
        let departments = if other { format!("_d{}", self.departments) } else { String::new() };
        format!("{mix}_{}_{:x}{rows}{departments}", self.changes, self.seed)
    }

    /// As many as have a transaction to write.
    pub(crate) fn writers(&self) -> u16 {
        let rows = self.transaction_rows.unwrap_or(1).max(1) as u64;
        u16::try_from(self.changes / rows).map_or(WRITERS, |count| count.clamp(1, WRITERS))
    }

    fn nullable(&self) -> bool {
        self.mix == Mix::Random
    }

    pub(crate) fn columns(&self) -> Vec<&'static str> {
        let more = NULLABLE_COLUMNS.into_iter().filter(|_| self.nullable());
        COLUMNS.into_iter().chain(more).collect()
    }

    pub(crate) fn definitions(&self) -> String {
        definitions(self.nullable())
    }
}

/// A topic that holds every change of a source table, and nothing is added any more.
#[derive(Debug, Clone)]
pub(crate) struct Filled {
    pub(crate) plan: Plan,
    pub(crate) topic: String,
    pub(crate) table: String,
    /// Inserts, updates and deletes. Each delete is followed by a tombstone, which is no change.
    pub(crate) changes: u64,
    pub(crate) records: u64,
    /// The keys made last.
    pub(crate) last_keys: Vec<i64>,
}

impl Filled {
    /// What will be there; nothing is yet.
    fn planned(plan: Plan) -> anyhow::Result<Self> {
        let table = plan.name();
        let first_last = i64::try_from(plan.changes)? + 1_000_000_000;
        Ok(Self {
            plan,
            topic: format!("bench-{}", table.replace('_', "-")),
            table,
            changes: plan.changes + LAST_ROWS.unsigned_abs(),
            records: 0,
            last_keys: (first_last..first_last + LAST_ROWS).collect(),
        })
    }
}

/// Fills a topic, unless an earlier run did.
pub(crate) async fn fill(servers: &Servers, plan: Plan) -> anyhow::Result<Filled> {
    let mut filled = Filled::planned(plan)?;
    let mut db = prepare().await?;
    let noted: Option<i64> = sqlx::query_scalar("select records from filled where name = $1")
        .bind(&filled.table)
        .fetch_optional(&mut db)
        .await?;
    let found = topic::record_counts(servers, &filled.topic).await?;
    let count = found.map(|counts| counts.iter().sum::<u64>());
    if let (Some(noted), Some(count)) = (noted, count)
        && noted.unsigned_abs() == count
    {
        filled.records = count;
        return Ok(filled);
    }
    let step = servers.progress.step("source", "starting the connector");
    let streaming = Streaming::start(servers, plan).await?;
    filled.records = changes::stream(servers, &filled, &step).await?;
    streaming.stop().await?;
    // Or the autovacuum does it while the first contestant runs.
    execute(&mut db, &format!("vacuum analyze {}", filled.table)).await?;
    sqlx::query("insert into filled values ($1, $2)")
        .bind(&filled.table)
        .bind(i64::try_from(filled.records)?)
        .execute(&mut db)
        .await?;
    step.done(&format!("{} changes, {} records in {}", plan.changes, filled.records, filled.topic));
    Ok(filled)
}

/// An empty table whose changes Debezium streams into a topic.
pub(crate) struct Streaming {
    pub(crate) filled: Filled,
    connector: Connector,
    db: PgConnection,
}

impl Streaming {
    /// Makes table, topic and connector anew.
    pub(crate) async fn start(servers: &Servers, plan: Plan) -> anyhow::Result<Self> {
        let filled = Filled::planned(plan)?;
        let Filled { table, topic, .. } = &filled;
        let mut db = prepare().await?;
        remove_leftovers(servers, &mut db).await?;
        if topic::record_counts(servers, topic).await?.is_some() {
            topic::remove(servers, topic).await?;
        }
        create(&mut db, &plan, table).await?;
        let config = connector(servers, table, topic)?;
        // Connect remembers how far a name got, for ever.
        let name = format!("bench-{table}-{:08x}", rand::random::<u32>());
        let connector = Connector::start(servers, &name, &config).await?;
        wait_for_slot(&mut db, table, &connector).await?;
        Ok(Self { filled, connector, db })
    }

    /// Ends the streaming. Table and topic stay.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.connector.remove().await?;
        drop_slot(&mut self.db, &slot(&self.filled.table), SLOT_MAX).await
    }

    /// Ends the streaming, and removes what was streamed.
    pub(crate) async fn discard(self, servers: &Servers) -> anyhow::Result<()> {
        let Filled { table, topic, .. } = self.filled.clone();
        self.stop().await?;
        topic::remove(servers, &topic).await?;
        let sql = format!("drop publication bench_{table}; drop table {table}");
        execute(&mut admin(DATABASE).await?, &sql).await
    }
}

/// The source's database with what all its tables share.
async fn prepare() -> anyhow::Result<PgConnection> {
    let mut server = admin("postgres").await?;
    let there: bool =
        sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(DATABASE)
            .fetch_one(&mut server)
            .await?;
    if !there {
        execute(&mut server, &format!("create database {DATABASE}")).await?;
    }
    let mut db = admin(DATABASE).await?;
    execute(
        &mut db,
        "create table if not exists filled (name text primary key, records bigint not null)",
    )
    .await?;
    Ok(db)
}

/// What runs that were broken off left behind, which would stream beside the next, or hold back the log.
async fn remove_leftovers(servers: &Servers, db: &mut PgConnection) -> anyhow::Result<()> {
    Connector::remove_all(servers, "bench-").await?;
    let slots =
        "select slot_name::text from pg_replication_slots where database = current_database()";
    let slots: Vec<String> = sqlx::query_scalar(slots).fetch_all(&mut *db).await?;
    for slot in slots {
        drop_slot(db, &slot, SLOT_MAX).await?;
    }
    Ok(())
}

/// The table, its publication, and a function that makes changes one by one: PostgreSQL takes a
/// transaction's changes in one call, whatever their order.
async fn create(db: &mut PgConnection, plan: &Plan, table: &str) -> anyhow::Result<()> {
    let (more_names, more_values, more_set) = if plan.nullable() {
        (
            ", note, balance, seen_on",
            ", nullif(repeat('n', (n % 7)::int), ''), nullif(n % 5, 0) / 4.0,
               case when n % 3 > 0 then date '2024-01-01' + (n % 900)::int end",
            ", note = nullif(repeat('é\"', (n % 4)::int), ''), balance = nullif(n % 6, 0) * -1.25,
               seen_on = case when n % 4 > 0 then date '1969-12-30' + (n % 9)::int end",
        )
    } else {
        ("", "", "")
    };
    let sql = format!(
        "delete from filled where name = '{table}';
         drop publication if exists bench_{table};
         drop table if exists {table};
         create table {table} ({definitions});
         create publication bench_{table} for table {table};
         grant select on {table} to debezium;
         create or replace function change_{table}(letters text, keys bigint[], first bigint)
         returns void language plpgsql as $$
         declare
             n bigint;
             at timestamptz := timestamptz '2024-05-01 10:00:00+00';
         begin
             for i in 1..length(letters) loop
                 n := first + i;
                 case substr(letters, i, 1)
                 when 'c' then
                     insert into {table} (id, name, email, department, status, created_at,
                         updated_at, version{more_names})
                     values (keys[i], '사용자 ' || keys[i], 'user-' || keys[i] || '@example.test',
                         '부서 ' || n % {departments}, (array['ACTIVE', 'INACTIVE', 'SUSPENDED'])[(1 + n % 3)::int],
                         at + n * interval '1.000001 s', at + n * interval '1.000001 s',
                         1{more_values});
                 when 'u' then
                     update {table} set department = '부서 ' || n % {departments},
                         status = (array['ACTIVE', 'INACTIVE', 'SUSPENDED'])[(1 + n % 3)::int],
                         updated_at = at + n * interval '1.000001 s',
                         version = version + 1{more_set}
                     where id = keys[i];
                 when 'd' then
                     delete from {table} where id = keys[i];
                 end case;
                 if not found then
                     raise 'change % of % met no row', substr(letters, i, 1), keys[i];
                 end if;
             end loop;
         end $$",
        definitions = plan.definitions(),
        departments = plan.departments,
    );
    execute(db, &sql).await
}

/// The replication slot of a source table.
pub(crate) fn slot(table: &str) -> String {
    format!("bench_{table}")
}

/// The users' connector as it is shipped, for another table.
fn connector(servers: &Servers, table: &str, topic: &str) -> anyhow::Result<Json> {
    let places = servers.stack.places();
    let file = places.root.join("connectors/users.json");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let secrets = places.state.join("secrets/connect.properties");
    let text = text.replace("@SECRETS_FILE@", &secrets.display().to_string());
    let mut config: Json = serde_json::from_str(&text)?;
    let prefix = format!("bench-{}", table.replace('_', "-"));
    let changed = json!({
        "database.dbname": DATABASE,
        "slot.name": slot(table),
        "publication.name": format!("bench_{table}"),
        "topic.prefix": prefix,
        "table.include.list": format!("public.{table}"),
        // The table is empty; what is measured is the stream of its changes.
        "snapshot.mode": "no_data",
        "transforms.route.regex": format!("{prefix}\\.public\\.{table}"),
        "transforms.route.replacement": topic,
        // Every change shall still be there for the next contestant.
        "topic.creation.default.cleanup.policy": "delete",
        "topic.creation.default.retention.ms": "-1",
        "topic.creation.default.retention.bytes": "-1",
        "topic.creation.default.partitions": topic::PARTITIONS.to_string(),
    });
    let (Some(config_map), Json::Object(changed)) = (config.as_object_mut(), changed) else {
        bail!("{} holds no object", file.display());
    };
    for name in [
        "topic.creation.default.min.compaction.lag.ms",
        "topic.creation.default.delete.retention.ms",
        "snapshot.include.collection.list",
    ] {
        config_map.remove(name);
    }
    config_map.extend(changed);
    Ok(config)
}

async fn wait_for_slot(
    db: &mut PgConnection,
    table: &str,
    connector: &Connector,
) -> anyhow::Result<()> {
    loop {
        let active: Option<bool> =
            sqlx::query_scalar("select active from pg_replication_slots where slot_name = $1")
                .bind(slot(table))
                .fetch_optional(&mut *db)
                .await?;
        if active == Some(true) {
            return Ok(());
        }
        connector.running_tasks().await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
