//! From an Avro value to the text PostgreSQL reads into a column.
//!
//! A [`Converter`] is compiled once per writer schema and column; it then turns bytes into text without
//! building a value in between. Text, because PostgreSQL's own input functions are the one exact and
//! complete definition of its types: nothing is rounded or reinterpreted on the way.

use crate::avro::{AvroError, Reader};
use crate::kind::{Kind, PgType};
use crate::schema::{Node, Record, Semantic};
use crate::temporal;
use crate::text::{
    put, write_array, write_bits, write_bytes, write_float, write_iso, write_numeric, write_pairs,
    write_point, write_text,
};

/// The content of one column of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    Null,
    /// Text was appended to the output.
    Text,
    /// The source did not send the value: keep the view's.
    Keep,
    /// The record's schema has no such field.
    Absent,
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

#[cfg(test)]
mod tests {
    use apache_avro::types::Value;
    use apache_avro::writer::datum::GenericDatumWriter;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::schema;

    fn target(base: &str, element: Option<&str>) -> PgType {
        let element = element.map(|element| Box::new(target(element, None)));
        PgType {
            name: base.to_owned(),
            cast: base.to_owned(),
            modifier: -1,
            base: base.to_owned(),
            enumeration: false,
            range: false,
            element,
        }
    }

    /// Encodes `value` with `apache_avro` and writes it with the converter for a column of type `base`.
    fn write(avro_type: &Json, value: Value, base: &str, element: Option<&str>) -> (Cell, String) {
        let text = avro_type.to_string();
        let avro = apache_avro::Schema::parse_str(&text).expect("a valid schema");
        let writer = GenericDatumWriter::builder(&avro).build().expect("a schema to write");
        let bytes = writer.write_value_to_vec(value).expect("a value of the schema");
        let node = schema::parse(&text, &[]).expect("a supported schema");
        let converter = compile(&node, &target(base, element)).expect("a supported pair");
        let mut out = Vec::new();
        let mut reader = Reader::new(&bytes);
        let cell = converter.write(&mut reader, &mut out).expect("a value PostgreSQL can hold");
        reader.finish().expect("the whole value was read");
        (cell, String::from_utf8(out).expect("UTF-8"))
    }

    fn semantic(avro_type: &str, name: &str) -> Json {
        json!({ "type": avro_type, "connect.name": name })
    }

    #[test]
    fn values_are_written_as_postgresql_reads_them() {
        let check = |avro_type: Json, value, base, expected: &str| {
            assert_eq!(write(&avro_type, value, base, None), (Cell::Text, expected.to_owned()));
        };
        check(json!("long"), Value::Long(-7), "int8", "-7");
        check(json!("boolean"), Value::Boolean(true), "bool", "t");
        check(json!("string"), Value::String("홍길동".into()), "text", "홍길동");
        check(json!("bytes"), Value::Bytes(vec![0, 255]), "bytea", "\\x00ff");
        check(json!("double"), Value::Double(1e300), "float8", "1e300");
        check(json!("double"), Value::Double(f64::NAN), "float8", "NaN");
        check(json!("float"), Value::Float(f32::NEG_INFINITY), "float4", "-Infinity");
        check(json!("float"), Value::Float(0.1), "float4", "0.1");
        check(semantic("int", "io.debezium.time.Date"), Value::Int(0), "date", "1970-01-01");
        check(
            semantic("long", "io.debezium.time.MicroTimestamp"),
            Value::Long(1),
            "timestamp",
            "1970-01-01 00:00:00.000001",
        );
        check(
            semantic("string", "io.debezium.time.ZonedTimestamp"),
            Value::String("-0043-03-15T12:00:00Z".into()),
            "timestamptz",
            "0044-03-15T12:00:00Z BC",
        );
        check(
            semantic("string", "io.debezium.time.ZonedTimestamp"),
            Value::String("+12026-03-15T12:00:00Z".into()),
            "timestamptz",
            "12026-03-15T12:00:00Z",
        );
        check(
            semantic("bytes", "io.debezium.data.Bits"),
            Value::Bytes(vec![5, 1]),
            "bit",
            "0000000100000101",
        );
    }

    #[test]
    fn arrays_are_quoted_and_keep_their_nulls() {
        let strings = json!({ "type": "array", "items": ["null", "string"] });
        let text = |text: &str| Value::Union(1, Box::new(Value::String(text.into())));
        let null = Value::Union(0, Box::new(Value::Null));
        let check = |items, cell, expected: &str| {
            let written = write(&strings, Value::Array(items), "_text", Some("text"));
            assert_eq!(written.0, cell);
            assert!(cell == Cell::Keep || written.1 == expected, "{} != {expected}", written.1);
        };
        check(vec![], Cell::Text, "{}");
        check(vec![text("a\"b\\c"), null, text("NULL")], Cell::Text, r#"{"a\"b\\c",NULL,"NULL"}"#);
        check(vec![text("__debezium_unavailable_value")], Cell::Keep, "");
    }

    #[test]
    fn a_value_the_source_did_not_send_is_kept() {
        let check = |avro_type: Json, value, base| {
            assert_eq!(write(&avro_type, value, base, None).0, Cell::Keep);
        };
        let placeholder = "__debezium_unavailable_value";
        check(json!("string"), Value::String(placeholder.into()), "text");
        check(json!("bytes"), Value::Bytes(placeholder.into()), "bytea");
        check(
            semantic("string", "io.debezium.data.Json"),
            Value::String(placeholder.into()),
            "jsonb",
        );
    }

    #[test]
    fn pairs_that_would_change_a_value_are_refused() {
        let check = |avro_type: Json, base: &str| {
            let node = schema::parse(&avro_type.to_string(), &[]).expect("a supported schema");
            let refused = compile(&node, &target(base, None));
            assert!(matches!(refused, Err(Mismatch::Types { .. })), "{avro_type} fits {base}");
        };
        check(json!("string"), "int8");
        check(json!("long"), "float8");
        check(json!("double"), "float4");
        check(json!("bytes"), "text");
        check(semantic("int", "io.debezium.time.Date"), "timestamptz");
        check(json!({ "type": "array", "items": "string" }), "text");
    }
}
