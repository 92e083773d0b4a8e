//! What only an administrator asks of Kafka: settings of topics, and groups that nobody needs any more.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode};
use rdkafka::error::KafkaError;

use crate::config::KafkaSettings;
use crate::offsets::Partition;
use crate::source::{self, REQUEST_TIMEOUT, client_config};

/// How long members of a group may take to leave it, or to follow an order.
const MEMBERS_MAX: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);

fn admin(settings: &KafkaSettings) -> Result<AdminClient<DefaultClientContext>, KafkaError> {
    client_config(settings).create()
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT))
}

/// Has the broker forget the group of the settings, which nobody is in any more, with its offsets.
pub(crate) async fn forget_group(settings: &KafkaSettings) -> Result<(), KafkaError> {
    let groups = [settings.consumer_group.as_str()];
    let forgotten = admin(settings)?.delete_groups(&groups, &options()).await?;
    forgotten.into_iter().try_for_each(|group| match group {
        Ok(_) => Ok(()),
        Err((_, code)) => Err(KafkaError::AdminOp(code)),
    })
}

/// Offsets were moved elsewhere: an earlier reset with Kafka's tools that no consumer has followed yet is no
/// order any more. Returns whether there was one.
///
/// The broker takes an offset from outside a group only while it has no members. A member that is there to
/// stay has followed the order and left its mark, so only one that is coming or going is waited for.
pub(crate) async fn overrule(
    settings: &KafkaSettings,
    moved: &[(Partition, i64)],
) -> Result<bool, KafkaError> {
    let consumer: BaseConsumer =
        client_config(settings).set("group.id", &settings.consumer_group).create()?;
    let deadline = Instant::now() + MEMBERS_MAX;
    loop {
        let mut orders = vec![];
        for (partition, offset) in moved {
            if source::requested(&consumer, partition)?.is_some() {
                orders.push((partition.clone(), *offset));
            }
        }
        if orders.is_empty() {
            return Ok(false);
        }
        match source::commit(&consumer, &orders, CommitMode::Sync) {
            Ok(()) => return Ok(true),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// The settings of a topic by their names, defaults included.
pub(crate) async fn topic_settings(
    settings: &KafkaSettings,
    topic: &str,
) -> Result<BTreeMap<String, String>, KafkaError> {
    let wanted = [ResourceSpecifier::Topic(topic)];
    let described = admin(settings)?.describe_configs(&wanted, &options()).await?;
    let mut all = BTreeMap::new();
    for resource in described {
        let entries = resource.map_err(KafkaError::AdminOp)?.entries;
        all.extend(entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))));
    }
    Ok(all)
}
