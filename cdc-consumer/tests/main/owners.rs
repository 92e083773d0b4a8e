//! Who owns a partition, and what becomes of those who think they still do.

use serde_json::json;
use sqlx::PgConnection;

use crate::harness::consumer::{Consumer, Process, TAKEOVER, total};
use crate::harness::feed::{Event, Feed};
use crate::harness::proxy::{Mode, Proxy};
use crate::harness::source::{Users, user_feed, user_views};
use crate::harness::{SOON, World, wait_until};
use crate::rebuild::{in_generation, rebuild};

async fn applied_by_another(world: &World, feed: &Feed, users: &Users) {
    let rows = users.as_view();
    let what = "the second consumer to catch up";
    wait_until(what, TAKEOVER, || world.difference("user_view", &rows)).await;
    world.drained(&feed.topic, 2).await;
}

/// A process whose partitions another has taken meanwhile gives up what it was about, and goes on.
async fn wakes_up(zombie: &Process, world: &World, feed: &Feed, users: &mut Users) {
    zombie.thaw();
    zombie.says("cannot go on").await;
    feed.send(world, &users.puts(1..=5)).await;
    world.shows("user_view", &users.as_view()).await;
    world.drained(&feed.topic, 2).await;
    world.counts_are_right().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_stopped_inside_its_transaction_blocks_nobody_for_long() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    let zombie = Process::start(&world, &views, 1, &["--writers=1"]);
    feed.send(&world, &users.puts(1..=20)).await;
    world.drained(&feed.topic, 2).await;

    // Our lock lets the zombie in as far as its rows, then it is frozen with the fence passed.
    let db = world.holding("select from user_view where user_id = 7 for update").await;
    feed.send(&world, &users.puts(1..=20)).await;
    world.session_shows("wait_event_type = 'Lock'").await;
    zombie.freeze().await;
    drop(db);

    world.session_shows("state = 'idle in transaction'").await;
    let consumer = Consumer::start(&world, &views, &[]);
    feed.send(&world, &users.puts(15..=30)).await;
    applied_by_another(&world, &feed, &users).await;

    wakes_up(&zombie, &world, &feed, &mut users).await;
    consumer.stop().await;
}

/// PostgreSQL waits in COPY for as long as the client takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_stopped_inside_copy_blocks_nobody_for_long() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    let proxy = Proxy::to(&world.database_address()).await;
    let url = proxy.database_flag(&world);
    proxy.set(Mode::HoldCopyData);
    feed.send(&world, &users.puts(1..=40)).await;
    let zombie = Process::start(&world, &views, 1, &["--writers=1", "--copy-rows-min=1", &url]);
    let copies = "state = 'active' and wait_event = 'ClientRead' and query like 'copy %'";
    world.session_shows(copies).await;
    zombie.freeze().await;

    let consumer = Consumer::start(&world, &views, &[]);
    feed.send(&world, &users.puts(35..=50)).await;
    applied_by_another(&world, &feed, &users).await;

    proxy.set(Mode::Forward);
    wakes_up(&zombie, &world, &feed, &mut users).await;
    consumer.stop().await;
}

/// Twenty users whose consumer is gone, and who holds the offsets of these partitions instead.
async fn owned_by_another(partitions: &str) -> (World, Feed, Users, PgConnection) {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let mut users = Users::default();
    let first = Consumer::start(&world, &user_views(&feed.topic), &[]);
    feed.send(&world, &users.puts(1..=20)).await;
    world.drained(&feed.topic, 2).await;
    first.stop().await;

    let lock = format!("select from cdc_offset where {partitions} for update");
    let owner = world.holding(&lock).await;
    (world, feed, users, owner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_waits_for_another_owner_ends_when_it_is_told_to() {
    let (world, feed, mut users, owner) = owned_by_another("true").await;
    let views = user_views(&feed.topic);
    let waiting = Consumer::start(&world, &views, &[]);
    world.session_shows("wait_event_type = 'Lock'").await;
    waiting.stop().await;

    drop(owner);
    let next = Consumer::start(&world, &views, &[]);
    feed.send(&world, &users.puts(15..=30)).await;
    applied_by_another(&world, &feed, &users).await;
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_waits_for_another_owner_is_not_ready() {
    let (world, feed, _users, owner) = owned_by_another("partition = 1").await;
    let views = user_views(&feed.topic);
    let waiting = Consumer::start(&world, &views, &[]);
    waiting.complains("ownership: a previous owner still changes rows of").await;
    drop(owner);
    waiting.ready().await;
    waiting.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_batches_are_finished_before_their_partitions_are_given_up() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    let options = ["--writers=1", "--batch-records-max=20"];
    let member = Consumer::start(&world, &views, &options);
    feed.send(&world, &users.puts(1..=20)).await;
    world.drained(&feed.topic, 2).await;

    // Ten seconds for each batch.
    world
        .sql(
            "create function slow() returns trigger language plpgsql as $$ begin
                 if current_setting('test.slowed', true) is distinct from txid_current()::text then
                     perform set_config('test.slowed', txid_current()::text, false);
                     perform pg_sleep(10);
                 end if;
                 return new;
             end $$;
             create trigger slow before update on cdc_offset for each row
                 when (old.next_offset < new.next_offset) execute function slow()",
        )
        .await;
    feed.send(&world, &users.puts(1..=100)).await;
    let other = Consumer::start(&world, &views, &options);
    wait_until("a partition to be given up", SOON * 2, || async {
        let found = other.board.status().partitions.len();
        if found == 1 { Ok(()) } else { Err(format!("{found}")) }
    })
    .await;
    world.sql("drop trigger slow on cdc_offset").await;
    world.shows("user_view", &users.as_view()).await;
    // Whoever could not finish would have begun anew, with a new epoch of what it kept.
    assert_eq!(world.text("select sum(epoch) from cdc_offset").await, "3");
    member.stop().await;
    other.stop().await;
}

/// A process that has applied twenty rows and whose next batch hangs on its way to the database.
async fn with_a_batch_held(world: &World, feed: &Feed, users: &mut Users) -> (Process, Proxy) {
    let proxy = Proxy::to(&world.database_address()).await;
    let url = proxy.database_flag(world);
    let options = ["--writers=1", &url];
    let process = Process::start(world, &user_views(&feed.topic), 1, &options);
    feed.send(world, &users.puts(1..=20)).await;
    world.drained(&feed.topic, 2).await;
    proxy.set(Mode::HoldBegin);
    feed.send(world, &users.puts(1..=20)).await;
    proxy.held().await;
    (process, proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_arrives_after_its_partitions_moved_is_held_back() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    // The batch is on its way, not yet in a transaction, when the process is frozen.
    let (zombie, proxy) = with_a_batch_held(&world, &feed, &mut users).await;
    zombie.freeze().await;
    let consumer = Consumer::start(&world, &views, &[]);
    feed.send(&world, &users.puts(10..=30)).await;
    feed.send(&world, &[users.delete(2)]).await;
    applied_by_another(&world, &feed, &users).await;
    world.audit().await;

    proxy.set(Mode::Forward);
    zombie.thaw();
    zombie.says("the fence held a batch back").await;
    assert_eq!(world.text("select count(*) from audit").await, "0", "the zombie changed rows");
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
    consumer.stop().await;
}

/// Whoever is asked for partitions while a batch hangs ends its session. The rebalance it did not carry
/// out must not keep it from closing and joining anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_cannot_give_its_partitions_up_joins_anew() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    let (member, proxy) = with_a_batch_held(&world, &feed, &mut users).await;
    let other = Consumer::start(&world, &views, &[]);
    member.says("cannot go on").await;
    proxy.set(Mode::Forward);
    other.stop().await;

    feed.send(&world, &users.puts(10..=30)).await;
    applied_by_another(&world, &feed, &users).await;
    world.counts_are_right().await;
}

/// Here its topic does not exist yet; another member may have them all as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_partitions_follows_to_the_generation_that_is_published() {
    let world = World::new().await;
    let member = Consumer::start(&world, &user_views(&format!("{}_none", world.name)), &[]);
    member.complains("waiting for topic").await;
    let next = migrate::Generation::new(2).expect("a number");
    migrate::views(&world.admin_url(), next).await.expect("a second generation");
    migrate::publish(&world.admin_url(), next).await.expect("readers see it");
    in_generation(&member, 2).await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_member_that_comes_back_with_another_view_reads_its_topic_too() {
    let world = World::new().await;
    world.view("create table note (id bigint primary key, text text)", "note").await;
    let fields = json!([{"name": "id", "type": "long"}, {"name": "text", "type": "string"}]);
    let (users, notes) = (user_feed(&world, 1).await, Feed::new(&world, 1, &fields, &["id"]).await);
    let member = "--consumer-instance=only";
    users.send(&world, &Users::default().puts(1..=5)).await;
    let views = user_views(&users.topic);
    let consumer = Consumer::start(&world, &views, &[member]);
    world.drained(&users.topic, 1).await;
    consumer.stop().await;

    let note = json!({"id": 1, "text": "new"});
    notes.send(&world, &[Event::new("c", 8, note.clone())]).await;
    let views = format!("{views}\n[[view]]\ntopic = '{}'\ntable = 'note'\n", notes.topic);
    let consumer = Consumer::start(&world, &views, &[member]);
    world.drained(&notes.topic, 1).await;
    world.shows("note", &[note]).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_without_records_leaves_a_generation_that_is_dropped_at_once() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=5)).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    world.drained(&feed.topic, 1).await;
    rebuild(&world, &feed, &[]).await.expect("a rebuild");
    migrate::drop_generation(&world.admin_url(), migrate::Generation::FIRST).await.expect("unused");
    in_generation(&consumer, 2).await;
    feed.send(&world, &[users.put(1)]).await;
    world.shows("public.user_view", &users.as_view()).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_consumer_is_replaced() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    let mut sent = 0;
    for number in 0..3 {
        let process = Process::start(&world, &views, number, &["--batch-records-max=20"]);
        for _ in 0..5 {
            feed.send(&world, &users.puts(1..=60)).await;
            sent += 60;
        }
        feed.send(&world, &[users.delete(1 + i64::try_from(number).expect("small"))]).await;
        sent += 1;
        let what = format!("process {} to apply something", process.id());
        wait_until(&what, SOON, || async {
            let stored = world.text("select coalesce(sum(next_offset), 0) from cdc_offset").await;
            let enough = stored.parse::<i64>().is_ok_and(|stored| stored * 2 > sent);
            if enough { Ok(()) } else { Err(format!("{stored} of {sent}")) }
        })
        .await;
        process.kill();
    }
    let consumer = Consumer::start(&world, &views, &[]);
    world.shows("user_view", &users.as_view()).await;
    world.drained(&feed.topic, 2).await;
    world.counts_are_right().await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_join_and_leave_under_load_and_no_record_is_lost_or_doubled() {
    let world = World::new().await;
    let feed = user_feed(&world, 4).await;
    let views = user_views(&feed.topic);
    let options = ["--batch-records-max=50"];
    let mut users = Users::default();
    let mut sent = 0;
    let mut counted = 0;
    let mut members = vec![Consumer::start(&world, &views, &options)];
    for round in 0..6 {
        for _ in 0..10 {
            feed.send(&world, &users.puts(1..=80)).await;
            sent += 80;
        }
        for id in 1..=10 {
            feed.send(&world, &[users.delete(round * 10 + id)]).await;
            sent += 1;
        }
        let newcomer = Consumer::start(&world, &views, &options);
        newcomer.joined().await;
        members.push(newcomer);
        if members.len() > 2 {
            counted += total(&members.remove(0).stop().await);
        }
    }
    world.shows("user_view", &users.as_view()).await;
    world.drained(&feed.topic, 4).await;
    for member in members {
        counted += total(&member.stop().await);
    }
    assert_eq!(counted, sent, "records counted against records sent");
    world.counts_are_right().await;
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(world.text(deadlocks).await, "0");
}
