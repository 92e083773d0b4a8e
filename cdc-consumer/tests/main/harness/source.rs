//! A users table at the source: what is in it, and the changes that made it so.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::World;
use super::feed::{Event, Feed};

/// The Avro fields of the users table, as Debezium writes them.
pub(crate) fn user_fields() -> Json {
    let time = json!({"type": "string", "connect.version": 1,
        "connect.default": "1970-01-01T00:00:00.000000Z",
        "connect.name": "io.debezium.time.ZonedTimestamp"});
    json!([
        {"name": "id", "type": "long"}, {"name": "name", "type": "string"},
        {"name": "email", "type": "string"}, {"name": "department", "type": "string"},
        {"name": "status", "type": {"type": "string", "connect.default": "ACTIVE"}, "default": "ACTIVE"},
        {"name": "created_at", "type": time, "default": "1970-01-01T00:00:00.000000Z"},
        {"name": "updated_at", "type": time, "default": "1970-01-01T00:00:00.000000Z"},
        {"name": "version", "type": {"type": "long", "connect.default": 1}, "default": 1},
    ])
}

/// A topic of users.
pub(crate) async fn user_feed(world: &World, partitions: i32) -> Feed {
    Feed::new(world, partitions, &user_fields(), &["id"]).await
}

/// The same topic after a nullable column was added at the source: a schema of its own.
pub(crate) async fn wider_user_feed(world: &World, topic: &str) -> Feed {
    let mut fields = user_fields();
    let phone = json!({"name": "phone", "type": ["null", "string"], "default": null});
    fields.as_array_mut().expect("fields").push(phone);
    Feed::on(world, topic, &fields, &["id"]).await
}

/// The declaration of `user_view` for a topic.
pub(crate) fn user_views(topic: &str) -> String {
    format!("[[view]]\ntopic = '{topic}'\ntable = 'user_view'\nkey = {{ id = 'user_id' }}\n")
}

/// The users table. Every change takes the next LSN.
#[derive(Debug, Clone, Default)]
pub(crate) struct Users {
    rows: BTreeMap<i64, Json>,
    pub(crate) lsn: i64,
}

impl Users {
    /// An empty table whose next change comes after this LSN.
    pub(crate) fn after(lsn: i64) -> Self {
        Self { rows: BTreeMap::new(), lsn }
    }

    /// Inserts a row, or updates it: the next version, perhaps another department or status.
    pub(crate) fn put(&mut self, id: i64) -> Event {
        self.lsn += 8;
        let version = self.rows.get(&id).map_or(0, |row| row["version"].as_i64().unwrap_or(0)) + 1;
        let department = ["개발팀", "Sales", "R&D \"x\"", "it's"];
        let index = usize::try_from((id + version) % 4).expect("not negative");
        let row = json!({
            "id": id, "name": format!("user {id} v{version}"), "email": format!("u{id}@x.test"),
            "department": department[index],
            "status": if version % 3 == 0 { "INACTIVE" } else { "ACTIVE" },
            "created_at": "2024-05-01T10:00:00.123456Z",
            "updated_at": format!("2024-05-02T10:00:00.{:06}Z", version % 1_000_000),
            "version": version,
        });
        let op = if self.rows.insert(id, row.clone()).is_some() { "u" } else { "c" };
        Event::new(op, self.lsn, row)
    }

    /// Keys of the rows there are.
    pub(crate) fn ids(&self) -> Vec<i64> {
        self.rows.keys().copied().collect()
    }

    /// The row of a key once more, as an incremental snapshot reads it.
    pub(crate) fn read(&self, id: i64) -> Option<Event> {
        let event = Event::new("r", self.lsn, self.rows.get(&id)?.clone());
        Some(Event { snapshot: "incremental", ..event })
    }

    /// Removes every row.
    pub(crate) fn truncate(&mut self) -> Event {
        self.lsn += 8;
        self.rows.clear();
        Event::new("t", self.lsn, Json::Null)
    }

    pub(crate) fn puts(&mut self, ids: impl IntoIterator<Item = i64>) -> Vec<Event> {
        ids.into_iter().map(|id| self.put(id)).collect()
    }

    pub(crate) fn delete(&mut self, id: i64) -> Event {
        self.lsn += 8;
        self.rows.remove(&id);
        Event::new("d", self.lsn, json!({"id": id}))
    }

    /// Reads of a snapshot: every row at one LSN.
    pub(crate) fn snapshot(&mut self) -> Vec<Event> {
        self.lsn += 8;
        let events = self.rows.values().map(|row| Event::new("r", self.lsn, row.clone()));
        events.collect()
    }

    /// The rows as `user_view` must show them.
    pub(crate) fn as_view(&self) -> Vec<Json> {
        let rows = self.rows.values().map(|row| {
            let mut row = row.clone();
            row["user_id"] = row["id"].take();
            row
        });
        rows.collect()
    }
}
