//! `cdc-consumer offsets reset`: moves stored offsets, by an operator's hand.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use sqlx::{Connection, PgConnection};

use crate::cli::{ResetSettings, ResetTo};
use crate::database::Database;
use crate::fence::{self, StoredOffset};
use crate::kafka_admin;
use crate::offsets::Partition;
use crate::source;

const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

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
    let client: BaseConsumer = source::client(&settings.kafka)?;
    let mut moves = Vec::with_capacity(chosen.len());
    for offset in chosen {
        let (start, end) = client
            .fetch_watermarks(&offset.topic, offset.partition, BROKER_TIMEOUT)
            .with_context(|| format!("could not ask the broker about {}", offset.topic))?;
        let target = match settings.to {
            ResetTo::Earliest => start,
            ResetTo::Latest => end,
            ResetTo::Offset(target) => target,
        };
        ensure!(
            (start..=end).contains(&target),
            "{}-{} has records {start} to {end}, offset {target} is outside",
            offset.topic,
            offset.partition
        );
        moves.push((offset, target));
    }
    for (offset, target) in &moves {
        writeln!(out, "{}-{}: {} -> {target}", offset.topic, offset.partition, offset.next_offset)?;
    }
    if settings.new_log {
        no_letters(&mut connection, &moves).await?;
    }
    if !settings.execute {
        writeln!(out, "nothing was changed; add --execute to do it")?;
        return Ok(());
    }
    move_all(&mut connection, settings, &moves).await?;
    let targets = moves.iter().map(|(offset, target)| {
        (Partition { topic: offset.topic.clone(), number: offset.partition }, *target)
    });
    let overruled = kafka_admin::overrule(&settings.kafka, &targets.collect::<Vec<_>>()).await;
    overruled.with_context(|| {
        format!(
            "the offsets were moved, but an earlier reset of group {} with Kafka's tools could not be taken back, \
             and a consumer that starts would follow that one; stop its members and say this again",
            settings.kafka.consumer_group
        )
    })
}

/// All in one transaction, which takes the partitions in the order that batches do.
async fn move_all(
    connection: &mut PgConnection,
    settings: &ResetSettings,
    moves: &[(&StoredOffset, i64)],
) -> anyhow::Result<()> {
    let failed = "could not move the offsets";
    let mut tx = connection.begin().await.context(failed)?;
    sqlx::query("select from cdc_offset where topic = $1 order by partition for update")
        .bind(&settings.topic)
        .execute(&mut *tx)
        .await
        .context(failed)?;
    if settings.new_log {
        // A batch that was under way may have kept one aside.
        no_letters(&mut tx, moves).await?;
    }
    for &(offset, target) in moves {
        move_to(&mut tx, offset, target, settings.new_log).await.context(failed)?;
    }
    tx.commit().await.context(failed)
}

/// Fails while dead letters of these partitions are open: they have offsets of the old log, which would be taken for
/// places in the new one.
async fn no_letters(
    connection: &mut PgConnection,
    moves: &[(&StoredOffset, i64)],
) -> anyhow::Result<()> {
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

/// A new epoch fences off whoever owns the partition. A replay may bring back rows that the newest
/// snapshot did not mention, so it is swept again. In a new log nothing was seen yet, and it begins in
/// the newest life of the source.
async fn move_to(
    connection: &mut PgConnection,
    offset: &StoredOffset,
    target: i64,
    new_log: bool,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "with swept_again as (
             update cdc_snapshot set log_ends = null, swept_at = null where topic = $1
         )
         update cdc_offset
         set
             next_offset = $3,
             epoch = epoch + 1,
             owner = 'reset by hand',
             updated_at = now(),
             seen_offset = case when $4 then 0 else seen_offset end,
             anchor_offset = case when $4 then null else anchor_offset end,
             anchor_timestamp = case when $4 then null else anchor_timestamp end,
             chunk_offset = case when $4 then null else chunk_offset end,
             chunk_lsn = case when $4 then null else chunk_lsn end,
             source_snapshots = case when $4 then '{}' else source_snapshots end,
             source_epochs = case
                 when $4 then coalesce(
                     (
                         select jsonb_build_object('0', max(e.value::int))
                         from jsonb_each_text(source_epochs) e
                         having max(e.value::int) > 0
                     ),
                     '{}')
                 else source_epochs
             end
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
