//! What the statements do, in memory: the fence, and the guards of rows. Only to be compared with.

use std::collections::BTreeMap;

use cdc_consumer::batch::Batch;
use cdc_consumer::fold::{Action, Entry, ViewBatch};
use cdc_consumer::offsets::{Partition, Progress, SourcePosition};
use cdc_consumer::rows::CellText;

/// Rows, the memory of deleted keys, and progress.
#[derive(Debug, Default)]
pub(crate) struct Model {
    progress: BTreeMap<i32, Progress>,
    rows: BTreeMap<String, (SourcePosition, String)>,
    deleted: BTreeMap<String, SourcePosition>,
    floor: Option<SourcePosition>,
    /// The newest position each key ever showed.
    newest: BTreeMap<String, SourcePosition>,
}

impl Model {
    /// A new epoch, and where to continue: at `requested` if an operator asked for that.
    pub(crate) fn acquire(&mut self, partition: i32, requested: Option<i64>) -> Progress {
        let progress = self.progress.entry(partition).or_insert_with(|| Progress::new(0, 0));
        progress.epoch += 1;
        progress.next_offset = requested.unwrap_or(progress.next_offset);
        progress.clone()
    }

    /// Applies a batch, unless the fence holds it back.
    pub(crate) fn apply(&mut self, batch: &Batch) -> bool {
        let passes = batch.claims.iter().all(|claim| {
            let stored = self.progress.get(&claim.partition.number);
            stored.is_some_and(|stored| {
                stored.epoch == claim.epoch && stored.next_offset == claim.interval.first
            })
        });
        if !passes {
            return false;
        }
        for claim in &batch.claims {
            let Partition { number, .. } = claim.partition;
            let stored = self.progress.get_mut(&number).expect("it passed");
            stored.next_offset = claim.interval.next;
            stored.seen_offset = stored.seen_offset.max(claim.seen_offset);
            stored.lineage = claim.lineage.clone();
        }
        let view = batch.views.first().expect("one view");
        if let Some(floor) = view.truncated_at {
            self.floor = self.floor.max(Some(floor));
            self.rows.retain(|_, (position, _)| *position >= floor);
        }
        for action in [Action::Erase, Action::Delete, Action::Upsert] {
            for entry in view.entries().iter().filter(|entry| entry.action == action) {
                self.change(view, entry);
            }
        }
        true
    }

    fn change(&mut self, view: &ViewBatch, entry: &Entry) {
        let key = view.key_text(entry);
        let shown = self.rows.get(&key).map(|(position, _)| *position);
        let deleted = self.deleted.get(&key).copied();
        match entry.action {
            Action::Erase => {
                let Some(shown) = shown else { return };
                if shown <= entry.position || deleted == Some(shown) {
                    self.rows.remove(&key);
                    self.deleted.insert(key, shown);
                }
            }
            Action::Delete => {
                self.deleted
                    .insert(key.clone(), entry.position.max(deleted.unwrap_or(entry.position)));
                if shown.is_some_and(|shown| shown <= entry.position) {
                    self.rows.remove(&key);
                    self.remember(&key, entry.position);
                }
            }
            Action::Upsert => {
                let refused = deleted > Some(entry.position)
                    || self.floor > Some(entry.position)
                    || shown > Some(entry.position);
                if !refused {
                    let name = view.rows().cell(entry.row, 1);
                    let CellText::Text(name) = name else { panic!("a name, not {name:?}") };
                    self.rows.insert(key.clone(), (entry.position, name.to_owned()));
                    self.remember(&key, entry.position);
                }
            }
        }
    }

    /// Whatever the guards do, no key may show an older state than it did.
    fn remember(&mut self, key: &str, position: SourcePosition) {
        let before = self.newest.insert(key.to_owned(), position);
        assert!(before <= Some(position), "key {key} went back from {before:?} to {position:?}");
    }

    /// Key and name of every row.
    pub(crate) fn shown(&self) -> BTreeMap<String, String> {
        self.rows.iter().map(|(key, (_, name))| (key.clone(), name.clone())).collect()
    }
}
