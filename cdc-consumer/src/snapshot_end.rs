//! What the database knows of the newest snapshot of a view, from its end until it is swept.

use std::collections::BTreeMap;

use sqlx::{PgConnection, PgTransaction, Row};

use crate::fold::SnapshotEnd;
use crate::mentioned::{Read, Verdict, verdict};
use crate::metrics;
use crate::sweep::SweepError;

/// A producer that sends again may append rows of other partitions a little after the last row.
const GRACE_SECONDS: f64 = 3.0;

/// A snapshot that ended and is not swept yet.
pub(crate) struct Ended {
    pub(crate) lsn: i64,
    pub(crate) topic: String,
    /// When its last row was sent, in milliseconds from 1970; -1 where Kafka does not say.
    pub(crate) timestamp_millis: i64,
    /// Empty until the broker was asked.
    pub(crate) log_ends: BTreeMap<i32, i64>,
}

impl SnapshotEnd {
    /// Which of two ends decides, this one or one read before it: the one that was sent later. Records of
    /// different partitions come in no order, and a source that was restored goes on at lower LSNs. Where Kafka
    /// does not say when, the one read last does, but one read again never takes the place of a new one.
    pub(crate) fn or_later(self, before: Option<Self>) -> Self {
        let sent = |end: Self| (end.timestamp_millis, end.lsn);
        let decides = |before: &Self| {
            if self.timestamp_millis.min(before.timestamp_millis) < 0 {
                self.repeated && !before.repeated
            } else {
                sent(*before) > sent(self)
            }
        };
        before.filter(decides).unwrap_or(self)
    }
}

/// Keeps where the logs ended, once the broker was asked.
pub(crate) async fn keep_log_ends(
    connection: &mut PgConnection,
    table: &str,
    ended: &Ended,
    log_ends: &BTreeMap<i32, i64>,
) -> Result<(), SweepError> {
    sqlx::query(
        "update cdc_snapshot set log_ends = $3::jsonb
         where view_name = $1 and source_lsn = $2 and log_ends is null",
    )
    .bind(table)
    .bind(ended.lsn)
    .bind(serde_json::json!(log_ends).to_string())
    .execute(connection)
    .await
    .map(drop)
    .map_err(SweepError::Store)
}

/// The newest snapshot of a view, if it ended a while ago and is not swept.
pub(crate) async fn ended(
    connection: &mut PgConnection,
    table: &str,
) -> Result<Option<Ended>, SweepError> {
    let row = sqlx::query(
        "select source_lsn, topic, coalesce(log_ends, '{}')::text, record_timestamp
         from cdc_snapshot
         where view_name = $1 and swept_at is null and ended_at < now() - make_interval(secs => $2)",
    )
    .bind(table)
    .bind(GRACE_SECONDS)
    .fetch_optional(connection)
    .await
    .map_err(SweepError::Store)?;
    let Some(row) = row else { return Ok(None) };
    let log_ends: String = row.try_get(2).map_err(SweepError::Store)?;
    let log_ends = serde_json::from_str(&log_ends);
    Ok(Some(Ended {
        lsn: row.try_get(0).map_err(SweepError::Store)?,
        topic: row.try_get(1).map_err(SweepError::Store)?,
        timestamp_millis: row.try_get(3).map_err(SweepError::Store)?,
        log_ends: log_ends.map_err(|_| SweepError::Damaged(table.to_owned()))?,
    }))
}

/// Holds the offsets of the topic, so that no batch changes a row until the transaction ends, and decides
/// by them.
pub(crate) async fn decide(
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
    Ok(verdict(ended.lsn, &ended.log_ends, &read))
}

/// Notes that it is swept, unless that was to begin anew meanwhile.
pub(crate) async fn finish(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_ends_the_one_sent_later_decides_whatever_is_read_first() {
        let end = |lsn, timestamp_millis| SnapshotEnd { lsn, timestamp_millis, repeated: false };
        let again = |end| SnapshotEnd { repeated: true, ..end };
        let check =
            |before, read, expected| assert_eq!(SnapshotEnd::or_later(read, before), expected);
        let (earlier, later) = (end(800, 10), end(960, 20));
        check(None, earlier, earlier);
        check(Some(earlier), later, later);
        check(Some(later), earlier, later);
        check(Some(later), again(earlier), later);
        check(Some(again(earlier)), later, later);
        let restored = end(400, 30);
        check(Some(later), restored, restored);
        check(Some(restored), later, restored);
        let unknown = end(960, -1);
        check(Some(earlier), unknown, unknown);
        check(Some(unknown), earlier, earlier);
        check(Some(unknown), again(earlier), unknown);
    }
}
