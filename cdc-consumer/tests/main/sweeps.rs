//! What a sweep must leave, and what it must reach.

use serde_json::json;

use crate::harness::World;
use crate::harness::consumer::Consumer;
use crate::harness::source::{Users, user_feed, user_views};
use crate::snapshots::snapshot;

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
