//! Dates and times as PostgreSQL writes them.
//!
//! Debezium sends numbers counted from 1970-01-01; a view column takes PostgreSQL's text form. Own code,
//! because the range is PostgreSQL's (4713 BC to 294276 AD), which the usual crates do not cover, and
//! because this runs once per value. Everything is UTC and proleptic Gregorian, like PostgreSQL.

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// What the PostgreSQL driver uses for infinite timestamps, in milliseconds from 1970: `PGStatement`'s
/// `DATE_POSITIVE_INFINITY` and `DATE_NEGATIVE_INFINITY`. Debezium sends them as microseconds.
const POSITIVE_INFINITY: i64 = 9_223_372_036_825_200_000;
const NEGATIVE_INFINITY: i64 = -9_223_372_036_832_400_000;

/// What becomes of them as days: when streamed, the date that Java holds for them; in a snapshot, what is
/// left of them in 32 bits. A time zone may move those by a day. PostgreSQL has no date near them.
const POSITIVE_INFINITY_DAYS: [i32; 2] = [-2_147_472_692, -622_191_234];
const NEGATIVE_INFINITY_DAYS: [i32; 2] = [-2_147_472_691, -625_821_272];

/// `io.debezium.time.Date`: days from 1970-01-01.
pub fn write_date(days: i32, out: &mut String) {
    let [streamed, read] = POSITIVE_INFINITY_DAYS;
    if days == i32::MAX || days == streamed || days.abs_diff(read) <= 1 {
        out.push_str("infinity");
        return;
    }
    let [streamed, read] = NEGATIVE_INFINITY_DAYS;
    if days == i32::MIN || days == streamed || days.abs_diff(read) <= 1 {
        out.push_str("-infinity");
        return;
    }
    let before_christ = write_civil(i64::from(days), out);
    write_era(before_christ, out);
}

/// A time of day in microseconds from midnight. 24:00:00 is a time of its own in PostgreSQL.
pub fn write_time(micros: i64, out: &mut String) {
    let (seconds, fraction) = (micros / MICROS_PER_SECOND, micros % MICROS_PER_SECOND);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    write_two(hours, out);
    out.push(':');
    write_two(minutes, out);
    out.push(':');
    write_two(seconds, out);
    if fraction != 0 {
        out.push('.');
        write_padded(fraction, 6, out);
        while out.ends_with('0') {
            out.pop();
        }
    }
}

/// A timestamp without time zone in microseconds from 1970-01-01 00:00.
pub fn write_timestamp(micros: i64, out: &mut String) {
    match micros {
        i64::MAX | POSITIVE_INFINITY => out.push_str("infinity"),
        i64::MIN | NEGATIVE_INFINITY => out.push_str("-infinity"),
        micros => {
            let (day, time) =
                (micros.div_euclid(MICROS_PER_DAY), micros.rem_euclid(MICROS_PER_DAY));
            write_moment(day, time, out);
        }
    }
}

/// A timestamp in milliseconds, whose range is larger than that of microseconds.
pub fn write_timestamp_millis(millis: i64, out: &mut String) {
    const MILLIS_PER_DAY: i64 = MICROS_PER_DAY / 1000;
    match millis {
        i64::MAX | POSITIVE_INFINITY => out.push_str("infinity"),
        i64::MIN | NEGATIVE_INFINITY => out.push_str("-infinity"),
        // From microseconds.
        millis if millis == POSITIVE_INFINITY / 1000 => out.push_str("infinity"),
        millis if millis == NEGATIVE_INFINITY / 1000 => out.push_str("-infinity"),
        millis => {
            let time = millis.rem_euclid(MILLIS_PER_DAY) * 1000;
            write_moment(millis.div_euclid(MILLIS_PER_DAY), time, out);
        }
    }
}

/// A timestamp in nanoseconds; PostgreSQL has microseconds.
pub fn write_timestamp_nanos(nanos: i64, out: &mut String) {
    match nanos {
        i64::MAX => out.push_str("infinity"),
        i64::MIN => out.push_str("-infinity"),
        nanos => write_timestamp(nanos.div_euclid(1000), out),
    }
}

fn write_moment(days_from_1970: i64, micros_of_day: i64, out: &mut String) {
    let before_christ = write_civil(days_from_1970, out);
    out.push(' ');
    write_time(micros_of_day, out);
    write_era(before_christ, out);
}

/// Writes `YYYY-MM-DD` and tells whether the year is before Christ (the caller ends with ` BC`).
fn write_civil(days_from_1970: i64, out: &mut String) -> bool {
    let (year, month, day) = civil_from_days(days_from_1970);
    let before_christ = year <= 0;
    let year = if before_christ { 1 - year } else { year };
    write_padded(year, 4, out);
    out.push('-');
    write_two(month, out);
    out.push('-');
    write_two(day, out);
    before_christ
}

fn write_era(before_christ: bool, out: &mut String) {
    if before_christ {
        out.push_str(" BC");
    }
}

/// Year, month and day of a day number, by the era-based algorithm for the proleptic Gregorian calendar:
/// shift the year to begin in March, so that the leap day is its last, and count 400-year eras.
fn civil_from_days(days_from_1970: i64) -> (i64, i64, i64) {
    const DAYS_FROM_MARCH_OF_YEAR_0: i64 = 719_468;
    const DAYS_PER_ERA: i64 = 146_097;
    let days = days_from_1970 + DAYS_FROM_MARCH_OF_YEAR_0;
    let era = days.div_euclid(DAYS_PER_ERA);
    let day_of_era = days.rem_euclid(DAYS_PER_ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

fn write_two(number: i64, out: &mut String) {
    write_padded(number, 2, out);
}

/// A number that is not negative, with zeros before it up to `width` digits.
fn write_padded(number: i64, width: usize, out: &mut String) {
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(number);
    out.extend(std::iter::repeat_n('0', width.saturating_sub(digits.len())));
    out.push_str(digits);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut String)) -> String {
        let mut out = String::new();
        write(&mut out);
        out
    }

    #[test]
    fn dates_are_written_as_postgresql_writes_them() {
        let check = |days, expected: &str| assert_eq!(text(|out| write_date(days, out)), expected);
        check(0, "1970-01-01");
        check(-1, "1969-12-31");
        check(11_016, "2000-02-29");
        check(20_779, "2026-11-22");
        check(-719_162, "0001-01-01");
        check(-719_163, "0001-12-31 BC");
        check(-2_440_588, "4714-11-24 BC");
        check(106_751_991, "294247-01-10");
        check(2_145_042_905, "5874897-12-31");
        // Streamed, and from a snapshot.
        check(-2_147_472_692, "infinity");
        check(-2_147_472_691, "-infinity");
        check(-622_191_234, "infinity");
        check(-625_821_272, "-infinity");
    }

    #[test]
    fn timestamps_keep_microseconds_and_eras() {
        let check =
            |micros, expected: &str| assert_eq!(text(|out| write_timestamp(micros, out)), expected);
        check(0, "1970-01-01 00:00:00");
        check(-1, "1969-12-31 23:59:59.999999");
        check(1_500_000, "1970-01-01 00:00:01.5");
        check(9_223_371_331_199_999_999, "294247-01-01 23:59:59.999999");
        check(i64::MAX, "infinity");
        check(9_223_372_036_825_200_000, "infinity");
        check(-9_223_372_036_832_400_000, "-infinity");
    }

    #[test]
    fn milliseconds_reach_further_than_microseconds() {
        let check = |millis, expected: &str| {
            assert_eq!(text(|out| write_timestamp_millis(millis, out)), expected);
        };
        check(-1, "1969-12-31 23:59:59.999");
        check(9_224_318_015_999_999, "294276-12-31 23:59:59.999");
        check(9_223_372_036_825_200, "infinity");
        check(-9_223_372_036_832_400, "-infinity");
    }

    #[test]
    fn nanoseconds_are_cut_to_microseconds() {
        let check = |nanos, expected: &str| {
            assert_eq!(text(|out| write_timestamp_nanos(nanos, out)), expected);
        };
        check(-1, "1969-12-31 23:59:59.999999");
        check(i64::MAX, "infinity");
        check(i64::MIN, "-infinity");
    }

    #[test]
    fn times_reach_24_hours() {
        let check =
            |micros, expected: &str| assert_eq!(text(|out| write_time(micros, out)), expected);
        check(0, "00:00:00");
        check(86_400_000_000, "24:00:00");
        check(45_296_000_001, "12:34:56.000001");
    }
}
