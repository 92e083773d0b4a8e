//! What a record's headers tell.

use rdkafka::Message;
use rdkafka::message::{BorrowedMessage, Headers, OwnedMessage};

use crate::source::if_text;

/// A record's headers. They are asked seldom: librdkafka reads them anew each time and allocates for it,
/// even where there are none.
pub trait RecordHeaders: std::fmt::Debug {
    /// Whether one of them names a schema, as a converter's does that leaves the wire prefix out.
    fn name_schema(&self) -> bool;
    /// Whether one of them holds the key that the row had before. Debezium sends such an update as a delete and
    /// a create, and the create lacks what the update did not change.
    fn name_old_key(&self) -> bool;
}

/// The first answer itself, where the headers are not at hand; there may have been an old key.
impl RecordHeaders for bool {
    fn name_schema(&self) -> bool {
        *self
    }

    fn name_old_key(&self) -> bool {
        true
    }
}

impl RecordHeaders for BorrowedMessage<'_> {
    fn name_schema(&self) -> bool {
        any(self, is_schema)
    }

    fn name_old_key(&self) -> bool {
        any(self, is_old_key)
    }
}

impl RecordHeaders for OwnedMessage {
    fn name_schema(&self) -> bool {
        any(self, is_schema)
    }

    fn name_old_key(&self) -> bool {
        any(self, is_old_key)
    }
}

fn any(message: &impl Message, is: impl Fn(&str) -> bool) -> bool {
    message.headers().is_some_and(|headers| {
        (0..headers.count()).any(|index| if_text(|| is(headers.get(index).key)).unwrap_or(false))
    })
}

/// Apicurio's converter names the schema in a header when it leaves the prefix out.
fn is_schema(key: &str) -> bool {
    key.starts_with("apicurio.value.") && key.ends_with("Id")
}

/// <https://debezium.io/documentation/reference/stable/connectors/postgresql.html#postgresql-primary-key-updates>
fn is_old_key(key: &str) -> bool {
    key == "__debezium.oldkey"
}
