//! The real fence and the real statements, called as a writer calls them, by processes that crash.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use cdc_consumer::apply::{self, Attempt, Care, Target};
use cdc_consumer::batch::Batch;
use cdc_consumer::database::Database;
use cdc_consumer::fence::{self, Wanted};
use cdc_consumer::offsets::{Partition, Progress};
use sqlx::PgConnection;

use super::generator::Random;

/// A view database, and how often a crash met each moment of a batch.
pub(crate) struct Postgres {
    database: Database,
    connection: PgConnection,
    target: Target,
    pub(crate) crashes: Crashes,
}

/// Applications of a batch that were given up half-way, by what the database says of them.
#[derive(Debug, Default)]
pub(crate) struct Crashes {
    /// Before anything could take effect: nothing did.
    pub(crate) lost: u64,
    /// The commit was sent, its answer never read, and it took effect.
    pub(crate) unanswered: u64,
}

/// What came of a batch.
pub(crate) enum Outcome {
    Applied,
    Fenced,
    /// The process died, and with it what it knew.
    Died,
}

/// More waits for the server than a batch needs: the last ones find it applied.
const WAITS_MAX: usize = 13;

impl Postgres {
    pub(crate) async fn new(database: Database, target: Target) -> Self {
        let connection = connect(&database).await;
        Self { database, connection, target, crashes: Crashes::default() }
    }

    pub(crate) async fn acquire(
        &mut self,
        partition: &Partition,
        requested: Option<i64>,
    ) -> Progress {
        let wanted = Wanted { partition: partition.clone(), log_start: 0, requested };
        fence::acquire(&mut self.connection, &wanted, "history").await.expect("acquired")
    }

    /// Applies a batch, unless the fence holds it back. Now and then the connection or the process ends
    /// at some wait for the server.
    pub(crate) async fn apply(&mut self, batch: &Batch, random: &mut Random) -> Outcome {
        self.target.copy_rows_min = if random.percent(50) { 1 } else { usize::MAX };
        if random.percent(50) {
            let waits = random.below(WAITS_MAX);
            let attempt = apply::apply(&mut self.connection, &self.target, batch, Care::Sets);
            match (CrashAfter { waits, work: Box::pin(attempt) }).await {
                Some(attempt) => return self.outcome(batch, attempt.expect("no failure")).await,
                None => self.connection = connect(&self.database).await,
            }
            // What a writer asks when the answer to its commit is lost.
            let settled = self.settled(batch).await;
            if settled {
                self.crashes.unanswered += 1;
            } else {
                self.crashes.lost += 1;
            }
            if random.percent(50) {
                return Outcome::Died;
            }
            if settled {
                return Outcome::Applied;
            }
        }
        let attempt = apply::apply(&mut self.connection, &self.target, batch, Care::Sets).await;
        self.outcome(batch, attempt.expect("no failure")).await
    }

    async fn outcome(&mut self, batch: &Batch, attempt: Attempt) -> Outcome {
        let settled = self.settled(batch).await;
        match attempt {
            Attempt::Applied(_) => {
                assert!(settled, "an applied batch is settled");
                Outcome::Applied
            }
            // A lost commit that took effect only after it was asked about looks so, too.
            Attempt::Fenced => Outcome::Fenced,
        }
    }

    async fn settled(&mut self, batch: &Batch) -> bool {
        fence::settled(&mut self.connection, &batch.claims).await.expect("offsets")
    }
}

async fn connect(database: &Database) -> PgConnection {
    database.connect_writer(1).await.expect("a connection")
}

/// Work that ends without an answer when it has waited so many times: what it sent, it sent.
struct CrashAfter<F> {
    waits: usize,
    work: Pin<Box<F>>,
}

impl<F: Future> Future for CrashAfter<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = self.work.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        let Some(left) = self.waits.checked_sub(1) else { return Poll::Ready(None) };
        self.waits = left;
        Poll::Pending
    }
}
