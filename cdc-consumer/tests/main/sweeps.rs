//! What a sweep must leave, and what it must reach.

use std::time::SystemTime;

use serde_json::{Value as Json, json};
use tokio_util::sync::CancellationToken;

use crate::dead_letters::{dead_letters, retry};
use crate::harness::World;
use crate::harness::consumer::{Consumer, Process};
use crate::harness::feed::{Event, Feed, Message};
use crate::harness::source::{Users, user_feed, user_views};
use crate::rebuild::rebuild_until;
use crate::snapshots::{snapshot, swept, too_long};

/// Five users, of whom 1 and 2 have a dead letter and were deleted unheard, as the snapshot behind it tells.
/// The row of user 3 in that snapshot is a dead letter, too.
async fn letters_before_a_snapshot() -> (World, Feed, Users, Consumer) {
    let world = World::new().await;
    world.sql("alter table user_view add constraint short check (length(name) < 50)").await;
    let feed = user_feed(&world, 2).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=5)).await;
    world.drained(&feed.topic, 2).await;
    let letters: Vec<_> = [1, 2].map(|id| too_long(users.put(id))).into();
    feed.send(&world, &letters).await;
    world.drained(&feed.topic, 2).await;
    for id in [1, 2] {
        users.delete(id);
    }
    let mut rows = snapshot(&mut users);
    rows[0] = too_long(rows[0].clone());
    feed.send(&world, &rows).await;
    world.drained(&feed.topic, 2).await;
    assert_eq!(world.dead_letters().await.len(), 3);
    (world, feed, users, consumer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_goes_whose_dead_letter_is_older_than_the_snapshot_that_lacks_it() {
    let (world, _feed, users, consumer) = letters_before_a_snapshot().await;
    assert_eq!(swept(&world).await, "2");
    world.shows("user_view", &users.as_view()).await;
    for _ in 0..3 {
        let id = world.text("select min(id) from cdc_dead_letter").await;
        dead_letters(&world, &["drop", &id]).await.expect("dropped");
    }
    world.shows("user_view", &users.as_view()).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_a_retry_brings_back_behind_a_snapshot_goes_again() {
    let (world, feed, mut users, consumer) = letters_before_a_snapshot().await;
    assert_eq!(swept(&world).await, "2");
    world.sql("alter table user_view drop constraint short").await;
    for _ in 0..3 {
        retry(&world, &user_views(&feed.topic)).await.expect("applied");
    }
    feed.send(&world, &[users.put(3)]).await;
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
    consumer.stop().await;
}

fn price(id: &str, name: &str) -> Json {
    json!({"id": id, "name": name})
}

/// `1.5` is `1.50` in the view.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_postgresql_spells_differently_wait_behind_their_dead_letters_too() {
    let world = World::new().await;
    let create = "create table price (id numeric(10, 2) primary key, name varchar(5))";
    world.view(create, "price").await;
    let fields = json!([{"name": "id", "type": "string"}, {"name": "name", "type": "string"}]);
    let feed = Feed::new(&world, 1, &fields, &["id"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'price'\n", feed.topic);
    let consumer = Process::start(&world, &views, 1, &[]);
    let created = |id| Event::new("c", 8, price(id, "ok"));
    feed.send(&world, &["1.5", "2.5", "3.5"].map(created)).await;
    world.drained(&feed.topic, 1).await;
    let read = |id, name, snapshot| Event { snapshot, ..Event::new("r", 800, price(id, name)) };
    feed.send(&world, &[read("1.5", "too long", "true"), read("3.5", "ok", "last")]).await;
    world.drained(&feed.topic, 1).await;
    consumer.says("dead letters of price do not tell").await;
    assert_eq!(world.text("select name from price where id = 1.5").await, "ok");

    world.sql("alter table price alter column name type varchar(50)").await;
    retry(&world, &views).await.expect("applied");
    world.shows("price", &[price("1.50", "too long"), price("3.50", "ok")]).await;
}

/// Text made of two of them has none to be compared by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_whose_key_columns_have_collations_of_their_own_are_swept() {
    let world = World::new().await;
    let create = "create table thing (id text collate \"C\", name text collate \"POSIX\", primary key (id, name))";
    world.view(create, "thing").await;
    let fields = json!([{"name": "id", "type": "string"}, {"name": "name", "type": "string"}]);
    let feed = Feed::new(&world, 1, &fields, &["id", "name"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'thing'\n", feed.topic);
    let consumer = Consumer::start(&world, &views, &[]);
    feed.send(&world, &["a", "b"].map(|id| Event::new("c", 8, price(id, "")))).await;
    world.drained(&feed.topic, 1).await;
    let letter = format!(
        "insert into cdc_dead_letter
             (view_name, topic, partition, record_offset, key_text, reason, error)
         values ('thing', '{}', 0, 2, 'z', 'refused', 'another row')",
        feed.topic
    );
    world.sql(&letter).await;
    let last = Event { snapshot: "last", ..Event::new("r", 800, price("a", "")) };
    feed.send(&world, &[last]).await;
    world.shows("thing", &[price("a", "")]).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_partition_of_a_views_table_is_swept_to_its_last_page() {
    let world = World::new().await;
    let create = "create table part (id bigint primary key, name text) partition by range (id); \
        create table part_1 partition of part for values from (0) to (10); \
        create table part_2 partition of part for values from (10) to (maxvalue); \
        alter table part_2 alter column name set storage plain";
    world.view(create, "part").await;
    let fields = json!([{"name": "id", "type": "long"}, {"name": "name", "type": "string"}]);
    let feed = Feed::new(&world, 1, &fields, &["id"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'part'\n", feed.topic);
    // Two rows a page: more pages than are swept at once.
    let rows =
        "insert into part select n, repeat('x', 4000), 0, 8 from generate_series(10, 4200) n";
    let consumer = Consumer::start(&world, &views, &[]);
    consumer.joined().await;
    world.sql(rows).await;
    let row = json!({"id": 1, "name": "one"});
    let last = Event { snapshot: "last", ..Event::new("r", 800, row.clone()) };
    feed.send(&world, &[last]).await;
    assert_eq!(swept(&world).await, "4191");
    world.shows("part", &[row]).await;
    consumer.stop().await;
}

/// As when the broker has just come back and does not know the topic yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_is_not_over_while_the_broker_knows_no_partition_of_the_topic() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Process::start(&world, &user_views(&feed.topic), 1, &[]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=2)).await;
    world.drained(&feed.topic, 1).await;
    let unknown = format!("{}_unknown", feed.topic);
    let sql = format!(
        "insert into cdc_snapshot (view_name, topic, source_lsn, ended_at)
         values ('user_view', '{unknown}', 800, now() - interval '1 minute')"
    );
    world.sql(&sql).await;
    consumer.says(&format!("the broker knows no partition of topic {unknown}")).await;
    assert_eq!(world.text("select swept_at from cdc_snapshot").await, "null");
}

/// A change that was open when the snapshot was taken stands right behind it; so do all of its partition
/// for the tombstone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tombstone_alone_removes_a_row_that_overtook_a_snapshot() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=2)).await;
    let mut late = users.clone();
    let overtaken = late.put(2);
    users.lsn = late.lsn;
    feed.send(&world, &snapshot(&mut users)).await;
    feed.send(&world, &[overtaken]).await;
    world.shows("user_view", &late.as_view()).await;
    world.send(&feed.topic, vec![feed.tombstone(&json!({"id": 2}))]).await;
    late.delete(2);
    world.shows("user_view", &late.as_view()).await;
    consumer.stop().await;
}

/// The partition with the end of the earlier one was read last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_snapshots_the_one_sent_later_decides_whichever_ends_last_in_the_logs() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    users.puts(1..=3);
    let earlier = snapshot(&mut users);
    users.delete(1); // unheard
    let mut later = users.snapshot();
    later[0].snapshot = "last";
    let send = async |partition: i32, rows: &[(&Event, i64)]| {
        let rows = rows.iter().map(|&(row, sent)| {
            let message = feed.message(row).to(partition);
            Message { timestamp_millis: Some(sent), ..message }
        });
        world.send(&feed.topic, rows.collect()).await;
        world.drained(&feed.topic, 2).await;
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let second = i64::try_from(now.as_millis()).expect("a time of our days");
    let first = second - 60_000;
    send(0, &[(&earlier[0], first), (&earlier[1], first), (&later[0], second)]).await;
    send(1, &[(&earlier[2], first), (&later[1], second)]).await;
    assert_eq!(swept(&world).await, "1");
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
    consumer.stop().await;
}

/// Its record is not read again, so its time is known only from the first reading.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_partitions_are_swept_though_the_last_row_of_the_snapshot_was_retried() {
    let world = World::new().await;
    world.sql("alter table user_view add constraint short check (length(name) < 50)").await;
    let feed = user_feed(&world, 2).await;
    let views = user_views(&feed.topic);
    let consumer = Consumer::start(&world, &views, &[]);
    let mut users = Users::default();
    let to = |partition: i32, event: &Event| feed.message(event).to(partition);
    let first = users.puts(1..=2);
    world.send(&feed.topic, vec![to(0, &first[0]), to(1, &first[1])]).await;
    world.drained(&feed.topic, 2).await;
    users.delete(2); // unheard
    let last = too_long(snapshot(&mut users)[0].clone());
    world.send(&feed.topic, vec![to(0, &last)]).await;
    world.drained(&feed.topic, 2).await;
    consumer.stop().await; // before it sweeps
    assert_eq!(world.dead_letters().await.len(), 1);
    world.sql("alter table user_view drop constraint short").await;
    retry(&world, &views).await.expect("applied");

    let consumer = Consumer::start(&world, &views, &[]);
    assert_eq!(swept(&world).await, "1");
    world.send(&feed.topic, vec![to(0, &users.put(1))]).await;
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
    consumer.stop().await;
}

/// A view `shirt` that was swept of `M` and is rebuilt after these migrations made it, then and now.
async fn rebuilt_after_a_sweep(then: &str, now: &str) -> World {
    let world = World::new().await;
    world.view(then, "shirt").await;
    let fields = json!([{"name": "id", "type": "string"}, {"name": "name", "type": "string"}]);
    let feed = Feed::new(&world, 1, &fields, &["id"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'shirt'\n", feed.topic);
    let consumer = Consumer::start(&world, &views, &[]);
    feed.send(&world, &["S", "M"].map(|id| Event::new("c", 8, price(id, "ok")))).await;
    world.drained(&feed.topic, 1).await;
    consumer.stop().await;
    let swept = "with gone as (delete from shirt where id = 'M' returning *)
        insert into shirt_deleted select id, source_epoch, source_lsn + 1, 'infinity' from gone";
    world.sql(swept).await;

    let second = migrate::Generation::new(2).expect("a number");
    migrate::views(&world.admin_url(), second).await.expect("a second generation");
    let create =
        format!("set role migrator; set search_path to views_2; {now}; call cdc_view('shirt')");
    world.sql(&create).await;
    let never = CancellationToken::new();
    rebuild_until(&world, &views, &["--generation=2"], &never).await.expect("a rebuild");
    world
}

/// Each generation has an enum of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swept_row_whose_key_is_an_enum_does_not_come_back_with_a_rebuild() {
    let create =
        "create type size as enum ('S', 'M'); create table shirt (id size primary key, name text)";
    let world = rebuilt_after_a_sweep(create, create).await;
    world.shows("views_2.shirt", &[price("S", "ok")]).await;
}

/// PostgreSQL compares no texts of two collations: which rows were swept, nobody can tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_whose_key_has_another_collation_are_rebuilt_without_what_was_swept_before() {
    let create = |collation: &str| {
        format!("create table shirt (id text collate \"{collation}\" primary key, name text)")
    };
    let world = rebuilt_after_a_sweep(&create("C"), &create("POSIX")).await;
    world.shows("views_2.shirt", &["S", "M"].map(|id| price(id, "ok"))).await;
}
