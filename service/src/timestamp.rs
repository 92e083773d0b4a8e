//! How times look in JSON: `2025-07-17T06:03:43.792924Z`, always UTC, always microseconds, which is
//! what the database stores.

use serde::{Serialize, Serializer};
use time::format_description::well_known::Iso8601;
use time::format_description::well_known::iso8601::{Config, EncodedConfig, TimePrecision};
use time::{OffsetDateTime, UtcOffset};

const FORMAT: EncodedConfig = Config::DEFAULT
    .set_time_precision(TimePrecision::Second { decimal_digits: std::num::NonZero::new(6) })
    .encode();

/// Serializes a time, for `#[serde(serialize_with = "...")]`.
pub fn serialize<S: Serializer>(time: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    let utc = time.to_offset(UtcOffset::UTC);
    utc.format(&Iso8601::<FORMAT>).map_err(serde::ser::Error::custom)?.serialize(serializer)
}

/// The same for a time that may be missing.
pub fn serialize_option<S: Serializer>(
    time: &Option<OffsetDateTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serialize(time, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_with_six_digits() {
        for (nanoseconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (1_752_732_223_792_924_000, "2025-07-17T06:03:43.792924Z"),
        ] {
            let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).unwrap();
            let seoul = time.to_offset(UtcOffset::from_hms(9, 0, 0).unwrap());
            let shown = serialize(&seoul, serde_json::value::Serializer).unwrap();
            assert_eq!(shown, text);
        }
    }
}
