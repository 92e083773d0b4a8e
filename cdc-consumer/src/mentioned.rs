//! Whether positions tell which rows a snapshot mentioned: that every partition has read it to its end, in one
//! life of the source. Pure.

use std::collections::BTreeMap;

/// How far a partition was read.
pub(crate) struct Read {
    pub(crate) next_offset: i64,
    /// Of the source.
    pub(crate) epoch: i32,
    /// First offset of the newest snapshot, and its LSN.
    pub(crate) snapshot: Option<(i64, i64)>,
}

/// Whether rows may be removed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    NotYet,
    /// These partitions have read no row of the snapshot, or in an older epoch than others: which of their
    /// rows it would have mentioned, their positions do not tell yet. With its place, where that is known.
    Untold {
        partitions: BTreeMap<i32, Option<i64>>,
        /// The newest in which it was read; `None` if nobody has.
        epoch: Option<i32>,
    },
    /// Rows below the snapshot's LSN, or of an older epoch than this one.
    Sweep {
        epoch: i32,
    },
}

pub(crate) fn verdict(
    ended_lsn: i64,
    log_ends: &BTreeMap<i32, i64>,
    read: &BTreeMap<i32, Read>,
) -> Verdict {
    let mut newest = None;
    let mut partitions = BTreeMap::new();
    for (&partition, &end) in log_ends {
        // Whoever reads a partition first begins it in the newest life of the source.
        let Some(read) = read.get(&partition) else {
            if end > 0 {
                return Verdict::NotYet;
            }
            continue;
        };
        if read.next_offset < end {
            return Verdict::NotYet;
        }
        let mentioned = read.snapshot.filter(|(_, lsn)| *lsn == ended_lsn);
        let epoch = mentioned.map(|_| read.epoch);
        newest = newest.max(epoch);
        // All records of a log that was empty come behind the snapshot.
        let place = mentioned.map(|(first, _)| first).or((end == 0).then_some(0));
        partitions.insert(partition, (place, epoch));
    }
    partitions.retain(|_, (_, epoch)| epoch.is_none() || *epoch != newest);
    match newest {
        Some(epoch) if partitions.is_empty() => Verdict::Sweep { epoch },
        epoch => {
            let places = partitions.into_iter().map(|(number, (place, _))| (number, place));
            Verdict::Untold { partitions: places.collect(), epoch }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_only_when_each_partition_has_read_the_whole_snapshot() {
        let read = |next_offset, epoch, snapshot| Read { next_offset, epoch, snapshot };
        let check = |partitions: [Read; 2], expected| {
            let log_ends = BTreeMap::from([(0, 10), (1, 5), (2, 0)]);
            let partitions = (0..).zip(partitions).collect();
            assert_eq!(verdict(800, &log_ends, &partitions), expected);
        };
        let untold =
            |place| Verdict::Untold { partitions: BTreeMap::from([(1, place)]), epoch: Some(2) };
        let beside = |second, expected| check([read(10, 2, Some((7, 800))), second], expected);
        beside(read(5, 2, Some((3, 800))), Verdict::Sweep { epoch: 2 });
        beside(read(4, 2, Some((3, 800))), Verdict::NotYet);
        beside(read(5, 2, None), untold(None));
        beside(read(9, 2, Some((3, 960))), untold(None));
        beside(read(5, 1, Some((3, 800))), untold(Some(3)));
        let nobody = BTreeMap::from([(0, None), (1, None)]);
        check(
            [read(10, 2, None), read(5, 1, None)],
            Verdict::Untold { partitions: nobody, epoch: None },
        );
    }

    #[test]
    fn a_partition_that_was_empty_is_told_of_the_snapshot_before_rows_go() {
        let check = |empty: Option<Read>, expected| {
            let log_ends = BTreeMap::from([(0, 10), (1, 0)]);
            let full = Read { next_offset: 10, epoch: 1, snapshot: Some((7, 500)) };
            let read = [(0, full)].into_iter().chain(empty.map(|read| (1, read))).collect();
            assert_eq!(verdict(500, &log_ends, &read), expected);
        };
        let read = |next_offset, epoch, snapshot| Some(Read { next_offset, epoch, snapshot });
        let untold =
            || Verdict::Untold { partitions: BTreeMap::from([(1, Some(0))]), epoch: Some(1) };
        check(read(0, 0, None), untold());
        check(read(3, 0, None), untold());
        check(read(3, 1, None), untold());
        check(read(3, 1, Some((0, 500))), Verdict::Sweep { epoch: 1 });
        check(None, Verdict::Sweep { epoch: 1 });
    }
}
