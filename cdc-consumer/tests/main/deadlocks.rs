//! Writers side by side wait for each other at most; they never wait in a circle. PostgreSQL counts.

use serde_json::json;

use crate::harness::consumer::Consumer;
use crate::harness::feed::{Event, Feed};
use crate::harness::proxy::{Mode, Proxy};
use crate::harness::source::{Users, user_feed, user_views};
use crate::harness::{SOON, World, wait_until};

/// How many deadlocks PostgreSQL had to break in this world's database. The sessions that met one have
/// reported it before it is read: they are gone.
async fn deadlocks(world: &World) -> String {
    world.sql("select pg_stat_force_next_flush()").await;
    world.text("select deadlocks from pg_stat_database where datname = current_database()").await
}

fn post(id: i64) -> serde_json::Value {
    json!({"id": id, "title": "제목", "author_id": id % 20, "created_at": "2024-05-01T10:00:00Z"})
}

/// A feed of `posts`, as far as `post_view` needs it.
async fn post_feed(world: &World, partitions: i32) -> Feed {
    let fields = json!([
        {"name": "id", "type": "long"}, {"name": "title", "type": "string"},
        {"name": "author_id", "type": "long"},
        {"name": "created_at",
         "type": {"type": "string", "connect.name": "io.debezium.time.ZonedTimestamp"}},
    ]);
    Feed::new(world, partitions, &fields, &["id"]).await
}

/// The partitions of users and posts with equal numbers go to different consumers as often as to the
/// same one. All of them count the same few departments, delete and insert in one batch, and the
/// service inserts posts beside them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_that_count_the_same_departments_never_deadlock() {
    let world = World::new().await;
    let (users_feed, posts_feed) = (user_feed(&world, 4).await, post_feed(&world, 4).await);
    let views = format!(
        "{}[[view]]\ntopic = '{}'\ntable = 'post_view'\nkey = {{ id = 'post_id' }}\n",
        user_views(&users_feed.topic),
        posts_feed.topic
    );
    let options = ["--batch-records-max=500", "--writers=1"];
    let consumers: Vec<_> = (0..3).map(|_| Consumer::start(&world, &views, &options)).collect();
    for consumer in &consumers {
        consumer.joined().await;
    }
    let mut users = Users::default();
    for round in 0..40 {
        users_feed.send(&world, &users.puts(1..=400)).await;
        let gone: Vec<_> = (1..=400).filter(|id| (id + round) % 3 == 0).collect();
        let deletes: Vec<_> = gone.into_iter().map(|id| users.delete(id)).collect();
        users_feed.send(&world, &deletes).await;
        let posts: Vec<_> =
            (1..=100).map(|id| Event::new("c", round * 100 + id, post(id))).collect();
        posts_feed.send(&world, &posts).await;
    }
    world.shows("user_view", &users.as_view()).await;
    world.drained(&users_feed.topic, 4).await;
    world.drained(&posts_feed.topic, 4).await;
    for consumer in consumers {
        consumer.stop().await;
    }
    world.counts_are_right().await;
    assert_eq!(deadlocks(&world).await, "0");
}

/// Whatever order the records came in: statements that lock in one order cannot wait in a circle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rows_of_a_batch_are_written_in_the_order_of_their_keys() {
    rows_are_written_in_the_order_of_their_keys("--copy-rows-min=1000000").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_copied_in_the_order_of_their_keys() {
    rows_are_written_in_the_order_of_their_keys("--copy-rows-min=1").await;
}

async fn rows_are_written_in_the_order_of_their_keys(option: &str) {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    // 7 and 1000 have no common divisor: each key once, none behind its predecessor.
    feed.send(&world, &users.puts((0..1000).map(|number| number * 7 % 1000))).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[option]);
    world.shows("user_view", &users.as_view()).await;
    let disorder = "select count(*) from (
        select user_id, lag(user_id) over (partition by xmin::text order by ctid) as before
        from user_view) r where before > user_id";
    assert_eq!(world.text(disorder).await, "0");
    let batches = "select count(distinct xmin::text) from user_view";
    let batches: usize = world.text(batches).await.parse().expect("a count");
    assert!(batches < 500, "{batches} batches hardly hold rows to order");
    consumer.stop().await;
}

const KEYS: i64 = 401;
const LSN_MAX: i64 = 40_000;

/// `key-007` with another letter in capitals for each partition, as if hashed by its bytes.
fn spelling(number: i64, partition: i64) -> String {
    let capitals = ["key", "Key", "kEy", "keY"];
    let prefix = usize::try_from(partition).ok().and_then(|at| capitals.get(at));
    format!("{}-{number:03}", prefix.expect("four partitions"))
}

/// The view `loose`, whose keys may be spelled differently: a feed of it, and its declaration.
async fn loose_view(world: &World) -> (Feed, String) {
    world.sql("create extension if not exists citext with schema public").await;
    world.view("create table loose (k public.citext primary key, value text)", "loose").await;
    let fields = json!([{"name": "k", "type": "string"},
        {"name": "value", "type": ["null", "string"]}]);
    let feed = Feed::new(world, 4, &fields, &["k"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'loose'\n", feed.topic);
    (feed, views)
}

/// Whoever is among the rows keeps the other away from all of them, whatever their keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_keys_that_only_postgresql_finds_equal_take_turns() {
    let world = World::new().await;
    let (feed, views) = loose_view(&world).await;
    let put = |number: i64, lsn: i64, partition: i32| {
        let row = json!({"k": spelling(number, partition.into()), "value": format!("v{lsn}")});
        (row.clone(), feed.message(&Event::new("u", lsn, row)).to(partition))
    };
    world.send(&feed.topic, vec![put(0, 1, 0).1]).await;
    let consumer = Consumer::start(&world, &views, &["--writers=4"]);
    world.drained(&feed.topic, 4).await;

    let db = world.holding("select from views_1.loose for update").await;
    let (first, message) = put(0, 2, 0);
    world.send(&feed.topic, vec![message]).await;
    world.session_shows("wait_event = 'transactionid'").await;
    let (second, message) = put(1, 3, 1);
    world.send(&feed.topic, vec![message]).await;
    world.session_shows("wait_event = 'advisory'").await;
    drop(db);

    world.drained(&feed.topic, 4).await;
    world.shows("loose", &[first, second]).await;
    consumer.stop().await;
}

/// A spelling each per partition: the four writers' batches name the same rows in different order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_keys_that_only_postgresql_finds_equal_never_deadlock() {
    let world = World::new().await;
    let (feed, views) = loose_view(&world).await;
    let mut messages = Vec::new();
    let mut last = Vec::new();
    // Each partition meets each key, as 401 and 4 have no common divisor.
    for lsn in 1..=LSN_MAX {
        let row = json!({"k": spelling(lsn % KEYS, lsn % 4), "value": format!("v{lsn}")});
        let is_last = lsn > LSN_MAX - KEYS;
        let op = if !is_last && (lsn / KEYS) % 3 == 2 { "d" } else { "u" };
        if is_last {
            last.push(row.clone());
        }
        let partition = i32::try_from(lsn % 4).expect("small");
        messages.push(feed.message(&Event::new(op, lsn, row)).to(partition));
    }
    world.send(&feed.topic, messages).await;
    let options = ["--batch-records-max=300", "--writers=4"];
    let consumer = Consumer::start(&world, &views, &options);
    world.drained(&feed.topic, 4).await;
    world.shows("loose", &last).await;
    consumer.stop().await;
    assert_eq!(deadlocks(&world).await, "0");
}

/// A row that is not committed yet when the TRUNCATE is applied was changed before it all the same.
#[tokio::test]
async fn a_truncate_waits_for_a_row_that_another_writer_is_adding() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=1)).await;
    let consumer = Consumer::start(&world, &views, &[]);
    world.shows("user_view", &users.as_view()).await;

    let mut other = world.db().await;
    let add = "begin;
        insert into user_view (user_id, name, email, department, status, created_at, updated_at,
            version, source_epoch, source_lsn)
        select 1001, name, email, department, status, created_at, updated_at,
            version, source_epoch, source_lsn
        from user_view where user_id = 1";
    sqlx::raw_sql(add).execute(&mut other).await.unwrap();
    world.send(&feed.topic, vec![feed.message(&users.truncate())]).await;
    let waiting = "select count(*) from pg_locks
        where not granted and relation = 'views_1.user_view'::regclass";
    wait_until("the TRUNCATE to wait", SOON, || async {
        let count = world.text(waiting).await;
        if count == "1" { Ok(()) } else { Err(format!("{count} are waiting")) }
    })
    .await;
    sqlx::raw_sql("commit").execute(&mut other).await.unwrap();
    world.drained(&feed.topic, 1).await;
    world.shows("user_view", &[]).await;
    consumer.stop().await;
}

/// The writer has seen that the keys are new; the TRUNCATE removes none of them before they are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncate_waits_for_rows_that_another_writer_is_about_to_copy() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let mut users = Users::default();
    let proxy = Proxy::to(&world.database_address()).await;
    let url = proxy.database_flag(&world);
    proxy.set(Mode::HoldCopy);
    let rows = users.puts(1..=20).into_iter().map(|event| feed.message(&event).to(0));
    world.send(&feed.topic, rows.collect()).await;
    let options = ["--writers=2", "--copy-rows-min=1", &url];
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &options);
    proxy.held().await;
    world.send(&feed.topic, vec![feed.message(&users.truncate()).to(1)]).await;
    world.session_shows("wait_event_type = 'Lock' and query like 'lock table%'").await;
    proxy.set(Mode::Forward);
    world.drained(&feed.topic, 2).await;
    world.shows("user_view", &[]).await;
    consumer.stop().await;
}

/// A TRUNCATE removes rows of every partition, also those that other writers are just adding, in the
/// order in which they lie in the table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncate_beside_other_writers_leaves_nothing_before_it() {
    let world = World::new().await;
    let feed = user_feed(&world, 4).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    for round in 0..40 {
        // From the last to the first: the table's order is not the key's.
        feed.send(&world, &users.puts((1..=200).rev())).await;
        let truncate = users.truncate();
        world.send(&feed.topic, vec![feed.message(&truncate).to(round % 4)]).await;
    }
    feed.send(&world, &users.puts(1..=50)).await;
    let options = ["--batch-records-max=60", "--writers=4"];
    let consumer = Consumer::start(&world, &views, &options);
    world.drained(&feed.topic, 4).await;
    world.shows("user_view", &users.as_view()).await;
    consumer.stop().await;
    world.counts_are_right().await;
    assert_eq!(deadlocks(&world).await, "0");
}
