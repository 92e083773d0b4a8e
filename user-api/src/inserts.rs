//! New users, inserted together: requests that meet while a commit is under way share the next one.
//!
//! A commit costs a flush of the server's log, whether it holds one row or a hundred. Nobody waits for
//! company: a request that is alone is inserted at once. Each request is answered only after its own row
//! was committed, and one that is refused takes nobody along.

use std::collections::HashMap;
use std::sync::Arc;

use axum::http::StatusCode;
use service::{Problem, database};
use sqlx::PgPool;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::user_body::User;
use crate::users::{UserRow, refused};

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
    let mut together = Vec::with_capacity(ROWS_MAX);
    loop {
        let count = requests.lock().await.recv_many(&mut together, ROWS_MAX).await;
        if count == 0 {
            return;
        }
        // Nobody waits for these any more, and nothing of them is written yet.
        together.retain(|request| !request.answer.is_closed());
        insert(&pool, &mut together).await;
    }
}

/// Inserts all, and answers each.
async fn insert(pool: &PgPool, requests: &mut Vec<Request>) {
    match insert_rows(pool, requests.iter().map(|request| &request.user)).await {
        Ok(rows) => {
            let mut rows: HashMap<String, UserRow> =
                rows.into_iter().map(|row| (row.email.clone(), row)).collect();
            for Request { user, answer } in requests.drain(..) {
                // Of two with one address the first has it.
                send(answer, rows.remove(&user.email).ok_or_else(|| taken(None)));
            }
        }
        // Whose fault it was is not known; each alone finds out.
        Err(error) if requests.len() > 1 && database::is_refusal(&error) => {
            for Request { user, answer } in requests.drain(..) {
                let row = insert_rows(pool, [&user]).await.map_err(refused);
                send(answer, row.and_then(|mut rows| rows.pop().ok_or_else(|| taken(None))));
            }
        }
        Err(error) => {
            let problem = refused(error);
            for Request { answer, .. } in requests.drain(..) {
                send(answer, Err(problem.clone()));
            }
        }
    }
}

/// A client that went away wants no answer.
fn send(answer: oneshot::Sender<Answer>, row: Answer) {
    drop(answer.send(row));
}

/// Rows with a new address, in one transaction. Ordered, so that two statements that meet wait for each
/// other's addresses in one order.
async fn insert_rows<'u>(
    pool: &PgPool,
    users: impl IntoIterator<Item = &'u User>,
) -> Result<Vec<UserRow>, sqlx::Error> {
    let (mut names, mut emails, mut departments, mut statuses) = (vec![], vec![], vec![], vec![]);
    for User { name, email, department, status } in users {
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

/// 409: another user has this address.
pub(crate) fn taken(cause: Option<sqlx::Error>) -> Problem {
    let problem = Problem::new(StatusCode::CONFLICT, "duplicate-email", "E-mail address is taken")
        .detail("another user has this e-mail address");
    match cause {
        Some(cause) => problem.cause(cause),
        None => problem,
    }
}
