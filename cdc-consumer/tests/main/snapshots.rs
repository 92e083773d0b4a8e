//! Snapshots of the whole table, taken again: what they do not mention, and what they overlap.

use crate::harness::consumer::Consumer;
use crate::harness::feed::{Event, Feed};
use crate::harness::source::{Users, user_feed, user_views};
use crate::harness::{SOON, World, wait_until};
use crate::replay::offsets_reset;

/// Reads of a snapshot with the mark of its last row.
pub(crate) fn snapshot(users: &mut Users) -> Vec<Event> {
    let mut events = users.snapshot();
    events.last_mut().expect("a row").snapshot = "last";
    events
}

/// The same with a name that a constraint of the tests refuses.
pub(crate) fn too_long(event: Event) -> Event {
    let mut row = event.row;
    row["name"] = "x".repeat(60).into();
    Event { row, ..event }
}

/// Waits until the newest snapshot was swept; returns how many rows went.
pub(crate) async fn swept(world: &World) -> String {
    wait_until("the sweep", SOON, || async {
        let left = world.text("select count(*) from cdc_snapshot where swept_at is not null").await;
        if left == "1" { Ok(()) } else { Err("not swept".to_owned()) }
    })
    .await;
    world.text("select swept_rows from cdc_snapshot").await
}

/// Reads everything again: no row goes back, and the view is what it was.
async fn replay_ends_in(world: &World, feed: &Feed, users: &Users) {
    offsets_reset(world, &["--topic", &feed.topic, "--execute"]).await.expect("a reset");
    world.drained(&feed.topic, 1).await;
    world.shows("user_view", &users.as_view()).await;
    world.never_went_back().await;
    world.counts_are_right().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_a_new_snapshot_does_not_mention_are_swept_and_stay_away() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=40)).await;
    world.drained(&feed.topic, 2).await;

    // The slot was lost: nobody hears of these deletes.
    for id in [3, 4, 17, 40] {
        users.delete(id);
    }
    let mut events = snapshot(&mut users);
    events.extend(users.puts(38..=45));
    feed.send(&world, &events).await;
    assert_eq!(swept(&world).await, "3", "40 was inserted again");
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;

    // A replay of everything does not bring them back, not for a moment, whatever is pruned.
    world.audit().await;
    world.sql("delete from user_view_deleted where deleted_at < now() + interval '1 day'").await;
    offsets_reset(&world, &["--topic", &feed.topic, "--execute"]).await.expect("a reset");
    world.drained(&feed.topic, 2).await;
    world.shows("user_view", &users.as_view()).await;
    world.never_went_back().await;
    let returned = "select count(*) from audit where op = 'INSERT' and user_id in (3, 4, 17)";
    assert_eq!(world.text(returned).await, "0", "a row came back for a moment");
    assert_eq!(swept(&world).await, "0", "swept again, with nothing left to do");

    // A key that was swept may come again.
    feed.send(&world, &users.puts([3, 17])).await;
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_committed_after_a_snapshot_that_missed_them_are_kept() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=10)).await;
    world.drained(&feed.topic, 1).await;

    // A transaction writes, the snapshot is taken, the transaction commits.
    let mut committed_later = users.clone();
    let late = [committed_later.put(5), committed_later.put(11), committed_later.delete(7)];
    users.lsn = committed_later.lsn;
    let mut events = snapshot(&mut users);
    events.extend(late);
    feed.send(&world, &events).await;
    assert_eq!(swept(&world).await, "0");
    world.drained(&feed.topic, 1).await;
    world.shows("user_view", &committed_later.as_view()).await;

    world.audit().await;
    replay_ends_in(&world, &feed, &committed_later).await;
    consumer.stop().await;
}

/// The rows of an incremental snapshot come between changes. A transaction that was open when they were read
/// is sent behind them, with lower LSNs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_committed_after_a_chunk_that_missed_them_are_kept() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    let first = users.puts(1..=10);
    feed.send(&world, &first).await;
    world.drained(&feed.topic, 1).await;

    let mut committed_later = users.clone();
    let late = [committed_later.put(5), committed_later.put(11), committed_later.delete(7)];
    users.lsn = committed_later.lsn + 8;
    let chunk: Vec<_> = (4..=8).filter_map(|id| users.read(id)).collect();
    feed.send(&world, &chunk).await;
    world.drained(&feed.topic, 1).await;
    // Between the chunk and the commit the partition changes hands.
    let outcome = consumer.stop().await;
    assert_eq!(outcome.stale, 0, "{outcome:?}");
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let last_commit = users.lsn + 8;
    let late: Vec<_> = late.into_iter().map(|event| Event { last_commit, ..event }).collect();
    feed.send(&world, &late).await;
    world.drained(&feed.topic, 1).await;
    world.shows("user_view", &committed_later.as_view()).await;

    // What the connector sends again after a crash is older than the chunk, and stays so.
    world.audit().await;
    feed.send(&world, &first).await;
    world.drained(&feed.topic, 1).await;
    world.shows("user_view", &committed_later.as_view()).await;
    // A replay finds each change in its place again.
    replay_ends_in(&world, &feed, &committed_later).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_outside_a_partial_snapshot_are_kept_where_the_declaration_says_so() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let views = format!("{}unmentioned = 'keep'\n", user_views(&feed.topic));
    let consumer = Consumer::start(&world, &views, &[]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=10)).await;
    let mut events = snapshot(&mut users);
    events.truncate(4);
    events.last_mut().expect("a row").snapshot = "last";
    feed.send(&world, &events).await;
    world.drained(&feed.topic, 1).await;
    assert_eq!(world.text("select count(*) from cdc_snapshot").await, "0", "nothing is planned");
    world.shows("user_view", &users.as_view()).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_without_a_row_of_a_snapshot_are_swept_as_well() {
    let world = World::new().await;
    let feed = user_feed(&world, 4).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    let to = |partition: i32, event: &Event| feed.message(event).to(partition);
    let first: Vec<_> = users.puts(1..=8);
    let first = (0..).zip(&first).map(|(n, event)| to(n % 4, event)).collect();
    world.send(&feed.topic, first).await;
    world.drained(&feed.topic, 4).await;

    // All but users 1 and 5 of partition 0 are deleted unheard; a transaction that wrote before the
    // snapshot commits after it, in partitions the snapshot has no row for.
    for id in [2, 3, 4, 6, 7, 8] {
        users.delete(id);
    }
    let mut after = users.clone();
    let (late, again) = (after.put(9), after.put(3));
    users.lsn = after.lsn;
    let rows: Vec<_> = snapshot(&mut users).iter().map(|event| to(0, event)).collect();
    world.send(&feed.topic, rows).await;
    world.send(&feed.topic, vec![to(1, &late), to(2, &again)]).await;
    swept(&world).await;
    world.shows("user_view", &after.as_view()).await;

    // Told once is told for good: a replay finds every change in its place again.
    world.audit().await;
    offsets_reset(&world, &["--topic", &feed.topic, "--execute"]).await.expect("a reset");
    world.drained(&feed.topic, 4).await;
    swept(&world).await;
    world.shows("user_view", &after.as_view()).await;
    world.never_went_back().await;
    world.counts_are_right().await;
    consumer.stop().await;
}

/// The second snapshot has the place in their logs that the first had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_got_nothing_between_two_snapshots_are_swept_after_each() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    let to = |partition: i32, event: &Event| feed.message(event).to(partition);
    let first: Vec<_> = users.puts(1..=4);
    let first = first.iter().zip([0, 0, 0, 1]).map(|(event, n)| to(n, event)).collect();
    world.send(&feed.topic, first).await;
    world.drained(&feed.topic, 2).await;
    for deleted_unheard in [4, 3, 2] {
        users.delete(deleted_unheard);
        let rows: Vec<_> = snapshot(&mut users).iter().map(|event| to(0, event)).collect();
        world.send(&feed.topic, rows).await;
        world.shows("user_view", &users.as_view()).await;
    }
    world.counts_are_right().await;
    consumer.stop().await;
}

/// The row of the snapshot that mentions it waits behind the letter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_with_a_dead_letter_is_not_swept() {
    let world = World::new().await;
    world.sql("alter table user_view add check (length(name) < 50)").await;
    let feed = user_feed(&world, 2).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=6)).await;
    world.drained(&feed.topic, 2).await;
    let good = users.as_view();
    feed.send(&world, &[too_long(users.put(3))]).await;
    world.drained(&feed.topic, 2).await;
    users.delete(5); // unheard
    feed.send(&world, &snapshot(&mut users)).await;
    assert_eq!(swept(&world).await, "1");
    let left: Vec<_> = good.into_iter().filter(|row| row["user_id"] != 5).collect();
    world.shows("user_view", &left).await;
    assert_eq!(world.text("select count(*) from cdc_dead_letter").await, "2");
    consumer.stop().await;
}
