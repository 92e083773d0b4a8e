//! The crown: whatever happens to a source table, and however its history is cut, crashed, repeated and
//! fought over, the view ends equal to it.
//!
//! A seed makes a history and a schedule. `CDC_SEED=n` replays one seed, alone and in both tests.

pub(crate) mod generator;
mod model;
mod postgres;

use std::collections::BTreeMap;
use std::sync::Arc;

use cdc_consumer::apply::Target;
use cdc_consumer::batch::Batch;
use cdc_consumer::catalog::Table;
use cdc_consumer::database::{Database, Place};
use cdc_consumer::decode::{Decoded, Decoder, Record, View};
use cdc_consumer::offsets::{Partition, Progress};
use cdc_consumer::refetch::RecordFetcher;
use cdc_consumer::{schema, view};

use crate::harness::consumer::settings;
use crate::harness::feed::Feed;
use crate::harness::source::{user_feed, user_views};
use crate::harness::{World, optional_setting};

pub(crate) use generator::Random;
use generator::{History, history};
use model::Model;
use postgres::{Crashes, Outcome, Postgres};

const MODEL_HISTORIES: u64 = 5_000;
const POSTGRES_HISTORIES: u64 = 60;

/// Where batches take effect.
enum Store<'a> {
    Model(&'a mut Model),
    Postgres(&'a mut Postgres),
}

impl Store<'_> {
    async fn acquire(&mut self, partition: &Partition, requested: Option<i64>) -> Progress {
        match self {
            Self::Model(model) => model.acquire(partition.number, requested),
            Self::Postgres(postgres) => postgres.acquire(partition, requested).await,
        }
    }

    async fn apply(&mut self, batch: &Batch, random: &mut Random) -> Outcome {
        match self {
            Self::Model(model) => {
                if model.apply(batch) {
                    Outcome::Applied
                } else {
                    Outcome::Fenced
                }
            }
            Self::Postgres(postgres) => postgres.apply(batch, random).await,
        }
    }
}

/// A consumer, as far as these tests need one: what it believes to own, and a batch not yet applied.
#[derive(Default)]
struct Owner {
    progress: BTreeMap<usize, Progress>,
    pending: Option<Batch>,
}

struct Run<'a> {
    random: Random,
    history: &'a History,
    topic: &'a str,
    stages: &'a mut Stages,
    store: Store<'a>,
    owners: [Owner; 2],
    /// Where the stored offset of each partition stands.
    applied: BTreeMap<usize, i64>,
}

impl<'a> Run<'a> {
    fn new(
        random: Random,
        history: &'a History,
        topic: &'a str,
        stages: &'a mut Stages,
        store: Store<'a>,
    ) -> Self {
        let owners = [Owner::default(), Owner::default()];
        Self { random, history, topic, stages, store, owners, applied: BTreeMap::new() }
    }

    /// Two owners fight over the partitions for a while, then one reads what is left.
    async fn play(&mut self) {
        // The first member of a group gets every partition.
        for partition in 0..self.history.partitions.len() {
            self.acquire(0, partition, None).await;
        }
        for _ in 0..40 {
            let owner = self.random.below(2);
            match self.random.below(100) {
                0..20 => self.take_over(owner).await,
                20..80 => self.work(owner).await,
                80..88 => self.owners[owner] = Owner::default(), // crashed before its commit
                _ => self.apply_pending(owner).await,            // slow, or a zombie
            }
        }
        self.owners = [Owner::default(), Owner::default()];
        for partition in 0..self.history.partitions.len() {
            self.acquire(0, partition, None).await;
        }
        while self.left(0) {
            for partition in 0..self.history.partitions.len() {
                // The last owner may have crashed, too.
                if !self.owners[0].progress.contains_key(&partition) {
                    self.acquire(0, partition, None).await;
                }
            }
            self.build(0, 50);
            self.apply_pending(0).await;
        }
    }

    async fn take_over(&mut self, owner: usize) {
        let partition = self.random.below(self.history.partitions.len());
        let records = self.history.partitions[partition].len();
        // An operator's replay. Never to records not yet applied: that would be a jump, and lose them.
        let requested = self.random.percent(15).then(|| {
            let offset = i64::try_from(self.random.below(records + 1)).expect("a small offset");
            offset.min(self.applied.get(&partition).copied().unwrap_or(0))
        });
        self.acquire(owner, partition, requested).await;
    }

    async fn acquire(&mut self, owner: usize, partition: usize, requested: Option<i64>) {
        let named = self.named(partition);
        let progress = self.store.acquire(&named, requested).await;
        self.applied.insert(partition, progress.next_offset);
        self.owners[owner].progress.insert(partition, progress);
    }

    async fn work(&mut self, owner: usize) {
        if self.owners[owner].pending.is_none() {
            let most = 1 + self.random.below(15);
            self.build(owner, most);
        }
        if self.random.percent(80) {
            self.apply_pending(owner).await;
        }
    }

    /// Reads up to `most` records of each partition into a batch.
    fn build(&mut self, owner: usize, most: usize) {
        let mut batch = Batch::new([self.stages.shape]);
        let mut believed = std::mem::take(&mut self.owners[owner].progress);
        for (&partition, progress) in &mut believed {
            let named = self.named(partition);
            let log = &self.history.partitions[partition];
            let next = usize::try_from(progress.next_offset).expect("not negative");
            for (message, offset) in log.iter().skip(next).take(most).zip(progress.next_offset..) {
                let record = Record {
                    topic: self.topic,
                    partition: named.number,
                    offset,
                    timestamp_millis: offset,
                    key: message.key.as_deref(),
                    value: message.value.as_deref(),
                    headers: &false,
                };
                let decoded = self.stages.decoder.decode(&record, &named, progress, &mut batch);
                assert_eq!(decoded.expect("a good record"), Decoded::Taken);
            }
        }
        assert!(batch.refused.is_empty(), "{:?}", batch.refused);
        self.owners[owner].progress = believed;
        self.owners[owner].pending = Some(batch);
    }

    async fn apply_pending(&mut self, owner: usize) {
        let Some(batch) = self.owners[owner].pending.take().filter(|batch| !batch.is_empty())
        else {
            return;
        };
        match self.store.apply(&batch, &mut self.random).await {
            Outcome::Applied => {
                for claim in &batch.claims {
                    let partition = usize::try_from(claim.partition.number).expect("not negative");
                    self.applied.insert(partition, claim.interval.next);
                }
            }
            // The session ends, and knows nothing any more.
            Outcome::Fenced | Outcome::Died => self.owners[owner] = Owner::default(),
        }
    }

    fn left(&self, owner: usize) -> bool {
        self.history.partitions.iter().enumerate().any(|(partition, log)| {
            let progress = self.owners[owner].progress.get(&partition);
            progress.is_none_or(|progress| {
                progress.next_offset < i64::try_from(log.len()).expect("small")
            })
        })
    }

    fn named(&self, partition: usize) -> Partition {
        let number = i32::try_from(partition).expect("few partitions");
        Partition { topic: self.topic.to_owned(), number }
    }
}

/// The pure stages for `user_view`.
struct Stages {
    decoder: Decoder,
    views: Arc<Vec<View>>,
    shape: (usize, usize),
}

/// They know the feed's schemas from the start.
async fn stages(world: &World, feed: &Feed) -> Stages {
    let specs = view::parse(&user_views(&feed.topic)).expect("a valid declaration");
    let table = Table::read(&mut world.db().await, "views_1", "user_view").await.expect("a view");
    let shape = (table.key_columns().len(), table.width());
    let spec = specs.into_iter().next().expect("one view");
    let views = Arc::new(vec![View { spec, table }]);
    let mut decoder = Decoder::new(Arc::clone(&views));
    for schema in [&feed.key, &feed.value] {
        let node = schema::parse(&schema.text(), &[]).expect("a valid schema");
        decoder.learn(schema.id, Arc::new(node));
    }
    Stages { decoder, views, shape }
}

/// Names the seed when anything inside it fails.
pub(crate) struct Replay(pub(crate) u64);

impl Drop for Replay {
    #[expect(clippy::print_stderr, reason = "what a failed test has to say")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay this history with CDC_SEED={}", self.0);
        }
    }
}

/// The seeds to try: the given number, from a random first one, or the one to replay.
pub(crate) fn seeds(count: u64) -> std::ops::Range<u64> {
    if let Some(seed) = optional_setting("CDC_SEED") {
        let seed = seed.parse().expect("CDC_SEED is a number");
        return seed..seed + 1;
    }
    let first = u64::from(uuid::Uuid::new_v4().as_fields().0) << 20;
    first..first + count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fold_of_any_history_however_cut_ends_equal_to_the_source() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut stages = stages(&world, &feed).await;
    for seed in seeds(MODEL_HISTORIES) {
        let _replay = Replay(seed);
        let mut random = Random::new(seed);
        let partitions = 1 + random.below(4);
        let length = 5 + random.below(35);
        let history = history(&mut random, &feed, partitions, length);
        let mut model = Model::default();
        let store = Store::Model(&mut model);
        Run::new(random, &history, &feed.topic, &mut stages, store).play().await;
        let expected: BTreeMap<String, String> = history
            .users
            .as_view()
            .iter()
            .map(|row| {
                (row["user_id"].to_string(), row["name"].as_str().expect("a name").to_owned())
            })
            .collect();
        assert_eq!(model.shown(), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_ends_equal_to_the_source_for_any_history_however_cut() {
    let world = World::new().await;
    let feed = user_feed(&world, 1).await;
    let mut stages = stages(&world, &feed).await;
    let settings = settings(&world, &[]);
    let fetcher = RecordFetcher::new(&settings.kafka);
    let target = Target::new(&stages.views, Place::published(1), 1000, usize::MAX, fetcher);
    let database = Database::new(&settings.database.consumer_database_url);
    world.audit().await;
    let mut postgres = Postgres::new(database.expect("a url"), target).await;
    let enough = |crashes: &Crashes| crashes.lost >= 10 && crashes.unanswered >= 5;
    for (played, seed) in (0..).zip(seeds(10 * POSTGRES_HISTORIES)) {
        if played >= POSTGRES_HISTORIES && enough(&postgres.crashes) {
            break;
        }
        let _replay = Replay(seed);
        world
            .sql(
                "truncate user_view, user_view_deleted, department_stats_slot, cdc_offset, cdc_floor,
                 audit",
            )
            .await;
        let mut random = Random::new(seed);
        let partitions = 1 + random.below(4);
        let length = 5 + random.below(35);
        let history = history(&mut random, &feed, partitions, length);
        let store = Store::Postgres(&mut postgres);
        Run::new(random, &history, &feed.topic, &mut stages, store).play().await;
        let difference = world.difference("user_view", &history.users.as_view()).await;
        assert_eq!(difference, Ok(()));
        world.counts_are_right().await;
        world.never_went_back().await;
    }
    if optional_setting("CDC_SEED").is_none() {
        let crashes = &postgres.crashes;
        assert!(enough(crashes), "hardly any: {crashes:?}");
    }
}
