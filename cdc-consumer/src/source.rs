//! Kafka: the consumer and what it is told, nothing about what records mean.

use std::sync::Mutex;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use secrecy::ExposeSecret;

use crate::board::Board;
use crate::config::KafkaSettings;
use crate::decode::Record;
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

/// A member of the group, not yet subscribed.
pub fn consumer(
    settings: &KafkaSettings,
    prefetch_kib: usize,
    group: Group,
) -> Result<GroupConsumer, SourceError> {
    let mut config = client_config(settings);
    config
        .set("group.id", &settings.consumer_group)
        // We commit what the database says, after it said so.
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // An offset the broker does not have is a hole in the data: stop, never skip.
        .set("auto.offset.reset", "error")
        // Records of aborted transactions never happened.
        .set("isolation.level", "read_committed")
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
        // Low latency when there is little, whole fetches when there is much.
        .set("fetch.wait.max.ms", "100")
        .set("fetch.min.bytes", "1")
        .set("queued.min.messages", "20000")
        .set("queued.max.messages.kbytes", prefetch_kib.to_string())
        // Fetched batches are compressed, often to a sixth: small fetches bound what unpacks at once.
        // A larger record is delivered all the same.
        .set("fetch.max.bytes", "1048576")
        .set("max.partition.fetch.bytes", "262144")
        .set("message.max.bytes", "1000000")
        .set("statistics.interval.ms", "1000");
    if let Some(instance) = &settings.consumer_instance {
        config.set("group.instance.id", instance);
    }
    config.create_with_context(group).map_err(SourceError::Settings)
}

/// A change of our partitions, to be carried out by the pipeline between two records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rebalance {
    Assign(Vec<Partition>),
    Revoke(Vec<Partition>),
}

/// What librdkafka calls back. Decides nothing: it notes down what the pipeline has to do.
pub struct Group {
    board: Board,
    state: Mutex<GroupState>,
}

#[derive(Default)]
struct GroupState {
    rebalances: Vec<Rebalance>,
    /// Nobody is left to carry out a rebalance: follow librdkafka's default.
    closing: bool,
}

impl Group {
    pub fn new(board: Board) -> Self {
        Self { board, state: Mutex::default() }
    }

    /// Rebalances since the last call, oldest first.
    pub fn rebalances(&self) -> Vec<Rebalance> {
        std::mem::take(&mut self.state().rebalances)
    }

    /// From now on partitions are given up without asking the pipeline.
    pub fn close(&self) {
        self.state().closing = true;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, GroupState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl ClientContext for Group {
    fn stats(&self, statistics: Statistics) {
        for (topic, statistics) in &statistics.topics {
            for (number, partition) in &statistics.partitions {
                if *number >= 0 && partition.hi_offset >= 0 {
                    self.board.high_offset(topic, *number, partition.hi_offset);
                }
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if names_no_topic(&error) {
            return; // `poll` reports it too, and the pipeline says which topic
        }
        self.board.broker_trouble(&error, reason);
    }
}

impl ConsumerContext for Group {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let mut state = self.state();
        let listed = owned(partitions);
        match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS if !state.closing => {
                state.rebalances.push(Rebalance::Assign(listed));
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS if !state.closing => {
                state.rebalances.push(Rebalance::Revoke(listed));
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => {
                if let Err(error) = consumer.incremental_unassign(partitions) {
                    tracing::debug!(error = %error, "could not give up partitions while closing");
                }
            }
            other => tracing::debug!(event = ?other, "rebalance event without partitions"),
        }
    }
}

fn owned(partitions: &TopicPartitionList) -> Vec<Partition> {
    let elements = partitions.elements();
    elements
        .iter()
        .map(|element| Partition { topic: element.topic().to_owned(), number: element.partition() })
        .collect()
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
    let mut list = TopicPartitionList::new();
    list.add_partition(&partition.topic, partition.number);
    let committed = consumer.committed_offsets(list, REQUEST_TIMEOUT).map_err(failed)?;
    let requested = committed.elements().iter().find_map(|element| match element.offset() {
        Offset::Offset(offset) if !carries_marker(element) => Some(offset),
        _ => None,
    });
    Ok(BrokerOffsets { log_start, log_end, requested })
}

/// Another program's metadata need not be text; the binding panics then.
fn carries_marker(element: &TopicPartitionListElem<'_>) -> bool {
    let read = std::panic::AssertUnwindSafe(|| !element.metadata().is_empty());
    std::panic::catch_unwind(read).unwrap_or(true)
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
    let position = |element: &TopicPartitionListElem<'_>| match element.offset() {
        Offset::Offset(offset) => Some((
            Partition { topic: element.topic().to_owned(), number: element.partition() },
            offset,
        )),
        _ => None,
    };
    Ok(list.elements().iter().filter_map(position).collect())
}

/// Tells the broker what the database already knows. Advisory: lag tools read it, we do not.
pub fn commit(
    consumer: &GroupConsumer,
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
pub fn record<M: Message>(message: &M) -> Record<'_> {
    Record {
        topic: message.topic(),
        partition: message.partition(),
        offset: message.offset(),
        key: message.key(),
        value: message.payload(),
        schema_in_headers: schema_in_headers(message.headers()),
    }
}

/// Apicurio's converter names the schema in a header when it leaves the prefix out.
pub fn schema_in_headers(headers: Option<&impl Headers>) -> bool {
    headers.is_some_and(|headers| {
        headers
            .iter()
            .any(|header| header.key.starts_with("apicurio.value.") && header.key.ends_with("Id"))
    })
}

/// A client that belongs to no group, for questions.
pub fn client(settings: &KafkaSettings) -> Result<BaseConsumer, SourceError> {
    client_config(settings).create().map_err(SourceError::Settings)
}
