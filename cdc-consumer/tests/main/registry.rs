//! The schema registry comes, goes and learns.

use std::time::{Duration, Instant};

use crate::harness::consumer::{Consumer, total};
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_that_waits_a_moment_for_its_schema_goes_on_being_fetched() {
    let world = World::new().await;
    let (proxy, url) = behind_proxy(&world).await;
    proxy.set(Mode::Refuse);
    let feed = user_feed(&world, 1).await;
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
    let over = ["--topic", &feed.topic, "--to", "1", "--execute"];
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
