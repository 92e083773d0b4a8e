//! `cdc-consumer dead-letters`, as an operator uses it beside a running consumer.

use std::net::SocketAddr;
use std::path::PathBuf;

use cdc_consumer::cli::{Cli, Command};
use cdc_consumer::dead_letters;
use clap::Parser;
use serde_json::{Value as Json, json};
use tokio::net::TcpListener;

use crate::harness::consumer::{Consumer, Process, free_address, metrics};
use crate::harness::feed::{Event, Feed};
use crate::harness::{SOON, World, wait_until};

/// `cdc-consumer dead-letters` with these arguments; returns what it printed.
pub(crate) async fn dead_letters(world: &World, arguments: &[&str]) -> anyhow::Result<String> {
    let database =
        format!("--consumer-database-url={}", world.consumer_url(&world.database_address()));
    let command = ["cdc-consumer", "dead-letters"];
    let cli = Cli::try_parse_from(command.iter().chain(arguments).chain(&[database.as_str()]))?;
    let Command::DeadLetters(command) = cli.command else { panic!("dead letters") };
    let mut out = Vec::new();
    dead_letters::execute(&command, &mut out).await?;
    Ok(String::from_utf8(out)?)
}

/// `dead-letters retry` of the oldest one.
pub(crate) async fn retry(world: &World, views: &str) -> anyhow::Result<String> {
    retry_with(world, views, &world.registry).await
}

async fn retry_with(world: &World, views: &str, registry: &str) -> anyhow::Result<String> {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.toml", world.name));
    std::fs::write(&file, views)?;
    let id = world.text("select min(id) from cdc_dead_letter").await;
    let (views, brokers, registry) = (
        format!("--views-file={}", file.display()),
        format!("--kafka-brokers={}", world.brokers),
        format!("--schema-registry-url={registry}"),
    );
    dead_letters(world, &["retry", &id, &views, &brokers, &registry]).await
}

/// A view with a narrow column, and a consumer of its topic.
async fn notes() -> (World, Feed, String, Consumer) {
    let world = World::new().await;
    world.view("create table note (id bigint primary key, title varchar(5))", "note").await;
    let fields = json!([{"name": "id", "type": "long"}, {"name": "title", "type": "string"}]);
    let feed = Feed::new(&world, 1, &fields, &["id"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'note'\n", feed.topic);
    let consumer = Consumer::start(&world, &views, &[]);
    (world, feed, views, consumer)
}

/// The same after a row was kept aside that was too long for the column, with the change that came after it.
async fn kept_aside() -> (World, Feed, String, Consumer) {
    let (world, feed, views, consumer) = notes().await;
    for event in [
        Event::new("c", 1, note(1, "ok")),
        Event::new("c", 2, note(2, "too long")),
        Event::new("u", 3, note(2, "longer still")),
    ] {
        feed.send(&world, &[event]).await;
        world.drained(&feed.topic, 1).await; // a batch of its own
    }
    assert_eq!(world.dead_letters().await.len(), 2);
    (world, feed, views, consumer)
}

fn note(id: i64, title: &str) -> Json {
    json!({"id": id, "title": title})
}

async fn widen(world: &World) {
    world.sql("alter table views_1.note alter column title type varchar(50)").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retried_dead_letter_becomes_its_row_with_all_that_waited_behind_it() {
    let (world, feed, views, consumer) = kept_aside().await;
    let refused = retry(&world, &views).await.expect_err("the column is still narrow");
    assert!(format!("{refused:#}").contains("character varying(5)"), "{refused:#}");
    assert_eq!(world.dead_letters().await.len(), 2, "they are still there");

    widen(&world).await;
    let said = retry(&world, &views).await.unwrap();
    assert_eq!(said, "applied 2 dead letters of this key\n");
    assert_eq!(world.dead_letters().await, [""; 0]);
    world.shows("note", &[note(1, "ok"), note(2, "longer still")]).await;

    // Its key goes on.
    feed.send(&world, &[Event::new("u", 4, note(2, "last"))]).await;
    world.shows("note", &[note(1, "ok"), note(2, "last")]).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_of_views_that_a_rebuild_replaces_meanwhile_are_not_dropped() {
    let (world, _feed, _views, consumer) = kept_aside().await;
    consumer.stop().await;
    let id = world.text("select min(id) from cdc_dead_letter").await;
    let mut swap = world.holding("select from cdc_offset for update").await;
    let swapped = async {
        world.session_shows("wait_event_type = 'Lock'").await;
        let publish = "update public.cdc_generation set current = 2; commit";
        sqlx::raw_sql(publish).execute(&mut swap).await.expect("another generation");
    };
    let arguments = ["drop", id.as_str()];
    let (dropped, ()) = tokio::join!(dead_letters(&world, &arguments), swapped);
    let refused = dropped.expect_err("nobody sees these views").to_string();
    assert!(refused.contains("readers see generation 2 by now"), "{refused}");
    assert_eq!(world.dead_letters().await.len(), 2, "they are still there");
}

/// Its key moved to a partition that was added, where offsets begin anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_of_two_partitions_are_retried_in_the_order_in_which_they_were_kept_aside() {
    let world = World::new().await;
    let create = "create table essay (id bigint primary key, title varchar(5), body text)";
    world.view(create, "essay").await;
    let fields = ["title", "body"].map(|name| json!({"name": name, "type": "string"}));
    let fields = json!([{"name": "id", "type": "long"}, fields[0], fields[1]]);
    let feed = Feed::new(&world, 2, &fields, &["id"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'essay'\n", feed.topic);
    let consumer = Consumer::start(&world, &views, &[]);
    let essay = |title: &str, body: &str| json!({"id": 2, "title": title, "body": body});
    for (partition, event) in [
        (0, Event::new("c", 8, essay("ok", "old"))),
        (0, Event::new("u", 16, essay("too long", "new"))),
        (1, Event::new("u", 24, essay("last", "__debezium_unavailable_value"))),
    ] {
        world.send(&feed.topic, vec![feed.message(&event).to(partition)]).await;
        world.drained(&feed.topic, 2).await; // a batch of its own
    }
    assert_eq!(world.dead_letters().await.len(), 2);
    world.sql("alter table essay alter column title type varchar(50)").await;
    retry(&world, &views).await.unwrap();
    world.shows("essay", &[essay("last", "new")]).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_whose_record_was_compacted_away_is_passed_over_for_the_newer_one_of_its_key() {
    let (world, _feed, views, consumer) = kept_aside().await;
    widen(&world).await;
    let lose = "create table public.kept as select * from cdc_dead_letter;
        update cdc_dead_letter set record_key = null, record_value = null";
    world.sql(lose).await;
    let refused = retry(&world, &views).await.expect_err("the newer one is not here").to_string();
    assert!(refused.contains("when a newer one is kept aside"), "{refused}");
    assert_eq!(world.dead_letters().await.len(), 2, "they are still there");

    let newer =
        "update cdc_dead_letter l set record_key = k.record_key, record_value = k.record_value
        from public.kept k where k.id = l.id and l.reason = 'parked'";
    world.sql(newer).await;
    retry(&world, &views).await.unwrap();
    world.shows("note", &[note(1, "ok"), note(2, "longer still")]).await;
    assert_eq!(world.dead_letters().await, [""; 0]);
    consumer.stop().await;
}

/// One is refused by PostgreSQL, one by the decoder, which would see PostgreSQL cut it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retried_change_that_an_incremental_snapshot_missed_is_as_new_as_it_was() {
    let (world, feed, views, consumer) = notes().await;
    let late = ["too long", "cut    "];
    let read = |lsn, id| Event { snapshot: "incremental", ..Event::new("r", lsn, note(id, "old")) };
    for id in 1..=3 {
        feed.send(&world, &[Event::new("c", 8 * id, note(id, "old"))]).await;
    }
    // Both were open when the rows were read, and are committed behind them.
    feed.send(&world, &[read(160, 1), read(160, 2)]).await;
    for (id, title) in (1..).zip(late) {
        let change = Event { last_commit: 168, ..Event::new("u", 88 + 8 * id, note(id, title)) };
        feed.send(&world, &[change]).await;
    }
    feed.send(&world, &[read(400, 3)]).await;
    world.drained(&feed.topic, 1).await;
    assert_eq!(world.dead_letters().await.len(), 2);

    widen(&world).await;
    for _ in late {
        retry(&world, &views).await.unwrap();
    }
    let [first, second] = late;
    world.shows("note", &[note(1, first), note(2, second), note(3, "old")]).await;
    consumer.stop().await;
}

/// The consumer began anew between the delete and its tombstone, or compaction took the delete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retried_tombstone_removes_its_row() {
    let (world, feed, views, consumer) = notes().await;
    let changed = |lsn, id, title: &str| feed.message(&Event::new("u", lsn, note(id, title)));
    let tombstone = |id| feed.tombstone(&note(id, ""));
    let deleted = feed.message(&Event::new("d", 24, note(3, "")));
    for messages in [
        (1..=4).map(|id| changed(8, id, "ok")).collect(),
        (1..=3).map(|id| changed(16, id, "too long")).collect(),
        vec![tombstone(2), deleted, changed(32, 4, "newer")],
        vec![tombstone(3)],
        vec![changed(40, 1, "last"), tombstone(1)], // in one batch: its record is the tombstone
    ] {
        world.send(&feed.topic, messages).await;
        world.drained(&feed.topic, 1).await;
    }
    widen(&world).await;
    // As if somebody had taken the letter of key 2 away that its tombstone waits behind.
    world.sql("delete from cdc_dead_letter where key_text = '2' and reason = 'refused'").await;
    for _key in 1..=3 {
        retry(&world, &views).await.unwrap();
    }
    assert_eq!(world.dead_letters().await, [""; 0]);
    world.shows("note", &[note(4, "newer")]).await;
    feed.send(&world, &[Event::new("c", 48, note(2, "again"))]).await;
    world.shows("note", &[note(2, "again"), note(4, "newer")]).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_with_no_row_to_keep_a_value_from_leaves_the_dead_letter() {
    let (world, feed, views, consumer) = notes().await;
    feed.send(&world, &[Event::new("u", 1, note(2, "__debezium_unavailable_value"))]).await;
    world.drained(&feed.topic, 1).await;
    assert_eq!(world.dead_letters().await.len(), 1);
    let refused = retry(&world, &views).await.expect_err("there is no row");
    let refused = format!("{refused:#}");
    assert!(refused.contains("did not send an unchanged long value"), "{refused}");
    assert_eq!(world.dead_letters().await.len(), 1, "it is still there");

    // What its error advises: the row as a whole, which waits behind it.
    feed.send(&world, &[Event::new("u", 2, note(2, "whole"))]).await;
    world.drained(&feed.topic, 1).await;
    let said = retry(&world, &views).await.unwrap();
    assert_eq!(said, "applied 2 dead letters of this key\n");
    world.shows("note", &[note(2, "whole")]).await;
    assert_eq!(world.dead_letters().await, [""; 0]);
    consumer.stop().await;
}

/// A replay brings the row back while the letters are retried: the retry meets a row it did not see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_waits_for_a_row_that_another_transaction_adds_and_keeps_the_newer() {
    let (world, _feed, views, consumer) = kept_aside().await;
    widen(&world).await;
    let add = "insert into note (id, title, source_epoch, source_lsn)
        select 2, 'newest', source_epoch, 1000000 from note where id = 1";
    let mut other = world.holding(add).await;
    let commit = async {
        world.session_shows("wait_event_type = 'Lock'").await;
        sqlx::raw_sql("commit").execute(&mut other).await.unwrap();
    };
    let (said, ()) = tokio::join!(retry(&world, &views), commit);
    assert_eq!(said.unwrap(), "applied 2 dead letters of this key\n");
    world.shows("note", &[note(1, "ok"), note(2, "newest")]).await;
    assert_eq!(world.dead_letters().await, [""; 0]);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_takes_along_what_a_batch_under_way_parks_behind_its_letters() {
    let (world, feed, views, consumer) = kept_aside().await;
    widen(&world).await;
    // Stops a batch that parks something at its commit.
    let stop = "create function views_1.stop() returns trigger language plpgsql
            as 'begin perform pg_advisory_xact_lock(1); return null; end';
        create constraint trigger stop after insert on views_1.cdc_dead_letter
            deferrable initially deferred for each row execute function views_1.stop();
        select pg_advisory_lock(1)";
    let mut other = world.db().await;
    sqlx::raw_sql(stop).execute(&mut other).await.unwrap();
    feed.send(&world, &[Event::new("u", 4, note(2, "last"))]).await;
    world.session_shows("wait_event = 'advisory'").await;

    let go_on = async {
        world.session_shows("wait_event_type = 'Lock' and wait_event <> 'advisory'").await;
        sqlx::raw_sql("select pg_advisory_unlock(1)").execute(&mut other).await.unwrap();
    };
    let (said, ()) = tokio::join!(retry(&world, &views), go_on);
    assert_eq!(said.unwrap(), "applied 3 dead letters of this key\n");
    world.shows("note", &[note(1, "ok"), note(2, "last")]).await;
    assert_eq!(world.dead_letters().await, [""; 0]);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_that_waits_for_the_registry_holds_up_no_batch() {
    let (world, feed, views, consumer) = kept_aside().await;
    widen(&world).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let registry = format!("http://{}", silent.local_addr().unwrap());
    {
        let retrying = retry_with(&world, &views, &registry);
        let applied_meanwhile = async {
            let _asked = silent.accept().await.unwrap();
            feed.send(&world, &[Event::new("u", 4, note(1, "later"))]).await;
            world.shows("note", &[note(1, "later")]).await;
        };
        tokio::select! {
            ended = retrying => panic!("it did not wait: {ended:?}"),
            () = applied_meanwhile => {}
        }
    }
    assert_eq!(world.dead_letters().await.len(), 2, "they are still there");
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_listed_shown_and_dropped_with_their_key() {
    let (world, feed, _views, consumer) = kept_aside().await;
    let listed = dead_letters(&world, &["list"]).await.unwrap();
    assert!(listed.contains("refused") && listed.contains("parked"), "{listed}");
    assert!(listed.ends_with("2 open dead letters\n"), "{listed}");
    let listed: Json =
        serde_json::from_str(&dead_letters(&world, &["list", "--json"]).await.unwrap()).unwrap();
    let (id, offset) = (listed[0]["id"].to_string(), listed[1]["record_offset"].as_i64());
    assert_eq!((&listed[0]["view_name"], offset), (&json!("note"), Some(2)), "{listed}");

    let shown = dead_letters(&world, &["show", &id]).await.unwrap();
    let record = format!("{}-0 @ 1", feed.topic);
    assert!(shown.contains(&record) && shown.contains("value bytes   \\x00"), "{shown}");

    let dropped = dead_letters(&world, &["drop", &id]).await.unwrap();
    assert_eq!(dropped, "dropped 2 dead letters of this key\n");
    let gone = dead_letters(&world, &["show", &id]).await.expect_err("dropped").to_string();
    assert!(gone.contains("there is no open dead letter"), "{gone}");
    feed.send(&world, &[Event::new("u", 4, note(2, "fits"))]).await;
    world.shows("note", &[note(1, "ok"), note(2, "fits")]).await;
    consumer.stop().await;
}

/// The fence tells a batch of dead letters as they were before it waited; what it parks depends on now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_waited_for_a_drop_parks_nothing_behind_what_is_gone() {
    let (world, feed, _views, consumer) = kept_aside().await;
    let drop = "select from cdc_offset for update; delete from cdc_dead_letter";
    let mut dropping = world.holding(drop).await;
    feed.send(&world, &[Event::new("u", 4, note(2, "fits"))]).await;
    world.session_shows("wait_event_type = 'Lock'").await;
    sqlx::raw_sql("commit").execute(&mut dropping).await.unwrap();
    world.shows("note", &[note(1, "ok"), note(2, "fits")]).await;
    assert_eq!(world.dead_letters().await, [""; 0]);
    consumer.stop().await;
}

/// Waits until the consumer's metrics show so many open dead letters.
async fn gauge_shows(address: SocketAddr, reason: &str, count: u64) {
    let line = format!("cdc_dead_letters_open{{view=\"note\",reason=\"{reason}\"}} {count}");
    wait_until(&line, SOON, || async {
        let metrics = metrics(address).await?;
        if metrics.lines().any(|shown| shown == line) { Ok(()) } else { Err(metrics) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_of_a_new_process_show_the_dead_letters_there_are() {
    let (world, _feed, views, consumer) = kept_aside().await;
    consumer.stop().await;
    let address = free_address();
    let listen = format!("--consumer-listen={address}");
    let process = Process::start(&world, &views, 1, &[&listen]);
    gauge_shows(address, "refused", 1).await;
    gauge_shows(address, "parked", 1).await;

    let id = world.text("select min(id) from cdc_dead_letter").await;
    dead_letters(&world, &["drop", &id]).await.unwrap();
    gauge_shows(address, "refused", 0).await;
    gauge_shows(address, "parked", 0).await;
    process.kill();
}
