//! What a rebuild refuses, since readers would lose rows.

use crate::harness::World;
use crate::harness::consumer::Consumer;
use crate::harness::source::{Users, user_feed, user_views};
use crate::rebuild::{current, rebuild};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_are_not_rebuilt_from_a_log_whose_beginning_is_gone() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=10)).await;
    world.delete_records(&feed.topic, 0, 4).await;
    let refused = rebuild(&world, &feed, &[]).await.expect_err("rows would be missing").to_string();
    assert!(
        refused.contains("first record is 4") && refused.contains("--from-cut-log"),
        "{refused}"
    );
    assert_eq!(current(&world).await, "1");

    // A snapshot tells them all again.
    feed.send(&world, &users.snapshot()).await;
    rebuild(&world, &feed, &["--from-cut-log"]).await.expect("a rebuild");
    world.shows("public.user_view", &users.as_view()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_only_the_new_views_keep_aside_stop_the_swap() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    let mut bad = feed.message(&users.clone().put(7));
    bad.value.as_mut().expect("a value").truncate(9);
    world.send(&feed.topic, vec![bad]).await;
    feed.send(&world, &users.puts(1..=3)).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    world.drained(&feed.topic, 1).await;
    world.sql("delete from cdc_dead_letter").await;

    let refused = rebuild(&world, &feed, &[]).await.expect_err("one more").to_string();
    assert!(
        refused.contains("1 records are kept aside in the new views and not in the old ones"),
        "{refused}"
    );
    assert_eq!(current(&world).await, "1");
    // As many in the old ones are no excuse, where they are others.
    let other =
        "insert into cdc_dead_letter (view_name, topic, partition, record_offset, reason, error)
        select view_name, topic, partition, 99, reason, error from views_2.cdc_dead_letter";
    world.sql(other).await;
    rebuild(&world, &feed, &[]).await.expect_err("the same");
    world.sql("delete from cdc_dead_letter").await;
    feed.send(&world, &[users.put(4)]).await;
    world.shows("user_view", &users.as_view()).await;
    rebuild(&world, &feed, &["--with-dead-letters"]).await.expect("as it is");
    assert_eq!(current(&world).await, "2");
    world.shows("views_2.user_view", &users.as_view()).await;
    consumer.stop().await;
}
