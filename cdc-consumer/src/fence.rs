//! Progress in the database: acquiring partitions, and moving their offsets inside a batch.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use crate::batch::Claim;
use crate::catalog::{SOURCE_LSN, Table};
use crate::database::Generation;
use crate::offsets::{Anchor, ChunkRow, Lineage, Partition, Progress};
use crate::sql::{deleted_table, quote};

/// Why progress could not be read or moved.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    #[error("could not acquire {partition}")]
    Acquire {
        partition: Partition,
        #[source]
        source: sqlx::Error,
    },
    #[error("could not move the offsets of the batch")]
    Move(#[source] sqlx::Error),
    #[error("could not read the stored offsets")]
    Read(#[source] sqlx::Error),
    #[error("the stored lives of the source of {0} are damaged")]
    Lineage(Partition),
}

/// A partition to acquire.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub partition: Partition,
    /// Where to begin when nothing is stored: the first record the broker has.
    pub log_start: i64,
    /// An operator moved the group's offset with Kafka's own tool: begin there instead.
    pub requested: Option<i64>,
}

/// Makes us the owner of a partition: a new epoch, and the stored progress.
///
/// Waits for the transaction of a previous owner, since both change the same row, and fails with 55P03 if
/// that takes longer than [`LOCK_MAX`]. From here on that owner's batches fail the fence.
pub async fn acquire(
    connection: &mut PgConnection,
    wanted: &Wanted,
    owner: &str,
) -> Result<Progress, FenceError> {
    let partition = &wanted.partition;
    let failed = |source| FenceError::Acquire { partition: partition.clone(), source };
    let row = sqlx::query(ACQUIRE)
        .bind(&partition.topic)
        .bind(partition.number)
        .bind(wanted.log_start)
        .bind(owner)
        .bind(wanted.requested)
        .bind(LOCK_MAX.as_millis().to_string())
        .fetch_one(connection)
        .await
        .map_err(failed)?;
    let starts: String = row.try_get("source_epochs").map_err(failed)?;
    let snapshots: String = row.try_get("source_snapshots").map_err(failed)?;
    let damaged = |_| FenceError::Lineage(partition.clone());
    let next_offset = row.try_get("next_offset").map_err(failed)?;
    let epoch = row.try_get("epoch").map_err(failed)?;
    let chunk_offset: Option<i64> = row.try_get("chunk_offset").map_err(failed)?;
    let chunk_lsn: Option<i64> = row.try_get("chunk_lsn").map_err(failed)?;
    Ok(Progress {
        anchor: anchor(&row).map_err(failed)?,
        seen_offset: row.try_get("seen_offset").map_err(failed)?,
        lineage: Lineage {
            starts: serde_json::from_str(&starts).map_err(damaged)?,
            lsn_max: row.try_get("source_lsn_max").map_err(failed)?,
            snapshots: serde_json::from_str(&snapshots).map_err(damaged)?,
            chunk: chunk_offset.zip(chunk_lsn).map(|(offset, lsn)| ChunkRow { offset, lsn }),
        },
        ..Progress::new(next_offset, epoch)
    })
}

/// The record read last, of a row of `cdc_offset`.
pub(crate) fn anchor(row: &PgRow) -> Result<Option<Anchor>, sqlx::Error> {
    let offset: Option<i64> = row.try_get("anchor_offset")?;
    let timestamp: Option<i64> = row.try_get("anchor_timestamp")?;
    let anchor = offset.zip(timestamp);
    Ok(anchor.map(|(offset, timestamp_millis)| Anchor { offset, timestamp_millis }))
}

/// How long an acquisition waits for a previous owner before it says so. A batch takes less.
const LOCK_MAX: Duration = Duration::from_secs(2);

/// A replay may bring back rows that the newest snapshot did not mention, so it is swept again. Whoever owns it, the
/// partition is as old as its last move.
/// Nothing stored means the beginning, whatever the group's offset says: it may be another program's.
/// A partition that was added to a known topic begins in the newest life of the source: with an older
/// epoch its changes would look stale to rows that moved there.
const ACQUIRE: &str = "
    with patience as materialized (
        select set_config('lock_timeout', $6, true)
    ),
    swept_again as (
        update cdc_snapshot set log_ends = null, swept_at = null
        where topic = $1 and $5::bigint is not null
    )
    insert into cdc_offset as o
        (topic, partition, next_offset, epoch, owner, source_epochs)
    select $1, $2, $3, 1, $4,
        coalesce(
            (
                select jsonb_build_object('0', max(e.value::int))
                from cdc_offset known
                cross join lateral jsonb_each_text(known.source_epochs) e
                where known.topic = $1
                having max(e.value::int) > 0
            ),
            '{}')
    from patience
    on conflict (topic, partition) do update set
        epoch = o.epoch + 1,
        owner = excluded.owner,
        next_offset = coalesce($5, o.next_offset)
    returning next_offset, epoch, seen_offset, source_lsn_max, source_epochs::text,
        source_snapshots::text, anchor_offset, anchor_timestamp, chunk_offset, chunk_lsn";

/// Whether a view shows or remembers changes of another topic: there are some, and nothing is stored of this
/// one. Each topic has counted the lives of the source by itself, so their positions do not compare. Rows that
/// a migration brought have no position.
pub async fn shows_another_topic(
    connection: &mut PgConnection,
    topic: &str,
    table: &Table,
) -> Result<bool, FenceError> {
    // Alone: a statement that names the view waits for who has locked it.
    let stored = "select exists (select from cdc_offset where topic = $1)";
    let stored = sqlx::query_scalar(stored).bind(topic).fetch_one(&mut *connection);
    if stored.await.map_err(FenceError::Read)? {
        return Ok(false);
    }
    // Again, at one moment with the rows: another member may have begun the topic by now.
    let sql = format!(
        "select not exists (select from cdc_offset where topic = $1)
             and (exists (select from {shown} where {SOURCE_LSN} > 0)
                 or exists (select from {deleted})
                 or exists (select from cdc_floor where view_name = $2))",
        shown = quote(&table.name),
        deleted = deleted_table(table),
    );
    let asked = sqlx::query_scalar(&sql).bind(topic).bind(&table.name).fetch_one(connection);
    asked.await.map_err(FenceError::Read)
}

/// The fence: the first statement of every batch.
///
/// Moves each partition from the batch's first to its next offset, only where the stored row is exactly
/// what the batch was built on: same next offset, same epoch, same generation. The caller counts the
/// rows: fewer than partitions means somebody else owns one, or the database was rewound.
/// Partitions are locked in order, so that two owners can wait for each other but not in a circle. It tells
/// whether there are dead letters, which saves each batch a question of its own.
const FENCE: &str = "
    with claimed as (
        select *
        from unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                    $7::bigint[], $8::text[], $9::bigint[], $10::bigint[], $11::text[],
                    $14::bigint[], $15::bigint[])
            as c (topic, partition, first_offset, next_offset, epoch, seen_offset,
                  source_lsn_max, source_epochs, anchor_offset, anchor_timestamp,
                  source_snapshots, chunk_offset, chunk_lsn)
    ),
    locked as (
        select o.topic, o.partition
        from cdc_offset o
        join claimed c on c.topic = o.topic and c.partition = o.partition
        order by o.topic, o.partition
        for update of o
    ),
    slot as materialized (
        select set_config('cdc.slot', $12, true)
    )
    update cdc_offset o
    set
        next_offset = c.next_offset,
        seen_offset = greatest(o.seen_offset, c.seen_offset),
        source_lsn_max = c.source_lsn_max,
        source_epochs = c.source_epochs::jsonb,
        source_snapshots = c.source_snapshots::jsonb,
        anchor_offset = c.anchor_offset,
        anchor_timestamp = c.anchor_timestamp,
        chunk_offset = c.chunk_offset,
        chunk_lsn = c.chunk_lsn,
        updated_at = now()
    from claimed c
    join locked l on l.topic = c.topic and l.partition = c.partition
    cross join slot
    where o.topic = c.topic
      and o.partition = c.partition
      and o.next_offset = c.first_offset
      and o.epoch = c.epoch
      and (select current from public.cdc_generation) = $13
    returning (select exists (select from cdc_dead_letter))";

/// What the fence answers a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Somebody else owns a partition, or the database was rewound.
    Held,
    /// The offsets moved. Without dead letters no key of the batch is parked, whoever else is at work:
    /// keeping a record of these partitions aside moves their offsets too.
    Passed { dead_letters: bool },
}

/// Moves every claim of a batch, inside its transaction, and names the slot of its counters to the triggers.
pub async fn pass(
    connection: &mut PgConnection,
    claims: &[Claim],
    generation: Generation,
    counter_slot: i32,
) -> Result<Answer, FenceError> {
    let moved: Vec<bool> = sqlx::query_scalar(FENCE)
        .bind(claims.iter().map(|claim| claim.partition.topic.as_str()).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| claim.partition.number).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| claim.interval.first).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| claim.interval.next).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| claim.epoch).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| claim.seen_offset).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| claim.lineage.lsn_max).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| by_offset(&claim.lineage.starts)).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| claim.anchor.map(|it| it.offset)).collect::<Vec<_>>())
        .bind(
            claims
                .iter()
                .map(|claim| claim.anchor.map(|it| it.timestamp_millis))
                .collect::<Vec<_>>(),
        )
        .bind(claims.iter().map(|claim| by_offset(&claim.lineage.snapshots)).collect::<Vec<_>>())
        .bind(counter_slot.to_string())
        .bind(generation)
        .bind(
            claims.iter().map(|claim| claim.lineage.chunk.map(|it| it.offset)).collect::<Vec<_>>(),
        )
        .bind(claims.iter().map(|claim| claim.lineage.chunk.map(|it| it.lsn)).collect::<Vec<_>>())
        .fetch_all(connection)
        .await
        .map_err(FenceError::Move)?;
    if moved.len() != claims.len() {
        return Ok(Answer::Held);
    }
    // A batch that covers no partition has no row to answer with.
    let dead_letters = moved.first().copied().unwrap_or(true);
    Ok(Answer::Passed { dead_letters })
}

/// A JSON object: offset to number.
fn by_offset(numbers: &BTreeMap<i64, impl Copy + serde::Serialize>) -> String {
    let members = numbers.iter().map(|(offset, number)| (offset.to_string(), *number));
    serde_json::json!(members.collect::<BTreeMap<_, _>>()).to_string()
}

/// Whether a batch whose commit went unanswered did commit: counts partitions that stand at its end.
const SETTLED: &str = "
    select count(*)
    from unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[])
        as c (topic, partition, next_offset, epoch)
    join cdc_offset o on o.topic = c.topic and o.partition = c.partition
    where o.next_offset = c.next_offset and o.epoch = c.epoch";

/// After a commit that was sent but not answered: whether it took effect. The stored offsets say so,
/// since they moved with the rows or not at all.
pub async fn settled(connection: &mut PgConnection, claims: &[Claim]) -> Result<bool, FenceError> {
    let count: i64 = sqlx::query_scalar(SETTLED)
        .bind(claims.iter().map(|claim| claim.partition.topic.as_str()).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| claim.partition.number).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| claim.interval.next).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| claim.epoch).collect::<Vec<_>>())
        .fetch_one(connection)
        .await
        .map_err(FenceError::Read)?;
    Ok(usize::try_from(count) == Ok(claims.len()))
}

/// Whether partitions are still ours: our generation is the current one, also for who has none, and their
/// epochs are the ones we acquired.
///
/// The fence asks the same with every batch; this is for the time without batches.
pub async fn still_ours(
    connection: &mut PgConnection,
    owned: &[(&Partition, i64)],
    generation: Generation,
) -> Result<bool, FenceError> {
    sqlx::query_scalar(
        "select (select current from public.cdc_generation) = $4
             and not exists (
                 select from unnest($1::text[], $2::int[], $3::bigint[]) as c (topic, partition, epoch)
                 left join cdc_offset o
                     on o.topic = c.topic and o.partition = c.partition and o.epoch = c.epoch
                 where o.topic is null)",
    )
    .bind(owned.iter().map(|(partition, _)| partition.topic.as_str()).collect::<Vec<_>>())
    .bind(owned.iter().map(|(partition, _)| partition.number).collect::<Vec<_>>())
    .bind(owned.iter().map(|(_, epoch)| *epoch).collect::<Vec<_>>())
    .bind(generation)
    .fetch_one(connection)
    .await
    .map_err(FenceError::Read)
}

/// Stored progress of one partition, for people.
#[derive(Debug, Clone, serde::Serialize, sqlx::FromRow)]
pub struct StoredOffset {
    pub topic: String,
    pub partition: i32,
    pub next_offset: i64,
    /// Everything below it was read once.
    pub seen_offset: i64,
    pub epoch: i64,
    pub owner: String,
    /// Seconds since the partition last moved.
    pub idle_seconds: f64,
}

/// All stored offsets of the connection's generation.
pub async fn stored(connection: &mut PgConnection) -> Result<Vec<StoredOffset>, FenceError> {
    sqlx::query_as(
        "select topic, partition, next_offset, seen_offset, epoch, owner,
             extract(epoch from now() - updated_at)::float8 as idle_seconds
         from cdc_offset
         order by topic, partition",
    )
    .fetch_all(connection)
    .await
    .map_err(FenceError::Read)
}
