//! What a rebuild refuses, since readers would lose rows.

use tokio_util::sync::CancellationToken;

use crate::harness::consumer::Consumer;
use crate::harness::feed::Feed;
use crate::harness::source::{Users, user_feed, user_views};
use crate::harness::{SOON, World, wait_until};
use crate::offsets::recreated;
use crate::rebuild::{current, rebuild, rebuild_until};
use crate::replay::offsets_reset;
use crate::snapshots::snapshot;

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

/// Some users, and views that show them; nobody is at work.
async fn built(partitions: i32, users: i64) -> (World, Feed, Users) {
    let world = World::new().await;
    let feed = user_feed(&world, partitions).await;
    let mut all = Users::default();
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    feed.send(&world, &all.puts(1..=users)).await;
    world.drained(&feed.topic, partitions).await;
    consumer.stop().await;
    (world, feed, all)
}

/// Five users, and a second generation that readers see; the first stays where it was.
async fn rebuilt() -> (World, Feed, Users) {
    let (world, feed, mut users) = built(1, 5).await;
    rebuild(&world, &feed, &[]).await.expect("a rebuild");
    feed.send(&world, &users.puts(1..=5)).await;
    (world, feed, users)
}

/// Moving it up to the log's first record would leave what was deleted in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_that_ends_before_the_log_begins_is_not_gone_on_with() {
    let (world, feed, _) = rebuilt().await;
    world.delete_records(&feed.topic, 0, 7).await;
    let arguments = ["--generation=1", "--from-cut-log"];
    let refused = rebuild(&world, &feed, &arguments).await.expect_err("a hole").to_string();
    assert!(refused.contains("was built up to record 5, the broker's first is 7"), "{refused}");
    assert!(refused.contains("migrate drop --generation 1"), "{refused}");
    assert_eq!(current(&world).await, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_older_than_the_memory_of_deleted_keys_is_not_gone_on_with() {
    let (world, feed, users) = rebuilt().await;
    world.sql("update cdc_offset set updated_at = now() - interval '8 days'").await;
    let refused =
        rebuild(&world, &feed, &["--generation=1"]).await.expect_err("too old").to_string();
    assert!(refused.contains("standing still for longer than 7days"), "{refused}");
    assert!(refused.contains("migrate drop --generation 1"), "{refused}");
    assert_eq!(current(&world).await, "2");
    let arguments = ["--generation=1", "--deleted-keys-kept=9d"];
    rebuild(&world, &feed, &arguments).await.expect("young enough");
    world.shows("public.user_view", &users.as_view()).await;
}

/// A rebuild that was broken off had moved the other one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_partition_that_stood_still_for_too_long_is_enough() {
    let (world, feed, mut users) = built(2, 10).await;
    rebuild(&world, &feed, &[]).await.expect("a rebuild");
    let old = "update cdc_offset set updated_at = now() - interval '8 days' where partition = 1";
    world.sql(old).await;
    feed.send(&world, &users.puts(1..=10)).await;
    let refused = rebuild(&world, &feed, &["--generation=1"]).await.expect_err("too old");
    assert!(refused.to_string().contains("standing still for longer than 7days"), "{refused}");
    assert_eq!(current(&world).await, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_left_a_while_ago_are_gone_back_to_though_a_partition_was_quiet_for_longer() {
    let (world, feed, mut users) = built(1, 5).await;
    world.sql("update cdc_offset set updated_at = now() - interval '8 days'").await;
    rebuild(&world, &feed, &[]).await.expect("a rebuild");
    feed.send(&world, &users.puts(1..=5)).await;
    rebuild(&world, &feed, &["--generation=1"]).await.expect("left just now");
    world.shows("public.user_view", &users.as_view()).await;
}

/// Its rows are those of the earlier log: readers would see them go backward, and what only the new log told vanish.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_of_an_earlier_log_is_not_gone_on_with() {
    let (world, feed, mut users) = rebuilt().await;
    world.delete_topic(&feed.topic).await;
    world.create_topic(&feed.topic, 1, &[]).await;
    let is_refused = async |says: &str| {
        let refused = rebuild(&world, &feed, &["--generation=1"]).await;
        let refused = refused.expect_err("another log").to_string();
        assert!(refused.contains(says), "{refused}");
        assert!(refused.contains("migrate drop --generation 1"), "{refused}");
        assert_eq!(current(&world).await, "2");
    };
    feed.send(&world, &users.puts(1..=3)).await;
    let arguments = ["--topic", &feed.topic, "--new-log", "--execute"];
    offsets_reset(&world, &arguments).await.expect("a reset of the second");
    is_refused("was built up to record 5, but the broker's log ends at 3").await;
    feed.send(&world, &users.puts(1..=4)).await;
    is_refused("has another record at offset 4").await;
}

/// The connector streamed on where a snapshot was needed; then it takes one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_a_log_made_again_does_not_tell_of_stop_the_swap_until_a_snapshot_ended() {
    let world = World::new().await;
    let (feed, _, mut users) = recreated(&world, 3).await;
    let refused = rebuild(&world, &feed, &[]).await.expect_err("another log").to_string();
    assert!(refused.contains("take a new snapshot"), "{refused}");
    let arguments = ["--topic", &feed.topic, "--new-log", "--execute"];
    offsets_reset(&world, &arguments).await.expect("a reset");

    let is_refused = async |rows: i32| {
        let refused = rebuild(&world, &feed, &[]).await.expect_err("rows would be lost");
        let says = format!("{rows} rows of user_view that readers see");
        assert!(refused.to_string().contains(&says), "{refused}");
        assert!(refused.to_string().contains("take a new snapshot"), "{refused}");
        assert_eq!(current(&world).await, "1");
    };
    is_refused(7).await;
    users.delete(9); // unheard
    let mut rows = snapshot(&mut users);
    let rest = rows.split_off(6);
    feed.send(&world, &rows).await;
    is_refused(4).await;
    feed.send(&world, &rest).await;
    rebuild(&world, &feed, &[]).await.expect("it has ended");
    world.shows("public.user_view", &users.as_view()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_are_not_rebuilt_from_a_log_that_took_the_place_of_theirs() {
    let world = World::new().await;
    let (feed, _, _) = recreated(&world, 30).await;
    let refused = rebuild(&world, &feed, &[]).await.expect_err("another log").to_string();
    assert!(refused.contains("has another record at offset 9"), "{refused}");
    assert!(refused.contains("take a new snapshot"), "{refused}");
    assert_eq!(current(&world).await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_of_a_topic_that_does_not_exist_are_not_published_empty() {
    let (world, feed, _) = rebuilt().await;
    let views = user_views(&format!("{}_misspelled", feed.topic));
    let refused = rebuild_until(&world, &views, &[], &CancellationToken::new()).await;
    let refused = refused.expect_err("rows would be lost").to_string();
    assert!(refused.contains("5 rows of user_view that readers see"), "{refused}");
    assert_eq!(current(&world).await, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_the_log_does_not_know_is_left_out_only_when_that_is_asked_for() {
    let (world, feed, users) = rebuilt().await;
    world.sql("update views_2.user_view set user_id = 99 where user_id = 3").await;
    let refused = rebuild(&world, &feed, &[]).await.expect_err("it would vanish").to_string();
    assert!(refused.contains("1 rows of user_view that readers see"), "{refused}");
    assert!(refused.contains("--with-missing-rows"), "{refused}");
    rebuild(&world, &feed, &["--with-missing-rows"]).await.expect("asked for");
    world.shows("public.user_view", &users.as_view()).await;
}

/// As one does that a running consumer got first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_comes_after_the_look_for_missing_ones_is_not_missing() {
    let (world, feed, _) = rebuilt().await;
    world.sql("update views_2.user_view set user_id = 99 where user_id = 3").await;
    let mut swap = world.holding("select from views_2.cdc_offset for update").await;
    let comes = async {
        let waits = "select count(*) from pg_stat_activity where datname = current_database()
            and wait_event_type = 'Lock' and query like '%views_2.cdc_offset%'";
        wait_until("the old views to be held", SOON, || async {
            if world.text(waits).await == "0" { Err("not yet".to_owned()) } else { Ok(()) }
        })
        .await;
        let row =
            "insert into views_3.user_view select * from views_2.user_view where user_id = 99";
        world.sql(row).await;
        sqlx::raw_sql("rollback").execute(&mut swap).await.expect("it can go on");
    };
    let (built, ()) = tokio::join!(rebuild(&world, &feed, &[]), comes);
    built.expect("nothing is missing");
    assert_eq!(current(&world).await, "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_that_only_the_old_generation_fills_are_not_published_empty() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    feed.send(&world, &Users::default().puts(1..=5)).await;
    world.sql("insert into post_view (post_id) values (1)").await;
    let refused = rebuild(&world, &feed, &[]).await.expect_err("not declared").to_string();
    assert!(refused.contains("the views file does not declare post_view"), "{refused}");
    assert_eq!(current(&world).await, "1");
    world.sql("delete from post_view").await;
    rebuild(&world, &feed, &[]).await.expect("there is nothing to lose");
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
