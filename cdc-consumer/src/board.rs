//! What the process knows of itself, for the status page, the metrics and readiness.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::error::KafkaError;
use serde::Serialize;
use service::health::Readiness;

use crate::apply::{Applied, Outcome};
use crate::metrics;
use crate::offsets::Partition;

/// Shared state of one consumer process. Cheap to clone.
#[derive(Clone)]
pub struct Board {
    views: Arc<[String]>,
    state: Arc<Mutex<State>>,
    pub readiness: Readiness,
}

#[derive(Debug, Default)]
struct State {
    generation: Option<i32>,
    partitions: BTreeMap<(String, i32), PartitionState>,
    totals: Vec<Outcome>,
    fetch_pauses: u64,
    held: (usize, usize),
    broker_trouble: bool,
    missing_topics: String,
    ownership_unknown: bool,
    /// Writers whose batches wait for the database.
    waiting_writers: BTreeSet<usize>,
}

#[derive(Debug, Clone, Default)]
struct PartitionState {
    next_offset: i64,
    high_offset: Option<i64>,
    applied_at: Option<SystemTime>,
}

/// One owned partition as shown to people and scripts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartitionStatus {
    pub topic: String,
    pub partition: i32,
    pub next_offset: i64,
    /// Records not applied yet, as far as the broker told.
    pub lag: Option<i64>,
    pub applied_seconds_ago: Option<f64>,
}

/// Counts of one view since the process started.
#[derive(Debug, Clone, Serialize)]
pub struct ViewStatus {
    pub view: String,
    #[serde(flatten)]
    pub records: Outcome,
}

/// The whole status page.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    pub ready: bool,
    pub reasons: Vec<String>,
    pub generation: Option<i32>,
    /// How often fetching was stopped since the process started, because nothing could be taken.
    pub fetch_pauses: u64,
    /// Records that wait in memory for a schema, and their bytes.
    pub held_records: usize,
    pub held_bytes: usize,
    pub partitions: Vec<PartitionStatus>,
    pub views: Vec<ViewStatus>,
}

impl Board {
    pub fn new(views: impl IntoIterator<Item = String>, readiness: Readiness) -> Self {
        let views: Arc<[String]> = views.into_iter().collect();
        let totals = vec![Outcome::default(); views.len()];
        let state = State { totals, ..State::default() };
        Self { views, state: Arc::new(Mutex::new(state)), readiness }
    }

    /// A session begins: it owns nothing yet.
    pub fn begin(&self, generation: i32) {
        let mut state = self.state();
        state.generation = Some(generation);
        state.partitions.clear();
        state.held = (0, 0);
        state.ownership_unknown = false;
        state.waiting_writers.clear();
        // What the last session waited for when it ended is not this one's.
        self.readiness.clear("database");
        self.readiness.clear("ownership");
        self.readiness.clear("registry");
    }

    /// A partition is ours from this offset on.
    pub fn assigned(&self, partition: &Partition, next_offset: i64) {
        let key = (partition.topic.clone(), partition.number);
        let new = PartitionState { next_offset, ..PartitionState::default() };
        self.state().partitions.insert(key, new);
    }

    /// A partition is no longer ours.
    pub fn revoked(&self, partition: &Partition) {
        self.state().partitions.remove(&(partition.topic.clone(), partition.number));
        metrics::lag_unknown(partition);
    }

    /// The broker told where a log ends.
    pub fn high_offset(&self, topic: &str, number: i32, high_offset: i64) {
        let mut state = self.state();
        let Some(partition) = state.partitions.get_mut(&(topic.to_owned(), number)) else { return };
        // librdkafka repeats what it fetched last, which may be older than what was asked.
        let high_offset = partition.high_offset.map_or(high_offset, |known| known.max(high_offset));
        partition.high_offset = Some(high_offset);
        let lag = (high_offset - partition.next_offset).max(0);
        metrics::lag(&Partition { topic: topic.to_owned(), number }, lag);
    }

    /// librdkafka is connected to the brokers we need.
    pub fn broker_answers(&self) {
        if std::mem::take(&mut self.state().broker_trouble) {
            tracing::info!("the broker answers again");
            self.readiness.clear("kafka");
        }
    }

    /// librdkafka reported trouble with the cluster, which it deals with itself. Logged once per outage.
    pub fn broker_trouble(&self, error: &KafkaError, reason: &str) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.broker_trouble, true) {
            tracing::warn!(error = %error, reason, "trouble with the Kafka cluster, trying on");
        }
        self.readiness.block("kafka", reason);
    }

    /// Declared topics do not exist: the connector makes them with the first change. None: all do. Logged once.
    pub fn waiting_for_topics(&self, missing: &[&str]) {
        let topics = missing.join(", ");
        let mut state = self.state();
        if state.missing_topics == topics {
            return;
        }
        if topics.is_empty() {
            tracing::info!("every declared topic exists");
            self.readiness.clear("topic");
        } else {
            tracing::info!(topics, "a declared topic does not exist yet, waiting");
            self.readiness.block("topic", format!("waiting for topic {topics} to exist"));
        }
        state.missing_topics = topics;
    }

    /// Whether a declared topic did not exist when it was looked for last.
    pub fn waits_for_topics(&self) -> bool {
        !self.state().missing_topics.is_empty()
    }

    /// The database could not be asked whether our partitions are still ours. Logged once per outage.
    pub fn ownership_unknown(&self, error: &dyn std::error::Error) {
        let error = service::telemetry::chain(error).to_string();
        if !std::mem::replace(&mut self.state().ownership_unknown, true) {
            tracing::warn!(error, "cannot ask whether partitions are still ours, trying on");
        }
        self.readiness.block("ownership", error);
    }

    /// A partition that shall be ours is locked by its previous owner.
    pub fn waits_for_owner(&self, partition: &Partition) {
        self.state().ownership_unknown = true;
        let reason = format!("a previous owner still changes rows of {partition}");
        self.readiness.block("ownership", reason);
    }

    /// They are.
    pub fn ownership_known(&self) {
        if std::mem::take(&mut self.state().ownership_unknown) {
            tracing::info!("the database says again whose partitions are");
            self.readiness.clear("ownership");
        }
    }

    /// A writer's batch waits for the database.
    pub fn writer_waits(&self, writer: usize, reason: String) {
        let mut state = self.state();
        state.waiting_writers.insert(writer);
        self.readiness.block("database", reason);
    }

    /// It was applied. Another writer's may still wait.
    pub fn writer_goes_on(&self, writer: usize) {
        let mut state = self.state();
        state.waiting_writers.remove(&writer);
        if state.waiting_writers.is_empty() {
            self.readiness.clear("database");
        }
    }

    /// Fetching stops until what was read can be taken.
    pub fn fetching_paused(&self) {
        self.state().fetch_pauses += 1;
        metrics::fetching_paused();
    }

    /// So much is held back until a schema is known.
    pub fn holding(&self, records: usize, bytes: usize) {
        self.state().held = (records, bytes);
    }

    /// A batch is in the database.
    pub fn applied(&self, applied: &Applied) {
        let now = SystemTime::now();
        let mut state = self.state();
        for claim in &applied.claims {
            let key = (claim.partition.topic.clone(), claim.partition.number);
            if let Some(partition) = state.partitions.get_mut(&key) {
                partition.next_offset = claim.interval.next;
                partition.applied_at = Some(now);
            }
        }
        for ((total, outcome), view) in
            state.totals.iter_mut().zip(&applied.outcomes).zip(self.views.iter())
        {
            total.add(outcome);
            metrics::outcome(view, outcome);
        }
        drop(state);
        let now_micros = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        for (view, source_time_micros) in &applied.source_times {
            let (Some(view), Ok(then)) =
                (self.views.get(*view), u128::try_from(*source_time_micros))
            else {
                continue;
            };
            let age = u64::try_from(now_micros.saturating_sub(then)).unwrap_or(u64::MAX);
            metrics::freshness(view, Duration::from_micros(age));
        }
    }

    /// Everything at once.
    pub fn status(&self) -> Status {
        let reasons = self.readiness.reasons();
        let state = self.state();
        let partitions =
            state.partitions.iter().map(|((topic, number), partition)| PartitionStatus {
                topic: topic.clone(),
                partition: *number,
                next_offset: partition.next_offset,
                lag: partition.high_offset.map(|high| (high - partition.next_offset).max(0)),
                applied_seconds_ago: partition
                    .applied_at
                    .and_then(|at| at.elapsed().ok())
                    .map(|elapsed| elapsed.as_secs_f64()),
            });
        let views = self.views.iter().zip(&state.totals);
        Status {
            ready: reasons.is_empty(),
            reasons,
            generation: state.generation,
            fetch_pauses: state.fetch_pauses,
            held_records: state.held.0,
            held_bytes: state.held.1,
            partitions: partitions.collect(),
            views: views
                .map(|(view, records)| ViewStatus { view: view.clone(), records: *records })
                .collect(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outcome {
    fn add(&mut self, other: &Self) {
        self.applied += other.applied;
        self.folded += other.folded;
        self.stale += other.stale;
        self.ignored += other.ignored;
        self.quarantined += other.quarantined;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_ready_only_when_none_of_its_writers_waits() {
        let board = Board::new([], Readiness::new());
        board.writer_waits(0, "away".to_owned());
        board.writer_waits(1, "away".to_owned());
        board.writer_waits(0, "still away".to_owned());
        board.writer_goes_on(0);
        assert_eq!(board.readiness.reasons(), ["database: still away"]);
        board.writer_goes_on(1);
        assert!(board.readiness.reasons().is_empty());
        board.writer_waits(1, "away".to_owned());
        board.begin(2);
        board.writer_waits(0, "away".to_owned());
        board.writer_goes_on(0);
        assert!(board.readiness.reasons().is_empty());
    }
}
