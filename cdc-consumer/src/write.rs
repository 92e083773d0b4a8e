//! The rows of one view's part in a batch, inside the batch's transaction.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use sqlx::{Connection, PgConnection, PgTransaction, Row};

use crate::apply::{ApplyError, Care, Outcome, Target};
use crate::batch::Claim;
use crate::copy;
use crate::fold::{Action, Entry, ViewBatch};
use crate::quarantine::{self, Fault};
use crate::rows::{CellText, Omitted, RowId};
use crate::sql::Statements;

/// One kind of statement over some entries of a view.
struct Step {
    kind: StepKind,
    entries: Vec<Entry>,
}

/// In the order of the steps.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum StepKind {
    Erase,
    Delete,
    /// All columns but those the record's schema does not have.
    Upsert {
        omitted: Vec<usize>,
    },
    /// Upserts whose `kept` columns the source did not send.
    Partial {
        kept: Vec<usize>,
    },
}

fn steps_of(view: &ViewBatch, entries: impl IntoIterator<Item = Entry>) -> Vec<Step> {
    let mut steps = BTreeMap::<_, Vec<Entry>>::new();
    for entry in entries {
        let kind = match entry.action {
            Action::Erase => StepKind::Erase,
            Action::Delete => StepKind::Delete,
            Action::Upsert => match view.rows().omitted(entry.row) {
                Omitted::NotSent(kept) => StepKind::Partial { kept },
                Omitted::Unknown(omitted) => StepKind::Upsert { omitted },
            },
        };
        steps.entry(kind).or_default().push(entry);
    }
    steps.into_iter().map(|(kind, entries)| Step { kind, entries }).collect()
}

pub(crate) struct ViewWork<'a> {
    pub(crate) target: &'a Target,
    pub(crate) index: usize,
    pub(crate) view: &'a ViewBatch,
    pub(crate) claims: &'a [Claim],
    pub(crate) care: Care,
    pub(crate) faults: Vec<Fault>,
    pub(crate) outcome: Outcome,
    /// To be applied next: what had been replaced by changes that were refused.
    pub(crate) fallbacks: Vec<Entry>,
    /// By the row of a change that goes in the place of newer ones, kept aside: the columns whose values these
    /// took from it or from those before it.
    pub(crate) wanted: HashMap<RowId, Vec<usize>>,
    /// Changes that were folded and end by themselves after all.
    pub(crate) unfolded: u64,
}

impl<'a> ViewWork<'a> {
    /// Truncation, then deletes, then upserts: the guards make any order right between batches, this one
    /// is right within a batch for keys PostgreSQL finds equal and the fold did not.
    pub(crate) async fn apply(
        &mut self,
        tx: &mut PgTransaction<'_>,
        parked: &quarantine::Parked,
    ) -> Result<(), ApplyError> {
        if let Some(turn) = &self.statements().turn
            && !self.view.entries().is_empty()
        {
            self.plain(tx, turn).await?;
        }
        if let Some(position) = self.view.truncated_at {
            self.plain(tx, &self.statements().lock).await?;
            for statement in &self.statements().truncate {
                let query = sqlx::query(statement).bind(position.epoch).bind(position.lsn);
                let done = query.execute(&mut **tx).await;
                done.map_err(|source| self.write_error(source))?;
            }
        }
        let mut steps = self.steps(parked);
        while !steps.is_empty() {
            for step in steps {
                match self.care {
                    Care::Sets => self.write(tx, &step).await?,
                    Care::Rows => self.write_or_halve(tx, step).await?,
                }
            }
            steps = steps_of(self.view, std::mem::take(&mut self.fallbacks));
        }
        Ok(())
    }

    async fn plain(&self, tx: &mut PgTransaction<'_>, statement: &str) -> Result<(), ApplyError> {
        let done = sqlx::query(statement).execute(&mut **tx).await;
        done.map(drop).map_err(|source| self.write_error(source))
    }

    fn statements(&self) -> &'a Statements {
        // One `Statements` per view, built from the same declaration as the batch.
        self.target.statements.get(self.index).expect("every view has statements")
    }

    fn steps(&mut self, parked: &quarantine::Parked) -> Vec<Step> {
        let view = self.view;
        let admitted = view.entries().iter().filter_map(|newest| {
            let entry = self.admitted(parked, *newest)?;
            Some(self.with_removal(entry))
        });
        steps_of(view, admitted.flatten())
    }

    /// The newest change of a key that need not wait behind a dead letter.
    fn admitted(&mut self, parked: &quarantine::Parked, newest: Entry) -> Option<Entry> {
        let mut entry = newest;
        while let Some(fault) = self.waits(parked, &entry) {
            entry = self.keep_aside(&entry, fault)?;
        }
        Some(entry)
    }

    fn waits(&self, parked: &quarantine::Parked, entry: &Entry) -> Option<Fault> {
        let partition = self.claims.get(entry.claim).map(|claim| &claim.partition);
        parked.fault(self.index, self.view, entry, partition)
    }

    /// A change to be applied, after what removed the row whose values it must not keep.
    fn with_removal(&mut self, entry: Entry) -> impl Iterator<Item = Entry> + use<> {
        let removal = self.view.removal(&entry);
        self.unfolded += u64::from(removal.is_some());
        removal.into_iter().chain([entry])
    }

    /// Keeps a change aside, and has what it replaced applied.
    fn refuse(&mut self, entry: &Entry, fault: Fault) {
        let removal = self.view.removal(entry).map(|removal| removal.row);
        let Some(before) = self.keep_aside(entry, fault) else { return };
        match removal {
            None => {
                let before = self.with_removal(before);
                self.fallbacks.extend(before);
            }
            // It was done before the entry, and counted.
            Some(done) if done == before.row => self.unfolded -= 1,
            Some(_) => self.fallbacks.push(before),
        }
    }

    /// Keeps a change aside, if it is the newest of its key or has a value that a newer one lacks which is kept aside:
    /// together they are whole again. Returns what it replaced.
    fn keep_aside(&mut self, entry: &Entry, fault: Fault) -> Option<Entry> {
        let rows = self.view.rows();
        let wanted = match self.wanted.remove(&entry.row) {
            None => {
                self.faults.push(fault);
                rows.inherited(entry.row)
            }
            Some(mut wanted) => {
                if rows.provides(entry.row, &mut wanted) {
                    self.faults.push(fault);
                } else {
                    self.unfolded -= 1;
                }
                wanted
            }
        };
        let before = *self.view.before(entry)?;
        self.wanted.insert(before.row, wanted);
        self.unfolded += 1;
        Some(before)
    }

    async fn write(&mut self, tx: &mut PgTransaction<'_>, step: &Step) -> Result<(), ApplyError> {
        let total = step.entries.len() as u64;
        let stale = match &step.kind {
            StepKind::Upsert { omitted } => {
                total.saturating_sub(self.upsert(tx, omitted, &step.entries).await?)
            }
            StepKind::Delete => self.delete(tx, &step.entries).await?,
            StepKind::Erase => {
                let removed = self.erase(tx, &step.entries).await?;
                self.outcome.applied += removed;
                self.outcome.ignored += total.saturating_sub(removed);
                return Ok(());
            }
            StepKind::Partial { kept } => return self.partial(tx, kept, &step.entries).await,
        };
        self.outcome.stale += stale;
        self.outcome.applied += total - stale;
        Ok(())
    }

    /// Halves a step that fails because of its values until a single row is at fault. Each attempt has
    /// a savepoint; infrastructure failures pass through.
    async fn write_or_halve(
        &mut self,
        tx: &mut PgTransaction<'_>,
        step: Step,
    ) -> Result<(), ApplyError> {
        let mut waiting = vec![step];
        while let Some(mut step) = waiting.pop() {
            let mut savepoint = tx.begin().await.map_err(ApplyError::Transaction)?;
            match self.write(&mut savepoint, &step).await {
                Ok(()) => savepoint.commit().await.map_err(ApplyError::Transaction)?,
                Err(ApplyError::Write { source, .. }) if quarantine::blames_values(&source) => {
                    savepoint.rollback().await.map_err(ApplyError::Transaction)?;
                    if let [entry] = step.entries.as_slice() {
                        self.refuse(entry, Fault::refused(self.index, self.view, entry, &source));
                    } else {
                        let half = step.entries.split_off(step.entries.len() / 2);
                        let kind = step.kind.clone();
                        waiting.push(Step { kind, entries: half });
                        waiting.push(step);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Rows inserted or updated.
    async fn upsert(
        &self,
        tx: &mut PgTransaction<'_>,
        omitted: &[usize],
        entries: &[Entry],
    ) -> Result<u64, ApplyError> {
        if omitted.is_empty() && self.alone() {
            let done = put(tx, self.statements(), self.view, entries, self.target.copy_rows_min);
            return done.await.map_err(|source| self.write_error(source));
        }
        let statement = match (omitted, self.alone()) {
            ([], _) => Cow::from(&self.statements().upsert),
            (omitted, true) => self.statements().merge_without(omitted).into(),
            (omitted, false) => self.statements().upsert_without(omitted).into(),
        };
        let query = bind(self.view, &statement, &self.all_but(omitted), entries);
        let done = query.execute(&mut **tx).await.map_err(|source| self.write_error(source))?;
        Ok(done.rows_affected())
    }

    /// Whether nobody else writes rows of these keys: the fence says so, of the partitions it holds. A key may
    /// come through two of them since some were added; what that breaks is done again with more care.
    fn alone(&self) -> bool {
        self.care == Care::Sets && !self.claims.is_empty()
    }

    fn all_but(&self, omitted: &[usize]) -> Vec<usize> {
        (0..self.view.rows().width()).filter(|column| !omitted.contains(column)).collect()
    }

    /// Rows that lone tombstones removed.
    async fn erase(
        &self,
        tx: &mut PgTransaction<'_>,
        entries: &[Entry],
    ) -> Result<u64, ApplyError> {
        let columns: Vec<usize> = (0..self.view.key_width()).collect();
        let query = bind(self.view, &self.statements().erase, &columns, entries);
        let done = query.execute(&mut **tx).await.map_err(|source| self.write_error(source))?;
        Ok(done.rows_affected())
    }

    /// How many of the deletes were stale.
    async fn delete(
        &self,
        tx: &mut PgTransaction<'_>,
        entries: &[Entry],
    ) -> Result<u64, ApplyError> {
        let columns: Vec<usize> = (0..self.view.key_width()).collect();
        let query = bind(self.view, &self.statements().delete, &columns, entries);
        let row = query.fetch_one(&mut **tx).await.map_err(|source| self.write_error(source))?;
        let stale: i64 = row.try_get(0).map_err(|source| self.write_error(source))?;
        Ok(stale.unsigned_abs())
    }

    /// Updates rows that keep some columns. A row that is not there cannot keep anything: its change is
    /// at fault, unless a newer state of the key is known.
    async fn partial(
        &mut self,
        tx: &mut PgTransaction<'_>,
        kept: &[usize],
        entries: &[Entry],
    ) -> Result<(), ApplyError> {
        let statement = self.statements().partial(kept);
        let query = bind(self.view, &statement, &self.all_but(kept), entries);
        let rows = query.fetch_all(&mut **tx).await.map_err(|source| self.write_error(source))?;
        for row in rows {
            let read = || Ok((row.try_get::<i64, _>(0)?, row.try_get(1)?, row.try_get(2)?));
            let (number, applied, known): (i64, bool, bool) =
                read().map_err(|source| self.write_error(source))?;
            let entry = usize::try_from(number - 1).ok().and_then(|index| entries.get(index));
            match (applied, known, entry) {
                (true, _, _) => self.outcome.applied += 1,
                (false, false, Some(entry)) => {
                    self.refuse(entry, Fault::value_not_sent(self.index, self.view, entry));
                }
                (false, _, _) => self.outcome.stale += 1,
            }
        }
        Ok(())
    }

    fn write_error(&self, source: sqlx::Error) -> ApplyError {
        let table = self.target.tables.get(self.index).cloned().unwrap_or_default();
        ApplyError::Write { table, source }
    }
}

/// Writes complete rows whose keys nobody else writes meanwhile. Where at least `copy_rows_min` of them begin
/// with this batch, those of new keys go by COPY. Returns how many were inserted or updated.
pub async fn put(
    connection: &mut PgConnection,
    statements: &Statements,
    view: &ViewBatch,
    entries: &[Entry],
    copy_rows_min: usize,
) -> Result<u64, sqlx::Error> {
    let (mut rows, mut rest) = (0, Cow::from(entries));
    if let Some(copy) = &statements.copy
        && entries.iter().filter(|entry| entry.begins).count() >= copy_rows_min
    {
        let (new, known): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry.begins);
        let copied = copy::new_rows(connection, copy, view, &new).await?;
        (rows, rest) = (copied.rows, [known, copied.rest].concat().into());
    }
    if rest.is_empty() {
        return Ok(rows);
    }
    let columns: Vec<usize> = (0..view.rows().width()).collect();
    let merge = bind(view, &statements.merge, &columns, &rest);
    Ok(rows + merge.execute(connection).await?.rows_affected())
}

/// A statement with some columns of the entries' rows as `text[]` each, then their epochs and LSNs.
pub fn bind<'q>(
    view: &'q ViewBatch,
    statement: &'q str,
    columns: &[usize],
    entries: &'q [Entry],
) -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments> {
    let rows = view.rows();
    let mut query = sqlx::query(statement);
    for &column in columns {
        let cells = entries.iter().map(|entry| match rows.cell(entry.row, column) {
            CellText::Text(text) => Some(text),
            CellText::Null | CellText::Keep | CellText::Absent => None,
        });
        query = query.bind(cells.collect::<Vec<_>>());
    }
    query
        .bind(entries.iter().map(|entry| entry.position.epoch).collect::<Vec<_>>())
        .bind(entries.iter().map(|entry| entry.position.lsn).collect::<Vec<_>>())
}
