//! Floating-point numbers as PostgreSQL reads and prints them.

use crate::decimal::write_digits;
use crate::text::put;

/// Rust prints the shortest digits that read back to the same number, as PostgreSQL does.
pub(crate) fn write_float(value: impl std::fmt::Debug + Into<f64> + Copy, out: &mut String) {
    match value.into() {
        f64::INFINITY => out.push_str("Infinity"),
        f64::NEG_INFINITY => out.push_str("-Infinity"),
        _ => put(out, format_args!("{value:?}")),
    }
}

/// As PostgreSQL prints it as text: with an exponent from `digits` digits on, and in the fewest digits that are
/// nearer to this number than to any other, the even one of two equally near.
pub(crate) fn write_float_text<F>(value: F, digits: u32, out: &mut String)
where
    F: std::fmt::Debug + std::fmt::LowerExp + std::str::FromStr + PartialEq + Into<f64> + Copy,
{
    let shortest = format!("{value:e}");
    let mantissa = shortest.split('e').next().unwrap_or_default();
    let count = mantissa.bytes().filter(u8::is_ascii_digit).count().max(1);
    let rounded = |count: usize| format!("{value:.*e}", count - 1);
    let all = [rounded(count), shortest].into_iter().chain((count + 1..=17).map(rounded));
    let text = all.into_iter().find(|text| is_nearest(text, value));
    let text = text.unwrap_or_default();
    match parts(&text) {
        // Not a number, or infinite.
        None => write_float(value, out),
        Some((mantissa, power)) if (-4..digits.cast_signed()).contains(&power) => {
            let plain: String = mantissa.chars().filter(char::is_ascii_digit).collect();
            let scale = i32::try_from(plain.len()).unwrap_or(0) - 1 - power;
            write_digits(mantissa.starts_with('-'), &plain, scale, out);
        }
        Some((mantissa, power)) => {
            let sign = if power < 0 { '-' } else { '+' };
            put(out, format_args!("{mantissa}e{sign}{:02}", power.unsigned_abs()));
        }
    }
}

/// Digits and power of ten of `-1.5e-7`.
fn parts(text: &str) -> Option<(&str, i32)> {
    let (mantissa, power) = text.split_once('e')?;
    Some((mantissa, power.parse().ok()?))
}

/// Whether `text` reads as `value` and does not stand halfway to the next number: then a little more or less
/// reads as that.
fn is_nearest<F: std::str::FromStr + PartialEq + Copy>(text: &str, value: F) -> bool {
    const NINES: &str = "999999999999999999999999999999999999999999999999999999999999";
    let Some((mantissa, power)) = parts(text) else { return false };
    let sign = if mantissa.starts_with('-') { "-" } else { "" };
    let number: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let power = i64::from(power) + 1;
    // As fractions: in front of the number's own digits stands the point.
    let reads = |digits: &str| {
        let read = format!("{sign}0.{digits}e{power}").parse::<F>();
        read.is_ok_and(|read| read == value)
    };
    let below = number.parse::<u64>().ok().and_then(|number| number.checked_sub(1));
    let width = number.len();
    let less = below.is_none_or(|below| reads(&format!("{below:0width$}{NINES}")));
    reads(&number) && less && (below.is_none() || reads(&format!("{number}{:060}1", 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_spelled_as_postgresql_spells_them() {
        let check = |value: f64, expected: &str| {
            let mut out = String::new();
            write_float_text(value, f64::DIGITS, &mut out);
            assert_eq!(out, expected);
        };
        check(-217_564_805_112_701.13, "-217564805112701.12");
        check(1e23, "9.999999999999999e+22");
        check(-1.844_836_027_293_721e16, "-1.8448360272937208e+16");
        check(5e-324, "5e-324");
        check(f64::MAX, "1.7976931348623157e+308");
        check(2.0_f64.powi(-44), "5.684341886080802e-14");
        check(-0.0, "-0");
        check(f64::NAN, "NaN");
        check(f64::NEG_INFINITY, "-Infinity");
    }
}
