//! The ordinary life of a row.

use serde_json::json;

use crate::harness::consumer::{Consumer, Process, free_address, metrics, total};
use crate::harness::source::{Users, user_feed, user_views};
use crate::harness::{SOON, World, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_follow_inserts_updates_and_deletes() {
    let world = World::new().await;
    let feed = user_feed(&world, 4).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();

    feed.send(&world, &users.puts(1..=50)).await;
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;

    feed.send(&world, &users.puts(11..=30)).await;
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;

    for id in 21..=40 {
        let deleted = users.delete(id);
        let tombstone = feed.tombstone(&deleted.row);
        world.send(&feed.topic, vec![feed.message(&deleted), tombstone]).await;
    }
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;

    world.drained(&feed.topic, 4).await;
    let outcome = consumer.stop().await;
    assert_eq!((total(&outcome), outcome.ignored), (110, 20), "{outcome:?}");
    assert_eq!(outcome.stale + outcome.quarantined, 0, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_user_can_be_created_again() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    let events = [users.put(1), users.delete(1), users.put(1), users.delete(1), users.put(1)];
    for event in events {
        feed.send(&world, &[event]).await;
        world.drained(&feed.topic, 1).await;
    }
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
    let outcome = consumer.stop().await;
    assert_eq!(outcome.applied, 5, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_changes_of_one_key_in_one_batch_leave_the_last() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    let mut events = users.puts((0..3000).map(|number| number % 7));
    events.push(users.delete(3));
    events.extend(users.puts((0..500).map(|number| number % 5)));
    events.push(users.delete(4));
    feed.send(&world, &events).await;

    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    world.drained(&feed.topic, 1).await;
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
    let outcome = consumer.stop().await;
    assert_eq!(total(&outcome), 3502, "{outcome:?}");
    assert!(outcome.folded > 0, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_is_told_where_we_are_with_our_mark() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=10)).await;
    world.drained(&feed.topic, 1).await;
    consumer.stop().await;
    let (offset, mark) = world.committed(&feed.topic, 0).await;
    assert_eq!(offset, rdkafka::Offset::Offset(10));
    assert_eq!(mark, "cdc-consumer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_topics_keep_two_tables() {
    let world = World::new().await;
    let users_feed = user_feed(&world, 2).await;
    let fields = json!([
        {"name": "id", "type": "long"}, {"name": "title", "type": "string"},
        {"name": "author_id", "type": "long"},
        {"name": "created_at", "type": {"type": "string", "connect.name": "io.debezium.time.ZonedTimestamp"}},
    ]);
    let posts_feed = crate::harness::feed::Feed::new(&world, 2, &fields, &["id"]).await;
    let views = format!(
        "{}[[view]]\ntopic = '{}'\ntable = 'post_view'\nkey = {{ id = 'post_id' }}\n",
        user_views(&users_feed.topic),
        posts_feed.topic
    );
    let consumer = Consumer::start(&world, &views, &[]);
    let mut users = Users::default();
    users_feed.send(&world, &users.puts(1..=20)).await;
    let post = |id: i64| json!({"id": id, "title": "제목", "author_id": id % 20, "created_at": "2024-05-01T10:00:00Z"});
    let posts: Vec<_> =
        (1..=40).map(|id| crate::harness::feed::Event::new("c", id, post(id))).collect();
    posts_feed.send(&world, &posts).await;
    let expected: Vec<_> = (1..=40)
        .map(|id: i64| json!({"post_id": id, "author_id": id % 20, "created_at": "2024-05-01T10:00:00Z"}))
        .collect();
    world.shows("post_view", &expected).await;
    world.shows("user_view", &users.as_view()).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_count_each_record_once_and_how_old_changes_were() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let address = free_address();
    let listen = format!("--consumer-listen={address}");
    let _process = Process::start(&world, &user_views(&feed.topic), 1, &[&listen]);
    let mut users = Users::default();
    let mut events = users.puts((0..60).map(|number| number % 20));
    events.push(users.delete(7));
    feed.send(&world, &events).await;
    world.send(&feed.topic, vec![feed.tombstone(&json!({"id": 7}))]).await;
    world.drained(&feed.topic, 1).await;
    let sent = events.len() as u64 + 1;
    wait_until("all records to be counted", SOON, || async {
        let metrics = metrics(address).await?;
        let sum = |name: &str, label: &str| -> u64 {
            let series = metrics.lines().filter(|line| line.starts_with(name));
            let ours = series.filter(|line| line.contains(label));
            ours.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
        };
        let counted = sum("cdc_records_total{", "view=\"user_view\"");
        let ignored = sum("cdc_records_total{", "outcome=\"ignored\"");
        let applied = sum("cdc_records_total{", "outcome=\"applied\"");
        let aged = sum("cdc_freshness_seconds_count{", "view=\"user_view\"");
        let right = counted == sent && ignored == 1 && applied >= 20 && aged > 0;
        if right { Ok(()) } else { Err(metrics) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_deleted_long_ago_are_forgotten_and_what_hinders_it_is_said() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    let first = Consumer::start(&world, &views, &[]);
    feed.send(&world, &users.puts(1..=5)).await;
    feed.send(&world, &[users.delete(2), users.delete(4)]).await;
    world.drained(&feed.topic, 1).await;
    first.stop().await;
    let remembered = "select count(*) from user_view_deleted";
    assert_eq!(world.text(remembered).await, "2");

    world.sql("revoke delete on user_view_deleted from cdc_consumer").await;
    let hindered = Process::start(&world, &views, 1, &["--deleted-keys-kept=0s"]);
    hindered.says("could not forget old deleted keys").await;
    hindered.kill();
    world.sql("grant delete on user_view_deleted to cdc_consumer").await;
    world
        .sql(
            "update user_view_deleted set deleted_at = now() - interval '8 days' where user_id = 2",
        )
        .await;
    // As shipped: seven days. One statement forgets all it may forget.
    let _consumer = Process::start(&world, &views, 2, &[]);
    wait_until("the key deleted long ago, and no other, to be forgotten", SOON, || async {
        let left = world.lines("select user_id::text from user_view_deleted").await;
        if left == ["4"] { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    world.shows("user_view", &users.as_view()).await;
}
