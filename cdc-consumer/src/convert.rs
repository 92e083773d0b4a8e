//! From an Avro value to the text PostgreSQL reads into a column.
//!
//! A [`Converter`] is compiled once per writer schema and column (`pairing.rs`); it then turns bytes into
//! text without building a value in between. Text, because PostgreSQL's own input functions are the one exact and
//! complete definition of its types: nothing is rounded or reinterpreted on the way.

use crate::avro::{AvroError, Reader};
use crate::float::{write_float, write_float_text};
use crate::room::Room;
use crate::skip::Skip;
use crate::temporal;
use crate::text::{
    ArrayPlaceholder, write_array, write_bits, write_bytes, write_integer, write_iso,
    write_json_pairs, write_numeric, write_numeric_text, write_pairs, write_point, write_text,
};

/// The content of one column of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    Null,
    /// Text was appended to the output.
    Text,
    /// The source did not send the value: keep the view's. What was sent instead was appended all the
    /// same, for a key is always sent: there it is the value.
    Keep,
    /// The record's schema has no such field.
    Absent,
}

/// Text of one row. A record is bounded by the broker, and its text by that, but for decimals: one of six
/// bytes may be 131,073 characters.
pub const TEXT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Refuses more text than a row may have.
pub(crate) fn check_length(byte_count: usize) -> Result<(), ValueError> {
    if byte_count > TEXT_BYTES_MAX { Err(ValueError::TooLong) } else { Ok(()) }
}

/// Why one value of a supported type cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error(transparent)]
    Avro(#[from] AvroError),
    #[error("text contains a NUL character, which PostgreSQL cannot store")]
    Nul,
    #[error("a bit string is longer than its column")]
    Bits,
    #[error("a decimal has scale {0}, which numeric cannot hold")]
    Scale(i32),
    #[error("a decimal has {0} bytes, more digits than numeric can hold")]
    Digits(usize),
    #[error("the row's values are more than {TEXT_BYTES_MAX} bytes of text")]
    TooLong,
    #[error(
        "the array was an array of arrays, which Debezium sends as the names of Java objects; \
         its content is not in the record"
    )]
    NestedArray,
    #[error("text is longer than the {0} that its column holds")]
    Cut(Room),
    #[error("JSON that is not an object of texts is no hstore")]
    NotPairs,
}

/// How to write one value; see [`crate::pairing::compile`].
#[derive(Debug, Clone, PartialEq)]
pub enum Converter {
    Null,
    Boolean,
    /// As PostgreSQL casts it to text, which is not what it prints of it.
    BooleanText,
    Integer,
    Float,
    /// A single-precision number for a column of double precision.
    WidenedFloat,
    /// As PostgreSQL prints it.
    FloatText,
    Double,
    DoubleText,
    Text,
    /// A decimal as text, with Debezium's names for the infinite ones.
    NumericText,
    /// A date or time in ISO 8601.
    Iso,
    Bytes,
    /// `bit(length)`.
    Bits {
        length: usize,
    },
    /// `bit(1)`, which Debezium sends as a boolean.
    Bit,
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
    Point(Vec<PointField>),
    Array {
        item: Box<Converter>,
        placeholder: ArrayPlaceholder,
    },
    /// hstore sent as a map; its pairs are written in hstore's own syntax.
    Pairs(Box<Converter>),
    /// hstore sent as a JSON object, which is Debezium's default.
    JsonPairs,
    Union(Vec<Converter>),
    /// For a column of a type that holds so much and cuts the rest.
    Short {
        item: Box<Converter>,
        room: Room,
    },
}

/// A field of Debezium's point record, in the writer's order.
#[derive(Debug, Clone, PartialEq)]
pub enum PointField {
    X,
    Y,
    Other(Skip),
}

impl Converter {
    /// Reads one value and appends its text to `out`.
    pub fn write(&self, reader: &mut Reader<'_>, out: &mut String) -> Result<Cell, ValueError> {
        match self {
            Self::Null => return Ok(Cell::Null),
            Self::Union(branches) => return reader.branch(branches)?.write(reader, out),
            Self::Text => return write_text(reader.string()?, out),
            Self::NumericText => return write_numeric_text(reader.string()?, out),
            Self::Bytes => return Ok(write_bytes(reader.bytes()?, out)),
            Self::Array { item, placeholder } => {
                return write_array(item, placeholder, reader, out);
            }
            Self::Pairs(item) => return write_pairs(item, reader, out),
            Self::Short { item, room } => {
                let start = out.len();
                let cell = item.write(reader, out)?;
                let fits = cell != Cell::Text || room.holds(out.get(start..).unwrap_or_default());
                return if fits { Ok(cell) } else { Err(ValueError::Cut(*room)) };
            }
            Self::JsonPairs => return write_json_pairs(reader.string()?, out),
            Self::Boolean => out.push(if reader.boolean()? { 't' } else { 'f' }),
            Self::Integer => write_integer(reader.long()?, out),
            Self::BooleanText => out.push_str(if reader.boolean()? { "true" } else { "false" }),
            Self::Float => write_float(reader.float()?, out),
            Self::WidenedFloat => write_float(f64::from(reader.float()?), out),
            Self::FloatText => write_float_text(reader.float()?, f32::DIGITS, out),
            Self::Double => write_float(reader.double()?, out),
            Self::DoubleText => write_float_text(reader.double()?, f64::DIGITS, out),
            Self::Iso => return write_iso(reader.string()?, out),
            Self::Bit => out.push(if reader.boolean()? { '1' } else { '0' }),
            Self::Bits { length } => write_bits(reader.bytes()?, *length, out)?,
            Self::Enum(symbols) => {
                let index = reader.long()?;
                let symbol = usize::try_from(index).ok().and_then(|index| symbols.get(index));
                out.push_str(symbol.ok_or(AvroError::UnknownSymbol(index))?);
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
            Self::TimestampNanos => temporal::write_timestamp_nanos(reader.long()?, out),
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
    use crate::kind::PgType;
    use crate::pairing::{Mismatch, compile};
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
        write_as(avro_type, value, &target(base, element))
    }

    fn write_as(avro_type: &Json, value: Value, target: &PgType) -> (Cell, String) {
        let text = avro_type.to_string();
        let avro = apache_avro::Schema::parse_str(&text).expect("a valid schema");
        let writer = GenericDatumWriter::builder(&avro).build().expect("a schema to write");
        let bytes = writer.write_value_to_vec(value).expect("a value of the schema");
        let node = schema::parse(&text, &[]).expect("a supported schema");
        let converter = compile(&node, target).expect("a supported pair");
        let mut out = String::new();
        let mut reader = Reader::new(&bytes);
        let cell = converter.write(&mut reader, &mut out).expect("a value PostgreSQL can hold");
        reader.finish().expect("the whole value was read");
        (cell, out)
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
        check(json!("float"), Value::Float(0.1), "float8", "0.10000000149011612");
        check(json!("float"), Value::Float(0.1), "text", "0.1");
        check(json!("float"), Value::Float(1e6), "text", "1e+06");
        check(json!("double"), Value::Double(1.0), "text", "1");
        check(json!("double"), Value::Double(-0.0), "text", "-0");
        check(json!("double"), Value::Double(1e14), "text", "100000000000000");
        check(json!("double"), Value::Double(1e22), "varchar", "1e+22");
        check(json!("double"), Value::Double(0.00012), "text", "0.00012");
        check(json!("double"), Value::Double(1.5e-5), "text", "1.5e-05");
        check(json!("boolean"), Value::Boolean(true), "text", "true");
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
    fn a_bit_string_is_as_long_as_its_column() {
        let bits = |length: &str| {
            let mut bits = semantic("bytes", "io.debezium.data.Bits");
            bits["connect.parameters"] = json!({ "length": length });
            schema::parse(&bits.to_string(), &[]).expect("a supported schema")
        };
        let column = PgType { modifier: 11, ..target("bit", None) };
        let converter = compile(&bits("11"), &column).expect("a supported pair");
        let check = |bytes: &[u8], expected: Result<&str, ValueError>| {
            let mut avro = vec![u8::try_from(bytes.len() * 2).expect("short")];
            avro.extend_from_slice(bytes);
            let mut out = String::new();
            let written = converter.write(&mut Reader::new(&avro), &mut out);
            let written = written.map(|_| out);
            assert_eq!(written, expected.map(str::to_owned));
        };
        check(&[5, 1], Ok("00100000101"));
        check(&[5], Ok("00000000101"));
        check(&[], Ok("00000000000"));
        check(&[0, 8], Err(ValueError::Bits));
        assert!(matches!(compile(&bits("12"), &column), Err(Mismatch::Lossy { .. })));
    }

    #[test]
    fn an_array_that_the_source_did_not_send_is_kept_whatever_its_items() {
        let placeholder = b"__debezium_unavailable_value";
        let into = |items: Json, values: Vec<Value>, target: &PgType| {
            let array = json!({ "type": "array", "items": items });
            assert_eq!(write_as(&array, Value::Array(values), target).0, Cell::Keep);
        };
        let mut short = target("_varchar", Some("varchar"));
        short.element.as_mut().expect("an array").modifier = 44;
        let check = |items: Json, values: Vec<Value>, element: &str| {
            into(items.clone(), values.clone(), &target(&format!("_{element}"), Some(element)));
            into(items, values, &short);
        };
        let long = |&byte: &u8| Value::Union(1, Box::new(Value::Long(byte.into())));
        let int = |&byte: &u8| Value::Union(1, Box::new(Value::Int(byte.into())));
        check(json!(["null", "long"]), placeholder.iter().map(long).collect(), "int8");
        check(json!(["null", "int"]), placeholder.iter().map(int).collect(), "int4");
        let date = semantic("int", "io.debezium.time.Date");
        check(json!(["null", date]), placeholder.iter().map(int).collect(), "date");
        let bytea = target("_bytea", Some("bytea"));
        into(json!("bytes"), vec![Value::Bytes(placeholder.into())], &bytea);
        let uuid = "b68a35a7-17ad-35b3-af2a-ae46edb4545a";
        let uuid_type = semantic("string", "io.debezium.data.Uuid");
        check(uuid_type, vec![Value::String(uuid.into())], "uuid");
    }

    #[test]
    fn an_hstore_comes_as_json_or_as_a_map() {
        let check = |avro_type: Json, value, expected: &str| {
            assert_eq!(write(&avro_type, value, "hstore", None), (Cell::Text, expected.to_owned()));
        };
        let json = |text: Json| Value::String(text.to_string());
        let json_type = || semantic("string", "io.debezium.data.Json");
        check(json_type(), json(json!({})), "");
        check(json_type(), json(json!({"a": null, "b": "\""})), "\"a\"=>NULL,\"b\"=>\"\\\"\"");
        let map = Value::Map([("a".to_owned(), Value::String("1".into()))].into());
        check(json!({ "type": "map", "values": "string" }), map, "\"a\"=>\"1\"");
    }

    #[test]
    fn a_value_the_source_did_not_send_is_kept() {
        let check = |avro_type: Json, value, base| {
            assert_eq!(write(&avro_type, value, base, None).0, Cell::Keep);
        };
        let pairs = r#"{"__debezium_unavailable_value":"__debezium_unavailable_value"}"#;
        let json_type = || semantic("string", "io.debezium.data.Json");
        check(json_type(), Value::String(pairs.into()), "hstore");
        check(json_type(), Value::String(pairs.into()), "jsonb");
        let placeholder = "__debezium_unavailable_value";
        check(json!("string"), Value::String(placeholder.into()), "text");
        check(json!("bytes"), Value::Bytes(placeholder.into()), "bytea");
        check(json_type(), Value::String(placeholder.into()), "jsonb");
    }

    #[test]
    fn pairs_that_would_change_a_value_are_refused() {
        let check = |avro_type: Json, base: &str| {
            let node = schema::parse(&avro_type.to_string(), &[]).expect("a supported schema");
            let refused = compile(&node, &target(base, None));
            let refused = matches!(refused, Err(Mismatch::Types { .. } | Mismatch::Lossy { .. }));
            assert!(refused, "{avro_type} fits {base}");
        };
        check(json!("string"), "int8");
        check(json!("long"), "float8");
        check(json!("double"), "float4");
        check(json!("bytes"), "text");
        check(semantic("int", "io.debezium.time.Date"), "timestamptz");
        check(json!("double"), "numeric");
        check(json!("string"), "bytea");
        check(semantic("long", "io.debezium.time.MicroDuration"), "interval");
        check(semantic("long", "org.apache.kafka.connect.data.Timestamp"), "timestamp");
        check(semantic("bytes", "io.debezium.data.Bits"), "varbit");
        check(semantic("bytes", "io.debezium.data.Bits"), "text");
        check(json!({ "type": "array", "items": "string" }), "text");
        check(json!({ "type": "map", "values": "string" }), "text");
        check(semantic("string", "io.debezium.time.ZonedTimestamp"), "text");
        check(semantic("string", "io.debezium.time.ZonedTime"), "varchar");
        check(semantic("string", "io.debezium.time.IsoDate"), "text");
        check(semantic("string", "io.debezium.time.Interval"), "text");
    }
}
