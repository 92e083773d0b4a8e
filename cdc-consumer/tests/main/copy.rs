//! Rows of new keys, which a batch of some size writes by COPY.

use serde_json::{Value as Json, json};

use crate::harness::World;
use crate::harness::consumer::Consumer;
use crate::harness::feed::{Event, Feed};
use crate::harness::source::{Users, user_feed, user_views};

/// Every batch, however small.
const ALWAYS: &[&str] = &["--copy-rows-min=1", "--writers=1"];

/// Notes by which statement each row of a view was inserted.
async fn watch_inserts(world: &World, view: &str) {
    let sql = format!(
        "create table inserted (key text, by_copy bool);
         create function note_insert() returns trigger language plpgsql security definer
         set search_path from current as $$ begin
             insert into inserted select r.value, current_query() like 'copy %'
             from jsonb_each_text(to_jsonb(new)) r limit 1;
             return null;
         end $$;
         create trigger note_insert after insert on {view} for each row execute function note_insert()"
    );
    world.sql(&sql).await;
}

/// Rows inserted since, by COPY and otherwise.
async fn inserted(world: &World) -> String {
    let sql = "select format('%s by COPY, %s otherwise', count(*) filter (where by_copy),
        count(*) filter (where not by_copy)) from inserted";
    world.text(sql).await
}

/// A table of anything, and its topic.
async fn texts(world: &World, create: &str) -> (Feed, String) {
    world.view(create, "texts").await;
    let fields =
        json!([{"name": "id", "type": "long"}, {"name": "body", "type": ["null", "string"]}]);
    let feed = Feed::new(world, 1, &fields, &["id"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'texts'\n", feed.topic);
    (feed, views)
}

fn creates(rows: &[Json]) -> Vec<Event> {
    let numbered = (1..).zip(rows);
    numbered.map(|(number, row)| Event::new("c", 8 * number, row.clone())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_new_keys_are_copied_once_there_are_enough_of_them() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    watch_inserts(&world, "user_view").await;
    feed.send(&world, &users.puts(1..=10)).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &["--copy-rows-min=11"]);
    world.drained(&feed.topic, 1).await;
    assert_eq!(inserted(&world).await, "0 by COPY, 10 otherwise");
    consumer.stop().await;

    // Known keys and new ones: each goes its way, and both are counted.
    feed.send(&world, &users.puts(1..=30)).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), ALWAYS);
    world.drained(&feed.topic, 1).await;
    world.shows("user_view", &users.as_view()).await;
    assert_eq!(inserted(&world).await, "20 by COPY, 10 otherwise");
    world.counts_are_right().await;
    assert_eq!(consumer.stop().await.applied, 30);

    // A snapshot reads what is there, and what is new besides.
    let read = users.snapshot();
    let both = read.into_iter().zip(users.puts(31..=60)).flat_map(|(one, other)| [one, other]);
    feed.send(&world, &both.collect::<Vec<_>>()).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), ALWAYS);
    world.drained(&feed.topic, 1).await;
    world.shows("user_view", &users.as_view()).await;
    assert_eq!(inserted(&world).await, "50 by COPY, 10 otherwise");
    consumer.stop().await;
    let stamped =
        "select count(*) from user_view where now() - last_processed_at < interval '5 min'
        and last_processed_at <= now()";
    assert_eq!(world.text(stamped).await, "60");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_that_means_something_to_copy_arrives_as_it_is() {
    let world = World::new().await;
    let (feed, views) =
        texts(&world, "create table texts (id bigint primary key, body text)").await;
    watch_inserts(&world, "texts").await;
    let bodies = ["", "\\N", "\\.", "a\tb", "a\nb\r\n", "\\", "\\x41\\t", "한글 😀", "NULL", " "];
    let mut rows: Vec<Json> =
        (1..).zip(bodies).map(|(id, body): (i64, _)| json!({"id": id, "body": body})).collect();
    rows.push(json!({"id": 100, "body": null}));
    // Longer than what is sent at once.
    rows.push(json!({"id": 101, "body": "\t\\long".repeat(40_000)}));
    rows.push(json!({"id": 102, "body": "last"}));
    feed.send(&world, &creates(&rows)).await;
    let consumer = Consumer::start(&world, &views, ALWAYS);
    world.shows("texts", &rows).await;
    assert_eq!(inserted(&world).await, "13 by COPY, 0 otherwise");
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_brings_no_deleted_row_back() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    let first = users.puts(1..=20);
    let deletes: Vec<Event> = (1..=10).map(|id| users.delete(id)).collect();
    feed.send(&world, &first).await;
    feed.send(&world, &deletes).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), ALWAYS);
    world.drained(&feed.topic, 1).await;
    world.audit().await;

    // The creates of the deleted rows again, under new offsets, with rows that are new.
    feed.send(&world, &[first[..10].to_vec(), users.puts(21..=30)].concat()).await;
    world.drained(&feed.topic, 1).await;
    world.shows("user_view", &users.as_view()).await;
    assert_eq!(world.text("select count(*) from audit where op = 'INSERT'").await, "10");

    // The same after a TRUNCATE, which remembers no keys.
    let truncate = users.truncate();
    feed.send(&world, &[truncate]).await;
    world.drained(&feed.topic, 1).await;
    feed.send(&world, &[first[10..].to_vec(), users.puts(41..=50)].concat()).await;
    world.drained(&feed.topic, 1).await;
    world.shows("user_view", &users.as_view()).await;
    assert_eq!(world.text("select count(*) from audit where op = 'INSERT'").await, "20");
    world.counts_are_right().await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_copy_refuses_is_kept_aside_alone() {
    let world = World::new().await;
    let create = "create table texts (id bigint primary key, body varchar(5))";
    let (feed, views) = texts(&world, create).await;
    let mut rows: Vec<Json> = (1..=30).map(|id| json!({"id": id, "body": "fits"})).collect();
    rows[12] = json!({"id": 13, "body": "too long"});
    feed.send(&world, &creates(&rows)).await;
    let consumer = Consumer::start(&world, &views, ALWAYS);
    world.drained(&feed.topic, 1).await;
    rows.remove(12);
    world.shows("texts", &rows).await;
    let letters = world.dead_letters().await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert!(letters[0].starts_with("refused 13: "), "{letters:?}");
    assert_eq!(consumer.stop().await.quarantined, 1);
}

/// COPY refuses such a table, whatever its policies allow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_under_row_security_is_written_without_copy() {
    let world = World::new().await;
    let (feed, views) =
        texts(&world, "create table texts (id bigint primary key, body text)").await;
    world
        .sql(
            "alter table texts enable row level security;
             create policy everything on texts to cdc_consumer using (true)",
        )
        .await;
    watch_inserts(&world, "texts").await;
    let rows: Vec<Json> = (1..=30).map(|id| json!({"id": id, "body": "secured"})).collect();
    feed.send(&world, &creates(&rows)).await;
    let consumer = Consumer::start(&world, &views, ALWAYS);
    world.shows("texts", &rows).await;
    assert_eq!(inserted(&world).await, "0 by COPY, 30 otherwise");
    consumer.stop().await;
}
