//! A batch: the changes that commit together, and the interval of every partition they came from. Pure.

use crate::fold::ViewBatch;
use crate::offsets::{Anchor, Interval, Lineage, Partition, Progress, next_after};

/// A partition's part in a batch: the records it covers, and the epoch it may commit under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub partition: Partition,
    pub interval: Interval,
    pub epoch: i64,
    pub seen_offset: i64,
    pub lineage: Lineage,
    /// The last record covered, or of an earlier batch.
    pub anchor: Option<Anchor>,
}

/// A record that could not become a change, with all that is needed to look at it and try again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub view: usize,
    pub partition: Partition,
    pub offset: i64,
    /// `None` when the key itself could not be read.
    pub key_text: Option<String>,
    pub record_key: Option<Vec<u8>>,
    pub record_value: Option<Vec<u8>>,
    pub schema_id: Option<u32>,
    /// The row of an incremental snapshot that it may stand behind.
    pub chunk_lsn: Option<i64>,
    pub error: String,
}

/// Changes that commit together.
#[derive(Debug)]
pub struct Batch {
    /// One per declared view, in the order of the declaration.
    pub views: Vec<ViewBatch>,
    pub claims: Vec<Claim>,
    pub refused: Vec<Refused>,
    pub record_count: usize,
    refused_bytes: usize,
}

impl Batch {
    /// An empty batch for views of these shapes: (key width, width).
    pub fn new(shapes: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let views = shapes.into_iter().map(|(key_width, width)| ViewBatch::new(key_width, width));
        Self {
            views: views.collect(),
            claims: vec![],
            refused: vec![],
            record_count: 0,
            refused_bytes: 0,
        }
    }

    /// As [`Self::new`] made it, with the room it took since: the next batch needs no new memory.
    pub fn clear(&mut self) {
        let Self { views, claims, refused, record_count, refused_bytes } = self;
        views.iter_mut().for_each(ViewBatch::clear);
        claims.clear();
        refused.clear();
        (*record_count, *refused_bytes) = (0, 0);
    }

    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// Approximate memory held.
    pub fn byte_count(&self) -> usize {
        self.views.iter().map(ViewBatch::byte_count).sum::<usize>() + self.refused_bytes
    }

    /// Includes a record, advances its partition, and returns the claim's index.
    pub fn claim(
        &mut self,
        partition: &Partition,
        progress: &mut Progress,
        record: Anchor,
    ) -> usize {
        self.record_count += 1;
        progress.anchor = Some(record);
        self.cover(partition, progress, next_after(record.offset))
    }

    /// The same up to `next`, where no record is: a hole behind the last one.
    pub fn cover(&mut self, partition: &Partition, progress: &mut Progress, next: i64) -> usize {
        let first = progress.next_offset;
        progress.advance_to(next);
        let found = self.claims.iter().position(|claim| claim.partition == *partition);
        let index = found.unwrap_or_else(|| {
            self.claims.push(Claim {
                partition: partition.clone(),
                interval: Interval { first, next: first },
                epoch: progress.epoch,
                seen_offset: 0,
                lineage: Lineage::default(),
                anchor: None,
            });
            self.claims.len() - 1
        });
        if let Some(claim) = self.claims.get_mut(index) {
            claim.interval.next = next;
            claim.seen_offset = progress.seen_offset;
            claim.anchor = progress.anchor;
            claim.lineage.follow(&progress.lineage);
        }
        index
    }

    /// Keeps a record aside, to be stored in the batch's transaction.
    pub fn refuse(&mut self, refused: Refused) {
        let size = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        self.refused_bytes += size(&refused.record_key) + size(&refused.record_value);
        self.refused.push(refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::Cell;
    use crate::fold::{Entry, Folded, SnapshotEnd};
    use crate::offsets::SourcePosition;

    #[test]
    fn a_claim_covers_the_holes_before_its_records() {
        let mut batch = Batch::new([]);
        let partition = Partition { topic: "t".into(), number: 0 };
        let mut progress = Progress::new(5, 3);
        for offset in [9, 12] {
            let record = Anchor { offset, timestamp_millis: -1 };
            batch.claim(&partition, &mut progress, record);
        }
        assert_eq!(batch.claims.len(), 1);
        assert_eq!(batch.claims[0].interval, Interval { first: 5, next: 13 });
        assert_eq!(progress.next_offset, 13);
    }

    #[test]
    fn a_batch_used_again_knows_nothing_of_the_one_before() {
        let mut batch = Batch::new([(1, 1)]);
        let unused = (batch.byte_count(), format!("{batch:?}"));
        let partition = Partition { topic: "t".into(), number: 0 };
        for _ in 0..2 {
            batch.cover(&partition, &mut Progress::new(5, 3), 6);
            batch.record_count = 1;
            batch.refuse(Refused {
                view: 0,
                partition: partition.clone(),
                offset: 5,
                key_text: None,
                record_key: Some(vec![1]),
                record_value: None,
                schema_id: None,
                chunk_lsn: None,
                error: String::new(),
            });
            let view = &mut batch.views[0];
            let key = |out: &mut String| {
                out.push('k');
                Ok::<_, ()>(Cell::Text)
            };
            let added = view.add(Entry::at(0, 5), |row| row.cell(0, key));
            assert_eq!(added, Ok(Folded::New));
            view.truncated_at = Some(SourcePosition::default());
            view.snapshot_end = Some(SnapshotEnd { lsn: 1, timestamp_millis: 2, repeated: false });
            view.counts.folded = 1;
            batch.clear();
            assert_eq!((batch.byte_count(), format!("{batch:?}")), unused);
        }
    }
}
