//! Records decoded and folded into batches as the consumer does it, for programs that apply them in
//! another way.

use std::sync::Arc;

use anyhow::Context;
use cdc_consumer::batch::Batch;
use cdc_consumer::decode::{Decoded, Decoder, Record};
use cdc_consumer::offsets::{Partition, Progress};
use cdc_consumer::registry::Registry;
use tokio::runtime::Handle;

use crate::library::Library;
use crate::topic::PARTITIONS;

/// Batches under construction, one a writer.
pub(crate) struct Builder {
    decoder: Decoder,
    registry: Registry,
    shape: (usize, usize),
    records_max: usize,
    bytes_max: usize,
    progress: Vec<(Partition, Progress)>,
    building: Vec<Batch>,
}

impl Builder {
    pub(crate) fn new(library: &Library) -> anyhow::Result<Self> {
        let limits = &library.settings.limits;
        let shape = library.shape()?;
        let topic = &library.view()?.spec.topic;
        let partition = |number| Partition { topic: topic.clone(), number };
        Ok(Self {
            decoder: Decoder::new(Arc::clone(&library.views)),
            registry: library.registry.clone(),
            shape,
            records_max: limits.batch_records_max.get(),
            bytes_max: limits.batch_bytes_max.get(),
            // The first owner of a partition has epoch 1.
            progress: (0..PARTITIONS).map(|n| (partition(n), Progress::new(0, 1))).collect(),
            building: (0..limits.writers.get()).map(|_| Batch::new([shape])).collect(),
        })
    }

    pub(crate) fn writers(&self) -> usize {
        self.building.len()
    }

    /// Puts a record into its writer's batch and returns the writer. May wait for the registry: call it
    /// where a thread may block.
    pub(crate) fn take(&mut self, record: &Record<'_>) -> anyhow::Result<usize> {
        let number = usize::try_from(record.partition)?;
        let writer = number % self.building.len();
        let (partition, progress) =
            self.progress.get_mut(number).context("an unknown partition")?;
        let batch = &mut self.building[writer];
        while let Decoded::NeedsSchema(id) =
            self.decoder.decode(record, partition, progress, batch)?
        {
            let schema = Handle::current().block_on(self.registry.schema(id))?;
            self.decoder.learn(id, schema);
        }
        Ok(writer)
    }

    /// Whether a batch has reached a limit.
    pub(crate) fn full(&self, writer: usize) -> bool {
        let batch = &self.building[writer];
        batch.record_count >= self.records_max || batch.byte_count() >= self.bytes_max
    }

    pub(crate) fn is_empty(&self, writer: usize) -> bool {
        self.building[writer].is_empty()
    }

    /// The batch so far; another one begins.
    pub(crate) fn next(&mut self, writer: usize) -> Batch {
        std::mem::replace(&mut self.building[writer], Batch::new([self.shape]))
    }
}
