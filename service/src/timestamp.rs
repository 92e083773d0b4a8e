//! How times look in JSON: `2025-07-17T06:03:43.792924Z`, always UTC, always microseconds, which is
//! what the database stores. Years that do not have four digits look as in ECMAScript, and what is no time at
//! all as in PostgreSQL.

use std::fmt;

use serde::{Serialize, Serializer};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef};
use sqlx::{Decode, Postgres, Type};
use time::{Date, OffsetDateTime};

const DAY_MICROS: i64 = 24 * 60 * 60 * 1_000_000;
/// The calendar repeats itself after 400 years.
const CYCLE_DAYS: i64 = 146_097;
const CYCLE_YEARS: i64 = 400;
/// 2000-01-01, from which PostgreSQL counts.
const EPOCH_JULIAN_DAY: i32 = 2_451_545;

/// A timestamptz, whatever it is: microseconds since 2000, where the last values are the infinities. sqlx panics
/// at these and at years beyond 9999, which one row is enough for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timestamp(i64);

impl Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        <OffsetDateTime as Type<Postgres>>::type_info()
    }
}

impl<'r> Decode<'r, Postgres> for Timestamp {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        <i64 as Decode<Postgres>>::decode(value).map(Self)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            i64::MAX => return f.write_str("infinity"),
            i64::MIN => return f.write_str("-infinity"),
            _ => {}
        }
        let (day, micros) = (self.0.div_euclid(DAY_MICROS), self.0.rem_euclid(DAY_MICROS));
        let in_cycle = i32::try_from(day.rem_euclid(CYCLE_DAYS)).expect("a day of 400 years");
        let date = Date::from_julian_day(EPOCH_JULIAN_DAY + in_cycle).expect("a day before 2400");
        let year = i64::from(date.year()) + CYCLE_YEARS * day.div_euclid(CYCLE_DAYS);
        if (0..=9999).contains(&year) {
            write!(f, "{year:04}")?;
        } else {
            write!(f, "{year:+07}")?;
        }
        let (month, day, seconds) = (u8::from(date.month()), date.day(), micros / 1_000_000);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        let micros = micros % 1_000_000;
        write!(f, "-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_with_six_digits_whatever_their_year() {
        let day = |days: i64| days * DAY_MICROS;
        for (micros, text) in [
            (0, "2000-01-01T00:00:00.000000Z"),
            (806_047_423_792_924, "2025-07-17T06:03:43.792924Z"),
            (day(60) - 1, "2000-02-29T23:59:59.999999Z"),
            (-1, "1999-12-31T23:59:59.999999Z"),
            // The first and the last one that PostgreSQL knows, and the first of five digits.
            (-211_813_488_000_000_000, "-004713-11-24T00:00:00.000000Z"),
            (9_223_371_331_199_999_999, "+294276-12-31T23:59:59.999999Z"),
            (day(2_921_940), "+010000-01-01T00:00:00.000000Z"),
            (i64::MAX, "infinity"),
            (i64::MIN, "-infinity"),
        ] {
            let shown = Timestamp(micros).serialize(serde_json::value::Serializer).unwrap();
            assert_eq!(shown, text);
        }
    }
}
