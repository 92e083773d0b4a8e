//! The view database goes away or falls silent, and comes back.

use std::net::SocketAddr;

use crate::harness::consumer::{Consumer, Process, free_address, metrics};
use crate::harness::feed::Feed;
use crate::harness::proxy::{Mode, Proxy};
use crate::harness::source::{Users, user_feed, user_views, wider_user_feed};
use crate::harness::{SOON, World, wait_until};
use crate::replay::offsets_reset;
use crate::snapshots::snapshot;

/// A consumer behind a proxy that has applied twenty users.
async fn at_rest(world: &World, feed: &Feed, users: &mut Users) -> (Consumer, Proxy) {
    let proxy = Proxy::to(&world.database_address()).await;
    let url = proxy.database_flag(world);
    let consumer = Consumer::start(world, &user_views(&feed.topic), &[&url, "--writers=1"]);
    feed.send(world, &users.puts(1..=20)).await;
    world.drained(&feed.topic, 1).await;
    (consumer, proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_noticed_without_a_record_after_the_connections_were_lost() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let (consumer, _proxy) = at_rest(&world, &feed, &mut Users::default()).await;
    world.end_sessions().await;
    offsets_reset(&world, &["--topic", &feed.topic, "--execute"]).await.expect("a reset");
    consumer.counted(40).await;
    consumer.ready().await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_at_rest_is_not_ready_while_the_database_is_away() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let (consumer, proxy) = at_rest(&world, &feed, &mut Users::default()).await;
    proxy.set(Mode::Refuse);
    consumer.complains("database").await;
    proxy.set(Mode::Forward);
    consumer.ready().await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_answer_never_comes_is_applied_after_all() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    let (consumer, proxy) = at_rest(&world, &feed, &mut users).await;
    // Our lock keeps the batch inside its transaction until nobody hears the server any more.
    let db = world.holding("select from user_view where user_id = 7 for update").await;
    feed.send(&world, &users.puts(1..=20)).await;
    world.session_shows("wait_event_type = 'Lock'").await;
    proxy.silence();
    drop(db);
    is_applied_after_all(&world, &feed, &mut users, consumer).await;
}

/// PostgreSQL waits in COPY for as long as the client takes, and keeps the batch's partitions locked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_fell_silent_inside_copy_is_applied_after_all() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    let (consumer, proxy) = at_rest(&world, &feed, &mut users).await;
    proxy.set(Mode::HoldCopyData);
    feed.send(&world, &users.puts(21..=60)).await;
    let copies = "state = 'active' and wait_event = 'ClientRead' and query like 'copy %'";
    world.session_shows(copies).await;
    proxy.silence();
    proxy.set(Mode::Forward);
    is_applied_after_all(&world, &feed, &mut users, consumer).await;
}

async fn is_applied_after_all(world: &World, feed: &Feed, users: &mut Users, consumer: Consumer) {
    world.shows("user_view", &users.as_view()).await;
    // The connections that were there carry nothing any more.
    feed.send(world, &users.puts(1..=5)).await;
    world.shows("user_view", &users.as_view()).await;
    world.drained(&feed.topic, 1).await;
    world.counts_are_right().await;
    consumer.ready().await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_swept_though_the_connection_for_it_fell_silent() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    let (consumer, proxy) = at_rest(&world, &feed, &mut users).await;
    // It has asked for snapshots before.
    world.session_shows("query like '%from cdc_snapshot%'").await;
    proxy.silence();
    users.delete(7); // unheard
    feed.send(&world, &snapshot(&mut users)).await;
    world.shows("user_view", &users.as_view()).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_comes_while_the_database_is_silent_holds_nobody_up() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    let (consumer, proxy) = at_rest(&world, &feed, &mut users).await;
    let wider = wider_user_feed(&world, &feed.topic).await;
    proxy.silence();
    wider.send(&world, &users.puts(5..=25)).await;
    world.shows("user_view", &users.as_view()).await;
    consumer.ready().await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lag_grows_while_fetching_is_paused() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    let proxy = Proxy::to(&world.database_address()).await;
    let options = [&proxy.database_flag(&world), "--writers=1", "--batch-records-max=50"];
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &options);
    feed.send(&world, &users.puts(1..=20)).await;
    world.drained(&feed.topic, 1).await;
    proxy.set(Mode::Refuse);
    feed.send(&world, &users.puts(1..=500)).await;
    wait_until("fetching to be paused", SOON, || async {
        let status = consumer.board.status();
        if status.fetch_pauses > 0 { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    feed.send(&world, &users.puts(1..=300)).await;
    wait_until("a lag of 800", SOON, || async {
        let partitions = consumer.board.status().partitions;
        let lags: Vec<_> = partitions.iter().map(|partition| partition.lag).collect();
        if lags == [Some(800)] { Ok(()) } else { Err(format!("{lags:?}")) }
    })
    .await;
    proxy.set(Mode::Forward);
    world.shows("user_view", &users.as_view()).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lag_of_partitions_that_a_consumer_no_longer_owns_is_not_zero() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    let proxy = Proxy::to(&world.database_address()).await;
    let address = free_address();
    let listen = format!("--consumer-listen={address}");
    let options = [proxy.database_flag(&world), listen];
    let process = Process::start(&world, &views, 1, &[&options[0], &options[1]]);
    feed.send(&world, &users.puts(1..=20)).await;
    shows_lags(address, "0").await;

    proxy.set(Mode::Refuse);
    feed.send(&world, &users.puts(1..=500)).await;
    // A second member makes the first give a partition up, which it cannot: its session ends.
    let _other = Process::start(&world, &views, 2, &[]);
    process.says("cannot go on").await;
    shows_lags(address, "NaN").await;
}

/// Waits until `/metrics` says this of both partitions.
async fn shows_lags(address: SocketAddr, lag: &str) {
    wait_until(&format!("lags of {lag}"), SOON, || async {
        let metrics = metrics(address).await?;
        let series = metrics.lines().filter(|line| line.starts_with("cdc_lag_records{"));
        let lags: Vec<_> = series.filter_map(|line| line.rsplit(' ').next()).collect();
        if lags == [lag, lag] { Ok(()) } else { Err(format!("{lags:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_counted_on_after_the_database_fell_silent() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let proxy = Proxy::to(&world.database_address()).await;
    let address = free_address();
    let listen = format!("--consumer-listen={address}");
    let options = [&proxy.database_flag(&world), &listen];
    let _process = Process::start(&world, &user_views(&feed.topic), 1, &options.map(|it| &**it));
    shows_open_letters(address, "0").await;
    proxy.silence();
    world
        .sql(
            "insert into cdc_dead_letter (view_name, topic, partition, record_offset, reason, error)
             values ('user_view', 'elsewhere', 0, 0, 'refused', 'none')",
        )
        .await;
    shows_open_letters(address, "1").await;
}

async fn shows_open_letters(address: SocketAddr, count: &str) {
    let line = format!("cdc_dead_letters_open{{view=\"user_view\",reason=\"refused\"}} {count}");
    // A round that is given up, and the pauses before and after it.
    wait_until(&line, SOON * 2, || async {
        let metrics = metrics(address).await?;
        if metrics.lines().any(|shown| shown == line) { Ok(()) } else { Err(metrics) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_say_where_the_views_are_is_asked_again() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let db = world.holding("lock table public.cdc_generation in access exclusive mode").await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    consumer.complains("session: the database did not answer").await;
    drop(db);
    consumer.ready().await;
    consumer.stop().await;
}

/// The first question of each acquisition.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_say_what_is_stored_of_a_topic_is_asked_again() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=5)).await;
    let db = world.holding("lock table cdc_offset in access exclusive mode").await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    consumer.complains("session: the database did not answer").await;
    drop(db);
    world.shows("user_view", &users.as_view()).await;
    consumer.ready().await;
    consumer.stop().await;
}
