//! From an Avro value to the text PostgreSQL reads into a column.
//!
//! A [`Converter`] is compiled once per writer schema and column; it then turns bytes into text without
//! building a value in between. Text, because PostgreSQL's own input functions are the one exact and
//! complete definition of its types: nothing is rounded or reinterpreted on the way.

use std::io::Write;

use crate::avro::{AvroError, Reader};
use crate::decimal::write_decimal;
use crate::kind::{Kind, PgType};
use crate::schema::{Node, Record, Semantic};
use crate::temporal;

/// What Debezium sends for a value that PostgreSQL stored out of line and did not log, because the
/// update did not change it: *the view keeps what it has*. `unavailable.value.placeholder` by default.
const PLACEHOLDER: &[u8] = b"__debezium_unavailable_value";

/// The digits PostgreSQL's `numeric` can hold after the point, and before it.
const NUMERIC_SCALE: std::ops::RangeInclusive<i32> = -131_072..=16_383;

/// The content of one column of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    Null,
    /// Text was appended to the output.
    Text,
    /// The source did not send the value: keep the view's.
    Keep,
}

/// Why a field cannot feed a column. Found when the plan is compiled, before anything is applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("{source_type} cannot be written to a column of type {target}")]
    Types { source_type: String, target: String },
    #[error("the Avro type {0} has no conversion to a column")]
    Unsupported(String),
}

/// Why one value of a supported type cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error(transparent)]
    Avro(#[from] AvroError),
    #[error("text contains a NUL character, which PostgreSQL cannot store")]
    Nul,
    #[error("a decimal has scale {0}, which numeric cannot hold")]
    Scale(i32),
    #[error("a nested value has no text form")]
    Nested,
}

/// How to write one value; see [`compile`].
#[derive(Debug, Clone, PartialEq)]
pub enum Converter {
    Null,
    Boolean,
    Integer,
    Float,
    Double,
    Text,
    ZonedTimestamp,
    Bytes,
    Bits,
    Enum(Vec<String>),
    Decimal {
        scale: i32,
    },
    VariableScaleDecimal {
        scale_first: bool,
    },
    Date,
    TimeMillis,
    TimeMicros,
    TimeNanos,
    TimestampMillis,
    TimestampMicros,
    TimestampNanos,
    IntervalMicros,
    Point(Vec<PointField>),
    Array {
        item: Box<Converter>,
        quoted: bool,
    },
    /// hstore sent as a map; its pairs are written in hstore's own syntax.
    Pairs(Box<Converter>),
    Union(Vec<Converter>),
}

/// A field of Debezium's point record, in the writer's order.
#[derive(Debug, Clone, PartialEq)]
pub enum PointField {
    X,
    Y,
    Other(Node),
}

/// Compiles the conversion from a writer's field to a column, or says why there is none.
pub fn compile(node: &Node, target: &PgType) -> Result<Converter, Mismatch> {
    if let Node::Union(branches) = node {
        let branches = branches.iter().map(|branch| compile(branch, target));
        return Ok(Converter::Union(branches.collect::<Result<_, _>>()?));
    }
    if let Node::Array(item) = node {
        let Some(element) = &target.element else {
            return Err(mismatch("an array", target));
        };
        let item = Box::new(compile(item, element)?);
        return Ok(Converter::Array {
            quoted: !matches!(**element, PgType { element: Some(_), .. }),
            item,
        });
    }
    let (kind, converter) = source_kind(node)?;
    match kind {
        Some(kind) if !kind.fits(target) => Err(mismatch(kind.name(), target)),
        _ => Ok(converter),
    }
}

fn mismatch(source_type: &str, target: &PgType) -> Mismatch {
    Mismatch::Types { source_type: source_type.to_owned(), target: target.name.clone() }
}

/// The kind of value a non-array node carries. `None` for null, which fits every column.
fn source_kind(node: &Node) -> Result<(Option<Kind>, Converter), Mismatch> {
    let (kind, converter) = match node {
        Node::Null => return Ok((None, Converter::Null)),
        Node::Boolean => (Kind::Boolean, Converter::Boolean),
        Node::Float => (Kind::Float, Converter::Float),
        Node::Double => (Kind::Double, Converter::Double),
        Node::Int(None) | Node::Long(None) => (Kind::Integer, Converter::Integer),
        Node::Bytes(None) | Node::Fixed(_) => (Kind::Bytes, Converter::Bytes),
        Node::String(None) => (Kind::Text, Converter::Text),
        Node::Enum(symbols) => (Kind::Enum, Converter::Enum(symbols.clone())),
        Node::Int(Some(semantic)) | Node::Long(Some(semantic)) => counted(semantic)?,
        Node::Bytes(Some(semantic)) => packed(semantic)?,
        Node::String(Some(semantic)) => named_text(semantic),
        Node::Record(record) => structured(record)?,
        Node::Map(item) => (Kind::Map, Converter::Pairs(Box::new(source_kind(item)?.1))),
        Node::Array(_) | Node::Union(_) => return Err(Mismatch::Unsupported("array".to_owned())),
    };
    Ok((Some(kind), converter))
}

/// Dates, times and intervals counted from a start, under Debezium's and Connect's names.
fn counted(semantic: &Semantic) -> Result<(Kind, Converter), Mismatch> {
    Ok(match semantic.name.as_str() {
        "io.debezium.time.Date" | "org.apache.kafka.connect.data.Date" => {
            (Kind::Date, Converter::Date)
        }
        "io.debezium.time.Time" | "org.apache.kafka.connect.data.Time" => {
            (Kind::Time, Converter::TimeMillis)
        }
        "io.debezium.time.MicroTime" => (Kind::Time, Converter::TimeMicros),
        "io.debezium.time.NanoTime" => (Kind::Time, Converter::TimeNanos),
        "io.debezium.time.Timestamp" | "org.apache.kafka.connect.data.Timestamp" => {
            (Kind::Timestamp, Converter::TimestampMillis)
        }
        "io.debezium.time.MicroTimestamp" => (Kind::Timestamp, Converter::TimestampMicros),
        "io.debezium.time.NanoTimestamp" => (Kind::Timestamp, Converter::TimestampNanos),
        "io.debezium.time.MicroDuration" => (Kind::Interval, Converter::IntervalMicros),
        "io.debezium.time.Year" => (Kind::Integer, Converter::Integer),
        other => return Err(Mismatch::Unsupported(other.to_owned())),
    })
}

fn packed(semantic: &Semantic) -> Result<(Kind, Converter), Mismatch> {
    Ok(match semantic.name.as_str() {
        "org.apache.kafka.connect.data.Decimal" => {
            let scale = semantic.scale.unwrap_or(0);
            let scale = i32::try_from(scale).unwrap_or(i32::MAX);
            (Kind::Decimal, Converter::Decimal { scale })
        }
        "io.debezium.data.Bits" => (Kind::Bits, Converter::Bits),
        other => return Err(Mismatch::Unsupported(other.to_owned())),
    })
}

/// Strings whose name narrows what column they fit. An unknown name is a plain string.
fn named_text(semantic: &Semantic) -> (Kind, Converter) {
    let kind = match semantic.name.as_str() {
        "io.debezium.time.ZonedTimestamp" => {
            return (Kind::TimestampTz, Converter::ZonedTimestamp);
        }
        "io.debezium.time.IsoTimestamp" => return (Kind::Timestamp, Converter::ZonedTimestamp),
        "io.debezium.time.ZonedTime" => Kind::TimeTz,
        "io.debezium.time.IsoTime" => Kind::Time,
        "io.debezium.time.IsoDate" => Kind::Date,
        "io.debezium.time.Interval" => Kind::Interval,
        "io.debezium.data.Json" => Kind::Json,
        "io.debezium.data.Uuid" => Kind::Uuid,
        "io.debezium.data.Xml" => Kind::Xml,
        "io.debezium.data.Enum" => Kind::Enum,
        "io.debezium.data.Ltree" => Kind::Ltree,
        _ => Kind::Text,
    };
    (kind, Converter::Text)
}

fn structured(record: &Record) -> Result<(Kind, Converter), Mismatch> {
    let name = record.connect_name.as_deref().unwrap_or(&record.name);
    match name {
        "io.debezium.data.VariableScaleDecimal" => {
            let scale_first = record.fields.first().is_some_and(|field| field.name == "scale");
            Ok((Kind::Decimal, Converter::VariableScaleDecimal { scale_first }))
        }
        "io.debezium.data.geometry.Point" => {
            let fields = record.fields.iter().map(|field| match field.name.as_str() {
                "x" => PointField::X,
                "y" => PointField::Y,
                _ => PointField::Other(field.node.clone()),
            });
            Ok((Kind::Point, Converter::Point(fields.collect())))
        }
        other => Err(Mismatch::Unsupported(other.to_owned())),
    }
}

impl Converter {
    /// Reads one value and appends its text to `out`.
    pub fn write(&self, reader: &mut Reader<'_>, out: &mut Vec<u8>) -> Result<Cell, ValueError> {
        match self {
            Self::Null => return Ok(Cell::Null),
            Self::Union(branches) => {
                let index = reader.long()?;
                let branch = usize::try_from(index).ok().and_then(|index| branches.get(index));
                return branch.ok_or(AvroError::UnknownBranch(index))?.write(reader, out);
            }
            Self::Text => return write_text(reader.string()?, out),
            Self::Bytes => return Ok(write_bytes(reader.bytes()?, out)),
            Self::Array { item, quoted } => return write_array(item, *quoted, reader, out),
            Self::Pairs(item) => return write_pairs(item, reader, out),
            Self::Boolean => out.push(if reader.boolean()? { b't' } else { b'f' }),
            Self::Integer => put(out, format_args!("{}", reader.long()?)),
            Self::Float => write_float(f64::from(reader.float()?), true, out),
            Self::Double => write_float(reader.double()?, false, out),
            Self::ZonedTimestamp => write_iso(reader.string()?, out)?,
            Self::Bits => write_bits(reader.bytes()?, out),
            Self::Enum(symbols) => {
                let index = reader.long()?;
                let symbol = usize::try_from(index).ok().and_then(|index| symbols.get(index));
                out.extend_from_slice(symbol.ok_or(AvroError::UnknownSymbol(index))?.as_bytes());
            }
            Self::Decimal { scale } => write_numeric(reader.bytes()?, *scale, out)?,
            Self::VariableScaleDecimal { scale_first } => {
                let (scale, unscaled) = if *scale_first {
                    (reader.int()?, reader.bytes()?)
                } else {
                    let unscaled = reader.bytes()?;
                    (reader.int()?, unscaled)
                };
                write_numeric(unscaled, scale, out)?;
            }
            Self::Date => temporal::write_date(reader.int()?, out),
            Self::TimeMillis => temporal::write_time(reader.long()?.saturating_mul(1000), out),
            Self::TimeMicros => temporal::write_time(reader.long()?, out),
            Self::TimeNanos => temporal::write_time(reader.long()? / 1000, out),
            Self::TimestampMillis => temporal::write_timestamp_millis(reader.long()?, out),
            Self::TimestampMicros => temporal::write_timestamp(reader.long()?, out),
            Self::TimestampNanos => {
                temporal::write_timestamp(reader.long()?.div_euclid(1000), out);
            }
            Self::IntervalMicros => put(out, format_args!("{} microseconds", reader.long()?)),
            Self::Point(fields) => write_point(fields, reader, out)?,
        }
        Ok(Cell::Text)
    }
}

fn put(out: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("writing to a vector cannot fail");
}

fn write_text(text: &str, out: &mut Vec<u8>) -> Result<Cell, ValueError> {
    if text.as_bytes() == PLACEHOLDER {
        return Ok(Cell::Keep);
    }
    if text.as_bytes().contains(&0) {
        return Err(ValueError::Nul);
    }
    out.extend_from_slice(text.as_bytes());
    Ok(Cell::Text)
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) -> Cell {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    if bytes == PLACEHOLDER {
        return Cell::Keep;
    }
    out.extend_from_slice(b"\\x");
    let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or(b'0');
    out.extend(bytes.iter().flat_map(|&byte| [digit(byte >> 4), digit(byte & 15)]));
    Cell::Text
}

fn write_numeric(unscaled: &[u8], scale: i32, out: &mut Vec<u8>) -> Result<(), ValueError> {
    if !NUMERIC_SCALE.contains(&scale) {
        return Err(ValueError::Scale(scale));
    }
    write_decimal(unscaled, scale, out);
    Ok(())
}

/// Rust prints the shortest digits that read back to the same number, as PostgreSQL does.
fn write_float(value: f64, single: bool, out: &mut Vec<u8>) {
    if value.is_infinite() {
        out.extend_from_slice(if value > 0.0 { b"Infinity" } else { b"-Infinity" });
    } else if single {
        #[expect(clippy::cast_possible_truncation, reason = "the value was read as an f32")]
        let value = value as f32;
        put(out, format_args!("{value:?}"));
    } else {
        put(out, format_args!("{value:?}"));
    }
}

/// Debezium's bits are little-endian; PostgreSQL writes the highest bit first. The column's length
/// decides how many of the padded bits count, so all are written and the cast to `bit(n)` is made on
/// the right end by the statement.
fn write_bits(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes.iter().rev() {
        put(out, format_args!("{byte:08b}"));
    }
}

/// ISO 8601 with Java's signed years to PostgreSQL's eras.
fn write_iso(text: &str, out: &mut Vec<u8>) -> Result<(), ValueError> {
    if text.as_bytes().contains(&0) {
        return Err(ValueError::Nul);
    }
    let signed = text.strip_prefix('-').and_then(|rest| {
        let (year, rest) = rest.split_once('-')?;
        Some((year.parse::<u32>().ok()?, rest))
    });
    if let Some((year, rest)) = signed {
        put(out, format_args!("{:04}-{rest} BC", year + 1));
    } else if let Some(rest) = text.strip_prefix("0000-") {
        put(out, format_args!("0001-{rest} BC"));
    } else {
        out.extend_from_slice(text.strip_prefix('+').unwrap_or(text).as_bytes());
    }
    Ok(())
}

fn write_point(
    fields: &[PointField],
    reader: &mut Reader<'_>,
    out: &mut Vec<u8>,
) -> Result<(), ValueError> {
    let (mut x, mut y) = (0.0, 0.0);
    for field in fields {
        match field {
            PointField::X => x = reader.double()?,
            PointField::Y => y = reader.double()?,
            PointField::Other(node) => reader.skip(node)?,
        }
    }
    out.push(b'(');
    write_float(x, false, out);
    out.push(b',');
    write_float(y, false, out);
    out.push(b')');
    Ok(())
}

/// Writes PostgreSQL's array syntax. An array whose single item is the placeholder, or whose items spell
/// its bytes (integer arrays), stands for an unchanged array.
fn write_array(
    item: &Converter,
    quoted: bool,
    reader: &mut Reader<'_>,
    out: &mut Vec<u8>,
) -> Result<Cell, ValueError> {
    let mut text = Vec::new();
    let mut first = true;
    let mut kept = false;
    out.push(b'{');
    loop {
        let count = reader.block()?;
        if count == 0 {
            break;
        }
        for _ in 0..count {
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            text.clear();
            match item.write(reader, &mut text)? {
                Cell::Null => out.extend_from_slice(b"NULL"),
                Cell::Keep => kept = true,
                Cell::Text if quoted => write_quoted(&text, out),
                Cell::Text => out.extend_from_slice(&text),
            }
        }
    }
    out.push(b'}');
    Ok(if kept { Cell::Keep } else { Cell::Text })
}

fn write_pairs(
    item: &Converter,
    reader: &mut Reader<'_>,
    out: &mut Vec<u8>,
) -> Result<Cell, ValueError> {
    let mut text = Vec::new();
    let mut kept = false;
    loop {
        let count = reader.block()?;
        if count == 0 {
            break;
        }
        for _ in 0..count {
            if !matches!(out.last(), None | Some(b'{')) {
                out.push(b',');
            }
            text.clear();
            kept |= write_text(reader.string()?, &mut text)? == Cell::Keep;
            write_quoted(&text, out);
            out.extend_from_slice(b"=>");
            text.clear();
            match item.write(reader, &mut text)? {
                Cell::Null => out.extend_from_slice(b"NULL"),
                Cell::Keep => kept = true,
                Cell::Text => write_quoted(&text, out),
            }
        }
    }
    Ok(if kept { Cell::Keep } else { Cell::Text })
}

fn write_quoted(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for &byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}
