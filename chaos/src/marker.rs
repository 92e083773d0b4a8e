//! Rows that tell when a change made now is visible.

use std::time::Duration;

use anyhow::Context;
use sqlx::PgPool;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::ledger::Ledger;
use crate::watcher::FirstIds;
use crate::writer::{POST_TITLE, USER_DOMAIN};

/// Rows in each source table. So many that every partition of the topics has some of them: with 4
/// partitions and keys spread by a hash one is left out once in 250,000 runs.
const ROWS: i64 = 48;
/// For a write to a server that may be frozen.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// The marker rows. They are never deleted during a run, so they also serve as authors.
#[derive(Debug)]
pub(crate) struct Marker {
    user_db: PgPool,
    post_db: PgPool,
    view_db: PgPool,
    pub(crate) users: Vec<i64>,
    posts: Vec<i64>,
    /// One mark at a time, so that numbers rise in the order of commits.
    last: Mutex<i64>,
}

/// A mark that was committed at the source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark(i64);

impl Marker {
    /// Inserts the rows; `run` makes their marks unique.
    pub(crate) async fn create(
        user_db: PgPool,
        post_db: PgPool,
        view_db: PgPool,
        run: &str,
    ) -> anyhow::Result<Self> {
        let users = sqlx::query_scalar(
            "insert into users (name, email, department)
             select 'mark', 'mark-' || $1 || '-' || n || '@' || $2, '표지'
             from generate_series(1, $3) as n
             returning id",
        );
        let users = users.bind(run).bind(USER_DOMAIN).bind(ROWS).fetch_all(&user_db);
        let users: Vec<i64> = users.await.context("cannot insert users")?;
        let posts = sqlx::query_scalar(
            "insert into posts (title, content, author_id)
             select $2 || 'mark ' || $1 || ' ' || n, '', 0
             from generate_series(1, $3) as n
             returning id",
        );
        let posts = posts.bind(run).bind(POST_TITLE).bind(ROWS).fetch_all(&post_db);
        let posts = posts.await.context("cannot insert posts")?;
        let last = Mutex::new(0);
        Ok(Self { user_db, post_db, view_db, users, posts, last })
    }

    /// Writes a fresh mark into every row. An error says nothing about whether it was written.
    pub(crate) async fn mark(&self) -> anyhow::Result<Mark> {
        let mut last = self.last.lock().await;
        *last += 1;
        // A row begins with version 1.
        let users = sqlx::query("update users set version = 1 + $1 where id = any ($2)");
        let users = users.bind(*last).bind(&self.users).execute(&self.user_db);
        // In post_view the author is what changes.
        let posts = sqlx::query(
            "update posts set author_id = $1, version = version + 1 where id = any ($2)",
        );
        let posts = posts.bind(*last).bind(&self.posts).execute(&self.post_db);
        timeout(WRITE_DEADLINE, async { tokio::try_join!(users, posts) }).await??;
        Ok(Mark(*last))
    }

    /// Whether the view shows this mark, or a later one, in every row.
    pub(crate) async fn visible(&self, mark: Mark) -> anyhow::Result<bool> {
        let count = sqlx::query_scalar(
            "select
                 (select count(*) from public.user_view
                  where user_id = any ($1) and version > $3)
                 + (select count(*) from public.post_view
                    where post_id = any ($2) and author_id >= $3)",
        );
        let count = count.bind(&self.users).bind(&self.posts).bind(mark.0);
        let count: i64 = timeout(WRITE_DEADLINE, count.fetch_one(&self.view_db)).await??;
        Ok(count == 2 * ROWS)
    }

    /// Where the ids of this run begin.
    pub(crate) fn first_ids(&self) -> FirstIds {
        let first = |ids: &[i64]| ids.iter().copied().min().unwrap_or(0);
        FirstIds { users: first(&self.users), posts: first(&self.posts) }
    }

    /// Where those of its writers begin: the rows that nobody else changes.
    pub(crate) fn first_ids_of_writers(&self) -> FirstIds {
        let behind = |ids: &[i64]| ids.iter().max().map_or(0, |last| last + 1);
        FirstIds { users: behind(&self.users), posts: behind(&self.posts) }
    }

    /// The marker rows of each table, whose versions nobody keeps.
    pub(crate) fn forget(&self, users: &mut Ledger, posts: &mut Ledger) {
        users.ignore(&self.users);
        posts.ignore(&self.posts);
    }
}
