//! New users, inserted together that arrive together: a commit costs a flush of the server's log, whether
//! it holds one row or a hundred. Each request is answered only after its own row was committed, and one
//! that is refused, or has to wait for its address, takes nobody along.

use std::collections::HashMap;
use std::slice;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use service::database;
use service::timestamp::Timestamp;
use service::together::{Answer, Together};
use sqlx::PgPool;
use tokio::sync::Semaphore;

use crate::user_body::User;
use crate::users::{UserRow, refused, taken};

/// Most rows of one statement: it stays far below the statement timeout.
const ROWS_MAX: usize = 200;
/// Users of a statement that failed who are inserted alone at the same time. They, and those who wait, leave
/// connections of the pool to other requests.
const ALONE_MAX: usize = 4;
/// Users who wait for their addresses at the same time.
const PATIENT_MAX: usize = 4;

/// How long a statement that answers several requests waits for an address that another transaction is
/// about to take or to give up.
const IMPATIENT: &str = "200ms";
/// As long as the statement may take.
const PATIENT: &str = "0";

/// Inserts users. Once a row is answered, it is committed.
#[derive(Clone)]
pub(crate) struct Inserts {
    pool: PgPool,
    /// Gives a user back whose address is locked.
    together: Together<User, Result<UserRow, User>>,
    patient: Arc<Semaphore>,
}

impl Inserts {
    pub(crate) fn start(pool: &PgPool) -> Self {
        let statements = pool.clone();
        Self {
            pool: pool.clone(),
            together: Together::start(ROWS_MAX, move |users| insert(statements.clone(), users)),
            patient: Arc::new(Semaphore::new(PATIENT_MAX)),
        }
    }

    /// A user whose address is locked waits on his own, so that nobody has to wait with him.
    pub(crate) async fn insert(&self, user: User) -> Answer<UserRow> {
        let user = match self.together.ask(user).await? {
            Ok(row) => return Ok(row),
            Err(user) => user,
        };
        let _permit = self.patient.acquire().await.expect("the semaphore is never closed");
        let mut inserted =
            insert_rows(&self.pool, slice::from_ref(&user), PATIENT).await.map_err(refused)?;
        inserted.pop().ok_or_else(taken)
    }
}

async fn insert(pool: PgPool, users: Vec<User>) -> Vec<Answer<Result<UserRow, User>>> {
    let inserted = insert_rows(&pool, &users, IMPATIENT).await;
    if users.len() == 1 || !inserted.as_ref().is_err_and(database::is_one_requests_fault) {
        return answers(users, inserted);
    }
    // Whose fault it was is not known; each alone finds out.
    let alone = |user| insert_alone(pool.clone(), vec![user]);
    stream::iter(users).map(alone).buffered(ALONE_MAX).concat().await
}

async fn insert_alone(pool: PgPool, user: Vec<User>) -> Vec<Answer<Result<UserRow, User>>> {
    let inserted = insert_rows(&pool, &user, IMPATIENT).await;
    answers(user, inserted)
}

/// A row has its own address; a request without one lost its address to another. Of two with one address
/// the first has it.
fn answers(
    users: Vec<User>,
    inserted: Result<Vec<UserRow>, sqlx::Error>,
) -> Vec<Answer<Result<UserRow, User>>> {
    let mut rows: HashMap<String, UserRow> = match inserted {
        Ok(rows) => rows.into_iter().map(|row| (row.email.clone(), row)).collect(),
        Err(error) if database::is_lock_timeout(&error) => {
            return users.into_iter().map(|user| Ok(Err(user))).collect();
        }
        Err(error) => {
            let problem = refused(error);
            return users.into_iter().map(|_| Err(problem.clone())).collect();
        }
    };
    users.into_iter().map(|user| rows.remove(&user.email).map(Ok).ok_or_else(taken)).collect()
}

/// Rows with a new address, in one transaction. Ordered, so that two statements that meet wait for each
/// other's addresses in one order.
///
/// The limit for waiting is set by the statement itself, which spares a round trip: the CTE is read before
/// the first row is inserted, for the rows are sorted.
async fn insert_rows(
    pool: &PgPool,
    users: &[User],
    lock_timeout: &str,
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
        r#"with patience as materialized (select set_config('lock_timeout', $5, true))
         insert into users (name, email, department, status)
         select name, email, department, coalesce(status, 'ACTIVE')
         from unnest($1::text[], $2::text[], $3::text[], $4::text[])
             with ordinality as u (name, email, department, status, number)
         cross join patience
         order by email, number
         on conflict on constraint users_email_key do nothing
         returning id, name, email, department, status, created_at as "created_at: Timestamp",
             updated_at as "updated_at: Timestamp", version"#,
        &names as &[&str],
        &emails as &[&str],
        &departments as &[&str],
        &statuses as &[Option<&str>],
        lock_timeout,
    )
    .fetch_all(pool)
    .await
}
