//! A declaration that does not fit is refused with its reason, before anything is applied.

use serde_json::{Value as Json, json};

use crate::harness::consumer::Consumer;
use crate::harness::feed::{Event, Feed, Message};
use crate::harness::source::{Users, user_feed, user_fields, user_views};
use crate::harness::{SOON, World};

/// Starts a consumer of `create`d table `thing` sends one row, and returns the error that ends it.
async fn refused(create: &str, fields: &Json, key: &[&str], row: Json) -> String {
    refused_as("", create, fields, key, row).await
}

/// The same with `more` in the declaration.
async fn refused_as(more: &str, create: &str, fields: &Json, key: &[&str], row: Json) -> String {
    let world = World::new().await;
    world.view(create, "thing").await;
    let feed = Feed::new(&world, 1, fields, key).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'thing'\n{more}", feed.topic);
    let consumer = Consumer::start(&world, &views, &[]);
    feed.send(&world, &[Event::new("c", 1, row)]).await;
    let error = consumer.failure().await;
    assert!(error.contains(&feed.topic), "names the topic: {error}");
    assert_eq!(world.text("select count(*) from thing").await, "0");
    assert_eq!(world.dead_letters().await, Vec::<String>::new());
    error
}

fn id_and(name: &str, kind: &Json) -> Json {
    json!([{"name": "id", "type": "long"}, {"name": name, "type": kind}])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_table_is_named() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'no_such_table'\n", feed.topic);
    let error = Consumer::start(&world, &views, &[]).failure().await;
    assert!(error.contains("table no_such_table does not exist in schema views_1"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_a_comparable_key_or_source_position_is_refused() {
    let world = World::new().await;
    world
        .sql(
            "create table keyless (id bigint); create table plain (id bigint primary key);
        create type size as enum ('S'); create domain shirt_size as size;
        create table shirts (id shirt_size primary key);
        create collation careless (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        create table names (id text collate careless primary key);
        create table numbered (id bigint generated always as identity primary key);
        grant select on keyless, plain, shirts, names, numbered to cdc_consumer",
        )
        .await;
    let feed = user_feed(&world, 1).await;
    for (table, expected) in [
        ("keyless", "table keyless has no primary key"),
        ("plain", "call cdc_view('plain') in its migration"),
        ("shirts", "key column id of table shirts is of a domain over an enum"),
        ("names", "key column id of table names has a nondeterministic collation"),
        ("numbered", "column id of table numbered is generated always as identity"),
    ] {
        let views = format!("[[view]]\ntopic = '{}'\ntable = '{table}'\n", feed.topic);
        let error = Consumer::start(&world, &views, &[]).failure().await;
        assert!(error.contains(expected), "{error}");
    }
}

/// As the transform `ExtractNewRecordState` leaves it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_without_its_envelope_is_refused_and_the_transform_named() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let flat = json!({"type": "record", "name": "Value", "fields": user_fields()});
    let flat = world.register(&format!("{}-flat", feed.topic), flat).await;
    let row = Users::default().put(1).row;
    let (key, value) = (Some(feed.key_bytes(&row)), Some(flat.encode(&row)));
    world.send(&feed.topic, vec![Message { key, value, ..Message::default() }]).await;
    let error = Consumer::start(&world, &user_views(&feed.topic), &[]).failure().await;
    for told in [feed.topic.as_str(), "it has no field 'op'", "ExtractNewRecordState"] {
        assert!(error.contains(told), "{told}: {error}");
    }
    assert_eq!(world.text("select count(*) from user_view").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_column_no_field_feeds_is_named() {
    let error = refused(
        "create table thing (thing_id bigint primary key, name text)",
        &id_and("name", &json!("string")),
        &["id"],
        json!({"id": 1, "name": "x"}),
    )
    .await;
    assert!(error.contains("'id' of the record key feeds no key column of thing"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_of_an_impossible_type_is_named_with_both_types() {
    let error = refused(
        "create table thing (id bigint primary key, born date)",
        &id_and(
            "born",
            &json!({"type": "long", "connect.name": "io.debezium.time.MicroTimestamp"}),
        ),
        &["id"],
        json!({"id": 1, "born": 5}),
    )
    .await;
    assert!(error.contains("field 'born' cannot feed column thing.born"), "{error}");
    assert!(error.contains("a timestamp without zone"), "{error}");
    assert!(error.contains("type date"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_no_field_feeds_is_named() {
    let error = refused(
        "create table thing (id bigint primary key, name text, nickname text)",
        &id_and("name", &json!("string")),
        &["id"],
        json!({"id": 1, "name": "x"}),
    )
    .await;
    assert!(error.contains("no field feeds column thing.nickname"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_named_like_a_column_of_ours_is_named() {
    let error = refused(
        "create table thing (id bigint primary key, last_processed_at timestamptz)",
        &id_and("last_processed_at", &json!("string")),
        &["id"],
        json!({"id": 1, "last_processed_at": "x"}),
    )
    .await;
    let expected =
        "field 'last_processed_at' would feed column thing.last_processed_at, which the consumer";
    assert!(error.contains(expected), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapped_subset_of_the_columns_is_enough() {
    let world = World::new().await;
    world.view("create table thing (thing_id bigint primary key, label text)", "thing").await;
    let feed = Feed::new(&world, 1, &id_and("name", &json!("string")), &["id"]).await;
    let views = format!(
        "[[view]]\ntopic = '{}'\ntable = 'thing'\nkey = {{ id = 'thing_id' }}\ncolumns = {{ name = 'label' }}\n",
        feed.topic
    );
    let consumer = Consumer::start(&world, &views, &[]);
    feed.send(&world, &[Event::new("c", 1, json!({"id": 1, "name": "x"}))]).await;
    world.shows("thing", &[json!({"thing_id": 1, "label": "x"})]).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_the_primary_key_only_includes_is_no_part_of_it() {
    let world = World::new().await;
    let create = "create table thing (id bigint, name text, primary key (id) include (name))";
    world.view(create, "thing").await;
    let feed = Feed::new(&world, 1, &id_and("name", &json!("string")), &["id"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'thing'\n", feed.topic);
    let consumer = Consumer::start(&world, &views, &[]);
    let thing = |id: i64, name: &str| json!({"id": id, "name": name});
    for event in [
        Event::new("c", 8, thing(1, "old")),
        Event::new("c", 16, thing(2, "gone")),
        Event::new("u", 24, thing(1, "new")),
        Event::new("d", 32, thing(2, "")),
    ] {
        feed.send(&world, &[event]).await;
        world.drained(&feed.topic, 1).await; // a batch of its own
    }
    world.shows("thing", &[thing(1, "new")]).await;
    assert_eq!(world.text("select string_agg(id::text, ',') from thing_deleted").await, "2");
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declared_field_feeds_its_column_whatever_else_has_that_name() {
    let world = World::new().await;
    world.view("create table thing (id bigint primary key, name text)", "thing").await;
    let older = Feed::new(&world, 1, &id_and("name", &json!("string")), &["id"]).await;
    let fields = json!([{"name": "id", "type": "long"}, {"name": "full_name", "type": "string"},
        {"name": "name", "type": "string"}]);
    let newer = Feed::on(&world, &older.topic, &fields, &["id"]).await;
    let views = format!(
        "[[view]]\ntopic = '{}'\ntable = 'thing'\ncolumns = {{ full_name = 'name' }}\n",
        older.topic
    );
    let consumer = Consumer::start(&world, &views, &[]);
    older.send(&world, &[Event::new("c", 1, json!({"id": 1, "name": "before"}))]).await;
    let row = json!({"id": 2, "full_name": "full", "name": "short"});
    newer.send(&world, &[Event::new("c", 2, row)]).await;
    let expected = [json!({"id": 1, "name": "before"}), json!({"id": 2, "name": "full"})];
    world.shows("thing", &expected).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_fields_declared_for_one_column_are_named() {
    let error = refused_as(
        "columns = { old = 'name', new = 'name' }\n",
        "create table thing (id bigint primary key, name text)",
        &json!([{"name": "id", "type": "long"}, {"name": "old", "type": "string"},
            {"name": "new", "type": "string"}]),
        &["id"],
        json!({"id": 1, "old": "x", "new": "y"}),
    )
    .await;
    assert!(error.contains("fields 'new' and 'old' both feed column thing.name"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_fields_of_the_key_for_one_column_are_named() {
    let error = refused_as(
        "key = { a = 'b' }\n",
        "create table thing (b bigint primary key)",
        &json!([{"name": "a", "type": "long"}, {"name": "b", "type": "long"}]),
        &["a", "b"],
        json!({"a": 1, "b": 2}),
    )
    .await;
    assert!(error.contains("fields 'a' and 'b' both feed column thing.b"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declared_column_that_is_not_there_is_named_at_once() {
    let world = World::new().await;
    world.view("create table thing (id bigint primary key, name text, size int)", "thing").await;
    let feed = Feed::new(&world, 1, &id_and("name", &json!("string")), &["id"]).await;
    for (more, expected) in [
        (
            "columns = { name = 'nmae' }",
            "'name' to column 'nmae' of thing, which is none of name, size",
        ),
        ("key = { id = 'di' }", "'id' to key column 'di' of thing, which is none of id"),
        (
            "columns = { name = 'id' }",
            "'name' to column 'id' of thing, which is none of name, size",
        ),
    ] {
        let views = format!("[[view]]\ntopic = '{}'\ntable = 'thing'\n{more}\n", feed.topic);
        let error = Consumer::start(&world, &views, &[]).failure().await;
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_without_a_key_are_refused() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut message = feed.message(&Users::default().put(1));
    message.key = None;
    world.send(&feed.topic, vec![message]).await;
    let error = consumer.failure().await;
    assert!(error.contains("has no record key: the source table has no primary key"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_of_a_views_table_is_picked_up_without_a_restart() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    let views = format!("{}absent = 'keep'\n", user_views(&feed.topic));
    let consumer = Consumer::start(&world, &views, &[]);
    feed.send(&world, &users.puts(1..=3)).await;
    world.drained(&feed.topic, 1).await;

    // The view gets its column first, then the source: with it comes a new schema.
    world.sql("alter table views_1.user_view add column phone text").await;
    let mut fields = user_fields();
    fields.as_array_mut().expect("a list").push(json!({"name": "phone", "type": "string"}));
    let newer = Feed::on(&world, &feed.topic, &fields, &["id"]).await;
    let mut event = users.put(2);
    event.row["phone"] = json!("02-123-4567");
    newer.send(&world, &[event]).await;
    world.drained(&feed.topic, 1).await;
    let phones = "select string_agg(coalesce(phone, '-'), ' ' order by user_id) from user_view";
    assert_eq!(world.text(phones).await, "- 02-123-4567 -");
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_added_for_a_field_that_was_ignored_is_fed_soon_after() {
    let world = World::new().await;
    let mut fields = user_fields();
    fields.as_array_mut().expect("a list").push(json!({"name": "phone", "type": "string"}));
    let feed = Feed::new(&world, 1, &fields, &["id"]).await;
    let mut users = Users::default();
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut call = async || {
        let mut event = users.put(1);
        event.row["phone"] = json!("02-123-4567");
        feed.send(&world, &[event]).await;
        world.drained(&feed.topic, 1).await;
    };
    call().await;
    world.sql("alter table views_1.user_view add column phone text").await;
    let deadline = std::time::Instant::now() + SOON;
    while world.text("select coalesce(phone, '-') from user_view").await == "-" {
        assert!(std::time::Instant::now() < deadline, "the column is still not fed");
        call().await;
    }
    consumer.stop().await;
}
