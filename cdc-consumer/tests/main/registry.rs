//! The schema registry comes, goes and learns.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::harness::consumer::{Consumer, Process, total};
use crate::harness::feed::Feed;
use crate::harness::proxy::{Mode, Proxy};
use crate::harness::source::{Users, user_feed, user_fields, user_views, wider_user_feed};
use crate::harness::{SOON, World, wait_until};
use crate::replay::offsets_reset;

/// A registry URL that leads through a proxy.
async fn behind_proxy(world: &World) -> (Proxy, String) {
    let rest = world.registry.strip_prefix("http://").expect("a plain http registry");
    let (address, path) = rest.split_once('/').expect("a path");
    let proxy = Proxy::to(address).await;
    let url = format!("--schema-registry-url=http://{}/{path}", proxy.address);
    (proxy, url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_a_new_schema_wait_for_a_registry_that_is_away() {
    let world = World::new().await;
    let (proxy, url) = behind_proxy(&world).await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[&url]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=10)).await;
    world.drained(&feed.topic, 1).await;

    // Known schemas need no registry.
    proxy.set(Mode::Refuse);
    feed.send(&world, &users.puts(1..=12)).await;
    world.shows("user_view", &users.as_view()).await;

    // A nullable column was added at the source: a schema id never seen.
    let wider = wider_user_feed(&world, &feed.topic).await;
    assert_ne!(wider.value.id, feed.value.id);
    wider.send(&world, &users.puts(5..=15)).await;
    consumer.complains("registry").await;
    assert_eq!(world.next_offset(&feed.topic, 0).await, "22", "they wait");

    proxy.set(Mode::Forward);
    world.shows("user_view", &users.as_view()).await;
    consumer.ready().await;
    assert_eq!(world.dead_letters().await, Vec::<String>::new());
    let outcome = consumer.stop().await;
    assert_eq!((total(&outcome), outcome.quarantined), (33, 0), "{outcome:?}");
}

/// A topic of so many partitions, and a proxy that lets nobody through to the registry, with its setting.
async fn without_registry(partitions: i32) -> (World, Proxy, String, Feed) {
    let world = World::new().await;
    let (proxy, url) = behind_proxy(&world).await;
    proxy.set(Mode::Refuse);
    let feed = user_feed(&world, partitions).await;
    (world, proxy, url, feed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_that_waits_a_moment_for_its_schema_goes_on_being_fetched() {
    let (world, proxy, url, feed) = without_registry(1).await;
    let mut users = Users::default();
    // More than the session holds back.
    feed.send(&world, &users.puts(1..=2000)).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[&url]);
    consumer.complains("registry").await;
    proxy.set(Mode::Forward);
    world.shows("user_view", &users.as_view()).await;
    assert_eq!(consumer.board.status().fetch_pauses, 0);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_back_for_a_schema_has_a_limit_in_bytes_and_becomes_batches_of_usual_size() {
    let (world, proxy, url, feed) = without_registry(1).await;
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=800)).await;
    let options = [&url, "--writers=1", "--batch-records-max=50", "--batch-bytes-max=100000"];
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &options);
    wait_until("the limit to be reached", SOON, || async {
        let status = consumer.board.status();
        if status.held_bytes >= 100_000 { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    holds_at_most(&consumer, 799, 101_000).await;

    proxy.set(Mode::Forward);
    world.shows("user_view", &users.as_view()).await;
    let largest = "select max(count) from (
        select count(*) from user_view group by xmin::text) as transactions";
    let largest = world.text(largest).await;
    assert!(largest.parse::<i64>().is_ok_and(|rows| rows <= 50), "{largest} rows at once");
    consumer.stop().await;
}

/// For three seconds.
async fn holds_at_most(consumer: &Consumer, records: usize, bytes: usize) {
    let end = Instant::now() + Duration::from_secs(3);
    wait_until("three seconds to go by", SOON, || async {
        let status = consumer.board.status();
        let held = (status.held_records, status.held_bytes);
        assert!(held.0 <= records && held.1 <= bytes, "{held:?}");
        if Instant::now() > end { Ok(()) } else { Err(String::new()) }
    })
    .await;
}

/// Waits until a member has so many partitions. Returns the number of the first.
async fn has_partitions(member: &Consumer, count: usize) -> i32 {
    wait_until(&format!("{count} partitions"), SOON, || async {
        let found = member.board.status().partitions.len();
        if found == count { Ok(()) } else { Err(format!("{found}")) }
    })
    .await;
    member.board.status().partitions[0].partition
}

async fn pauses(member: &Consumer) {
    wait_until("fetching to be paused", SOON, || async {
        let status = member.board.status();
        if status.fetch_pauses > 0 { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
}

/// Puts users into one partition.
async fn send_to(world: &World, feed: &Feed, number: i32, users: &mut Users, ids: Range<i64>) {
    let events = users.puts(ids);
    let messages = events.iter().map(|event| feed.message(event).to(number));
    world.send(&feed.topic, messages.collect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_come_while_fetching_is_paused_wait_as_the_others_do() {
    let (world, proxy, url, feed) = without_registry(2).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    let member = Consumer::start(&world, &views, &[&url]);
    has_partitions(&member, 2).await;
    let other = Process::start(&world, &views, 1, &[]);
    let first = has_partitions(&member, 1).await;
    send_to(&world, &feed, first, &mut users, 1..1500).await;
    pauses(&member).await;

    other.kill();
    send_to(&world, &feed, 1 - first, &mut users, 2000..4000).await;
    has_partitions(&member, 2).await;
    holds_at_most(&member, 1000, usize::MAX).await;

    proxy.set(Mode::Forward);
    world.shows("user_view", &users.as_view()).await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_given_up_while_fetching_is_paused_is_read_again_when_it_comes_back() {
    let (world, proxy, url, feed) = without_registry(2).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    send_to(&world, &feed, 0, &mut users, 1..1500).await;
    send_to(&world, &feed, 1, &mut users, 2000..3500).await;
    let member = Consumer::start(&world, &views, &[&url]);
    pauses(&member).await;
    let other = Consumer::start(&world, &views, &[]);
    has_partitions(&member, 1).await;
    proxy.set(Mode::Forward);
    world.shows("user_view", &users.as_view()).await;

    other.stop().await;
    has_partitions(&member, 2).await;
    send_to(&world, &feed, 0, &mut users, 1..10).await;
    send_to(&world, &feed, 1, &mut users, 2000..2010).await;
    world.shows("user_view", &users.as_view()).await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_id_the_registry_does_not_know_yet_is_no_dead_letter() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    let mut message = feed.message(&users.put(1));
    if let Some(value) = &mut message.value {
        value[1..5].copy_from_slice(&1_999_999_999_u32.to_be_bytes());
    }
    world.send(&feed.topic, vec![message]).await;
    consumer.complains("registry").await;
    let waiting = consumer.board.readiness.reasons().join("; ");
    assert!(waiting.contains("1999999999"), "{waiting}");
    assert_eq!(world.next_offset(&feed.topic, 0).await, "0", "it waits");
    assert_eq!(world.dead_letters().await, Vec::<String>::new());

    // Whoever steps over the record is done with its schema.
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=10)).await;
    let over = ["--topic", &feed.topic, "--to", "1", "--skip", "--execute"];
    offsets_reset(&world, &over).await.expect("a reset");
    world.shows("user_view", &users.as_view()).await;
    consumer.ready().await;
    stays_ready(&consumer).await;
    consumer.stop().await;
}

/// For longer than the longest pause between two questions to the registry.
async fn stays_ready(consumer: &Consumer) {
    let end = Instant::now() + Duration::from_secs(3);
    wait_until("three seconds to go by", SOON, || async {
        let reasons = consumer.board.readiness.reasons();
        assert_eq!(reasons, Vec::<String>::new());
        if Instant::now() > end { Ok(()) } else { Err(String::new()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_says_which_topic_does_not_exist_until_it_does() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    // Its name contains the other's.
    let later = format!("{}_later", feed.topic);
    let views = format!(
        "{}[[view]]\ntopic = '{later}'\ntable = 'post_view'\nkey = {{ id = 'post_id' }}\n",
        user_views(&feed.topic)
    );
    let mut users = Users::default();
    let first = Consumer::start(&world, &views, &[]);
    feed.send(&world, &users.puts(1..=10)).await;
    world.drained(&feed.topic, 1).await;
    // No partition is left for this one.
    let second = Consumer::start(&world, &views, &[]);
    let missing = format!("topic: waiting for topic {later} to exist");
    for member in [&first, &second] {
        wait_until(&missing, SOON, || async {
            let reasons = member.board.readiness.reasons();
            if reasons.contains(&missing) { Ok(()) } else { Err(reasons.join("; ")) }
        })
        .await;
    }
    world.create_topic(&later, 1, &[]).await;
    for member in [&first, &second] {
        wait_until("the topic to be found", SOON, || async {
            let reasons = member.board.readiness.reasons().join("; ");
            if reasons.contains("topic:") { Err(reasons) } else { Ok(()) }
        })
        .await;
    }
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_does_not_exist_yet_is_waited_for() {
    let world = World::new().await;
    let topic = format!("{}_later", world.name);
    let consumer = Consumer::start(&world, &user_views(&topic), &[]);
    consumer.complains("topic").await;
    world.create_topic(&topic, 2, &[]).await;
    let feed = Feed::on(&world, &topic, &user_fields(), &["id"]).await;
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=10)).await;
    world.shows("user_view", &users.as_view()).await;
    let outcome = consumer.stop().await;
    assert_eq!(total(&outcome), 10, "{outcome:?}");
}
