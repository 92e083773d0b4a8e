//! What a sweep must leave, and what it must reach.

use std::time::Duration;

use serde_json::json;

use crate::harness::World;
use crate::harness::consumer::Consumer;
use crate::harness::source::{Users, user_feed, user_views};
use crate::snapshots::snapshot;

/// Three rounds of the sweeper.
const SWEPT_BY_NOW: Duration = Duration::from_secs(7);

/// As when the broker has just come back and does not know the topic yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_is_not_over_while_the_broker_knows_no_partition_of_the_topic() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=2)).await;
    world.drained(&feed.topic, 1).await;
    let unknown = format!("{}_unknown", feed.topic);
    let sql = format!(
        "insert into cdc_snapshot (view_name, topic, source_lsn, ended_at)
         values ('user_view', '{unknown}', 800, now() - interval '1 minute')"
    );
    world.sql(&sql).await;
    tokio::time::sleep(SWEPT_BY_NOW).await;
    assert_eq!(world.text("select swept_at from cdc_snapshot").await, "null");
    consumer.stop().await;
}

/// A change that was open when the snapshot was taken stands right behind it; so do all of its partition
/// for the tombstone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tombstone_alone_removes_a_row_that_overtook_a_snapshot() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=2)).await;
    let mut late = users.clone();
    let overtaken = late.put(2);
    users.lsn = late.lsn;
    feed.send(&world, &snapshot(&mut users)).await;
    feed.send(&world, &[overtaken]).await;
    world.shows("user_view", &late.as_view()).await;
    world.send(&feed.topic, vec![feed.tombstone(&json!({"id": 2}))]).await;
    late.delete(2);
    world.shows("user_view", &late.as_view()).await;
    consumer.stop().await;
}
