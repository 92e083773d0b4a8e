//! The fold: the last change per key. Pure.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};

use hashbrown::{DefaultHashBuilder, HashTable};

pub use crate::entry::{Action, Entry};
use crate::offsets::SourcePosition;
use crate::rows::{CellText, RowId, RowWriter, Rows};

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
    /// By the index of an upsert that has not all its values: what removed the row before it. Nothing of that
    /// row may be kept.
    removals: BTreeMap<usize, Entry>,
    replaced: Vec<Replaced>,
    /// Highest position of a TRUNCATE: rows below it go, whatever partition they came from.
    pub truncated_at: Option<SourcePosition>,
    /// The last row of a snapshot of the whole table was met.
    pub snapshot_end: Option<SnapshotEnd>,
    pub counts: Counts,
}

/// A change that a newer one replaced. What cannot be applied has not replaced anything.
#[derive(Debug, Clone, Copy)]
pub struct Replaced {
    /// The row of the newer one.
    by: RowId,
    pub change: Entry,
    /// The newer one took values from it, which its own record does not have.
    pub wanted: bool,
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
            removals: BTreeMap::new(),
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
            removals,
            replaced,
            truncated_at,
            snapshot_end,
            counts,
        } = self;
        rows.clear();
        entries.clear();
        by_key.clear();
        removals.clear();
        replaced.clear();
        (*truncated_at, *snapshot_end, *counts) = (None, None, Counts::default());
    }

    /// The last change of each key.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The removals to make before them.
    pub fn removals(&self) -> impl Iterator<Item = &Entry> {
        self.removals.values()
    }

    /// What an entry replaced, with what that had inherited; not a removal, which is made anyhow.
    pub fn before(&self, entry: &Entry) -> Option<&Replaced> {
        let replaced = self.replaced.iter().rev().find(|replaced| replaced.by == entry.row)?;
        let removal = self.removals().any(|removal| removal.row == replaced.change.row);
        (!removal).then_some(replaced)
    }

    /// The rows the entries point into.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Approximate memory held.
    pub fn byte_count(&self) -> usize {
        let entry = size_of::<Entry>() + size_of::<(u64, u32)>() * 2;
        let replaced = self.replaced.len() * size_of::<Replaced>();
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
        let Self { by_key, rows, entries, key_width, removals, .. } = self;
        let found = by_key.find(hash, |(known, index)| {
            let other = entries.get(*index as usize).filter(|_| *known == hash);
            other.is_some_and(|other| same_key(rows, *key_width, entry.row, other.row))
        });
        let found = found.map(|(_, index)| *index as usize);
        let Some((index, older)) = found.and_then(|it| Some((it, entries.get_mut(it)?))) else {
            let index = u32::try_from(entries.len()).expect("a batch has fewer than 2^32 changes");
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
            self.counts.folded += 1 + u64::from(removals.remove(&index).is_some());
            return Ok(Folded::Replaced);
        }
        if older.action != Action::Erase && entry.position < older.position {
            self.rows.pop();
            self.counts.stale += 1;
            return Ok(Folded::Stale);
        }
        let upserts = entry.action == Action::Upsert && older.action == Action::Upsert;
        let wanted = upserts && rows.inherit(entry.row, older.row);
        entry.begins |= older.begins;
        let older = std::mem::replace(older, entry);
        self.replaced.push(Replaced { by: entry.row, change: older, wanted });
        let (removal, ended) = if older.action == Action::Upsert {
            (removals.remove(&index), 1)
        } else {
            (Some(older), 0)
        };
        match removal {
            Some(removal) if entry.action == Action::Upsert && !rows.complete(entry.row) => {
                removals.insert(index, removal);
                self.counts.folded += ended;
            }
            superseded => self.counts.folded += ended + u64::from(superseded.is_some()),
        }
        Ok(Folded::Replaced)
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

    /// Folds `(key, value, action, lsn)` and returns what is left, with the counts.
    fn fold(changes: &[(&str, Option<&str>, Action, i64)]) -> (Vec<String>, Counts) {
        let mut view = ViewBatch::new(1, 2);
        for (offset, change) in (0..).zip(changes) {
            add(&mut view, offset, *change);
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
        let check = |changes: &[(&str, Option<&str>, Action, i64)], removals: &[(Action, i64)]| {
            let mut view = ViewBatch::new(1, 2);
            for &(key, value, action, lsn) in changes {
                add(&mut view, 0, (key, value, action, lsn));
            }
            let left = view.removals().map(|entry| (entry.action, entry.position.lsn));
            assert_eq!(left.collect::<Vec<_>>(), removals);
            let ended = view.entries().len() + removals.len();
            assert_eq!(view.counts.folded, (changes.len() - ended) as u64, "each ends once");
        };
        let (gone, kept) = (("1", None, Delete, 1), ("1", None, Upsert, 2));
        check(&[gone, kept], &[(Delete, 1)]);
        check(&[("1", Some("a"), Upsert, 0), gone, kept, ("1", None, Upsert, 3)], &[(Delete, 1)]);
        check(&[("1", None, Erase, 1), kept], &[(Erase, 1)]);
        check(&[gone, kept, ("1", Some("b"), Upsert, 3)], &[]);
        check(&[gone, kept, ("1", None, Delete, 3)], &[]);
        check(&[gone, kept, ("1", None, Erase, 3)], &[]);
        check(&[gone, ("1", Some("b"), Upsert, 2)], &[]);
    }

    #[test]
    fn a_change_is_known_with_what_it_replaced_but_for_removals_that_are_made() {
        use Action::{Delete, Upsert};
        let check = |changes: &[(&str, Option<&str>, Action, i64)], expected: &[(i64, bool)]| {
            let mut view = ViewBatch::new(1, 2);
            for &(key, value, action, lsn) in changes {
                add(&mut view, 0, (key, value, action, lsn));
            }
            let newest = view.entries().first().and_then(|entry| view.before(entry));
            let left = std::iter::successors(newest, |before| view.before(&before.change));
            let left = left.map(|before| (before.change.position.lsn, before.wanted));
            assert_eq!(left.collect::<Vec<_>>(), expected);
        };
        let (first, kept) = (("1", Some("a"), Upsert, 1), ("1", None, Upsert, 4));
        let (other, next) = (("2", Some("b"), Upsert, 2), ("1", Some("c"), Upsert, 3));
        check(&[first, other], &[]);
        check(&[first, other, next, kept], &[(3, true), (1, false)]);
        check(&[first, ("1", None, Delete, 2), next], &[(2, false), (1, false)]);
        check(&[first, ("1", None, Delete, 2), kept], &[]);
    }

    #[test]
    fn a_kept_value_comes_from_the_change_before_it() {
        use Action::Upsert;
        let (left, _) = fold(&[("1", Some("long"), Upsert, 1), ("1", None, Upsert, 2)]);
        assert_eq!(left, [r#"Upsert 1 Text("long") @2"#]);
    }
}
