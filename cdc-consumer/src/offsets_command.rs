//! `cdc-consumer offsets reset`: moves stored offsets, by an operator's hand.

use std::io::Write;

use anyhow::{Context, bail, ensure};
use sqlx::{Connection, PgConnection};

use crate::cli::{ResetSettings, ResetTo};
use crate::database::{self, Database, Generation};
use crate::fence::{self, StoredOffset};
use crate::kafka_admin;
use crate::offsets::Partition;
use crate::source;

/// A stored offset, and where it goes: `None` with a partition that the new log does not have.
type Move<'o> = (&'o StoredOffset, Option<i64>);

/// Moves the offsets of a topic, all of those chosen or none, or shows what would be moved. A new epoch fences
/// off a running consumer, which then continues at the new offset.
pub async fn reset(settings: &ResetSettings, out: &mut impl Write) -> anyhow::Result<()> {
    let database = Database::new(&settings.database.consumer_database_url)?;
    let generation = database.current_generation().await?;
    let mut connection = database.connect_to(generation).await?;
    let stored = fence::stored(&mut connection).await?;
    let chosen: Vec<&StoredOffset> =
        stored.iter().filter(|offset| chosen(settings, offset)).collect();
    if chosen.is_empty() {
        let known: Vec<_> =
            stored.iter().map(|offset| format!("{}-{}", offset.topic, offset.partition)).collect();
        bail!("no stored offset matches; stored are: {}", known.join(", "));
    }
    let moves = moves(settings, &chosen)?;
    for (StoredOffset { topic, partition, next_offset, .. }, target) in &moves {
        let target = target.map_or("no such partition any more".to_owned(), |it| it.to_string());
        writeln!(out, "{topic}-{partition}: {next_offset} -> {target}")?;
    }
    if settings.new_log {
        no_letters(&mut connection, &moves).await?;
    }
    if !settings.execute {
        writeln!(out, "nothing was changed; add --execute to do it")?;
        return Ok(());
    }
    let targets = moves.iter().filter_map(|(offset, target)| {
        let partition = Partition { topic: offset.topic.clone(), number: offset.partition };
        Some((partition, (*target)?))
    });
    // First, lest a consumer that starts in between follow the earlier order behind ours.
    let overruled = kafka_admin::overrule(&settings.kafka, &targets.collect::<Vec<_>>()).await;
    let overruled = overruled.with_context(|| {
        format!(
            "nothing was moved: an earlier reset of group {} with Kafka's tools could not be taken back, and \
             a consumer that starts would follow that one; stop its members and say this again",
            settings.kafka.consumer_group
        )
    })?;
    move_all(&mut connection, generation, settings, &moves).await.context(if overruled {
        "nothing was moved, but the earlier reset with Kafka's tools was taken back: no consumer will follow that one either"
    } else {
        "nothing was moved"
    })
}

/// Where the chosen offsets go. Fails where they cannot.
fn moves<'o>(
    settings: &ResetSettings,
    chosen: &[&'o StoredOffset],
) -> anyhow::Result<Vec<Move<'o>>> {
    let topic = &settings.topic;
    let bounds = source::log_bounds(&source::client(&settings.kafka)?, topic)?;
    ensure!(!bounds.is_empty(), "the broker knows no topic {topic}");
    let target = |&offset: &&'o StoredOffset| {
        let StoredOffset { partition, seen_offset, .. } = offset;
        let Some(&(start, end)) = bounds.get(partition) else {
            ensure!(
                settings.new_log,
                "the broker knows no partition {topic}-{partition}: was the topic made again with fewer? \
                 --new-log begins it"
            );
            return Ok((offset, None));
        };
        let target = match settings.to {
            ResetTo::Earliest => start,
            ResetTo::Latest => end,
            ResetTo::Offset(target) => target,
        };
        ensure!(
            (start..=end).contains(&target),
            "{topic}-{partition} has records {start} to {end}, offset {target} is outside"
        );
        let unread = if settings.new_log { start } else { start.max(*seen_offset) };
        ensure!(
            target <= unread || settings.skip,
            "{topic}-{partition}: nobody has read the records from {unread} to {target}; what they change is \
             lost for the view, and of a snapshot, a TRUNCATE or a tombstone among them for good, since a replay takes \
             them for repeated; --skip does it all the same"
        );
        Ok((offset, Some(target)))
    };
    chosen.iter().map(target).collect()
}

/// All in one transaction, which takes the partitions in the order that batches do.
async fn move_all(
    connection: &mut PgConnection,
    generation: Generation,
    settings: &ResetSettings,
    moves: &[Move<'_>],
) -> anyhow::Result<()> {
    let mut tx = connection.begin().await?;
    sqlx::query("select from cdc_offset where topic = $1 order by partition for update")
        .bind(&settings.topic)
        .execute(&mut *tx)
        .await?;
    // A rebuild holds these offsets until it has published its own.
    let published = database::published(&mut tx).await?;
    ensure!(
        published == generation,
        "readers see generation {published} by now, it was {generation}; say it again"
    );
    if settings.new_log {
        // A batch that was under way may have kept one aside.
        no_letters(&mut tx, moves).await?;
    }
    // A replay may bring back rows that the newest snapshot did not mention.
    sqlx::query("update cdc_snapshot set log_ends = null, swept_at = null where topic = $1")
        .bind(&settings.topic)
        .execute(&mut *tx)
        .await?;
    for &(offset, target) in moves {
        if let Some(target) = target {
            move_to(&mut tx, offset, target, settings.new_log).await?;
        }
    }
    // Only now: the others learned from them which life of the source is the newest.
    for (StoredOffset { topic, partition, .. }, _) in moves.iter().filter(|it| it.1.is_none()) {
        sqlx::query("delete from cdc_offset where topic = $1 and partition = $2")
            .bind(topic)
            .bind(partition)
            .execute(&mut *tx)
            .await?;
    }
    Ok(tx.commit().await?)
}

/// Fails while dead letters of these partitions are open: they have offsets of the old log, which would be taken for
/// places in the new one.
async fn no_letters(connection: &mut PgConnection, moves: &[Move<'_>]) -> anyhow::Result<()> {
    let Some((StoredOffset { topic, .. }, _)) = moves.first() else { return Ok(()) };
    let count: i64 = sqlx::query_scalar(
        "select count(*) from cdc_dead_letter where topic = $1 and partition = any($2)",
    )
    .bind(topic)
    .bind(moves.iter().map(|(offset, _)| offset.partition).collect::<Vec<_>>())
    .fetch_one(connection)
    .await
    .context("could not count the dead letters")?;
    ensure!(
        count == 0,
        "{count} dead letters of {topic} are records of the old log, and their offsets say nothing in the new \
         one; retry or drop them first (`cdc-consumer dead-letters list`, then `retry` or `drop` with a \
         number). Nothing was changed"
    );
    Ok(())
}

/// A new epoch fences off whoever owns the partition. In a new log nothing was seen yet, and it begins in
/// the newest life of the source, at the highest LSN that any partition has seen of it: a key may come through another
/// partition than before.
async fn move_to(
    connection: &mut PgConnection,
    offset: &StoredOffset,
    target: i64,
    new_log: bool,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "with newest as (
             select coalesce(max(e.value::int), 0) as epoch, known.source_lsn_max as lsn
             from cdc_offset known
             left join lateral jsonb_each_text(known.source_epochs) e on true
             where known.topic = $1
             group by known.partition, known.source_lsn_max
             order by epoch desc, lsn desc
             limit 1
         )
         update cdc_offset
         set
             next_offset = $3,
             epoch = cdc_offset.epoch + 1,
             owner = 'reset by hand',
             updated_at = now(),
             seen_offset = case when $4 then 0 else seen_offset end,
             anchor_offset = case when $4 then null else anchor_offset end,
             anchor_timestamp = case when $4 then null else anchor_timestamp end,
             chunk_offset = case when $4 then null else chunk_offset end,
             chunk_lsn = case when $4 then null else chunk_lsn end,
             source_snapshots = case when $4 then '{}' else source_snapshots end,
             source_lsn_max = case when $4 then newest.lsn else source_lsn_max end,
             source_epochs = case
                 when not $4 then source_epochs
                 when newest.epoch > 0 then jsonb_build_object('0', newest.epoch)
                 else '{}'
             end
         from newest
         where topic = $1 and partition = $2",
    )
    .bind(&offset.topic)
    .bind(offset.partition)
    .bind(target)
    .bind(new_log)
    .execute(connection)
    .await
    .map(drop)
}

fn chosen(settings: &ResetSettings, offset: &StoredOffset) -> bool {
    offset.topic == settings.topic
        && settings.partition.is_none_or(|partition| partition == offset.partition)
}
