//! Reads the views all the time, over a connection of its own, and judges each look by all looks
//! before it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use devstack::addresses::{POST_DATABASE, admin_url};
use sqlx::{Connection, PgConnection};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::field::Field;
use crate::history::Anomaly;
use crate::watch::{Memory, Shown};

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// A running watcher.
#[derive(Debug)]
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    looks: AtomicU64,
}

/// The ids from which on a run's rows begin, users and posts: rows that were there before may be
/// many, and nobody of ours changes them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FirstIds {
    pub(crate) users: i64,
    pub(crate) posts: i64,
}

impl Watcher {
    pub(crate) fn start(field: Arc<Field>, first: FirstIds) -> Self {
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(watch(field, first, Arc::clone(&shared)));
        Self { shared, task }
    }

    /// Finishes the look it is at; returns how many there were.
    pub(crate) async fn stop(self) -> anyhow::Result<u64> {
        self.shared.stop.store(true, Relaxed);
        self.task.await?;
        Ok(self.shared.looks.load(Relaxed))
    }
}

async fn watch(field: Arc<Field>, first: FirstIds, shared: Arc<Shared>) {
    let mut users = Memory::of("user_view");
    let mut posts = Memory::of("post_view");
    while !shared.stop.load(Relaxed) {
        let Ok(mut db) = PgConnection::connect(&admin_url(POST_DATABASE)).await else {
            sleep(LOOK_INTERVAL).await;
            continue;
        };
        // Until PostgreSQL goes away, or refuses: then with a new connection.
        while !shared.stop.load(Relaxed) {
            let found = match look(&mut db, first, &mut users, &mut posts).await {
                Ok(found) => found,
                Err(error) => {
                    if is_refusal(&error) {
                        field.history.anomaly(Anomaly::Unreadable, error.to_string());
                    }
                    sleep(LOOK_INTERVAL).await;
                    break;
                }
            };
            shared.looks.fetch_add(1, Relaxed);
            for (kind, details) in found {
                field.history.anomaly(kind, details);
            }
            sleep(LOOK_INTERVAL).await;
        }
    }
}

async fn look(
    db: &mut PgConnection,
    first: FirstIds,
    users: &mut Memory,
    posts: &mut Memory,
) -> Result<Vec<(Anomaly, String)>, sqlx::Error> {
    let query = "select user_id, source_epoch, source_lsn, version from public.user_view
         where user_id >= $1";
    let mut found = users.look(rows(db, query, first.users).await?);
    let query = "select post_id, source_epoch, source_lsn, null::bigint from public.post_view
         where post_id >= $1";
    found.extend(posts.look(rows(db, query, first.posts).await?));
    let wrong = wrong_counts(db).await?;
    found.extend(wrong.into_iter().map(|text| (Anomaly::WrongCount, text)));
    Ok(found)
}

async fn rows(
    db: &mut PgConnection,
    query: &str,
    first: i64,
) -> Result<BTreeMap<i64, Shown>, sqlx::Error> {
    let rows: Vec<(i64, i32, i64, Option<i64>)> =
        sqlx::query_as(query).bind(first).fetch_all(db).await?;
    let shown = |(id, epoch, lsn, version)| (id, Shown { position: (epoch, lsn), version });
    Ok(rows.into_iter().map(shown).collect())
}

/// Whether a server that is there refused to answer. One that stops, was killed or begins says 57.
fn is_refusal(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| !code.starts_with("57"))
}

/// Departments whose counts are not what counting gives. One statement sees one moment, and in
/// every one of them the two are equal.
pub(crate) async fn wrong_counts(db: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    let query = "
        with counted as (
            select department, count(*) as users, count(*) filter (where status = 'ACTIVE') as actives
            from public.user_view
            where department is not null
            group by department
        )
        select format('department %s: counted %s, shown %s',
            coalesce(c.department, s.department),
            concat_ws(', ', c.users, c.actives),
            concat_ws(', ', s.user_count, s.active_count))
        from counted as c
        full join public.department_stats as s on s.department = c.department
        where (c.users, c.actives) is distinct from (s.user_count, s.active_count)";
    sqlx::query_scalar(query).fetch_all(db).await
}
