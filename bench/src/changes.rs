//! Writers who change the source, side by side, while Debezium streams what they do.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use sqlx::{Connection, PgConnection};
use tokio::task::{JoinHandle, JoinSet};

use crate::operations::Operations;
use crate::servers::{Servers, admin, slot_behind};
use crate::source::{DATABASE, Filled, slot};
use crate::topic;

/// Rows of one call; a transaction may take several.
const CALL_ROWS: usize = 1000;
/// WAL that Debezium may be behind: far below what the server keeps for it.
const BEHIND_BYTES_MAX: i64 = 800 << 20;
/// Time without any new record after which Debezium is given up.
const STILL_MAX: Duration = Duration::from_mins(2);
/// Between two looks at the topic, or at the slot.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Makes all changes of a plan in the background, its last rows at the end. The result is how many of
/// them were deletes.
pub(crate) fn write_all(filled: &Filled) -> JoinHandle<anyhow::Result<u64>> {
    let filled = filled.clone();
    tokio::spawn(async move {
        let plan = filled.plan;
        let mut writers = JoinSet::new();
        for number in 0..plan.writers() {
            let operations =
                Operations::new(plan.mix, plan.changes, plan.seed, number, plan.writers());
            writers.spawn(write(filled.table.clone(), operations, plan.transaction_rows, number));
        }
        let mut deletes = 0;
        while let Some(written) = writers.join_next().await {
            deletes += written??;
        }
        let mut db = admin(DATABASE).await?;
        let letters = "c".repeat(filled.last_keys.len());
        change(&mut db, &filled.table, &letters, &filled.last_keys, 0).await?;
        Ok(deletes)
    })
}

/// What [`warm_up`] adds to a topic.
pub(crate) const WARM_UP_RECORDS: u64 = 1;

/// Makes one row, before all others, and waits until it is in the topic.
pub(crate) async fn warm_up(servers: &Servers, filled: &Filled) -> anyhow::Result<()> {
    let mut db = admin(DATABASE).await?;
    let before_last = filled.last_keys.iter().min().context("there are last keys")? - 1;
    change(&mut db, &filled.table, "c", &[before_last], 0).await?;
    let started = Instant::now();
    while records(servers, &filled.topic).await? < WARM_UP_RECORDS {
        ensure!(started.elapsed() < STILL_MAX, "Debezium streams nothing");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Writes everything and waits until it is in the topic. Returns the number of records there.
pub(crate) async fn stream(
    servers: &Servers,
    filled: &Filled,
    step: &devstack::Step,
) -> anyhow::Result<u64> {
    let before = records(servers, &filled.topic).await?;
    let mut writing = write_all(filled);
    let deletes = loop {
        tokio::select! {
            written = &mut writing => break written??,
            () = tokio::time::sleep(LOOK_EVERY) => {
                let count = records(servers, &filled.topic).await?;
                step.message(format!("{count} records of {} changes streamed", filled.changes));
            }
        }
    };
    let expected = before + filled.changes + deletes;
    let (mut count, mut moved) = (0, Instant::now());
    while count < expected {
        let now = records(servers, &filled.topic).await?;
        if now != count {
            (count, moved) = (now, Instant::now());
            step.message(format!("{count} of {expected} records streamed"));
        }
        let still = moved.elapsed() > STILL_MAX;
        ensure!(!still, "Debezium stopped at {count} of {expected} records");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    ensure!(count == expected, "{expected} records were expected in {}, not {count}", filled.topic);
    Ok(count)
}

async fn records(servers: &Servers, topic: &str) -> anyhow::Result<u64> {
    Ok(topic::record_counts(servers, topic).await?.map_or(0, |counts| counts.iter().sum()))
}

/// One writer's changes. Returns how many of them were deletes.
async fn write(
    table: String,
    mut operations: Operations,
    transaction_rows: Option<usize>,
    number: u16,
) -> anyhow::Result<u64> {
    let mut db = admin(DATABASE).await?;
    let mut done = i64::from(number) << 40;
    let mut deletes = 0;
    for round in 0_u64.. {
        let transaction = operations.transaction(transaction_rows);
        if transaction.is_empty() {
            break;
        }
        let mut tx = db.begin().await?;
        for call in transaction.chunks(CALL_ROWS) {
            let letters: String = call.iter().map(|(operation, _)| operation.letter()).collect();
            let keys: Vec<i64> = call.iter().map(|(_, key)| *key).collect();
            change(&mut tx, &table, &letters, &keys, done % 1_000_000_007).await?;
            deletes += letters.matches('d').count() as u64;
            done += i64::try_from(keys.len())?;
        }
        tx.commit().await?;
        if round.is_multiple_of(50) {
            wait_for_debezium(&mut db, &table).await?;
        }
    }
    Ok(deletes)
}

async fn change(
    db: &mut PgConnection,
    table: &str,
    letters: &str,
    keys: &[i64],
    first: i64,
) -> anyhow::Result<()> {
    let sql = format!("select change_{table}($1, $2, $3)");
    let query = sqlx::query(&sql).bind(letters).bind(keys).bind(first);
    query.execute(db).await.context("a change at the source failed")?;
    Ok(())
}

/// The server gives up on a slot that is too far behind.
async fn wait_for_debezium(db: &mut PgConnection, table: &str) -> anyhow::Result<()> {
    loop {
        let behind = slot_behind(db, &slot(table)).await?;
        if behind.unwrap_or(0) < BEHIND_BYTES_MAX {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
