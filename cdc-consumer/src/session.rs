//! One membership in the consumer group: all decisions between a record and its commit.
//!
//! ```text
//! poll -> decode -> fold | channel per writer | apply -> report -> commit
//! ```
//!
//! Batches grow by themselves: while records are at hand they grow to the limits, and behind a busy writer
//! until it is done. When nothing more is at hand, an idle writer gets what there is, and what is worth a
//! transaction of its own is queued behind a busy one. No timer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::OwnedMessage;
use sqlx::PgConnection;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::apply::Applied;
use crate::board::Board;
use crate::config::{LimitSettings, RunSettings};
use crate::database::{Database, Place};
use crate::decode::{Decoded, Decoder, Record, View, topics};
use crate::group::Rebalance;
use crate::held::Held;
use crate::metrics;
use crate::offsets::{Partition, PartitionRef, Progress};
use crate::pipeline::SessionError;
use crate::registry::Registry;
use crate::schema_wait::SchemaWait;
use crate::source::{self, Flow, GroupConsumer, SourceError};
use crate::writer::{Report, WriterLink};

/// Records taken from librdkafka before reports and rebalances are looked at again.
const POLL_ROUND: usize = 256;
/// How long `poll` may wait when there is nothing to do.
const IDLE_WAIT: Duration = Duration::from_millis(50);
/// ... and when something else than a record may arrive soon.
const BUSY_WAIT: Duration = Duration::from_millis(1);
/// Pause between two commits to the broker. They inform others, we do not read them.
const COMMIT_EVERY: Duration = Duration::from_millis(500);
/// When nothing could be taken for this long: stop fetching, but go on polling, to stay in the group. Not
/// sooner: librdkafka takes up to a second to fetch again.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// A partition we own.
pub(crate) struct Owned {
    pub(crate) progress: Progress,
    pub(crate) writer: usize,
    /// A record came since the partition was assigned.
    pub(crate) delivered: bool,
}

/// See the module's description.
pub(crate) struct Session {
    pub(crate) consumer: Arc<GroupConsumer>,
    decoder: Decoder,
    pub(crate) views: Arc<Vec<View>>,
    pub(crate) database: Database,
    pub(crate) place: Place,
    pub(crate) control: Option<PgConnection>,
    pub(crate) schemas: SchemaWait,
    pub(crate) writers: Vec<WriterLink>,
    pub(crate) reports: Receiver<(usize, Report)>,
    pub(crate) owned: HashMap<Partition, Owned>,
    pub(crate) held: Held,
    /// Announced by librdkafka and not yet carried out, oldest first.
    pub(crate) rebalances: VecDeque<Rebalance>,
    pub(crate) uncommitted: HashMap<Partition, i64>,
    committed_at: Instant,
    pub(crate) checked_at: Instant,
    stuck_since: Option<Instant>,
    pub(crate) paused: bool,
    limits: LimitSettings,
    pub(crate) owner: String,
    pub(crate) board: Board,
    pub(crate) runtime: Handle,
    pub(crate) shutdown: CancellationToken,
}

/// What a session is built from.
pub(crate) struct Parts {
    pub(crate) consumer: GroupConsumer,
    pub(crate) views: Arc<Vec<View>>,
    pub(crate) database: Database,
    pub(crate) place: Place,
    pub(crate) registry: Registry,
    pub(crate) writers: Vec<WriterLink>,
    pub(crate) reports: Receiver<(usize, Report)>,
    pub(crate) board: Board,
    pub(crate) shutdown: CancellationToken,
}

impl Session {
    /// Must be called inside a Tokio runtime.
    pub(crate) fn new(settings: &RunSettings, parts: Parts) -> Self {
        Self {
            consumer: Arc::new(parts.consumer),
            decoder: Decoder::new(Arc::clone(&parts.views)),
            views: parts.views,
            database: parts.database,
            place: parts.place,
            control: None,
            schemas: SchemaWait::new(parts.registry, parts.board.readiness.clone()),
            writers: parts.writers,
            reports: parts.reports,
            owned: HashMap::new(),
            held: Held::default(),
            rebalances: VecDeque::new(),
            uncommitted: HashMap::new(),
            committed_at: Instant::now(),
            checked_at: Instant::now(),
            stuck_since: None,
            paused: false,
            limits: settings.limits.clone(),
            owner: format!("{}/{}", settings.consumer_listen, std::process::id()),
            board: parts.board,
            runtime: Handle::current(),
            shutdown: parts.shutdown,
        }
    }

    /// Works until something ends the session, then leaves the group in order.
    pub(crate) fn run(mut self) -> Result<(), SessionError> {
        let outcome = match self.subscribe().and_then(|()| self.work()) {
            Err(SessionError::Stopped) => Ok(()),
            other => other,
        };
        self.leave(outcome.is_ok());
        outcome
    }

    fn subscribe(&mut self) -> Result<(), SessionError> {
        let topics: Vec<&str> = topics(&self.views).into_iter().collect();
        self.consumer
            .subscribe(&topics)
            .map_err(|source| SourceError::Subscribe { topics: topics.join(", "), source }.into())
    }

    fn work(&mut self) -> Result<(), SessionError> {
        while !self.shutdown.is_cancelled() {
            self.same_topics()?;
            self.receive_reports()?;
            self.commit_when_due();
            self.look_around_when_due()?;
            self.rebalance()?;
            self.learn_schema()?;
            self.decode_held()?;
            if !self.wait_for_room()? {
                self.poll()?;
            }
        }
        Ok(())
    }

    /// Takes records until there are no more at hand, a batch is full, or the round is over.
    fn poll(&mut self) -> Result<(), SessionError> {
        let consumer = Arc::clone(&self.consumer);
        for _ in 0..POLL_ROUND {
            let at_hand = consumer.poll(Duration::ZERO);
            let at_rest = at_hand.is_none();
            let polled = at_hand.or_else(|| {
                self.writers.iter_mut().for_each(WriterLink::hand_over_at_rest);
                consumer.poll(self.poll_wait())
            });
            match polled {
                Some(Ok(message)) => self.take(&source::record(&message), || message.detach())?,
                Some(Err(error)) => self.on_poll_error(&error)?,
                None => {}
            }
            if at_rest || self.full() {
                break;
            }
        }
        Ok(())
    }

    fn poll_wait(&self) -> Duration {
        let building = self.writers.iter().any(|writer| !writer.building.is_empty());
        if building || !self.held.is_empty() { BUSY_WAIT } else { IDLE_WAIT }
    }

    fn full(&self) -> bool {
        self.held.full(self.limits.batch_bytes_max.get()) || self.batch_full()
    }

    fn batch_full(&self) -> bool {
        self.writers.iter().any(|writer| writer.full(&self.limits))
    }

    /// With a full batch that its writer has no room for: waits for a report instead of reading on.
    /// Returns whether nothing may be read yet.
    fn wait_for_room(&mut self) -> Result<bool, SessionError> {
        for writer in &mut self.writers {
            if writer.full(&self.limits) {
                writer.hand_over();
            }
        }
        // What was held back comes first.
        if !self.held.is_empty() && !self.schemas.waiting() && !self.batch_full() {
            return Ok(true);
        }
        if !self.full() {
            self.stuck_since = None;
            if std::mem::take(&mut self.paused) {
                source::set_flow(&self.consumer, &self.partitions(), Flow::Resume)?;
            }
            return Ok(false);
        }
        // The other writers get nothing more either until this one has room.
        self.writers.iter_mut().for_each(WriterLink::hand_over_to_idle);
        let since = *self.stuck_since.get_or_insert_with(Instant::now);
        if since.elapsed() > STUCK_AFTER && !self.paused {
            source::set_flow(&self.consumer, &self.partitions(), Flow::Pause)?;
            self.paused = true;
            self.board.fetching_paused();
        }
        if self.paused {
            self.poll()?;
        }
        match self.reports.recv_timeout(BUSY_WAIT * 10) {
            Ok((writer, report)) => self.on_report(writer, report)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(SessionError::WriterDied),
        }
        Ok(true)
    }

    /// Puts a record into its writer's batch, or holds it back until its schema is known.
    fn take(
        &mut self,
        record: &Record<'_>,
        detach: impl FnOnce() -> OwnedMessage,
    ) -> Result<(), SessionError> {
        // Records behind a held one are held too: order within a partition is all there is.
        if !self.held.is_empty() {
            self.held.push_back(detach());
            return Ok(());
        }
        if let Decoded::NeedsSchema(id) = self.decode(record)? {
            self.held.push_back(detach());
            self.schemas.fetch(id, &self.runtime);
        }
        Ok(())
    }

    fn decode(&mut self, record: &Record<'_>) -> Result<Decoded, SessionError> {
        self.same_topics()?;
        let Self { decoder, owned, writers, views, .. } = self;
        let wanted = PartitionRef { topic: record.topic, number: record.partition };
        // A record of a partition given up meanwhile belongs to its next owner.
        let Some((partition, owned)) = owned.get_key_value_mut(&wanted) else {
            return Ok(Decoded::Taken);
        };
        owned.delivered = true;
        if let Some(anchor) = owned.progress.anchor
            && anchor.contradicts(record.anchor())
        {
            return Err(SessionError::OtherLog { partition: partition.clone(), anchor });
        }
        if record.offset < owned.progress.next_offset {
            owned.progress.pass(record.offset, record.value.and(record.key));
            return Ok(Decoded::Taken);
        }
        let Some(writer) = writers.get_mut(owned.writer) else { return Ok(Decoded::Taken) };
        let decoded = decoder.decode(record, partition, &mut owned.progress, &mut writer.building);
        decoded.map_err(|error| {
            let view = views.iter().find(|view| view.spec.topic == record.topic);
            metrics::refused(view.map_or(record.topic, |view| &view.spec.table));
            error.into()
        })
    }

    fn same_topics(&self) -> Result<(), SessionError> {
        self.consumer
            .context()
            .recreated()
            .map_or(Ok(()), |topic| Err(SessionError::Recreated { topic }))
    }

    /// Decodes what was held back, once the schema came.
    fn learn_schema(&mut self) -> Result<(), SessionError> {
        let Some((id, schema)) = self.schemas.arrived()? else { return Ok(()) };
        self.check_tables()?;
        self.decoder.learn(id, schema);
        Ok(())
    }

    /// Decodes what was held back, up to the first record whose schema is not known, or until a batch is full.
    fn decode_held(&mut self) -> Result<(), SessionError> {
        while !self.schemas.waiting() && !self.batch_full() {
            let Some(message) = self.held.pop_front() else { break };
            if let Decoded::NeedsSchema(id) = self.decode(&source::record(&message))? {
                self.held.push_front(message);
                self.schemas.fetch(id, &self.runtime);
            }
        }
        let (records, bytes) = self.held.size();
        self.board.holding(records, bytes);
        Ok(())
    }

    fn receive_reports(&mut self) -> Result<(), SessionError> {
        loop {
            match self.reports.try_recv() {
                Ok((writer, report)) => self.on_report(writer, report)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(SessionError::WriterDied),
            }
        }
    }

    pub(crate) fn on_report(&mut self, writer: usize, report: Report) -> Result<(), SessionError> {
        let mut writer = self.writers.get_mut(writer);
        if let Some(writer) = &mut writer {
            writer.under_way = writer.under_way.saturating_sub(1);
        }
        match report {
            Report::Applied(applied, batch) => {
                if let Some(writer) = writer {
                    writer.take_back(batch);
                }
                self.note_applied(&applied);
                Ok(())
            }
            Report::Fenced => {
                metrics::fenced();
                Err(SessionError::Fenced)
            }
            Report::Failed(error) => Err(*error),
        }
    }

    fn note_applied(&mut self, applied: &Applied) {
        for claim in &applied.claims {
            self.uncommitted.insert(claim.partition.clone(), claim.interval.next);
        }
        self.board.applied(applied);
    }

    fn commit_when_due(&mut self) {
        if !self.uncommitted.is_empty() && self.committed_at.elapsed() >= COMMIT_EVERY {
            self.commit(CommitMode::Async);
        }
    }

    pub(crate) fn commit(&mut self, mode: CommitMode) {
        self.committed_at = Instant::now();
        let offsets: Vec<_> = self.uncommitted.drain().collect();
        if let Err(error) = source::commit(&self.consumer, &offsets, mode) {
            // Advisory: the next commit carries the newer offsets.
            tracing::debug!(error = %error, "could not tell the broker our offsets");
        }
    }

    pub(crate) fn partitions(&self) -> Vec<Partition> {
        self.owned.keys().cloned().collect()
    }

    fn rebalance(&mut self) -> Result<(), SessionError> {
        self.rebalances.extend(self.consumer.context().rebalances());
        while let Some(rebalance) = self.rebalances.front().cloned() {
            match rebalance {
                Rebalance::Assign(partitions) => self.assign(&partitions)?,
                Rebalance::Revoke(partitions) => self.revoke(&partitions)?,
            }
            // Only now: one that failed half way is still to be answered when the session ends.
            self.rebalances.pop_front();
        }
        Ok(())
    }

    fn on_poll_error(&mut self, error: &KafkaError) -> Result<(), SessionError> {
        match error {
            KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset) => {
                Err(SessionError::Hole(error.clone()))
            }
            KafkaError::MessageConsumptionFatal(_) => {
                Err(SourceError::Expelled(error.clone()).into())
            }
            error if source::names_no_topic(error) => {
                self.look_for_topics();
                Ok(())
            }
            error if source::passes_by_itself(error) => {
                self.board.broker_trouble(error, "reported while reading");
                Ok(())
            }
            error => Err(SourceError::Poll(error.clone()).into()),
        }
    }
}
