//! Reads the views all the time, over a connection of its own, and judges each look by all looks
//! before it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use devstack::Service;
use devstack::addresses::{POST_DATABASE, admin_url};
use sqlx::{Connection, PgConnection};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::field::{Field, generation};
use crate::history::Anomaly;
use crate::watch::{Memory, Shown};

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// A server that is there answers a look within this time, on a busy machine as well.
const LOOK_DEADLINE: Duration = Duration::from_secs(10);

/// A running watcher.
#[derive(Debug)]
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    /// Ends with the dead letters it saw.
    task: JoinHandle<BTreeSet<String>>,
}

/// What a watcher can tell in the end.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) looks: u64,
    /// Told already.
    pub(crate) dead_letters: BTreeSet<String>,
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

    /// Finishes the look it is at.
    pub(crate) async fn stop(self) -> anyhow::Result<Watched> {
        self.shared.stop.store(true, Relaxed);
        let dead_letters = self.task.await?;
        Ok(Watched { looks: self.shared.looks.load(Relaxed), dead_letters })
    }
}

async fn watch(field: Arc<Field>, first: FirstIds, shared: Arc<Shared>) -> BTreeSet<String> {
    let mut seen = Seen {
        users: Memory::of("user_view"),
        posts: Memory::of("post_view"),
        dead_letters: BTreeSet::new(),
    };
    while !shared.stop.load(Relaxed) {
        // With a new connection each time PostgreSQL went away, or refused.
        let url = admin_url(POST_DATABASE);
        let blind = match in_time(&field, PgConnection::connect(&url)).await {
            Ok(mut db) => look_on(&mut db, &field, first, &shared, &mut seen).await.err(),
            Err(blind) => Some(blind),
        };
        if let Some(blind) = blind.filter(|blind| !blind.is_outage()) {
            field.history.anomaly(Anomaly::Unreadable, blind.to_string());
        }
        sleep(LOOK_INTERVAL).await;
    }
    seen.dead_letters
}

/// By all looks together.
struct Seen {
    users: Memory,
    posts: Memory,
    dead_letters: BTreeSet<String>,
}

/// Looks again and again over one connection.
async fn look_on(
    db: &mut PgConnection,
    field: &Field,
    first: FirstIds,
    shared: &Shared,
    seen: &mut Seen,
) -> Result<(), Blind> {
    while !shared.stop.load(Relaxed) {
        for (kind, details) in in_time(field, look(db, first, seen)).await? {
            field.history.anomaly(kind, details);
        }
        shared.looks.fetch_add(1, Relaxed);
        sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

async fn look(
    db: &mut PgConnection,
    first: FirstIds,
    seen: &mut Seen,
) -> Result<Vec<(Anomaly, String)>, sqlx::Error> {
    let query = "select user_id, source_epoch, source_lsn, version from public.user_view
         where user_id >= $1";
    let mut found = seen.users.look(rows(db, query, first.users).await?);
    let query = "select post_id, source_epoch, source_lsn, null::bigint from public.post_view
         where post_id >= $1";
    found.extend(seen.posts.look(rows(db, query, first.posts).await?));
    let wrong = wrong_counts(db).await?;
    found.extend(wrong.into_iter().map(|text| (Anomaly::WrongCount, text)));
    for letter in dead_letters(db).await? {
        if seen.dead_letters.insert(letter.clone()) {
            found.push((Anomaly::DeadLetter, letter));
        }
    }
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

/// What came instead of a look.
#[derive(Debug)]
enum Blind {
    Error(sqlx::Error),
    Silence {
        /// PostgreSQL was down, or frozen, by our will.
        excused: bool,
    },
}

impl Blind {
    fn is_outage(&self) -> bool {
        match self {
            Self::Error(error) => is_outage(error),
            Self::Silence { excused } => *excused,
        }
    }
}

impl fmt::Display for Blind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(error) => error.fmt(f),
            Self::Silence { .. } => write!(f, "no answer for {} s", LOOK_DEADLINE.as_secs()),
        }
    }
}

async fn in_time<T>(
    field: &Field,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Blind> {
    within(LOOK_DEADLINE, || field.is_expected_down(Service::Postgres), work).await
}

/// A fault that begins or ends meanwhile excuses the silence, too.
async fn within<T>(
    limit: Duration,
    down: impl Fn() -> bool,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Blind> {
    let down_before = down();
    match timeout(limit, work).await {
        Ok(done) => done.map_err(Blind::Error),
        Err(_) => Err(Blind::Silence { excused: down_before || down() }),
    }
}

/// Whether PostgreSQL was away. One that stops, was killed or begins says 57; whatever else comes instead
/// of an answer comes from a server that is there.
fn is_outage(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("57")),
        _ => false,
    }
}

/// Records kept aside, with their reasons. A rebuild leaves those of the views before behind.
pub(crate) async fn dead_letters(db: &mut PgConnection) -> Result<BTreeSet<String>, sqlx::Error> {
    let before = generation(db).await?;
    let query = format!(
        "select format('%s of %s-%s at %s: %s', reason, topic, partition, record_offset, error)
         from views_{before}.cdc_dead_letter"
    );
    match sqlx::query_scalar(&query).fetch_all(&mut *db).await {
        Ok(letters) => Ok(letters.into_iter().collect()),
        // Another one is current by now, and that one may have been dropped.
        Err(_) if generation(db).await? != before => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;
    use std::io::ErrorKind;

    use super::*;

    #[tokio::test]
    async fn a_server_that_is_there_and_silent_is_found_out() {
        for (before, after, excused) in
            [(false, false, false), (true, true, true), (true, false, true), (false, true, true)]
        {
            let now = Cell::new(before);
            let silent = within::<()>(Duration::ZERO, || now.replace(after), pending()).await;
            assert_eq!(silent.unwrap_err().is_outage(), excused, "{before} {after}");
        }
        assert!(within(LOOK_DEADLINE, || false, async { Ok(()) }).await.is_ok());
    }

    #[test]
    fn only_a_server_that_is_away_is_excused() {
        assert!(is_outage(&sqlx::Error::Io(ErrorKind::ConnectionRefused.into())));
        for error in [
            sqlx::Error::RowNotFound,
            sqlx::Error::ColumnNotFound("source_lsn".to_owned()),
            sqlx::Error::Protocol("no such message".to_owned()),
        ] {
            assert!(!is_outage(&error), "{error}");
        }
    }
}
