//! Commits whose answer never comes.

use crate::harness::World;
use crate::harness::consumer::{Consumer, total};
use crate::harness::proxy::{Mode, Proxy};
use crate::harness::source::{Users, user_feed, user_views};
use crate::harness::{SOON, wait_until};

/// Loses one commit in the given way while changes flow; every change must take effect once.
async fn check(lost: Mode) {
    let world = World::new().await;
    let proxy = Proxy::to(&world.database_address()).await;
    let feed = user_feed(&world, 1).await;
    let url = proxy.database_flag(&world);
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[&url]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=20)).await;
    world.drained(&feed.topic, 1).await;
    world.audit().await;

    proxy.set(lost);
    let mut events = users.puts(5..=25);
    events.push(users.delete(3));
    feed.send(&world, &events).await;
    wait_until("the commit to be lost", SOON, || async {
        if proxy.mode() == Mode::Forward { Ok(()) } else { Err(format!("{:?}", proxy.mode())) }
    })
    .await;
    world.drained(&feed.topic, 1).await;
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
    // Each row was written once: the audit would show a second write of the same change.
    assert_eq!(world.text("select count(*) from audit").await, "22");
    let outcome = consumer.stop().await;
    assert_eq!((total(&outcome), outcome.applied), (42, 42), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_took_effect_unanswered_is_not_repeated() {
    check(Mode::CutAfterCommit).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_never_arrived_is_repeated() {
    check(Mode::CutBeforeCommit).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_is_waited_for() {
    let world = World::new().await;
    let proxy = Proxy::to(&world.database_address()).await;
    let feed = user_feed(&world, 2).await;
    let url = proxy.database_flag(&world);
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[&url]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=20)).await;
    world.drained(&feed.topic, 2).await;

    proxy.set(Mode::Refuse);
    feed.send(&world, &users.puts(10..=30)).await;
    consumer.complains("database").await;
    proxy.set(Mode::Forward);
    world.shows("user_view", &users.as_view()).await;
    consumer.ready().await;
    let outcome = consumer.stop().await;
    assert_eq!((total(&outcome), outcome.quarantined), (41, 0), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_only_reads_for_a_while_is_waited_for() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=20)).await;
    world.drained(&feed.topic, 2).await;

    // As after a failover, when the address still leads to a standby.
    let only_reads = format!(
        "alter role cdc_consumer in database {} set default_transaction_read_only",
        world.name
    );
    world.sql(&format!("{only_reads} = on")).await;
    world.end_sessions().await;
    feed.send(&world, &users.puts(10..=30)).await;
    consumer.complains("read-only transaction").await;
    world.sql(&format!("{only_reads} = off")).await;
    world.end_sessions().await;
    world.shows("user_view", &users.as_view()).await;
    world.drained(&feed.topic, 2).await;
    world.counts_are_right().await;
    consumer.stop().await;
}
