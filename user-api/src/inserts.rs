//! New users, inserted together that arrive together: a commit costs a flush of the server's log, whether
//! it holds one row or a hundred. Each request is answered only after its own row was committed, and one
//! that is refused takes nobody along.

use std::collections::HashMap;
use std::slice;

use service::database;
use service::together::{Answer, Together};
use sqlx::PgPool;

use crate::user_body::User;
use crate::users::{UserRow, refused, taken};

/// Most rows of one statement: it stays far below the statement timeout.
const ROWS_MAX: usize = 200;

/// Inserts users. Once a row is answered, it is committed.
pub(crate) type Inserts = Together<User, UserRow>;

pub(crate) fn start(pool: &PgPool) -> Inserts {
    let pool = pool.clone();
    Together::start(ROWS_MAX, move |users| insert(pool.clone(), users))
}

async fn insert(pool: PgPool, users: Vec<User>) -> Vec<Answer<UserRow>> {
    let inserted = insert_rows(&pool, &users).await;
    if users.len() == 1 || !inserted.as_ref().is_err_and(database::is_refusal) {
        return answers(&users, inserted);
    }
    // Whose fault it was is not known; each alone finds out.
    let mut all = Vec::new();
    for user in &users {
        let alone = slice::from_ref(user);
        all.extend(answers(alone, insert_rows(&pool, alone).await));
    }
    all
}

/// A row has its own address; a request without one lost its address to another. Of two with one address
/// the first has it.
fn answers(users: &[User], inserted: Result<Vec<UserRow>, sqlx::Error>) -> Vec<Answer<UserRow>> {
    let by_email = |rows: Vec<UserRow>| -> HashMap<String, UserRow> {
        rows.into_iter().map(|row| (row.email.clone(), row)).collect()
    };
    let mut inserted = inserted.map(by_email).map_err(refused);
    let one = |user: &User| match &mut inserted {
        Ok(rows) => rows.remove(&user.email).ok_or_else(taken),
        Err(problem) => Err(problem.clone()),
    };
    users.iter().map(one).collect()
}

/// Rows with a new address, in one transaction. Ordered, so that two statements that meet wait for each
/// other's addresses in one order.
async fn insert_rows(pool: &PgPool, users: &[User]) -> Result<Vec<UserRow>, sqlx::Error> {
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
