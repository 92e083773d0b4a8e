//! Each statement's own guard of positions: one old record, and nothing behind it that would mend what
//! it broke.

use serde_json::{Value as Json, json};

use crate::harness::World;
use crate::harness::consumer::Consumer;
use crate::harness::feed::{Event, Feed};
use crate::harness::source::{Users, user_feed, user_views};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_delete_sent_again_removes_nothing_newer() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    let created = users.put(1);
    let deleted = users.delete(1);
    feed.send(&world, &[created, deleted.clone()]).await;
    feed.send(&world, &[users.put(1)]).await;
    world.drained(&feed.topic, 1).await;
    feed.send(&world, &[deleted]).await;
    world.drained(&feed.topic, 1).await;
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
    assert_eq!(consumer.stop().await.stale, 1);
}

/// A tombstone that nobody saw the delete of removes what came before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tombstone_of_an_old_delete_removes_nothing_newer_in_the_next_session() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    let created = users.put(1);
    let deleted = users.delete(1);
    let lived_again = users.put(1);
    let tombstone = feed.tombstone(&deleted.row);
    for (messages, stale) in [
        (vec![feed.message(&created), feed.message(&deleted), tombstone.clone()], 0),
        (vec![feed.message(&lived_again)], 0),
        (vec![feed.message(&deleted)], 1), // sent again
        (vec![tombstone], 0),
    ] {
        world.send(&feed.topic, messages).await;
        let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
        world.drained(&feed.topic, 1).await;
        assert_eq!(consumer.stop().await.stale, stale);
    }
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_delete_sent_again_does_not_forget_the_newest() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    users.put(1);
    let first_delete = users.delete(1);
    let second_life = users.put(1);
    let second_delete = users.delete(1);
    // A record a batch: the connector sends an old delete again, then an update between the two.
    for event in [second_life.clone(), second_delete, first_delete, second_life] {
        feed.send(&world, &[event]).await;
        world.drained(&feed.topic, 1).await;
    }
    world.shows("user_view", &[]).await;
    world.counts_are_right().await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_change_that_keeps_values_is_stale() {
    let world = World::new().await;
    world.view("create table note (id bigint primary key, title text, body text)", "note").await;
    let fields = json!([{"name": "id", "type": "long"}, {"name": "title", "type": "string"},
        {"name": "body", "type": "string"}]);
    let feed = Feed::new(&world, 1, &fields, &["id"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'note'\n", feed.topic);
    let note = |title: &str, body: &str| json!({"id": 1, "title": title, "body": body});
    let keeps =
        |lsn, title: &str| Event::new("u", lsn, note(title, "__debezium_unavailable_value"));
    let consumer = Consumer::start(&world, &views, &[]);
    feed.send(&world, &[Event::new("c", 8, note("one", "long")), keeps(24, "three")]).await;
    world.drained(&feed.topic, 1).await;
    feed.send(&world, &[keeps(16, "two")]).await;
    world.drained(&feed.topic, 1).await;
    world.shows("note", &[note("three", "long")]).await;
    assert_eq!(consumer.stop().await.stale, 1);
}

/// As after partitions were added, when changes of a key come through two of them: the writer's look finds no
/// row, its insert meets one. The newer change stays, whoever wrote it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_another_transaction_adds_meanwhile_show_the_newest_change() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=1)).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    world.shows("user_view", &users.as_view()).await;

    let add = |id: i64, lsn: &str| {
        format!(
            "insert into user_view (user_id, name, email, department, status, created_at,
                updated_at, version, source_epoch, source_lsn)
            select {id}, 'another', email, department, status, created_at,
                updated_at, version, source_epoch, {lsn}
            from user_view where user_id = 1"
        )
    };
    let rows = format!("{}; {}", add(2, "source_lsn"), add(3, "source_lsn + 1000000"));
    let mut other = world.holding(&rows).await;
    feed.send(&world, &users.puts(2..=4)).await;
    world.session_shows("wait_event_type = 'Lock'").await;
    sqlx::raw_sql("commit").execute(&mut other).await.unwrap();
    world.drained(&feed.topic, 1).await;
    let newest = "select string_agg(user_id || ' ' || (name = 'another'), ', ' order by user_id)
        from user_view";
    assert_eq!(world.text(newest).await, "1 false, 2 false, 3 true, 4 false");
    assert_eq!(world.dead_letters().await, [""; 0]);
    world.counts_are_right().await;
    let outcome = consumer.stop().await;
    assert_eq!((outcome.applied, outcome.stale), (3, 1), "{outcome:?}");
}

/// Rows of a table of two partitions, and a tombstone whose delete compaction took away.
async fn things(world: &World) -> (Feed, String) {
    world.view("create table thing (id bigint primary key, name text)", "thing").await;
    let fields = json!([{"name": "id", "type": "long"}, {"name": "name", "type": "string"}]);
    let feed = Feed::new(world, 2, &fields, &["id"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'thing'\n", feed.topic);
    (feed, views)
}

fn thing(id: i64) -> Json {
    json!({"id": id, "name": format!("thing {id}")})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tombstone_alone_removes_no_row_newer_than_its_partition() {
    let world = World::new().await;
    let (feed, views) = things(&world).await;
    let created = |lsn, id| feed.message(&Event::new("c", lsn, thing(id)));
    // Key 1 moved to partition 1, which has read newer changes than partition 0.
    let messages = vec![created(8, 2).to(0), created(800, 1).to(1)];
    world.send(&feed.topic, messages).await;
    let consumer = Consumer::start(&world, &views, &[]);
    world.drained(&feed.topic, 2).await;
    world.send(&feed.topic, vec![feed.tombstone(&thing(1)).to(0)]).await;
    world.drained(&feed.topic, 2).await;
    world.shows("thing", &[thing(1), thing(2)]).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tombstone_alone_removes_its_row_in_a_replay_too() {
    let world = World::new().await;
    let (feed, views) = things(&world).await;
    let created = |lsn, id| feed.message(&Event::new("c", lsn, thing(id))).to(0);
    // So far apart that no batch holds both, not even of the records that wait for their schema
    // together: the database decides, not the fold.
    let mut messages = vec![created(8, 1)];
    messages.extend((2..=2_001).map(|number| created(number * 8, 2)));
    messages.push(feed.tombstone(&thing(1)).to(0));
    world.send(&feed.topic, messages).await;
    for _ in 0..2 {
        let consumer = Consumer::start(&world, &views, &["--batch-records-max=100"]);
        consumer.counted(2_002).await;
        world.shows("thing", &[thing(2)]).await;
        consumer.stop().await;
        world.reset_group(&feed.topic, 2, 0).await;
    }
}
