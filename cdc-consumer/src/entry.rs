//! One change of one row, as a batch keeps it. Pure.

use crate::offsets::SourcePosition;
use crate::rows::RowId;

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
    /// Index into [`crate::batch::Batch::claims`].
    pub claim: usize,
    pub offset: i64,
    pub source_time_micros: i64,
    /// The batch holds an insert or a snapshot's read of the row: most likely its key is new to the view.
    pub begins: bool,
    /// What it replaced; see [`crate::fold::ViewBatch::before`].
    pub(crate) replaced: Option<u32>,
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
            begins: false,
            replaced: None,
        }
    }
}
