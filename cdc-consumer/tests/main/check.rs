//! What is wrong with a pipe is said before the consumer meets it.

use cdc_consumer::cli::{Cli, Command};
use clap::Parser;

use crate::harness::World;
use crate::harness::consumer::{Consumer, command};
use crate::harness::source::{Users, user_feed, user_views};

/// `cdc-consumer check`: what it printed, and its error.
pub(crate) async fn check(world: &World, views: &str) -> (String, Option<String>) {
    command(world, views, &["check"], async |command| {
        let Command::Check(settings) = command else { panic!("a check") };
        let mut out = Vec::new();
        let error = cdc_consumer::check::check(&settings, &mut out).await.err();
        let printed = String::from_utf8(out).expect("text");
        (printed, error.map(|error| error.to_string()))
    })
    .await
}

/// The lines with this verdict, and what they must say.
fn assert_says(printed: &str, verdict: &str, expected: &[&str]) {
    let lines: Vec<&str> = printed.lines().filter(|line| line.starts_with(verdict)).collect();
    assert_eq!(lines.len(), expected.len(), "{printed}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.contains(expected), "{line:?} does not say {expected:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipe_in_order_is_fine() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    feed.send(&world, &Users::default().puts(1..=10)).await;
    let views = user_views(&feed.topic);
    let (printed, error) = check(&world, &views).await;
    assert_eq!(error, None, "{printed}");
    assert!(printed.contains("inside their logs, lag 10"), "{printed}");
    let consumer = Consumer::start(&world, &views, &[]);
    world.drained(&feed.topic, 2).await;
    consumer.stop().await;
    let (printed, error) = check(&world, &views).await;
    assert_eq!(error, None, "{printed}");
    assert!(printed.contains("fits its table"), "{printed}");
    assert!(printed.contains("inside their logs, lag 0"), "{printed}");
    assert_says(&printed, "wrong", &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_stop_the_consumer_is_named_without_it() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=4)).await;
    let views = user_views(&feed.topic);
    let consumer = Consumer::start(&world, &views, &[]);
    world.drained(&feed.topic, 1).await;
    consumer.stop().await;
    feed.send(&world, &users.puts(1..=4)).await;
    world.delete_records(&feed.topic, 0, 6).await;
    world.sql("revoke update, delete on user_view from cdc_consumer").await;
    let missing = format!("{}_missing", world.name);
    let more = format!("{views}[[view]]\ntopic = '{missing}'\ntable = 'nowhere'\n");
    let (printed, error) = check(&world, &more).await;
    let expected = [
        "may not update, delete there; run `migrate views`",
        "table nowhere does not exist in schema views_1",
        "the next record to apply is 4, but the broker's first is 6",
    ];
    assert_says(&printed, "wrong", &expected);
    assert!(printed.contains(&format!("topic {missing}")), "{printed}");
    assert!(printed.contains("does not exist; its connector makes it"), "{printed}");
    assert!(error.is_some_and(|error| error.starts_with("3 of ")), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_record_is_held_against_its_table() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    let views = user_views(&feed.topic);
    let mut bad = feed.message(&users.put(1));
    bad.value.as_mut().expect("a value").truncate(9);
    world.send(&feed.topic, vec![bad]).await;
    let (printed, _) = check(&world, &views).await;
    assert_says(&printed, "wrong", &["-0 @ 0 would be kept aside: "]);

    feed.send(&world, &[users.put(1)]).await;
    world.sql("alter table user_view add column shoe_size int").await;
    let (printed, error) = check(&world, &views).await;
    assert_says(&printed, "wrong", &["no field feeds column user_view.shoe_size"]);
    assert!(error.is_some(), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_record_of_each_partition_is_looked_at() {
    let world = World::new().await;
    let feed = user_feed(&world, 3).await;
    let mut users = Users::default();
    let mut bad = feed.message(&users.put(1)).to(2);
    bad.value.as_mut().expect("a value").truncate(9);
    world.send(&feed.topic, vec![feed.message(&users.put(2)).to(0), bad]).await;
    let (printed, error) = check(&world, &user_views(&feed.topic)).await;
    assert_says(&printed, "wrong", &["-2 @ 0 would be kept aside: "]);
    assert!(printed.contains("the newest of 1 partitions fits its table"), "{printed}");
    assert!(error.is_some(), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_tells_the_lag_of_all_partitions_that_the_broker_knows() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    feed.send(&world, &Users::default().puts(1..=3)).await;
    world.drained(&feed.topic, 1).await;
    consumer.stop().await;
    // Of a topic that is gone, and asked about first.
    world.sql("insert into cdc_offset (topic, partition, next_offset) values ('a', 0, 7)").await;
    let database =
        format!("--consumer-database-url={}", world.consumer_url(&world.database_address()));
    let brokers = format!("--kafka-brokers={}", world.brokers);
    let arguments = ["cdc-consumer", "status", "--json", &database, &brokers];
    let Command::Status(settings) = Cli::parse_from(arguments).command else { panic!("a status") };
    let mut out = Vec::new();
    cdc_consumer::status::status(&settings, &mut out).await.expect("a status");
    let report: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
    let lags: Vec<_> =
        report["partitions"].as_array().expect("a list").iter().map(|it| &it["lag"]).collect();
    assert_eq!(lags, [&serde_json::Value::Null, &0.into()], "{report}");
}
