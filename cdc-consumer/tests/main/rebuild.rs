//! Views built anew beside those that are read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use cdc_consumer::cli::Command;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::harness::consumer::{Consumer, command};
use crate::harness::feed::{Event, Feed};
use crate::harness::source::{Users, user_feed, user_views};
use crate::harness::{SOON, World, wait_until};
use crate::snapshots::{snapshot, swept};

/// `cdc-consumer rebuild` with these arguments; returns what it printed.
pub(crate) async fn rebuild(
    world: &World,
    feed: &Feed,
    arguments: &[&str],
) -> anyhow::Result<String> {
    let views = user_views(&feed.topic);
    rebuild_until(world, &views, arguments, &CancellationToken::new()).await
}

pub(crate) async fn rebuild_until(
    world: &World,
    views: &str,
    arguments: &[&str],
    shutdown: &CancellationToken,
) -> anyhow::Result<String> {
    let admin = format!("--admin-database-url={}", world.admin_url());
    let arguments = [&["rebuild", &admin], arguments].concat();
    command(world, views, &arguments, async |command| {
        let Command::Rebuild(settings) = command else { panic!("a rebuild") };
        let mut out = Vec::new();
        cdc_consumer::rebuild::rebuild(&settings, shutdown, &mut out).await?;
        Ok(String::from_utf8(out)?)
    })
    .await
}

pub(crate) async fn current(world: &World) -> String {
    world.text("select current from public.cdc_generation").await
}

pub(crate) async fn in_generation(consumer: &Consumer, generation: i32) {
    wait_until("the consumer to be in the generation", SOON, || async {
        let status = consumer.board.status();
        if status.generation == Some(generation) { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
}

/// Waits until a session has to wait for a lock of this table or view.
async fn somebody_waits_for(world: &World, relation: &str) {
    let sql = format!(
        "select count(*) from pg_locks where not granted and relation = '{relation}'::regclass"
    );
    wait_until("a session that waits", SOON, || async {
        if world.text(&sql).await == "0" { Err("there is none".to_owned()) } else { Ok(()) }
    })
    .await;
}

/// Makes the generation that a rebuild goes on with, and lets nobody own a partition there until the transaction
/// ends.
async fn hold_second_generation(world: &World) -> PgConnection {
    let generation = migrate::Generation::new(2).expect("a number");
    migrate::views(&world.admin_url(), generation).await.expect("a second generation");
    world.holding("lock table views_2.cdc_offset in exclusive mode").await
}

/// What a reader sees: the version of each user.
async fn versions(db: &mut PgConnection) -> BTreeMap<i64, i64> {
    let read = sqlx::query_as("select user_id, version from public.user_view").fetch_all(db);
    let rows: Vec<(i64, i64)> = read.await.expect("views are readable throughout");
    rows.into_iter().collect()
}

/// Reads until told to stop: no row may vanish, none may become older. Returns how often it looked.
async fn read(world: &World, done: &AtomicBool) -> usize {
    let mut db = world.db().await;
    let mut before = versions(&mut db).await;
    let mut looks = 0;
    while !done.load(Ordering::Acquire) {
        let now = versions(&mut db).await;
        for (user, version) in before {
            let seen = now.get(&user).copied();
            assert!(seen >= Some(version), "user {user} went from version {version} to {seen:?}");
        }
        (before, looks) = (now, looks + 1);
    }
    looks
}

/// Changes the same rows again and again until told to stop.
async fn write(world: &World, feed: &Feed, users: &mut Users, done: &AtomicBool) {
    while !done.load(Ordering::Acquire) {
        feed.send(world, &users.puts(1..=40)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_are_rebuilt_while_they_are_read_and_written() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let mut users = Users::default();
    for _ in 0..10 {
        feed.send(&world, &users.puts(1..=300)).await;
    }
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    world.drained(&feed.topic, 2).await;
    world.sql("update user_view set name = 'damaged' where user_id = 200").await;

    let done = AtomicBool::new(false);
    let rebuilding = async {
        let said = rebuild(&world, &feed, &[]).await;
        done.store(true, Ordering::Release);
        said
    };
    let (said, looks, ()) =
        tokio::join!(rebuilding, read(&world, &done), write(&world, &feed, &mut users, &done));
    let said = said.expect("a rebuild");
    assert!(said.contains("readers see generation 2 now"), "{said}");
    assert!(looks > 0);
    assert_eq!(current(&world).await, "2");

    // The consumer that ran all the while goes on there, and what was damaged is right.
    feed.send(&world, &[users.put(1), users.delete(2)]).await;
    world.shows("views_2.user_view", &users.as_view()).await;
    assert_eq!(consumer.board.status().generation, Some(2), "{}", consumer.state());
    let wrong = "select count(*)
        from views_2.department_stats s full join views_2.department_stats_definition d using (department)
        where (s.user_count, s.active_count) is distinct from (d.user_count, d.active_count)";
    assert_eq!(world.text(wrong).await, "0");

    // And back: brought up to date first, so readers see no row of the time between vanish.
    let said = rebuild(&world, &feed, &["--generation=1"]).await.expect("the way back");
    assert!(said.contains("readers see generation 1 now, before it was 2"), "{said}");
    assert_eq!(world.text("select count(*) from public.user_view where user_id = 2").await, "0");
    feed.send(&world, &[users.put(3), users.put(200)]).await;
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_without_a_consumer_are_rebuilt_to_the_end_of_the_log() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=2_000)).await;
    feed.send(&world, &[users.delete(5)]).await;
    rebuild(&world, &feed, &["--batch-records-max=100"]).await.expect("a rebuild");
    assert_eq!(world.difference("public.user_view", &users.as_view()).await, Ok(()));
}

/// The topic keeps their last state for ever, and compaction takes the record that ended the snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_an_earlier_snapshot_swept_do_not_come_back_with_a_rebuild() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=6)).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    world.drained(&feed.topic, 2).await;
    // What a sweep leaves behind: users 3 and 4 were deleted unheard, and 4 came again.
    for id in [3, 4] {
        users.delete(id);
        world
            .sql(&format!(
                "with gone as (delete from user_view where user_id = {id} returning *)
                 insert into user_view_deleted select user_id, source_epoch, source_lsn + 1, 'infinity'
                 from gone"
            ))
            .await;
    }
    feed.send(&world, &[users.put(4)]).await;
    world.drained(&feed.topic, 2).await;
    consumer.stop().await;

    rebuild(&world, &feed, &[]).await.expect("a rebuild");
    let seen = "select string_agg(user_id::text, ',' order by user_id) from public.user_view";
    assert_eq!(world.text(seen).await, "1,2,4,5,6");
    let kept = "select string_agg(user_id::text, ',') from views_2.user_view_deleted
        where deleted_at = 'infinity'";
    assert_eq!(world.text(kept).await, "3");
}

/// The old views lag: they swept it, and do not show yet that it came again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_came_again_at_a_lower_lsn_after_a_restore_survives_a_rebuild() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::after(900);
    feed.send(&world, &users.puts(1..=3)).await;
    world.drained(&feed.topic, 1).await;
    users.lsn = 492;
    users.delete(3); // not in the backup
    feed.send(&world, &snapshot(&mut users)).await;
    assert_eq!(swept(&world).await, "1");
    consumer.stop().await;

    feed.send(&world, &[users.put(3)]).await;
    rebuild(&world, &feed, &[]).await.expect("a rebuild");
    world.shows("views_2.user_view", &users.as_view()).await;
}

/// A migration renamed the key: which of the new rows the old ones were, nobody can tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_whose_key_was_renamed_are_rebuilt_without_what_was_swept_before() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=3)).await;
    for table in ["user_view", "user_view_deleted"] {
        world.sql(&format!("alter table {table} rename user_id to number")).await;
    }
    rebuild(&world, &feed, &[]).await.expect("a rebuild");
    world.shows("views_2.user_view", &users.as_view()).await;
}

/// Compaction left one end: that of the earlier snapshot, in a partition that the later one has no row in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_waits_for_no_snapshot_that_a_later_one_replaced() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let to = |partition: i32, event: &Event| feed.message(event).to(partition);
    let mut users = Users::default();
    users.puts(1..=3);
    let earlier = snapshot(&mut users);
    world.send(&feed.topic, vec![to(0, &earlier[2])]).await;
    users.delete(3);
    let later = users.snapshot();
    world.send(&feed.topic, later.iter().map(|event| to(1, event)).collect()).await;

    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    assert_eq!(swept(&world).await, "0", "the later one sweeps, if it ends");
    consumer.stop().await;
    // What the later one left behind in the old views.
    let end = format!("update cdc_snapshot set source_lsn = {}, swept_at = now()", users.lsn);
    world.sql(&end).await;
    world
        .sql(
            "with gone as (delete from user_view where user_id = 3 returning *)
             insert into user_view_deleted select user_id, source_epoch, source_lsn + 1, 'infinity'
             from gone",
        )
        .await;
    let built = tokio::time::timeout(SOON * 2, rebuild(&world, &feed, &[])).await;
    built.expect("it ends").expect("a rebuild");
    world.shows("views_2.user_view", &users.as_view()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_was_broken_off_goes_on_with_its_generation() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=20)).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    world.drained(&feed.topic, 1).await;
    let stopped = CancellationToken::new();
    stopped.cancel();
    let views = user_views(&feed.topic);
    let refused = rebuild_until(&world, &views, &[], &stopped).await.expect_err("stopped");
    assert!(refused.to_string().contains("goes on with generation 2"), "{refused}");
    assert_eq!(current(&world).await, "1");
    let said = rebuild(&world, &feed, &["--json"]).await.expect("the rest");
    let report: serde_json::Value = serde_json::from_str(&said).expect("a report");
    assert_eq!((&report["generation"], &report["before"]), (&2.into(), &1.into()));
    assert_eq!(report["views"][0]["rows"], 20);
    let refused = rebuild(&world, &feed, &["--generation=2"]).await.expect_err("it is current");
    assert!(refused.to_string().contains("is the one readers see"), "{refused}");
    in_generation(&consumer, 2).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_views_stand_still_until_the_new_ones_show_as_much() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    feed.send(&world, &Users::default().puts(1..=5)).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    world.drained(&feed.topic, 1).await;
    consumer.stop().await;
    let mut db = hold_second_generation(&world).await;
    let stands_still = async {
        somebody_waits_for(&world, "views_2.cdc_offset").await;
        // As if they showed more than the log holds by now.
        world.sql("update cdc_offset set next_offset = next_offset + 1").await;
        sqlx::raw_sql("rollback").execute(&mut db).await.expect("it can go on");
        wait_until("the old offsets to be locked", SOON, || async {
            let mut db = world.db().await;
            let sql = "select from cdc_offset for update nowait";
            match sqlx::raw_sql(sql).execute(&mut db).await {
                Err(error) if error.to_string().contains("could not obtain lock") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    };
    let (built, ()) = tokio::join!(rebuild(&world, &feed, &[]), stands_still);
    let refused = built.expect_err("it cannot catch up").to_string();
    assert!(refused.contains("did not catch up with the old ones"), "{refused}");
    assert_eq!(current(&world).await, "1");
    world.sql("update cdc_offset set next_offset = next_offset - 1").await;
    rebuild(&world, &feed, &[]).await.expect("now it can");
}

/// A deadlock, if the swap waited long enough for PostgreSQL to look for one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_who_comes_to_a_view_that_the_swap_holds_is_not_ended() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=5)).await;
    let mut reader = world.db().await;
    let mut read = async |sql| sqlx::raw_sql(sql).execute(&mut reader).await;
    read("begin; select * from public.user_view").await.expect("a view");
    let goes_on = async {
        somebody_waits_for(&world, "public.user_view").await;
        // The swap took it before the other one.
        let read = read("select * from public.department_stats; commit").await;
        read.expect("views are readable throughout");
    };
    let (built, ()) = tokio::join!(rebuild(&world, &feed, &[]), goes_on);
    built.expect("a rebuild");
    world.shows("public.user_view", &users.as_view()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_whose_views_somebody_else_publishes_ends_and_says_so() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    feed.send(&world, &Users::default().puts(1..=5)).await;
    let mut other = hold_second_generation(&world).await;
    let generation = migrate::Generation::new(2).expect("a number");
    let publish = async {
        somebody_waits_for(&world, "views_2.cdc_offset").await;
        migrate::publish(&world.admin_url(), generation).await.expect("the second generation");
        sqlx::raw_sql("rollback").execute(&mut other).await.expect("it can go on");
    };
    let (built, ()) = tokio::join!(rebuild(&world, &feed, &["--generation=2"]), publish);
    let refused = built.expect_err("it is published already").to_string();
    assert!(refused.contains("readers see generation 2 by now"), "{refused}");
}
