//! `./dev bench decode`: what one real envelope costs the processor.
//!
//! Ours is the whole way from a record to a folded row of text. The others stop at a tree of values,
//! from which a row would still have to be made.

use std::hint::black_box;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use cdc_consumer::batch::Batch;
use cdc_consumer::decode::{Decoded, Decoder, Record};
use cdc_consumer::offsets::{Partition, Progress};
use criterion::{Criterion, Throughput};
use rdkafka::message::Message;
use schema_registry_converter::async_impl::avro::AvroDecoder;
use schema_registry_converter::async_impl::schema_registry::{SrSettings, get_schema_by_id};
use serde::Serialize;
use serde_json::Value as Json;
use tokio::runtime::Handle;

use crate::cli::{DecodeOptions, Mix};
use crate::figures::float;
use crate::library::Library;
use crate::report;
use crate::servers::{Conditions, Servers};
use crate::source::{self, Plan};
use crate::target::{Table, Target};
use crate::topic;

const GROUP: &str = "envelope";
const OURS: &str = "cdc-consumer";
const CONVERTER: &str = "schema_registry_converter";
const AVRO: &str = "apache-avro";
/// The zero byte and the schema id.
const PREFIX_BYTES: usize = 5;
/// Changes of the topic, when it has to be filled.
const CHANGES: u64 = 20_000;

/// A record in memory.
struct Kept {
    partition: i32,
    offset: i64,
    key: Vec<u8>,
    value: Vec<u8>,
}

#[derive(Debug, Serialize)]
struct Decoding {
    records: u64,
    value_bytes: f64,
    /// Name, and nanoseconds a record (criterion's estimate of the mean, with its bounds).
    nanos: Vec<(&'static str, Estimate)>,
    /// How often the cost of ours the others take.
    converter_to_ours: f64,
    avro_to_ours: f64,
    conditions: Conditions,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Estimate {
    mean: f64,
    lower: f64,
    upper: f64,
}

pub(crate) async fn run(options: &DecodeOptions) -> anyhow::Result<ExitCode> {
    let servers = Servers::new()?;
    let conditions = servers.conditions().await?;
    let plan = Plan::new(Mix::Mixed, CHANGES.max(options.records), 1);
    let filled = source::fill(&servers, plan).await?;
    let target = Target::create(&filled).await?;
    let library = Library::new(&target, Table::UserView).await?;
    let kept = keep(&servers, &filled.topic, options.records)?;
    let id = u32::from_be_bytes(kept[0].value[1..PREFIX_BYTES].try_into()?);
    let settings = SrSettings::new(servers.registry.clone());
    let registered = get_schema_by_id(id, &settings).await?;
    let schema = Schema::parse_str(&registered.schema)?;
    let converter = AvroDecoder::new(settings);

    let results = report::directory(&servers)?.join("criterion");
    let mut criterion = Criterion::default()
        .without_plots()
        .measurement_time(Duration::from_secs(8))
        .output_directory(&results);
    tokio::task::block_in_place(|| -> anyhow::Result<()> {
        let mut group = criterion.benchmark_group(GROUP);
        group.throughput(Throughput::Elements(kept.len() as u64));
        let mut ours = Ours::new(&library, &filled.topic)?;
        ours.decode(&kept)?;
        group.bench_function(OURS, |bencher| {
            bencher.iter(|| ours.decode(&kept).expect("it decoded them before"));
        });
        let handle = Handle::current();
        group.bench_function(CONVERTER, |bencher| {
            bencher.iter(|| {
                handle.block_on(async {
                    for record in &kept {
                        let decoded = converter.decode(Some(&record.value)).await;
                        black_box(decoded.expect("a record of a known schema"));
                    }
                });
            });
        });
        let reader = GenericDatumReader::builder(&schema).build()?;
        group.bench_function(AVRO, |bencher| {
            bencher.iter(|| {
                for record in &kept {
                    let value = reader.read_value(&mut &record.value[PREFIX_BYTES..]);
                    black_box(value.expect("a record of this schema"));
                }
            });
        });
        group.finish();
        Ok(())
    })?;

    let estimate = |name| estimate(&results, name, kept.len() as u64);
    let (ours, converter, avro) = (estimate(OURS)?, estimate(CONVERTER)?, estimate(AVRO)?);
    let bytes: usize = kept.iter().map(|record| record.value.len()).sum();
    let decoding = Decoding {
        records: kept.len() as u64,
        value_bytes: float(bytes as u64) / float(kept.len() as u64),
        nanos: vec![(OURS, ours), (CONVERTER, converter), (AVRO, avro)],
        converter_to_ours: converter.mean / ours.mean,
        avro_to_ours: avro.mean / ours.mean,
        conditions,
    };
    report::write(&servers, &options.output, "decode", &decoding, &table(&decoding))?;
    Ok(ExitCode::SUCCESS)
}

fn table(decoding: &Decoding) -> String {
    let Decoding { records, value_bytes, nanos, converter_to_ours, avro_to_ours, .. } = decoding;
    let mut lines = vec![format!("{records} envelopes of {value_bytes:.0} bytes")];
    lines.extend(nanos.iter().map(|(name, Estimate { mean, lower, upper })| {
        format!("{name:<26} {mean:>7.0} ns a record ({lower:.0}-{upper:.0})")
    }));
    lines.push(format!("{CONVERTER} / {OURS}: {converter_to_ours:.1}"));
    lines.push(format!("{AVRO} / {OURS}: {avro_to_ours:.1}"));
    lines.join("\n")
}

/// The first records that are changes; tombstones have nothing to decode.
fn keep(servers: &Servers, topic: &str, count: u64) -> anyhow::Result<Vec<Kept>> {
    let count = usize::try_from(count)?;
    let mut kept = Vec::with_capacity(count);
    topic::read_all(servers, topic, |message| {
        if let (Some(key), Some(value)) = (message.key(), message.payload())
            && kept.len() < count
        {
            kept.push(Kept {
                partition: message.partition(),
                offset: message.offset(),
                key: key.to_vec(),
                value: value.to_vec(),
            });
        }
        Ok(())
    })?;
    anyhow::ensure!(!kept.is_empty(), "topic {topic} is empty");
    Ok(kept)
}

/// The consumer's decoder, with the plans it compiles once a schema.
struct Ours<'a> {
    library: &'a Library,
    decoder: Decoder,
    topic: &'a str,
    /// Used again and again, as the consumer does with those that were applied.
    batch: Batch,
}

impl<'a> Ours<'a> {
    fn new(library: &'a Library, topic: &'a str) -> anyhow::Result<Self> {
        let decoder = Decoder::new(Arc::clone(&library.views));
        Ok(Self { library, decoder, topic, batch: Batch::new([library.shape()?]) })
    }

    /// All records into one batch, from the beginning.
    fn decode(&mut self, kept: &[Kept]) -> anyhow::Result<()> {
        self.batch.clear();
        let partition = |number| Partition { topic: self.topic.to_owned(), number };
        let mut partitions: Vec<_> =
            (0..topic::PARTITIONS).map(|n| (partition(n), Progress::new(0, 1))).collect();
        for record in kept {
            let number = usize::try_from(record.partition)?;
            let (partition, progress) = partitions.get_mut(number).context("a partition")?;
            let record = Record {
                topic: self.topic,
                partition: record.partition,
                offset: record.offset,
                timestamp_millis: 0,
                key: Some(&record.key),
                value: Some(&record.value),
                headers: &false,
            };
            while let Decoded::NeedsSchema(id) =
                self.decoder.decode(&record, partition, progress, &mut self.batch)?
            {
                let node = Handle::current().block_on(self.library.registry.schema(id))?;
                self.decoder.learn(id, node);
            }
        }
        anyhow::ensure!(self.batch.refused.is_empty(), "records could not be decoded");
        black_box(&self.batch);
        Ok(())
    }
}

/// What criterion wrote down, for one record.
fn estimate(results: &Path, name: &str, records: u64) -> anyhow::Result<Estimate> {
    let path = results.join(GROUP).join(name).join("new/estimates.json");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let json: Json = serde_json::from_str(&text)?;
    let mean = &json["mean"];
    let number = |value: &Json| {
        let nanos = value.as_f64().with_context(|| format!("no mean in {}", path.display()))?;
        anyhow::Ok(nanos / float(records))
    };
    Ok(Estimate {
        mean: number(&mean["point_estimate"])?,
        lower: number(&mean["confidence_interval"]["lower_bound"])?,
        upper: number(&mean["confidence_interval"]["upper_bound"])?,
    })
}
