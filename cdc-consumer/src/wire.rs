//! The wire format of a schema registry's serializers: a zero byte, a 4-byte big-endian schema id, Avro.

use schema_registry_converter::schema_registry_common::{BytesResult, get_bytes_result};

/// A record's key or value with its prefix taken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefixed<'a> {
    pub schema_id: u32,
    pub body: &'a [u8],
}

/// Why bytes carry no schema id, and which setting usually causes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error(
        "the schema id is in the record's headers, not before the value; \
         set apicurio.registry.headers.enabled=false for the connector's converters"
    )]
    IdInHeaders,
    #[error(
        "the schema id is 0, which no registry gives, as an id of eight bytes begins; \
         set apicurio.registry.as-confluent=true for the connector's converters"
    )]
    LongId,
    #[error(
        "the value is JSON, not Avro; \
         set value.converter (and key.converter) of the connector to an Avro converter"
    )]
    Json,
    #[error(
        "the value does not begin with the schema registry's prefix (a zero byte and an id); \
         check the connector's converter: for Apicurio set as-confluent=true and headers.enabled=false"
    )]
    NoPrefix,
}

/// Splits off the prefix.
pub fn split(bytes: &[u8]) -> Result<Prefixed<'_>, WireError> {
    match get_bytes_result(Some(bytes)) {
        BytesResult::Valid(0, _) => Err(WireError::LongId),
        BytesResult::Valid(schema_id, body) => Ok(Prefixed { schema_id, body }),
        _ if matches!(bytes.first(), Some(b'{' | b'[')) => Err(WireError::Json),
        _ => Err(WireError::NoPrefix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_prefix_names_the_setting_that_causes_it() {
        let check = |bytes: &[u8], expected| assert_eq!(split(bytes), expected);
        check(&[0, 0, 0, 1, 2, 9], Ok(Prefixed { schema_id: 258, body: &[9] }));
        check(b"{\"id\":1}", Err(WireError::Json));
        check(&[0, 0, 0], Err(WireError::NoPrefix));
        let long = split(&[0, 0, 0, 0, 0, 0, 0, 0, 5, 2]).expect_err("an id of eight bytes");
        assert!(long.to_string().contains("apicurio.registry.as-confluent=true"), "{long}");
        check(&[], Err(WireError::NoPrefix));
    }
}
