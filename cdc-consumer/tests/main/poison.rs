//! Records that cannot be applied: one key waits, every other goes on.

use serde_json::{Value as Json, json};

use crate::harness::consumer::{Consumer, total};
use crate::harness::feed::{Event, Feed, Message};
use crate::harness::source::{Users, user_feed, user_views};
use crate::harness::{SOON, World, wait_until};

/// A table with a narrow column, and its topic.
async fn notes(world: &World, partitions: i32) -> (Feed, String) {
    world
        .view("create table note (id bigint primary key, title varchar(5), size smallint)", "note")
        .await;
    let fields = json!([{"name": "id", "type": "long"}, {"name": "title", "type": ["null", "string"]},
        {"name": "size", "type": "int"}]);
    let feed = Feed::new(world, partitions, &fields, &["id"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'note'\n", feed.topic);
    (feed, views)
}

fn note(id: i64, title: &str, size: i64) -> Json {
    json!({"id": id, "title": title, "size": size})
}

/// A refused record of this key is kept aside, and one that waits behind it.
async fn one_waits_behind_another(world: &World, key: &str) {
    let letters = world.dead_letters().await;
    assert_eq!(letters.len(), 2, "{letters:?}");
    assert!(letters[0].starts_with(&format!("refused {key}: ")), "{letters:?}");
    assert!(letters[1].starts_with(&format!("parked {key}: ")), "{letters:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_record_in_ten_thousand_leaves_the_others_applied() {
    let world = World::new().await;
    let feed = user_feed(&world, 4).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    let events = users.puts(1..=9_999);
    let mut messages: Vec<Message> = events.iter().map(|event| feed.message(event)).collect();
    let mut bad = feed.message(&users.clone().put(77_777));
    bad.value.as_mut().expect("a value").truncate(9);
    messages.insert(5_000, bad);
    world.send(&feed.topic, messages).await;
    world.drained(&feed.topic, 4).await;
    world.shows("user_view", &users.as_view()).await;
    world.counts_are_right().await;

    // A later change of that key waits behind the dead letter, a later change of another does not.
    let mut later = users.clone();
    feed.send(&world, &[later.put(77_777), users.put(1)]).await;
    world.drained(&feed.topic, 4).await;
    world.shows("user_view", &users.as_view()).await;
    one_waits_behind_another(&world, "77777").await;
    let whole = "select count(*) from cdc_dead_letter
        where record_key is not null and record_value is not null and schema_id is not null";
    assert_eq!(world.text(whole).await, "2", "bytes and schema are kept");
    let outcome = consumer.stop().await;
    assert_eq!((total(&outcome), outcome.quarantined), (10_002, 2), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tombstone_alone_whose_key_cannot_be_read_is_kept_aside() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let mut users = Users::default();
    feed.send(&world, &users.puts(1..=2)).await;
    let mut nobody = feed.tombstone(&json!({"id": 1}));
    nobody.key = Some(b"1".to_vec());
    world.send(&feed.topic, vec![nobody]).await;
    world.drained(&feed.topic, 1).await;
    world.shows("user_view", &users.as_view()).await;
    let letters = world.dead_letters().await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert!(letters[0].starts_with("refused "), "{letters:?}");
    let outcome = consumer.stop().await;
    assert_eq!((total(&outcome), outcome.quarantined), (3, 1), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_waits_behind_a_refused_record_of_its_own_batch() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    let mut messages =
        vec![feed.message(&users.clone().put(7)), feed.message(&users.clone().put(7))];
    messages[0].value.as_mut().expect("a value").truncate(9);
    messages.push(feed.message(&users.put(8)));
    world.send(&feed.topic, messages).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    world.drained(&feed.topic, 1).await;
    one_waits_behind_another(&world, "7").await;
    world.shows("user_view", &users.as_view()).await;
    consumer.stop().await;
}

/// The first record that the consumer reads of the topic: it knows neither key nor value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_waits_behind_a_record_whose_value_names_no_schema() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut users = Users::default();
    let mut nothing = feed.message(&users.clone().put(7));
    nothing.value = Some(b"text".to_vec());
    let waits = feed.message(&users.clone().put(7));
    world.send(&feed.topic, vec![nothing, waits, feed.message(&users.put(8))]).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    world.drained(&feed.topic, 1).await;
    one_waits_behind_another(&world, "7").await;
    world.shows("user_view", &users.as_view()).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_does_not_fit_is_found_among_those_that_do() {
    let world = World::new().await;
    let (feed, views) = notes(&world, 1).await;
    let mut events: Vec<Event> =
        (1..=200).map(|id| Event::new("c", id, note(id, "short", 1))).collect();
    events[49].row["title"] = json!("too long for five");
    events[99].row["size"] = json!(40_000);
    events[149].row["title"] = json!("nul\u{0}");
    feed.send(&world, &events).await;
    let consumer = Consumer::start(&world, &views, &[]);
    world.drained(&feed.topic, 1).await;
    let good: Vec<Json> = (1..=200)
        .filter(|id| ![50, 100, 150].contains(id))
        .map(|id| note(id, "short", 1))
        .collect();
    world.shows("note", &good).await;
    let letters = world.dead_letters().await;
    let reasons = ["character varying(5)", "out of range for type smallint", "NUL character"];
    assert_eq!(letters.len(), reasons.len(), "{letters:?}");
    for (letter, reason) in letters.iter().zip(reasons) {
        assert!(letter.contains(reason), "{letter}: {reason}");
    }
    let outcome = consumer.stop().await;
    assert_eq!((outcome.applied, outcome.quarantined), (197, 3), "{outcome:?}");
}

/// A table of columns that hold less than the source's, each in its own way: `code` cuts blanks, `word` would be
/// cut by a cast, and what `tag` holds must fit its index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_that_a_column_cannot_hold_whole_is_kept_aside() {
    let world = World::new().await;
    let create = "create domain word as varchar(5);
        create table item (id bigint primary key, code varchar(5), word word, tag text);
        create index on item (tag)";
    world.view(create, "item").await;
    let text = |name: &str| json!({"name": name, "type": "string"});
    let fields = json!([{"name": "id", "type": "long"}, text("code"), text("word"), text("tag")]);
    let feed = Feed::new(&world, 1, &fields, &["id"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'item'\n", feed.topic);
    let item = |id: i64, code: &str, word: &str, tag: &str| json!({"id": id, "code": code, "word": word, "tag": tag});
    // No compression makes it fit.
    let long: String = (0..600).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
    let rows = [
        item(1, "12345", "12345", "short"),
        item(2, "12345  ", "a", "a"),
        item(3, "a", "123456", "a"),
        item(4, "a", "12345 ", "a"),
        item(5, "a", "a", &long),
        item(6, "한글한글 ", "한글한글한", "b"),
    ];
    let events: Vec<_> =
        (1..).zip(&rows).map(|(lsn, row)| Event::new("c", 8 * lsn, row.clone())).collect();
    feed.send(&world, &events).await;
    let consumer = Consumer::start(&world, &views, &[]);
    world.drained(&feed.topic, 1).await;
    world.shows("item", &[rows[0].clone(), rows[5].clone()]).await;
    let letters = world.dead_letters().await;
    let refused = ["refused 2: ", "refused 3: ", "refused 4: ", "refused 5: "];
    assert!(letters.len() == 4, "{letters:?}");
    for start in refused {
        assert!(letters.iter().any(|letter| letter.starts_with(start)), "{start} {letters:?}");
    }
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_read_again_stays_one_and_its_key_stays_parked() {
    let world = World::new().await;
    let (feed, views) = notes(&world, 1).await;
    let events = [
        Event::new("c", 1, note(1, "ok", 1)),
        Event::new("c", 2, note(2, "too long for five", 1)),
        Event::new("u", 3, note(2, "fits", 2)),
        Event::new("d", 4, note(2, "", 0)),
        Event::new("u", 5, note(1, "ok2", 2)),
    ];
    let consumer = Consumer::start(&world, &views, &[]);
    for event in &events {
        feed.send(&world, std::slice::from_ref(event)).await;
        world.drained(&feed.topic, 1).await; // a batch of its own
    }
    consumer.stop().await;
    let before = world.dead_letters().await;
    assert_eq!(before.len(), 3, "{before:?}");

    world.reset_group(&feed.topic, 1, 0).await;
    let consumer = Consumer::start(&world, &views, &[]);
    wait_until("the replay", SOON, || async {
        let counted = total(&consumer.outcome());
        if counted == 5 { Ok(()) } else { Err(counted.to_string()) }
    })
    .await;
    assert_eq!(world.dead_letters().await.len(), 3);
    world.shows("note", &[note(1, "ok2", 2)]).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_record_that_retention_removed_meanwhile_is_kept_aside_without_its_bytes() {
    let world = World::new().await;
    let (feed, views) = notes(&world, 1).await;
    let consumer = Consumer::start(&world, &views, &[]);
    consumer.joined().await;
    let db = world.holding("lock table note in share mode").await;
    feed.send(&world, &[Event::new("c", 8, note(1, "too long for five", 1))]).await;
    world.session_shows("wait_event_type = 'Lock'").await;
    world.delete_records(&feed.topic, 0, 1).await;
    drop(db);
    world.drained(&feed.topic, 1).await;
    let letters = world.dead_letters().await;
    assert!(letters.len() == 1 && letters[0].starts_with("refused 1: "), "{letters:?}");
    let bytes = "select count(*) from cdc_dead_letter where record_value is not null";
    assert_eq!(world.text(bytes).await, "0");
    consumer.stop().await;
}

/// An index over rows holds a third of a page at most.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_whose_key_no_index_holds_is_kept_aside_and_its_changes_behind_it() {
    let world = World::new().await;
    world.view("create table page (url text primary key, size int)", "page").await;
    let fields = json!([{"name": "url", "type": "string"}, {"name": "size", "type": "int"}]);
    let feed = Feed::new(&world, 1, &fields, &["url"]).await;
    let views = format!("[[view]]\ntopic = '{}'\ntable = 'page'\n", feed.topic);
    // No compression makes it fit.
    let long: String = (0..600).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
    let page = |url: &str, size: i64| json!({"url": url, "size": size});
    let consumer = Consumer::start(&world, &views, &[]);
    let rows = [page("a", 1), page(&long, 1), page(&long, 2), page("a", 2)];
    for (lsn, row) in (1..).zip(&rows) {
        feed.send(&world, &[Event::new("u", 8 * lsn, row.clone())]).await;
        world.drained(&feed.topic, 1).await; // a batch of its own
    }
    world.shows("page", &[page("a", 2)]).await;
    let letters = world.dead_letters().await;
    let reasons: Vec<_> = letters.iter().filter_map(|letter| letter.split(' ').next()).collect();
    assert_eq!(reasons, ["refused", "parked"]);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_bad_records_halts() {
    let world = World::new().await;
    let (feed, views) = notes(&world, 1).await;
    let consumer = Consumer::start(&world, &views, &["--dead-letters-max=20"]);
    let events: Vec<Event> =
        (1..=30).map(|id| Event::new("c", id, note(id, "too long for five", 1))).collect();
    feed.send(&world, &events).await;
    let error = consumer.failure().await;
    assert!(error.contains("dead letters are open, more than the limit of 20"), "{error}");
    assert!(error.contains("a flood is a wrong setting"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_wait_behind_one_bad_record_are_no_flood() {
    let world = World::new().await;
    let (feed, views) = notes(&world, 1).await;
    let consumer = Consumer::start(&world, &views, &["--dead-letters-max=10"]);
    feed.send(&world, &[Event::new("c", 1, note(1, "too long for five", 0))]).await;
    world.drained(&feed.topic, 1).await;
    for size in 1..=20 {
        let [of_its_key, of_another] = [note(1, "fits", size), note(2, "fits", size)];
        let lsn = size * 2;
        let events = [Event::new("u", lsn, of_its_key), Event::new("u", lsn + 1, of_another)];
        feed.send(&world, &events).await;
        world.drained(&feed.topic, 1).await; // a batch of its own
    }
    world.shows("note", &[note(2, "fits", 20)]).await;
    assert_eq!(world.dead_letters().await.len(), 21);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_row_whose_every_record_is_bad_is_no_flood() {
    let world = World::new().await;
    let (feed, views) = notes(&world, 1).await;
    let one_by_one = ["--dead-letters-max=10", "--batch-records-max=1"];
    let consumer = Consumer::start(&world, &views, &one_by_one);
    let mut bad = feed.message(&Event::new("u", 1, note(1, "fits", 1)));
    bad.value.as_mut().expect("a value").truncate(9);
    world.send(&feed.topic, vec![bad; 20]).await;
    feed.send(&world, &[Event::new("c", 2, note(2, "fits", 1))]).await;
    world.drained(&feed.topic, 1).await;
    world.shows("note", &[note(2, "fits", 1)]).await;
    let letters = world.dead_letters().await;
    assert!(letters.iter().all(|letter| letter.starts_with("refused 1: ")), "{letters:?}");
    assert_eq!(letters.len(), 20);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_wait_without_end_halt() {
    let world = World::new().await;
    let (feed, views) = notes(&world, 1).await;
    let consumer = Consumer::start(&world, &views, &["--dead-letters-max=1"]);
    feed.send(&world, &[Event::new("c", 1, note(1, "too long for five", 0))]).await;
    world.drained(&feed.topic, 1).await;
    let waiting = "insert into cdc_dead_letter
            (view_name, topic, partition, record_offset, key_text, reason, error)
        select view_name, topic, partition, record_offset + 1000 + n, key_text, 'parked', ''
        from cdc_dead_letter, generate_series(1, 98) n";
    world.sql(waiting).await;
    feed.send(&world, &[Event::new("u", 2, note(1, "fits", 1))]).await;
    world.drained(&feed.topic, 1).await;
    feed.send(&world, &[Event::new("u", 3, note(1, "fits", 2))]).await;
    let error = consumer.failure().await;
    assert!(error.contains("101 records are kept aside, more than 100"), "{error}");
    assert!(error.contains("wait behind a refused one"), "{error}");
    assert_eq!(world.next_offset(&feed.topic, 0).await, "2", "nothing was skipped");
}

/// Sends one record of the given bytes and returns the dead letter it becomes. `None` is the key as it should be.
async fn refused(key: Option<&[u8]>, value: &[u8], header: Option<&'static str>) -> String {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let consumer = Consumer::start(&world, &user_views(&feed.topic), &[]);
    let good = || feed.key_bytes(&json!({"id": 1}));
    let key = Some(key.map_or_else(good, Vec::from));
    let message = Message { key, value: Some(value.to_vec()), header, ..Message::default() };
    world.send(&feed.topic, vec![message]).await;
    world.drained(&feed.topic, 1).await;
    consumer.stop().await;
    world.dead_letters().await.join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_without_the_wire_prefix_names_the_setting_that_causes_it() {
    let check = async |value: &[u8], header: Option<_>, expected: &str| {
        // The key of a record that has its schema in the headers may look as if it had a prefix, too.
        let key = header.is_some().then_some(&[0, 4, 0, 0, 0, 9][..]);
        let letter = refused(key, value, header).await;
        assert!(letter.contains(expected), "{expected}: {letter}");
    };
    check(b"{\"payload\":{}}", None, "the value is JSON, not Avro").await;
    let in_headers = "set apicurio.registry.headers.enabled=false";
    check(&[2, 4, 6], Some("apicurio.value.globalId"), in_headers).await;
    // As if it began with the prefix: no row before, an id of four bytes in the row after.
    check(&[0, 2, 0x80, 0x80, 0x80, 0x02], Some("apicurio.value.globalId"), in_headers).await;
    check(&[1, 2, 3], None, "does not begin with the schema registry's prefix").await;
    let eight_bytes = "set apicurio.registry.as-confluent=true";
    check(&[0, 0, 0, 0, 0, 0, 0, 0, 5, 2, 4], None, eight_bytes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_foreign_record_is_kept_aside_though_its_key_names_a_schema_of_something_else() {
    let world = World::new().await;
    let fields = json!([{"name": "other", "type": "string"}]);
    let schema = json!({"type": "record", "name": "Other", "fields": fields});
    let other = world.register(&world.name, schema);
    let [.., a, b, c, d] = other.await.id.to_be_bytes();
    let letter = refused(Some(&[0, a, b, c, d]), b"{}", None).await;
    assert!(letter.starts_with("refused ") && letter.contains("JSON"), "{letter}");
}
