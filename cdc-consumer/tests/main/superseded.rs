//! Changes that a newer one of their batch had replaced, when that one cannot be applied.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use crate::dead_letters::retry;
use crate::harness::World;
use crate::harness::consumer::{Consumer, total};
use crate::harness::feed::{Event, Feed, Message};
use crate::histories::{Random, Replay, seeds};

const KEEP: &str = "__debezium_unavailable_value";
/// The header of a create that follows a row to another key.
const MOVED: &str = "__debezium.oldkey";

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
    // Of the refused changes of a row in one batch the newest tells all.
    for (batch, kept) in [("--batch-records-max=4000", 5), ("--batch-records-max=1", 6)] {
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
        assert_eq!((total(&outcome), outcome.quarantined), (sent, kept), "{batch}: {outcome:?}");

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
        let between = change(120, "three", KEEP);
        [change(80, "two", "new"), between, change(160, "the longest", body)]
    });
    feed.send(&world, &changes.concat()).await;
    let consumer = Consumer::start(&world, &views, &[]);
    world.drained(&feed.topic, 1).await;
    let shown = [letter(1, "three", "new"), letter(2, "one", "old"), letter(3, "one", "old")];
    world.shows("letter", &shown).await;
    let letters = "select string_agg(key_text, ' ' order by id) from cdc_dead_letter";
    assert_eq!(world.text(letters).await, "2 3 1 2 2 3", "those with values that the last lacks");
    widen(&world).await;
    for _ in 1..=3 {
        retry(&world, &views).await.unwrap();
    }
    assert_eq!(world.dead_letters().await, [""; 0]);
    world.shows("letter", &[1, 2, 3].map(|id| letter(id, "the longest", "new"))).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_change_leaves_no_value_of_a_row_that_was_removed_before_it() {
    for batch in ["--batch-records-max=4000", "--batch-records-max=1"] {
        let world = World::new().await;
        let (feed, views) = letters(&world).await;
        let consumer = Consumer::start(&world, &views, &[batch]);
        feed.send(&world, &[Event::new("c", 8, letter(1, "one", "old"))]).await;
        world.drained(&feed.topic, 1).await;
        consumer.stop().await;

        // The row goes, another one gets its key, and is changed.
        let event =
            |op, lsn, title, body| feed.message(&Event::new(op, lsn, letter(1, title, body)));
        let moved = Message { header: Some(MOVED), ..event("c", 24, "two", KEEP) };
        let messages = vec![event("d", 16, "", ""), moved, event("u", 32, "too long", "new")];
        world.send(&feed.topic, messages).await;
        let consumer = Consumer::start(&world, &views, &[batch]);
        world.drained(&feed.topic, 1).await;
        world.shows("letter", &[]).await;
        let outcome = consumer.stop().await;
        assert_eq!((total(&outcome), outcome.applied), (3, 1), "{batch}: {outcome:?}");

        widen(&world).await;
        retry(&world, &views).await.unwrap();
        assert_eq!(world.dead_letters().await, [""; 0]);
        world.shows("letter", &[letter(1, "too long", "new")]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_does_not_pass_over_a_lost_record_that_may_have_had_a_long_value() {
    let world = World::new().await;
    let (feed, views) = letters(&world).await;
    let consumer = Consumer::start(&world, &views, &[]);
    let changes = [("c", "one", "old"), ("u", "too long", "new"), ("u", "longer", KEEP)];
    for (lsn, (op, title, body)) in (1..).zip(changes) {
        feed.send(&world, &[Event::new(op, 8 * lsn, letter(1, title, body))]).await;
        world.drained(&feed.topic, 1).await; // a batch of its own
    }
    widen(&world).await;
    let lose = "update cdc_dead_letter set record_key = null, record_value = null
        where id = (select min(id) from cdc_dead_letter)";
    world.sql(lose).await;
    let refused = retry(&world, &views).await.expect_err("nobody has the value").to_string();
    assert!(refused.contains("lack a long value"), "{refused}");
    world.shows("letter", &[letter(1, "one", "old")]).await;

    feed.send(&world, &[Event::new("u", 32, letter(1, "again", "new"))]).await;
    world.drained(&feed.topic, 1).await;
    retry(&world, &views).await.unwrap();
    world.shows("letter", &[letter(1, "again", "new")]).await;
    assert_eq!(world.dead_letters().await, [""; 0]);
    consumer.stop().await;
}

const KEYS: usize = 20;
const CHANGES: usize = 200;

/// A change of a row, as the connector sends it; an insert may follow a row to another key.
#[derive(Clone)]
struct Change {
    id: i64,
    event: Event,
    moved: bool,
}

/// Changes of a few rows, two events for one that gets another key: every third title is too long, every second
/// update leaves the long value alone. At the end each row is written as a whole.
fn history(random: &mut Random) -> Vec<Change> {
    let mut bodies = BTreeMap::<i64, String>::new();
    let mut changes = Vec::<Change>::new();
    let mut push = |op, id, title: &str, body: &str, moved| {
        let lsn = 8 * (i64::try_from(changes.len()).expect("a small number") + 1);
        let event = Event::new(op, lsn, letter(id, title, body));
        changes.push(Change { id, event, moved });
    };
    for number in 0..CHANGES {
        let [id, to] = [(); 2].map(|()| i64::try_from(random.below(KEYS)).expect("small"));
        let title = if random.percent(33) { format!("long {number}") } else { number.to_string() };
        let known = bodies.contains_key(&id);
        if known && random.percent(15) {
            let body = bodies.remove(&id).expect("a body");
            push("d", id, "", "", false);
            if !bodies.contains_key(&to) && random.percent(50) {
                push("c", to, &title, KEEP, true);
                bodies.insert(to, body);
            }
        } else if known && random.percent(50) {
            push("u", id, &title, KEEP, false);
        } else {
            let body = format!("body {number}");
            push(if known { "u" } else { "c" }, id, &title, &body, false);
            bodies.insert(id, body);
        }
    }
    for (id, body) in &bodies {
        push("u", *id, "end", body, false);
    }
    changes
}

/// What a view can show after these changes of one row, the last of which that cannot be applied left out.
fn shown<'a>(changes: impl Iterator<Item = &'a Event>) -> Option<Json> {
    let (mut shown, mut body) = (None, None);
    for event in changes {
        match &event.row["body"] {
            _ if event.op == "d" => body = None,
            kept if kept == KEEP => {}
            sent => body = Some(sent.clone()),
        }
        let fits = !event.row["title"].to_string().contains("long");
        if event.op == "d" {
            shown = None;
        } else if let Some(body) = body.clone().filter(|_| fits) {
            let mut row = event.row.clone();
            row["body"] = body;
            shown = Some(row);
        }
    }
    shown
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_stay_at_their_last_good_state_and_are_the_sources_once_all_is_retried() {
    for seed in seeds(3) {
        let _replay = Replay(seed);
        let mut random = Random::new(seed);
        let world = World::new().await;
        let (feed, views) = letters(&world).await;
        let changes = history(&mut random);
        let message = |change: &Change| {
            let header = change.moved.then_some(MOVED);
            Message { header, ..feed.message(&change.event) }
        };
        world.send(&feed.topic, changes.iter().map(message).collect()).await;
        let batch = format!("--batch-records-max={}", 1 + random.below(CHANGES));
        let consumer = Consumer::start(&world, &views, &[&batch]);
        world.drained(&feed.topic, 1).await;

        let oldest = "select json_object_agg(key_text, oldest) from (
            select key_text, min(record_offset) as oldest from cdc_dead_letter group by key_text) as k";
        let oldest: BTreeMap<i64, usize> =
            serde_json::from_str(&world.text(oldest).await).expect("offsets by key");
        assert!(!oldest.is_empty(), "some title is too long");
        let rows = |until: &dyn Fn(&i64) -> usize| -> Vec<Json> {
            let of_key = |id| {
                let before = changes.iter().take(until(&id)).filter(move |change| change.id == id);
                shown(before.map(|change| &change.event))
            };
            (0..).take(KEYS).filter_map(of_key).collect()
        };
        world.shows("letter", &rows(&|id| *oldest.get(id).unwrap_or(&changes.len()))).await;

        widen(&world).await;
        for _ in &oldest {
            retry(&world, &views).await.unwrap();
        }
        assert_eq!(world.dead_letters().await, [""; 0]);
        world.shows("letter", &rows(&|_| changes.len())).await;
        let outcome = consumer.stop().await;
        assert_eq!(total(&outcome), changes.len() as u64, "{batch}: {outcome:?}");
    }
}
