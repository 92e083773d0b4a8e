//! Connect's decimals: a big-endian two's-complement integer and a scale.

use num_bigint::BigInt;

/// Writes `unscaled * 10^-scale` in plain notation with exactly `scale` digits after the point,
/// as PostgreSQL writes a numeric of that scale. A negative scale appends zeros.
pub fn write_decimal(unscaled: &[u8], scale: i32, out: &mut String) {
    // Up to 16 bytes (38 digits) fit a machine integer; only longer ones pay for big arithmetic.
    if unscaled.len() <= 16 {
        let negative = unscaled.first().is_some_and(|&byte| byte & 0x80 != 0);
        let fill = if negative { -1_i128 } else { 0 };
        let value = unscaled.iter().fold(fill, |value, &byte| value << 8 | i128::from(byte));
        let mut digits = itoa::Buffer::new();
        write_digits(negative, digits.format(value.unsigned_abs()), scale, out);
    } else {
        let value = BigInt::from_signed_bytes_be(unscaled);
        let digits = value.magnitude().to_string();
        write_digits(value.sign() == num_bigint::Sign::Minus, &digits, scale, out);
    }
}

pub(crate) fn write_digits(negative: bool, digits: &str, scale: i32, out: &mut String) {
    if negative {
        out.push('-');
    }
    let Ok(scale) = usize::try_from(scale) else {
        out.push_str(digits);
        if digits != "0" {
            write_zeros(scale.unsigned_abs() as usize, out);
        }
        return;
    };
    let (whole, fraction) = digits.split_at(digits.len().saturating_sub(scale));
    out.push_str(if whole.is_empty() { "0" } else { whole });
    if scale > 0 {
        out.push('.');
        write_zeros(scale - fraction.len(), out);
        out.push_str(fraction);
    }
}

fn write_zeros(count: usize, out: &mut String) {
    out.extend(std::iter::repeat_n('0', count));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_written_in_plain_notation() {
        let check = |unscaled: &[u8], scale, expected: &str| {
            let mut out = String::new();
            write_decimal(unscaled, scale, &mut out);
            assert_eq!(out, expected);
        };
        check(&[0], 0, "0");
        check(&[], 2, "0.00");
        check(&[0], 2, "0.00");
        check(&[5], 2, "0.05");
        check(&[0xfb], 2, "-0.05");
        check(&[0x30, 0x39], 2, "123.45");
        check(&[0x80], 0, "-128");
        check(&[7], -3, "7000");
        check(&[0], -3, "0");
        check(&[7], -100_000, &format!("7{}", "0".repeat(100_000)));
        check(&[0x7f; 16], 5, "1694739631331732739601904907601355.40607");
        check(
            &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            1,
            "34028236692093846346337460743176821145.6",
        );
    }
}
