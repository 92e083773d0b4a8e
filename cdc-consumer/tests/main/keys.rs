//! Keys of every kind, and keys that change.

use serde_json::{Value as Json, json};

use crate::harness::World;
use crate::harness::consumer::Consumer;
use crate::harness::feed::{Event, Feed};
use crate::harness::source::{Users, user_feed, user_views};

/// Writes, changes and deletes rows under the given keys, in one batch and one by one, and again.
/// `keys`: the key columns of three rows, different to PostgreSQL.
async fn check(create: &str, table: &str, fields: Json, keys: [Json; 3]) {
    // What was folded away, or is stale when it is read again, deletes nothing: each begins with nothing.
    for batches in [["4000", "1"], ["1", "4000"]] {
        check_in(batches, create, table, &fields, &keys).await;
    }
}

async fn check_in(batches: [&str; 2], create: &str, table: &str, fields: &Json, keys: &[Json; 3]) {
    let world = World::new().await;
    world.view(create, table).await;
    let mut all = fields.as_array().expect("fields").clone();
    let names: Vec<String> =
        all.iter().map(|field| field["name"].as_str().expect("a name").to_owned()).collect();
    all.push(json!({"name": "value", "type": ["null", "string"]}));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let feed = Feed::new(&world, 2, &Json::Array(all), &names).await;
    let declared = table.trim_matches('"').replace("\"\"", "\"");
    let views = format!("[[view]]\ntopic = '{}'\ntable = '{declared}'\n", feed.topic);
    let row = |key: &Json, value: &str| {
        let mut row = key.clone();
        row["value"] = json!(value);
        row
    };
    let events = [
        Event::new("c", 1, row(&keys[0], "a")),
        Event::new("c", 2, row(&keys[1], "b")),
        Event::new("u", 3, row(&keys[0], "a2")),
        Event::new("d", 4, row(&keys[1], "")),
        Event::new("c", 5, row(&keys[2], "c")),
        Event::new("c", 6, row(&keys[1], "b2")),
        Event::new("d", 7, row(&keys[2], "")),
    ];
    let expected = [row(&keys[0], "a2"), row(&keys[1], "b2")];
    feed.send(&world, &events).await;
    for batch in batches {
        let batch = format!("--batch-records-max={batch}");
        let consumer = Consumer::start(&world, &views, &[&batch]);
        consumer.counted(events.len() as u64).await;
        world.shows(table, &expected).await;
        assert_eq!(world.dead_letters().await, Vec::<String>::new());
        consumer.stop().await;
        world.reset_group(&feed.topic, 2, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn composite_keys_are_exact() {
    check(
        "create table pair (a bigint, b text, value text, primary key (b, a))",
        "pair",
        json!([{"name": "a", "type": "long"}, {"name": "b", "type": "string"}]),
        [json!({"a": 1, "b": "1|2"}), json!({"a": 1, "b": "1"}), json!({"a": 2, "b": "1|"})],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uuid_keys_are_exact() {
    let uuid =
        |digit: &str| json!({"id": format!("{}-1234-4321-abcd-0123456789ab", digit.repeat(8))});
    check(
        "create table by_uuid (id uuid primary key, value text)",
        "by_uuid",
        json!([{"name": "id", "type": {"type": "string", "connect.name": "io.debezium.data.Uuid"}}]),
        [uuid("a"), uuid("0"), uuid("f")],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn array_keys_are_exact() {
    let words = |words: &[&str]| json!({"id": words});
    check(
        "create table by_words (id text[] primary key, value text)",
        "by_words",
        json!([{"name": "id", "type": {"type": "array", "items": ["null", "string"]}}]),
        [words(&["a,b"]), words(&["a", "b"]), words(&[])],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_enums_and_domains_are_exact() {
    let key = |size: &str, word: &str| json!({"size": size, "word": word});
    let text = json!({"type": "string", "connect.name": "io.debezium.data.Enum",
        "connect.parameters": {"allowed": "S,M"}});
    check(
        "create type size as enum ('S', 'M');
         create domain word as text;
         create table by_size (size size, word word, value text, primary key (size, word))",
        "by_size",
        json!([{"name": "size", "type": text}, {"name": "word", "type": "string"}]),
        [key("S", "a"), key("M", "a"), key("S", "b")],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_keys_with_quotes_and_quoted_names_are_exact() {
    check(
        "create table \"Quoted_\"\" . Table\" (k text primary key, value text)",
        "\"Quoted_\"\" . Table\"",
        json!([{"name": "k", "type": "string"}]),
        [json!({"k": "it's \"q\" \\ {},%$1"}), json!({"k": ""}), json!({"k": "한글\n\t"})],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn binary_keys_are_exact() {
    // Text without a backslash means the same bytes to PostgreSQL and to the encoder of these tests.
    check(
        "create table by_bytes (k bytea primary key, value text)",
        "by_bytes",
        json!([{"name": "k", "type": "bytes"}]),
        [json!({"k": "한글"}), json!({"k": ""}), json!({"k": "'\""})],
    )
    .await;
}

/// What Debezium sends for a value that it did not get: in a key, it is the key.
const PLACEHOLDER: &str = "__debezium_unavailable_value";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_read_like_a_value_not_sent_are_exact() {
    let key = |word: &str, bytes: &str, words: &[&str]| json!({"w": word, "b": bytes, "ws": words});
    check(
        "create table by_any (w text, b bytea, ws text[], value text, primary key (w, b, ws))",
        "by_any",
        json!([{"name": "w", "type": "string"}, {"name": "b", "type": "bytes"},
            {"name": "ws", "type": {"type": "array", "items": ["null", "string"]}}]),
        [
            key(PLACEHOLDER, PLACEHOLDER, &[PLACEHOLDER]),
            key("w", PLACEHOLDER, &["x"]),
            key(PLACEHOLDER, "b", &[PLACEHOLDER, "x"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_shown_in_another_column_too_is_never_taken_for_not_sent() {
    let world = World::new().await;
    world.view("create table word (w text primary key, shown text)", "word").await;
    let feed = Feed::new(&world, 1, &json!([{"name": "w", "type": "string"}]), &["w"]).await;
    let views = format!(
        "[[view]]\ntopic = '{}'\ntable = 'word'\ncolumns = {{ w = 'shown' }}\n",
        feed.topic
    );
    let consumer = Consumer::start(&world, &views, &[]);
    // Of an update a value may be missing.
    feed.send(&world, &[Event::new("u", 1, json!({"w": PLACEHOLDER}))]).await;
    world.drained(&feed.topic, 1).await;
    world.shows("word", &[json!({"w": PLACEHOLDER, "shown": PLACEHOLDER})]).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_only_postgresql_finds_equal_are_one_row() {
    let world = World::new().await;
    world
        .view("create table padded (code char(6), price numeric, value text, primary key (code, price))", "padded")
        .await;
    let fields = json!([{"name": "code", "type": "string"},
        {"name": "price", "type": "string"}, {"name": "value", "type": ["null", "string"]}]);
    let feed = Feed::new(&world, 1, &fields, &["code", "price"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'padded'\n", feed.topic);
    let row = |code: &str, price: &str, value: &str| json!({"code": code, "price": price, "value": value});
    let events = [
        Event::new("c", 1, row("a", "1.0", "first")),
        Event::new("u", 2, row("a   ", "1.00", "second")),
        Event::new("c", 3, row("b", "2", "first")),
        Event::new("d", 4, row("b  ", "2.000", "")),
        Event::new("c", 5, row("c", "3", "old")),
        Event::new("d", 6, row("c ", "3.0", "")),
        Event::new("c", 7, row("c", "3.00", "new")),
    ];
    feed.send(&world, &events).await;
    for batch in ["--batch-records-max=4000", "--batch-records-max=1"] {
        let consumer = Consumer::start(&world, &views, &[batch]);
        consumer.counted(events.len() as u64).await;
        let rows = world.lines("select trim(code) || ' ' || value from padded order by code").await;
        assert_eq!(rows, ["a second", "c new"], "{batch}");
        consumer.stop().await;
        world.reset_group(&feed.topic, 1, 0).await;
    }
}

/// `a` becomes `A`: delete and insert at one LSN, through two partitions that are read in any order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_changes_only_its_spelling_stays() {
    let world = World::new().await;
    world.sql("create extension citext").await;
    world.view("create table tag (name citext primary key, value text)", "tag").await;
    let fields = json!([{"name": "name", "type": "string"}, {"name": "value", "type": "string"}]);
    let feed = Feed::new(&world, 2, &fields, &["name"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'tag'\n", feed.topic);
    let row = |name: &str| json!({"name": name, "value": format!("of {name}")});
    let deleted = |lsn, name: &str| {
        let event = Event::new("d", lsn, row(name));
        [feed.message(&event).to(0), feed.tombstone(&event.row).to(0)]
    };
    let created = |lsn, name: &str| feed.message(&Event::new("c", lsn, row(name)));
    let consumer = Consumer::start(&world, &views, &["--batch-records-max=1"]);
    // One old spelling is deleted before the new one comes, the other behind it.
    world.send(&feed.topic, vec![created(8, "a").to(0), created(16, "b").to(0)]).await;
    world.drained(&feed.topic, 2).await;
    world.send(&feed.topic, deleted(24, "a").to_vec()).await;
    world.send(&feed.topic, vec![created(32, "B").to(1)]).await;
    world.drained(&feed.topic, 2).await;
    world.send(&feed.topic, deleted(32, "b").to_vec()).await;
    world.send(&feed.topic, vec![created(24, "A").to(1)]).await;
    world.drained(&feed.topic, 2).await;
    let rows = "select name || ' ' || value from tag order by name";
    assert_eq!(world.lines(rows).await, ["A of A", "B of B"]);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_change_moves_the_row_across_partitions() {
    let world = World::new().await;
    let feed = user_feed(&world, 4).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &["--batch-records-max=5"]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=20)).await;
    for id in 1..=20 {
        // Debezium: delete and tombstone under the old key, create under the new, at one LSN.
        let deleted = users.delete(id);
        let lsn = users.lsn;
        let mut created = users.put(id + 100);
        created.lsn = lsn;
        users.lsn = lsn;
        let messages =
            vec![feed.message(&deleted), feed.tombstone(&deleted.row), feed.message(&created)];
        world.send(&feed.topic, messages).await;
    }
    // Two rows swap their keys through a third.
    for (from, to) in [(101, 999), (102, 101), (999, 102)] {
        let events = [users.delete(from), users.put(to)];
        feed.send(&world, &events).await;
    }
    world.drained(&feed.topic, 4).await;
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
    consumer.stop().await;
}
