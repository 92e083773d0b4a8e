//! A topic of Debezium envelopes for one source table.

use serde_json::{Value as Json, json};

use super::World;
use super::avro::Schema;

/// A topic with the schemas its records are written with.
#[derive(Clone)]
pub(crate) struct Feed {
    pub(crate) topic: String,
    pub(crate) key: Schema,
    pub(crate) value: Schema,
    key_fields: Vec<String>,
}

/// One change as Debezium would send it.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// `c`, `u`, `d`, `r` or `t`.
    pub(crate) op: &'static str,
    /// The row; of a delete, at least the key. Null for a TRUNCATE.
    pub(crate) row: Json,
    pub(crate) lsn: i64,
    /// LSN of the last commit that the connector read before it.
    pub(crate) last_commit: i64,
    /// `source.snapshot`.
    pub(crate) snapshot: &'static str,
}

impl Event {
    pub(crate) fn new(op: &'static str, lsn: i64, row: Json) -> Self {
        let snapshot = if op == "r" { "true" } else { "false" };
        Self { op, row, lsn, last_commit: lsn - 1, snapshot }
    }
}

/// A record to be sent. Without a partition the key decides, as for Connect.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message {
    pub(crate) partition: Option<i32>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) header: Option<&'static str>,
    /// What Kafka stores with it, in milliseconds from 1970; the time of sending without.
    pub(crate) timestamp_millis: Option<i64>,
}

impl Message {
    pub(crate) fn to(self, partition: i32) -> Self {
        Self { partition: Some(partition), ..self }
    }
}

impl Feed {
    /// Creates the topic and registers schemas. `fields`: the row's Avro fields; `key_fields`: names.
    pub(crate) async fn new(world: &World, partitions: i32, fields: &Json, key: &[&str]) -> Self {
        let topic = world.topic(partitions, &[("cleanup.policy", "delete")]).await;
        Self::on(world, &topic, fields, key).await
    }

    /// The same for a topic that is there.
    pub(crate) async fn on(world: &World, topic: &str, fields: &Json, key: &[&str]) -> Self {
        let key_schema = world.register(&format!("{topic}-key"), key_schema(fields, key)).await;
        let value_schema = world.register(&format!("{topic}-value"), envelope(fields)).await;
        Self::with(topic, key_schema, value_schema, key)
    }

    /// The same without servers: no registry knows the ids, which are 1 for keys and 2 for values.
    pub(crate) fn alone(fields: &Json, key: &[&str]) -> Self {
        let key_schema = Schema::new(1, key_schema(fields, key));
        Self::with("alone", key_schema, Schema::new(2, envelope(fields)), key)
    }

    fn with(topic: &str, key_schema: Schema, value_schema: Schema, key: &[&str]) -> Self {
        Self {
            topic: topic.to_owned(),
            key: key_schema,
            value: value_schema,
            key_fields: key.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    /// The record of a change.
    pub(crate) fn message(&self, event: &Event) -> Message {
        self.message_at(event, now_micros())
    }

    /// The same, of a change committed at this time (microseconds from 1970).
    pub(crate) fn message_at(&self, event: &Event, micros: i64) -> Message {
        let snapshot_read = event.snapshot == "incremental";
        let upsert = matches!(event.op, "c" | "u" | "r");
        let value = json!({
            "before": Json::Null,
            "after": if upsert { event.row.clone() } else { Json::Null },
            "source": {
                "version": "3.6.3.Final", "connector": "postgresql", "name": "test-service",
                "ts_ms": micros / 1000, "ts_us": micros, "ts_ns": micros * 1000,
                "snapshot": event.snapshot, "db": "user_db", "schema": "public", "table": "things",
                "sequence": format!("[\"{}\",\"{}\"]", event.last_commit, event.lsn),
                "txId": if snapshot_read { Json::Null } else { json!(event.lsn) },
                "lsn": if snapshot_read { Json::Null } else { json!(event.lsn) },
            },
            "op": event.op, "ts_ms": micros / 1000, "ts_us": micros, "ts_ns": micros * 1000,
        });
        Message {
            key: (event.op != "t").then(|| self.key_bytes(&event.row)),
            value: Some(self.value.encode(&value)),
            ..Message::default()
        }
    }

    /// A delete's second record, for compaction.
    pub(crate) fn tombstone(&self, row: &Json) -> Message {
        Message { key: Some(self.key_bytes(row)), ..Message::default() }
    }

    pub(crate) fn key_bytes(&self, row: &Json) -> Vec<u8> {
        let key = self.key_fields.iter().map(|name| (name.clone(), row[name].clone()));
        self.key.encode(&Json::Object(key.collect()))
    }

    /// Sends changes; returns after the broker has them all.
    pub(crate) async fn send(&self, world: &World, events: &[Event]) {
        world.send(&self.topic, events.iter().map(|event| self.message(event)).collect()).await;
    }
}

const NAMESPACE: &str = "test_service.public.things";

fn key_schema(fields: &Json, key: &[&str]) -> Json {
    let all = fields.as_array().expect("a list of fields").iter();
    let in_key = |field: &&Json| key.contains(&field["name"].as_str().expect("a name"));
    let key_fields: Vec<&Json> = all.filter(in_key).collect();
    json!({"type": "record", "name": "Key", "namespace": NAMESPACE,
        "fields": key_fields, "connect.name": format!("{NAMESPACE}.Key")})
}

/// The schema Debezium registers, with the fields of this row.
fn envelope(fields: &Json) -> Json {
    let namespace = NAMESPACE;
    let optional =
        |name: &str, kind: &str| json!({"name": name, "type": ["null", kind], "default": null});
    let value = json!({"type": "record", "name": "Value", "fields": fields,
        "connect.name": format!("{namespace}.Value")});
    let snapshot = json!({"type": "string", "connect.version": 1, "connect.default": "false",
        "connect.parameters": {"allowed":
            "true,first,first_in_data_collection,last_in_data_collection,last,false,incremental"},
        "connect.name": "io.debezium.data.Enum"});
    let source = json!({"type": "record", "name": "Source",
    "namespace": "io.debezium.connector.postgresql", "connect.version": 1,
    "connect.name": "io.debezium.connector.postgresql.Source",
    "fields": [
        {"name": "version", "type": "string"}, {"name": "connector", "type": "string"},
        {"name": "name", "type": "string"}, {"name": "ts_ms", "type": "long"},
        {"name": "snapshot", "type": [snapshot, "null"], "default": "false"},
        {"name": "db", "type": "string"}, optional("sequence", "string"),
        optional("ts_us", "long"), optional("ts_ns", "long"),
        {"name": "schema", "type": "string"}, {"name": "table", "type": "string"},
        optional("txId", "long"), optional("lsn", "long"), optional("xmin", "long"),
        optional("origin", "string"), optional("origin_lsn", "long"),
    ]});
    let block = json!({"type": "record", "name": "block", "namespace": "event", "connect.version": 1,
        "connect.name": "event.block",
        "fields": [{"name": "id", "type": "string"}, {"name": "total_order", "type": "long"},
            {"name": "data_collection_order", "type": "long"}]});
    json!({"type": "record", "name": "Envelope", "namespace": namespace, "connect.version": 2,
    "connect.name": format!("{namespace}.Envelope"),
    "fields": [
        {"name": "before", "type": ["null", value], "default": null},
        {"name": "after", "type": ["null", "Value"], "default": null},
        {"name": "source", "type": source},
        {"name": "transaction", "type": ["null", block], "default": null},
        {"name": "op", "type": "string"},
        optional("ts_ms", "long"), optional("ts_us", "long"), optional("ts_ns", "long"),
    ]})
}

fn now_micros() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.expect("after 1970").as_micros()).expect("before the year 294276")
}
