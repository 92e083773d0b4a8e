//! Each condition of the fence by itself: the others hold, and the batch is held back all the same.

use std::collections::BTreeMap;

use cdc_consumer::batch::Claim;
use cdc_consumer::catalog::Table;
use cdc_consumer::fence::{self, Answer, Wanted};
use cdc_consumer::offsets::{Interval, Lineage, Partition, Progress};
use sqlx::{Connection, PgConnection};

use crate::harness::World;
use crate::harness::consumer::Consumer;
use crate::harness::source::{Users, user_feed, user_views};

const GENERATION: i32 = 1;

fn partition(number: i32) -> Partition {
    Partition { topic: "things".to_owned(), number }
}

/// Takes a partition over, as a consumer does when the group assigns it.
async fn acquire(db: &mut PgConnection, number: i32) -> Progress {
    let wanted = Wanted { partition: partition(number), log_start: 0, requested: None };
    fence::acquire(db, &wanted, "a test").await.expect("acquired")
}

/// A batch's part in a partition: ten records from its next offset on.
fn claim(number: i32, progress: &Progress) -> Claim {
    let first = progress.next_offset;
    Claim {
        partition: partition(number),
        interval: Interval { first, next: first + 10 },
        epoch: progress.epoch,
        seen_offset: first + 10,
        lineage: progress.lineage.clone(),
        anchor: None,
    }
}

/// Lets a batch try the fence in its own transaction; commits what passed.
async fn pass(db: &mut PgConnection, claims: &[Claim], generation: i32) -> bool {
    let mut tx = db.begin().await.expect("a transaction");
    let answer = fence::pass(&mut tx, claims, generation, -1).await.expect("the fence answers");
    let passed = matches!(answer, Answer::Passed { .. });
    let ended = if passed { tx.commit().await } else { tx.rollback().await };
    ended.expect("the transaction ends");
    passed
}

async fn stored(world: &World) -> String {
    world.text("select string_agg(next_offset::text, ' ' order by partition) from cdc_offset").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_an_earlier_epoch_is_held_back_though_no_offset_moved() {
    let world = World::new().await;
    let mut db = world.db().await;
    let earlier = acquire(&mut db, 0).await;
    let ours = acquire(&mut db, 0).await;
    assert_eq!(ours.next_offset, earlier.next_offset);
    assert!(!pass(&mut db, &[claim(0, &earlier)], GENERATION).await, "a former owner committed");
    assert_eq!(stored(&world).await, "0");
    assert!(pass(&mut db, &[claim(0, &ours)], GENERATION).await, "the owner was held back");
    assert_eq!(stored(&world).await, "10");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_is_taken_over_is_as_old_as_before() {
    let world = World::new().await;
    let mut db = world.db().await;
    acquire(&mut db, 0).await;
    world.sql("update cdc_offset set updated_at = now() - interval '8 days'").await;
    let ours = acquire(&mut db, 0).await;
    let old = "select updated_at < now() - interval '7 days' from cdc_offset";
    assert_eq!(world.text(old).await, "true");
    assert!(pass(&mut db, &[claim(0, &ours)], GENERATION).await);
    assert_eq!(world.text(old).await, "false", "now it has moved");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_begins_elsewhere_than_the_stored_offset_is_held_back() {
    let world = World::new().await;
    let mut db = world.db().await;
    let mut ours = acquire(&mut db, 0).await;
    assert!(pass(&mut db, &[claim(0, &ours)], GENERATION).await);
    // Once more the same records, then records behind a gap; both under the right epoch.
    for elsewhere in [0, 20] {
        ours.next_offset = elsewhere;
        assert!(!pass(&mut db, &[claim(0, &ours)], GENERATION).await, "from {elsewhere}");
        assert_eq!(stored(&world).await, "10");
    }
    ours.next_offset = 10;
    assert!(pass(&mut db, &[claim(0, &ours)], GENERATION).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_for_a_generation_that_is_no_longer_current_is_held_back() {
    let world = World::new().await;
    let mut db = world.db().await;
    let ours = acquire(&mut db, 0).await;
    world.sql("update public.cdc_generation set current = 2").await;
    assert!(!pass(&mut db, &[claim(0, &ours)], GENERATION).await);
    assert_eq!(stored(&world).await, "0");
    world.sql("update public.cdc_generation set current = 1").await;
    assert!(pass(&mut db, &[claim(0, &ours)], GENERATION).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_passes_with_all_of_its_partitions_or_not_at_all() {
    let world = World::new().await;
    let mut db = world.db().await;
    let (first, second) = (acquire(&mut db, 0).await, acquire(&mut db, 1).await);
    let claims = [claim(0, &first), claim(1, &second)];
    acquire(&mut db, 1).await; // another owner takes one of the two
    assert!(!pass(&mut db, &claims, GENERATION).await);
    assert_eq!(stored(&world).await, "0 0", "the partition that is still ours did not move either");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_settled_only_by_its_own_offsets_and_epoch() {
    let world = World::new().await;
    let mut db = world.db().await;
    let ours = acquire(&mut db, 0).await;
    let batch = [claim(0, &ours)];
    let settled =
        async |db: &mut PgConnection| fence::settled(db, &batch).await.expect("the offsets answer");
    assert!(!settled(&mut db).await, "it was never sent");
    assert!(pass(&mut db, &batch, GENERATION).await);
    assert!(settled(&mut db).await, "it took effect");
    // Another owner brought the partition to the same offset: with batches of his own.
    acquire(&mut db, 0).await;
    assert!(!settled(&mut db).await, "it may have been another's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_ours_only_in_the_epoch_and_generation_we_took_them_in() {
    let world = World::new().await;
    let mut db = world.db().await;
    let (first, second) = (acquire(&mut db, 0).await, acquire(&mut db, 1).await);
    let partitions = [partition(0), partition(1)];
    let owned = [(&partitions[0], first.epoch), (&partitions[1], second.epoch)];
    let ours = async |db: &mut PgConnection| {
        fence::still_ours(db, &owned, GENERATION).await.expect("the offsets answer")
    };
    assert!(ours(&mut db).await);
    world.sql("update public.cdc_generation set current = 2").await;
    assert!(!ours(&mut db).await, "another generation is current");
    world.sql("update public.cdc_generation set current = 1").await;
    assert!(ours(&mut db).await);
    acquire(&mut db, 1).await;
    assert!(!ours(&mut db).await, "one of two was taken over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_added_to_a_known_topic_begins_in_the_newest_life_of_the_source() {
    let world = World::new().await;
    let mut db = world.db().await;
    let mut known = acquire(&mut db, 0).await;
    known.lineage =
        Lineage { starts: BTreeMap::from([(4, 1), (7, 2)]), lsn_max: 80, ..Lineage::default() };
    assert!(pass(&mut db, &[claim(0, &known)], GENERATION).await);
    // A row that moved there is newer than it was, in whatever epoch that has been.
    assert_eq!(acquire(&mut db, 1).await.lineage.newest(), 2);
    assert_eq!(acquire(&mut db, 0).await.lineage.newest(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_shows_another_topic_where_changes_are_known_and_nothing_is_stored_of_this_one() {
    let world = World::new().await;
    let mut db = world.db().await;
    let table = Table::read(&mut db, "views_1", "user_view").await.expect("a view");
    for (done, expected) in [
        ("insert into user_view (user_id) values (1)", false), // as a migration does
        ("update user_view set source_lsn = 8", true),
        ("truncate user_view", false),
        (
            "insert into user_view_deleted (user_id, source_epoch, source_lsn) values (1, 0, 8)",
            true,
        ),
        ("truncate user_view_deleted", false),
        ("insert into cdc_floor values ('user_view', 0, 8)", true),
        ("insert into cdc_offset (topic, partition, next_offset) values ('other', 0, 0)", true),
        ("insert into cdc_offset (topic, partition, next_offset) values ('things', 1, 0)", false),
    ] {
        world.sql(done).await;
        let another = fence::shows_another_topic(&mut db, "things", &table).await;
        assert_eq!(another.expect("an answer"), expected, "{done}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_count_in_rows_of_their_own() {
    let world = World::new().await;
    let feed = user_feed(&world, 4).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &["--writers=2"]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=100)).await;
    world.drained(&feed.topic, 4).await;
    world.counts_are_right().await;
    // Writer 0 has the even partitions, writer 1 the odd ones; a slot is a partition's number.
    let slots =
        "select string_agg(distinct (case when slot < 0 then 'none' else (slot % 2)::text end),
        ' ') from department_stats_slot";
    assert_eq!(world.text(slots).await, "0 1");
    consumer.stop().await;
}
