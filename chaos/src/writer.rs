//! Writers that change the source tables in transactions, each its own rows, and remember what was
//! acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, Postgres, Transaction};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::http_writer::HttpWriter;
use crate::ledger::{Ledger, State};
use crate::sql::{self, Content, Table};

/// Every e-mail address of a run ends, and every title begins so; by these its rows are removed.
pub(crate) const USER_DOMAIN: &str = "chaos.example.com";
pub(crate) const POST_TITLE: &str = "chaos ";

const USER_WRITERS: u32 = 8;
const POST_WRITERS: u32 = 4;
const HTTP_WRITERS: u32 = 3;
const HTTP_WRITES_PER_SECOND: u32 = 12;
/// What a transaction of [`SqlWriter::steps`] changes on average, in tenths of a row.
const TRANSACTION_TENTHS: u32 = 26;
/// Rows one writer keeps alive; beyond that it changes and deletes instead of inserting.
const LIVE_ROWS_MAX: usize = 30;

/// What all writers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) run: String,
    /// Rows that are always in the view, for posts over HTTP.
    pub(crate) authors: Vec<i64>,
    stop: AtomicBool,
    acknowledged: AtomicU64,
}

/// Running writers.
#[derive(Debug)]
pub(crate) struct Writers {
    shared: Arc<Shared>,
    tasks: JoinSet<(Ledger, Ledger)>,
}

/// What all writers know in the end.
#[derive(Debug, Default)]
pub(crate) struct Ledgers {
    pub(crate) users: Ledger,
    pub(crate) posts: Ledger,
}

impl Writers {
    /// Writers of about `changes_per_second` row changes together. What they do, though not when,
    /// depends on the seed.
    pub(crate) fn start(
        user_db: &PgPool,
        post_db: &PgPool,
        shared: Shared,
        seed: u64,
        changes_per_second: u32,
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(shared);
        let mut tasks = JoinSet::new();
        let random = |number: u32| {
            Xoshiro256PlusPlus::seed_from_u64(seed ^ (u64::from(number) + 1).rotate_left(32))
        };
        let changes = changes_per_second.saturating_sub(HTTP_WRITES_PER_SECOND).max(1);
        let sql_writers = USER_WRITERS + POST_WRITERS;
        let every = Duration::from_secs(1) * sql_writers * TRANSACTION_TENTHS / 10 / changes;
        for number in 0..sql_writers {
            let (table, pool) = if number < USER_WRITERS {
                (Table::Users, user_db)
            } else {
                (Table::Posts, post_db)
            };
            let writer = SqlWriter {
                table,
                pool: pool.clone(),
                name: format!("{}-{number}", shared.run),
                random: random(number),
                serial: 0,
                ledger: Ledger::default(),
                shared: Arc::clone(&shared),
            };
            tasks.spawn(writer.run(every));
        }
        for number in 0..HTTP_WRITERS {
            let number = sql_writers + number;
            let writer = HttpWriter::new(number, random(number), Arc::clone(&shared))?;
            let every = Duration::from_secs(1) * HTTP_WRITERS / HTTP_WRITES_PER_SECOND;
            tasks.spawn(writer.run(every));
        }
        Ok(Self { shared, tasks })
    }

    /// Row changes acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Relaxed)
    }

    /// Lets every writer finish its write; the servers must be there.
    pub(crate) async fn stop(self) -> Ledgers {
        self.shared.stop.store(true, Relaxed);
        let mut all = Ledgers::default();
        for (users, posts) in self.tasks.join_all().await {
            all.users.merge(users);
            all.posts.merge(posts);
        }
        all
    }
}

impl Shared {
    pub(crate) fn new(run: String, authors: Vec<i64>) -> Self {
        Self { run, authors, stop: AtomicBool::new(false), acknowledged: AtomicU64::new(0) }
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    pub(crate) fn count(&self, changes: usize) {
        self.acknowledged.fetch_add(changes as u64, Relaxed);
    }
}

/// Connections for the writers of one database, with the rights of the service that owns it.
pub(crate) fn pool(url: &str) -> anyhow::Result<PgPool> {
    PgPoolOptions::new()
        .max_connections(USER_WRITERS + 2)
        .connect_lazy(url)
        .context("the address of a source database is wrong")
}

/// What one step of a transaction does to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Insert,
    Update,
    /// Gives the row a new primary key.
    Move,
    Delete,
    /// Updates the row of the step before once more.
    UpdateAgain,
    /// Deletes the row of the step before.
    DeleteAgain,
}

struct SqlWriter {
    table: Table,
    pool: PgPool,
    name: String,
    random: Xoshiro256PlusPlus,
    serial: u64,
    ledger: Ledger,
    shared: Arc<Shared>,
}

impl SqlWriter {
    async fn run(mut self, every: Duration) -> (Ledger, Ledger) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.shared.stopped() {
            ticks.tick().await;
            self.write().await;
        }
        match self.table {
            Table::Users => (self.ledger, Ledger::default()),
            Table::Posts => (Ledger::default(), self.ledger),
        }
    }

    /// One transaction. Until COMMIT is sent an error means that nothing happened; after it,
    /// nobody knows.
    async fn write(&mut self) {
        let steps = self.steps();
        let roll_back = self.random.random_ratio(1, 10);
        match self.carry_out(&steps).await {
            Ok((tx, _)) if roll_back => {
                // Rolled back by the server at the latest when the connection ends.
                tx.rollback().await.ok();
            }
            Ok((tx, effects)) => match tx.commit().await {
                Ok(()) => {
                    self.ledger.acknowledge(&effects);
                    self.shared.count(effects.len());
                }
                Err(_) => self.ledger.doubt(&effects),
            },
            Err(error) if sql::is_our_fault(&error) => {
                self.ledger.wrong.push(format!("{steps:?}: {error}"));
            }
            Err(_) => {}
        }
    }

    /// Half of the transactions change one row, most others several, some one row many times.
    fn steps(&mut self) -> Vec<Step> {
        let count = match self.random.random_range(0..10) {
            0..5 => 1,
            5..9 => self.random.random_range(2..=6),
            _ => return self.flurry(),
        };
        (0..count).map(|_| self.step()).collect()
    }

    fn step(&mut self) -> Step {
        match self.random.random_range(0..10) {
            0..4 => Step::Insert,
            4..7 => Step::Update,
            7 => Step::Move,
            _ => Step::Delete,
        }
    }

    fn flurry(&mut self) -> Vec<Step> {
        let first = if self.random.random() { Step::Insert } else { Step::Update };
        let mut steps = vec![first];
        steps.extend((0..self.random.random_range(2..5)).map(|_| Step::UpdateAgain));
        if self.random.random_ratio(1, 3) {
            steps.push(Step::DeleteAgain);
        }
        steps
    }

    async fn carry_out(
        &mut self,
        steps: &[Step],
    ) -> Result<(Transaction<'static, Postgres>, Vec<(i64, State)>), sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        let mut live: Vec<i64> = self.ledger.live().into_iter().map(|(id, _)| id).collect();
        let mut effects: Vec<(i64, State)> = Vec::new();
        for &step in steps {
            let again = matches!(step, Step::UpdateAgain | Step::DeleteAgain);
            let chosen = match effects.last() {
                _ if live.is_empty() => None,
                Some((id, _)) if again => live.iter().position(|live| live == id),
                _ => Some(self.random.random_range(0..live.len())),
            };
            let full = live.len() >= LIVE_ROWS_MAX;
            let content = self.content();
            let tx = &mut *tx;
            match (step, chosen) {
                (Step::Insert, _) if !full => {
                    let (id, version) = sql::insert(tx, self.table, &content).await?;
                    live.push(id);
                    effects.push((id, Some(version)));
                }
                (Step::Move, Some(at)) => {
                    let (id, version) = sql::move_key(tx, self.table, live[at]).await?;
                    effects.extend([(live[at], None), (id, Some(version))]);
                    live[at] = id;
                }
                (Step::Delete | Step::DeleteAgain, Some(at)) => {
                    sql::delete(tx, self.table, live[at]).await?;
                    effects.push((live.swap_remove(at), None));
                }
                (_, Some(at)) => {
                    let version = sql::update(tx, self.table, live[at], &content).await?;
                    effects.push((live[at], Some(version)));
                }
                (_, None) => {}
            }
        }
        Ok((tx, effects))
    }

    fn content(&mut self) -> Content {
        self.serial += 1;
        Content::random(&mut self.random, format!("{}-{}", self.name, self.serial))
    }
}
