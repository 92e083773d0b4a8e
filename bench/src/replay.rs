//! SQL alone: the batches the consumer would build, built beforehand, and applied by a client that
//! talks to nobody but `PostgreSQL`.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use cdc_consumer::apply::{self, Attempt, Care};
use cdc_consumer::batch::Batch;
use cdc_consumer::database::{Database, Generation};
use cdc_consumer::fence::{self, Wanted};
use cdc_consumer::fold::Action;
use cdc_consumer::offsets::Partition;
use cdc_consumer::source;
use cdc_consumer::write;
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;

use crate::batches::Builder;
use crate::library::Library;
use crate::servers::Servers;
use crate::target::{Table, Target};
use crate::topic::{self, PARTITIONS};

/// What is left of the consumer's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// The statements that change rows, prepared, in transactions of the same size; nothing else.
    Statements,
    /// Each record by itself, with `insert ... on conflict do update`, as a simple consumer does.
    Upserts,
    /// The whole transaction of a batch: the fence with the offsets, and the look for parked keys.
    Transactions,
}

/// Prepared batches, one list a writer.
pub(crate) struct Replay {
    database: Database,
    generation: Generation,
    target: Arc<apply::Target>,
    lists: Vec<Vec<Batch>>,
    topic: String,
}

impl Replay {
    /// Reads the whole topic and folds it into batches, as the consumer does with a backlog, or into
    /// batches of so many records.
    pub(crate) async fn build(
        servers: &Servers,
        target: &Target,
        table: Table,
        records_max: Option<usize>,
    ) -> anyhow::Result<Self> {
        let mut library = Library::new(target, table).await?;
        if let Some(records_max) = records_max.and_then(NonZeroUsize::new) {
            library.settings.limits.batch_records_max = records_max;
        }
        let topic = target.filled.topic.clone();
        let lists = tokio::task::block_in_place(|| read(servers, &topic, &library))?;
        let target = Arc::new(library.target());
        let Library { database, generation, .. } = library;
        Ok(Self { database, generation, target, lists, topic })
    }

    /// Applies everything, each list through a connection of its own. Returns how long it took.
    pub(crate) async fn run(self, depth: Depth) -> anyhow::Result<Duration> {
        let mut control = self.database.connect_to(self.generation).await?;
        for number in 0..PARTITIONS {
            let partition = Partition { topic: self.topic.clone(), number };
            let wanted = Wanted { partition, log_start: 0, requested: None };
            let progress = fence::acquire(&mut control, &wanted, "bench").await?;
            ensure!(progress.next_offset == 0, "the batches begin with the topic");
        }
        let mut connections = Vec::new();
        for number in 0..self.lists.len() {
            connections.push(match depth {
                Depth::Transactions => self.database.connect_writer(self.generation).await?,
                Depth::Statements | Depth::Upserts => {
                    connect(&self.database, self.generation, number).await?
                }
            });
        }
        let started = Instant::now();
        let mut writers = JoinSet::new();
        for (batches, connection) in self.lists.into_iter().zip(connections) {
            writers.spawn(write(connection, Arc::clone(&self.target), batches, depth));
        }
        while let Some(written) = writers.join_next().await {
            written??;
        }
        Ok(started.elapsed())
    }
}

/// A writer's connection for batches without a fence, as the fence would leave it to them: counters are its
/// own, since writers that share them deadlock.
pub(crate) async fn connect(
    database: &Database,
    generation: Generation,
    writer: usize,
) -> anyhow::Result<PgConnection> {
    let mut connection = database.connect_writer(generation).await?;
    let sql = "select set_config('cdc.slot', $1, false)";
    sqlx::query(sql).bind(writer.to_string()).execute(&mut connection).await?;
    Ok(connection)
}

/// The whole topic as batches, one list a writer.
fn read(servers: &Servers, topic: &str, library: &Library) -> anyhow::Result<Vec<Vec<Batch>>> {
    let mut builder = Builder::new(library)?;
    let mut lists: Vec<Vec<Batch>> = (0..builder.writers()).map(|_| Vec::new()).collect();
    topic::read_all(servers, topic, |message| {
        let writer = builder.take(&source::record(message))?;
        if builder.full(writer) {
            lists[writer].push(builder.next(writer));
        }
        Ok(())
    })?;
    for (writer, list) in lists.iter_mut().enumerate() {
        list.push(builder.next(writer));
    }
    let letters = lists.iter().flatten().map(|batch| batch.refused.len()).sum::<usize>();
    ensure!(letters == 0, "{letters} records could not be decoded");
    Ok(lists)
}

async fn write(
    mut connection: PgConnection,
    target: Arc<apply::Target>,
    batches: Vec<Batch>,
    depth: Depth,
) -> anyhow::Result<()> {
    for batch in &batches {
        match depth {
            Depth::Transactions => {
                match apply::apply(&mut connection, &target, batch, Care::Sets).await? {
                    Attempt::Applied(_) => {}
                    Attempt::Fenced => bail!("the fence held a prepared batch back"),
                }
            }
            Depth::Statements => {
                statements(&mut connection, &target, batch, Put::Sets).await?;
            }
            Depth::Upserts => {
                statements(&mut connection, &target, batch, Put::Upsert).await?;
            }
        }
    }
    Ok(())
}

/// How rows that are not deleted are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// As the consumer does.
    Sets,
    /// By `insert ... on conflict do update`.
    Upsert,
}

/// The rows of a batch: deletes, then upserts, as the consumer orders them.
pub(crate) async fn statements(
    connection: &mut PgConnection,
    target: &apply::Target,
    batch: &Batch,
    put: Put,
) -> anyhow::Result<()> {
    let mut tx = connection.begin().await?;
    for (view, statements) in batch.views.iter().zip(&target.statements) {
        let of = |action| {
            let entries = view.entries().iter().filter(move |entry| entry.action == action);
            entries.copied().collect::<Vec<_>>()
        };
        let (deletes, upserts) = (of(Action::Delete), of(Action::Upsert));
        ensure!(
            deletes.len() + upserts.len() == view.entries().len(),
            "a filled topic holds neither lone tombstones nor values that were not sent"
        );
        if !deletes.is_empty() {
            let keys: Vec<usize> = (0..view.key_width()).collect();
            let query = write::bind(view, &statements.delete, &keys, &deletes);
            query.fetch_one(&mut *tx).await?;
        }
        if !upserts.is_empty() {
            match put {
                Put::Sets => {
                    let min = target.copy_rows_min;
                    write::put(&mut tx, statements, view, &upserts, min).await?;
                }
                Put::Upsert => {
                    let columns: Vec<usize> = (0..view.rows().width()).collect();
                    let query = write::bind(view, &statements.upsert, &columns, &upserts);
                    query.execute(&mut *tx).await?;
                }
            }
        }
    }
    tx.commit().await?;
    Ok(())
}
