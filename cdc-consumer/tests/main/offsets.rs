//! Offsets that are not what one would think: gone, ahead, with holes.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::dead_letters::dead_letters;
use crate::harness::consumer::{Consumer, Process, total};
use crate::harness::feed::{Event, Feed, Message};
use crate::harness::source::{Users, user_feed, user_fields, user_views};
use crate::harness::{SOON, World, wait_until};
use crate::rebuild::rebuild;
use crate::replay::offsets_reset;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_retention_removed_halt_the_consumer() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    let consumer = Consumer::start(&world, &views, &[]);
    feed.send(&world, &users.puts(1..=10)).await;
    world.drained(&feed.topic, 1).await;
    consumer.stop().await;
    feed.send(&world, &users.puts(5..=20)).await;
    world.delete_records(&feed.topic, 0, 17).await;

    let error = Consumer::start(&world, &views, &[]).failure().await;
    assert!(error.contains("the next record to apply is 10"), "{error}");
    assert!(error.contains("the broker's first is 17: 7 records are gone"), "{error}");
    assert_eq!(world.next_offset(&feed.topic, 0).await, "10", "nothing was skipped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_retention_removes_under_a_frozen_consumer_halt_it() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    let process = Process::start(&world, &user_views(&feed.topic), 1, &[]);
    feed.send(&world, &users.puts(1..=10)).await;
    world.drained(&feed.topic, 1).await;
    process.freeze().await;
    // The fetch that waits at the broker ends without a record: time is its condition.
    tokio::time::sleep(Duration::from_millis(500)).await;
    feed.send(&world, &users.puts(5..=20)).await;
    world.delete_records(&feed.topic, 0, 17).await;
    process.thaw();
    process.says("the broker's first is 17: 7 records are gone").await;
    assert_eq!(world.next_offset(&feed.topic, 0).await, "10", "nothing was skipped");
}

/// Retention takes the record read last while a session, which will begin to read there, waits for another
/// partition.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_whose_next_record_is_left_is_read_on_though_the_one_before_goes() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    let consumer = Consumer::start(&world, &views, &[]);
    let to = |events: Vec<Event>, number| {
        events.iter().map(|event| feed.message(event).to(number)).collect()
    };
    world.send(&feed.topic, to(users.puts(1..=10), 0)).await;
    world.send(&feed.topic, to(users.puts(11..=20), 1)).await;
    world.drained(&feed.topic, 2).await;
    consumer.stop().await;
    world.send(&feed.topic, to(users.puts(1..=5), 0)).await;
    let owner = world.holding("select from cdc_offset where partition = 1 for update").await;
    let consumer = Consumer::start(&world, &views, &[]);
    wait_until("the first partition to be taken over", SOON, || async {
        let epoch = world.text("select epoch from cdc_offset where partition = 0").await;
        if epoch == "2" { Ok(()) } else { Err(epoch) }
    })
    .await;
    world.delete_records(&feed.topic, 0, 10).await;
    drop(owner);
    world.drained(&feed.topic, 2).await;
    world.shows("user_view", &users.as_view()).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_begins_late_is_read_from_its_first_record() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=10)).await;
    world.delete_records(&feed.topic, 0, 4).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    world.drained(&feed.topic, 1).await;
    assert_eq!(world.text("select min(user_id) from user_view").await, "5");
    assert_eq!(total(&consumer.stop().await), 6);
}

/// Ten records are applied, then the topic is another one, with so many others.
pub(crate) async fn recreated(world: &World, record_count: i64) -> (Feed, String, Users) {
    let feed = user_feed(world, 1).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    let consumer = Consumer::start(world, &views, &[]);
    feed.send(world, &users.puts(1..=10)).await;
    world.drained(&feed.topic, 1).await;
    consumer.stop().await;
    world.delete_topic(&feed.topic).await;
    world.create_topic(&feed.topic, 1, &[]).await;
    feed.send(world, &users.puts(1..=record_count)).await;
    (feed, views, users)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_recreated_with_fewer_records_halts_the_consumer() {
    let world = World::new().await;
    let (_feed, views, _) = recreated(&world, 3).await;

    let error = Consumer::start(&world, &views, &[]).failure().await;
    assert!(error.contains("the next record to apply is 10"), "{error}");
    assert!(error.contains("the broker's log ends at 3"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_recreated_with_more_records_halts_the_consumer() {
    let world = World::new().await;
    let (feed, views, users) = recreated(&world, 30).await;

    let error = Consumer::start(&world, &views, &[]).failure().await;
    assert!(error.contains("the log has another record at offset 9"), "{error}");
    assert_eq!(world.next_offset(&feed.topic, 0).await, "10", "nothing of it was applied");

    // What the message tells an operator to do.
    let arguments = ["--topic", &feed.topic, "--new-log", "--execute"];
    offsets_reset(&world, &arguments).await.expect("a reset");
    let consumer = Consumer::start(&world, &views, &[]);
    world.shows("user_view", &users.as_view()).await;
    world.drained(&feed.topic, 1).await;
    assert_eq!(total(&consumer.stop().await), 30);
}

/// Their offsets would be compared with those of the new log's records.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_log_is_not_begun_while_dead_letters_of_the_old_one_are_open() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    let mut bad = feed.message(&users.put(1)).to(0);
    bad.value.as_mut().expect("a value").truncate(9);
    world.send(&feed.topic, vec![bad, feed.message(&users.put(2)).to(1)]).await;
    world.drained(&feed.topic, 2).await;
    consumer.stop().await;

    let begin = async |more: &[&str]| {
        offsets_reset(&world, &[&["--topic", &feed.topic, "--new-log"], more].concat()).await
    };
    for arguments in [&[][..], &["--execute"], &["--partition=0", "--execute"]] {
        let refused = begin(arguments).await.expect_err("a letter is open").to_string();
        assert!(refused.contains("1 dead letters of"), "{refused}");
        assert!(refused.contains("`cdc-consumer dead-letters list`"), "{refused}");
        assert_eq!(world.next_offset(&feed.topic, 0).await, "1", "nothing was moved");
    }
    begin(&["--partition=1", "--execute"]).await.expect("it has none");
    let id = world.text("select id from cdc_dead_letter").await;
    dead_letters(&world, &["drop", &id]).await.expect("dropped");
    begin(&["--execute"]).await.expect("none is left");
    assert_eq!(world.next_offset(&feed.topic, 0).await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_recreated_with_fewer_partitions_is_begun_and_its_views_can_be_rebuilt() {
    let world = World::new().await;
    let feed = user_feed(&world, 3).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=60)).await;
    let consumer = Consumer::start(&world, &views, &[]);
    world.drained(&feed.topic, 3).await;
    consumer.stop().await;
    // Of one that goes: its keys come through the one that stays.
    world.sql("update cdc_offset set source_epochs = '{\"0\": 1}' where partition = 2").await;
    world.delete_topic(&feed.topic).await;
    world.create_topic(&feed.topic, 1, &[]).await;
    let one = users.put(1);
    world.send(&feed.topic, vec![feed.message(&one).to(0)]).await;
    let says = "`cdc-consumer offsets reset";
    let error = Consumer::start(&world, &views, &[]).failure().await;
    assert!(error.contains(says), "{error}");
    let refused = rebuild(&world, &feed, &[]).await.expect_err("another log").to_string();
    assert!(refused.contains("the views that readers see have read up to"), "{refused}");
    assert!(refused.contains(says), "{refused}");

    // What the messages tell an operator to do.
    let refused = offsets_reset(&world, &["--topic", &feed.topic, "--execute"]).await;
    let refused = refused.expect_err("not without saying so").to_string();
    assert!(refused.contains("--new-log begins it"), "{refused}");
    let arguments = ["--topic", &feed.topic, "--new-log", "--execute"];
    let said = offsets_reset(&world, &arguments).await.expect("a reset");
    assert!(said.contains("-> no such partition any more"), "{said}");
    let known = "select string_agg(partition || ': ' || source_epochs, ', ') from cdc_offset";
    assert_eq!(world.text(known).await, "0: {\"0\": 1}");
    let consumer = Consumer::start(&world, &views, &[]);
    let snapshot = users.snapshot();
    let snapshot = snapshot.iter().map(|event| feed.message(event).to(0));
    world.send(&feed.topic, snapshot.collect()).await;
    world.drained(&feed.topic, 1).await;
    world.shows("user_view", &users.as_view()).await;
    rebuild(&world, &feed, &[]).await.expect("a rebuild");
    world.shows("views_2.user_view", &users.as_view()).await;
    consumer.stop().await;
}

/// The partition that goes had seen the highest LSNs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_restored_behind_a_new_log_with_fewer_partitions_begins_a_new_life() {
    let world = World::new().await;
    let feed = user_feed(&world, 2).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    let low = users.put(1);
    users.lsn = 900;
    let high = users.put(2);
    world.send(&feed.topic, vec![feed.message(&low).to(0), feed.message(&high).to(1)]).await;
    let consumer = Consumer::start(&world, &views, &[]);
    world.drained(&feed.topic, 2).await;
    consumer.stop().await;
    world.delete_topic(&feed.topic).await;
    world.create_topic(&feed.topic, 1, &[]).await;
    let arguments = ["--topic", &feed.topic, "--new-log", "--execute"];
    offsets_reset(&world, &arguments).await.expect("a reset");

    users.lsn = 492;
    users.put(2);
    let snapshot = users.snapshot();
    let snapshot = snapshot.iter().map(|event| feed.message(event).to(0));
    world.send(&feed.topic, snapshot.collect()).await;
    let consumer = Consumer::start(&world, &views, &[]);
    world.drained(&feed.topic, 1).await;
    world.shows("user_view", &users.as_view()).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_recreated_under_a_running_consumer_is_no_continuation() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    let consumer = Consumer::start(&world, &views, &[]);
    feed.send(&world, &users.puts(1..=10)).await;
    world.drained(&feed.topic, 1).await;
    world.delete_topic(&feed.topic).await;
    world.create_topic(&feed.topic, 1, &[]).await;
    feed.send(&world, &users.puts(1..=30)).await;

    let error = consumer.failure().await;
    assert!(error.contains("cdc-consumer offsets reset"), "it says what to do: {error}");
    assert_eq!(world.next_offset(&feed.topic, 0).await, "10", "nothing of it was applied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_record_read_last_is_read_again_and_applied_once() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let views = user_views(&feed.topic);
    let mut users = Users::default();
    for round in 0..3 {
        let consumer = Consumer::start(&world, &views, &[]);
        feed.send(&world, &users.puts(round..round + 10)).await;
        world.drained(&feed.topic, 1).await;
        assert_eq!(total(&consumer.stop().await), 10);
    }
    world.shows("user_view", &users.as_view()).await;
}

/// Sends records in one transaction and ends it as told.
async fn transaction(world: &World, feed: &Feed, messages: Vec<Message>, commit: bool) {
    let (brokers, topic) = (world.brokers.clone(), feed.topic.clone());
    let id = format!("{}_{}", world.name, uuid::Uuid::new_v4().simple());
    let sent = tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .set("transactional.id", id)
            .create()
            .expect("valid producer settings");
        producer.init_transactions(SOON).expect("transactions");
        producer.begin_transaction().expect("a transaction");
        for message in &messages {
            let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&topic);
            record.key = message.key.as_deref();
            record.payload = message.value.as_deref();
            producer.send(record).map_err(|(error, _)| error).expect("room in the queue");
        }
        producer.flush(SOON).expect("the broker takes the records");
        let ended = if commit {
            producer.commit_transaction(SOON)
        } else {
            producer.abort_transaction(SOON)
        };
        ended.expect("the transaction ends");
    });
    sent.await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborted_transactions_never_happened_and_control_records_are_no_gap() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let views = user_views(&feed.topic);
    let consumer = Consumer::start(&world, &views, &[]);
    let mut users = Users::default();
    let mut sent = 0;
    for round in 0..4 {
        let messages = |events: Vec<_>| events.iter().map(|event| feed.message(event)).collect();
        transaction(&world, &feed, messages(users.puts(round..round + 10)), true).await;
        let mut never = users.clone();
        transaction(&world, &feed, messages(never.puts(round..round + 20)), false).await;
        sent += 10;
    }
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;
    // They are no lag once the last record is applied.
    world.drained(&feed.topic, 1).await;
    wait_until("the lag to reach 0", SOON, || async {
        let lag = consumer.board.status().partitions.first().and_then(|partition| partition.lag);
        if lag == Some(0) { Ok(()) } else { Err(format!("{lag:?}")) }
    })
    .await;
    let (_, end) = world.watermarks(&feed.topic, 0).await;
    assert!(end > sent, "aborted records and the marks of transactions hold offsets");
    assert_eq!(i64::try_from(total(&consumer.stop().await)), Ok(sent));

    let consumer = Consumer::start(&world, &views, &[]);
    feed.send(&world, &users.puts(1..=5)).await;
    world.shows("user_view", &users.as_view()).await;
    assert_eq!(total(&consumer.stop().await), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_topic_has_holes_and_loses_nothing() {
    let world = World::new().await;
    let eager = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("max.compaction.lag.ms", "100"),
        ("delete.retention.ms", "60000"),
    ];
    let topic = world.topic(1, &eager).await;
    let feed = Feed::on(&world, &topic, &user_fields(), &["id"]).await;
    let mut users = Users::default();
    for _ in 0..3 {
        feed.send(&world, &users.puts(1..=50)).await;
        tokio::time::sleep(Duration::from_millis(150)).await; // a new segment: time is its condition
    }
    let deleted = users.delete(7);
    let messages = vec![feed.message(&deleted), feed.tombstone(&deleted.row)];
    world.send(&topic, messages).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    feed.send(&world, &users.puts(50..=51)).await;

    let views = user_views(&topic);
    let limit = SOON * 2;
    // Every attempt reads the topic from the beginning, until it was compacted.
    wait_until("the broker to compact the topic", limit, || async {
        let consumer = Consumer::start(&world, &views, &[]);
        world.drained(&topic, 1).await;
        let counted = total(&consumer.stop().await);
        world.shows("user_view", &users.as_view()).await;
        if counted < 120 {
            return Ok(());
        }
        world.sql("truncate user_view, user_view_deleted, cdc_offset").await;
        Err(format!("{counted} records"))
    })
    .await;
    world.counts_are_right().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_added_later_are_read_from_their_beginning() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=10)).await;
    world.drained(&feed.topic, 1).await;
    let more = rdkafka::admin::NewPartitions::new(&feed.topic, 3);
    let options = rdkafka::admin::AdminOptions::new();
    world.admin.create_partitions([&more], &options).await.expect("more partitions");
    world.learn_partitions(&feed.topic, 3).await;
    let late = users.puts(11..=40);
    let messages = late.iter().zip(0..).map(|(event, number)| feed.message(event).to(number % 3));
    world.send(&feed.topic, messages.collect()).await;
    world.shows("user_view", &users.as_view()).await;
    world.drained(&feed.topic, 3).await;
    world.counts_are_right().await;
    consumer.stop().await;
}
