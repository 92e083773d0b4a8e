//! Records read a second time, and changes sent a second time: nothing moves backward.

use cdc_consumer::cli::{Cli, Command, OffsetsCommand};
use cdc_consumer::offsets_command;
use clap::Parser;
use serde_json::json;

use crate::harness::consumer::{Consumer, Process, total};
use crate::harness::feed::{Event, Feed};
use crate::harness::source::{Users, user_feed, user_views};
use crate::harness::{SOON, World, wait_until};

/// A topic with a history: rows changed several times, some deleted, some of those made again.
async fn history(world: &World, partitions: i32) -> (Feed, Users, Vec<Event>) {
    let feed = user_feed(world, partitions).await;
    let mut users = Users::default();
    let mut events = users.puts(1..=60);
    events.extend(users.puts(1..=40));
    events.extend((20..=35).map(|id| users.delete(id)));
    events.extend(users.puts(30..=32));
    feed.send(world, &events).await;
    (feed, users, events)
}

/// `cdc-consumer offsets reset` with these arguments; returns what it printed.
pub(crate) async fn offsets_reset(world: &World, arguments: &[&str]) -> anyhow::Result<String> {
    let database =
        format!("--consumer-database-url={}", world.consumer_url(&world.database_address()));
    let brokers = format!("--kafka-brokers={}", world.brokers);
    let group = format!("--consumer-group={}", world.name);
    let first = ["cdc-consumer", "offsets", "reset", &database, &brokers, &group];
    let cli = Cli::try_parse_from(first.iter().chain(arguments))?;
    let Command::Offsets(OffsetsCommand::Reset(settings)) = cli.command else { panic!("a reset") };
    let mut out = Vec::new();
    offsets_command::reset(&settings, &mut out).await?;
    Ok(String::from_utf8(out)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_under_a_running_consumer_moves_no_row_backward() {
    let world = World::new().await;
    let (feed, users, events) = history(&world, 2).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &["--batch-records-max=7"]);
    world.drained(&feed.topic, 2).await;
    // Removed by hand before anybody looks: it comes back with its first state, and goes forward from there.
    world.sql("delete from user_view where user_id = 5").await;
    world.audit().await;

    let shown = offsets_reset(&world, &["--topic", &feed.topic]).await.expect("a dry run");
    assert!(shown.contains("nothing was changed"), "{shown}");
    offsets_reset(&world, &["--topic", &feed.topic, "--execute"]).await.expect("a reset");

    // The consumer is fenced off, comes back at the beginning, and heals the row removed by hand.
    world.shows("user_view", &users.as_view()).await;
    world.drained(&feed.topic, 2).await;
    let outcome = consumer.stop().await;
    assert_eq!(total(&outcome), 2 * events.len() as u64, "{outcome:?}");
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
    world.never_went_back().await;
    let resurrected = "select count(*) from audit where op = 'INSERT' and user_id <> 5";
    assert_eq!(world.text(resurrected).await, "0", "a deleted row came back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafkas_own_reset_of_a_stopped_group_is_honoured_once() {
    let world = World::new().await;
    let (feed, users, events) = history(&world, 2).await;
    let views = user_views(&feed.topic);
    let consumer = Consumer::start(&world, &views, &[]);
    world.drained(&feed.topic, 2).await;
    let first = consumer.stop().await;
    assert_eq!(total(&first), events.len() as u64, "{first:?}");

    world.audit().await;
    world.sql("delete from user_view where user_id between 1 and 10").await;
    world.reset_group(&feed.topic, 2, 0).await;
    let consumer = Consumer::start(&world, &views, &[]);
    world.shows("user_view", &users.as_view()).await;
    world.drained(&feed.topic, 2).await;
    let second = consumer.stop().await;
    assert_eq!(total(&second), events.len() as u64, "{second:?}");
    world.counts_are_right().await;
    world.never_went_back().await;

    // Our own commits carry a mark, so the next start continues where the database stands.
    let consumer = Consumer::start(&world, &views, &[]);
    consumer.joined().await;
    feed.send(&world, &[Event::new("m", 9_000, json!({"id": 1}))]).await;
    world.drained(&feed.topic, 2).await;
    let third = consumer.stop().await;
    assert_eq!((total(&third), third.ignored), (1, 1), "{third:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_with_our_mark_is_no_order() {
    let world = World::new().await;
    let (feed, mut users, _) = history(&world, 1).await;
    let views = user_views(&feed.topic);
    let consumer = Consumer::start(&world, &views, &[]);
    world.drained(&feed.topic, 1).await;
    consumer.stop().await;
    // What a consumer leaves that dies before it tells the broker of its last batches.
    world.commit_group(&feed.topic, 1, 3, "cdc-consumer").await;
    let consumer = Consumer::start(&world, &views, &[]);
    consumer.joined().await;
    feed.send(&world, &[users.put(2)]).await;
    world.shows("user_view", &users.as_view()).await;
    world.drained(&feed.topic, 1).await;
    let outcome = consumer.stop().await;
    assert_eq!(total(&outcome), 1, "the database knows better: {outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_outside_the_log_is_refused() {
    let world = World::new().await;
    let (feed, _, events) = history(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    world.drained(&feed.topic, 1).await;
    let too_far = (events.len() + 1).to_string();
    let refused =
        offsets_reset(&world, &["--topic", &feed.topic, "--to", &too_far, "--execute"]).await;
    let refused = refused.expect_err("outside").to_string();
    assert!(refused.contains("is outside"), "{refused}");
    let refused = offsets_reset(&world, &["--topic", "no-such-topic"]).await;
    let refused = refused.expect_err("unknown").to_string();
    assert!(refused.contains(&feed.topic), "names what is stored: {refused}");
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_outside_the_log_of_one_partition_moves_none() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let mut users = Users::default();
    let events = users.puts(1..=10);
    let long = events.iter().map(|event| feed.message(event).to(0)).collect();
    world.send(&feed.topic, long).await;
    world.send(&feed.topic, vec![feed.message(&users.put(11)).to(1)]).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    world.drained(&feed.topic, 2).await;
    let reset = offsets_reset(&world, &["--topic", &feed.topic, "--to", "5", "--execute"]).await;
    let refused = reset.expect_err("outside").to_string();
    assert!(refused.contains("offset 5 is outside"), "{refused}");
    let moved = "select count(*) from cdc_offset where owner = 'reset by hand' or next_offset = 5";
    assert_eq!(world.text(moved).await, "0");
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_takes_the_place_of_an_earlier_one_with_kafkas_tools() {
    let world = World::new().await;
    let (feed, _, events) = history(&world, 1).await;
    let views = user_views(&feed.topic);
    let consumer = Consumer::start(&world, &views, &[]);
    world.drained(&feed.topic, 1).await;
    consumer.stop().await;
    world.reset_group(&feed.topic, 1, 0).await;
    let last_four = (events.len() - 4).to_string();
    let arguments = ["--topic", &feed.topic, "--to", &last_four, "--execute"];
    offsets_reset(&world, &arguments).await.expect("a reset");
    let consumer = Consumer::start(&world, &views, &[]);
    consumer.counted(4).await;
    world.drained(&feed.topic, 1).await;
    assert_eq!(total(&consumer.stop().await), 4);
}

/// Whoever starts in between must not follow the earlier one behind the later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_with_kafkas_tools_is_taken_back_before_another_moves_anything() {
    let world = World::new().await;
    let feed = left_at_the_end(&world).await;
    world.reset_group(&feed.topic, 1, 0).await;
    let mut db = world.holding("select from cdc_offset for update").await;
    let taken_back = async {
        wait_until("our mark", SOON, || async {
            let (offset, mark) = world.committed(&feed.topic, 0).await;
            if mark.is_empty() { Err(format!("{offset:?}")) } else { Ok(()) }
        })
        .await;
        sqlx::raw_sql("rollback").execute(&mut db).await.expect("it can go on");
    };
    let arguments = ["--topic", &feed.topic, "--to", "7", "--execute"];
    let (moved, ()) = tokio::join!(offsets_reset(&world, &arguments), taken_back);
    moved.expect("a reset");
    assert_eq!(world.next_offset(&feed.topic, 0).await, "7");
}

/// What a reset of a stopped consumer's offsets says when other views are published before it has them.
async fn reset_behind_a_swap(world: &World, topic: &str) -> String {
    let before = world.next_offset(topic, 0).await;
    let mut swap = world.holding("select from cdc_offset for update").await;
    let swapped = async {
        world.session_shows("wait_event_type = 'Lock'").await;
        let publish = "update public.cdc_generation set current = 2; commit";
        sqlx::raw_sql(publish).execute(&mut swap).await.expect("another generation");
    };
    let arguments = ["--topic", topic, "--execute"];
    let (moved, ()) = tokio::join!(offsets_reset(world, &arguments), swapped);
    assert_eq!(world.next_offset(topic, 0).await, before);
    format!("{:#}", moved.expect_err("nobody sees these views"))
}

/// A topic of one partition, all of which a consumer has read that is gone.
async fn left_at_the_end(world: &World) -> Feed {
    let (feed, _, events) = history(world, 1).await;
    let consumer = Consumer::start(world, &user_views(&feed.topic), &[]);
    world.drained(&feed.topic, 1).await;
    consumer.stop().await;
    assert_eq!(world.next_offset(&feed.topic, 0).await, events.len().to_string());
    feed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_of_views_that_a_rebuild_replaces_meanwhile_moves_nothing() {
    let world = World::new().await;
    let feed = left_at_the_end(&world).await;
    let refused = reset_behind_a_swap(&world, &feed.topic).await;
    assert!(refused.contains("readers see generation 2 by now"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_that_moves_nothing_says_that_it_took_an_earlier_one_back() {
    let world = World::new().await;
    let feed = left_at_the_end(&world).await;
    world.reset_group(&feed.topic, 1, 0).await;
    let refused = reset_behind_a_swap(&world, &feed.topic).await;
    let says = "nothing was moved, but the earlier reset with Kafka's tools was taken back";
    assert!(refused.contains(says), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jump_over_records_that_nobody_read_has_to_be_asked_for_and_is_said() {
    let world = World::new().await;
    let (feed, mut users, events) = history(&world, 1).await;
    let views = user_views(&feed.topic);
    let consumer = Consumer::start(&world, &views, &[]);
    world.drained(&feed.topic, 1).await;
    consumer.stop().await;
    feed.send(&world, &users.puts(1..=5)).await;
    let (seen, end) = (events.len(), events.len() + 5);

    let latest = ["--topic", &feed.topic, "--to", "latest", "--execute"];
    let refused = offsets_reset(&world, &latest).await.expect_err("a jump").to_string();
    assert!(refused.contains(&format!("records from {seen} to {end}")), "{refused}");
    assert_eq!(world.next_offset(&feed.topic, 0).await, seen.to_string());
    offsets_reset(&world, &[&latest[..], &["--skip"]].concat()).await.expect("a jump");
    assert_eq!(world.next_offset(&feed.topic, 0).await, end.to_string());
    // Back to what nobody read is no jump.
    let back = ["--topic", &feed.topic, "--to", &seen.to_string(), "--execute"];
    offsets_reset(&world, &back).await.expect("a reset");

    let end = i64::try_from(end).expect("few");
    world.reset_group(&feed.topic, 1, end).await;
    let process = Process::start(&world, &views, 1, &[]);
    process.says("records from there on are jumped over").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_mends_one_with_kafkas_tools_to_records_that_are_gone() {
    let world = World::new().await;
    let (feed, _, events) = history(&world, 1).await;
    let views = user_views(&feed.topic);
    let consumer = Consumer::start(&world, &views, &[]);
    world.drained(&feed.topic, 1).await;
    consumer.stop().await;
    world.reset_group(&feed.topic, 1, 3).await;
    world.delete_records(&feed.topic, 0, 5).await;
    let error = Consumer::start(&world, &views, &[]).failure().await;
    assert!(error.contains("the next record to apply is 3"), "{error}");

    // What the message tells an operator to do.
    offsets_reset(&world, &["--topic", &feed.topic, "--execute"]).await.expect("a reset");
    let consumer = Consumer::start(&world, &views, &[]);
    let left = events.len() as u64 - 5;
    consumer.counted(left).await;
    world.drained(&feed.topic, 1).await;
    assert_eq!(total(&consumer.stop().await), left);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_changes_sent_again_under_new_offsets_are_stale() {
    let world = World::new().await;
    let (feed, users, events) = history(&world, 2).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &["--batch-records-max=11"]);
    world.drained(&feed.topic, 2).await;
    world.audit().await;

    // What a connector does after a crash: a stretch of the past once more, in the same order.
    feed.send(&world, &events[30..]).await;
    world.drained(&feed.topic, 2).await;
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
    world.never_went_back().await;
    let outcome = consumer.stop().await;
    assert_eq!(total(&outcome) + 30, 2 * events.len() as u64, "{outcome:?}");
    assert!(outcome.stale > 0, "{outcome:?}");
    assert_eq!(outcome.quarantined, 0, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_view_database_catches_up_by_itself() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let mut users = Users::default();
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    feed.send(&world, &users.puts(1..=30)).await;
    world.drained(&feed.topic, 2).await;
    let tables = ["user_view", "user_view_deleted", "cdc_offset", "department_stats_slot"];
    for table in tables {
        world.sql(&format!("create table backup_{table} as table {table}")).await;
    }
    feed.send(&world, &users.puts(10..=40)).await;
    feed.send(&world, &[users.delete(1), users.delete(15)]).await;
    world.drained(&feed.topic, 2).await;

    // Rows and offsets go back together, under the running consumer. Its epoch goes back to the same
    // number: the next offset alone has to show it that the database is another one.
    let restore = tables.map(|table| {
        format!("delete from {table}; insert into {table} select * from backup_{table};")
    });
    world
        .sql(&format!(
            "begin; set local session_replication_role = replica; {} commit",
            restore.join(" ")
        ))
        .await;
    feed.send(&world, &users.puts(41..=45)).await;
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_sticks_when_the_consumer_dies_right_after_it() {
    let world = World::new().await;
    let (feed, users, _) = history(&world, 1).await;
    let views = user_views(&feed.topic);
    let consumer = Consumer::start(&world, &views, &[]);
    world.drained(&feed.topic, 1).await;
    consumer.stop().await;
    world.reset_group(&feed.topic, 1, 0).await;
    world.sql("delete from user_view").await;
    // A lock on a row keeps the first batch of the replay from committing; then the process dies.
    let db = world.holding("lock table user_view_deleted in access exclusive mode").await;
    let process = Process::start(&world, &views, 1, &[]);
    wait_until("the reset to be taken over", SOON, || async {
        match world.next_offset(&feed.topic, 0).await.as_str() {
            "0" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    process.kill();
    drop(db);
    let consumer = Consumer::start(&world, &views, &[]);
    world.shows("user_view", &users.as_view()).await;
    world.drained(&feed.topic, 1).await;
    world.counts_are_right().await;
    consumer.stop().await;
}

/// The audit must not be blind: of a deleted row it knows the delete's position, not only the row's own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_came_back_with_a_change_before_its_delete_would_be_noticed() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    world.audit().await;
    let created = users.put(1);
    let lsn = created.lsn;
    feed.send(&world, &[created]).await;
    world.drained(&feed.topic, 1).await;
    feed.send(&world, &[users.delete(1)]).await;
    world.drained(&feed.topic, 1).await;
    consumer.stop().await;
    world.never_went_back().await;
    // What an insert without a look at the deleted keys would do.
    world.sql(&format!("insert into user_view (user_id, source_lsn) values (1, {lsn})")).await;
    assert_ne!(world.went_back().await, Vec::<String>::new());
}
