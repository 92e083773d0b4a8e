//! Debezium's envelope: what happened, where in the source, and where the row lies in the bytes.

use crate::avro::{AvroError, Reader};
use crate::offsets::Origin;
use crate::schema::{Node, Record};
use crate::skip::Skip;

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
    /// `source.sequence`, of which few records need more than that it is there.
    sequence: Option<&'a [u8]>,
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

/// What to do with the fields of an envelope, in the writer's order; those of `source` among them.
#[derive(Debug, Clone, PartialEq)]
pub struct EnvelopePlan {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Skip(Skip),
    Operation(Branches<Scalar>),
    /// A row, or nothing.
    After(Branches<Option<Skip>>),
    Source(SourceField, Branches<Scalar>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SourceField {
    Lsn,
    Sequence,
    Snapshot,
    TimeMillis,
    TimeMicros,
}

/// What a field may hold: the branches of a union, or the only thing.
#[derive(Debug, Clone, PartialEq)]
enum Branches<T> {
    One(T),
    Union(Vec<T>),
}

/// A value of which a number or a text is wanted. Anything else is stepped over and counts as absent.
#[derive(Debug, Clone, PartialEq)]
enum Scalar {
    Number,
    Text,
    Other(Skip),
}

/// What a [`Scalar`] turned out to be.
#[derive(Debug, Clone, Copy)]
enum Found<'a> {
    Number(i64),
    Text(&'a [u8]),
    Absent,
}

#[derive(Default)]
struct Source<'a> {
    lsn: Option<i64>,
    sequence: Option<&'a [u8]>,
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
        let mut plan = Self { steps: vec![] };
        for field in &envelope.fields {
            match (field.name.as_str(), &field.node) {
                ("op", node) => plan.steps.push(Step::Operation(Branches::of(node, scalar))),
                ("after", node) => plan.steps.push(Step::After(Branches::of(node, row))),
                ("source", node) => plan.read_source(node)?,
                (_, node) => plan.skip(node),
            }
        }
        Ok(plan)
    }

    fn read_source(&mut self, node: &Node) -> Result<(), EnvelopeSchemaError> {
        let Node::Record(source) = node else {
            return Err(EnvelopeSchemaError::NotPostgres);
        };
        for field in &source.fields {
            let wanted = match field.name.as_str() {
                "lsn" => SourceField::Lsn,
                "sequence" => SourceField::Sequence,
                "snapshot" => SourceField::Snapshot,
                "ts_ms" => SourceField::TimeMillis,
                "ts_us" => SourceField::TimeMicros,
                _ => {
                    self.skip(&field.node);
                    continue;
                }
            };
            self.steps.push(Step::Source(wanted, Branches::of(&field.node, scalar)));
        }
        let has_lsn = source.fields.iter().any(|field| field.name == "lsn");
        if has_lsn { Ok(()) } else { Err(EnvelopeSchemaError::NotPostgres) }
    }

    fn skip(&mut self, node: &Node) {
        if let Some(Step::Skip(skip)) = self.steps.last_mut() {
            skip.and(node);
        } else {
            self.steps.push(Step::Skip(Skip::over(node)));
        }
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
                Step::Skip(skip) => skip.step_over(&mut reader)?,
                Step::Operation(scalar) => operation = read_scalar(scalar, &mut reader)?.text(),
                Step::After(branches) => after = locate_row(branches, &mut reader)?,
                Step::Source(field, scalar) => {
                    source.take(*field, read_scalar(scalar, &mut reader)?);
                }
            }
        }
        reader.finish()?;
        Ok(Envelope {
            operation: parse_operation(operation)?,
            after,
            lsn: source
                .lsn
                .or_else(|| sequence(source.sequence?)?.1)
                .ok_or(EnvelopeError::NoPosition)?,
            sequence: source.sequence,
            origin: source.origin.unwrap_or(Origin::Streaming),
            ends_snapshot: source.ends_snapshot,
            source_time_micros: source
                .time_micros
                .or(source.time_millis.map(|millis| millis.saturating_mul(1000)))
                .unwrap_or(0),
        })
    }
}

impl Envelope<'_> {
    /// The LSN of the last commit that the connector had read before this change.
    pub fn last_commit(&self) -> Option<i64> {
        sequence(self.sequence?)?.0
    }
}

impl<'a> Source<'a> {
    fn take(&mut self, field: SourceField, found: Found<'a>) {
        match field {
            SourceField::Lsn => self.lsn = found.number(),
            SourceField::TimeMillis => self.time_millis = found.number(),
            SourceField::TimeMicros => self.time_micros = found.number(),
            SourceField::Sequence => self.sequence = found.text(),
            SourceField::Snapshot => {
                let snapshot = found.text();
                self.origin = snapshot.map(origin);
                self.ends_snapshot = matches!(snapshot, Some(b"last" | b"last_in_data_collection"));
            }
        }
    }
}

impl<T> Branches<T> {
    fn of(node: &Node, branch: impl Fn(&Node) -> T) -> Self {
        match node {
            Node::Union(branches) => Self::Union(branches.iter().map(branch).collect()),
            only => Self::One(branch(only)),
        }
    }

    /// Reads which of them follows.
    fn read(&self, reader: &mut Reader<'_>) -> Result<&T, AvroError> {
        match self {
            Self::One(only) => Ok(only),
            Self::Union(branches) => reader.branch(branches),
        }
    }
}

fn scalar(node: &Node) -> Scalar {
    match node {
        Node::Int(_) | Node::Long(_) => Scalar::Number,
        Node::String(_) => Scalar::Text,
        other => Scalar::Other(Skip::over(other)),
    }
}

fn read_scalar<'a>(
    branches: &Branches<Scalar>,
    reader: &mut Reader<'a>,
) -> Result<Found<'a>, AvroError> {
    match branches.read(reader)? {
        Scalar::Number => reader.long().map(Found::Number),
        Scalar::Text => reader.bytes().map(Found::Text),
        Scalar::Other(skip) => skip.step_over(reader).map(|()| Found::Absent),
    }
}

impl<'a> Found<'a> {
    fn number(self) -> Option<i64> {
        if let Self::Number(number) = self { Some(number) } else { None }
    }

    fn text(self) -> Option<&'a [u8]> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }
}

fn parse_operation(operation: Option<&[u8]>) -> Result<Operation, EnvelopeError> {
    match operation {
        Some(b"c") => Ok(Operation::Create),
        Some(b"u") => Ok(Operation::Update),
        Some(b"d") => Ok(Operation::Delete),
        Some(b"r") => Ok(Operation::Read),
        Some(b"t") => Ok(Operation::Truncate),
        Some(b"m") => Ok(Operation::Message),
        other => {
            let other = String::from_utf8_lossy(other.unwrap_or(b"null"));
            Err(EnvelopeError::UnknownOperation(other.into_owned()))
        }
    }
}

/// `source.snapshot`: "first", "true", "last" and their per-table forms mark a whole-table snapshot.
fn origin(snapshot: &[u8]) -> Origin {
    match snapshot {
        b"false" => Origin::Streaming,
        b"incremental" => Origin::IncrementalSnapshot,
        _ => Origin::Snapshot,
    }
}

/// `source.sequence` is `["last committed lsn", "lsn"]`; reads of an incremental snapshot have only this.
fn sequence(text: &[u8]) -> Option<(Option<i64>, Option<i64>)> {
    let (committed, lsn): (Option<String>, Option<String>) = serde_json::from_slice(text).ok()?;
    let parse = |lsn: Option<String>| lsn.and_then(|lsn| lsn.parse().ok());
    Some((parse(committed), parse(lsn)))
}

/// How to step over a branch of `after`, unless it is null.
fn row(node: &Node) -> Option<Skip> {
    (*node != Node::Null).then(|| Skip::over(node))
}

/// Finds a row in place.
fn locate_row<'a>(
    branches: &Branches<Option<Skip>>,
    reader: &mut Reader<'a>,
) -> Result<Option<&'a [u8]>, AvroError> {
    let Some(row) = branches.read(reader)? else { return Ok(None) };
    let start = reader.rest();
    row.step_over(reader)?;
    Ok(start.get(..start.len() - reader.rest().len()))
}
