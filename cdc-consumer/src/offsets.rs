//! Offsets of one partition: intervals of records, and the lives of the source. Pure.

use std::collections::BTreeMap;

/// A topic's partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    pub topic: String,
    pub number: i32,
}

/// A [`Partition`] to look up without owning its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PartitionRef<'a> {
    pub topic: &'a str,
    pub number: i32,
}

impl hashbrown::Equivalent<Partition> for PartitionRef<'_> {
    fn equivalent(&self, partition: &Partition) -> bool {
        self.number == partition.number && self.topic == partition.topic
    }
}

impl std::fmt::Display for Partition {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}-{}", self.topic, self.number)
    }
}

/// The first offset after a record: the one place that knows a next offset is an offset plus one.
pub fn next_after(offset: i64) -> i64 {
    offset + 1
}

/// The records `first..next` of a partition. `first` is where the previous interval ended, not the first
/// record met: compaction and control records leave holes, and a hole belongs to the interval after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    pub first: i64,
    pub next: i64,
}

/// A record of a log by which the log is known again: whoever meets another one at its offset reads
/// another log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    pub offset: i64,
    /// What Kafka stored with the record, in milliseconds from 1970; -1 without.
    pub timestamp_millis: i64,
}

impl Anchor {
    /// Whether `other` shows that this is another log than the one of the anchor.
    pub fn contradicts(self, other: Self) -> bool {
        self.offset == other.offset && self.timestamp_millis != other.timestamp_millis
    }
}

/// Where a change stands in its source: the life of the source database, then the LSN within it.
/// Comparable only between changes of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct SourcePosition {
    pub epoch: i32,
    pub lsn: i64,
}

/// LSNs are multiples of it (MAXALIGN of PostgreSQL's log records).
const LSN_STEP: i64 = 8;

impl SourcePosition {
    /// Below every change: a bound nothing is under.
    pub const BELOW_ALL: Self = Self { epoch: -1, lsn: 0 };

    /// The LSN of the snapshot's row that this stands right behind, if it does.
    pub fn overtaken(self) -> Option<i64> {
        (self.lsn % LSN_STEP == 1).then_some(self.lsn - 1)
    }
}

/// What a partition's owner knows of it. Read from the database on acquisition, then advanced record by
/// record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// First record not yet handed to a batch.
    pub next_offset: i64,
    /// The fence: batches commit only while the stored epoch is this one.
    pub epoch: i64,
    /// Highest next offset this partition ever reached. Below it a record is a repetition.
    pub seen_offset: i64,
    pub lineage: Lineage,
    /// Offset and record key of the delete read last: the tombstone right behind it says nothing new.
    pub last_delete: Option<(i64, Vec<u8>)>,
    /// The record read last, in whatever session.
    pub anchor: Option<Anchor>,
}

/// The lives of the source database a partition has seen: from which offset on, which source epoch.
///
/// A source that is restored from a backup or replaced starts again at lower LSNs. Without epochs every
/// later change would look stale. The sign of a new life is a snapshot read below the highest LSN seen,
/// in a record never seen before; a repetition of old records keeps the epoch it had.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lineage {
    /// First offset of each epoch; a record belongs to the last entry at or below its offset.
    pub starts: BTreeMap<i64, i32>,
    /// Highest LSN seen in the newest epoch.
    pub lsn_max: i64,
    /// First offset of each snapshot of the whole table, and the LSN its rows share.
    pub snapshots: BTreeMap<i64, i64>,
    /// The row of an incremental snapshot read last, in whatever session.
    pub chunk: Option<ChunkRow>,
}

/// A row of an incremental snapshot. Its LSN is that of the last log record before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRow {
    pub offset: i64,
    pub lsn: i64,
}

impl Lineage {
    /// Becomes equal to `newer`, which was made of it. Called for each record, so it copies nothing that
    /// is there: epochs and snapshots are only ever added.
    pub fn follow(&mut self, newer: &Self) {
        self.lsn_max = newer.lsn_max;
        self.chunk = newer.chunk;
        if self.starts.len() != newer.starts.len() {
            self.starts.clone_from(&newer.starts);
        }
        if self.snapshots.len() != newer.snapshots.len() {
            self.snapshots.clone_from(&newer.snapshots);
        }
    }

    /// The epoch a record at `offset` belongs to.
    pub fn epoch_at(&self, offset: i64) -> i32 {
        self.starts.range(..=offset).next_back().map_or(0, |(_, &epoch)| epoch)
    }

    /// Notes a record never read before.
    fn advance(&mut self, offset: i64, lsn: i64, origin: Origin) {
        if origin == Origin::Snapshot {
            let reborn = lsn < self.lsn_max;
            if reborn {
                self.starts.insert(offset, self.newest() + 1);
                self.lsn_max = lsn;
            }
            if reborn || self.newest_snapshot() != Some(lsn) {
                self.snapshots.insert(offset, lsn);
            }
        }
        self.lsn_max = self.lsn_max.max(lsn);
    }

    /// Where a change stands. Written before a snapshot and committed after it, it is not in the snapshot:
    /// its LSN is lower, yet it is newer, and it stands right behind the snapshot. No other change stands there:
    /// see [`LSN_STEP`].
    fn position_of(
        &self,
        offset: i64,
        lsn: i64,
        origin: Origin,
        last_commit: impl FnOnce() -> Option<i64>,
    ) -> SourcePosition {
        let mut position = SourcePosition { epoch: self.epoch_at(offset), lsn };
        if origin == Origin::Streaming {
            let snapshot = self.snapshots.range(..=offset).next_back().map(|(_, &lsn)| lsn);
            let chunk = self.chunk_before(offset).filter(|chunk| lsn < *chunk);
            // What the connector sends again was committed before the chunk was read, and is in it.
            let chunk = chunk.filter(|chunk| last_commit().is_some_and(|last| last >= *chunk));
            let overtaken = snapshot.max(chunk).filter(|it| lsn < *it);
            position.lsn = overtaken.map_or(lsn, |overtaken| overtaken + 1);
        }
        position
    }

    /// The LSN of the row of an incremental snapshot that was read last, if that was before `offset`.
    pub fn chunk_before(&self, offset: i64) -> Option<i64> {
        self.chunk.filter(|chunk| chunk.offset < offset).map(|chunk| chunk.lsn)
    }

    /// The LSN of the newest snapshot.
    pub fn newest_snapshot(&self) -> Option<i64> {
        self.snapshots.values().next_back().copied()
    }

    /// The newest epoch.
    pub fn newest(&self) -> i32 {
        self.starts.values().next_back().copied().unwrap_or(0)
    }
}

/// How a change was read at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From the log.
    Streaming,
    /// By an initial or repeated snapshot of the whole table.
    Snapshot,
    /// By an incremental snapshot, between log records.
    IncrementalSnapshot,
}

impl Progress {
    /// A partition nothing is known of, to be read from `next_offset` under `epoch`.
    pub fn new(next_offset: i64, epoch: i64) -> Self {
        Self {
            next_offset,
            epoch,
            seen_offset: 0,
            lineage: Lineage::default(),
            last_delete: None,
            anchor: None,
        }
    }

    /// Where to begin reading: at the record read last, if the log may still have it. It is not applied
    /// again; it proves that the log is the same.
    pub fn read_from(&self, log_start: i64) -> i64 {
        let anchor = self.anchor.map(|anchor| anchor.offset);
        let before = anchor.filter(|offset| (log_start..self.next_offset).contains(offset));
        before.unwrap_or(self.next_offset)
    }

    /// Places a change and advances the lineage. Returns its position for the row guard. `last_commit`: the
    /// LSN of the last commit that the connector had read before the change.
    pub fn place(
        &mut self,
        offset: i64,
        lsn: i64,
        origin: Origin,
        last_commit: impl FnOnce() -> Option<i64>,
    ) -> SourcePosition {
        if !self.repeats(offset) {
            self.lineage.advance(offset, lsn, origin);
        } else if self.lineage.epoch_at(offset) == self.lineage.newest() {
            // Told of a new life, a partition reads its records again in that one.
            self.lineage.lsn_max = self.lineage.lsn_max.max(lsn);
        }
        if origin == Origin::IncrementalSnapshot {
            self.lineage.chunk = Some(ChunkRow { offset, lsn });
        }
        self.lineage.position_of(offset, lsn, origin, last_commit)
    }

    /// Whether the record at `offset` was read before, in whatever session.
    pub fn repeats(&self, offset: i64) -> bool {
        offset < self.seen_offset
    }

    /// Passes a record that took effect before, with its key if it is a change. The tombstone of a delete may
    /// come next.
    pub fn pass(&mut self, offset: i64, key: Option<&[u8]>) {
        self.last_delete = key.map(|key| (offset, key.to_vec()));
    }

    /// Whether a tombstone at `offset` follows its own delete. If not, compaction took the delete away.
    pub fn follows_its_delete(&self, offset: i64, key: &[u8]) -> bool {
        let last = self.last_delete.as_ref();
        last.is_some_and(|(delete, deleted)| next_after(*delete) == offset && deleted == key)
    }

    /// Where no change stands above that was seen: one that overtook a snapshot stands right behind the
    /// highest LSN.
    pub fn newest_position(&self) -> SourcePosition {
        SourcePosition { epoch: self.lineage.newest(), lsn: self.lineage.lsn_max + 1 }
    }

    /// Counts everything before `next_offset` as handed to a batch.
    pub fn advance_to(&mut self, next_offset: i64) {
        self.next_offset = next_offset;
        self.seen_offset = self.seen_offset.max(self.next_offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> Progress {
        Progress::new(0, 1)
    }

    fn take(progress: &mut Progress, offset: i64, lsn: i64, origin: Origin) -> SourcePosition {
        let position = progress.place(offset, lsn, origin, || Some(lsn - 8));
        progress.advance_to(next_after(offset));
        position
    }

    #[test]
    fn a_snapshot_below_the_highest_lsn_begins_a_new_epoch() {
        let mut progress = progress();
        let epoch = |position: SourcePosition| position.epoch;
        assert_eq!(epoch(take(&mut progress, 0, 100, Origin::Snapshot)), 0);
        assert_eq!(epoch(take(&mut progress, 1, 900, Origin::Streaming)), 0);
        assert_eq!(epoch(take(&mut progress, 2, 50, Origin::Snapshot)), 1);
        assert_eq!(epoch(take(&mut progress, 3, 50, Origin::Snapshot)), 1);
        assert_eq!(epoch(take(&mut progress, 4, 60, Origin::Streaming)), 1);
    }

    #[test]
    fn repeated_records_keep_the_epoch_they_had() {
        let mut progress = progress();
        take(&mut progress, 0, 100, Origin::Snapshot);
        take(&mut progress, 1, 900, Origin::Streaming);
        take(&mut progress, 2, 50, Origin::Snapshot);
        progress.next_offset = 0; // an operator asked for a replay
        let epochs: Vec<_> = [(0, 100), (1, 900), (2, 50)]
            .into_iter()
            .map(|(offset, lsn)| take(&mut progress, offset, lsn, Origin::Snapshot).epoch)
            .collect();
        assert_eq!(epochs, [0, 0, 1]);
        assert_eq!(progress.lineage.newest(), 1);
    }

    #[test]
    fn a_change_committed_after_a_snapshot_that_missed_it_stands_behind_it() {
        let mut progress = progress();
        let positions: Vec<_> = [
            (100, Origin::Streaming),
            (800, Origin::Snapshot),
            (720, Origin::Streaming),
            (808, Origin::Streaming),
        ]
        .into_iter()
        .zip(0..)
        .map(|((lsn, origin), offset)| take(&mut progress, offset, lsn, origin).lsn)
        .collect();
        assert_eq!(positions, [100, 800, 801, 808]);
        progress.next_offset = 0;
        assert_eq!(
            progress.place(2, 720, Origin::Streaming, || None).lsn,
            801,
            "also when it is read again"
        );
        assert_eq!(progress.place(0, 100, Origin::Streaming, || None).lsn, 100);
    }

    #[test]
    fn nothing_seen_stands_above_the_newest_position() {
        let mut progress = progress();
        for (offset, (lsn, origin)) in
            (0..).zip([(800, Origin::Snapshot), (720, Origin::Streaming)])
        {
            let position = take(&mut progress, offset, lsn, origin);
            assert!(position <= progress.newest_position(), "{position:?}");
        }
    }

    #[test]
    fn records_read_again_in_a_new_life_count_for_its_highest_lsn() {
        let mut progress = progress();
        for (offset, lsn) in [(0, 5_000), (1, 900)] {
            take(&mut progress, offset, lsn, Origin::Streaming);
        }
        // Told of a snapshot at 800 between the two.
        progress.lineage.starts.insert(1, 1);
        progress.lineage.lsn_max = 800;
        for (offset, lsn) in [(0, 5_000), (1, 900)] {
            take(&mut progress, offset, lsn, Origin::Streaming);
        }
        assert_eq!(progress.lineage.lsn_max, 900);
        let restored_again = take(&mut progress, 2, 850, Origin::Snapshot);
        assert_eq!(restored_again.epoch, 2);
    }

    #[test]
    fn old_changes_emitted_again_by_the_connector_begin_no_epoch() {
        let mut progress = progress();
        take(&mut progress, 0, 900, Origin::Streaming);
        assert_eq!(take(&mut progress, 1, 100, Origin::Streaming).epoch, 0);
        assert_eq!(take(&mut progress, 2, 100, Origin::IncrementalSnapshot).epoch, 0);
    }

    #[test]
    fn a_change_committed_after_a_chunk_that_missed_it_stands_behind_its_rows() {
        let mut progress = progress();
        let mut place = |offset, lsn, origin, last_commit| {
            let position = progress.place(offset, lsn, origin, || Some(last_commit));
            progress.advance_to(next_after(offset));
            position.lsn
        };
        assert_eq!(place(0, 40, Origin::Streaming, 32), 40);
        assert_eq!(place(1, 100, Origin::IncrementalSnapshot, 96), 100);
        assert_eq!(place(2, 88, Origin::Streaming, 104), 101, "open when the chunk was read");
        assert_eq!(place(3, 40, Origin::Streaming, 32), 40, "sent again after a crash");
        assert_eq!(place(4, 120, Origin::Streaming, 112), 120);
        // Read again from the start, each has its place as before.
        assert_eq!(place(0, 40, Origin::Streaming, 32), 40);
        assert_eq!(place(1, 100, Origin::IncrementalSnapshot, 96), 100);
        assert_eq!(place(2, 88, Origin::Streaming, 104), 101);
    }
}
