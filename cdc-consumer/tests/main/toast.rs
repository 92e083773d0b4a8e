//! Values the source did not send, and TRUNCATE.

use serde_json::{Value as Json, json};

use crate::harness::World;
use crate::harness::consumer::Consumer;
use crate::harness::feed::{Event, Feed, Message};
use crate::harness::source::{Users, user_feed, user_views};

const KEEP: &str = "__debezium_unavailable_value";

fn text_array(items: &[&str]) -> Json {
    json!(items)
}

/// A table whose columns have the placeholder's shapes: text, json, bytea, text[], bytes of int[].
async fn documents(world: &World) -> (Feed, String) {
    world
        .view(
            "create table document (id bigint primary key, title text, body text, meta jsonb,
                 raw bytea, tags text[])",
            "document",
        )
        .await;
    let fields = json!([
        {"name": "id", "type": "long"}, {"name": "title", "type": "string"},
        {"name": "body", "type": ["null", "string"]},
        {"name": "meta", "type": ["null", {"type": "string", "connect.name": "io.debezium.data.Json"}]},
        {"name": "raw", "type": ["null", "bytes"]},
        {"name": "tags", "type": ["null", {"type": "array", "items": ["null", "string"]}]},
    ]);
    let feed = Feed::new(world, 1, &fields, &["id"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'document'\n", feed.topic);
    (feed, views)
}

fn full(id: i64, title: &str) -> Json {
    json!({"id": id, "title": title, "body": "b".repeat(40_000), "meta": "{\"a\": 1}",
        "raw": [0, 255], "tags": text_array(&["x", "y"])})
}

fn kept(id: i64, title: &str) -> Json {
    json!({"id": id, "title": title, "body": KEEP, "meta": KEEP, "raw": KEEP,
        "tags": text_array(&[KEEP])})
}

fn shown(id: i64, title: &str) -> Json {
    json!({"id": id, "title": title, "body": "b".repeat(40_000), "meta": {"a": 1},
        "raw": "\\x00ff", "tags": ["x", "y"]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_the_source_did_not_send_is_kept() {
    let world = World::new().await;
    let (feed, views) = documents(&world).await;
    let consumer = Consumer::start(&world, &views, &[]);
    feed.send(&world, &[Event::new("c", 1, full(1, "one")), Event::new("c", 2, full(2, "one"))])
        .await;
    world.drained(&feed.topic, 1).await;
    feed.send(&world, &[Event::new("u", 3, kept(1, "two"))]).await;
    world.drained(&feed.topic, 1).await;
    world.shows("document", &[shown(1, "two"), shown(2, "one")]).await;

    // One of two columns sent: its neighbours stay.
    let mut part = kept(2, "three");
    part["body"] = json!("new");
    let mut expected = shown(2, "three");
    expected["body"] = json!("new");
    feed.send(&world, &[Event::new("u", 4, part)]).await;
    world.shows("document", &[shown(1, "two"), expected]).await;
    assert_eq!(world.dead_letters().await.len(), 0);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_not_sent_is_kept_through_a_fold_and_a_replay() {
    // What is stale when it is read again changes nothing: each begins with nothing.
    for batches in [["4000", "1"], ["1", "4000"]] {
        let world = World::new().await;
        let (feed, views) = documents(&world).await;
        let events = [
            Event::new("c", 1, full(1, "one")),
            Event::new("u", 2, kept(1, "two")),
            Event::new("u", 3, kept(1, "three")),
            Event::new("c", 4, full(2, "gone")),
            Event::new("u", 5, kept(2, "gone too")),
            Event::new("d", 6, json!({"id": 2})),
        ];
        feed.send(&world, &events).await;
        for batch in batches {
            let batch = format!("--batch-records-max={batch}");
            let consumer = Consumer::start(&world, &views, &[&batch]);
            consumer.counted(events.len() as u64).await;
            world.shows("document", &[shown(1, "three")]).await;
            assert_eq!(world.dead_letters().await, Vec::<String>::new());
            consumer.stop().await;
            world.reset_group(&feed.topic, 1, 0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_not_sent_and_nowhere_to_keep_it_from_is_a_dead_letter() {
    let world = World::new().await;
    let (feed, views) = documents(&world).await;
    let consumer = Consumer::start(&world, &views, &[]);
    feed.send(&world, &[Event::new("u", 1, kept(1, "one")), Event::new("c", 2, full(2, "two"))])
        .await;
    world.drained(&feed.topic, 1).await;
    world.shows("document", &[shown(2, "two")]).await;
    let letters = world.dead_letters().await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert!(letters[0].contains("did not send an unchanged long value"), "{letters:?}");
    let outcome = consumer.stop().await;
    assert_eq!((outcome.applied, outcome.quarantined), (1, 1), "{outcome:?}");
}

/// Only what an update or a move to another key lacks is not sent: `tags` and `meta` may hold the very text too,
/// beside others in whatever change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_that_reads_as_if_it_was_not_sent_is_shown_where_everything_is_sent() {
    let world = World::new().await;
    let (feed, views) = documents(&world).await;
    let consumer = Consumer::start(&world, &views, &[]);
    let literal = json!({"title": KEEP, "body": KEEP, "meta": "{\"a\": 1}", "raw": [0, 255],
        "tags": text_array(&[KEEP])});
    let row = |id: i64| {
        let mut row = literal.clone();
        row["id"] = json!(id);
        row
    };
    let among = |id| {
        let mut row = kept(id, KEEP);
        row["tags"] = text_array(&[KEEP, "z"]);
        row
    };
    let first = [
        Event::new("r", 8, row(1)),
        Event::new("c", 16, row(2)),
        Event::new("c", 24, full(3, "one")),
    ];
    feed.send(&world, &first).await;
    world.drained(&feed.topic, 1).await;
    feed.send(&world, &[Event::new("u", 32, among(3))]).await;
    let literal = |id| {
        let mut row = shown(id, KEEP);
        (row["body"], row["tags"]) = (json!(KEEP), text_array(&[KEEP]));
        row
    };
    let mut among = shown(3, "one");
    among["tags"] = text_array(&[KEEP, "z"]);
    world.shows("document", &[literal(1), literal(2), among]).await;
    assert_eq!(world.dead_letters().await, [""; 0]);
    consumer.stop().await;
}

/// As by a change of the key, to one whose row was deleted in the same transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_value_is_kept_from_a_row_that_was_deleted_in_the_same_batch() {
    for batch in ["--batch-records-max=4000", "--batch-records-max=1"] {
        let world = World::new().await;
        let (feed, views) = documents(&world).await;
        let consumer = Consumer::start(&world, &views, &[batch]);
        feed.send(
            &world,
            &[Event::new("c", 8, full(1, "one")), Event::new("c", 16, full(2, "two"))],
        )
        .await;
        world.drained(&feed.topic, 1).await;
        consumer.stop().await;

        let gone = feed.message(&Event::new("d", 24, json!({"id": 1})));
        let came = feed.message(&Event::new("c", 32, kept(1, "three")));
        let moved = Message { header: Some("__debezium.oldkey"), ..came };
        world.send(&feed.topic, vec![gone, moved]).await;
        let consumer = Consumer::start(&world, &views, &[batch]);
        world.drained(&feed.topic, 1).await;
        world.shows("document", &[shown(2, "two")]).await;
        let letters = world.dead_letters().await;
        assert!(letters.len() == 1 && letters[0].contains("did not send"), "{letters:?}");
        let outcome = consumer.stop().await;
        assert_eq!((outcome.applied, outcome.quarantined), (1, 1), "{batch}: {outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncate_removes_what_was_before_it_in_every_partition() {
    let world = World::new().await;
    let feed = user_feed(&world, 4).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=40)).await;
    world.drained(&feed.topic, 4).await;

    // The truncate has no key, so it may overtake: changes before it arrive late, in other partitions,
    // and changes after it arrive early.
    let late = users.puts(30..=50);
    users.lsn += 8;
    let truncate = Event::new("t", users.lsn, Json::Null);
    let mut after = Users::after(users.lsn);
    let early = after.puts(35..=45);
    feed.send(&world, &early).await;
    world.drained(&feed.topic, 4).await;
    world.send(&feed.topic, vec![feed.message(&truncate).to(2)]).await;
    world.drained(&feed.topic, 4).await;
    feed.send(&world, &late).await;
    world.drained(&feed.topic, 4).await;
    world.shows("user_view", &after.as_view()).await;
    world.counts_are_right().await;

    feed.send(&world, &after.puts(44..=60)).await;
    world.shows("user_view", &after.as_view()).await;
    world.counts_are_right().await;
    consumer.stop().await;
}
