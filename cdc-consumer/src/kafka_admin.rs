//! What only an administrator asks of Kafka: settings of topics, and groups that nobody needs any more.

use std::collections::BTreeMap;

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaError;

use crate::config::KafkaSettings;
use crate::source::{REQUEST_TIMEOUT, client_config};

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
