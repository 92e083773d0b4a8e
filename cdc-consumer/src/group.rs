//! What librdkafka calls back: rebalances, statistics, errors, its log. Decides nothing; it notes down what
//! the session has to act on between two records.

use std::sync::{Mutex, OnceLock};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::statistics::{Broker, Partition as PartitionStatistics, Statistics};
use rdkafka::types::RDKafkaRespErr;

use crate::board::Board;
use crate::offsets::Partition;
use crate::source::names_no_topic;

/// A change of our partitions, to be carried out by the pipeline between two records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rebalance {
    Assign(Vec<Partition>),
    Revoke(Vec<Partition>),
}

/// One membership's context.
pub struct Group {
    board: Board,
    state: Mutex<GroupState>,
    /// A topic that was deleted and made again while we read it.
    recreated: OnceLock<String>,
}

#[derive(Default)]
struct GroupState {
    rebalances: Vec<Rebalance>,
    /// Nobody is left to carry out a rebalance: follow librdkafka's default.
    closing: bool,
}

impl Group {
    pub fn new(board: Board) -> Self {
        Self { board, state: Mutex::default(), recreated: OnceLock::new() }
    }

    /// Rebalances since the last call, oldest first.
    pub fn rebalances(&self) -> Vec<Rebalance> {
        std::mem::take(&mut self.state().rebalances)
    }

    /// The topic that is another one than when we began to read it, if there is one. Known before its
    /// first record arrives: librdkafka fetches by topic id, and logs the new id when it learns it.
    pub fn recreated(&self) -> Option<String> {
        self.recreated.get().cloned()
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
        if reached(&statistics) {
            self.board.broker_answers();
        }
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if let Some(topic) = recreated_topic(message) {
            self.recreated.get_or_init(|| topic.to_owned());
        }
        if level as i32 <= RDKafkaLogLevel::Warning as i32 {
            tracing::warn!(target: "librdkafka", facility, "{message}");
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
            // An assignment, too: librdkafka waits for the answer to each, and takes any for giving up all there is once it
            // closes. Who has no partition is not asked to give any up, and would wait for ever.
            _ if state.closing => {
                if let Err(error) = consumer.incremental_unassign(partitions) {
                    tracing::debug!(error = %error, "could not give up partitions while closing");
                }
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                state.rebalances.push(Rebalance::Assign(listed));
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => {
                state.rebalances.push(Rebalance::Revoke(listed));
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

/// Whether there are connections to the cluster: to the brokers that lead our partitions, or to any when we
/// have none. Offsets are no sign of it: librdkafka repeats those it fetched last.
fn reached(statistics: &Statistics) -> bool {
    let up = |broker: &&Broker| broker.state == "UP";
    let brokers = || statistics.brokers.values().filter(up);
    let partitions = statistics.topics.values().flat_map(|topic| topic.partitions.values());
    let ours = |each: &&PartitionStatistics| {
        each.partition >= 0 && !["none", "stopping", "stopped"].contains(&each.fetch_state.as_str())
    };
    let mut ours = partitions.filter(ours).peekable();
    if ours.peek().is_none() {
        return brokers().next().is_some();
    }
    // A partition that nobody leads names -1, as the address does that the cluster was first asked at.
    ours.all(|partition| {
        partition.leader >= 0 && brokers().any(|broker| broker.nodeid == partition.leader)
    })
}

/// The topic named by the log line about a topic whose id changed. librdkafka itself goes on with the new
/// topic at the old offset.
fn recreated_topic(message: &str) -> Option<&str> {
    /// How librdkafka writes the id of a topic it has not met before.
    const NO_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";
    let (_, line) = message.split_once("Topic ")?;
    let (topic, ids) = line.split_once(" changed id from ")?;
    (!ids.starts_with(NO_ID)).then_some(topic)
}

#[cfg(test)]
mod tests {
    use rdkafka::statistics::Topic;

    use super::*;

    #[test]
    fn only_connections_to_brokers_say_that_the_cluster_is_reached() {
        let statistics = |brokers: &[(i32, &str)], partitions: &[(i32, i32, &str)]| {
            let brokers = brokers.iter().map(|&(nodeid, state)| {
                let broker = Broker { nodeid, state: state.to_owned(), ..Broker::default() };
                (nodeid.to_string(), broker)
            });
            let partitions = partitions.iter().map(|&(partition, leader, fetch_state)| {
                let fetch_state = fetch_state.to_owned();
                let (hi_offset, rest) = (7, PartitionStatistics::default());
                (
                    partition,
                    PartitionStatistics { partition, leader, fetch_state, hi_offset, ..rest },
                )
            });
            let topic = Topic { partitions: partitions.collect(), ..Topic::default() };
            let topics = [("users".to_owned(), topic)].into();
            Statistics { brokers: brokers.collect(), topics, ..Statistics::default() }
        };
        let check = |brokers: &[(i32, &str)], partitions: &[(i32, i32, &str)], expected| {
            let found = reached(&statistics(brokers, partitions));
            assert_eq!(found, expected, "{brokers:?} {partitions:?}");
        };
        let (up, down) = (&[(-1, "INIT"), (1, "UP")], &[(-1, "TRY_CONNECT"), (1, "CONNECT")]);
        check(up, &[(-1, -1, "none"), (0, 1, "active")], true);
        check(down, &[(-1, -1, "none"), (0, 1, "active")], false);
        check(&[(1, "UP"), (2, "DOWN")], &[(0, 1, "active"), (1, 2, "active")], false);
        check(&[(1, "UP"), (2, "DOWN")], &[(0, 1, "active"), (1, 2, "none")], true);
        check(up, &[(0, -1, "active")], false);
        check(&[(-1, "UP"), (1, "UP")], &[(0, -1, "active")], false);
        check(up, &[], true);
        check(down, &[], false);
    }

    #[test]
    fn a_topic_made_again_is_known_by_its_id() {
        let line = |from: &str| {
            format!("[thrd:main]: Topic users changed id from {from} to Xq2nVZJmQ5-8e0wYw2n4Wg")
        };
        assert_eq!(recreated_topic(&line("3hKq9vVYQ0CwW1s3bTn1uA")), Some("users"));
        assert_eq!(recreated_topic(&line("AAAAAAAAAAAAAAAAAAAAAA")), None, "its first id");
        assert_eq!(recreated_topic("[thrd:main]: Topic users [0] Leader 1 Epoch 0"), None);
    }
}
