//! The statements of the writers, for both source tables. All of them raise the row's version.

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use sqlx::PgConnection;

use crate::writer::{POST_TITLE, USER_DOMAIN};

pub(crate) const DEPARTMENTS: [&str; 6] =
    ["개발팀", "기획팀", "영업팀", "인사팀", "Q&A \"팀\"", "it's \\ fine"];
pub(crate) const STATUSES: [&str; 3] = ["ACTIVE", "INACTIVE", "SUSPENDED"];

/// A source table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Users,
    Posts,
}

/// What is written into a row; each table takes what it has columns for.
#[derive(Debug)]
pub(crate) struct Content {
    /// Unlike every other of any run.
    pub(crate) mark: String,
    pub(crate) department: &'static str,
    pub(crate) status: &'static str,
    /// Whether an update changes the e-mail address, too.
    new_email: bool,
    author: i64,
}

impl Content {
    pub(crate) fn random(random: &mut Xoshiro256PlusPlus, mark: String) -> Self {
        Self {
            mark,
            department: DEPARTMENTS[random.random_range(0..DEPARTMENTS.len())],
            status: STATUSES[random.random_range(0..STATUSES.len())],
            new_email: random.random(),
            author: random.random_range(1..1_000_000),
        }
    }

    pub(crate) fn email(&self) -> String {
        format!("{}@{USER_DOMAIN}", self.mark)
    }

    pub(crate) fn title(&self) -> String {
        format!("{POST_TITLE}{}", self.mark)
    }
}

/// Inserts a row; returns its id and version.
pub(crate) async fn insert(
    db: &mut PgConnection,
    table: Table,
    content: &Content,
) -> Result<(i64, i64), sqlx::Error> {
    match table {
        Table::Users => {
            let query = "insert into users (name, email, department, status)
                 values ($1, $2, $3, $4)
                 returning id, version";
            let query = sqlx::query_as(query).bind(&content.mark).bind(content.email());
            query.bind(content.department).bind(content.status).fetch_one(db).await
        }
        Table::Posts => {
            let query = "insert into posts (title, content, author_id)
                 values ($1, $2, $3)
                 returning id, version";
            let query = sqlx::query_as(query).bind(content.title()).bind(content.department);
            query.bind(content.author).fetch_one(db).await
        }
    }
}

/// Changes a row that must be there; returns its new version.
pub(crate) async fn update(
    db: &mut PgConnection,
    table: Table,
    id: i64,
    content: &Content,
) -> Result<i64, sqlx::Error> {
    match table {
        Table::Users => {
            let query = "update users
                 set name = $2, email = coalesce($3, email), department = $4, status = $5,
                     updated_at = clock_timestamp(), version = version + 1
                 where id = $1
                 returning version";
            let email = content.new_email.then(|| content.email());
            let query = sqlx::query_scalar(query).bind(id).bind(&content.mark).bind(email);
            query.bind(content.department).bind(content.status).fetch_one(db).await
        }
        Table::Posts => {
            let query = "update posts
                 set content = $2, author_id = $3, updated_at = clock_timestamp(),
                     version = version + 1
                 where id = $1
                 returning version";
            let query = sqlx::query_scalar(query).bind(id).bind(&content.mark);
            query.bind(content.author).fetch_one(db).await
        }
    }
}

/// Gives a row that must be there the next id of its table, the only new value that an identity
/// column takes; returns it with the new version.
pub(crate) async fn move_key(
    db: &mut PgConnection,
    table: Table,
    id: i64,
) -> Result<(i64, i64), sqlx::Error> {
    let query = match table {
        Table::Users => {
            "update users
             set id = default, version = version + 1
             where id = $1
             returning id, version"
        }
        Table::Posts => {
            "update posts
             set id = default, version = version + 1
             where id = $1
             returning id, version"
        }
    };
    sqlx::query_as(query).bind(id).fetch_one(db).await
}

/// Removes a row that must be there.
pub(crate) async fn delete(
    db: &mut PgConnection,
    table: Table,
    id: i64,
) -> Result<(), sqlx::Error> {
    let query = match table {
        Table::Users => "delete from users where id = $1 returning id",
        Table::Posts => "delete from posts where id = $1 returning id",
    };
    let _: i64 = sqlx::query_scalar(query).bind(id).fetch_one(db).await?;
    Ok(())
}

/// Whether an error speaks of the statement or of a row that is not there, not of an outage.
pub(crate) fn is_our_fault(error: &sqlx::Error) -> bool {
    // Data, constraint, and syntax or access rule; a dead server says 57.
    let classes = ["22", "23", "42"];
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| classes.iter().any(|class| code.starts_with(class)))
        || matches!(error, sqlx::Error::RowNotFound)
}
