//! A writer: one connection, one batch after the other.
//!
//! It waits out infrastructure failures itself, since nothing that was read may be lost meanwhile, and
//! reports what came of each batch.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::sync::mpsc::Receiver;

use crate::apply::{self, Applied, ApplyError, Attempt, Care, Target};
use crate::batch::Batch;
use crate::board::Board;
use crate::config::LimitSettings;
use crate::database::{Database, DatabaseError, answered};
use crate::decode::View;
use crate::fence;
use crate::metrics;
use crate::pipeline::SessionError;
use crate::recovery::{self, Backoff, Recovery};
use crate::takeover;

/// Batches that a writer may have: the one it applies, and one that is ready when that is done.
pub(crate) const UNDER_WAY_MAX: usize = 2;

/// From so many records on, their rows cost more than the transaction around them.
const WORTH_A_TRANSACTION: usize = 250;

/// An attempt that takes longer is given up: the database may be gone without a word. Longer than a server
/// waits for a client inside a transaction, whose locks the next attempt needs. Whatever was only slow, or
/// waited for somebody's lock, has twice the time with each new attempt.
pub(crate) const ATTEMPT_MAX: Duration = Duration::from_secs(20);

/// What came of a batch.
#[derive(Debug)]
pub enum Report {
    /// What took effect, and the batch, to be used again.
    Applied(Box<Applied>, Batch),
    /// Somebody else owns a partition of the batch.
    Fenced,
    Failed(Box<SessionError>),
}

/// A writer as the session sees it: the batch being built for it, and the way to hand it over.
pub(crate) struct WriterLink {
    pub(crate) batches: Option<tokio::sync::mpsc::Sender<Batch>>,
    pub(crate) task: tokio::task::JoinHandle<()>,
    pub(crate) building: Batch,
    /// Batches that were applied: memory for the next ones.
    spare: Vec<Batch>,
    shapes: Vec<(usize, usize)>,
    pub(crate) under_way: usize,
}

impl WriterLink {
    pub(crate) fn new(
        batches: tokio::sync::mpsc::Sender<Batch>,
        task: tokio::task::JoinHandle<()>,
        views: &[View],
    ) -> Self {
        let shapes: Vec<_> = views.iter().map(View::shape).collect();
        let building = Batch::new(shapes.iter().copied());
        Self { batches: Some(batches), task, building, spare: vec![], shapes, under_way: 0 }
    }

    pub(crate) fn full(&self, limits: &LimitSettings) -> bool {
        self.building.record_count >= limits.batch_records_max.get()
            || self.building.byte_count() >= limits.batch_bytes_max.get()
    }

    /// While no more records come: hands over what there is to a writer that has nothing to do, and to a
    /// busy one what is worth a transaction of its own; less than that grows meanwhile.
    pub(crate) fn hand_over_at_rest(&mut self) {
        if self.under_way == 0 || self.building.record_count >= WORTH_A_TRANSACTION {
            self.hand_over();
        }
    }

    /// While no more records are taken, though they come: hands over what there is to a writer that has
    /// nothing to do.
    pub(crate) fn hand_over_to_idle(&mut self) {
        if self.under_way == 0 {
            self.hand_over();
        }
    }

    /// Hands the batch over if the writer has room for it.
    pub(crate) fn hand_over(&mut self) {
        let Some(batches) = self.batches.as_ref().filter(|_| self.under_way < UNDER_WAY_MAX) else {
            return;
        };
        if self.building.is_empty() {
            return;
        }
        let next = self.spare.pop().unwrap_or_else(|| Batch::new(self.shapes.iter().copied()));
        let batch = std::mem::replace(&mut self.building, next);
        // The channel holds as many as may be under way. A closed one means the writer failed; its
        // report says why.
        if batches.try_send(batch).is_ok() {
            self.under_way += 1;
        }
    }

    /// Takes a batch back that was applied.
    pub(crate) fn take_back(&mut self, mut batch: Batch) {
        batch.clear();
        self.spare.push(batch);
    }
}

/// What a writer needs.
pub struct Writer {
    /// Which of the session's writers this is.
    pub number: usize,
    pub database: Database,
    pub target: Arc<Target>,
    pub board: Board,
    pub reports: Sender<(usize, Report)>,
}

impl Writer {
    /// Applies batches until the channel closes or a batch cannot be applied.
    pub async fn run(self, mut batches: Receiver<Batch>) {
        let mut connection = None;
        while let Some(batch) = batches.recv().await {
            let report = match self.apply(&mut connection, &batch).await {
                Ok(Attempt::Applied(applied)) => Report::Applied(applied, batch),
                Ok(Attempt::Fenced) => Report::Fenced,
                Err(error) => Report::Failed(Box::new(error)),
            };
            let goes_on = matches!(report, Report::Applied(..));
            // A pipeline that is gone wants no reports.
            if self.reports.send((self.number, report)).is_err() || !goes_on {
                return;
            }
        }
    }

    /// Tries until the batch is applied, fenced off, or its failure is not one that passes.
    async fn apply(
        &self,
        connection: &mut Option<PgConnection>,
        batch: &Batch,
    ) -> Result<Attempt, SessionError> {
        let mut backoff = Backoff::default();
        let mut care = Care::Sets;
        let mut patience = ATTEMPT_MAX;
        loop {
            let started = Instant::now();
            let attempt = self.attempt(connection, batch, care, &backoff);
            let error = match answered(patience, attempt).await {
                Ok(attempt) => {
                    metrics::batch(batch.record_count, started.elapsed());
                    self.recovered(&backoff);
                    return Ok(attempt);
                }
                Err(error) => error,
            };
            match recovery::of_session(&error) {
                Recovery::Quarantine if care == Care::Sets => care = Care::Rows,
                Recovery::Quarantine | Recovery::Restart | Recovery::Halt => return Err(error),
                Recovery::Retry => {
                    // After any failure the connection's state is unknown: begin with a new one.
                    *connection = None;
                    if matches!(error, SessionError::Database(DatabaseError::Silent(_))) {
                        patience = patience.saturating_mul(2);
                    }
                    self.failing(&backoff, &error);
                    tokio::time::sleep(backoff.pause()).await;
                }
            }
        }
    }

    /// One attempt. After a failure, first whether the last attempt did commit: a commit whose answer
    /// was lost is not guessed about, the offsets are asked.
    async fn attempt(
        &self,
        slot: &mut Option<PgConnection>,
        batch: &Batch,
        care: Care,
        backoff: &Backoff,
    ) -> Result<Attempt, SessionError> {
        let connection = match slot {
            Some(connection) => connection,
            None => slot.insert(self.database.connect_writer(self.target.place.generation).await?),
        };
        if !backoff.fresh() {
            // The last attempt may stand in COPY, where its server waits for ever and keeps its locks.
            let ended = takeover::end_silent_copies(connection).await;
            ended.map_err(ApplyError::Transaction)?;
            if fence::settled(connection, &batch.claims).await? {
                tracing::info!("a commit without an answer had taken effect");
                return Ok(Attempt::Applied(Box::new(apply::settled(batch))));
            }
        }
        Ok(apply::apply(connection, &self.target, batch, care).await?)
    }

    fn failing(&self, backoff: &Backoff, error: &SessionError) {
        let error = service::telemetry::chain(error).to_string();
        if backoff.fresh() {
            tracing::warn!(error, "a batch waits for the database");
        }
        self.board.writer_waits(self.number, error);
    }

    fn recovered(&self, backoff: &Backoff) {
        if !backoff.fresh() {
            tracing::info!("the database takes batches again");
            self.board.writer_goes_on(self.number);
        }
    }
}

impl From<ApplyError> for SessionError {
    fn from(error: ApplyError) -> Self {
        Self::Apply(error)
    }
}
