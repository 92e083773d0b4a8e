//! Whether the broker's logs are those that a generation was built from. The running consumer asks the same when it
//! takes partitions over, of its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use crate::config::KafkaSettings;
use crate::offsets::{Anchor, Partition};
use crate::source::{self, REQUEST_TIMEOUT, SourceError, reader_config};

/// First and next offset of each partition's log.
pub(crate) type Bounds = BTreeMap<Partition, (i64, i64)>;

/// How far a generation was built: the next offset of each partition, and the record read last.
pub(crate) type Built = BTreeMap<Partition, (i64, Option<Anchor>)>;

/// Fails where a generation was built from more than a log ever held, or from another record at the same place: that was
/// another log, and the records of the two do not follow each other. `who` was built, and `advice` is about a topic.
pub(crate) async fn check(
    kafka: &KafkaSettings,
    built: &Built,
    bounds: &Bounds,
    who: &str,
    advice: impl Fn(&str) -> String,
) -> anyhow::Result<()> {
    let mut anchors = BTreeMap::new();
    for (partition, &(next, anchor)) in built {
        let (start, end) = bounds.get(partition).copied().unwrap_or((0, 0));
        ensure!(
            next <= end,
            "{partition}: {who} up to record {next}, but the broker's log ends at {end}: the topic was made again or \
             its log cut; {}",
            advice(&partition.topic)
        );
        if let Some(anchor) = anchor.filter(|anchor| (start..end).contains(&anchor.offset)) {
            anchors.insert(partition.clone(), anchor);
        }
    }
    let kafka = kafka.clone();
    let asked = tokio::task::spawn_blocking(move || contradicted(&kafka, &anchors)).await??;
    if let Some((partition, anchor)) = asked {
        anyhow::bail!(
            "{partition}: {who} from another log, this one has another record at offset {}: the topic was made again, or its \
             log cut and written anew; {}",
            anchor.offset,
            advice(&partition.topic)
        );
    }
    Ok(())
}

/// The first of these records in whose place there is another one. One that is gone does not tell.
fn contradicted(
    kafka: &KafkaSettings,
    anchors: &BTreeMap<Partition, Anchor>,
) -> Result<Option<(Partition, Anchor)>, SourceError> {
    let mut config = reader_config(kafka);
    // Behind the last record there may be nothing but marks of transactions.
    config.set("enable.partition.eof", "true");
    let reader: BaseConsumer = config.create().map_err(SourceError::Settings)?;
    for (partition, anchor) in anchors {
        let read = first_from(&reader, partition, anchor.offset);
        let read = read.map_err(|source| SourceError::Ask { partition: partition.clone(), source });
        if read?.is_some_and(|read| anchor.contradicts(read)) {
            return Ok(Some((partition.clone(), *anchor)));
        }
    }
    Ok(None)
}

/// The first record of a partition from an offset on, if that is still there.
fn first_from(
    reader: &BaseConsumer,
    partition: &Partition,
    offset: i64,
) -> Result<Option<Anchor>, KafkaError> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&partition.topic, partition.number, Offset::Offset(offset))?;
    reader.assign(&list)?;
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    while Instant::now() < deadline {
        match reader.poll(Duration::from_millis(100)) {
            None => {}
            Some(Ok(message)) => return Ok(Some(source::record(&message).anchor())),
            Some(Err(
                KafkaError::PartitionEOF(_)
                | KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset),
            )) => return Ok(None),
            Some(Err(error)) if source::passes_by_itself(&error) => {}
            Some(Err(error)) => return Err(error),
        }
    }
    Err(KafkaError::Global(RDKafkaErrorCode::OperationTimedOut))
}
