//! Partitions that have no row of a snapshot learn where it was taken, as if they had one.
//!
//! A small table's snapshot leaves partitions without a row. Their late changes (of transactions that
//! overlap the snapshot) and their ghosts would look alike. The time of the snapshot's last row finds its
//! place in their logs, since a connector streams only after that row: the partition's progress is told of
//! the snapshot at that offset, and goes back to it where it is further. Its owner notices that it is
//! fenced, acquires anew, and reads those records again in the right place.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use crate::offsets::Partition;

/// What a partition is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// What its rows share.
    pub(crate) lsn: i64,
    /// The life of the source it began or belongs to.
    pub(crate) source_epoch: i32,
}

/// Locks in order, as the fence does. Moves no partition that met a newer snapshot at that place or behind it.
/// An older one may have had the same place, where nothing was sent between the two.
const TELL: &str = "
    with place as (
        select * from unnest($2::int[], $3::bigint[]) as p (partition, place)
    ),
    locked as materialized (
        select o.partition
        from cdc_offset o
        join place p on p.partition = o.partition
        where o.topic = $1
        order by o.partition
        for update of o
    )
    update cdc_offset o
    set
        epoch = o.epoch + 1,
        next_offset = least(o.next_offset, p.place),
        source_snapshots = o.source_snapshots || jsonb_build_object(p.place::text, $4::bigint),
        source_epochs = case
            when newest.source_epoch < $5 then
                o.source_epochs || jsonb_build_object(p.place::text, $5::int)
            else o.source_epochs
        end,
        source_lsn_max = case when newest.source_epoch < $5 then $4 else o.source_lsn_max end,
        updated_at = now()
    from place p
    join locked l on l.partition = p.partition
    cross join lateral (
        select coalesce(max(e.value::int), 0) as source_epoch
        from cdc_offset known
        left join lateral jsonb_each_text(known.source_epochs) e on true
        where known.topic = $1 and known.partition = p.partition
    ) as newest
    where o.topic = $1
      and o.partition = p.partition
      and not exists (
          select from jsonb_each_text(o.source_snapshots) as known (first_offset, lsn)
          where known.first_offset::bigint > p.place
             or known.first_offset::bigint = p.place
                and (newest.source_epoch, known.lsn::bigint) >= ($5, $4))";

/// Tells partitions of a snapshot that lies at the given places of their logs.
pub(crate) async fn tell(
    connection: &mut PgConnection,
    places: &BTreeMap<Partition, i64>,
    topic: &str,
    snapshot: Snapshot,
) -> Result<u64, sqlx::Error> {
    let told = sqlx::query(TELL)
        .bind(topic)
        .bind(places.keys().map(|partition| partition.number).collect::<Vec<_>>())
        .bind(places.values().copied().collect::<Vec<_>>())
        .bind(snapshot.lsn)
        .bind(snapshot.source_epoch)
        .execute(connection)
        .await?;
    Ok(told.rows_affected())
}
