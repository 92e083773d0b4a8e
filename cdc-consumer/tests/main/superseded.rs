//! Changes that a newer one of their batch had replaced, when that one cannot be applied.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use crate::dead_letters::retry;
use crate::harness::World;
use crate::harness::consumer::{Consumer, total};
use crate::harness::feed::{Event, Feed};
use crate::histories::{Random, Replay, seeds};

const KEEP: &str = "__debezium_unavailable_value";

/// A table with a narrow column beside a long one, and its topic.
async fn letters(world: &World) -> (Feed, String) {
    let table = "create table letter (id bigint primary key, title varchar(5), body text)";
    world.view(table, "letter").await;
    let fields = json!([{"name": "id", "type": "long"}, {"name": "title", "type": "string"},
        {"name": "body", "type": ["null", "string"]}]);
    let feed = Feed::new(world, 1, &fields, &["id"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'letter'\n", feed.topic);
    (feed, views)
}

fn letter(id: i64, title: &str, body: &str) -> Json {
    json!({"id": id, "title": title, "body": body})
}

async fn widen(world: &World) {
    world.sql("alter table views_1.letter alter column title type varchar(50)").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_takes_effect_though_those_after_it_in_its_batch_are_refused() {
    for batch in ["--batch-records-max=4000", "--batch-records-max=1"] {
        let world = World::new().await;
        let (feed, views) = letters(&world).await;
        let event = |op, lsn, id, title| feed.message(&Event::new(op, lsn, letter(id, title, "b")));
        let mut unreadable = event("u", 96, 4, "bad");
        unreadable.value.as_mut().expect("a value").truncate(9);
        let messages = vec![
            event("c", 8, 1, "good"),
            event("u", 16, 1, "too long"),
            event("c", 24, 2, "gone"),
            event("d", 32, 2, ""),
            event("c", 40, 2, "too long"),
            event("c", 48, 3, "first"),
            event("u", 56, 3, "last"),
            event("u", 64, 3, "too long"),
            event("u", 72, 3, "too long as well"),
            event("c", 80, 4, "good"),
            unreadable,
            event("u", 104, 4, "waits"),
        ];
        let sent = messages.len() as u64;
        world.send(&feed.topic, messages).await;
        let consumer = Consumer::start(&world, &views, &[batch]);
        world.drained(&feed.topic, 1).await;
        let good = [letter(1, "good", "b"), letter(3, "last", "b"), letter(4, "good", "b")];
        world.shows("letter", &good).await;
        let outcome = consumer.stop().await;
        assert_eq!((total(&outcome), outcome.quarantined), (sent, 6), "{batch}: {outcome:?}");

        widen(&world).await;
        world.sql("delete from cdc_dead_letter where key_text = '4'").await;
        for _ in 1..=3 {
            retry(&world, &views).await.unwrap();
        }
        let mended = [letter(1, "too long", "b"), letter(2, "too long", "b")];
        let last = letter(3, "too long as well", "b");
        world.shows("letter", &[&mended[..], &[last, letter(4, "good", "b")]].concat()).await;
    }
}

/// The dead letter holds the placeholder of a value that only a record before it had brought.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retried_change_keeps_the_long_value_that_its_batch_had_brought() {
    let world = World::new().await;
    let (feed, views) = letters(&world).await;
    let first = [1, 2, 3].map(|id| Event::new("c", 8 * id, letter(id, "one", "old")));
    let consumer = Consumer::start(&world, &views, &[]);
    feed.send(&world, &first).await;
    world.drained(&feed.topic, 1).await;
    let refused = [2, 3].map(|id| Event::new("u", 24 + 8 * id, letter(id, "too long", "old")));
    feed.send(&world, &refused).await;
    world.drained(&feed.topic, 1).await;
    consumer.stop().await;

    // One is refused with this batch, the others wait behind a dead letter that there was.
    let changes = [(1, KEEP), (2, KEEP), (3, "new")].map(|(id, body)| {
        let change = |lsn, title, body| Event::new("u", lsn + 8 * id, letter(id, title, body));
        [change(80, "two", "new"), change(160, "the longest", body)]
    });
    feed.send(&world, &changes.concat()).await;
    let consumer = Consumer::start(&world, &views, &[]);
    world.drained(&feed.topic, 1).await;
    let shown = [letter(1, "two", "new"), letter(2, "one", "old"), letter(3, "one", "old")];
    world.shows("letter", &shown).await;
    let letters = "select string_agg(key_text, ' ' order by id) from cdc_dead_letter";
    assert_eq!(world.text(letters).await, "2 3 1 2 2 3", "the third has all its values");
    widen(&world).await;
    for _ in 1..=3 {
        retry(&world, &views).await.unwrap();
    }
    assert_eq!(world.dead_letters().await, [""; 0]);
    world.shows("letter", &[1, 2, 3].map(|id| letter(id, "the longest", "new"))).await;
    consumer.stop().await;
}

const KEYS: usize = 20;
const CHANGES: usize = 200;

/// Changes of a few rows, an event each, as the connector sends them: every third title is too long, every second
/// update leaves the long value alone.
fn history(random: &mut Random) -> Vec<(i64, Event)> {
    let mut bodies = BTreeMap::<i64, String>::new();
    let change = |number: usize| {
        let id = i64::try_from(random.below(KEYS)).expect("a small number");
        let lsn = i64::try_from(8 * (number + 1)).expect("a small number");
        let title = if random.percent(33) { format!("long {number}") } else { number.to_string() };
        let known = bodies.contains_key(&id);
        if known && random.percent(15) {
            bodies.remove(&id);
            return (id, Event::new("d", lsn, letter(id, "", "")));
        }
        let op = if known { "u" } else { "c" };
        let kept = known && random.percent(50);
        if !kept {
            bodies.insert(id, format!("body {number}"));
        }
        let body = if kept { KEEP } else { bodies.get(&id).expect("a body") };
        (id, Event::new(op, lsn, letter(id, &title, body)))
    };
    (0..CHANGES).map(change).collect()
}

/// The source's rows after these changes.
fn rows<'a>(changes: impl Iterator<Item = &'a (i64, Event)>) -> BTreeMap<i64, Json> {
    let mut rows = BTreeMap::<i64, Json>::new();
    for (id, event) in changes {
        let mut row = event.row.clone();
        if row["body"] == KEEP {
            row["body"] = rows.get(id).expect("it keeps a row's body")["body"].clone();
        }
        if event.op == "d" {
            rows.remove(id);
        } else {
            rows.insert(*id, row);
        }
    }
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_stay_at_their_last_good_state_and_are_the_sources_once_all_is_retried() {
    for seed in seeds(3) {
        let _replay = Replay(seed);
        let mut random = Random::new(seed);
        let world = World::new().await;
        let (feed, views) = letters(&world).await;
        let changes = history(&mut random);
        let events: Vec<Event> = changes.iter().map(|(_, event)| event.clone()).collect();
        feed.send(&world, &events).await;
        let batch = format!("--batch-records-max={}", 1 + random.below(CHANGES));
        let consumer = Consumer::start(&world, &views, &[&batch]);
        world.drained(&feed.topic, 1).await;

        let oldest = "select json_object_agg(key_text, oldest) from (
            select key_text, min(record_offset) as oldest from cdc_dead_letter group by key_text) as k";
        let oldest: BTreeMap<i64, usize> =
            serde_json::from_str(&world.text(oldest).await).expect("offsets by key");
        assert!(!oldest.is_empty(), "some title is too long");
        let good = changes
            .iter()
            .enumerate()
            .filter(|(offset, (id, _))| oldest.get(id).is_none_or(|oldest| offset < oldest));
        let good: Vec<Json> = rows(good.map(|(_, change)| change)).into_values().collect();
        world.shows("letter", &good).await;

        widen(&world).await;
        for _ in &oldest {
            retry(&world, &views).await.unwrap();
        }
        assert_eq!(world.dead_letters().await, [""; 0]);
        let all: Vec<Json> = rows(changes.iter()).into_values().collect();
        world.shows("letter", &all).await;
        let outcome = consumer.stop().await;
        assert_eq!(total(&outcome), CHANGES as u64, "{batch}: {outcome:?}");
    }
}
