//! From settings to sessions: reads the declaration, begins a session, and decides what follows its end.
//!
//! A *session* ([`crate::session`]) is one membership in the consumer group. Whatever it cannot go on
//! with ends it; the next one asks the database where to continue. Nothing survives a session in memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::apply::{ApplyError, Target};
use crate::assignment::TABLES_MAX;
use crate::board::Board;
use crate::catalog::{CatalogError, Table};
use crate::config::RunSettings;
use crate::database::{Database, DatabaseError, Generation, Place, answered, schema_of};
use crate::decode::{self, DecodeError, View};
use crate::fence::FenceError;
use crate::group::Group;
use crate::offsets::{Anchor, Partition};
use crate::open_letters;
use crate::prune;
use crate::recovery::{self, Backoff, Recovery};
use crate::refetch::RecordFetcher;
use crate::registry::{Registry, RegistryError};
use crate::session::{Parts, Session};
use crate::source::{self, SourceError};
use crate::sweep::Sweeper;
use crate::view::ViewSpec;
use crate::writer::{UNDER_WAY_MAX, Writer, WriterLink};

/// A session that lasted this long had recovered from what ended the one before.
const SOUND_AFTER: Duration = Duration::from_secs(30);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Fence(#[from] FenceError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Apply(ApplyError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(
        "{partition}: the next record to apply is {next_offset}, but the broker's first is {log_start}: \
         {missing} records are gone (retention); rebuild the view from a new snapshot, or accept the \
         hole with `cdc-consumer offsets reset --topic {topic} --to earliest --execute`",
        missing = log_start - next_offset, topic = partition.topic
    )]
    Gone { partition: Partition, next_offset: i64, log_start: i64 },
    #[error(
        "{partition}: the next record to apply is {next_offset}, but the broker's log ends at {log_end}: \
         the topic was recreated or its log cut; rebuild the view from a new snapshot, or begin the new \
         log with `cdc-consumer offsets reset --topic {} --new-log --execute`",
        partition.topic
    )]
    Ahead { partition: Partition, next_offset: i64, log_end: i64 },
    #[error(
        "{partition}: the log has another record at offset {} than the one read there before: the topic \
         was recreated, or its log cut and written anew; rebuild the view from a new snapshot, or begin \
         the new log with `cdc-consumer offsets reset --topic {} --new-log --execute`",
        anchor.offset, partition.topic
    )]
    OtherLog { partition: Partition, anchor: Anchor },
    #[error(
        "topic {topic} was deleted and made again while it was read; rebuild the view from a new snapshot, \
         or begin the new log with `cdc-consumer offsets reset --topic {topic} --new-log --execute`"
    )]
    Recreated { topic: String },
    #[error(
        "nothing is stored of topic {topic}, but {table} shows changes, of another topic or of offsets that \
         were removed, and positions of two topics do not compare; build the views from it with \
         `cdc-consumer rebuild` (--generation with a number that none has yet, if one is left from before)"
    )]
    AnotherTopic { topic: String, table: String },
    #[error("the broker no longer has the record that a partition was to be read from")]
    Hole(#[source] rdkafka::error::KafkaError),
    #[error(
        "the fence held a batch back: somebody else owns a partition, another generation was published, or the \
         database was rewound"
    )]
    Fenced,
    #[error("a batch did not finish before its partitions had to be given up")]
    WriterStuck,
    #[error("a migration changed table {0}: reading the catalogue again")]
    TableChanged(String),
    #[error("a writer ended unexpectedly")]
    WriterDied,
    #[error("told to stop while the database was waited for")]
    Stopped,
}

/// Runs sessions until shutdown. Returns an error only for what waiting cannot mend.
///
/// Changes are applied at `place`, or in whichever generation is published.
pub async fn run(
    settings: &RunSettings,
    specs: &[ViewSpec],
    place: Option<Place>,
    board: &Board,
    shutdown: &CancellationToken,
) -> Result<(), SessionError> {
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        // A session leaves in order by itself; only what comes before it is cut short.
        let prepared = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            prepared = prepare(settings, specs, place, board, shutdown) => prepared,
        };
        let outcome = match prepared {
            Ok(prepared) => prepared.run().await,
            Err(error) => Err(error),
        };
        if started.elapsed() > SOUND_AFTER {
            backoff = Backoff::default();
        }
        match outcome {
            Ok(()) => return Ok(()),
            Err(error) => match recovery::of_session(&error) {
                Recovery::Halt | Recovery::Quarantine => return Err(error),
                Recovery::Retry | Recovery::Restart => {
                    let error = service::telemetry::chain(&error).to_string();
                    if backoff.fresh() {
                        tracing::warn!(error, "cannot go on, trying again");
                    } else {
                        tracing::debug!(error, "still cannot go on");
                    }
                    board.readiness.block("session", error);
                }
            },
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(backoff.pause()) => {}
        }
    }
}

/// A session about to begin, with what accompanies it.
struct Prepared {
    session: Session,
    /// Pruning, sweeping and counting, for as long as the session lasts.
    housekeeping: BoxFuture<'static, ()>,
}

impl Prepared {
    /// From joining the group to leaving it.
    async fn run(self) -> Result<(), SessionError> {
        let Self { session, housekeeping } = self;
        // librdkafka's calls block, so a session has a thread of its own.
        let session = tokio::task::spawn_blocking(move || session.run());
        tokio::select! {
            outcome = session => outcome.unwrap_or(Err(SessionError::WriterDied)),
            () = housekeeping => Err(SessionError::WriterDied),
        }
    }
}

/// Reads the catalogue and builds a session's parts.
async fn prepare(
    settings: &RunSettings,
    specs: &[ViewSpec],
    place: Option<Place>,
    board: &Board,
    shutdown: &CancellationToken,
) -> Result<Prepared, SessionError> {
    let database = Database::new(&settings.database.consumer_database_url)?;
    let registry = Registry::new(&settings.registry)?;
    let place = match place {
        Some(place) => place,
        None => Place::published(answered(TABLES_MAX, database.current_generation()).await?),
    };
    let Place { generation, .. } = place;
    let views = answered(TABLES_MAX, views(&database, generation, specs)).await?;
    let views = Arc::new(views);
    board.begin(generation);

    let dead_letters_max = i64::from(settings.limits.dead_letters_max);
    let fetcher = RecordFetcher::new(&settings.kafka);
    let copy_rows_min = settings.limits.copy_rows_min.get();
    let target = Target::new(&views, place, dead_letters_max, copy_rows_min, fetcher);
    let target = Arc::new(target);
    let (report, reports) = mpsc::channel();
    let writers = (0..settings.limits.writers.get()).map(|number| {
        let (sender, receiver) = tokio::sync::mpsc::channel(UNDER_WAY_MAX);
        let writer = Writer {
            number,
            database: database.clone(),
            target: Arc::clone(&target),
            board: board.clone(),
            reports: report.clone(),
        };
        WriterLink::new(sender, tokio::spawn(writer.run(receiver)), &views)
    });
    let writers = writers.collect();
    let consumer = source::consumer(
        &settings.kafka,
        settings.limits.prefetch_kib.get(),
        &decode::topics(&views),
        Group::new(board.clone()),
    )?;
    let pruning = prune::run(
        database.clone(),
        generation,
        Arc::clone(&views),
        settings.limits.deleted_keys_kept,
    );
    let counting = open_letters::run(database.clone(), generation, Arc::clone(&views));
    let sweeper = Sweeper {
        database: database.clone(),
        generation,
        views: Arc::clone(&views),
        kafka: settings.kafka.clone(),
    };
    let parts = Parts {
        consumer,
        views,
        database,
        place,
        registry,
        writers,
        reports,
        board: board.clone(),
        shutdown: shutdown.clone(),
    };
    let session = Session::new(settings, parts);
    let housekeeping = async move {
        tokio::join!(pruning, counting, sweeper.run());
    };
    Ok(Prepared { session, housekeeping: housekeeping.boxed() })
}

/// The declared views with their tables as the catalogue has them now.
pub async fn views(
    database: &Database,
    generation: Generation,
    specs: &[ViewSpec],
) -> Result<Vec<View>, SessionError> {
    let mut connection = database.connect_to(generation).await?;
    let mut views = Vec::with_capacity(specs.len());
    for spec in specs {
        let table = Table::read(&mut connection, &schema_of(generation), &spec.table).await?;
        table.check_mapping(spec)?;
        views.push(View { spec: spec.clone(), table });
    }
    Ok(views)
}

/// Why the declaration could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DeclarationError {
    #[error("could not read the views file {0}")]
    Read(PathBuf, #[source] std::io::Error),
    #[error("the views file {0} is not valid")]
    Parse(PathBuf, #[source] crate::view::ViewsError),
}

/// Reads the views file.
pub fn declaration(path: &std::path::Path) -> Result<Vec<ViewSpec>, DeclarationError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| DeclarationError::Read(path.to_owned(), error))?;
    crate::view::parse(&text).map_err(|error| DeclarationError::Parse(path.to_owned(), error))
}
