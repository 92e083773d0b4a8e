//! `cdc-consumer offsets reset`: moves stored offsets, by an operator's hand.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::cli::{ResetSettings, ResetTo};
use crate::database::Database;
use crate::fence::{self, StoredOffset};
use crate::source;

const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

/// Moves the offsets of a topic, or shows what would be moved. A new epoch fences off a running
/// consumer, which then continues at the new offset.
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
        writeln!(out, "{}-{}: {} -> {target}", offset.topic, offset.partition, offset.next_offset)?;
        if settings.execute {
            sqlx::query(
                "update cdc_offset
                 set next_offset = $3, epoch = epoch + 1, owner = 'reset by hand', updated_at = now()
                 where topic = $1 and partition = $2",
            )
            .bind(&offset.topic)
            .bind(offset.partition)
            .bind(target)
            .execute(&mut connection)
            .await
            .context("could not move the offset")?;
        }
    }
    if !settings.execute {
        writeln!(out, "nothing was changed; add --execute to do it")?;
    }
    Ok(())
}

fn chosen(settings: &ResetSettings, offset: &StoredOffset) -> bool {
    offset.topic == settings.topic
        && settings.partition.is_none_or(|partition| partition == offset.partition)
}
