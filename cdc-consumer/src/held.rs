//! Records held back, in order, until the schema of the first of them is known.

use std::collections::VecDeque;

use rdkafka::message::{Message, OwnedMessage};

/// Most records held back at a time.
pub(crate) const RECORDS_MAX: usize = 1000;

/// See the module's description. Knows how much memory they take.
#[derive(Debug, Default)]
pub(crate) struct Held {
    records: VecDeque<OwnedMessage>,
    bytes: usize,
}

impl Held {
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether no more may be held back: a thousand records of a megabyte are as many as of a hundred bytes.
    pub(crate) fn full(&self, bytes_max: usize) -> bool {
        self.records.len() >= RECORDS_MAX || self.bytes >= bytes_max
    }

    /// How many there are, and their bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.records.len(), self.bytes)
    }

    pub(crate) fn push_back(&mut self, record: OwnedMessage) {
        self.bytes += size(&record);
        self.records.push_back(record);
    }

    pub(crate) fn push_front(&mut self, record: OwnedMessage) {
        self.bytes += size(&record);
        self.records.push_front(record);
    }

    pub(crate) fn pop_front(&mut self) -> Option<OwnedMessage> {
        let record = self.records.pop_front()?;
        self.bytes = self.bytes.saturating_sub(size(&record));
        Some(record)
    }

    /// Forgets what is not wanted any more. Returns whether there was something.
    pub(crate) fn retain(&mut self, wanted: impl FnMut(&OwnedMessage) -> bool) -> bool {
        let before = self.records.len();
        self.records.retain(wanted);
        self.bytes = self.records.iter().map(size).sum();
        self.records.len() < before
    }
}

fn size(record: &OwnedMessage) -> usize {
    record.key().map_or(0, <[u8]>::len) + record.payload().map_or(0, <[u8]>::len)
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;

    use super::*;

    fn record(offset: i64, key: usize, value: usize) -> OwnedMessage {
        let bytes = |count| Some(vec![0; count]).filter(|bytes: &Vec<u8>| !bytes.is_empty());
        let (key, value) = (bytes(key), bytes(value));
        OwnedMessage::new(value, key, "t".to_owned(), Timestamp::NotAvailable, 0, offset, None)
    }

    #[test]
    fn a_few_long_records_fill_what_is_held_as_many_short_ones_do() {
        let mut held = Held::default();
        held.push_back(record(0, 10, 89));
        assert!(!held.full(100));
        held.push_back(record(1, 1, 0));
        assert!(held.full(100));
        let mut held = Held::default();
        (0..1000).for_each(|offset| held.push_back(record(offset, 0, 0)));
        assert!(held.full(100));
        assert_eq!(held.size(), (1000, 0));
    }

    #[test]
    fn bytes_go_with_their_records() {
        let mut held = Held::default();
        (0..4).for_each(|offset| held.push_back(record(offset, 1, 9)));
        let first = held.pop_front().unwrap();
        assert_eq!(held.size(), (3, 30));
        held.push_front(first);
        assert_eq!(held.size(), (4, 40));
        assert!(held.retain(|record| record.offset() > 1));
        assert!(!held.retain(|_| true));
        assert_eq!(held.size(), (2, 20));
        let offsets = std::iter::from_fn(|| held.pop_front()).map(|record| record.offset());
        assert!(offsets.eq([2, 3]));
        assert_eq!(held.size(), (0, 0));
    }
}
