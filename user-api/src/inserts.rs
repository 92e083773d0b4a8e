//! New users, inserted together: requests that meet while a commit is under way share the next one.
//!
//! A commit costs a flush of the server's log, whether it holds one row or a hundred. Nobody waits for
//! company: a request that is alone is inserted at once. Each request is answered only after its own row
//! was committed, and one that is refused takes nobody along.

use std::collections::HashMap;
use std::sync::Arc;

use service::{Problem, database};
use sqlx::PgPool;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::user_body::User;
use crate::users::{UserRow, refused, taken};

/// Statements under way at once. While one waits for its commit, the other gathers.
const WORKERS: usize = 2;
/// Most rows of one statement: it stays far below the statement timeout.
const ROWS_MAX: usize = 200;
/// Requests that may wait for a statement. More are answered when there is room, or time out.
const WAITING_MAX: usize = 2_000;

type Answer = Result<UserRow, Problem>;

struct Request {
    user: User,
    answer: oneshot::Sender<Answer>,
}

/// The way to the workers. They end when the last clone is gone.
#[derive(Clone)]
pub(crate) struct Inserts {
    requests: Sender<Request>,
}

impl Inserts {
    /// Starts the workers; must be called inside a Tokio runtime.
    pub(crate) fn start(pool: &PgPool) -> Self {
        let (requests, receiver) = mpsc::channel(WAITING_MAX);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..WORKERS {
            tokio::spawn(work(pool.clone(), Arc::clone(&receiver)));
        }
        Self { requests }
    }

    /// Inserts a user. Once this returns a row, it is committed.
    pub(crate) async fn insert(&self, user: User) -> Answer {
        let (answer, inserted) = oneshot::channel();
        let unavailable = || Problem::unavailable(database::RETRY_AFTER);
        self.requests.send(Request { user, answer }).await.map_err(|_| unavailable())?;
        inserted.await.map_err(|_| unavailable())?
    }
}

async fn work(pool: PgPool, requests: Arc<Mutex<Receiver<Request>>>) {
    let mut together = Vec::new();
    loop {
        let count = requests.lock().await.recv_many(&mut together, ROWS_MAX).await;
        if count == 0 {
            return;
        }
        // Nobody waits for these any more, and nothing of them is written yet.
        together.retain(|request| !request.answer.is_closed());
        insert(&pool, std::mem::take(&mut together)).await;
    }
}

/// Inserts all, and answers each.
async fn insert(pool: &PgPool, requests: Vec<Request>) {
    let inserted = insert_rows(pool, &requests).await;
    if requests.len() == 1 || !inserted.as_ref().is_err_and(database::is_refusal) {
        return answer(requests, inserted);
    }
    // Whose fault it was is not known; each alone finds out.
    for request in requests {
        let alone = vec![request];
        let inserted = insert_rows(pool, &alone).await;
        answer(alone, inserted);
    }
}

/// A row has its own address; a request without one lost its address to another. Of two with one address
/// the first has it. A client that went away wants no answer.
fn answer(requests: Vec<Request>, inserted: Result<Vec<UserRow>, sqlx::Error>) {
    let by_email = |rows: Vec<UserRow>| -> HashMap<String, UserRow> {
        rows.into_iter().map(|row| (row.email.clone(), row)).collect()
    };
    let mut inserted = inserted.map(by_email).map_err(refused);
    for Request { user, answer } in requests {
        let row = match &mut inserted {
            Ok(rows) => rows.remove(&user.email).ok_or_else(taken),
            Err(problem) => Err(problem.clone()),
        };
        drop(answer.send(row));
    }
}

/// Rows with a new address, in one transaction. Ordered, so that two statements that meet wait for each
/// other's addresses in one order.
async fn insert_rows(pool: &PgPool, requests: &[Request]) -> Result<Vec<UserRow>, sqlx::Error> {
    let (mut names, mut emails, mut departments, mut statuses) = (vec![], vec![], vec![], vec![]);
    for Request { user: User { name, email, department, status }, .. } in requests {
        names.push(name.as_str());
        emails.push(email.as_str());
        departments.push(department.as_str());
        statuses.push(status.as_deref());
    }
    sqlx::query_as!(
        UserRow,
        "insert into users (name, email, department, status)
         select name, email, department, coalesce(status, 'ACTIVE')
         from unnest($1::text[], $2::text[], $3::text[], $4::text[])
             with ordinality as u (name, email, department, status, number)
         order by email, number
         on conflict on constraint users_email_key do nothing
         returning id, name, email, department, status, created_at, updated_at, version",
        &names as &[&str],
        &emails as &[&str],
        &departments as &[&str],
        &statuses as &[Option<&str>],
    )
    .fetch_all(pool)
    .await
}
