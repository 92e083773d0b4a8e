//! Partitions come and go: what a session does when the group is rebalanced, and when it ends.

use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer};
use sqlx::PgConnection;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::catalog::Table;
use crate::database::{Generation, answered, schema_of};
use crate::decode::{View, topics};
use crate::fence::{self, Wanted};
use crate::group::Rebalance;
use crate::metrics;
use crate::offsets::{Partition, Progress};
use crate::pipeline::SessionError;
use crate::recovery::{self, Recovery};
use crate::session::{Owned, Session};
use crate::source::{self, BrokerOffsets, Flow, GroupConsumer, SourceError};
use crate::takeover;
use crate::writer::{ATTEMPT_MAX, WriterLink};

/// How long batches under way may take when the process ends.
const LEAVE_MAX: Duration = Duration::from_secs(10);
/// ... and when partitions must be given up: it is well below the time after which librdkafka takes a member
/// that does not poll for dead, five minutes.
const GIVE_UP_MAX: Duration = Duration::from_mins(2);
/// ... without one of them being done: as long as a writer gives its first attempt.
const GIVE_UP_SILENT_MAX: Duration = ATTEMPT_MAX;
/// Pause between two looks at whether the process is to end, meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Pause between two looks at whether our partitions are still ours, while nothing is applied.
const CHECK_EVERY: Duration = Duration::from_secs(3);
/// Whoever does not answer this question in time will be asked again.
const CHECK_MAX: Duration = Duration::from_secs(2);
/// A database that does not tell what its tables look like in this time ends the session.
pub(crate) const TABLES_MAX: Duration = Duration::from_secs(10);

impl Session {
    /// Takes over partitions: asks the database where each continues, then reads from there.
    pub(crate) fn assign(&mut self, partitions: &[Partition]) -> Result<(), SessionError> {
        let mut starts = Vec::with_capacity(partitions.len());
        for partition in partitions {
            let (progress, read_from) = self.acquire(partition)?;
            self.board.assigned(partition, progress.next_offset);
            starts.push((partition.clone(), read_from));
            // Our marker beside the offset: a reset by an operator was seen and is done.
            self.uncommitted.insert(partition.clone(), progress.next_offset);
            // Partitions of one number share a writer, so its slot in derived views is its own.
            let writer = partition.number.unsigned_abs() as usize % self.writers.len().max(1);
            self.owned.insert(partition.clone(), Owned { progress, writer, delivered: false });
        }
        source::assign(&self.consumer, &starts)?;
        if self.paused {
            source::set_flow(&self.consumer, partitions, Flow::Pause)?;
        }
        if !partitions.is_empty() {
            tracing::info!(kafka.partitions = listed(partitions), "partitions assigned");
        }
        self.board.readiness.clear("session");
        Ok(())
    }

    /// What is stored of a partition, and the offset to begin reading at.
    fn acquire(&mut self, partition: &Partition) -> Result<(Progress, i64), SessionError> {
        let broker = source::broker_offsets(&self.consumer, partition)?;
        let wanted = Wanted {
            partition: partition.clone(),
            log_start: broker.log_start,
            requested: broker.requested,
        };
        let progress = self.stored_progress(&wanted)?;
        if let Some(requested) = broker.requested.filter(|offset| *offset == progress.next_offset) {
            metrics::operator_reset();
            tracing::warn!(
                kafka.partition = %partition,
                kafka.offset = requested,
                "an operator moved the group's offset, continuing there"
            );
            let unread = progress.seen_offset.max(broker.log_start);
            if requested > unread {
                tracing::warn!(
                    kafka.partition = %partition,
                    unread,
                    "records from there on are jumped over, and a replay will take them for repeated: if a \
                     snapshot is among them, take another one"
                );
            }
        }
        check_bounds(partition, progress.next_offset, broker)?;
        let read_from = progress.read_from(broker.log_start);
        Ok((progress, read_from))
    }

    /// However long a previous owner stands still: only being told to stop cuts the wait short. What the
    /// server makes of the question then is no harm, the next owner asks anew.
    fn stored_progress(&mut self, wanted: &Wanted) -> Result<Progress, SessionError> {
        let Self { control, database, place, views, owner, board, runtime, shutdown, .. } = self;
        let topic = &wanted.partition.topic;
        let acquired = async {
            let connection = database.connected(control, place.generation).await?;
            for View { table, .. } in views.iter().filter(|view| view.spec.topic == *topic) {
                let asked = async {
                    Ok::<_, SessionError>(
                        fence::shows_another_topic(connection, topic, table).await?,
                    )
                };
                if answered(TABLES_MAX, asked).await? {
                    let (topic, table) = (topic.clone(), table.name.clone());
                    return Err(SessionError::AnotherTopic { topic, table });
                }
            }
            Ok(takeover::acquire(connection, wanted, owner, board).await?)
        };
        unless_stopped(runtime, shutdown, acquired)
    }

    /// Looks now and then at what no record tells.
    pub(crate) fn look_around_when_due(&mut self) -> Result<(), SessionError> {
        if self.checked_at.elapsed() < CHECK_EVERY {
            return Ok(());
        }
        self.checked_at = Instant::now();
        self.pass_holes()?;
        if self.paused {
            self.look_at_log_ends();
        }
        if self.board.waits_for_topics() {
            self.look_for_topics();
        }
        self.check_ownership()
    }

    /// Notices without any record that somebody moved our offsets, another generation became current, or
    /// a migration changed a view's table. A database that is away is asked again.
    fn check_ownership(&mut self) -> Result<(), SessionError> {
        let Self { control, database, owned, place, views, runtime, shutdown, .. } = self;
        let owned: Vec<_> =
            owned.iter().map(|(partition, owned)| (partition, owned.progress.epoch)).collect();
        let asked = answered(CHECK_MAX, async {
            let connection = database.connected(control, place.generation).await?;
            if !fence::still_ours(connection, &owned, place.published).await? {
                return Err(SessionError::Fenced);
            }
            same_tables(connection, place.generation, views).await
        });
        match unless_stopped(runtime, shutdown, asked) {
            Ok(()) => {
                self.board.ownership_known();
                Ok(())
            }
            // A migration, or their generation was dropped, tables, offsets and all.
            Err(error) if recovery::of_session(&error) == Recovery::Restart => Err(error),
            Err(
                error @ (SessionError::Database(_)
                | SessionError::Fence(_)
                | SessionError::Catalog(_)),
            ) => {
                self.control = None;
                self.board.ownership_unknown(&error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Of partitions whose fetching is paused nothing tells where their logs end, unless it is asked.
    fn look_at_log_ends(&self) {
        for Partition { topic, number } in self.owned.keys() {
            let asked = self.consumer.fetch_watermarks(topic, *number, CHECK_MAX);
            let Ok((_, log_end)) = asked else { return };
            self.board.high_offset(topic, *number, log_end);
        }
    }

    /// Which of the declared topics do not exist: librdkafka only says that one does not.
    pub(crate) fn look_for_topics(&self) {
        match source::missing(&self.consumer, &topics(&self.views), CHECK_MAX) {
            Ok(missing) => self.board.waiting_for_topics(&missing),
            Err(error) => tracing::debug!(error = %error, "could not look for topics"),
        }
    }

    /// The same about the tables of the views alone, before a new schema is put to use: what a migration
    /// prepared for that schema is not missed.
    pub(crate) fn check_tables(&mut self) -> Result<(), SessionError> {
        let Self { control, database, place, views, runtime, shutdown, .. } = self;
        let asked = answered(TABLES_MAX, async {
            let connection = database.connected(control, place.generation).await?;
            same_tables(connection, place.generation, views).await
        });
        unless_stopped(runtime, shutdown, asked)
    }

    /// Marks of transactions and the records of aborted ones have offsets, but are never delivered. Those
    /// behind the last record would look like lag for ever: the stored offset moves over them.
    ///
    /// librdkafka's position of a partition moves as what lies in its queue is taken out, in order: what
    /// is before it was given to us, or will never be.
    fn pass_holes(&mut self) -> Result<(), SessionError> {
        // Held records were given to us, and are in no batch yet.
        if self.owned.is_empty() || !self.held.is_empty() {
            return Ok(());
        }
        let Self { consumer, owned, writers, .. } = self;
        for (partition, position) in source::positions(consumer)? {
            let Some(owned) = owned.get_mut(&partition) else { continue };
            let Some(writer) = writers.get_mut(owned.writer) else { continue };
            if is_behind_a_hole(owned, position) {
                writer.building.cover(&partition, &mut owned.progress, position);
            }
        }
        Ok(())
    }

    /// Gives partitions up, after what was read from them is applied: the next owner need not repeat it.
    pub(crate) fn revoke(&mut self, partitions: &[Partition]) -> Result<(), SessionError> {
        self.settle()?;
        self.commit(CommitMode::Async);
        if self.paused {
            // librdkafka remembers it, and whoever gets the partition back would wait for its records for ever.
            source::set_flow(&self.consumer, partitions, Flow::Resume)?;
        }
        source::unassign(&self.consumer, partitions)?;
        for partition in partitions {
            self.owned.remove(partition);
            self.board.revoked(partition);
        }
        let Self { held, owned, .. } = self;
        let forgot_some = held.retain(|message| {
            let record = source::record(message);
            let partition = Partition { topic: record.topic.to_owned(), number: record.partition };
            owned.contains_key(&partition)
        });
        if forgot_some {
            // Perhaps nobody waits for that schema any more.
            self.schemas.forget();
        }
        if !partitions.is_empty() {
            tracing::info!(kafka.partitions = listed(partitions), "partitions given up");
        }
        Ok(())
    }

    /// Hands over every batch being built and waits until all are applied. Slow batches are waited for while
    /// one after the other is done: given up, they would be applied once more, as slowly.
    fn settle(&mut self) -> Result<(), SessionError> {
        let leaving = self.shutdown.is_cancelled();
        let (silent_max, max) =
            if leaving { (LEAVE_MAX, LEAVE_MAX) } else { (GIVE_UP_SILENT_MAX, GIVE_UP_MAX) };
        let last = Instant::now() + max;
        let mut deadline = Instant::now() + silent_max;
        loop {
            self.writers.iter_mut().for_each(WriterLink::hand_over);
            let idle = |writer: &WriterLink| writer.under_way == 0 && writer.building.is_empty();
            if self.writers.iter().all(idle) {
                return Ok(());
            }
            if self.shutdown.is_cancelled() && !leaving {
                return Err(SessionError::Stopped);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.reports.recv_timeout(left.min(LOOK_EVERY)) {
                Ok((writer, report)) => {
                    self.on_report(writer, report)?;
                    deadline = last.min(Instant::now() + silent_max);
                }
                Err(RecvTimeoutError::Timeout) if left > LOOK_EVERY => {}
                Err(RecvTimeoutError::Timeout) => return Err(SessionError::WriterStuck),
                Err(RecvTimeoutError::Disconnected) => return Err(SessionError::WriterDied),
            }
        }
    }

    /// Ends the session. In order: batches under way finish, the broker is told, the group is left.
    /// Otherwise nothing is waited for; what did not commit is read again.
    pub(crate) fn leave(mut self, in_order: bool) {
        if in_order {
            if let Err(error) = self.settle() {
                tracing::warn!(error = %service::telemetry::chain(&error), "left with unfinished batches");
            }
            if !self.uncommitted.is_empty() {
                self.commit(CommitMode::Sync);
            }
        }
        for writer in &mut self.writers {
            writer.batches = None;
            if !in_order {
                writer.task.abort();
            }
        }
        for partition in self.partitions() {
            self.board.revoked(&partition);
        }
        // Dropping the session drops the consumer, and that leaves the group.
    }
}

/// Also when it panicked.
impl Drop for Session {
    fn drop(&mut self) {
        self.consumer.context().close();
        // A rebalance that was announced and not carried out: closing waits for its answer, for ever.
        self.rebalances.extend(self.consumer.context().rebalances());
        for rebalance in self.rebalances.drain(..) {
            if let Err(error) = answer(&self.consumer, &rebalance) {
                tracing::debug!(error = %service::telemetry::chain(&error), "could not answer a rebalance");
            }
        }
    }
}

/// Whether nothing but holes lies between what was read of a partition and librdkafka's position in it.
/// Before the first record of an assignment the position may be one of an earlier assignment.
fn is_behind_a_hole(owned: &Owned, position: i64) -> bool {
    owned.delivered && position > owned.progress.next_offset
}

/// Answers a rebalance that nobody will carry out any more. Where reading begins does not matter: nothing
/// is read until the consumer has closed.
fn answer(consumer: &GroupConsumer, rebalance: &Rebalance) -> Result<(), SourceError> {
    match rebalance {
        Rebalance::Assign(partitions) => {
            let starts: Vec<_> = partitions.iter().map(|each| (each.clone(), 0)).collect();
            source::assign(consumer, &starts)
        }
        Rebalance::Revoke(partitions) => source::unassign(consumer, partitions),
    }
}

/// Waits for what the database says, but not when told to stop.
fn unless_stopped<T>(
    runtime: &Handle,
    shutdown: &CancellationToken,
    asked: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, SessionError> {
    runtime.block_on(async {
        tokio::select! {
            answer = asked => answer,
            () = shutdown.cancelled() => Err(SessionError::Stopped),
        }
    })
}

/// A table that is gone for the moment, as one that was changed, is the next session's to read.
async fn same_tables(
    connection: &mut PgConnection,
    generation: Generation,
    views: &[View],
) -> Result<(), SessionError> {
    for view in views {
        let table = &view.spec.table;
        if Table::read(connection, &schema_of(generation), table).await? != view.table {
            return Err(SessionError::TableChanged(table.clone()));
        }
    }
    Ok(())
}

/// An offset outside the broker's log means records are missing or the log is another one.
pub(crate) fn check_bounds(
    partition: &Partition,
    next_offset: i64,
    broker: BrokerOffsets,
) -> Result<(), SessionError> {
    let partition = partition.clone();
    let BrokerOffsets { log_start, log_end, .. } = broker;
    if next_offset < log_start {
        return Err(SessionError::Gone { partition, next_offset, log_start });
    }
    if next_offset > log_end {
        return Err(SessionError::Ahead { partition, next_offset, log_end });
    }
    Ok(())
}

fn listed(partitions: &[Partition]) -> String {
    partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_passed_over_only_behind_a_record_of_this_assignment() {
        let check = |delivered, position, expected| {
            let owned = Owned { progress: Progress::new(10, 1), writer: 0, delivered };
            assert_eq!(is_behind_a_hole(&owned, position), expected, "{delivered} {position}");
        };
        check(true, 12, true);
        check(true, 10, false);
        check(true, 4, false);
        check(false, 12, false);
    }
}
