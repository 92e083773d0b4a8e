//! What bytes from outside are tried against, and what must hold whatever they are. Each target takes
//! any bytes and panics when something does not hold.
//!
//! The fuzzer (`fuzz/`) includes this file, so it knows nothing of the other tests.

use std::sync::{Arc, LazyLock};

use cdc_consumer::avro::Reader;
use cdc_consumer::batch::Batch;
use cdc_consumer::catalog::Table;
use cdc_consumer::convert::{Cell, Converter};
use cdc_consumer::decode::{DecodeError, Decoded, Decoder, Record, View};
use cdc_consumer::kind::PgType;
use cdc_consumer::offsets::{Partition, Progress};
use cdc_consumer::plan::{RowPlan, ValuePlan};
use cdc_consumer::rows::{CellText, Rows};
use cdc_consumer::schema::{self, Node};
use cdc_consumer::skip::Skip;
use cdc_consumer::view::{self, ViewSpec};
use cdc_consumer::{pairing, wire};

/// Takes any bytes.
pub(crate) type Target = fn(&[u8]);

/// All targets by name.
pub(crate) const TARGETS: [(&str, Target); 7] = [
    ("wire", against_wire),
    ("avro", against_avro),
    ("schema", against_schema),
    ("envelope", against_envelope),
    ("convert", against_convert),
    ("record", against_record),
    ("views", against_views),
];

/// The schemas of a users topic, as the connector registers them.
pub(crate) const KEY_SCHEMA: &str = include_str!("key.avsc");
pub(crate) const VALUE_SCHEMA: &str = include_str!("value.avsc");
/// Their ids in the records of the `record` target.
pub(crate) const KEY_ID: u32 = 1;
pub(crate) const VALUE_ID: u32 = 2;

/// The table `user_view` as the catalogue describes it.
fn table() -> Table {
    let columns = [
        ("user_id", "int8"),
        ("name", "text"),
        ("email", "text"),
        ("department", "text"),
        ("status", "text"),
        ("created_at", "timestamptz"),
        ("updated_at", "timestamptz"),
        ("version", "int8"),
    ];
    Table::sample("user_view", 1, &columns)
}

fn spec() -> ViewSpec {
    let text = "[[view]]\ntopic = 'users'\ntable = 'user_view'\nkey = { id = 'user_id' }\n";
    view::parse(text).expect("a valid file").remove(0)
}

fn node(text: &str) -> Node {
    schema::parse(text, &[]).expect("a valid schema")
}

fn against_wire(data: &[u8]) {
    if let Ok(prefixed) = wire::split(data) {
        let id = prefixed.schema_id.to_be_bytes();
        assert_eq!([&[0], id.as_slice(), prefixed.body].concat(), data);
    }
}

/// A schema of every shape Avro has.
static SHAPES: LazyLock<Skip> = LazyLock::new(|| Skip::over(&node(SHAPES_SCHEMA)));

pub(crate) const SHAPES_SCHEMA: &str = r#"{"type": "record", "name": "Shapes", "fields": [
    {"name": "flag", "type": "boolean"},
    {"name": "numbers", "type": {"type": "array", "items": "long"}},
    {"name": "texts", "type": {"type": "map", "values": ["null", "string", "int"]}},
    {"name": "bytes", "type": "bytes"},
    {"name": "digest", "type": {"type": "fixed", "name": "Digest", "size": 5}},
    {"name": "colour", "type": {"type": "enum", "name": "Colour", "symbols": ["RED", "BLUE"]}},
    {"name": "single", "type": "float"}, {"name": "double", "type": "double"},
    {"name": "inner", "type": {"type": "record", "name": "Inner", "fields": [
        {"name": "nothing", "type": "null"},
        {"name": "deeper", "type": {"type": "array", "items": {"type": "array", "items": "null"}}}
    ]}}]}"#;

/// Skips a whole value, then reads what is left as every primitive: nothing reaches past the end.
fn against_avro(data: &[u8]) {
    let mut reader = Reader::new(data);
    if SHAPES.step_over(&mut reader).is_ok() {
        assert!(data.ends_with(reader.rest()));
    }
    let reads: [fn(&mut Reader<'_>) -> bool; 9] = [
        |reader| reader.boolean().is_ok(),
        |reader| reader.long().is_ok(),
        |reader| reader.int().is_ok(),
        |reader| reader.float().is_ok(),
        |reader| reader.double().is_ok(),
        |reader| reader.bytes().is_ok(),
        |reader| reader.string().is_ok(),
        |reader| reader.block().is_ok(),
        |reader| reader.fixed(3).is_ok(),
    ];
    for read in reads {
        let mut reader = Reader::new(data);
        while !reader.rest().is_empty() {
            let before = reader.rest().len();
            if !read(&mut reader) {
                break;
            }
            assert!(reader.rest().len() < before, "a read that takes nothing never ends");
        }
    }
}

/// A schema from the registry: refused, or compiled for the view or refused by it.
fn against_schema(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(node) = schema::parse(text, &[]) else { return };
    let (spec, table) = (spec(), table());
    let key = RowPlan::compile_key(&node, &spec, &table);
    let value = ValuePlan::compile(&node, &spec, &table);
    drop((key, value));
}

static USERS: LazyLock<ValuePlan> = LazyLock::new(|| {
    ValuePlan::compile(&node(VALUE_SCHEMA), &spec(), &table()).expect("it fits the view")
});

/// The body of a users record. What is accepted becomes text that PostgreSQL can take.
fn against_envelope(data: &[u8]) {
    let Ok(envelope) = USERS.envelope.read(data) else { return };
    let Some(after) = envelope.after else { return };
    assert!(after.len() <= data.len());
    let mut rows = Rows::new(table().width());
    let Ok(row) = rows.push(|row| USERS.row.write(after, || false, row)) else {
        assert_eq!(rows.byte_count(), 0, "a refused row leaves nothing behind");
        return;
    };
    for column in table().value_columns() {
        if let CellText::Text(text) = rows.cell(row, column) {
            assert!(!text.contains('\0'), "PostgreSQL has no NUL in text");
        }
    }
}

/// Every conversion of a simple source type into a simple column type that is allowed at all.
static CONVERSIONS: LazyLock<Vec<Converter>> = LazyLock::new(|| {
    let named = |kind: &str, name: &str| {
        format!(
            r#"{{"type": "{kind}", "connect.name": "{name}", "connect.parameters": {{"scale": "2"}}}}"#
        )
    };
    let kinds = ["boolean", "int", "long", "float", "double", "bytes", "string"];
    let mut schemas: Vec<String> = kinds.iter().map(|kind| format!("\"{kind}\"")).collect();
    schemas.extend(SEMANTIC.iter().map(|(kind, name)| named(kind, name)));
    schemas.push(VARIABLE_DECIMAL.to_owned());
    schemas.push(POINT.to_owned());
    schemas.push(r#"{"type": "map", "values": ["null", "string"]}"#.to_owned());
    let mut all = Vec::new();
    for schema in &schemas {
        let array = format!(r#"{{"type": "array", "items": ["null", {schema}]}}"#);
        for (schema, array) in [(schema, false), (&array, true)] {
            let node = node(schema);
            let types = COLUMN_TYPES.iter().map(|base| column_type(base, array));
            all.extend(types.filter_map(|target| pairing::compile(&node, &target).ok()));
        }
    }
    all
});

const SEMANTIC: [(&str, &str); 18] = [
    ("int", "io.debezium.time.Date"),
    ("int", "org.apache.kafka.connect.data.Date"),
    ("int", "io.debezium.time.Time"),
    ("long", "io.debezium.time.MicroTime"),
    ("long", "io.debezium.time.NanoTime"),
    ("long", "io.debezium.time.Timestamp"),
    ("long", "io.debezium.time.MicroTimestamp"),
    ("long", "io.debezium.time.NanoTimestamp"),
    ("long", "io.debezium.time.MicroDuration"),
    ("string", "io.debezium.time.ZonedTimestamp"),
    ("string", "io.debezium.time.ZonedTime"),
    ("string", "io.debezium.time.Interval"),
    ("string", "io.debezium.data.Json"),
    ("string", "io.debezium.data.Uuid"),
    ("string", "io.debezium.data.Enum"),
    ("bytes", "org.apache.kafka.connect.data.Decimal"),
    ("bytes", "io.debezium.data.Bits"),
    ("string", "io.debezium.data.Xml"),
];

const VARIABLE_DECIMAL: &str = r#"{"type": "record", "name": "VariableScaleDecimal",
    "namespace": "io.debezium.data", "connect.name": "io.debezium.data.VariableScaleDecimal",
    "fields": [{"name": "scale", "type": "int"}, {"name": "value", "type": "bytes"}]}"#;

const POINT: &str = r#"{"type": "record", "name": "Point", "namespace": "io.debezium.data.geometry",
    "connect.name": "io.debezium.data.geometry.Point",
    "fields": [{"name": "x", "type": "double"}, {"name": "y", "type": "double"},
        {"name": "wkb", "type": ["null", "bytes"]}, {"name": "srid", "type": ["null", "int"]}]}"#;

const COLUMN_TYPES: [&str; 22] = [
    "bool",
    "int2",
    "int8",
    "float4",
    "float8",
    "text",
    "bytea",
    "numeric",
    "money",
    "date",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
    "interval",
    "jsonb",
    "uuid",
    "xml",
    "bit",
    "point",
    "ltree",
    "hstore",
];

fn column_type(base: &str, array: bool) -> PgType {
    let element = PgType {
        name: base.to_owned(),
        cast: format!("pg_catalog.{base}"),
        modifier: if base == "bit" { 8 } else { -1 },
        base: base.to_owned(),
        enumeration: false,
        range: false,
        element: None,
    };
    if !array {
        return element;
    }
    PgType {
        name: format!("{base}[]"),
        cast: format!("pg_catalog._{base}"),
        base: format!("_{base}"),
        element: Some(Box::new(element.clone())),
        ..element
    }
}

/// How many conversions the `convert` target knows.
pub(crate) fn conversion_count() -> usize {
    CONVERSIONS.len()
}

/// First two bytes: which conversion; then the value.
fn against_convert(data: &[u8]) {
    let Some((chosen, value)) = data.split_first_chunk::<2>() else { return };
    let index = usize::from(u16::from_le_bytes(*chosen)) % CONVERSIONS.len();
    let mut text = String::new();
    let mut reader = Reader::new(value);
    if let Ok(Cell::Text) = CONVERSIONS[index].write(&mut reader, &mut text) {
        assert!(!text.contains('\0'), "PostgreSQL has no NUL in text");
    }
    assert!(value.ends_with(reader.rest()));
}

static KEY: LazyLock<Arc<Node>> = LazyLock::new(|| Arc::new(node(KEY_SCHEMA)));
static VALUE: LazyLock<Arc<Node>> = LazyLock::new(|| Arc::new(node(VALUE_SCHEMA)));

/// First byte: whether there are a key and a value, and a header that names a schema; second byte: the
/// key's length. Whatever the record is, it ends in exactly one counter, or asks for a schema and
/// changes nothing.
fn against_record(data: &[u8]) {
    let [flags, key_length, rest @ ..] = data else { return };
    let (key, value) = rest.split_at(usize::from(*key_length).min(rest.len()));
    let record = Record {
        topic: "users",
        partition: 0,
        offset: 7,
        timestamp_millis: -1,
        key: (flags & 1 == 1).then_some(key),
        value: (flags & 2 == 2).then_some(value),
        headers: &(flags & 4 == 4),
    };
    let (views, shape) = (vec![View { spec: spec(), table: table() }], (1, table().width()));
    let mut decoder = Decoder::new(Arc::new(views));
    decoder.learn(KEY_ID, Arc::clone(&KEY));
    decoder.learn(VALUE_ID, Arc::clone(&VALUE));
    let partition = Partition { topic: "users".to_owned(), number: 0 };
    let (mut progress, mut batch) = (Progress::new(5, 1), Batch::new([shape]));
    let before = progress.clone();
    match decoder.decode(&record, &partition, &mut progress, &mut batch) {
        Ok(Decoded::NeedsSchema(_)) => {
            assert!(batch.is_empty() && progress == before, "asking changes nothing");
        }
        Ok(Decoded::Taken) => {
            let counts = batch.views[0].counts;
            let counted = counts.folded + counts.stale + counts.ignored + counts.truncations;
            let kept = batch.views[0].entries().len() + batch.refused.len();
            assert_eq!(counted + kept as u64, 1, "one record, one outcome: {batch:?}");
            assert_eq!((progress.next_offset, batch.record_count), (8, 1));
            let interval = batch.claims[0].interval;
            assert_eq!((interval.first, interval.next), (5, 8), "the hole before it is covered");
        }
        Err(error) => assert!(
            matches!(error, DecodeError::NoKey { .. } | DecodeError::Plan { .. }),
            "the schemas are right and the topic is known: {error}"
        ),
    }
}

/// The text of a views file: refused with a reason, or a list without doubles.
fn against_views(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match view::parse(text) {
        Ok(views) => {
            let mut tables: Vec<_> = views.iter().map(|view| &view.table).collect();
            tables.sort();
            tables.dedup();
            assert!(!views.is_empty() && tables.len() == views.len());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
