//! Single records, read again outside the group: a batch keeps no raw bytes, a dead letter needs them.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::config::KafkaSettings;
use crate::offsets::Partition;
use crate::source::{REQUEST_TIMEOUT, reader_config};

/// Why a single record could not be read again.
#[derive(Debug, thiserror::Error)]
#[error("could not read record {partition} @ {offset} again")]
pub struct FetchError {
    partition: Partition,
    offset: i64,
    #[source]
    source: KafkaError,
}

/// A record's key and value.
pub type RawRecord = (Option<Vec<u8>>, Option<Vec<u8>>);

/// Reads single records again, outside the group.
#[derive(Debug, Clone)]
pub struct RecordFetcher {
    config: ClientConfig,
}

impl RecordFetcher {
    pub fn new(settings: &KafkaSettings) -> Self {
        let mut config = reader_config(settings);
        config.set("group.id", format!("{}-refetch", settings.consumer_group));
        Self { config }
    }

    /// The record at an offset; `None` when the broker no longer has it (compacted meanwhile, or removed by
    /// retention).
    pub async fn fetch(
        &self,
        partition: &Partition,
        offset: i64,
    ) -> Result<Option<RawRecord>, FetchError> {
        let (config, wanted) = (self.config.clone(), partition.clone());
        let fetched = tokio::task::spawn_blocking(move || fetch(&config, &wanted, offset)).await;
        let fetched = fetched.unwrap_or(Err(KafkaError::Canceled));
        fetched.map_err(|source| FetchError { partition: partition.clone(), offset, source })
    }
}

fn fetch(
    config: &ClientConfig,
    partition: &Partition,
    offset: i64,
) -> Result<Option<RawRecord>, KafkaError> {
    let consumer: BaseConsumer = config.create()?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&partition.topic, partition.number, Offset::Offset(offset))?;
    consumer.assign(&list)?;
    let deadline = std::time::Instant::now() + REQUEST_TIMEOUT / 2;
    while std::time::Instant::now() < deadline {
        let Some(message) = consumer.poll(Duration::from_millis(200)) else { continue };
        let message = match message {
            Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset)) => {
                return Ok(None);
            }
            other => other?,
        };
        let found = message.offset() == offset;
        let bytes = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
        return Ok(found.then(|| (bytes(message.key()), bytes(message.payload()))));
    }
    Err(KafkaError::Global(RDKafkaErrorCode::OperationTimedOut))
}
