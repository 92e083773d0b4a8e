//! Topics, records, groups and schemas of a world.

use futures_util::future::join_all;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureRecord, Producer};
use rdkafka::util::Timeout;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value as Json, json};

use super::avro::Schema;
use super::feed::Message;
use super::{SOON, World, wait_until};

impl World {
    /// A topic of this test's own.
    pub(crate) async fn topic(&self, partitions: i32, options: &[(&str, &str)]) -> String {
        let topic = format!("{}_{}", self.name, self.topics.lock().expect("not poisoned").len());
        self.create_topic(&topic, partitions, options).await;
        topic
    }

    /// A topic of this name, which may have been deleted before.
    pub(crate) async fn create_topic(
        &self,
        topic: &str,
        partitions: i32,
        options: &[(&str, &str)],
    ) {
        wait_until("the topic to be created", SOON, || async {
            let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
            let new = options.iter().fold(new, |new, (name, value)| new.set(name, value));
            let made = self.admin.create_topics([&new], &AdminOptions::new()).await;
            match made.expect("Kafka answers at KAFKA_BROKERS").as_slice() {
                [Ok(_)] => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        self.topics.lock().expect("not poisoned").push(topic.to_owned());
    }

    pub(crate) async fn delete_topic(&self, topic: &str) {
        delete_topics(&self.brokers, &[topic.to_owned()]).await;
    }

    /// Sends records in order; returns after the broker has them all.
    pub(crate) async fn send(&self, topic: &str, messages: Vec<Message>) {
        let sent = messages.iter().map(|message| {
            let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic);
            record.partition = message.partition;
            record.key = message.key.as_deref();
            record.payload = message.value.as_deref();
            record.timestamp = message.timestamp_millis;
            record.headers = message.header.map(|key| {
                OwnedHeaders::new().insert(Header { key, value: Some(&[0, 0, 0, 0, 0, 0, 0, 1]) })
            });
            self.producer.send(record, Timeout::After(SOON))
        });
        for outcome in join_all(sent).await {
            outcome.expect("the broker takes the record");
        }
    }

    /// Waits until the producer knows that the topic has this many partitions.
    pub(crate) async fn learn_partitions(&self, topic: &str, count: usize) {
        wait_until("the new partitions to be known", SOON, || async {
            let (producer, name) = (self.producer.clone(), topic.to_owned());
            let asked = tokio::task::spawn_blocking(move || {
                let metadata = producer.client().fetch_metadata(Some(&name), SOON);
                let metadata = metadata.map_err(|error| error.to_string())?;
                Ok::<_, String>(
                    metadata.topics().first().map_or(0, |topic| topic.partitions().len()),
                )
            });
            match asked.await.expect("no panic") {
                Ok(known) if known == count => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// First and next offset of a partition.
    pub(crate) async fn watermarks(&self, topic: &str, partition: i32) -> (i64, i64) {
        let (topic, client) = (topic.to_owned(), self.client("watermarks"));
        let asked =
            tokio::task::spawn_blocking(move || client.fetch_watermarks(&topic, partition, SOON));
        asked.await.expect("no panic").expect("the broker answers")
    }

    /// What retention does: records below an offset go.
    pub(crate) async fn delete_records(&self, topic: &str, partition: i32, below: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(below)).expect("an offset");
        let done = self.admin.delete_records(&list, &AdminOptions::new()).await;
        done.expect("records can be deleted");
    }

    /// What `kafka-consumer-groups --reset-offsets --execute` does: an offset with empty metadata.
    pub(crate) async fn reset_group(&self, topic: &str, partitions: i32, offset: i64) {
        self.commit_group(topic, partitions, offset, "").await;
    }

    /// Commits an offset for the group, with metadata.
    pub(crate) async fn commit_group(
        &self,
        topic: &str,
        partitions: i32,
        offset: i64,
        metadata: &str,
    ) {
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("an offset");
            list.find_partition(topic, partition).expect("just added").set_metadata(metadata);
        }
        wait_until("the group to take the offset", SOON, || async {
            let (client, list) = (self.client(&self.name), list.clone());
            let done = tokio::task::spawn_blocking(move || client.commit(&list, CommitMode::Sync));
            done.await.expect("no panic").map_err(|error| error.to_string())
        })
        .await;
    }

    /// The group's committed offset with its metadata.
    pub(crate) async fn committed(&self, topic: &str, partition: i32) -> (Offset, String) {
        let (topic, client) = (topic.to_owned(), self.client(&self.name));
        let asked = tokio::task::spawn_blocking(move || {
            let mut list = TopicPartitionList::new();
            list.add_partition(&topic, partition);
            let list = client.committed_offsets(list, SOON).expect("the broker answers");
            let element = list.elements().pop().expect("the partition asked for");
            (element.offset(), element.metadata().to_owned())
        });
        asked.await.expect("no panic")
    }

    fn client(&self, group: &str) -> BaseConsumer {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("group.id", group);
        config.create().expect("valid client settings")
    }

    /// Registers a schema through the registry's Confluent-compatible API.
    pub(crate) async fn register(&self, subject: &str, schema: Json) -> Schema {
        let url = format!("{}/subjects/{subject}/versions", self.registry);
        let body = json!({"schemaType": "AVRO", "schema": schema.to_string()});
        let client = reqwest::Client::new();
        let answer = client.post(&url).json(&body).send().await;
        let answer = answer.expect("the registry answers at SCHEMA_REGISTRY_URL");
        let answer: Json = answer.json().await.expect("the registry answers in JSON");
        let id = answer["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.unwrap_or_else(|| panic!("the registry takes {subject}: {answer}"));
        self.subjects.lock().expect("not poisoned").push(subject.to_owned());
        Schema::new(id, schema)
    }
}

pub(crate) async fn delete_topics(brokers: &str, topics: &[String]) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    let admin: AdminClient<DefaultClientContext> = config.create().expect("valid admin settings");
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    if !names.is_empty() {
        drop(admin.delete_topics(&names, &AdminOptions::new()).await);
    }
}
