//! Single values as PostgreSQL reads them: the leaves of a [`crate::convert::Converter`].

use std::io::Write;

use crate::avro::Reader;
use crate::convert::{Cell, Converter, PointField, ValueError};
use crate::decimal::write_decimal;

/// What Debezium sends for a value that PostgreSQL stored out of line and did not log, because the
/// update did not change it: *the view keeps what it has*. `unavailable.value.placeholder` by default.
const PLACEHOLDER: &[u8] = b"__debezium_unavailable_value";

/// The same for arrays of numbers: each byte of the placeholder as an item.
const PLACEHOLDER_NUMBERS: &[u8] =
    b"{95,95,100,101,98,101,122,105,117,109,95,117,110,97,118,97,105,108,97,\
    98,108,101,95,118,97,108,117,101}";

/// The same for arrays of UUIDs: Java's name-based UUID of the placeholder.
const PLACEHOLDER_UUIDS: &[u8] = b"{\"b68a35a7-17ad-35b3-af2a-ae46edb4545a\"}";

/// The digits PostgreSQL's `numeric` can hold after the point, and before it.
const NUMERIC_SCALE: std::ops::RangeInclusive<i32> = -131_072..=16_383;

pub(crate) fn put(out: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("writing to a vector cannot fail");
}

pub(crate) fn write_text(text: &str, out: &mut Vec<u8>) -> Result<Cell, ValueError> {
    if text.as_bytes() == PLACEHOLDER {
        return Ok(Cell::Keep);
    }
    if text.as_bytes().contains(&0) {
        return Err(ValueError::Nul);
    }
    out.extend_from_slice(text.as_bytes());
    Ok(Cell::Text)
}

pub(crate) fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) -> Cell {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    if bytes == PLACEHOLDER {
        return Cell::Keep;
    }
    out.extend_from_slice(b"\\x");
    let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or(b'0');
    out.extend(bytes.iter().flat_map(|&byte| [digit(byte >> 4), digit(byte & 15)]));
    Cell::Text
}

pub(crate) fn write_numeric(
    unscaled: &[u8],
    scale: i32,
    out: &mut Vec<u8>,
) -> Result<(), ValueError> {
    if !NUMERIC_SCALE.contains(&scale) {
        return Err(ValueError::Scale(scale));
    }
    write_decimal(unscaled, scale, out);
    Ok(())
}

/// Rust prints the shortest digits that read back to the same number, as PostgreSQL does.
pub(crate) fn write_float(value: f64, single: bool, out: &mut Vec<u8>) {
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
pub(crate) fn write_bits(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes.iter().rev() {
        put(out, format_args!("{byte:08b}"));
    }
}

/// ISO 8601 with Java's signed years to PostgreSQL's eras.
pub(crate) fn write_iso(text: &str, out: &mut Vec<u8>) -> Result<(), ValueError> {
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

pub(crate) fn write_point(
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

/// Writes PostgreSQL's array syntax. Each of the placeholder's array forms stands for an unchanged array.
pub(crate) fn write_array(
    item: &Converter,
    quoted: bool,
    reader: &mut Reader<'_>,
    out: &mut Vec<u8>,
) -> Result<Cell, ValueError> {
    let mut text = Vec::new();
    let mut first = true;
    let mut kept = false;
    let start = out.len();
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
                Cell::Keep | Cell::Absent => kept = true,
                Cell::Text if quoted => write_quoted(&text, out),
                Cell::Text => out.extend_from_slice(&text),
            }
        }
    }
    out.push(b'}');
    let array = out.get(start..).unwrap_or_default();
    kept |= array == PLACEHOLDER_NUMBERS || array == PLACEHOLDER_UUIDS;
    Ok(if kept { Cell::Keep } else { Cell::Text })
}

pub(crate) fn write_pairs(
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
                Cell::Keep | Cell::Absent => kept = true,
                Cell::Text => write_quoted(&text, out),
            }
        }
    }
    Ok(if kept { Cell::Keep } else { Cell::Text })
}

pub(crate) fn write_quoted(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for &byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}
