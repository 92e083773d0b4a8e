//! Good inputs for every target, for a fuzzer to begin with.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::harness::feed::{Event, Feed, Message};
use crate::harness::source::{Users, user_fields};

use super::directory;
use super::targets::{SHAPES_SCHEMA, conversion_count};

/// When the changes of the seeds were committed: the same bytes on every day.
const MICROS: i64 = 1_714_557_600_123_456;

/// A value of `SHAPES_SCHEMA`.
pub(crate) const SHAPES_VALUE: &[u8] = &[
    1, 4, 2, 0x80, 1, 0, 2, 2, b'k', 2, 2, b'v', 0, 4, 0xff, 0, 1, 2, 3, 4, 5, 2, 0, 0, 0x80, 0x3f,
    0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 2, 4, 0, 0,
];

/// File and content of every seed, and of the schemas the targets take from here.
pub(crate) fn all() -> Vec<(PathBuf, Vec<u8>)> {
    let feed = Feed::alone(&user_fields(), &["id"]);
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/main/hostile");
    let mut all = vec![
        (here.join("key.avsc"), feed.key.text().into_bytes()),
        (here.join("value.avsc"), feed.value.text().into_bytes()),
    ];
    let mut add = |target: &str, name: &str, data: &[u8]| {
        all.push((directory(target).join(name), data.to_vec()));
    };
    for (name, message) in messages(&feed) {
        let key = message.key.as_deref().unwrap_or_default();
        let value = message.value.as_deref().unwrap_or_default();
        let flags = u8::from(message.key.is_some()) | u8::from(message.value.is_some()) << 1;
        let length = u8::try_from(key.len()).expect("a short key");
        add("record", name, &[[flags, length].as_slice(), key, value].concat());
        if let Some(body) = value.get(5..) {
            add("envelope", name, body);
        }
    }
    add("record", "in-headers", &[2 | 4, 0, 2, 4, 6]);
    add("wire", "prefixed", &[0, 0, 0, 0, 7, 2, 9]);
    add("wire", "json", b"{\"payload\":{}}");
    add("avro", "shapes", SHAPES_VALUE);
    add("avro", "long", &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
    add("schema", "key", feed.key.text().as_bytes());
    add("schema", "value", feed.value.text().as_bytes());
    add("schema", "shapes", SHAPES_SCHEMA.as_bytes());
    add("schema", "primitive", b"\"string\"");
    for chosen in (0..conversion_count()).step_by(11) {
        let chosen = u16::try_from(chosen).expect("few conversions").to_le_bytes();
        let value = [2, 8, b'2', b'0', b'2', b'4', 2, 4, 0, 1, 2, 0, 0, 0, 0];
        add(
            "convert",
            &format!("{:03}", u16::from_le_bytes(chosen)),
            &[&chosen[..], &value].concat(),
        );
    }
    let view = "[[view]]\ntopic = 'user-events'\ntable = 'user_view'\nkey = { id = 'user_id' }\n";
    add("views", "short", view.as_bytes());
    let more = "columns = { name = 'label' }\nabsent = 'keep'\nunmentioned = 'keep'\n";
    add("views", "long", format!("{view}{more}[[view]]\ntopic = 'b'\ntable = 'c'\n").as_bytes());
    all
}

/// A record of every kind.
fn messages(feed: &Feed) -> Vec<(&'static str, Message)> {
    let mut users = Users::default();
    let created = users.put(1);
    let updated = users.put(1);
    let read = users.read(1).expect("a row");
    let snapshot = users.snapshot().remove(0);
    let deleted = users.delete(1);
    let tombstone = feed.tombstone(&deleted.row);
    let truncated = Event::new("t", users.lsn + 8, Json::Null);
    let events = [
        ("create", created),
        ("update", updated),
        ("read", read),
        ("snapshot", snapshot),
        ("delete", deleted),
        ("truncate", truncated),
    ];
    let messages = events.map(|(name, event)| (name, feed.message_at(&event, MICROS)));
    messages.into_iter().chain([("tombstone", tombstone)]).collect()
}
