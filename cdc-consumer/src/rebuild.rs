//! `cdc-consumer rebuild`: builds the views anew beside those that readers see, and puts them in their place.
//!
//! ```text
//! make the generation -> fill it from the topics -> caught up with the logs
//!   -> hold the old one where it is -> caught up with that -> publish, in one transaction
//! ```
//!
//! The running consumer goes on with the old generation, and moves to the new one when its fence tells it.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use migrate::Generation;
use secrecy::ExposeSecret;
use serde::Serialize;
use service::health::Readiness;
use sqlx::PgConnection;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::catch_up::{self, Look, Observer, Offsets, behind, reached};
use crate::cli::RebuildSettings;
use crate::config::{KafkaSettings, RunSettings};
use crate::database::{Database, Place, schema_of};
use crate::kafka_admin;
use crate::lost::{self, Lost};
use crate::pipeline::{self, SessionError};
use crate::swept;
use crate::view::ViewSpec;

/// Pause between two looks at how far the new views are.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Caught up: everything that was in the logs a moment ago is applied.
const MOMENT: Duration = Duration::from_secs(2);
/// How long changes of the old views may be held back for the rest.
const HOLD_MAX: Duration = Duration::from_secs(5);
/// Between two lines about it when nobody sees a bar.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// What was done.
#[derive(Debug, Serialize)]
struct Report {
    generation: i32,
    before: i32,
    views: Vec<Counted>,
}

/// A view in the new generation, and in the one before if it had it.
#[derive(Debug, Serialize)]
struct Counted {
    view: String,
    rows: i64,
    rows_before: Option<i64>,
}

/// Builds a generation and publishes it. On error, and when told to stop, readers see what they saw.
pub async fn rebuild(
    settings: &RebuildSettings,
    shutdown: &CancellationToken,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let specs = pipeline::declaration(&settings.views.views_file)?;
    let admin = settings.admin_database_url.expose_secret();
    let (old, new) = choose(admin, settings.generation).await?;
    migrate::views(admin, new).await?;
    let place = Place { generation: new.number(), published: old.number() };
    let kafka = group_of(&settings.kafka, new);
    let database = Database::new(&settings.database.consumer_database_url)?;
    let topics: Vec<String> = specs.iter().map(|spec| spec.topic.clone()).collect();
    let mut observer = Observer::new(&kafka, database.clone(), place, topics.clone())?;
    observer.check_logs(settings.from_cut_log, settings.limits.deleted_keys_kept).await?;
    lost::all_declared(&mut database.connect().await?, place, &specs).await?;
    tracing::info!(generation = %new, before = %old, "building the views");
    let compared = if settings.accepted.with_missing_rows { &[] } else { &*specs };
    let mut builder = Builder::start(run_settings(settings, &kafka), &specs, place);
    let filled = tokio::select! {
        filled = async {
            fill(&mut observer, place).await?;
            Lost::look(&database, place, compared).await
        } => filled,
        error = builder.failure() => Err(error),
        () = shutdown.cancelled() => Err(anyhow!(
            "stopped before the views were built; readers see generation {old}, and the same command \
             goes on with generation {new}"
        )),
    };
    let published = match filled {
        Ok(mut lost) => {
            migrate::publish_after(admin, new, async |tx| {
                let held = catch_up::hold(tx, place, &topics).await?;
                reach(&mut observer, &held).await?;
                builder.stop().await?;
                swept::remove(&database, place, &specs).await?;
                check_dead_letters(settings, tx, place).await?;
                lost.check().await?;
                catch_up::leave(tx, place).await
            })
            .await
        }
        Err(error) => Err(error),
    };
    // Did the transaction fail, it is still at work.
    let stopped = builder.stop().await;
    published.and(stopped)?;
    if let Err(error) = kafka_admin::forget_group(&kafka).await {
        tracing::debug!(%error, "the group stays behind");
    }
    let report = report(&database, place, &specs).await?;
    print(settings.json, &report, out)
}

/// The generation that readers see, and the one to build.
async fn choose(
    admin: &str,
    wanted: Option<Generation>,
) -> anyhow::Result<(Generation, Generation)> {
    let current = migrate::current_generation(admin).await?;
    let current = current.context("there are no views yet; run `migrate views` first")?;
    let newest = migrate::generations(admin).await?.into_iter().next_back().unwrap_or(current);
    let next = Generation::new(current.number() + 1).context("the generations are used up")?;
    let new = wanted.unwrap_or_else(|| next.max(newest));
    ensure!(new != current, "generation {current} is the one readers see; build another");
    Ok((current, new))
}

/// A group of its own: the members of the running one keep their partitions.
fn group_of(kafka: &KafkaSettings, generation: Generation) -> KafkaSettings {
    let consumer_group = format!("{}-rebuild-{generation}", kafka.consumer_group);
    KafkaSettings { consumer_group, consumer_instance: None, ..kafka.clone() }
}

fn run_settings(settings: &RebuildSettings, kafka: &KafkaSettings) -> RunSettings {
    let RebuildSettings { views, registry, database, limits, .. } = settings.clone();
    // It listens nowhere.
    let consumer_listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    RunSettings { consumer_listen, views, kafka: kafka.clone(), registry, database, limits }
}

/// A consumer that fills the new generation.
struct Builder {
    shutdown: CancellationToken,
    task: Option<JoinHandle<Result<(), SessionError>>>,
}

impl Builder {
    fn start(settings: RunSettings, specs: &[ViewSpec], place: Place) -> Self {
        let board = Board::new(specs.iter().map(|spec| spec.table.clone()), Readiness::new());
        let (shutdown, specs) = (CancellationToken::new(), specs.to_vec());
        let token = shutdown.clone();
        let task = tokio::spawn(async move {
            pipeline::run(&settings, &specs, Some(place), &board, &token).await
        });
        Self { shutdown, task: Some(task) }
    }

    /// Waits until it gives up by itself.
    async fn failure(&mut self) -> anyhow::Error {
        match self.end().await {
            Err(error) => error,
            Ok(()) => anyhow!("the consumer that builds the views ended"),
        }
    }

    /// Ends it in order, after what it read is applied.
    async fn stop(&mut self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        self.end().await
    }

    async fn end(&mut self) -> anyhow::Result<()> {
        let Some(task) = &mut self.task else { return Ok(()) };
        let ended = task.await;
        self.task = None;
        Ok(ended.context("the consumer that builds the views broke down")??)
    }
}

/// Returns when the new views have caught up with the logs. What cannot be asked now is asked again.
async fn fill(observer: &mut Observer, place: Place) -> anyhow::Result<()> {
    let mut progress = Progress::new();
    let mut since = Instant::now();
    let mut wanted: Option<Offsets> = None;
    loop {
        match observer.look().await {
            Ok(look) => {
                catch_up::replaces(place, look.published)?;
                progress.show(&look);
                let target = wanted.get_or_insert_with(|| {
                    since = Instant::now();
                    look.ends.clone()
                });
                if reached(&look.built, target) && !look.unswept {
                    if since.elapsed() < MOMENT {
                        progress.bar.finish_and_clear();
                        return Ok(());
                    }
                    wanted = None;
                }
            }
            Err(error) => progress.say(service::telemetry::chain(error.as_ref()).to_string()),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A bar, or a line now and then where nobody sees one.
struct Progress {
    bar: ProgressBar,
    said: Instant,
}

impl Progress {
    fn new() -> Self {
        let style = "{elapsed_precise} {bar:30} {human_pos}/{human_len} records  {wide_msg}";
        let style = ProgressStyle::with_template(style).expect("the template is well formed");
        Self { bar: ProgressBar::new(0).with_style(style), said: Instant::now() }
    }

    fn show(&mut self, look: &Look) {
        let count = |offsets: &Offsets| offsets.values().map(|next| next.unsigned_abs()).sum();
        let (done, all): (u64, u64) = (count(&look.built), count(&look.ends));
        self.bar.set_length(all);
        self.bar.set_position(done.min(all));
        let behind = behind(&look.built, &look.ends);
        self.say(match behind.first() {
            Some((partition, count)) => format!("{partition} is {count} behind"),
            None if look.unswept => "sweeping rows that a snapshot did not mention".to_owned(),
            None => String::new(),
        });
    }

    fn say(&mut self, message: String) {
        if self.bar.is_hidden() && self.said.elapsed() >= SAY_EVERY {
            self.said = Instant::now();
            let (done, all) = (self.bar.position(), self.bar.length());
            tracing::info!(done, all, message, "building the views");
        }
        self.bar.set_message(message);
    }
}

/// Waits until the new views have caught up with the old ones, whose offsets are held.
async fn reach(observer: &mut Observer, held: &Offsets) -> anyhow::Result<()> {
    let deadline = Instant::now() + HOLD_MAX;
    while !reached(&observer.built().await?, held) {
        if Instant::now() > deadline {
            bail!(
                "the new views did not catch up with the old ones within {HOLD_MAX:?}; nothing was \
                 changed, say it again"
            );
        }
        tokio::time::sleep(LOOK_EVERY / 10).await;
    }
    Ok(())
}

async fn check_dead_letters(
    settings: &RebuildSettings,
    tx: &mut PgConnection,
    place: Place,
) -> anyhow::Result<()> {
    let more = catch_up::more_dead_letters(tx, place).await?;
    ensure!(
        more == 0 || settings.accepted.with_dead_letters,
        "{more} records are kept aside in the new views and not in the old ones (select * from \
         {}.cdc_dead_letter); readers go on with the old views. Mend the cause and drop the generation \
         (migrate drop --generation {}), or publish it as it is with --with-dead-letters",
        schema_of(place.generation),
        place.generation
    );
    Ok(())
}

async fn report(database: &Database, place: Place, specs: &[ViewSpec]) -> anyhow::Result<Report> {
    let mut connection = database.connect().await?;
    let mut views = Vec::with_capacity(specs.len());
    for spec in specs {
        let rows = count(&mut connection, place.generation, &spec.table).await;
        let before = count(&mut connection, place.published, &spec.table).await;
        let rows = rows.with_context(|| format!("could not count the rows of {}", spec.table))?;
        views.push(Counted { view: spec.table.clone(), rows, rows_before: before.ok() });
    }
    Ok(Report { generation: place.generation, before: place.published, views })
}

async fn count(db: &mut PgConnection, generation: i32, table: &str) -> Result<i64, sqlx::Error> {
    let table = format!("{}.{}", schema_of(generation), crate::sql::quote(table));
    let sql = format!("select count(*) from {table}");
    sqlx::query_scalar(&sql).fetch_one(db).await
}

fn print(json: bool, report: &Report, out: &mut impl Write) -> anyhow::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, report)?;
        return Ok(writeln!(out)?);
    }
    let Report { generation, before, views } = report;
    writeln!(out, "readers see generation {generation} now, before it was {before}")?;
    writeln!(out, "{:<32} {:>12} {:>12}", "VIEW", "ROWS", "BEFORE")?;
    for Counted { view, rows, rows_before } in views {
        let before = rows_before.map_or("-".to_owned(), |rows| rows.to_string());
        writeln!(out, "{view:<32} {rows:>12} {before:>12}")?;
    }
    writeln!(
        out,
        "generation {before} stays as it was: `cdc-consumer rebuild --generation {before}` brings it up \
         to date and back, `migrate drop --generation {before}` removes it"
    )?;
    Ok(())
}
