//! Requests answered together: those that meet while a statement is under way share the next one.
//!
//! A statement costs the server and us a round trip, and a commit a flush of the log, whether it is about
//! one row or a hundred. Nobody waits for company: a request that is alone is answered by a statement of
//! its own at once. A statement begins after each of its requests arrived, so that a read sees whatever
//! was committed before it.

use std::collections::HashMap;
use std::hash::Hash;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;

use crate::{Problem, database};

/// Statements under way at once, at most. More would take connections of the pool from requests that go
/// alone.
const WORKERS: usize = 2;
/// How long one statement has the server to itself, while requests gather for the next: the fewer statements,
/// the less each request costs. One that takes longer, since it waits for a lock or for a connection, does
/// not hold up the others.
const ALONE_MAX: Duration = Duration::from_millis(10);
/// Requests that may wait for a statement. More are answered when there is room, or time out.
const WAITING_MAX: usize = 2_000;

/// What one request gets.
pub type Answer<A> = Result<A, Problem>;

/// The way to the workers. They end when the last clone is gone.
pub struct Together<I, A> {
    requests: Sender<Request<I, A>>,
}

struct Request<I, A> {
    input: I,
    answer: oneshot::Sender<Answer<A>>,
}

// Derived, it would ask the same of inputs and answers.
impl<I, A> Clone for Together<I, A> {
    fn clone(&self) -> Self {
        Self { requests: self.requests.clone() }
    }
}

impl<I: Send + 'static, A: Send + 'static> Together<I, A> {
    /// Starts the workers; must be called inside a Tokio runtime.
    ///
    /// `answer` makes answers from `inputs_max` inputs at most, in their order. It is given up when
    /// nobody waits for any of them.
    pub fn start<F>(
        inputs_max: usize,
        answer: impl Fn(Vec<I>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Vec<Answer<A>>> + Send + 'static,
    {
        Self::start_with(inputs_max, ALONE_MAX, answer)
    }

    fn start_with<F>(
        inputs_max: usize,
        alone_max: Duration,
        answer: impl Fn(Vec<I>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Vec<Answer<A>>> + Send + 'static,
    {
        let (requests, receiver) = mpsc::channel(WAITING_MAX);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..WORKERS {
            let (receiver, answer) = (Arc::clone(&receiver), answer.clone());
            tokio::spawn(async move {
                let start = || {
                    let requests = Arc::clone(&receiver);
                    tokio::spawn(work(requests, inputs_max, alone_max, answer.clone()))
                };
                // Whom a worker that panicked owes an answer gets none; others get theirs from the next.
                while start().await.is_err_and(|error| error.is_panic()) {}
            });
        }
        Self { requests }
    }

    /// Waits for the answer to one input.
    pub async fn ask(&self, input: I) -> Answer<A> {
        let (answer, answered) = oneshot::channel();
        let unavailable = || Problem::unavailable(database::RETRY_AFTER);
        self.requests.send(Request { input, answer }).await.map_err(|_| unavailable())?;
        answered.await.map_err(|_| unavailable())?
    }
}

async fn work<I, A, F>(
    requests: Arc<Mutex<Receiver<Request<I, A>>>>,
    inputs_max: usize,
    alone_max: Duration,
    answer: impl Fn(Vec<I>) -> F,
) where
    F: Future<Output = Vec<Answer<A>>>,
{
    let mut together = Vec::new();
    loop {
        let mut turn = requests.lock().await;
        if turn.recv_many(&mut together, inputs_max).await == 0 {
            return;
        }
        // Nobody waits for these any more, and nothing of them has begun.
        together.retain(|request| !request.answer.is_closed());
        let (inputs, mut waiting): (Vec<I>, Vec<_>) =
            together.drain(..).map(|Request { input, answer }| (input, answer)).unzip();
        if inputs.is_empty() {
            continue;
        }
        let mut answered = pin!(async {
            // A connection that hangs holds a worker no longer than its requests wait.
            tokio::select! {
                answers = answer(inputs) => {
                    // A client that went away wants no answer.
                    waiting.into_iter().zip(answers).for_each(|(to, answer)| drop(to.send(answer)));
                }
                () = abandoned(&mut waiting) => {}
            }
        });
        if timeout(alone_max, &mut answered).await.is_err() {
            drop(turn);
            answered.await;
        }
    }
}

/// Ends when nobody waits any more.
async fn abandoned<A>(waiting: &mut [oneshot::Sender<A>]) {
    for answer in waiting {
        answer.closed().await;
    }
}

/// Answers to reads by key: each key gets its row or nothing, also one that was asked twice. An error is
/// everybody's.
pub fn rows_by_key<K: Copy + Eq + Hash, R>(
    keys: &[K],
    rows: Result<Vec<R>, sqlx::Error>,
    key: impl Fn(&R) -> K,
) -> Vec<Answer<Option<Arc<R>>>> {
    let rows: Answer<HashMap<K, Arc<R>>> = rows
        .map(|rows| rows.into_iter().map(|row| (key(&row), Arc::new(row))).collect())
        .map_err(database::problem);
    let one = |key| rows.as_ref().map(|rows| rows.get(key).cloned()).map_err(Problem::clone);
    keys.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;
    use tokio::task::JoinSet;

    use super::*;

    const INPUTS_MAX: usize = 10;

    /// Statements that wait for a permit, in the place of a server that takes its time.
    #[derive(Clone)]
    struct Statements {
        begun: mpsc::UnboundedSender<Vec<i64>>,
        permits: Arc<Semaphore>,
    }

    impl Statements {
        /// A negative input is never answered, zero is a bug of ours.
        async fn run(self, inputs: Vec<i64>) -> Vec<Answer<i64>> {
            self.begun.send(inputs.clone()).unwrap();
            self.permits.acquire().await.unwrap().forget();
            assert!(!inputs.contains(&0), "zero");
            inputs.into_iter().take_while(|input| *input > 0).map(Ok).collect()
        }
    }

    type Begun = mpsc::UnboundedReceiver<Vec<i64>>;

    /// Statements of which each may be as slow as it likes, beside the next.
    fn start(permits: usize) -> (Together<i64, i64>, Begun, Arc<Semaphore>) {
        start_with(Duration::ZERO, permits)
    }

    fn start_with(
        alone_max: Duration,
        permits: usize,
    ) -> (Together<i64, i64>, Begun, Arc<Semaphore>) {
        let (begun, receiver) = mpsc::unbounded_channel();
        let statements = Statements { begun, permits: Arc::new(Semaphore::new(permits)) };
        let permits = Arc::clone(&statements.permits);
        let run = move |inputs| statements.clone().run(inputs);
        (Together::start_with(INPUTS_MAX, alone_max, run), receiver, permits)
    }

    fn ask(together: &Together<i64, i64>, input: i64) -> tokio::task::JoinHandle<Answer<i64>> {
        let together = together.clone();
        tokio::spawn(async move { together.ask(input).await })
    }

    /// Keeps every worker busy.
    async fn occupy(together: &Together<i64, i64>, begun: &mut Begun) {
        for input in 1..=WORKERS {
            drop(ask(together, i64::try_from(input).unwrap()));
            begun.recv().await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_arrives_while_a_statement_is_under_way_shares_the_next() {
        let (together, mut begun, permits) = start_with(Duration::MAX, 0);
        let mut asked = vec![ask(&together, 1)];
        assert_eq!(begun.recv().await.unwrap(), [1]);
        asked.extend([ask(&together, 2), ask(&together, 3)]);
        tokio::task::yield_now().await;
        permits.add_permits(2);
        for answered in asked {
            answered.await.unwrap().unwrap();
        }
        assert_eq!(begun.recv().await.unwrap(), [2, 3]);
    }

    #[tokio::test]
    async fn a_statement_that_takes_long_does_not_hold_up_the_next() {
        let (together, mut begun, _permits) = start_with(ALONE_MAX, 0);
        for input in 1..=i64::try_from(WORKERS).unwrap() {
            let _asked = ask(&together, input);
            assert_eq!(begun.recv().await.unwrap(), [input]);
        }
    }

    #[tokio::test]
    async fn requests_that_meet_share_a_statement_up_to_its_limit() {
        let (together, mut begun, permits) = start(0);
        occupy(&together, &mut begun).await;
        let inputs = 101..=100 + i64::try_from(INPUTS_MAX).unwrap() + 2;
        let mut asked = JoinSet::new();
        for input in inputs.clone() {
            let together = together.clone();
            asked.spawn(async move { (input, together.ask(input).await) });
        }
        // All of them wait before the workers may go on.
        tokio::task::yield_now().await;
        permits.add_permits(WORKERS + 2);
        while let Some(done) = asked.join_next().await {
            let (input, answer) = done.unwrap();
            assert_eq!(answer.unwrap(), input);
        }
        let (first, second) = (begun.recv().await.unwrap(), begun.recv().await.unwrap());
        assert_eq!((first.len(), second.len()), (INPUTS_MAX, 2));
        assert!(first.into_iter().chain(second).eq(inputs));
    }

    #[tokio::test]
    async fn a_request_that_nobody_waits_for_is_left_out() {
        let (together, mut begun, permits) = start(0);
        occupy(&together, &mut begun).await;
        let (gone, kept) = (ask(&together, 7), ask(&together, 8));
        tokio::task::yield_now().await;
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        permits.add_permits(WORKERS + 1);
        assert_eq!(kept.await.unwrap().unwrap(), 8);
        assert_eq!(begun.recv().await.unwrap(), [8]);
    }

    #[tokio::test]
    async fn a_statement_that_nobody_waits_for_is_given_up() {
        let (together, mut begun, permits) = start(0);
        for input in 1..=3 * i64::try_from(WORKERS).unwrap() {
            let asked = ask(&together, input);
            assert_eq!(begun.recv().await.unwrap(), [input]);
            asked.abort();
        }
        // One more: the last statement may still be there to take it.
        permits.add_permits(2);
        assert_eq!(together.ask(11).await.unwrap(), 11);
    }

    #[tokio::test]
    async fn an_answer_that_never_comes_is_503_and_the_next_request_is_answered() {
        let (together, _begun, _permits) = start(Semaphore::MAX_PERMITS);
        for input in [-1, 0, 0, 0, -1] {
            assert_eq!(together.ask(input).await.unwrap_err().status().as_u16(), 503);
        }
        assert_eq!(together.ask(1).await.unwrap(), 1);
    }

    #[test]
    fn each_key_gets_its_row_or_nothing_and_an_error_is_everybodys() {
        let keys = [3, 1, 3, 2];
        let answers = rows_by_key(&keys, Ok(vec![(1, 'a'), (3, 'c')]), |row| row.0);
        let rows: Vec<_> = answers.into_iter().map(|row| row.unwrap().map(|row| row.1)).collect();
        assert_eq!(rows, [Some('c'), Some('a'), Some('c'), None]);
        let failed = rows_by_key(&keys, Err(sqlx::Error::PoolTimedOut), |row: &(i64, char)| row.0);
        let statuses: Vec<_> =
            failed.into_iter().map(|row| row.unwrap_err().status().as_u16()).collect();
        assert_eq!(statuses, [503; 4]);
    }
}
