//! Where between a commit and its reader the time goes.
//!
//! A Kafka consumer of this program keeps what arrives in the topic, as bytes with their time of arrival;
//! they are decoded when the run is over. All times are this machine's clock.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use cdc_consumer::source::passes_by_itself;
use devstack::addresses::TOPICS;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::metadata::MetadataTopic;
use rdkafka::{Offset, TopicPartitionList};
use schema_registry_converter::async_impl::schema_registry::{SrSettings, get_schema_by_id};
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::figures::Percentiles;
use crate::latency_loop::{Moment, Passage};
use crate::servers::Servers;
use crate::topic;

const TOPIC: &str = TOPICS[0];
const GROUP: &str = "bench-latency";
const PREFETCH_KIB: usize = 4096;
const TIMEOUT: Duration = Duration::from_secs(20);
/// After the run, nothing more comes when nothing has come for so long.
const QUIET: Duration = Duration::from_millis(500);
const LATE_MAX: Duration = Duration::from_secs(10);
/// The zero byte and the schema id.
const PREFIX_BYTES: usize = 5;

/// Milliseconds of each stage; a row's four add up to its whole way. The record's timestamp has whole
/// milliseconds only, and who reads need not wait for the answer of the one who wrote: a stage may be
/// shorter than nothing.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Stages<T> {
    /// From the commit's answer until Debezium made the envelope (its `ts_us`).
    pub(crate) read: T,
    /// Until Connect gave the record to its producer (the record's timestamp, Kafka's `CreateTime`).
    pub(crate) connector: T,
    /// Until a consumer had it that fetches as cdc-consumer does: producer, broker, fetch.
    pub(crate) broker: T,
    /// Until the reader found the row.
    pub(crate) apply: T,
}

impl Stages<Percentiles> {
    /// Fails when a row did not come through the topic.
    pub(crate) fn of(
        passages: &[Passage],
        sightings: &HashMap<i64, Sighting>,
    ) -> anyhow::Result<Self> {
        let mut stages: [Vec<f64>; 4] = Default::default();
        for passage in passages {
            let Some(seen) = sightings.get(&passage.id) else { continue };
            let produced = seen.produced_millis * 1000;
            let (committed, visible) = (passage.committed.micros, passage.visible.micros);
            let times = [committed, seen.read, produced, seen.received, visible];
            for (stage, pair) in stages.iter_mut().zip(times.windows(2)) {
                stage.push(millis(pair[1] - pair[0]));
            }
        }
        let known = stages[0].len();
        let all = passages.len();
        ensure!(known == all, "{known} of {all} rows came through {TOPIC}");
        let [read, connector, broker, apply] =
            stages.map(|stage| Percentiles::of(stage).context("nothing was written"));
        Ok(Self { read: read?, connector: connector?, broker: broker?, apply: apply? })
    }
}

#[expect(clippy::cast_precision_loss, reason = "differences of minutes at most")]
fn millis(micros: i64) -> f64 {
    micros as f64 / 1000.0
}

/// A record of the topic, and when each stage before it was over; in microseconds from 1970 but for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sighting {
    read: i64,
    produced_millis: i64,
    received: i64,
}

/// A record as it was received.
struct Kept {
    value: Vec<u8>,
    produced_millis: i64,
    received: i64,
}

/// Reads the topic beside cdc-consumer. Ends when it is stopped or dropped.
pub(crate) struct Sampler {
    over: Arc<AtomicBool>,
    reading: JoinHandle<anyhow::Result<Vec<Kept>>>,
}

impl Sampler {
    /// Sees every record from now on.
    pub(crate) fn start(servers: &Servers) -> anyhow::Result<Self> {
        let consumer = topic::fetching(servers, GROUP, PREFETCH_KIB)?;
        let metadata = consumer.fetch_metadata(Some(TOPIC), TIMEOUT)?;
        let mut list = TopicPartitionList::new();
        for partition in metadata.topics().iter().flat_map(MetadataTopic::partitions) {
            let (_, end) = consumer.fetch_watermarks(TOPIC, partition.id(), TIMEOUT)?;
            list.add_partition_offset(TOPIC, partition.id(), Offset::Offset(end))?;
        }
        consumer.assign(&list)?;
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let reading = tokio::task::spawn_blocking(move || keep(&consumer, &until));
        Ok(Self { over, reading })
    }

    /// What was seen of each row; of one that came twice, the first.
    pub(crate) async fn stop(
        mut self,
        servers: &Servers,
    ) -> anyhow::Result<HashMap<i64, Sighting>> {
        self.over.store(true, Ordering::Release);
        decode(servers, (&mut self.reading).await??).await
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
    }
}

/// Keeps everything until nobody writes any more.
fn keep(consumer: &BaseConsumer, over: &AtomicBool) -> anyhow::Result<Vec<Kept>> {
    let mut kept = Vec::new();
    let mut end = None;
    loop {
        if over.load(Ordering::Acquire) {
            end.get_or_insert_with(|| Instant::now() + LATE_MAX);
        }
        match consumer.poll(QUIET) {
            Some(Ok(message)) => {
                let received = Moment::now().micros;
                let produced_millis = message.timestamp().to_millis().unwrap_or_default();
                let value = message.payload().map(<[u8]>::to_vec);
                kept.extend(value.map(|value| Kept { value, produced_millis, received }));
            }
            Some(Err(error)) if passes_by_itself(&error) => {}
            Some(Err(error)) => return Err(error).context("the topic cannot be read"),
            None if end.is_some() => return Ok(kept),
            None => {}
        }
        if end.is_some_and(|end| Instant::now() > end) {
            return Ok(kept);
        }
    }
}

async fn decode(servers: &Servers, kept: Vec<Kept>) -> anyhow::Result<HashMap<i64, Sighting>> {
    let mut by_schema: BTreeMap<u32, Vec<Kept>> = BTreeMap::new();
    for record in kept {
        let id = record.value.get(1..PREFIX_BYTES).context("a record without a schema id")?;
        by_schema.entry(u32::from_be_bytes(id.try_into()?)).or_default().push(record);
    }
    let settings = SrSettings::new(servers.registry.clone());
    let mut sightings = HashMap::new();
    for (id, records) in by_schema {
        let schema = Schema::parse_str(&get_schema_by_id(id, &settings).await?.schema)?;
        let reader = GenericDatumReader::builder(&schema).build()?;
        for record in records {
            let envelope = reader.read_value(&mut &record.value[PREFIX_BYTES..])?;
            if let Some((key, read)) = key_and_time(&envelope) {
                let Kept { produced_millis, received, .. } = record;
                let sighting = Sighting { read, produced_millis, received };
                sightings.entry(key).or_insert(sighting);
            }
        }
    }
    Ok(sightings)
}

/// The new row's key, and when Debezium read it; `None` of a deletion.
fn key_and_time(envelope: &Value) -> Option<(i64, i64)> {
    let key = long(field(field(envelope, "after")?, "id")?)?;
    Some((key, long(field(envelope, "ts_us")?)?))
}

fn field<'a>(record: &'a Value, name: &str) -> Option<&'a Value> {
    let Value::Record(fields) = record else { return None };
    let (_, value) = fields.iter().find(|(found, _)| found == name)?;
    Some(if let Value::Union(_, inner) = value { inner } else { value })
}

fn long(value: &Value) -> Option<i64> {
    if let Value::Long(number) = value { Some(*number) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn optional(value: Value) -> Value {
        Value::Union(1, Box::new(value))
    }

    fn envelope(after: Value) -> Value {
        let time = ("ts_us".to_owned(), optional(Value::Long(1_700_000_000_000_123)));
        Value::Record(vec![("after".to_owned(), after), time])
    }

    #[test]
    fn a_row_is_known_by_the_key_of_its_new_state() {
        let row = Value::Record(vec![("id".to_owned(), Value::Long(7))]);
        let found = key_and_time(&envelope(optional(row)));
        assert_eq!(found, Some((7, 1_700_000_000_000_123)));
        let deleted = Value::Union(0, Box::new(Value::Null));
        assert_eq!(key_and_time(&envelope(deleted)), None);
    }

    #[test]
    fn the_stages_of_a_row_add_up_to_its_way() {
        let at = |micros| Moment { micros, ..Moment::now() };
        let passage = Passage { id: 7, committed: at(1_000_500), visible: at(1_012_500) };
        let seen = Sighting { read: 1_002_000, produced_millis: 1_003, received: 1_006_500 };
        let stages = Stages::of(&[passage], &HashMap::from([(7, seen)])).unwrap();
        let Stages { read, connector, broker, apply } = stages;
        let found = (read.p50, connector.p50, broker.p50, apply.p50);
        assert_eq!(found, (1.5, 1.0, 3.5, 6.0));
        let unseen = Stages::of(&[passage], &HashMap::new()).unwrap_err().to_string();
        assert_eq!(unseen, "0 of 1 rows came through user-events");
    }
}
