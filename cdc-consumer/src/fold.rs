//! The fold: the last change per key. Pure.

use std::hash::{BuildHasher, Hasher};

use hashbrown::{DefaultHashBuilder, HashTable};

pub use crate::entry::{Action, Entry};
use crate::offsets::SourcePosition;
use crate::rows::{CellText, Omitted, RowId, RowWriter, Rows};

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

/// The end of a snapshot of the whole table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotEnd {
    /// What its rows share.
    pub lsn: i64,
    /// When Kafka says its last row was sent: milliseconds from 1970, or -1.
    pub timestamp_millis: i64,
    /// It was read before.
    pub repeated: bool,
}

/// The changes of one view.
#[derive(Debug)]
pub struct ViewBatch {
    key_width: usize,
    rows: Rows,
    entries: Vec<Entry>,
    /// Hash of the key, index of its entry. Kept together, so that growing reads no key again.
    by_key: HashTable<(u64, u32)>,
    hasher: DefaultHashBuilder,
    /// Changes that a newer one replaced. What cannot be applied has not replaced anything.
    replaced: Vec<Entry>,
    /// Highest position of a TRUNCATE: rows below it go, whatever partition they came from.
    pub truncated_at: Option<SourcePosition>,
    /// The last row of a snapshot of the whole table was met.
    pub snapshot_end: Option<SnapshotEnd>,
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
    /// No changes yet, of rows of `width` columns, the first `key_width` of which are the key.
    pub fn new(key_width: usize, width: usize) -> Self {
        Self {
            key_width,
            rows: Rows::new(width),
            entries: Vec::new(),
            by_key: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            replaced: Vec::new(),
            truncated_at: None,
            snapshot_end: None,
            counts: Counts::default(),
        }
    }

    /// As [`Self::new`] made it, with the room it took since.
    pub fn clear(&mut self) {
        let Self {
            key_width: _,
            rows,
            entries,
            by_key,
            hasher: _,
            replaced,
            truncated_at,
            snapshot_end,
            counts,
        } = self;
        rows.clear();
        entries.clear();
        by_key.clear();
        replaced.clear();
        (*truncated_at, *snapshot_end, *counts) = (None, None, Counts::default());
    }

    /// The last change of each key.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What an entry replaced, with what that had inherited.
    pub fn before(&self, entry: &Entry) -> Option<&Entry> {
        self.replaced.get(entry.replaced? as usize)
    }

    /// What removed the row before an upsert that has not all its values, and must be done before it: nothing of
    /// that row may be kept.
    pub fn removal(&self, entry: &Entry) -> Option<Entry> {
        let changes = std::iter::successors(Some(entry), |entry| self.before(entry));
        let lacks =
            |entry: &&Entry| entry.action == Action::Upsert && !self.rows.complete(entry.row);
        let first = changes.take_while(lacks).last()?;
        self.before(first).copied()
    }

    /// Whether an upsert has not all the source's values: the row as it is must have them.
    pub fn keeps_values(&self) -> bool {
        let upserts = self.entries.iter().filter(|entry| entry.action == Action::Upsert);
        upserts
            .map(|entry| self.rows.omitted(entry.row))
            .any(|it| matches!(it, Omitted::NotSent(_)))
    }

    /// The rows the entries point into.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Approximate memory held.
    pub fn byte_count(&self) -> usize {
        let entry = size_of::<Entry>() + size_of::<(u64, u32)>() * 2;
        let replaced = self.replaced.len() * size_of::<Entry>();
        self.rows.byte_count() + self.entries.len() * entry + replaced
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
        let hash = hash_key(&self.hasher, &self.rows, self.key_width, entry.row);
        let Self { by_key, rows, entries, key_width, .. } = self;
        let found = by_key.find(hash, |(known, index)| {
            let other = entries.get(*index as usize).filter(|_| *known == hash);
            other.is_some_and(|other| same_key(rows, *key_width, entry.row, other.row))
        });
        let Some(older) = found.and_then(|(_, index)| entries.get_mut(*index as usize)) else {
            let index = small(entries.len());
            entries.push(entry);
            by_key.insert_unique(hash, (hash, index), |(hash, _)| *hash);
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
        entry.begins |= older.begins;
        entry.replaced = Some(small(self.replaced.len()));
        self.replaced.push(std::mem::replace(older, entry));
        self.counts.folded += 1;
        Ok(Folded::Replaced)
    }
}

fn small(number: usize) -> u32 {
    u32::try_from(number).expect("a batch has fewer than 2^32 changes")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::Cell;

    fn add(
        view: &mut ViewBatch,
        offset: i64,
        (key, value, action, lsn): (&str, Option<&str>, Action, i64),
    ) {
        let text = |text: &str| {
            let text = text.to_owned();
            move |out: &mut String| {
                out.push_str(&text);
                Ok::<_, ()>(Cell::Text)
            }
        };
        let position = SourcePosition { epoch: 0, lsn };
        let entry = Entry { action, position, ..Entry::at(0, offset) };
        let added = view.add(entry, |row| {
            row.cell(0, text(key))?;
            value.map_or(Ok(()), |value| row.cell(1, text(value)))
        });
        added.expect("infallible");
    }

    /// A batch of `(key, value, action, lsn)`.
    fn folded(changes: &[(&str, Option<&str>, Action, i64)]) -> ViewBatch {
        let mut view = ViewBatch::new(1, 2);
        for (offset, change) in (0..).zip(changes) {
            add(&mut view, offset, *change);
        }
        view
    }

    /// What is left of it, with the counts.
    fn fold(changes: &[(&str, Option<&str>, Action, i64)]) -> (Vec<String>, Counts) {
        let view = folded(changes);
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
    fn a_row_begins_with_its_batch_whatever_follows_the_insert() {
        let begins = |first: bool, then: bool| {
            let mut view = ViewBatch::new(1, 1);
            for (offset, begins) in (0..).zip([first, then]) {
                let entry = Entry { begins, ..Entry::at(0, offset) };
                let key = |row: &mut RowWriter<'_>| row.cell(0, |_| Ok::<_, ()>(Cell::Text));
                view.add(entry, key).expect("infallible");
            }
            view.entries().iter().map(|entry| entry.begins).collect::<Vec<_>>()
        };
        assert_eq!(begins(true, false), [true]);
        assert_eq!(begins(false, true), [true]);
        assert_eq!(begins(false, false), [false]);
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
    fn no_value_is_kept_from_a_row_that_was_removed_in_between() {
        use Action::{Delete, Erase, Upsert};
        let check = |changes: &[_], removal: Option<(Action, i64)>| {
            let view = folded(changes);
            let found = view.entries().first().and_then(|newest| view.removal(newest));
            assert_eq!(found.map(|entry| (entry.action, entry.position.lsn)), removal);
        };
        let (gone, kept) = (("1", None, Delete, 1), ("1", None, Upsert, 2));
        let removed = Some((Delete, 1));
        check(&[gone, kept], removed);
        check(&[("1", Some("a"), Upsert, 0), gone, kept, ("1", None, Upsert, 3)], removed);
        check(&[("1", None, Erase, 1), kept], Some((Erase, 1)));
        check(&[gone, kept, ("1", Some("b"), Upsert, 3)], None);
        check(&[gone, ("1", Some("b"), Upsert, 2), ("1", None, Upsert, 3)], None);
        check(&[kept], None);
        check(&[gone, kept, ("1", None, Delete, 3)], None);
        check(&[gone], None);
    }

    #[test]
    fn a_change_is_known_with_what_it_replaced() {
        use Action::{Delete, Upsert};
        let check = |changes: &[_], expected: &[i64]| {
            let view = folded(changes);
            let newest = view.entries().first().and_then(|entry| view.before(entry));
            let left = std::iter::successors(newest, |before| view.before(before));
            assert_eq!(left.map(|before| before.position.lsn).collect::<Vec<_>>(), expected);
        };
        let (first, other) = (("1", Some("a"), Upsert, 1), ("2", Some("b"), Upsert, 2));
        let next = ("1", Some("c"), Upsert, 3);
        check(&[first, other], &[]);
        check(&[first, other, next, ("1", None, Upsert, 4)], &[3, 1]);
        check(&[first, ("1", None, Delete, 2), next], &[2, 1]);
    }

    #[test]
    fn a_kept_value_comes_from_the_change_before_it() {
        use Action::Upsert;
        let (left, _) = fold(&[("1", Some("long"), Upsert, 1), ("1", None, Upsert, 2)]);
        assert_eq!(left, [r#"Upsert 1 Text("long") @2"#]);
    }
}
