//! Kafka: the consumer and what it is told, nothing about what records mean.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};
use secrecy::ExposeSecret;

use crate::config::KafkaSettings;
use crate::decode::Record;
use crate::group::Group;
use crate::headers::RecordHeaders;
use crate::offsets::Partition;

/// How long a question to the broker may take.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What we write beside every committed offset. Kafka's `--reset-offsets` writes nothing there, which is
/// how an operator's reset is told from our own commits.
const COMMIT_MARKER: &str = "cdc-consumer";

/// A consumer as this crate uses it.
pub type GroupConsumer = BaseConsumer<Group>;

/// Why Kafka could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("the Kafka settings are not valid")]
    Settings(#[source] KafkaError),
    #[error("could not subscribe to {topics}")]
    Subscribe {
        topics: String,
        #[source]
        source: KafkaError,
    },
    #[error("could not ask the broker about {partition}")]
    Ask {
        partition: Partition,
        #[source]
        source: KafkaError,
    },
    #[error("could not take or give up partitions")]
    Assign(#[source] KafkaError),
    #[error("could not read from the broker")]
    Poll(#[source] KafkaError),
    #[error("the broker expelled this member from its group")]
    Expelled(#[source] KafkaError),
}

/// librdkafka's settings. Those that decide what is delivered are spelled out, each with its reason, even
/// where they equal the default.
pub(crate) fn client_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.kafka_brokers)
        .set("security.protocol", &settings.kafka_security_protocol)
        .set("client.id", "cdc-consumer")
        .set("check.crcs", "true") // a byte that changed on the way ends the session
        // A dead broker address is tried again soon, not after the default of up to 10 s.
        .set("reconnect.backoff.max.ms", "2000")
        .set_log_level(RDKafkaLogLevel::Warning);
    let path = |path: &std::path::PathBuf| path.to_string_lossy().into_owned();
    let secret = |secret: &secrecy::SecretString| secret.expose_secret().to_owned();
    let optional = [
        ("ssl.ca.location", settings.kafka_ssl_ca.as_ref().map(path)),
        ("ssl.certificate.location", settings.kafka_ssl_certificate.as_ref().map(path)),
        ("ssl.key.location", settings.kafka_ssl_key.as_ref().map(path)),
        ("ssl.key.password", settings.kafka_ssl_key_password.as_ref().map(secret)),
        ("sasl.mechanism", settings.kafka_sasl_mechanism.clone()),
        ("sasl.username", settings.kafka_sasl_username.clone()),
        ("sasl.password", settings.kafka_sasl_password.as_ref().map(secret)),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            config.set(name, value);
        }
    }
    config
}

/// A reader of committed records, in the group by its name alone.
pub(crate) fn reader_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = client_config(settings);
    config
        .set("group.id", &settings.consumer_group)
        // We commit what the database says, after it said so.
        .set("enable.auto.commit", "false")
        // An offset the broker does not have is a hole in the data: stop, never skip.
        .set("auto.offset.reset", "error")
        // Records of aborted transactions never happened.
        .set("isolation.level", "read_committed");
    config
}

/// A member of the group that will read these topics, not yet subscribed.
pub fn consumer(
    settings: &KafkaSettings,
    prefetch_kib: usize,
    topics: &BTreeSet<&str>,
    group: Group,
) -> Result<GroupConsumer, SourceError> {
    let mut config = reader_config(settings);
    config
        .set("enable.auto.offset.store", "false")
        // Partitions that do not move keep flowing while others do.
        .set("partition.assignment.strategy", "cooperative-sticky")
        // The classic protocol: in librdkafka 2.12 a member of the new one that polls too late is lost
        // for good.
        .set("group.protocol", "classic")
        // A member that died is noticed after this long; its partitions then move.
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "1500")
        // The connector makes its topics with the first change: look for them often.
        .set("topic.metadata.refresh.interval.ms", "2000")
        .set("allow.auto.create.topics", "false")
        .set("statistics.interval.ms", "1000")
        // The one trace librdkafka leaves of a topic made again under a running consumer is a line of
        // this log; see `group.rs`, which lets nothing below a warning through.
        .set("debug", "metadata")
        .set_log_level(RDKafkaLogLevel::Debug);
    set_fetching(&mut config, prefetch_kib);
    if let Some(instance) = &settings.consumer_instance {
        config.set("group.instance.id", member(instance, topics));
    }
    config.create_with_context(group).map_err(SourceError::Settings)
}

/// A static member that comes back gets the partitions it had, whatever topics it asks for; another one gets the new ones, too.
fn member(instance: &str, topics: &BTreeSet<&str>) -> String {
    let mut hasher = DefaultHasher::new();
    topics.hash(&mut hasher);
    format!("{instance}-{:016x}", hasher.finish())
}

/// How much is fetched, and how soon. What is fetched is not decided here.
pub fn set_fetching(config: &mut ClientConfig, prefetch_kib: usize) {
    config
        // Low latency when there is little, whole fetches when there is much.
        .set("fetch.wait.max.ms", "100")
        .set("fetch.min.bytes", "1")
        .set("queued.min.messages", "20000")
        .set("queued.max.messages.kbytes", prefetch_kib.to_string())
        // A full queue is filled again as soon as there is room, not a second later (the default): with a
        // backlog, most of the time went by waiting.
        .set("fetch.queue.backoff.ms", "2")
        // Fetched batches are compressed, often to a sixth: small fetches bound what unpacks at once.
        // A larger record is delivered all the same.
        .set("fetch.max.bytes", "1048576")
        .set("max.partition.fetch.bytes", "262144")
        .set("message.max.bytes", "1000000");
}

/// What the broker says about a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BrokerOffsets {
    /// First record the broker still has.
    pub log_start: i64,
    /// The offset the next record written will get.
    pub log_end: i64,
    /// The group's committed offset, when it does not carry our marker.
    pub requested: Option<i64>,
}

/// Asks for the bounds of a partition and the group's committed offset.
pub fn broker_offsets(
    consumer: &GroupConsumer,
    partition: &Partition,
) -> Result<BrokerOffsets, SourceError> {
    let failed = |source| SourceError::Ask { partition: partition.clone(), source };
    let (log_start, log_end) = consumer
        .fetch_watermarks(&partition.topic, partition.number, REQUEST_TIMEOUT)
        .map_err(failed)?;
    let requested = requested(consumer, partition).map_err(failed)?;
    Ok(BrokerOffsets { log_start, log_end, requested })
}

/// The group's committed offset of a partition, when it does not carry our marker.
pub(crate) fn requested<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partition: &Partition,
) -> Result<Option<i64>, KafkaError> {
    let committed =
        consumer.committed_offsets(list_of(std::slice::from_ref(partition)), REQUEST_TIMEOUT)?;
    let requested = committed.elements().iter().find_map(|element| match element.offset() {
        Offset::Offset(offset) if !carries_marker(element) => Some(offset),
        _ => None,
    });
    Ok(requested)
}

/// Another program's metadata need not be text.
fn carries_marker(element: &TopicPartitionListElem<'_>) -> bool {
    if_text(|| !element.metadata().is_empty()).unwrap_or(true)
}

/// What the binding takes for text, and panics where another program wrote something else.
pub(crate) fn if_text<T>(read: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).ok()
}

/// Begins to read partitions at the given offsets.
pub fn assign(consumer: &GroupConsumer, starts: &[(Partition, i64)]) -> Result<(), SourceError> {
    let mut list = TopicPartitionList::with_capacity(starts.len());
    for (partition, offset) in starts {
        list.add_partition_offset(&partition.topic, partition.number, Offset::Offset(*offset))
            .map_err(SourceError::Assign)?;
    }
    consumer.incremental_assign(&list).map_err(SourceError::Assign)
}

/// Where the log of each partition of a topic ends.
pub fn log_ends(settings: &KafkaSettings, topic: &str) -> Result<BTreeMap<i32, i64>, SourceError> {
    let bounds = log_bounds(&client(settings)?, topic)?;
    Ok(bounds.into_iter().map(|(number, (_, end))| (number, end)).collect())
}

/// First and next offset of each partition of a topic; none of one that does not exist.
pub fn log_bounds(
    client: &BaseConsumer,
    topic: &str,
) -> Result<BTreeMap<i32, (i64, i64)>, SourceError> {
    let failed = |number: i32, source| SourceError::Ask {
        partition: Partition { topic: topic.to_owned(), number },
        source,
    };
    let metadata = client.fetch_metadata(Some(topic), REQUEST_TIMEOUT);
    let metadata = metadata.map_err(|source| failed(0, source))?;
    let partitions =
        metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions);
    let bounds = partitions.map(|partition| {
        let number = partition.id();
        let bounds = client
            .fetch_watermarks(topic, number, REQUEST_TIMEOUT)
            .map_err(|source| failed(number, source))?;
        Ok((number, bounds))
    });
    bounds.collect()
}

/// The first record of each partition that was sent at or after a time (milliseconds from 1970), or the
/// end of its log.
pub fn offsets_at(
    settings: &KafkaSettings,
    partitions: Vec<Partition>,
    timestamp_millis: i64,
) -> Result<BTreeMap<Partition, i64>, SourceError> {
    let client = client(settings)?;
    let mut places = BTreeMap::new();
    for partition in partitions {
        let failed = |source| SourceError::Ask { partition: partition.clone(), source };
        let mut wanted = TopicPartitionList::new();
        let at = Offset::Offset(timestamp_millis);
        wanted.add_partition_offset(&partition.topic, partition.number, at).map_err(failed)?;
        let found = client.offsets_for_times(wanted, REQUEST_TIMEOUT).map_err(failed)?;
        let found = found.elements().first().map(TopicPartitionListElem::offset);
        let place = match found {
            Some(Offset::Offset(offset)) => offset,
            _ => {
                client
                    .fetch_watermarks(&partition.topic, partition.number, REQUEST_TIMEOUT)
                    .map_err(failed)?
                    .1
            }
        };
        places.insert(partition, place);
    }
    Ok(places)
}

/// Those of some topics that do not exist.
pub fn missing<'t>(
    consumer: &GroupConsumer,
    topics: &BTreeSet<&'t str>,
    patience: Duration,
) -> Result<Vec<&'t str>, KafkaError> {
    let mut missing = vec![];
    for topic in topics {
        let metadata = consumer.fetch_metadata(Some(topic), patience)?;
        if metadata.topics().iter().all(|found| found.partitions().is_empty()) {
            missing.push(*topic);
        }
    }
    Ok(missing)
}

/// Gives partitions up.
pub fn unassign(consumer: &GroupConsumer, partitions: &[Partition]) -> Result<(), SourceError> {
    let list = list_of(partitions);
    consumer.incremental_unassign(&list).map_err(SourceError::Assign)
}

/// Stops or resumes fetching, while the consumer stays in its group.
pub fn set_flow(
    consumer: &GroupConsumer,
    partitions: &[Partition],
    flow: Flow,
) -> Result<(), SourceError> {
    let list = list_of(partitions);
    match flow {
        Flow::Pause => consumer.pause(&list),
        Flow::Resume => consumer.resume(&list),
    }
    .map_err(SourceError::Assign)
}

/// Whether records are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Pause,
    Resume,
}

fn list_of(partitions: &[Partition]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        list.add_partition(&partition.topic, partition.number);
    }
    list
}

/// Per partition, the offset after what was taken out of its queue; none before the first record.
pub fn positions(consumer: &GroupConsumer) -> Result<Vec<(Partition, i64)>, SourceError> {
    let list = consumer.position().map_err(SourceError::Poll)?;
    let position = |element: &TopicPartitionListElem<'_>| {
        let Offset::Offset(offset) = element.offset() else { return None };
        let topic = element.topic().to_owned();
        Some((Partition { topic, number: element.partition() }, offset))
    };
    Ok(list.elements().iter().filter_map(position).collect())
}

/// Tells the broker what the database already knows. Advisory: lag tools read it, we do not.
pub fn commit<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    offsets: &[(Partition, i64)],
    mode: CommitMode,
) -> Result<(), KafkaError> {
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for (partition, offset) in offsets {
        let mut element = list.add_partition(&partition.topic, partition.number);
        element.set_offset(Offset::Offset(*offset))?;
        element.set_metadata(COMMIT_MARKER);
    }
    consumer.commit(&list, mode)
}

/// Whether an error of `poll` is news about the cluster that librdkafka deals with itself: brokers that
/// come and go, topics that do not exist yet.
pub fn passes_by_itself(error: &KafkaError) -> bool {
    let Some(code) = error.rdkafka_error_code() else { return false };
    matches!(
        code,
        RDKafkaErrorCode::AllBrokersDown
            | RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::Resolve
            | RDKafkaErrorCode::OperationTimedOut
            | RDKafkaErrorCode::RequestTimedOut
            | RDKafkaErrorCode::LeaderNotAvailable
            | RDKafkaErrorCode::NotLeaderForPartition
            | RDKafkaErrorCode::CoordinatorNotAvailable
            | RDKafkaErrorCode::CoordinatorLoadInProgress
            | RDKafkaErrorCode::NotCoordinator
            | RDKafkaErrorCode::RebalanceInProgress
            | RDKafkaErrorCode::PollExceeded
    )
}

/// Whether an error says that a topic is not there (yet).
pub fn names_no_topic(error: &KafkaError) -> bool {
    let missing = [
        RDKafkaErrorCode::UnknownTopic,
        RDKafkaErrorCode::UnknownPartition,
        RDKafkaErrorCode::UnknownTopicOrPartition,
    ];
    error.rdkafka_error_code().is_some_and(|code| missing.contains(&code))
}

/// A message as the decoder sees it.
pub fn record<M: Message + RecordHeaders>(message: &M) -> Record<'_> {
    Record {
        topic: message.topic(),
        partition: message.partition(),
        offset: message.offset(),
        timestamp_millis: message.timestamp().to_millis().unwrap_or(-1),
        key: message.key(),
        value: message.payload(),
        headers: message,
    }
}

/// A client that belongs to no group, for questions.
pub fn client(settings: &KafkaSettings) -> Result<BaseConsumer, SourceError> {
    client_config(settings).create().map_err(SourceError::Settings)
}
