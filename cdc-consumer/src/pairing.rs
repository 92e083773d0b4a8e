//! Which conversion a writer's field and a column need, or the sentence that says why there is none.
//!
//! Compiled once per writer schema. What Debezium has already rounded or shortened is refused here where
//! the schema shows it: a column must not fill with values that were never at the source.

use crate::convert::{Converter, PointField};
use crate::kind::{Kind, PgType, is_text};
use crate::room::Room;
use crate::schema::{Node, Record, Semantic};
use crate::skip::Skip;
use crate::text::ArrayPlaceholder;

/// Why a field cannot feed a column. Found when the plan is compiled, before anything is applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("{source_type} cannot be written to a column of type {target}")]
    Types { source_type: String, target: String },
    #[error("the value cannot be written to a column of type {target}: {reason}")]
    Lossy { target: String, reason: &'static str },
    #[error("the Avro type {0} has no conversion to a column")]
    Unsupported(String),
}

const DURATION: &str = "io.debezium.time.MicroDuration has turned months and days into microseconds; \
    set interval.handling.mode=string in the connector";
const BITS: &str = "Debezium does not send how many bits a varbit has; only bit(n) of the source's own \
    length can show them";
const MILLISECONDS: &str = "Kafka Connect's own time types end at milliseconds; \
    set time.precision.mode=adaptive in the connector, or give the column the precision 3 it has there";
const TIME_ARRAY: &str = "in arrays Debezium sends time with milliseconds and timetz with seconds only; \
    give the column the precision it has there, time(3)[] or timetz(0)[]";
const ROUNDED: &str = "a double holds 15 digits; \
    set decimal.handling.mode=precise or string in the connector, or make the column double precision";
const ENCODED: &str = "the schema does not say how the bytes are written as text; \
    set binary.handling.mode=bytes in the connector";
const SPELLED: &str = "Debezium spells such values otherwise than PostgreSQL; \
    give the column the type it has at the source";

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
        if let Some(reason) = loss_in_array(item, element) {
            return Err(lossy(reason, target));
        }
        let item = Box::new(compile(item, element)?);
        let placeholder = ArrayPlaceholder::of(&item);
        return Ok(Converter::Array { item, placeholder });
    }
    let (kind, converter) = source_kind(node)?;
    let Some(kind) = kind else { return Ok(converter) };
    if let Some(reason) = loss(node, kind, target) {
        return Err(lossy(reason, target));
    }
    if !kind.fits(target) {
        return Err(mismatch(kind.name(), target));
    }
    Ok(for_column(converter, kind, target))
}

fn mismatch(source_type: &str, target: &PgType) -> Mismatch {
    Mismatch::Types { source_type: source_type.to_owned(), target: target.name.clone() }
}

fn lossy(reason: &'static str, target: &PgType) -> Mismatch {
    Mismatch::Lossy { target: target.name.clone(), reason }
}

/// Where the column's type decides how a value is written.
fn for_column(converter: Converter, kind: Kind, target: &PgType) -> Converter {
    let converter = match (kind, target.base.as_str()) {
        (Kind::Boolean, "bit") => Converter::Bit,
        (Kind::Boolean, base) if is_text(base) => Converter::BooleanText,
        (Kind::Float, "float8") => Converter::WidenedFloat,
        (Kind::Float, base) if is_text(base) => Converter::FloatText,
        (Kind::Double, base) if is_text(base) => Converter::DoubleText,
        (Kind::Bits, _) => {
            Converter::Bits { length: usize::try_from(target.modifier).unwrap_or(0) }
        }
        (Kind::Json, "hstore") => Converter::JsonPairs,
        (Kind::Text, "numeric") => Converter::NumericText,
        _ => converter,
    };
    match Room::of(target) {
        Some(room) => Converter::Short { item: Box::new(converter), room },
        None => converter,
    }
}

/// What was lost before the value came to Kafka, or would be on the way to this column.
fn loss(node: &Node, kind: Kind, target: &PgType) -> Option<&'static str> {
    let semantic = match node {
        Node::Int(semantic) | Node::Long(semantic) | Node::Bytes(semantic) => semantic.as_ref(),
        _ => None,
    };
    let base = target.base.as_str();
    match kind {
        Kind::Duration => Some(DURATION),
        Kind::Bits => {
            let length = semantic.and_then(|semantic| semantic.length);
            let same = base == "bit" && length.is_none_or(|length| length == target.modifier);
            (!same).then_some(BITS)
        }
        Kind::Time | Kind::Timestamp
            if semantic.is_some_and(|semantic| semantic.name.starts_with("org.apache.kafka.")) =>
        {
            (!(0..=3).contains(&target.modifier)).then_some(MILLISECONDS)
        }
        Kind::Double if matches!(base, "numeric" | "money") => Some(ROUNDED),
        Kind::Text if base == "bytea" => Some(ENCODED),
        Kind::TimeTz | Kind::TimestampTz | Kind::Interval | Kind::Point | Kind::Map
            if is_text(base) =>
        {
            Some(SPELLED)
        }
        // A date or time as text: `time.precision.mode=isostring`.
        Kind::Date | Kind::Time | Kind::Timestamp
            if is_text(base) && matches!(node, Node::String(_)) =>
        {
            Some(SPELLED)
        }
        _ => None,
    }
}

/// Arrays take a way through Java's own types, which loses what single values keep.
fn loss_in_array(item: &Node, element: &PgType) -> Option<&'static str> {
    if let Node::Union(branches) = item {
        return branches.iter().find_map(|branch| loss_in_array(branch, element));
    }
    let precise = match source_kind(item).ok()?.0? {
        Kind::Time => !(0..=3).contains(&element.modifier),
        Kind::TimeTz => element.modifier != 0,
        _ => false,
    };
    precise.then_some(TIME_ARRAY)
}

/// The kind of value a non-array node carries. `None` for null, which fits every column.
fn source_kind(node: &Node) -> Result<(Option<Kind>, Converter), Mismatch> {
    let (kind, converter) = match node {
        Node::Null => return Ok((None, Converter::Null)),
        Node::Boolean => (Kind::Boolean, Converter::Boolean),
        Node::Float => (Kind::Float, Converter::Float),
        Node::Double => (Kind::Double, Converter::Double),
        Node::Int(None) | Node::Long(None) => (Kind::Integer, Converter::Integer),
        Node::Bytes(None) => (Kind::Bytes, Converter::Bytes),
        Node::String(None) => (Kind::Text, Converter::Text),
        Node::Enum(symbols) => (Kind::Enum, Converter::Enum(symbols.clone())),
        Node::Int(Some(semantic)) | Node::Long(Some(semantic)) => counted(semantic)?,
        Node::Bytes(Some(semantic)) => packed(semantic)?,
        Node::String(Some(semantic)) => named_text(semantic),
        Node::Record(record) => structured(record)?,
        Node::Map(item) => (Kind::Map, Converter::Pairs(Box::new(map_value(item)?))),
        Node::Array(_) | Node::Union(_) | Node::Fixed(_) => {
            return Err(Mismatch::Unsupported("fixed or nested".to_owned()));
        }
    };
    Ok((Some(kind), converter))
}

/// The values of an hstore: text or null.
fn map_value(node: &Node) -> Result<Converter, Mismatch> {
    match node {
        Node::Union(branches) => {
            let branches = branches.iter().map(map_value);
            Ok(Converter::Union(branches.collect::<Result<_, _>>()?))
        }
        Node::Null => Ok(Converter::Null),
        Node::String(None) => Ok(Converter::Text),
        _ => Err(Mismatch::Unsupported("map of other than text".to_owned())),
    }
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
        "io.debezium.time.MicroDuration" => (Kind::Duration, Converter::Integer),
        "io.debezium.time.Year" => (Kind::Integer, Converter::Integer),
        other => return Err(Mismatch::Unsupported(other.to_owned())),
    })
}

fn packed(semantic: &Semantic) -> Result<(Kind, Converter), Mismatch> {
    Ok(match semantic.name.as_str() {
        "org.apache.kafka.connect.data.Decimal" => {
            let scale = semantic.scale.unwrap_or(0);
            (Kind::Decimal, Converter::Decimal { scale })
        }
        "io.debezium.data.Bits" => (Kind::Bits, Converter::Bits { length: 0 }),
        other => return Err(Mismatch::Unsupported(other.to_owned())),
    })
}

/// Strings whose name narrows what column they fit. An unknown name is a plain string.
fn named_text(semantic: &Semantic) -> (Kind, Converter) {
    let kind = match semantic.name.as_str() {
        "io.debezium.time.ZonedTimestamp" => return (Kind::TimestampTz, Converter::Iso),
        "io.debezium.time.IsoTimestamp" => return (Kind::Timestamp, Converter::Iso),
        "io.debezium.time.IsoDate" => return (Kind::Date, Converter::Iso),
        "io.debezium.time.IsoTime" => return (Kind::Time, Converter::Iso),
        "io.debezium.time.ZonedTime" => Kind::TimeTz,
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
                _ => PointField::Other(Skip::over(&field.node)),
            });
            Ok((Kind::Point, Converter::Point(fields.collect())))
        }
        other => Err(Mismatch::Unsupported(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::avro::Reader;
    use crate::catalog::Table;
    use crate::convert::ValueError;
    use crate::schema;

    /// Writes Avro bytes of a schema for a column of type `base`, an array of that where `array` says so.
    fn write(schema: &str, base: &str, array: bool, bytes: &[u8]) -> Result<String, ValueError> {
        let table = Table::sample("t", 1, &[("c", base)]);
        let single = table.column_type(0).expect("a column").clone();
        let target = PgType { element: array.then(|| Box::new(single.clone())), ..single };
        let node = schema::parse(schema, &[]).expect("a supported schema");
        let converter = compile(&node, &target).expect("a supported pair");
        let mut out = String::new();
        converter.write(&mut Reader::new(bytes), &mut out).map(|_| out)
    }

    #[test]
    fn a_text_that_postgresql_would_cut_is_refused() {
        let text = |length: u8| [&[length * 2][..], &vec![b'x'; length.into()]].concat();
        let check = |base, bytes: &[u8], fits| {
            assert_eq!(write("\"string\"", base, false, bytes).is_ok(), fits, "{base} {bytes:?}");
        };
        check("name", &text(63), true);
        check("name", &[&[128, 1][..], &[b'x'; 64]].concat(), false);
        check("char", &text(0), true);
        check("char", &text(1), true);
        check("char", &text(2), false);
        check("char", &[4, 0xc3, 0xa9], false);
        check("char", b"\x08\\351", true);
        check("char", b"\x08\\951", false);
        let items = "{\"type\": \"array\", \"items\": \"string\"}";
        assert!(write(items, "char", true, &[4, 2, b'x', 4, b'x', b'y', 0]).is_err());
    }

    /// Three bytes of scale make 131,072 zeros.
    #[test]
    fn few_bytes_do_not_become_more_text_than_a_row_may_have() {
        let decimal = r#"{"type": "record", "name": "VariableScaleDecimal",
            "namespace": "io.debezium.data", "fields": [{"name": "scale", "type": "int"},
            {"name": "value", "type": "bytes"}]}"#;
        let items = format!(r#"{{"type": "array", "items": {decimal}}}"#);
        let item = [0xff, 0xff, 0x0f, 2, 7];
        let zeros = write(decimal, "numeric", false, &item).expect("PostgreSQL may take it");
        assert_eq!(zeros.len(), 131_073);
        let array = |count: u8| {
            let blocks = std::iter::repeat_n([&[2][..], &item].concat(), count.into());
            [blocks.collect::<Vec<_>>().concat(), vec![0]].concat()
        };
        assert!(write(&items, "numeric", true, &array(100)).is_ok());
        let many = [array(250), array(250), array(250)].map(|mut blocks| {
            blocks.pop();
            blocks
        });
        let refused = write(&items, "numeric", true, &[many.concat(), vec![0]].concat());
        assert!(refused.is_err());
    }
}
