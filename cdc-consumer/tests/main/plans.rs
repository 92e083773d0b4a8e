//! How PostgreSQL finds the rows of a batch.

use std::ops::Range;

use serde_json::json;

use crate::harness::consumer::Consumer;
use crate::harness::feed::{Event, Feed};
use crate::harness::source::{Users, user_feed, user_views};
use crate::harness::{SOON, World, wait_until};

/// Tables whose rows a batch looks up.
const TABLES: &str = "('user_view', 'user_view_deleted')";

/// How often there is a batch of each kind of change after the tables have grown.
const ROUNDS: i64 = 8;

/// More rows than are looked up in each of them, a few.
const OF_A_ROUND: i64 = 20;

/// How many rows the tables have by then.
const MANY: i64 = 5000;

/// The number of a row that is deleted is beyond those of rows that stay.
const GONE: i64 = 1_000_000;

/// A writer keeps the plans of its first batches. Tables are empty then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_made_for_empty_tables_looks_rows_up_by_key_when_they_have_grown() {
    rows_are_looked_up_by_key(0, &[]).await;
}

/// An analysis that ran before the first batch was committed saw pages without rows. PostgreSQL takes the
/// tables for empty until the next, however they grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_looked_up_by_key_though_the_statistics_call_the_tables_empty() {
    let none = format!(
        "update pg_class set reltuples = 0
         where oid in (select c.oid from pg_class c where c.relname in {TABLES})
         or oid in (select indexrelid from pg_index i join pg_class c on c.oid = i.indrelid
                    where c.relname in {TABLES})"
    );
    rows_are_looked_up_by_key(50, &["analyze", &none]).await;
}

/// Begins with this many rows and deleted keys, and with these statistics; then come batches for which
/// plans are made, more rows, and batches that find them by these plans.
async fn rows_are_looked_up_by_key(few: i64, statistics: &[&str]) {
    let world = World::new().await;
    for table in ["user_view", "user_view_deleted"] {
        world.sql(&format!("alter table views_1.{table} set (autovacuum_enabled = false)")).await;
    }
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    pruned(&world).await;

    let mut users = Users::default();
    grow(&world, &feed, &mut users, 1..1 + few).await;
    for sql in statistics {
        world.sql(sql).await;
    }
    changes(&world, &feed, &mut users, 1000).await;
    grow(&world, &feed, &mut users, 1001..1001 + MANY).await;
    for id in 0..ROUNDS {
        changes(&world, &feed, &mut users, 10 * MANY + id).await;
    }

    // Its sessions have reported what they read when they are gone.
    consumer.stop().await;
    assert_eq!(world.text(&sum("seq_tup_read")).await, "0");
    // Each delete of the growth looks its row up twice, the other changes find none.
    let found = 2 * MANY + 2 * few + OF_A_ROUND * ROUNDS;
    let read = world.text(&sum("idx_tup_fetch")).await;
    assert!(read.parse::<i64>().expect("a number") < found, "{read} rows were read");
    world.shows("user_view", &users.as_view()).await;
}

/// Rows, and as many that were deleted.
async fn grow(world: &World, feed: &Feed, users: &mut Users, ids: Range<i64>) {
    let gone = ids.clone().map(|id| id + GONE);
    feed.send(world, &users.puts(ids.chain(gone.clone()))).await;
    world.drained(&feed.topic, 1).await;
    let deletes: Vec<_> = gone.map(|id| users.delete(id)).collect();
    feed.send(world, &deletes).await;
    world.drained(&feed.topic, 1).await;
}

/// One batch of each kind of change.
async fn changes(world: &World, feed: &Feed, users: &mut Users, id: i64) {
    let created = feed.message(&users.put(id));
    let updated = feed.message(&users.put(id));
    let mut kept = users.put(id).row;
    kept["name"] = json!("__debezium_unavailable_value");
    let not_sent = feed.message(&Event::new("u", users.lsn, kept));
    let deleted = users.delete(id);
    let tombstone = feed.tombstone(&deleted.row);
    for message in [created, updated, not_sent, feed.message(&deleted), tombstone] {
        world.send(&feed.topic, vec![message]).await;
        world.drained(&feed.topic, 1).await;
    }
}

/// Waits until the consumer has read the table of deleted keys to forget old ones: at the start, and not
/// again for minutes.
async fn pruned(world: &World) {
    wait_until("old deleted keys to be looked for", SOON, || async {
        let scans = world.text(&sum("seq_scan")).await;
        if scans == "1" { Ok(()) } else { Err(scans) }
    })
    .await;
}

fn sum(name: &str) -> String {
    format!("select sum({name})::text from pg_stat_user_tables where relname in {TABLES}")
}
