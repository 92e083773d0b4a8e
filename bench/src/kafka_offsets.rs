//! The consumer without its promise: its decoder, limits of batches and statements, with offsets committed to
//! Kafka alone, after their rows. What a crash leaves between the two is applied twice. It exists to price the
//! fence.
//!
//! What it lacks besides: each batch is new memory, where the consumer uses that of batches applied again; and
//! when no record is at hand it queues whatever there is behind a busy writer, where the consumer waits for 250
//! records, or until the writer is idle. Reading stops while a full batch waits for its writer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use cdc_consumer::apply;
use cdc_consumer::batch::Batch;
use cdc_consumer::source;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};
use sqlx::PgConnection;
use tokio::task::JoinSet;

use crate::batches::Builder;
use crate::library::Library;
use crate::replay::{self, Put};
use crate::servers::Servers;
use crate::target::{Table, Target, Times};
use crate::topic::{self, PARTITIONS};

/// As the consumer commits.
const COMMIT_EVERY: Duration = Duration::from_millis(500);
/// As long as the consumer waits for a record while something is being built.
const BUSY_WAIT: Duration = Duration::from_millis(1);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Partition and next offset.
type Next = (i32, i64);

/// Drains the topic. Returns when the rows became visible.
pub(crate) async fn run(servers: &Servers, target: &Target, table: Table) -> anyhow::Result<Times> {
    let library = Library::new(target, table).await?;
    let statements = Arc::new(library.target());
    let builder = Builder::new(&library)?;
    let (applied, offsets) = mpsc::channel();
    let (mut queues, mut writers) = (Vec::new(), JoinSet::new());
    for number in 0..builder.writers() {
        let connection = replay::connect(&library.database, library.generation, number).await?;
        let (queue, batches) = tokio::sync::mpsc::channel(1);
        queues.push(queue);
        writers.spawn(write(connection, Arc::clone(&statements), batches, applied.clone()));
    }
    drop(applied);
    let group = format!("bench-{:016x}", rand::random::<u64>());
    let prefetch_kib = library.settings.limits.prefetch_kib.get();
    let consumer = topic::fetching(servers, &group, prefetch_kib)?;
    let topic = target.filled.topic.clone();
    let reader = Reader { consumer, topic, builder, queues, offsets, committed_at: Instant::now() };
    let records = target.filled.records;
    let reading = tokio::task::spawn_blocking(move || reader.run(records));
    let work = async {
        reading.await??;
        while let Some(written) = writers.join_next().await {
            written??;
        }
        Ok(())
    };
    let visible = target.wait_until_complete(table, || std::future::ready(Ok(())));
    let (times, ()) = tokio::try_join!(visible, work)?;
    topic::forget_group(servers, &group).await?;
    Ok(times)
}

async fn write(
    mut connection: PgConnection,
    target: Arc<apply::Target>,
    mut batches: tokio::sync::mpsc::Receiver<Batch>,
    applied: Sender<Vec<Next>>,
) -> anyhow::Result<()> {
    while let Some(batch) = batches.recv().await {
        replay::statements(&mut connection, &target, &batch, Put::Sets).await?;
        let next = batch.claims.iter().map(|claim| (claim.partition.number, claim.interval.next));
        if applied.send(next.collect()).is_err() {
            break;
        }
    }
    Ok(())
}

struct Reader {
    consumer: BaseConsumer,
    topic: String,
    builder: Builder,
    queues: Vec<tokio::sync::mpsc::Sender<Batch>>,
    /// What the writers have applied.
    offsets: Receiver<Vec<Next>>,
    committed_at: Instant,
}

impl Reader {
    /// Reads so many records from the beginning, hands them to the writers and commits what these have
    /// applied; at the end, all of it.
    fn run(mut self, records: u64) -> anyhow::Result<()> {
        let mut list = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            list.add_partition_offset(&self.topic, partition, Offset::Beginning)?;
        }
        self.consumer.assign(&list)?;
        let mut left = records;
        while left > 0 {
            left -= self.poll()?;
            self.commit_when_due()?;
        }
        for writer in 0..self.queues.len() {
            let batch = self.builder.next(writer);
            self.queues[writer].blocking_send(batch).ok().context("a writer has ended")?;
        }
        self.queues.clear();
        // Of a partition, the last offset counts.
        let rest = self.offsets.iter().flatten().collect();
        self.commit(rest, CommitMode::Sync)?;
        let committed = self.consumer.committed(REQUEST_TIMEOUT)?;
        let next = |element: &TopicPartitionListElem<'_>| match element.offset() {
            Offset::Offset(offset) => offset.unsigned_abs(),
            _ => 0,
        };
        let sum: u64 = committed.elements().iter().map(next).sum();
        ensure!(sum == records, "{sum} of {records} records are committed to Kafka");
        Ok(())
    }

    /// Takes a record, or gives idle writers what there is. Returns how many records it took.
    fn poll(&mut self) -> anyhow::Result<u64> {
        let consumer = &self.consumer;
        let message = if let Some(message) = consumer.poll(Duration::ZERO) {
            message
        } else {
            for (writer, queue) in self.queues.iter().enumerate() {
                if queue.capacity() > 0 && !self.builder.is_empty(writer) {
                    queue.try_send(self.builder.next(writer))?;
                }
            }
            let Some(message) = consumer.poll(BUSY_WAIT) else { return Ok(0) };
            message
        };
        let writer = self.builder.take(&source::record(&message?))?;
        if self.builder.full(writer) {
            let sent = self.queues[writer].blocking_send(self.builder.next(writer));
            if sent.is_err() {
                bail!("a writer has ended");
            }
        }
        Ok(1)
    }

    fn commit_when_due(&mut self) -> anyhow::Result<()> {
        if self.committed_at.elapsed() < COMMIT_EVERY {
            return Ok(());
        }
        self.committed_at = Instant::now();
        let applied = self.offsets.try_iter().flatten().collect();
        self.commit(applied, CommitMode::Async)
    }

    fn commit(&self, applied: BTreeMap<i32, i64>, mode: CommitMode) -> anyhow::Result<()> {
        if applied.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        for (partition, next) in applied {
            list.add_partition_offset(&self.topic, partition, Offset::Offset(next))?;
        }
        Ok(self.consumer.commit(&list, mode)?)
    }
}
