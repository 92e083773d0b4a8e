//! `cdc-consumer status` and `offsets show`: what the database and the broker say.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde::Serialize;
use sqlx::PgConnection;

use crate::cli::StatusSettings;
use crate::database::{Database, Generation};
use crate::fence::{self, StoredOffset};
use crate::source;

const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize)]
struct Report {
    generation: Generation,
    partitions: Vec<Line>,
    dead_letters: i64,
}

#[derive(Debug, Serialize)]
struct Line {
    #[serde(flatten)]
    stored: StoredOffset,
    /// Absent when the broker does not answer.
    log_end: Option<i64>,
    lag: Option<i64>,
}

/// Stored offsets with the ends of their logs, and the number of open dead letters.
pub async fn status(settings: &StatusSettings, out: &mut impl Write) -> anyhow::Result<()> {
    let (generation, mut connection) = connect(settings).await?;
    let stored = fence::stored(&mut connection).await?;
    let dead_letters = sqlx::query_scalar("select count(*) from cdc_dead_letter")
        .fetch_one(&mut connection)
        .await
        .context("could not count the dead letters")?;
    let partitions = with_log_ends(settings, stored)?;
    let report = Report { generation, partitions, dead_letters };
    if settings.json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
        return Ok(());
    }
    writeln!(
        out,
        "{:<24} {:>9} {:>12} {:>12} {:>9} {:>8}  OWNER",
        "TOPIC", "PARTITION", "NEXT OFFSET", "LOG END", "LAG", "IDLE"
    )?;
    for line in &report.partitions {
        let number =
            |number: Option<i64>| number.map_or("-".to_owned(), |number| number.to_string());
        writeln!(
            out,
            "{:<24} {:>9} {:>12} {:>12} {:>9} {:>7.0}s  {}",
            line.stored.topic,
            line.stored.partition,
            line.stored.next_offset,
            number(line.log_end),
            number(line.lag),
            line.stored.idle_seconds,
            line.stored.owner
        )?;
    }
    writeln!(out, "generation {generation}, {dead_letters} open dead letters")?;
    Ok(())
}

/// Only what is stored.
pub async fn offsets(settings: &StatusSettings, out: &mut impl Write) -> anyhow::Result<()> {
    let (_, mut connection) = connect(settings).await?;
    let stored = fence::stored(&mut connection).await?;
    if settings.json {
        serde_json::to_writer_pretty(&mut *out, &stored)?;
        writeln!(out)?;
        return Ok(());
    }
    for line in stored {
        writeln!(out, "{}-{} {}", line.topic, line.partition, line.next_offset)?;
    }
    Ok(())
}

async fn connect(settings: &StatusSettings) -> anyhow::Result<(Generation, PgConnection)> {
    let database = Database::new(&settings.database.consumer_database_url)?;
    let generation = database.current_generation().await?;
    Ok((generation, database.connect_to(generation).await?))
}

fn with_log_ends(
    settings: &StatusSettings,
    stored: Vec<StoredOffset>,
) -> anyhow::Result<Vec<Line>> {
    let client: BaseConsumer = source::client(&settings.kafka)?;
    let mut reachable = true;
    let lines = stored.into_iter().map(|stored| {
        let end = reachable
            .then(|| client.fetch_watermarks(&stored.topic, stored.partition, BROKER_TIMEOUT));
        // One broker that does not answer is asked once, not once per partition.
        reachable &= !matches!(&end, Some(Err(error)) if !source::names_no_topic(error));
        let log_end = end.and_then(Result::ok).map(|(_, end)| end);
        let lag = log_end.map(|end| (end - stored.next_offset).max(0));
        Line { stored, log_end, lag }
    });
    Ok(lines.collect())
}
