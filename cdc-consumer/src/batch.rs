//! A batch: the last change per key, and the interval of every partition it came from. Pure.

use std::hash::{BuildHasher, Hasher};

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::offsets::{Interval, Lineage, Partition, Progress, SourcePosition, next_after};
use crate::rows::{CellText, RowId, RowWriter, Rows};

/// What must happen to one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Upsert,
    Delete,
    /// A tombstone whose delete was compacted away: the row goes, whatever it shows. The entry's position
    /// only bounds it: a row above came from another partition, and later. Read again, the tombstone
    /// has no bound, and removes only the very row it removed before.
    Erase,
}

/// The last change of one key in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub action: Action,
    pub row: RowId,
    pub position: SourcePosition,
    /// Index into [`Batch::claims`].
    pub claim: usize,
    pub offset: i64,
    pub source_time_micros: i64,
}

impl Entry {
    /// An upsert at a place in the log, to be filled in.
    pub fn at(claim: usize, offset: i64) -> Self {
        Self {
            action: Action::Upsert,
            row: RowId::default(),
            position: SourcePosition::default(),
            claim,
            offset,
            source_time_micros: 0,
        }
    }
}

/// What became of a change when it met its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folded {
    /// The first change of its key.
    New,
    /// It replaced an older change of its key, which needs no write of its own any more.
    Replaced,
    /// A newer change of its key was there already.
    Stale,
}

/// The changes of one view.
#[derive(Debug)]
pub struct ViewBatch {
    key_width: usize,
    rows: Rows,
    entries: Vec<Entry>,
    by_key: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// Highest position of a TRUNCATE: rows below it go, whatever partition they came from.
    pub truncated_at: Option<SourcePosition>,
    pub counts: Counts,
}

/// Records that ended before the database, per view.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub folded: u64,
    pub stale: u64,
    pub ignored: u64,
    /// TRUNCATEs: they end as applied, all in one.
    pub truncations: u64,
}

impl ViewBatch {
    fn new(key_width: usize, width: usize) -> Self {
        Self {
            key_width,
            rows: Rows::new(width),
            entries: Vec::new(),
            by_key: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            truncated_at: None,
            counts: Counts::default(),
        }
    }

    /// The changes to make, one per key.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The rows the entries point into.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Columns of the key.
    pub fn key_width(&self) -> usize {
        self.key_width
    }

    /// The key of an entry as text, in key order. Unambiguous, since every part carries its length.
    pub fn key_text(&self, entry: &Entry) -> String {
        let mut text = String::new();
        for column in 0..self.key_width {
            if column > 0 {
                text.push('|');
            }
            match self.rows.cell(entry.row, column) {
                CellText::Text(part) if self.key_width > 1 => {
                    text.push_str(&part.len().to_string());
                    text.push(':');
                    text.push_str(part);
                }
                CellText::Text(part) => text.push_str(part),
                CellText::Null | CellText::Keep | CellText::Absent => {}
            }
        }
        text
    }

    /// Adds a change whose cells `fill` writes. On error the batch is as before.
    ///
    /// The newest change by source position wins, not the last to arrive: after a crash the connector
    /// sends old changes again, under new offsets. Of equal positions the later record wins.
    pub fn add<E>(
        &mut self,
        mut entry: Entry,
        fill: impl FnOnce(&mut RowWriter<'_>) -> Result<(), E>,
    ) -> Result<Folded, E> {
        entry.row = self.rows.push(fill)?;
        let hash = self.hash_key(entry.row);
        let Self { by_key, rows, entries, key_width, hasher, .. } = self;
        let found = by_key.find(hash, |index| {
            let other = entries.get(*index as usize);
            other.is_some_and(|other| same_key(rows, *key_width, entry.row, other.row))
        });
        let Some(older) = found.and_then(|index| entries.get_mut(*index as usize)) else {
            let index = u32::try_from(entries.len()).expect("a batch has fewer than 2^32 changes");
            entries.push(entry);
            by_key.insert_unique(hash, index, |index| {
                let row = entries.get(*index as usize).map_or(entry.row, |entry| entry.row);
                hash_key(hasher, rows, *key_width, row)
            });
            return Ok(Folded::New);
        };
        if entry.action == Action::Erase {
            self.rows.pop();
            if older.action != Action::Upsert {
                self.counts.ignored += 1;
                return Ok(Folded::Stale);
            }
            // What was deleted is the row as just written. At the same position, not above it: the
            // connector may send that very change again, and then it holds.
            older.action = Action::Delete;
            older.offset = entry.offset;
            self.counts.folded += 1;
            return Ok(Folded::Replaced);
        }
        if older.action != Action::Erase && entry.position < older.position {
            self.rows.pop();
            self.counts.stale += 1;
            return Ok(Folded::Stale);
        }
        if entry.action == Action::Upsert && older.action == Action::Upsert {
            rows.inherit(entry.row, older.row);
        }
        *older = entry;
        self.counts.folded += 1;
        Ok(Folded::Replaced)
    }

    fn hash_key(&self, row: RowId) -> u64 {
        hash_key(&self.hasher, &self.rows, self.key_width, row)
    }
}

fn hash_key(hasher: &DefaultHashBuilder, rows: &Rows, key_width: usize, row: RowId) -> u64 {
    let mut hasher = hasher.build_hasher();
    for column in 0..key_width {
        if let CellText::Text(text) = rows.cell(row, column) {
            hasher.write_usize(text.len());
            hasher.write(text.as_bytes());
        }
    }
    hasher.finish()
}

fn same_key(rows: &Rows, key_width: usize, one: RowId, other: RowId) -> bool {
    (0..key_width).all(|column| rows.cell(one, column) == rows.cell(other, column))
}

/// A partition's part in a batch: the records it covers, and the epoch it may commit under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub partition: Partition,
    pub interval: Interval,
    pub epoch: i64,
    pub seen_offset: i64,
    pub lineage: Lineage,
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

    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// Approximate memory held.
    pub fn byte_count(&self) -> usize {
        let entry = size_of::<Entry>() + size_of::<u32>() * 2;
        let rows = |view: &ViewBatch| view.rows.byte_count() + view.entries.len() * entry;
        self.views.iter().map(rows).sum::<usize>() + self.refused_bytes
    }

    /// Includes the record at `offset`, advances its partition, and returns the claim's index.
    pub fn claim(&mut self, partition: &Partition, progress: &mut Progress, offset: i64) -> usize {
        self.record_count += 1;
        self.cover(partition, progress, next_after(offset))
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
            });
            self.claims.len() - 1
        });
        if let Some(claim) = self.claims.get_mut(index) {
            claim.interval.next = next;
            claim.seen_offset = progress.seen_offset;
            if claim.lineage != progress.lineage {
                claim.lineage.clone_from(&progress.lineage);
            }
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

    /// Folds `(key, value, action, lsn)` and returns what is left, with the counts.
    fn fold(changes: &[(&str, Option<&str>, Action, i64)]) -> (Vec<String>, Counts) {
        let mut batch = Batch::new([(1, 2)]);
        let view = &mut batch.views[0];
        for (offset, (key, value, action, lsn)) in (0..).zip(changes) {
            let row_writer = |row: &mut RowWriter<'_>| {
                let text = |text: &str| {
                    let text = text.to_owned();
                    move |out: &mut Vec<u8>| {
                        out.extend_from_slice(text.as_bytes());
                        Ok::<_, ()>(Cell::Text)
                    }
                };
                row.cell(0, text(key))?;
                value.map_or(Ok(()), |value| row.cell(1, text(value)))
            };
            let position = SourcePosition { epoch: 0, lsn: *lsn };
            let entry = Entry { action: *action, position, ..Entry::at(0, offset) };
            view.add(entry, row_writer).expect("infallible");
        }
        let left = view.entries().iter().map(|entry| {
            let value = view.rows().cell(entry.row, 1);
            format!("{:?} {} {value:?} @{}", entry.action, view.key_text(entry), entry.position.lsn)
        });
        (left.collect(), view.counts)
    }

    #[test]
    fn the_newest_change_of_a_key_is_left() {
        use Action::{Delete, Upsert};
        let check = |changes: &[_], expected: &[&str], folded, stale| {
            let (left, counts) = fold(changes);
            assert_eq!(left, expected);
            assert_eq!((counts.folded, counts.stale), (folded, stale));
        };
        check(&[("1", Some("a"), Upsert, 1)], &[r#"Upsert 1 Text("a") @1"#], 0, 0);
        check(
            &[
                ("1", Some("a"), Upsert, 1),
                ("2", Some("x"), Upsert, 2),
                ("1", Some("b"), Upsert, 3),
            ],
            &[r#"Upsert 1 Text("b") @3"#, r#"Upsert 2 Text("x") @2"#],
            1,
            0,
        );
        check(&[("1", Some("a"), Upsert, 1), ("1", None, Delete, 2)], &["Delete 1 Keep @2"], 1, 0);
        check(
            &[("1", Some("a"), Upsert, 1), ("1", None, Delete, 2), ("1", Some("b"), Upsert, 3)],
            &[r#"Upsert 1 Text("b") @3"#],
            2,
            0,
        );
    }

    #[test]
    fn changes_sent_again_do_not_replace_newer_ones() {
        use Action::Upsert;
        let (left, counts) = fold(&[("1", Some("new"), Upsert, 9), ("1", Some("old"), Upsert, 1)]);
        assert_eq!(left, [r#"Upsert 1 Text("new") @9"#]);
        assert_eq!(counts.stale, 1);
    }

    #[test]
    fn a_lone_tombstone_deletes_what_came_before_it_and_nothing_after() {
        use Action::{Delete, Erase, Upsert};
        let check = |changes: &[_], expected: &[&str]| assert_eq!(fold(changes).0, expected);
        check(
            &[("1", Some("a"), Upsert, 5), ("1", None, Erase, 90)],
            &[r#"Delete 1 Text("a") @5"#],
        );
        check(&[("1", None, Delete, 5), ("1", None, Erase, 90)], &["Delete 1 Keep @5"]);
        check(
            &[("1", None, Erase, 90), ("1", Some("b"), Upsert, 70)],
            &[r#"Upsert 1 Text("b") @70"#],
        );
    }

    #[test]
    fn a_kept_value_comes_from_the_change_before_it() {
        use Action::Upsert;
        let (left, _) = fold(&[("1", Some("long"), Upsert, 1), ("1", None, Upsert, 2)]);
        assert_eq!(left, [r#"Upsert 1 Text("long") @2"#]);
    }

    #[test]
    fn a_claim_covers_the_holes_before_its_records() {
        let mut batch = Batch::new([]);
        let partition = Partition { topic: "t".into(), number: 0 };
        let mut progress = Progress::new(5, 3);
        batch.claim(&partition, &mut progress, 9);
        batch.claim(&partition, &mut progress, 12);
        assert_eq!(batch.claims.len(), 1);
        assert_eq!(batch.claims[0].interval, Interval { first: 5, next: 13 });
        assert_eq!(progress.next_offset, 13);
    }
}
