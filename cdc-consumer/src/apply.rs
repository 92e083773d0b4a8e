//! A batch takes effect: one transaction, offsets first, then rows. The only place that makes an
//! [`Applied`].

use std::sync::Arc;

use sqlx::postgres::PgBindIterExt;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgTransaction, Row};

use crate::batch::{Action, Batch, Claim, Counts, Entry, ViewBatch};
use crate::database::Generation;
use crate::decode::View;
use crate::fence::{self, FenceError};
use crate::quarantine::{self, Fault, QuarantineError};
use crate::refetch::RecordFetcher;
use crate::rows::CellText;
use crate::sql::Statements;

/// Proof that a batch is in the database. What `commit` tells the broker.
#[derive(Debug)]
#[expect(clippy::manual_non_exhaustive, reason = "nobody else in this crate may make one either")]
pub struct Applied {
    pub claims: Vec<Claim>,
    /// Per view, in the order of the declaration.
    pub outcomes: Vec<Outcome>,
    pub record_count: usize,
    /// Commit times at the source of a sample of the changes: (view, microseconds from 1970).
    pub source_times: Vec<(usize, i64)>,
    _made_here_only: (),
}

/// Where the records of one view ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Outcome {
    pub applied: u64,
    pub folded: u64,
    pub stale: u64,
    pub ignored: u64,
    pub quarantined: u64,
}

/// What came of an attempt.
#[derive(Debug)]
pub enum Attempt {
    Applied(Box<Applied>),
    /// Somebody else owns a partition, or the database was rewound: acquire again.
    Fenced,
}

/// Why a batch could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("could not begin or end the transaction of the batch")]
    Transaction(#[source] sqlx::Error),
    #[error("could not write rows of {table}")]
    Write {
        table: String,
        #[source]
        source: sqlx::Error,
    },
    #[error(transparent)]
    Fence(#[from] FenceError),
    #[error(transparent)]
    Quarantine(#[from] QuarantineError),
}

/// How a batch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Care {
    /// Whole sets: one refused value fails the transaction.
    Sets,
    /// After a refused value: halve a failing set until the rows at fault are alone, keep those aside.
    Rows,
}

/// What does not change from batch to batch.
#[derive(Debug)]
pub struct Target {
    pub statements: Vec<Statements>,
    pub tables: Vec<String>,
    pub generation: Generation,
    pub dead_letters_max: i64,
    pub fetcher: RecordFetcher,
}

impl Target {
    /// The statements for views whose tables were just read.
    pub fn new(
        views: &[View],
        generation: Generation,
        dead_letters_max: i64,
        fetcher: RecordFetcher,
    ) -> Self {
        Self {
            statements: views.iter().map(|view| Statements::new(&view.table)).collect(),
            tables: views.iter().map(|view| view.table.name.clone()).collect(),
            generation,
            dead_letters_max,
            fetcher,
        }
    }
}

/// Applies one batch.
pub async fn apply(
    connection: &mut PgConnection,
    target: &Target,
    batch: &Batch,
    care: Care,
) -> Result<Attempt, ApplyError> {
    let mut tx = connection.begin().await.map_err(ApplyError::Transaction)?;
    if !fence::pass(&mut tx, &batch.claims, target.generation).await? {
        tx.rollback().await.map_err(ApplyError::Transaction)?;
        return Ok(Attempt::Fenced);
    }
    let parked = quarantine::admit(&mut tx, target, batch).await?;
    let mut outcomes = Vec::with_capacity(batch.views.len());
    for (index, view) in batch.views.iter().enumerate() {
        let mut work =
            ViewWork { target, index, view, care, faults: vec![], outcome: Outcome::default() };
        work.apply(&mut tx, &parked).await?;
        let ViewWork { faults, mut outcome, .. } = work;
        let Counts { folded, stale, ignored, truncations } = view.counts;
        outcome.applied += truncations;
        outcome.folded += folded;
        outcome.stale += stale;
        outcome.ignored += ignored;
        outcome.quarantined += quarantine::store(&mut tx, target, batch, faults).await?;
        outcome.quarantined +=
            batch.refused.iter().filter(|refused| refused.view == index).count() as u64;
        outcomes.push(outcome);
    }
    tx.commit().await.map_err(ApplyError::Transaction)?;
    Ok(Attempt::Applied(Box::new(receipt(batch, outcomes))))
}

/// The receipt of a batch whose commit went unanswered and turned out to have happened. Which of its
/// changes were stale was in the lost answer; they count as applied.
pub fn settled(batch: &Batch) -> Applied {
    let outcomes = batch.views.iter().enumerate().map(|(index, view)| Outcome {
        applied: view.entries().len() as u64 + view.counts.truncations,
        folded: view.counts.folded,
        stale: view.counts.stale,
        ignored: view.counts.ignored,
        quarantined: batch.refused.iter().filter(|refused| refused.view == index).count() as u64,
    });
    receipt(batch, outcomes.collect())
}

fn receipt(batch: &Batch, outcomes: Vec<Outcome>) -> Applied {
    const SAMPLE: usize = 32;
    let source_times = batch.views.iter().enumerate().flat_map(|(index, view)| {
        let step = view.entries().len().div_ceil(SAMPLE).max(1);
        view.entries().iter().step_by(step).map(move |entry| (index, entry.source_time_micros))
    });
    Applied {
        claims: batch.claims.clone(),
        outcomes,
        record_count: batch.record_count,
        source_times: source_times.collect(),
        _made_here_only: (),
    }
}

/// One kind of statement over some entries of a view.
struct Step {
    kind: StepKind,
    entries: Vec<Entry>,
}

#[derive(Clone)]
enum StepKind {
    Erase,
    Delete,
    Upsert,
    /// Upserts whose `kept` columns the source did not send.
    Partial {
        kept: Vec<usize>,
    },
}

struct ViewWork<'a> {
    target: &'a Target,
    index: usize,
    view: &'a ViewBatch,
    care: Care,
    faults: Vec<Fault>,
    outcome: Outcome,
}

impl ViewWork<'_> {
    /// Truncation, then deletes, then upserts: the guards make any order right between batches, this one
    /// is right within a batch for keys PostgreSQL finds equal and the fold did not.
    async fn apply(
        &mut self,
        tx: &mut PgTransaction<'_>,
        parked: &quarantine::Parked,
    ) -> Result<(), ApplyError> {
        if let Some(position) = self.view.truncated_at {
            for statement in &self.statements().truncate {
                let statement = sqlx::query(AssertSqlSafe(Arc::clone(statement)));
                let done =
                    statement.bind(position.epoch).bind(position.lsn).execute(&mut **tx).await;
                done.map_err(|source| self.write_error(source))?;
            }
        }
        for step in self.steps(parked) {
            match self.care {
                Care::Sets => self.write(tx, &step).await?,
                Care::Rows => self.write_or_halve(tx, step).await?,
            }
        }
        Ok(())
    }

    fn statements(&self) -> &Statements {
        // One `Statements` per view, built from the same declaration as the batch.
        self.target.statements.get(self.index).expect("every view has statements")
    }

    fn steps(&mut self, parked: &quarantine::Parked) -> Vec<Step> {
        let mut erasures = Vec::new();
        let mut deletes = Vec::new();
        let mut upserts = Vec::new();
        let mut partials: Vec<(Vec<usize>, Vec<Entry>)> = Vec::new();
        for entry in self.view.entries() {
            if let Some(fault) = parked.fault(self.index, self.view, entry) {
                self.faults.push(fault);
                continue;
            }
            match entry.action {
                Action::Erase => erasures.push(*entry),
                Action::Delete => deletes.push(*entry),
                Action::Upsert if self.view.rows().complete(entry.row) => upserts.push(*entry),
                Action::Upsert => {
                    let kept = self.view.rows().kept_columns(entry.row);
                    match partials.iter_mut().find(|(columns, _)| *columns == kept) {
                        Some((_, entries)) => entries.push(*entry),
                        None => partials.push((kept, vec![*entry])),
                    }
                }
            }
        }
        let partials = partials
            .into_iter()
            .map(|(kept, entries)| Step { kind: StepKind::Partial { kept }, entries });
        [
            Step { kind: StepKind::Erase, entries: erasures },
            Step { kind: StepKind::Delete, entries: deletes },
            Step { kind: StepKind::Upsert, entries: upserts },
        ]
        .into_iter()
        .chain(partials)
        .filter(|step| !step.entries.is_empty())
        .collect()
    }

    async fn write(&mut self, tx: &mut PgTransaction<'_>, step: &Step) -> Result<(), ApplyError> {
        let total = step.entries.len() as u64;
        let stale = match &step.kind {
            StepKind::Upsert => total.saturating_sub(self.upsert(tx, &step.entries).await?),
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
                        self.faults.push(Fault::refused(self.index, self.view, entry, &source));
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
        entries: &[Entry],
    ) -> Result<u64, ApplyError> {
        let columns: Vec<usize> = (0..self.view.rows().width()).collect();
        let query = self.bind(Arc::clone(&self.statements().upsert), &columns, entries);
        let done = query.execute(&mut **tx).await.map_err(|source| self.write_error(source))?;
        Ok(done.rows_affected())
    }

    /// Rows that lone tombstones removed.
    async fn erase(
        &self,
        tx: &mut PgTransaction<'_>,
        entries: &[Entry],
    ) -> Result<u64, ApplyError> {
        let columns: Vec<usize> = (0..self.view.key_width()).collect();
        let query = self.bind(Arc::clone(&self.statements().erase), &columns, entries);
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
        let query = self.bind(Arc::clone(&self.statements().delete), &columns, entries);
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
        let columns: Vec<usize> =
            (0..self.view.rows().width()).filter(|column| !kept.contains(column)).collect();
        let query = self.bind(self.statements().partial(kept), &columns, entries);
        let rows = query.fetch_all(&mut **tx).await.map_err(|source| self.write_error(source))?;
        for row in rows {
            let read = || Ok((row.try_get::<i64, _>(0)?, row.try_get(1)?, row.try_get(2)?));
            let (number, applied, known): (i64, bool, bool) =
                read().map_err(|source| self.write_error(source))?;
            let entry = usize::try_from(number - 1).ok().and_then(|index| entries.get(index));
            match (applied, known, entry) {
                (true, _, _) => self.outcome.applied += 1,
                (false, false, Some(entry)) => {
                    self.faults.push(Fault::value_not_sent(self.index, self.view, entry));
                }
                (false, _, _) => self.outcome.stale += 1,
            }
        }
        Ok(())
    }

    fn bind<'q>(
        &'q self,
        statement: Arc<str>,
        columns: &[usize],
        entries: &'q [Entry],
    ) -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments> {
        let rows = self.view.rows();
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for &column in columns {
            let cells = entries.iter().map(move |entry| match rows.cell(entry.row, column) {
                CellText::Text(text) => Some(text),
                CellText::Null | CellText::Keep => None,
            });
            query = query.bind(cells.bind_iter());
        }
        query
            .bind(entries.iter().map(|entry| entry.position.epoch).bind_iter())
            .bind(entries.iter().map(|entry| entry.position.lsn).bind_iter())
    }

    fn write_error(&self, source: sqlx::Error) -> ApplyError {
        let table = self.target.tables.get(self.index).cloned().unwrap_or_default();
        ApplyError::Write { table, source }
    }
}
