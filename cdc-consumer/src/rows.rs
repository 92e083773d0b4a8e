//! Rows of a batch as text in one block of memory, addressed by column. Pure.

use crate::convert::Cell;

/// Where a cell's text lies, or why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Null { inherited: bool },
    Keep,
    Absent,
    Text { start: u32, end: u32, inherited: bool },
}

impl Slot {
    /// The same value in a later row, if it is one.
    fn passed_on(self) -> Self {
        match self {
            Self::Null { .. } => Self::Null { inherited: true },
            Self::Text { start, end, .. } => Self::Text { start, end, inherited: true },
            Self::Keep | Self::Absent => self,
        }
    }

    fn is_inherited(self) -> bool {
        matches!(self, Self::Null { inherited: true } | Self::Text { inherited: true, .. })
    }
}

/// Rows of one width. Appending a row allocates nothing but room in two vectors.
#[derive(Debug)]
pub struct Rows {
    width: usize,
    text: String,
    slots: Vec<Slot>,
}

/// A cell as read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellText<'a> {
    Null,
    Keep,
    Absent,
    Text(&'a str),
}

/// Columns a statement must leave out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Omitted {
    /// The source has a value and did not send it: only an existing row can keep it.
    NotSent(Vec<usize>),
    /// The source has no such column: a new row gets the default.
    Unknown(Vec<usize>),
}

/// A row number in its [`Rows`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RowId(u32);

impl Rows {
    /// An empty store for rows of `width` columns.
    pub fn new(width: usize) -> Self {
        Self { width, text: String::new(), slots: Vec::new() }
    }

    /// Removes all rows and keeps their room.
    pub fn clear(&mut self) {
        let Self { width: _, text, slots } = self;
        text.clear();
        slots.clear();
    }

    /// Columns of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Bytes of text held, superseded rows included.
    pub fn byte_count(&self) -> usize {
        self.text.len() + self.slots.len() * size_of::<Slot>()
    }

    /// Appends a row that `fill` writes cell by cell. On error nothing is appended.
    pub fn push<E>(
        &mut self,
        fill: impl FnOnce(&mut RowWriter<'_>) -> Result<(), E>,
    ) -> Result<RowId, E> {
        let (text_start, slot_start) = (self.text.len(), self.slots.len());
        self.slots.resize(slot_start + self.width, Slot::Keep);
        let slots = self.slots.get_mut(slot_start..).unwrap_or_default();
        let outcome = fill(&mut RowWriter { text: &mut self.text, text_start, slots });
        if let Err(error) = outcome {
            self.text.truncate(text_start);
            self.slots.truncate(slot_start);
            return Err(error);
        }
        let row = slot_start.checked_div(self.width).unwrap_or(0);
        Ok(RowId(u32::try_from(row).expect("a batch has fewer than 2^32 rows")))
    }

    /// Drops the newest row, which the caller found superfluous.
    pub fn pop(&mut self) {
        let slot_start = self.slots.len().saturating_sub(self.width);
        let newest = self.slots.get(slot_start..).unwrap_or_default();
        let text_start = newest.iter().filter_map(|slot| match slot {
            Slot::Text { start, .. } => Some(*start as usize),
            Slot::Null { .. } | Slot::Keep | Slot::Absent => None,
        });
        if let Some(text_start) = text_start.min() {
            self.text.truncate(text_start);
        }
        self.slots.truncate(slot_start);
    }

    /// One cell.
    pub fn cell(&self, row: RowId, column: usize) -> CellText<'_> {
        match self.slots.get(row.0 as usize * self.width + column) {
            Some(Slot::Text { start, end, .. }) => {
                CellText::Text(self.text.get(*start as usize..*end as usize).unwrap_or_default())
            }
            Some(Slot::Null { .. }) => CellText::Null,
            Some(Slot::Absent) => CellText::Absent,
            Some(Slot::Keep) | None => CellText::Keep,
        }
    }

    /// Whether every cell of a row has a value of its own.
    pub fn complete(&self, row: RowId) -> bool {
        !self.slots_of(row).iter().any(|slot| matches!(slot, Slot::Keep | Slot::Absent))
    }

    /// Which columns of a row have no value of their own.
    pub fn omitted(&self, row: RowId) -> Omitted {
        let (mut columns, mut kept) = (vec![], false);
        for (column, slot) in self.slots_of(row).iter().enumerate() {
            if matches!(slot, Slot::Keep | Slot::Absent) {
                columns.push(column);
                kept |= *slot == Slot::Keep;
            }
        }
        if kept { Omitted::NotSent(columns) } else { Omitted::Unknown(columns) }
    }

    /// Fills the cells that `newer` keeps with those of `older`, a row before it: together they are one later row.
    pub fn inherit(&mut self, newer: RowId, older: RowId) {
        let start = |row: RowId| row.0 as usize * self.width;
        let split = self.slots.split_at_mut_checked(start(newer));
        let (before, after) = split.unwrap_or_default();
        let older = before.get(start(older)..).unwrap_or_default();
        for (slot, inherited) in after.iter_mut().zip(older).take(self.width) {
            if matches!(slot, Slot::Keep | Slot::Absent) && *inherited != Slot::Absent {
                *slot = inherited.passed_on();
            }
        }
    }

    /// The columns whose values a row has from rows before it.
    pub fn inherited(&self, row: RowId) -> Vec<usize> {
        let slots = self.slots_of(row).iter().enumerate();
        slots.filter(|(_, slot)| slot.is_inherited()).map(|(column, _)| column).collect()
    }

    /// Takes off the columns that a row has a value of its own for. Returns whether there were any.
    pub fn provides(&self, row: RowId, columns: &mut Vec<usize>) -> bool {
        let (slots, wanted) = (self.slots_of(row), columns.len());
        columns.retain(|column| slots.get(*column).is_some_and(|slot| slot.is_inherited()));
        columns.len() < wanted
    }

    fn slots_of(&self, row: RowId) -> &[Slot] {
        let start = row.0 as usize * self.width;
        self.slots.get(start..start + self.width).unwrap_or_default()
    }
}

/// Writes the cells of one new row. Cells not written stay [`CellText::Keep`].
pub struct RowWriter<'a> {
    text: &'a mut String,
    /// Where the text of this row begins.
    text_start: usize,
    slots: &'a mut [Slot],
}

impl RowWriter<'_> {
    /// Bytes of text the row has so far.
    pub fn byte_count(&self) -> usize {
        self.text.len() - self.text_start
    }

    /// Writes one cell; `write` appends text and says what it made.
    pub fn cell<E>(
        &mut self,
        column: usize,
        write: impl FnOnce(&mut String) -> Result<Cell, E>,
    ) -> Result<(), E> {
        let offset = |length: usize| u32::try_from(length).expect("a batch's text is below 4 GiB");
        let start = self.text.len();
        let slot = match write(self.text)? {
            Cell::Text => {
                let (start, end) = (offset(start), offset(self.text.len()));
                Slot::Text { start, end, inherited: false }
            }
            Cell::Null => Slot::Null { inherited: false },
            Cell::Keep => Slot::Keep,
            Cell::Absent => Slot::Absent,
        };
        if !matches!(slot, Slot::Text { .. }) {
            self.text.truncate(start);
        }
        if let Some(target) = self.slots.get_mut(column) {
            *target = slot;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(rows: &mut Rows, cells: &[Option<&str>]) -> RowId {
        let written = rows.push(|row| {
            for (column, cell) in cells.iter().enumerate() {
                row.cell(column, |out| {
                    out.push_str(cell.unwrap_or_default());
                    Ok::<_, ()>(if cell.is_some() { Cell::Text } else { Cell::Null })
                })?;
            }
            Ok::<_, ()>(())
        });
        written.expect("infallible")
    }

    #[test]
    fn cells_read_back_and_unwritten_ones_are_kept() {
        let mut rows = Rows::new(3);
        let first = push(&mut rows, &[Some("1"), None]);
        let second = push(&mut rows, &[Some("2"), Some("b"), Some("")]);
        assert_eq!(rows.cell(first, 0), CellText::Text("1"));
        assert_eq!(rows.cell(first, 1), CellText::Null);
        assert_eq!(rows.omitted(first), Omitted::NotSent(vec![2]));
        assert_eq!(rows.cell(second, 2), CellText::Text(""));
        assert!(rows.complete(second));
    }

    #[test]
    fn a_later_row_inherits_what_it_keeps_and_knows_from_whom() {
        let mut rows = Rows::new(3);
        let first = push(&mut rows, &[Some("1"), Some("long"), None]);
        let second = push(&mut rows, &[Some("1")]);
        let third = push(&mut rows, &[Some("1"), Some("longer")]);
        let fourth = push(&mut rows, &[Some("1")]);
        for (newer, older) in [(second, first), (third, second), (fourth, third)] {
            rows.inherit(newer, older);
        }
        assert_eq!(rows.cell(second, 1), CellText::Text("long"));
        assert_eq!(rows.cell(fourth, 1), CellText::Text("longer"));
        assert_eq!(rows.cell(fourth, 2), CellText::Null);
        let mut wanted = rows.inherited(fourth);
        assert_eq!(wanted, [1, 2]);
        let provide = |row: RowId| rows.provides(row, &mut wanted);
        assert_eq!([third, second, first].map(provide), [true, false, true]);
        assert_eq!(wanted, [0; 0]);
    }

    #[test]
    fn a_row_that_fails_or_is_popped_leaves_nothing() {
        let mut rows = Rows::new(2);
        push(&mut rows, &[Some("1"), Some("a")]);
        let before = rows.byte_count();
        assert!(
            rows.push(|row| row.cell(0, |out| {
                out.push('x');
                Err(())
            }))
            .is_err()
        );
        push(&mut rows, &[Some("2"), Some("b")]);
        rows.pop();
        assert_eq!(rows.byte_count(), before);
    }
}
