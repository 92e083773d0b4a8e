//! Topics and consumer groups, seen from outside.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cdc_consumer::source::set_fetching;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

use crate::servers::Servers;

pub(crate) const PARTITIONS: i32 = 4;
const TIMEOUT: Duration = Duration::from_secs(20);

fn config(servers: &Servers) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &servers.brokers)
        .set("group.id", "bench-reader")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "false");
    config
}

/// A consumer that fetches as cdc-consumer does, not yet assigned.
pub(crate) fn fetching(
    servers: &Servers,
    group: &str,
    prefetch_kib: usize,
) -> anyhow::Result<BaseConsumer> {
    let mut config = config(servers);
    config
        .set("group.id", group)
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed");
    set_fetching(&mut config, prefetch_kib);
    Ok(config.create()?)
}

/// How many records each partition holds; `None` when there is no such topic.
pub(crate) async fn record_counts(
    servers: &Servers,
    topic: &str,
) -> anyhow::Result<Option<Vec<u64>>> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match count(servers, topic) {
            // A topic made or removed a moment ago has no leader.
            Err(_) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            counts => return counts,
        }
    }
}

fn count(servers: &Servers, topic: &str) -> anyhow::Result<Option<Vec<u64>>> {
    let consumer: BaseConsumer = config(servers).create()?;
    let metadata = consumer.fetch_metadata(None, TIMEOUT).context("Kafka does not answer")?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok(None);
    };
    let counts = found.partitions().iter().map(|partition| {
        let (low, high) = consumer.fetch_watermarks(topic, partition.id(), TIMEOUT)?;
        Ok((high - low).unsigned_abs())
    });
    counts.collect::<anyhow::Result<_>>().map(Some)
}

/// Removes a topic, and waits until the broker has forgotten it.
pub(crate) async fn remove(servers: &Servers, topic: &str) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> = config(servers).create()?;
    admin.delete_topics(&[topic], &AdminOptions::new()).await?;
    let deadline = Instant::now() + TIMEOUT;
    while record_counts(servers, topic).await?.is_some() {
        if Instant::now() > deadline {
            bail!("topic {topic} is not gone within {TIMEOUT:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Removes a consumer group that has no member any more; one that stays hurts nobody.
pub(crate) async fn forget_group(servers: &Servers, group: &str) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> = config(servers).create()?;
    admin.delete_groups(&[group], &AdminOptions::new()).await?;
    Ok(())
}

/// Hands each record of a topic to `take`, as fast as they come, in the order of their partitions.
pub(crate) fn read_all(
    servers: &Servers,
    topic: &str,
    mut take: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let counts = count(servers, topic)?.with_context(|| format!("no topic {topic}"))?;
    let mut left: u64 = counts.iter().sum();
    let consumer: BaseConsumer = config(servers).create()?;
    let mut list = TopicPartitionList::new();
    for partition in 0..i32::try_from(counts.len())? {
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    while left > 0 {
        let message = consumer.poll(TIMEOUT).context("the broker sends no more records")??;
        take(&message).with_context(|| {
            format!("record {}-{} @ {}", message.topic(), message.partition(), message.offset())
        })?;
        left -= 1;
    }
    Ok(())
}
