//! Rows that a snapshot of the whole source table did not mention: they were deleted while nobody
//! listened (a lost slot), so no record will ever say so. They go once the snapshot is applied to its end.
//!
//! A row was mentioned, or changed since, exactly if it stands at or above the snapshot's LSN (see
//! [`crate::offsets::Lineage`] for changes that overlap it). That holds where a partition has read rows of
//! the snapshot, or was told of it ([`crate::untold`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, PgConnection, PgTransaction};

use crate::apply::Target;
use crate::config::KafkaSettings;
use crate::database::{Database, DatabaseError, Generation, answered};
use crate::decode::View;
use crate::fold::SnapshotEnd;
use crate::mentioned::Verdict;
use crate::offsets::Partition;
use crate::recovery::Rounds;
use crate::snapshot_end::{self, Ended, decide};
use crate::source::{self, SourceError};
use crate::sweep_sql;
use crate::untold;
use crate::view::Unmentioned;

/// Pause between two looks for a snapshot that ended.
const EVERY: Duration = Duration::from_secs(2);
/// Pages of the table per transaction: writers wait for one.
const PAGES: i64 = 2_000;
/// A transaction takes less, and waits for no batch that takes longer. Each time it was not enough there is twice
/// as much.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Why a sweep did not happen now.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("could not read or write what is known of snapshots")]
    Store(#[source] sqlx::Error),
    #[error("what is stored about the snapshot of {0} is damaged")]
    Damaged(String),
    #[error("the broker knows no partition of topic {0}")]
    NoPartitions(String),
    #[error(
        "dead letters of {0} do not tell exactly which rows the source's snapshot mentioned; those that it did \
         not mention stay until these letters are retried or dropped (`cdc-consumer dead-letters list`)"
    )]
    Held(String),
}

impl SweepError {
    /// Whether other views can be swept all the same.
    fn is_of_one_view(&self) -> bool {
        matches!(self, Self::NoPartitions(_) | Self::Held(_))
    }
}

/// Notes that the last row of a snapshot is applied, in its transaction, as long as no snapshot is known that was
/// sent later ([`SnapshotEnd::or_later`]). Read again it counts only for the snapshot that is known.
pub(crate) async fn note(
    tx: &mut PgTransaction<'_>,
    target: &Target,
    view: usize,
    end: SnapshotEnd,
) -> Result<(), SweepError> {
    let Some(spec) = target.specs.get(view) else { return Ok(()) };
    if spec.unmentioned == Unmentioned::Keep {
        return Ok(());
    }
    sqlx::query(
        "insert into cdc_snapshot as s (view_name, topic, source_lsn, record_timestamp)
         values ($1, $2, $3, $5)
         on conflict (view_name) do update set
             topic = excluded.topic,
             source_lsn = excluded.source_lsn,
             record_timestamp = case
                 -- A dead letter that is retried does not know its own.
                 when s.source_lsn = excluded.source_lsn then
                     greatest(s.record_timestamp, excluded.record_timestamp)
                 else excluded.record_timestamp
             end,
             ended_at = excluded.ended_at,
             log_ends = null,
             swept_at = null
         where s.source_lsn = excluded.source_lsn
            or not $4 and (
                least(s.record_timestamp, excluded.record_timestamp) < 0
                or (s.record_timestamp, s.source_lsn)
                    < (excluded.record_timestamp, excluded.source_lsn))",
    )
    .bind(&spec.table)
    .bind(&spec.topic)
    .bind(end.lsn)
    .bind(end.repeated)
    .bind(end.timestamp_millis)
    .execute(&mut **tx)
    .await
    .map(|_| ())
    .map_err(SweepError::Store)
}

/// Sweeps the views of a generation.
pub(crate) struct Sweeper {
    pub(crate) database: Database,
    pub(crate) generation: Generation,
    pub(crate) views: Arc<Vec<View>>,
    pub(crate) kafka: KafkaSettings,
}

/// What came of some pages.
enum Pages {
    /// So many rows were removed.
    Swept(i64),
    Decided(Verdict),
}

/// What came of telling partitions of the snapshot.
enum Told {
    /// They read on from there.
    Now,
    /// They have met a later snapshot at its place or behind it, which sweeps when it ends.
    Superseded,
    /// Nobody knows its place in their logs.
    Nowhere,
}

impl Sweeper {
    /// Looks again and again, until dropped. What fails is tried again in the next round.
    pub(crate) async fn run(self) {
        let mut connection = None;
        let mut rounds = Rounds::default();
        let mut patience = ANSWER_MAX;
        loop {
            match self.round(&mut connection, patience).await {
                Ok(()) => {
                    rounds.done();
                    patience = ANSWER_MAX;
                }
                Err(error) => {
                    rounds.failed("look for rows to sweep", &error);
                    if matches!(error, SweepError::Database(DatabaseError::Silent(_))) {
                        patience = patience.saturating_mul(2);
                    }
                    if !error.is_of_one_view() {
                        connection = None;
                    }
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn round(
        &self,
        slot: &mut Option<PgConnection>,
        patience: Duration,
    ) -> Result<(), SweepError> {
        let connection = self.database.connected(slot, self.generation).await?;
        let mut outcome = Ok(());
        for view in self.views.iter().filter(|view| view.spec.unmentioned == Unmentioned::Sweep) {
            match self.look_at(connection, view, patience).await {
                Err(error) if error.is_of_one_view() => outcome = Err(error),
                looked => looked?,
            }
        }
        outcome
    }

    /// Sweeps a view, if it is to be swept now.
    async fn look_at(
        &self,
        connection: &mut PgConnection,
        view: &View,
        patience: Duration,
    ) -> Result<(), SweepError> {
        let table = &view.spec.table;
        let known = answered(patience, snapshot_end::ended(connection, table)).await?;
        let Some(mut ended) = known else { return Ok(()) };
        if ended.log_ends.is_empty() {
            let log_ends = self.ask_log_ends(table, &ended).await?;
            let keep = snapshot_end::keep_log_ends(connection, table, &ended, &log_ends);
            answered(patience, keep).await?;
            ended.log_ends = log_ends;
        }
        if let Some(rows) = self.sweep(connection, view, &ended, patience).await? {
            let finish = snapshot_end::finish(connection, table, &ended, rows);
            answered(patience, finish).await?;
        }
        Ok(())
    }

    async fn ask_log_ends(
        &self,
        table: &str,
        ended: &Ended,
    ) -> Result<BTreeMap<i32, i64>, SweepError> {
        let (kafka, topic) = (self.kafka.clone(), ended.topic.clone());
        let asked = tokio::task::spawn_blocking(move || source::log_ends(&kafka, &topic)).await;
        let log_ends = asked.map_err(|_| SweepError::Damaged(table.to_owned()))??;
        // Kafka says so of a topic that a broker does not know, or not yet.
        if log_ends.is_empty() {
            return Err(SweepError::NoPartitions(ended.topic.clone()));
        }
        Ok(log_ends)
    }

    /// Removes what is to be removed, some pages at a time. `None`: not yet.
    async fn sweep(
        &self,
        connection: &mut PgConnection,
        view: &View,
        ended: &Ended,
        patience: Duration,
    ) -> Result<Option<i64>, SweepError> {
        let pages_of = sweep_sql::pages(&view.table);
        let pages: i64 = answered(patience, async {
            let pages = sqlx::query_scalar(&pages_of).fetch_one(&mut *connection).await;
            pages.map_err(SweepError::Store)
        })
        .await?;
        let mut removed = 0;
        let mut first = 0;
        // The rows removed are not written by anybody meanwhile, so none moves behind us.
        while first <= pages {
            let swept = answered(patience, sweep_pages(connection, view, ended, first)).await?;
            let (partitions, epoch) = match swept {
                Pages::Swept(rows) => {
                    removed += rows;
                    first += PAGES;
                    continue;
                }
                Pages::Decided(Verdict::Untold { partitions, epoch }) => (partitions, epoch),
                Pages::Decided(_) => return Ok(None),
            };
            let table = &view.spec.table;
            match self.tell(connection, table, ended, &partitions, epoch, patience).await? {
                Told::Now => return Ok(None),
                Told::Superseded => tracing::info!(
                    table,
                    "a later snapshot of the source began before the rows that this one did not mention \
                     were removed: its end decides"
                ),
                Told::Nowhere => tracing::warn!(
                    table,
                    partitions = ?partitions.keys(),
                    "these partitions had no row in the source's snapshot, and its record has no \
                     time to find its place by: rows that it did not mention are left in the view"
                ),
            }
            break;
        }
        Ok(Some(removed))
    }

    /// Tells partitions of the snapshot.
    async fn tell(
        &self,
        connection: &mut PgConnection,
        table: &str,
        ended: &Ended,
        partitions: &BTreeMap<i32, Option<i64>>,
        source_epoch: Option<i32>,
        patience: Duration,
    ) -> Result<Told, SweepError> {
        let Some(source_epoch) = source_epoch else { return Ok(Told::Nowhere) };
        let places = self.places(ended, partitions).await?;
        if places.is_empty() {
            return Ok(Told::Nowhere);
        }
        let snapshot = untold::Snapshot { lsn: ended.lsn, source_epoch };
        let told = answered(patience, async {
            let told = untold::tell(connection, &places, &ended.topic, snapshot).await;
            told.map_err(SweepError::Store)
        })
        .await?;
        if told > 0 {
            tracing::info!(
                topic = ended.topic,
                partitions = ?partitions.keys(),
                "partitions without a row of the source's snapshot, or in an older life of the source, \
                 were told of it"
            );
            return Ok(Told::Now);
        }
        // Another consumer may have told them meanwhile.
        let still = answered(patience, async {
            let mut tx = connection.begin().await.map_err(SweepError::Store)?;
            let verdict = decide(&mut tx, table, ended).await?;
            tx.rollback().await.map_err(SweepError::Store)?;
            Ok::<_, SweepError>(verdict)
        })
        .await?;
        let untold = matches!(still, Verdict::Untold { .. });
        Ok(if untold { Told::Superseded } else { Told::Now })
    }

    /// The place of the snapshot in the logs of partitions, where it can be found.
    async fn places(
        &self,
        ended: &Ended,
        partitions: &BTreeMap<i32, Option<i64>>,
    ) -> Result<BTreeMap<Partition, i64>, SweepError> {
        let named = |&number: &i32| Partition { topic: ended.topic.clone(), number };
        let known =
            partitions.iter().filter_map(|(number, first)| Some((named(number), (*first)?)));
        let mut places: BTreeMap<_, _> = known.collect();
        let unknown = partitions.iter().filter(|(_, first)| first.is_none());
        let wanted: Vec<_> = unknown.map(|(number, _)| named(number)).collect();
        if ended.timestamp_millis >= 0 && !wanted.is_empty() {
            let (kafka, timestamp) = (self.kafka.clone(), ended.timestamp_millis);
            let asked = move || source::offsets_at(&kafka, wanted, timestamp);
            let found = tokio::task::spawn_blocking(asked).await;
            places.extend(found.map_err(|_| SweepError::Damaged(ended.topic.clone()))??);
        }
        Ok(places)
    }
}

/// A transaction of its own: what is decided holds until the pages are swept.
async fn sweep_pages(
    connection: &mut PgConnection,
    view: &View,
    ended: &Ended,
    first: i64,
) -> Result<Pages, SweepError> {
    let (statement, held) = (sweep_sql::sweep(&view.table), sweep_sql::held(&view.table));
    let mut tx = connection.begin().await.map_err(SweepError::Store)?;
    let verdict = decide(&mut tx, &view.spec.table, ended).await?;
    let Verdict::Sweep { epoch } = verdict else {
        // Left to itself it would end with the next statement, and hold batches up until then.
        tx.rollback().await.map_err(SweepError::Store)?;
        return Ok(Pages::Decided(verdict));
    };
    let held = sqlx::query_scalar(&held).bind(ended.lsn).fetch_one(&mut *tx);
    if held.await.map_err(SweepError::Store)? {
        tx.rollback().await.map_err(SweepError::Store)?;
        return Err(SweepError::Held(view.spec.table.clone()));
    }
    let rows = sqlx::query_scalar(&statement)
        .bind(format!("({first},0)"))
        .bind(format!("({},0)", first + PAGES))
        .bind(ended.lsn)
        .bind(epoch)
        .fetch_one(&mut *tx)
        .await
        .map_err(SweepError::Store)?;
    tx.commit().await.map_err(SweepError::Store)?;
    Ok(Pages::Swept(rows))
}
