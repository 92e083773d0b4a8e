//! Debezium's envelope: what happened, where in the source, and where the row lies in the bytes.

use crate::avro::{AvroError, Reader};
use crate::offsets::Origin;
use crate::schema::{Node, Record};

/// Debezium's `op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    /// A row read by a snapshot.
    Read,
    Truncate,
    /// A logical decoding message; no row.
    Message,
}

/// A decoded envelope. The rows are still Avro, of the schemas of `before` and `after`.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    pub operation: Operation,
    pub after: Option<&'a [u8]>,
    pub lsn: i64,
    pub origin: Origin,
    /// The last row of a snapshot of the whole table.
    pub ends_snapshot: bool,
    /// When the source committed the change, in microseconds from 1970, as far as the source says.
    pub source_time_micros: i64,
}

/// Why a schema is not that of an envelope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeSchemaError {
    #[error(
        "the value is not a Debezium envelope: it has no field '{0}' \
         (is the ExtractNewRecordState transform set? remove it from the connector)"
    )]
    NotAnEnvelope(&'static str),
    #[error(
        "the envelope's source has no 'lsn': this is not a record of Debezium's PostgreSQL connector"
    )]
    NotPostgres,
}

/// Why a record's envelope cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    #[error(transparent)]
    Avro(#[from] AvroError),
    #[error("operation '{0}' is not one of c, u, d, r, t, m")]
    UnknownOperation(String),
    #[error("the record has neither an lsn nor a sequence that gives one")]
    NoPosition,
}

/// What to do with each field of an envelope, in the writer's order.
#[derive(Debug, Clone, PartialEq)]
pub struct EnvelopePlan {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Skip(Node),
    Operation(Node),
    After { branches: Vec<Node> },
    Source(Vec<(SourceField, Node)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SourceField {
    Lsn,
    Sequence,
    Snapshot,
    TimeMillis,
    TimeMicros,
    Other,
}

#[derive(Default)]
struct Source<'a> {
    lsn: Option<i64>,
    sequence: Option<&'a str>,
    origin: Option<Origin>,
    ends_snapshot: bool,
    time_micros: Option<i64>,
    time_millis: Option<i64>,
}

impl EnvelopePlan {
    /// Compiles the plan for a value schema.
    pub fn compile(envelope: &Record) -> Result<Self, EnvelopeSchemaError> {
        let has = |name| envelope.fields.iter().any(|field| field.name == name);
        for name in ["op", "after", "source"] {
            if !has(name) {
                return Err(EnvelopeSchemaError::NotAnEnvelope(name));
            }
        }
        let steps = envelope.fields.iter().map(|field| match (field.name.as_str(), &field.node) {
            ("op", node) => Ok(Step::Operation(node.clone())),
            ("after", Node::Union(branches)) => Ok(Step::After { branches: branches.clone() }),
            ("after", node) => Ok(Step::After { branches: vec![node.clone()] }),
            ("source", node) => source_steps(node).map(Step::Source),
            (_, node) => Ok(Step::Skip(node.clone())),
        });
        Ok(Self { steps: steps.collect::<Result<_, _>>()? })
    }

    /// The record type of `after`: the columns of the source table.
    pub fn row_type(envelope: &Record) -> Option<&Record> {
        let after = envelope.fields.iter().find(|field| field.name == "after")?;
        match &after.node {
            Node::Record(record) => Some(record),
            Node::Union(branches) => branches.iter().find_map(|branch| match branch {
                Node::Record(record) => Some(&**record),
                _ => None,
            }),
            _ => None,
        }
    }

    /// Reads one envelope.
    pub fn read<'a>(&self, bytes: &'a [u8]) -> Result<Envelope<'a>, EnvelopeError> {
        let mut reader = Reader::new(bytes);
        let mut operation = None;
        let mut after = None;
        let mut source = Source::default();
        for step in &self.steps {
            match step {
                Step::Skip(node) => reader.skip(node)?,
                Step::Operation(node) => operation = scalar_text(node, &mut reader)?,
                Step::After { branches } => after = locate_row(branches, &mut reader)?,
                Step::Source(fields) => source.read(fields, &mut reader)?,
            }
        }
        reader.finish()?;
        Ok(Envelope {
            operation: parse_operation(operation)?,
            after,
            lsn: source
                .lsn
                .or_else(|| source.sequence.and_then(sequence_lsn))
                .ok_or(EnvelopeError::NoPosition)?,
            origin: source.origin.unwrap_or(Origin::Streaming),
            ends_snapshot: source.ends_snapshot,
            source_time_micros: source
                .time_micros
                .or(source.time_millis.map(|millis| millis.saturating_mul(1000)))
                .unwrap_or(0),
        })
    }
}

fn source_steps(node: &Node) -> Result<Vec<(SourceField, Node)>, EnvelopeSchemaError> {
    let Node::Record(source) = node else {
        return Err(EnvelopeSchemaError::NotPostgres);
    };
    let steps: Vec<_> = source
        .fields
        .iter()
        .map(|field| {
            let step = match field.name.as_str() {
                "lsn" => SourceField::Lsn,
                "sequence" => SourceField::Sequence,
                "snapshot" => SourceField::Snapshot,
                "ts_ms" => SourceField::TimeMillis,
                "ts_us" => SourceField::TimeMicros,
                _ => SourceField::Other,
            };
            (step, field.node.clone())
        })
        .collect();
    let has_lsn = steps.iter().any(|(field, _)| *field == SourceField::Lsn);
    if has_lsn { Ok(steps) } else { Err(EnvelopeSchemaError::NotPostgres) }
}

impl<'a> Source<'a> {
    fn read(
        &mut self,
        fields: &[(SourceField, Node)],
        reader: &mut Reader<'a>,
    ) -> Result<(), AvroError> {
        for (field, node) in fields {
            match field {
                SourceField::Other => reader.skip(node)?,
                SourceField::Lsn => self.lsn = scalar_number(node, reader)?,
                SourceField::TimeMillis => self.time_millis = scalar_number(node, reader)?,
                SourceField::TimeMicros => self.time_micros = scalar_number(node, reader)?,
                SourceField::Sequence => self.sequence = scalar_text(node, reader)?,
                SourceField::Snapshot => {
                    let snapshot = scalar_text(node, reader)?;
                    self.origin = snapshot.map(origin);
                    self.ends_snapshot =
                        matches!(snapshot, Some("last" | "last_in_data_collection"));
                }
            }
        }
        Ok(())
    }
}

fn parse_operation(operation: Option<&str>) -> Result<Operation, EnvelopeError> {
    match operation {
        Some("c") => Ok(Operation::Create),
        Some("u") => Ok(Operation::Update),
        Some("d") => Ok(Operation::Delete),
        Some("r") => Ok(Operation::Read),
        Some("t") => Ok(Operation::Truncate),
        Some("m") => Ok(Operation::Message),
        other => Err(EnvelopeError::UnknownOperation(other.unwrap_or("null").to_owned())),
    }
}

/// `source.snapshot`: "first", "true", "last" and their per-table forms mark a whole-table snapshot.
fn origin(snapshot: &str) -> Origin {
    match snapshot {
        "false" => Origin::Streaming,
        "incremental" => Origin::IncrementalSnapshot,
        _ => Origin::Snapshot,
    }
}

/// `source.sequence` is `["last committed lsn", "lsn"]`; reads of an incremental snapshot have only this.
fn sequence_lsn(sequence: &str) -> Option<i64> {
    let (_, lsn): (Option<String>, Option<String>) = serde_json::from_str(sequence).ok()?;
    lsn?.parse().ok()
}

/// Finds a row in place: the bytes of the union's record branch.
fn locate_row<'a>(
    branches: &[Node],
    reader: &mut Reader<'a>,
) -> Result<Option<&'a [u8]>, AvroError> {
    let node = if let [only] = branches { only } else { reader.branch(branches)? };
    if *node == Node::Null {
        return Ok(None);
    }
    let start = reader.rest();
    reader.skip(node)?;
    Ok(start.get(..start.len() - reader.rest().len()))
}

/// A number, or null in a union. Anything else is stepped over and counts as absent.
fn scalar_number(node: &Node, reader: &mut Reader<'_>) -> Result<Option<i64>, AvroError> {
    match node {
        Node::Int(_) | Node::Long(_) => reader.long().map(Some),
        Node::Union(branches) => {
            let branch = reader.branch(branches)?;
            scalar_number(branch, reader)
        }
        other => reader.skip(other).map(|()| None),
    }
}

fn scalar_text<'a>(node: &Node, reader: &mut Reader<'a>) -> Result<Option<&'a str>, AvroError> {
    match node {
        Node::String(_) => reader.string().map(Some),
        Node::Union(branches) => {
            let branch = reader.branch(branches)?;
            scalar_text(branch, reader)
        }
        other => reader.skip(other).map(|()| None),
    }
}
