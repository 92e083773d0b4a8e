//! Rows that a snapshot of the whole source table did not mention: they were deleted while nobody
//! listened (a lost slot), so no record will ever say so. They go once the snapshot is applied to its end.
//!
//! A row was mentioned, or changed since, exactly if it stands at or above the snapshot's LSN (see
//! [`crate::offsets::Lineage`] for changes that overlap it). That holds where a partition has read rows of
//! the snapshot, or was told of it ([`crate::untold`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, PgConnection, PgTransaction, Row};

use crate::apply::Target;
use crate::config::KafkaSettings;
use crate::database::{Database, DatabaseError, Generation};
use crate::decode::View;
use crate::fold::SnapshotEnd;
use crate::mentioned::{Read, Verdict, verdict};
use crate::metrics;
use crate::offsets::Partition;
use crate::recovery::Rounds;
use crate::source::{self, SourceError};
use crate::sweep_sql;
use crate::untold;
use crate::view::Unmentioned;

/// Pause between two looks for a snapshot that ended.
const EVERY: Duration = Duration::from_secs(2);
/// A producer that sends again may append rows of other partitions a little after the last row.
const GRACE_SECONDS: f64 = 3.0;
/// Pages of the table per transaction: writers wait for one.
const PAGES: i64 = 2_000;

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
}

/// Notes that the last row of a snapshot is applied, in its transaction. Read again it counts only as
/// long as no newer snapshot is known.
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
             record_timestamp = excluded.record_timestamp,
             ended_at = excluded.ended_at,
             log_ends = null,
             swept_at = null
         where not $4 or s.source_lsn = excluded.source_lsn",
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

/// A snapshot that ended and is not swept yet.
struct Ended {
    lsn: i64,
    topic: String,
    /// When its last row was sent, in milliseconds from 1970; -1 where Kafka does not say.
    timestamp_millis: i64,
    log_ends: Option<BTreeMap<i32, i64>>,
}

/// Sweeps the views of a generation.
pub(crate) struct Sweeper {
    pub(crate) database: Database,
    pub(crate) generation: Generation,
    pub(crate) views: Arc<Vec<View>>,
    pub(crate) kafka: KafkaSettings,
}

impl Sweeper {
    /// Looks again and again, until dropped. What fails is tried again in the next round.
    pub(crate) async fn run(self) {
        let mut connection = None;
        let mut rounds = Rounds::default();
        loop {
            match self.round(&mut connection).await {
                Ok(()) => rounds.done(),
                Err(error) => {
                    rounds.failed("look for rows to sweep", &error);
                    connection = None;
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn round(&self, slot: &mut Option<PgConnection>) -> Result<(), SweepError> {
        let connection = self.database.connected(slot, self.generation).await?;
        for view in self.views.iter().filter(|view| view.spec.unmentioned == Unmentioned::Sweep) {
            let table = &view.spec.table;
            let Some(mut ended) = ended(connection, table).await? else { continue };
            if ended.log_ends.is_none() {
                ended.log_ends = Some(self.ask_log_ends(connection, table, &ended).await?);
            }
            let removed = self.sweep(connection, view, &ended).await?;
            if let Some(rows) = removed {
                finish(connection, table, &ended, rows).await?;
            }
        }
        Ok(())
    }

    async fn ask_log_ends(
        &self,
        connection: &mut PgConnection,
        table: &str,
        ended: &Ended,
    ) -> Result<BTreeMap<i32, i64>, SweepError> {
        let (kafka, topic) = (self.kafka.clone(), ended.topic.clone());
        let asked = tokio::task::spawn_blocking(move || source::log_ends(&kafka, &topic)).await;
        let log_ends = asked.map_err(|_| SweepError::Damaged(table.to_owned()))??;
        sqlx::query(
            "update cdc_snapshot set log_ends = $3::jsonb
             where view_name = $1 and source_lsn = $2 and log_ends is null",
        )
        .bind(table)
        .bind(ended.lsn)
        .bind(serde_json::json!(log_ends).to_string())
        .execute(connection)
        .await
        .map_err(SweepError::Store)?;
        Ok(log_ends)
    }

    /// Removes what is to be removed, some pages at a time. `None`: not yet.
    async fn sweep(
        &self,
        connection: &mut PgConnection,
        view: &View,
        ended: &Ended,
    ) -> Result<Option<i64>, SweepError> {
        let (pages_of, statement) = (sweep_sql::pages(&view.table), sweep_sql::sweep(&view.table));
        let pages: i64 = sqlx::query_scalar(&pages_of)
            .fetch_one(&mut *connection)
            .await
            .map_err(SweepError::Store)?;
        let mut removed = 0;
        let mut first = 0;
        // The rows removed are not written by anybody meanwhile, so none moves behind us.
        while first <= pages {
            let mut tx = connection.begin().await.map_err(SweepError::Store)?;
            let epoch = match decide(&mut tx, &view.spec.table, ended).await? {
                Verdict::NotYet => return Ok(None),
                Verdict::Untold { partitions, epoch } => {
                    tx.rollback().await.map_err(SweepError::Store)?;
                    if self.tell(connection, ended, &partitions, epoch).await? {
                        return Ok(None);
                    }
                    tracing::warn!(
                        table = view.spec.table,
                        partitions = ?partitions.keys(),
                        "these partitions had no row in the source's snapshot, and its record has no \
                         time to find its place by: rows that it did not mention are left in the view"
                    );
                    return Ok(Some(removed));
                }
                Verdict::Sweep { epoch } => epoch,
            };
            let rows: i64 = sqlx::query_scalar(&statement)
                .bind(format!("({first},0)"))
                .bind(format!("({},0)", first + PAGES))
                .bind(ended.lsn)
                .bind(epoch)
                .fetch_one(&mut *tx)
                .await
                .map_err(SweepError::Store)?;
            tx.commit().await.map_err(SweepError::Store)?;
            removed += rows;
            first += PAGES;
        }
        Ok(Some(removed))
    }
}

impl Sweeper {
    /// Tells partitions of the snapshot; false when nobody knows its place in their logs.
    async fn tell(
        &self,
        connection: &mut PgConnection,
        ended: &Ended,
        partitions: &BTreeMap<i32, Option<i64>>,
        source_epoch: Option<i32>,
    ) -> Result<bool, SweepError> {
        let Some(source_epoch) = source_epoch else { return Ok(false) };
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
        if places.is_empty() {
            return Ok(false);
        }
        let snapshot = untold::Snapshot { lsn: ended.lsn, source_epoch };
        let told = untold::tell(connection, &places, &ended.topic, snapshot).await;
        let told = told.map_err(SweepError::Store)?;
        if told > 0 {
            tracing::info!(
                topic = ended.topic,
                partitions = ?partitions.keys(),
                "partitions without a row of the source's snapshot, or in an older life of the source, \
                 were told of it"
            );
        }
        Ok(true)
    }
}

async fn ended(connection: &mut PgConnection, table: &str) -> Result<Option<Ended>, SweepError> {
    let row = sqlx::query(
        "select source_lsn, topic, log_ends::text, record_timestamp
         from cdc_snapshot
         where view_name = $1 and swept_at is null and ended_at < now() - make_interval(secs => $2)",
    )
    .bind(table)
    .bind(GRACE_SECONDS)
    .fetch_optional(connection)
    .await
    .map_err(SweepError::Store)?;
    let Some(row) = row else { return Ok(None) };
    let log_ends: Option<String> = row.try_get(2).map_err(SweepError::Store)?;
    let log_ends = log_ends.map(|text| serde_json::from_str(&text)).transpose();
    Ok(Some(Ended {
        lsn: row.try_get(0).map_err(SweepError::Store)?,
        topic: row.try_get(1).map_err(SweepError::Store)?,
        timestamp_millis: row.try_get(3).map_err(SweepError::Store)?,
        log_ends: log_ends.map_err(|_| SweepError::Damaged(table.to_owned()))?,
    }))
}

/// Holds the offsets of the topic, so that no batch changes a row until the transaction ends, and decides
/// by them.
async fn decide(
    tx: &mut PgTransaction<'_>,
    table: &str,
    ended: &Ended,
) -> Result<Verdict, SweepError> {
    let rows = sqlx::query(
        "select partition, next_offset, source_epochs::text, source_snapshots::text
         from cdc_offset
         where topic = $1
         order by partition
         for share",
    )
    .bind(&ended.topic)
    .fetch_all(&mut **tx)
    .await
    .map_err(SweepError::Store)?;
    let mut read = BTreeMap::new();
    for row in rows {
        let partition: i32 = row.try_get(0).map_err(SweepError::Store)?;
        let next_offset = row.try_get(1).map_err(SweepError::Store)?;
        let epochs: String = row.try_get(2).map_err(SweepError::Store)?;
        let snapshots: String = row.try_get(3).map_err(SweepError::Store)?;
        let damaged = |_| SweepError::Damaged(table.to_owned());
        let epochs: BTreeMap<i64, i32> = serde_json::from_str(&epochs).map_err(damaged)?;
        let snapshots: BTreeMap<i64, i64> = serde_json::from_str(&snapshots).map_err(damaged)?;
        let newest = Read {
            next_offset,
            epoch: epochs.into_values().next_back().unwrap_or(0),
            snapshot: snapshots.into_iter().next_back(),
        };
        read.insert(partition, newest);
    }
    let none = BTreeMap::new();
    Ok(verdict(ended.lsn, ended.log_ends.as_ref().unwrap_or(&none), &read))
}

async fn finish(
    connection: &mut PgConnection,
    table: &str,
    ended: &Ended,
    rows: i64,
) -> Result<(), SweepError> {
    sqlx::query(
        "update cdc_snapshot set swept_at = now(), swept_rows = $3
         where view_name = $1 and source_lsn = $2 and log_ends is not null and swept_at is null",
    )
    .bind(table)
    .bind(ended.lsn)
    .bind(rows)
    .execute(connection)
    .await
    .map_err(SweepError::Store)?;
    if rows > 0 {
        metrics::swept(table, rows.unsigned_abs());
        tracing::info!(table, rows, "removed rows that the source's snapshot did not mention");
    }
    Ok(())
}
