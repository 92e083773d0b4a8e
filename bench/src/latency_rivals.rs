//! The same measurement of others who could bring the rows: the Debezium JDBC sink behind the same topic,
//! and `PostgreSQL`'s own logical replication without any of it.
//!
//! Each writes to a plain table with a primary key, in a database of its own; `user_view` has an index
//! and counts besides. What the others do not need stands still meanwhile: cdc-consumer, and during the
//! replication Debezium too.

use std::time::Duration;

use anyhow::ensure;
use devstack::Service;
use devstack::addresses::{ADMIN_PASSWORD, HOST, POSTGRES_PORT, TOPICS, USER_DATABASE};

use crate::connect::Connector;
use crate::interrupt::{cleaned_up, unless_interrupted};
use crate::jdbc::{self, Sink, Way};
use crate::latency::CONNECTOR;
use crate::latency_loop::{Place, VIEW, wait_until_alive};
use crate::latency_run::{NO_CONNECTOR, Pace, Run, SHIPPED, Subject, measure};
use crate::servers::{Servers, admin, drop_slot, execute};
use crate::source;

/// Names the database, and the publication, the slot and the subscription.
const NAME: &str = "bench_latency";
const PLACE: Place = Place { database: NAME, sql: "select id from users where id = any ($1)" };
const SINK: Subject =
    Subject { contestant: "JDBC sink, default", connector: SHIPPED, place: PLACE };
const REPLICATION: Subject =
    Subject { contestant: "logical replication", connector: NO_CONNECTOR, place: PLACE };
/// The process that used the slot ends by itself once the subscription is gone.
const SLOT_MAX: Duration = Duration::from_secs(30);

/// Makes sure that both can be measured, before anything is. May restart Connect.
pub(crate) async fn prepare(servers: &Servers) -> anyhow::Result<()> {
    tidy(servers).await?;
    let mut db = admin(USER_DATABASE).await?;
    let needs = [
        ("wal_level must be logical", "current_setting('wal_level') = 'logical'"),
        (
            "max_logical_replication_workers must be above 0",
            "current_setting('max_logical_replication_workers')::int > 0",
        ),
        (
            "a replication slot must be free: drop one, or raise max_replication_slots",
            "(select count(*) from pg_replication_slots)
                 < current_setting('max_replication_slots')::int",
        ),
    ];
    for (need, question) in needs {
        let sql = format!("select {question}");
        let met: bool = sqlx::query_scalar(&sql).fetch_one(&mut db).await?;
        ensure!(met, "logical replication cannot be measured: {need}");
    }
    jdbc::offer(servers).await?;
    wait_until_alive(VIEW).await
}

/// Both, one after the other. The system is as before in the end, also after an error or an interrupt.
pub(crate) async fn run(servers: &Servers, pace: Pace) -> anyhow::Result<Vec<Run>> {
    let measured = Box::pin(unless_interrupted(both(servers, pace)));
    let runs = cleaned_up(measured, tidy(servers)).await?;
    wait_until_alive(VIEW).await?;
    Ok(runs)
}

async fn both(servers: &Servers, pace: Pace) -> anyhow::Result<Vec<Run>> {
    servers.stack.stop(Service::Consumer(1)).await?;
    let sink = sink(servers, pace).await?;
    let replication = replication(servers, pace).await?;
    Ok(vec![sink, replication])
}

async fn sink(servers: &Servers, pace: Pace) -> anyhow::Result<Run> {
    create_database().await?;
    let way = Way { topic: TOPICS[0], begin: "latest", database: NAME, table: "users" };
    let sink = Sink::start_on(servers, way, jdbc::DEFAULT).await?;
    let measured = measure_alive(servers, SINK, pace).await;
    // Its trace says more than that rows are missing.
    let failed = sink.check().await;
    let stopped = sink.stop(servers).await;
    failed?;
    let run = measured?;
    stopped?;
    Ok(run)
}

/// As `PostgreSQL` ships it, with one difference: a subscription commits without waiting for its disk
/// (`synchronous_commit = off`), everybody else here waits.
async fn replication(servers: &Servers, pace: Pace) -> anyhow::Result<Run> {
    create_database().await?;
    Connector::stop(servers, CONNECTOR).await?;
    let mut users = admin(USER_DATABASE).await?;
    execute(&mut users, &format!("create publication {NAME} for table users")).await?;
    // `create subscription` would wait for a slot in its own server for ever: for its own transaction.
    let slot = format!("select pg_create_logical_replication_slot('{NAME}', 'pgoutput')");
    execute(&mut users, &slot).await?;
    let mut db = admin(NAME).await?;
    let sql = format!(
        "create subscription {NAME}
         connection 'host={HOST} port={POSTGRES_PORT} dbname={USER_DATABASE} user=postgres password={ADMIN_PASSWORD}'
         publication {NAME}
         with (create_slot = false, slot_name = '{NAME}', copy_data = false,
             synchronous_commit = 'on')"
    );
    execute(&mut db, &sql).await?;
    measure_alive(servers, REPLICATION, pace).await
}

async fn measure_alive(servers: &Servers, subject: Subject, pace: Pace) -> anyhow::Result<Run> {
    wait_until_alive(subject.place).await?;
    measure(servers, subject, pace).await
}

/// The database with an empty table `users`, which sink and subscription may write.
async fn create_database() -> anyhow::Result<()> {
    drop_database().await?;
    let mut server = admin("postgres").await?;
    execute(&mut server, &format!("create database {NAME}")).await?;
    let mut db = admin(NAME).await?;
    jdbc::create_role(&mut db).await?;
    let (role, columns) = (jdbc::ROLE, source::definitions(false));
    let sql = format!(
        "create table users ({columns}) with (fillfactor = 85);
         grant select, insert, update, delete, truncate on users to {role}"
    );
    execute(&mut db, &sql).await
}

/// Removes what a comparison makes, however far one came, and has the system's own parts go on. One that
/// fails does not keep the others from being tried.
async fn tidy(servers: &Servers) -> anyhow::Result<()> {
    let done = [
        Connector::remove_all(servers, jdbc::PREFIX).await,
        drop_replication().await,
        drop_database().await,
        Connector::resume(servers, CONNECTOR).await,
        servers.stack.start(Service::Consumer(1)).await.map(drop).map_err(anyhow::Error::from),
    ];
    done.into_iter().collect()
}

async fn drop_replication() -> anyhow::Result<()> {
    let mut users = admin(USER_DATABASE).await?;
    let subscribed = "select exists (select from pg_subscription where subname = $1)";
    let subscribed: bool = sqlx::query_scalar(subscribed).bind(NAME).fetch_one(&mut users).await?;
    if subscribed {
        let mut db = admin(NAME).await?;
        // It forgets its slot, which it would otherwise drop through a connection of its own.
        for sql in
            ["alter subscription NAME disable", "alter subscription NAME set (slot_name = none)"]
        {
            execute(&mut db, &sql.replace("NAME", NAME)).await?;
        }
        execute(&mut db, &format!("drop subscription {NAME}")).await?;
    }
    drop_slot(&mut users, NAME, SLOT_MAX).await?;
    execute(&mut users, &format!("drop publication if exists {NAME}")).await
}

async fn drop_database() -> anyhow::Result<()> {
    let mut server = admin("postgres").await?;
    execute(&mut server, &format!("drop database if exists {NAME} with (force)")).await
}
