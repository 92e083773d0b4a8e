//! A source that was restored: its LSNs begin again lower.

use crate::check::check;
use crate::harness::World;
use crate::harness::consumer::Consumer;
use crate::harness::feed::{Event, Feed};
use crate::harness::source::{Users, user_feed, user_views};
use crate::rebuild::rebuild;
use crate::snapshots::{snapshot, swept};

/// A restored source's changes are not stale, though their LSNs are lower than all before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_at_a_lower_lsn_begins_a_new_life_of_the_source() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let views = user_views(&feed.topic);
    let consumer = Consumer::start(&world, &views, &["--batch-records-max=8"]);
    let mut users = Users::after(1_000_000);
    feed.send(&world, &users.puts(1..=20)).await;
    feed.send(&world, &users.puts(1..=20)).await;
    world.drained(&feed.topic, 2).await;

    users.lsn = 5_000;
    let mut events = users.snapshot();
    events.extend(users.puts(3..=25));
    events.push(users.delete(4));
    feed.send(&world, &events).await;
    world.drained(&feed.topic, 2).await;
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;

    // The new life outlives a restart, and a replay of both lives ends in the newer one.
    consumer.stop().await;
    feed.send(&world, &users.puts(1..=2)).await;
    world.audit().await;
    world.reset_group(&feed.topic, 2, 0).await;
    let consumer = Consumer::start(&world, &views, &[]);
    world.drained(&feed.topic, 2).await;
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
    world.never_went_back().await;
    consumer.stop().await;
}

/// Sends events to partitions of two and waits until they are applied.
async fn applied(world: &World, feed: &Feed, events: &[(&Event, i32)]) {
    let to = |&(event, partition): &(&Event, i32)| feed.message(event).to(partition);
    world.send(&feed.topic, events.iter().map(to).collect()).await;
    world.drained(&feed.topic, 2).await;
}

/// A partition that was quiet since the backup was taken meets no LSN lower than its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_shows_no_new_life_of_the_source_learns_it_from_the_others() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let send = async |events: &[(&Event, i32)]| applied(&world, &feed, events).await;
    let mut users = Users::after(92);
    send(&[(&users.put(1), 0), (&users.put(2), 1)]).await;
    let mut restored = users.clone();
    users.lsn = 900;
    send(&[(&users.truncate(), 0), (&users.put(3), 0)]).await;
    world.shows("user_view", &users.as_view()).await;

    restored.lsn = 492;
    let mut snapshot = restored.snapshot();
    snapshot[1].snapshot = "last";
    send(&[(&snapshot[0], 0), (&snapshot[1], 1)]).await;
    world.shows("user_view", &restored.as_view()).await;

    // A TRUNCATE compares positions of all partitions.
    for partition in [0, 1] {
        send(&[(&restored.put(1), 0), (&restored.put(2), 1)]).await;
        send(&[(&restored.truncate(), partition)]).await;
        world.shows("user_view", &[]).await;
        send(&[(&restored.put(1), 0), (&restored.put(2), 1)]).await;
        world.shows("user_view", &restored.as_view()).await;
    }
    world.counts_are_right().await;
    consumer.stop().await;
}

/// The sweep is done, and nothing but that tells a partition that got no record so far.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_without_records_learns_the_new_life_of_the_source_too() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let send = async |events: &[(&Event, i32)]| applied(&world, &feed, events).await;
    let mut users = Users::after(900);
    send(&[(&users.put(1), 0), (&users.put(2), 0)]).await;
    users.lsn = 492;
    let snapshot = snapshot(&mut users);
    send(&[(&snapshot[0], 0), (&snapshot[1], 0)]).await;
    assert_eq!(swept(&world).await, "0");

    // The TRUNCATE is sent through one partition and compared with changes of the other.
    send(&[(&users.truncate(), 0)]).await;
    send(&[(&users.put(3), 1)]).await;
    world.shows("user_view", &users.as_view()).await;
    consumer.stop().await;
}

/// The connector was set up anew under another name, after the source had been restored: the new topic knows of
/// one life of the source, at lower LSNs than the rows show.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_another_topic_halt_the_consumer_and_a_rebuild_shows_the_new_one() {
    let world = World::new().await;
    let old = user_feed(&world, 1).await;
    let mut users = Users::after(900);
    old.send(&world, &users.puts(1..=3)).await;
    users.lsn = 492;
    old.send(&world, &users.snapshot()).await;
    let consumer = Consumer::start(&world, &user_views(&old.topic), &[]);
    world.drained(&old.topic, 1).await;
    consumer.stop().await;

    let new = user_feed(&world, 1).await;
    let views = user_views(&new.topic);
    users.delete(3);
    users.put(2);
    let events = snapshot(&mut users);
    new.send(&world, &events).await;
    let says = format!("nothing is stored of topic {}, but user_view shows changes", new.topic);
    let error = Consumer::start(&world, &views, &[]).failure().await;
    assert!(error.contains(&says) && error.contains("`cdc-consumer rebuild`"), "{error}");
    let (printed, _) = check(&world, &views).await;
    assert!(printed.contains(&says), "{printed}");

    // What the message tells an operator to do.
    rebuild(&world, &new, &[]).await.expect("a rebuild");
    let consumer = Consumer::start(&world, &views, &[]);
    new.send(&world, &[users.put(4)]).await;
    world.shows("public.user_view", &users.as_view()).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incremental_snapshot_is_placed_by_its_sequence() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=10)).await;
    world.drained(&feed.topic, 1).await;
    world.sql("delete from user_view where user_id = 3").await;

    // The chunk was read before the newest change of user 5 and brings user 3 back.
    let mut reads = users.snapshot();
    for read in &mut reads {
        read.snapshot = "incremental";
    }
    let newest = users.put(5);
    let events: Vec<Event> = [newest].into_iter().chain(reads).collect();
    feed.send(&world, &events).await;
    world.drained(&feed.topic, 1).await;
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
    let outcome = consumer.stop().await;
    assert_eq!((outcome.stale, outcome.quarantined), (1, 0), "{outcome:?}");
}
