//! Single values as PostgreSQL reads them: the leaves of a [`crate::convert::Converter`].

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::avro::Reader;
use crate::convert::{Cell, Converter, PointField, ValueError, check_length};
use crate::decimal::write_decimal;
use crate::float::write_float;
use crate::temporal::write_date;

/// What Debezium sends for a value that PostgreSQL stored out of line and did not log, because the
/// update did not change it: *the view keeps what it has*. `unavailable.value.placeholder` by default.
const PLACEHOLDER: &str = "__debezium_unavailable_value";

/// The same for an hstore sent as JSON.
const PLACEHOLDER_JSON: &str = r#"{"__debezium_unavailable_value":"__debezium_unavailable_value"}"#;

/// The same for an hstore, as PostgreSQL reads it.
const PLACEHOLDER_PAIR: &str = r#""__debezium_unavailable_value"=>"__debezium_unavailable_value""#;

/// The same for arrays of UUIDs: Java's name-based UUID of the placeholder.
const PLACEHOLDER_UUID: &str = "b68a35a7-17ad-35b3-af2a-ae46edb4545a";

/// How an array that was not sent would be written, where its items are no text: Debezium makes an item of
/// each byte of the placeholder, of whatever those items count.
#[derive(Debug, Clone, PartialEq)]
pub struct ArrayPlaceholder(String);

impl ArrayPlaceholder {
    pub(crate) fn of(item: &Converter) -> Self {
        let mut array = String::from("{");
        let mut write = |item: &dyn Fn(i32, &mut String)| {
            for (index, byte) in PLACEHOLDER.bytes().enumerate() {
                let mut text = String::new();
                item(i32::from(byte), &mut text);
                if index > 0 {
                    array.push(',');
                }
                write_quoted(&text, &mut array);
            }
        };
        match item {
            Converter::Short { item, .. } => return Self::of(item),
            Converter::Union(branches) => {
                let items = branches.iter().find(|branch| **branch != Converter::Null);
                return items.map_or(Self(String::new()), Self::of);
            }
            Converter::Integer => write(&|number, out| write_integer(number.into(), out)),
            Converter::Date => write(&write_date),
            Converter::Text => write_quoted(PLACEHOLDER_UUID, &mut array),
            _ => return Self(String::new()),
        }
        array.push('}');
        Self(array)
    }
}

/// The digits PostgreSQL's `numeric` can hold after the point, and before it.
const NUMERIC_SCALE: std::ops::RangeInclusive<i32> = -131_072..=16_383;

/// The bytes of an integer of as many digits as `numeric` can hold in all: 131,072 + 16,383.
const UNSCALED_BYTES_MAX: usize = 61_230;

pub(crate) fn put(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("writing to a string cannot fail");
}

pub(crate) fn write_integer(number: i64, out: &mut String) {
    out.push_str(itoa::Buffer::new().format(number));
}

pub(crate) fn write_text(text: &str, out: &mut String) -> Result<Cell, ValueError> {
    if text.as_bytes().contains(&0) {
        return Err(ValueError::Nul);
    }
    out.push_str(text);
    if text == PLACEHOLDER || text == PLACEHOLDER_JSON {
        return Ok(Cell::Keep);
    }
    Ok(Cell::Text)
}

pub(crate) fn write_bytes(bytes: &[u8], out: &mut String) -> Cell {
    out.push_str("\\x");
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or('0');
    out.extend(bytes.iter().flat_map(|&byte| [digit(byte >> 4), digit(byte & 15)]));
    if bytes == PLACEHOLDER.as_bytes() {
        return Cell::Keep;
    }
    Cell::Text
}

pub(crate) fn write_numeric(
    unscaled: &[u8],
    scale: i32,
    out: &mut String,
) -> Result<(), ValueError> {
    if !NUMERIC_SCALE.contains(&scale) {
        return Err(ValueError::Scale(scale));
    }
    if unscaled.len() > UNSCALED_BYTES_MAX {
        return Err(ValueError::Digits(unscaled.len()));
    }
    write_decimal(unscaled, scale, out);
    Ok(())
}

pub(crate) fn write_numeric_text(text: &str, out: &mut String) -> Result<Cell, ValueError> {
    match text {
        "POSITIVE_INFINITY" => write_text("Infinity", out),
        "NEGATIVE_INFINITY" => write_text("-Infinity", out),
        text => write_text(text, out),
    }
}

/// Debezium's bits are little-endian and without the zero bytes at the end; PostgreSQL writes the highest
/// bit first.
pub(crate) fn write_bits(bytes: &[u8], length: usize, out: &mut String) -> Result<(), ValueError> {
    let bit = |index: usize| {
        let byte = bytes.get(index / 8).copied().unwrap_or(0);
        byte >> (index % 8) & 1
    };
    if (length..bytes.len() * 8).any(|index| bit(index) == 1) {
        return Err(ValueError::Bits);
    }
    out.extend((0..length).rev().map(|index| if bit(index) == 1 { '1' } else { '0' }));
    Ok(())
}

/// What Java makes of the driver's infinite dates and timestamps with `time.precision.mode=isostring`: the
/// dates as streamed and as read in a snapshot.
const INFINITE: [(&str, &str); 6] = [
    ("-5877611-06-21Z", "infinity"),
    ("-5877611-06-22Z", "-infinity"),
    ("+292278994-08-16Z", "infinity"),
    ("+292269055-12-02Z", "-infinity"),
    ("+294247-01-10T04:00:25.2Z", "infinity"),
    ("-290308-12-21T19:59:27.6Z", "-infinity"),
];

/// ISO 8601 with Java's signed years to PostgreSQL's eras.
pub(crate) fn write_iso(text: &str, out: &mut String) -> Result<Cell, ValueError> {
    if text.as_bytes().contains(&0) {
        return Err(ValueError::Nul);
    }
    if let Some((_, infinite)) = INFINITE.iter().find(|(iso, _)| *iso == text) {
        out.push_str(infinite);
        return Ok(Cell::Text);
    }
    let signed = text.strip_prefix('-').and_then(|rest| {
        let (year, rest) = rest.split_once('-')?;
        Some((year.parse::<u32>().ok()?, rest))
    });
    if let Some((year, rest)) = signed {
        put(out, format_args!("{:04}-{rest} BC", year.saturating_add(1)));
    } else if let Some(rest) = text.strip_prefix("0000-") {
        put(out, format_args!("0001-{rest} BC"));
    } else {
        out.push_str(text.strip_prefix('+').unwrap_or(text));
    }
    Ok(Cell::Text)
}

pub(crate) fn write_point(
    fields: &[PointField],
    reader: &mut Reader<'_>,
    out: &mut String,
) -> Result<(), ValueError> {
    let (mut x, mut y) = (0.0, 0.0);
    for field in fields {
        match field {
            PointField::X => x = reader.double()?,
            PointField::Y => y = reader.double()?,
            PointField::Other(skip) => skip.step_over(reader)?,
        }
    }
    out.push('(');
    write_float(x, out);
    out.push(',');
    write_float(y, out);
    out.push(')');
    Ok(())
}

/// Writes PostgreSQL's array syntax, every item quoted. Each of the placeholder's array forms stands for an
/// unchanged array.
pub(crate) fn write_array(
    item: &Converter,
    placeholder: &ArrayPlaceholder,
    reader: &mut Reader<'_>,
    out: &mut String,
) -> Result<Cell, ValueError> {
    let mut text = String::new();
    let (mut items, mut kept) = (0, false);
    let start = out.len();
    out.push('{');
    loop {
        let count = reader.block()?;
        if count == 0 {
            break;
        }
        for _ in 0..count {
            if items > 0 {
                out.push(',');
            }
            items += 1;
            text.clear();
            match item.write(reader, &mut text)? {
                Cell::Null => out.push_str("NULL"),
                Cell::Text if is_java_array(&text) => return Err(ValueError::NestedArray),
                cell => {
                    kept = cell == Cell::Keep && items == 1;
                    write_quoted(&text, out);
                }
            }
            check_length(out.len() - start)?;
        }
    }
    out.push('}');
    kept = kept && items == 1 || out.get(start..).unwrap_or_default() == placeholder.0;
    Ok(if kept { Cell::Keep } else { Cell::Text })
}

/// What Java prints of an array: `[Ljava.lang.String;@26353367`, with a bracket more for each dimension.
fn is_java_array(text: &str) -> bool {
    let class = text.trim_start_matches('[');
    let known = class.starts_with("Ljava.") || class.starts_with("Lorg.postgresql.");
    known && class.len() < text.len() && class.contains(";@")
}

/// hstore out of a JSON object of texts.
pub(crate) fn write_json_pairs(text: &str, out: &mut String) -> Result<Cell, ValueError> {
    let pairs: Result<BTreeMap<String, Option<String>>, _> = serde_json::from_str(text);
    let start = out.len();
    for (key, value) in pairs.map_err(|_| ValueError::NotPairs)? {
        write_pair(&key, value.as_deref(), start, out)?;
    }
    Ok(pairs_cell(start, out))
}

pub(crate) fn write_pairs(
    item: &Converter,
    reader: &mut Reader<'_>,
    out: &mut String,
) -> Result<Cell, ValueError> {
    let mut value = String::new();
    let start = out.len();
    loop {
        let count = reader.block()?;
        if count == 0 {
            break;
        }
        for _ in 0..count {
            let key = reader.string()?;
            value.clear();
            let cell = item.write(reader, &mut value)?;
            write_pair(key, (cell != Cell::Null).then_some(&value), start, out)?;
        }
    }
    Ok(pairs_cell(start, out))
}

/// Appends a pair to those of an hstore that begin at `start`.
fn write_pair(
    key: &str,
    value: Option<&str>,
    start: usize,
    out: &mut String,
) -> Result<(), ValueError> {
    if key.contains('\0') || value.is_some_and(|value| value.contains('\0')) {
        return Err(ValueError::Nul);
    }
    if out.len() > start {
        out.push(',');
    }
    write_quoted(key, out);
    out.push_str("=>");
    match value {
        Some(value) => write_quoted(value, out),
        None => out.push_str("NULL"),
    }
    Ok(())
}

/// An hstore that was not sent is the placeholder, under itself.
fn pairs_cell(start: usize, out: &str) -> Cell {
    let kept = out.get(start..) == Some(PLACEHOLDER_PAIR);
    if kept { Cell::Keep } else { Cell::Text }
}

pub(crate) fn write_quoted(text: &str, out: &mut String) {
    out.push('"');
    for letter in text.chars() {
        if matches!(letter, '"' | '\\') {
            out.push('\\');
        }
        out.push(letter);
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_longer_than_numeric_is_refused_before_it_is_computed() {
        let written =
            |bytes: usize, scale| write_numeric(&vec![0x7f; bytes], scale, &mut String::new());
        assert_eq!(written(61_230, 16_383), Ok(()));
        assert!(written(61_231, 16_383).is_err());
        assert!(written(100_000_000, 0).is_err());
    }

    #[test]
    fn names_of_java_arrays_of_any_depth_are_known() {
        let check = |text: &str, expected| assert_eq!(is_java_array(text), expected, "{text}");
        check("[Ljava.lang.String;@26353367", true);
        check("[[Ljava.lang.String;@5305068a", true);
        check("[[[Lorg.postgresql.util.PGobject;@5305068a", true);
        check("Ljava.lang.String;@5305068a", false);
        check("[1, 2]", false);
        check("[L", false);
    }
}
