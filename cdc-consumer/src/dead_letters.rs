//! `cdc-consumer dead-letters`: records kept aside, and what to do about them.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use sqlx::{Connection, FromRow, PgConnection};

use crate::apply::{self, Attempt, Care, Target};
use crate::batch::Batch;
use crate::cli::{DeadLetterChoice, DeadLetterSettings, DeadLettersCommand, RetrySettings};
use crate::config::DatabaseSettings;
use crate::database::{self, Database, Generation, Place};
use crate::decode::{Decoded, Decoder, Record, View};
use crate::fold::ViewBatch;
use crate::offsets::{ChunkRow, Lineage, Partition, Progress};
use crate::pipeline;
use crate::refetch::RecordFetcher;
use crate::registry::Registry;
use crate::sweep_sql;

#[derive(Debug, Serialize, FromRow)]
struct DeadLetter {
    id: i64,
    view_name: String,
    topic: String,
    partition: i32,
    record_offset: i64,
    reason: String,
    error: String,
    schema_id: Option<i64>,
    /// When it was kept aside, as PostgreSQL writes it.
    quarantined_at: String,
    #[serde(skip)]
    #[sqlx(default)]
    chunk_lsn: Option<i64>,
    #[serde(skip)]
    #[sqlx(default)]
    key_text: Option<String>,
    #[serde(skip)]
    #[sqlx(default)]
    record_key: Option<Vec<u8>>,
    #[serde(skip)]
    #[sqlx(default)]
    record_value: Option<Vec<u8>>,
}

impl DeadLetter {
    /// The broker still had it when it was kept aside.
    fn has_record(&self) -> bool {
        self.record_key.is_some() || self.record_value.is_some()
    }

    /// Whether the broker no longer had it, and one of these letters of its key is a newer state of the row.
    fn is_replaced(&self, letters: &[Self]) -> bool {
        let newer = |other: &Self| {
            other.partition == self.partition && other.record_offset > self.record_offset
        };
        !self.has_record() && letters.iter().any(|other| newer(other) && other.has_record())
    }
}

/// What a [`DeadLetter`] is read from,
const COLUMNS: &str = "
    id, view_name, topic, partition, record_offset, reason, error, schema_id,
    quarantined_at::text as quarantined_at";
/// and its record, where somebody asks for it: all of them together may be large.
const RECORD: &str = "chunk_lsn, key_text, record_key, record_value";

/// Letters of one key; see [`of_key`].
const OF_KEY: &str = "id = $1 or (view_name = $2 and key_text = $3)";

/// Runs one of the subcommands.
pub async fn execute(command: &DeadLettersCommand, out: &mut impl Write) -> anyhow::Result<()> {
    match command {
        DeadLettersCommand::List(settings) => list(settings, out).await,
        DeadLettersCommand::Show(choice) => show(choice, out).await,
        DeadLettersCommand::Retry(settings) => retry(settings, out).await,
        DeadLettersCommand::Drop(choice) => drop_one(choice, out).await,
    }
}

async fn list(settings: &DeadLetterSettings, out: &mut impl Write) -> anyhow::Result<()> {
    let (_, _, mut connection) = connect(&settings.database).await?;
    let sql = format!("select {COLUMNS} from cdc_dead_letter order by id");
    let letters: Vec<DeadLetter> = sqlx::query_as(&sql)
        .fetch_all(&mut connection)
        .await
        .context("could not read the dead letters")?;
    if settings.json {
        serde_json::to_writer_pretty(&mut *out, &letters)?;
        writeln!(out)?;
        return Ok(());
    }
    for letter in &letters {
        writeln!(
            out,
            "{:>6}  {:<8}  {:<16}  {}-{} @ {}  {}",
            letter.id,
            letter.reason,
            letter.view_name,
            letter.topic,
            letter.partition,
            letter.record_offset,
            letter.error
        )?;
    }
    writeln!(out, "{} open dead letters", letters.len())?;
    Ok(())
}

async fn show(choice: &DeadLetterChoice, out: &mut impl Write) -> anyhow::Result<()> {
    let (_, _, mut connection) = connect(&choice.settings.database).await?;
    let letter = find(&mut connection, choice.id).await?;
    if choice.settings.json {
        serde_json::to_writer_pretty(&mut *out, &letter)?;
        writeln!(out)?;
        return Ok(());
    }
    writeln!(out, "dead letter   {} ({})", letter.id, letter.reason)?;
    writeln!(out, "view          {}", letter.view_name)?;
    writeln!(
        out,
        "record        {}-{} @ {}",
        letter.topic, letter.partition, letter.record_offset
    )?;
    writeln!(out, "key           {}", letter.key_text.as_deref().unwrap_or("could not be read"))?;
    writeln!(out, "kept aside    {}", letter.quarantined_at)?;
    writeln!(out, "error         {}", letter.error)?;
    for (name, bytes) in [("key bytes", &letter.record_key), ("value bytes", &letter.record_value)]
    {
        let bytes = bytes.as_deref().map_or("none".to_owned(), hex);
        writeln!(out, "{name:<13} {bytes}")?;
    }
    Ok(())
}

async fn drop_one(choice: &DeadLetterChoice, out: &mut impl Write) -> anyhow::Result<()> {
    let (_, generation, mut connection) = connect(&choice.settings.database).await?;
    let mut tx = connection.begin().await?;
    let letter = find(&mut tx, choice.id).await?;
    let dropped = take_with_followers(&mut tx, generation, &letter).await?;
    tx.commit().await?;
    writeln!(out, "dropped {} dead letters of this key", dropped.len())?;
    Ok(())
}

/// Applies the letters of one key in one transaction that also deletes them: either the row shows what
/// they say, or they are still there.
async fn retry(settings: &RetrySettings, out: &mut impl Write) -> anyhow::Result<()> {
    let (database, generation, mut connection) = connect(&settings.database).await?;
    let specs = pipeline::declaration(&settings.views.views_file)?;
    let views = Arc::new(pipeline::views(&database, generation, &specs).await?);
    let registry = Registry::new(&settings.registry)?;
    let fetcher = RecordFetcher::new(&settings.kafka);
    let place = Place::published(generation);
    let target = Target::new(&views, place, i64::MAX, usize::MAX, fetcher);

    let shapes = || views.iter().map(View::shape);
    let mut decoder = Decoder::new(Arc::clone(&views));
    // Nobody asks the registry while the batches of the topic wait.
    let letter = find(&mut connection, settings.id).await?;
    let sql = format!("select {COLUMNS}, {RECORD} from cdc_dead_letter where {OF_KEY}");
    let letters = of_key(&mut connection, sql, &letter).await;
    let letters = letters.context("could not read the dead letters")?;
    learn_schemas(&letters, &registry, &mut decoder, &mut Batch::new(shapes())).await?;

    let mut tx = connection.begin().await?;
    let letters = take_with_followers(&mut tx, generation, &letter).await?;
    let mut batch = Batch::new(shapes());
    for letter in letters.iter().filter(|letter| !letter.is_replaced(&letters)) {
        let mut progress = repetition(letter);
        progress.lineage = lineage(&mut tx, letter).await?;
        if letter.record_value.is_none() {
            // A tombstone met again removes only what it removed before. This one has removed nothing yet:
            // it is bounded by what the partition has read.
            progress.seen_offset = 0;
        }
        if let Decoded::NeedsSchema(id) = decode(letter, &mut decoder, &mut progress, &mut batch)? {
            bail!("a letter with another schema, {id}, came for this key meanwhile, try again");
        }
    }
    if let Some(refused) = batch.refused.first() {
        bail!(
            "record {} @ {} is still refused: {}",
            refused.partition,
            refused.offset,
            refused.error
        );
    }
    let lost = letters.iter().find(|letter| letter.is_replaced(&letters));
    if let Some(lost) = lost.filter(|_| batch.views.iter().any(ViewBatch::keeps_values)) {
        bail!(
            "dead letter {} has no record, and the newer ones of its key lack a long value (TOAST) that it may \
             have had; write the row again at the source, then try again",
            lost.id
        );
    }
    begin_sweep_anew(&mut tx, &letters).await?;
    // These records were counted when they were kept aside; the offsets stay where they are.
    batch.claims.clear();
    let attempt = apply::apply(&mut tx, &target, &batch, Care::Sets).await;
    match attempt.context("could not apply the dead letters of this key, which stay")? {
        Attempt::Applied(_) if database.current_generation().await? == generation => {
            tx.commit().await?;
        }
        Attempt::Applied(_) | Attempt::Fenced => {
            bail!("the current generation changed meanwhile, try again")
        }
    }
    writeln!(out, "applied {} dead letters of this key", letters.len())?;
    Ok(())
}

/// A record that was seen before: it keeps the source epoch it had.
fn repetition(letter: &DeadLetter) -> Progress {
    let mut progress = Progress::new(letter.record_offset, 0);
    progress.seen_offset = i64::MAX;
    progress
}

/// Has the decoder know all schemas of the letters; what it makes of them goes into `trial`.
async fn learn_schemas(
    letters: &[DeadLetter],
    registry: &Registry,
    decoder: &mut Decoder,
    trial: &mut Batch,
) -> anyhow::Result<()> {
    for letter in letters.iter().filter(|letter| letter.has_record()) {
        let mut progress = repetition(letter);
        while let Decoded::NeedsSchema(id) = decode(letter, decoder, &mut progress, trial)? {
            decoder.learn(id, registry.schema(id).await?);
        }
    }
    Ok(())
}

fn decode(
    letter: &DeadLetter,
    decoder: &mut Decoder,
    progress: &mut Progress,
    batch: &mut Batch,
) -> anyhow::Result<Decoded> {
    if !letter.has_record() {
        bail!(
            "dead letter {} has no record: it was compacted away, for a newer one of its key, or removed by \
             retention; try again when a newer one is kept aside, too, or write the row again at the source, \
             then drop this one",
            letter.id
        );
    }
    let partition = Partition { topic: letter.topic.clone(), number: letter.partition };
    let record = Record {
        topic: &letter.topic,
        partition: letter.partition,
        offset: letter.record_offset,
        timestamp_millis: -1,
        key: letter.record_key.as_deref(),
        value: letter.record_value.as_deref(),
        headers: &false,
    };
    Ok(decoder.decode(&record, &partition, progress, batch)?)
}

/// What the partition knows of the source's lives today, and what was overtaken when the record was read.
async fn lineage(connection: &mut PgConnection, letter: &DeadLetter) -> anyhow::Result<Lineage> {
    let stored: Option<(String, String, i64)> = sqlx::query_as(
        "select source_epochs::text, source_snapshots::text, source_lsn_max from cdc_offset
         where topic = $1 and partition = $2",
    )
    .bind(&letter.topic)
    .bind(letter.partition)
    .fetch_optional(connection)
    .await?;
    let Some((starts, snapshots, lsn_max)) = stored else { return Ok(Lineage::default()) };
    Ok(Lineage {
        starts: serde_json::from_str(&starts)?,
        snapshots: serde_json::from_str(&snapshots)?,
        lsn_max,
        chunk: letter.chunk_lsn.map(|lsn| ChunkRow { offset: -1, lsn }),
    })
}

/// Letters that all come before the newest snapshot bring back a row that it did not mention. It was swept by
/// then, so that goes on anew.
async fn begin_sweep_anew(
    connection: &mut PgConnection,
    letters: &[DeadLetter],
) -> anyhow::Result<()> {
    let Some(DeadLetter { topic, view_name, .. }) = letters.first() else { return Ok(()) };
    let sql = format!(
        "update cdc_snapshot n set log_ends = null, swept_at = null
         where n.topic = $1 and n.view_name = $2 and not exists (
             select from (select $1 as topic, *
                 from unnest($3::int[], $4::bigint[]) as u (partition, record_offset)) as l
             {})",
        sweep_sql::behind("n.source_lsn")
    );
    sqlx::query(&sql)
        .bind(topic)
        .bind(view_name)
        .bind(letters.iter().map(|letter| letter.partition).collect::<Vec<_>>())
        .bind(letters.iter().map(|letter| letter.record_offset).collect::<Vec<_>>())
        .execute(connection)
        .await
        .context("could not have the view swept again")?;
    Ok(())
}

async fn find(connection: &mut PgConnection, id: i64) -> anyhow::Result<DeadLetter> {
    let sql = format!("select {COLUMNS}, {RECORD} from cdc_dead_letter where id = $1");
    let letter = sqlx::query_as(&sql)
        .bind(id)
        .fetch_optional(connection)
        .await
        .context("could not read the dead letters")?;
    letter.with_context(|| gone(id))
}

fn gone(id: i64) -> String {
    format!("there is no open dead letter {id}; `cdc-consumer dead-letters list` shows them")
}

/// Runs a statement about a letter and all others of its key.
async fn of_key(
    connection: &mut PgConnection,
    sql: String,
    letter: &DeadLetter,
) -> sqlx::Result<Vec<DeadLetter>> {
    sqlx::query_as(&sql)
        .bind(letter.id)
        .bind(&letter.view_name)
        .bind(&letter.key_text)
        .fetch_all(connection)
        .await
}

/// Deletes a letter with all of its key and returns them in the order of their records. Waits for the batches
/// of the topic that are under way, and keeps others out until the transaction ends: one that still sees the
/// letters would park a change behind them that nobody takes along.
async fn take_with_followers(
    connection: &mut PgConnection,
    generation: Generation,
    letter: &DeadLetter,
) -> anyhow::Result<Vec<DeadLetter>> {
    let batches = "select from cdc_offset where topic = $1 order by partition for update";
    sqlx::query(batches)
        .bind(&letter.topic)
        .execute(&mut *connection)
        .await
        .context("could not wait for the batches of the topic")?;
    // A rebuild holds these offsets until it has published its own.
    let published = database::published(&mut *connection).await?;
    ensure!(
        published == generation,
        "readers see generation {published} by now, it was {generation}: the letters of that one have numbers of \
         their own (`cdc-consumer dead-letters list`). Nothing was changed"
    );
    // Where partitions were added since, offsets of two of them tell no order: the key came to that one first
    // which had the first letter.
    let sql = format!(
        "with taken as (delete from cdc_dead_letter where {OF_KEY} returning {COLUMNS}, {RECORD})
         select * from taken
         order by min(id) over (partition by taken.partition), partition, record_offset"
    );
    let letters =
        of_key(connection, sql, letter).await.context("could not take the dead letters")?;
    // Somebody else may have taken them meanwhile.
    ensure!(!letters.is_empty(), gone(letter.id));
    Ok(letters)
}

async fn connect(
    settings: &DatabaseSettings,
) -> anyhow::Result<(Database, Generation, PgConnection)> {
    let database = Database::new(&settings.consumer_database_url)?;
    let generation = database.current_generation().await?;
    let connection = database.connect_to(generation).await?;
    Ok((database, generation, connection))
}

/// As PostgreSQL writes `bytea`.
fn hex(bytes: &[u8]) -> String {
    let mut out = String::new();
    crate::text::write_bytes(bytes, &mut out);
    out
}
