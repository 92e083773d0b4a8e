//! Writes to the source's table `users` at a fixed rate, and a reader who looks for their rows.
//!
//! Writes come whatever became of those before (an open loop): a stall shows in every write it delays.
//! The reader asks again and again for the rows still missing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::ensure;
use devstack::addresses::{POST_DATABASE, USER_DATABASE};
use sqlx::PgConnection;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use crate::figures::float;
use crate::interrupt::unless_interrupted;
use crate::servers::admin;

/// Connections that write: at 2,000 a second each of 16 commits every 8 ms; faster, more are needed.
const WRITERS_MIN: u32 = 16;
const WRITERS_MAX: u32 = 64;
const WRITES_PER_WRITER: u32 = 125;
/// Pause of the reader between two looks, which bounds what it can tell.
const LOOK_EVERY: Duration = Duration::from_micros(500);
/// When rows are late anyway, the pause is this part of the oldest one's age: looks would take processor
/// time from those who make the row visible.
const LOOKS_OF_AN_AGE: u32 = 50;
/// The reader gives up on what is missing for so long.
const MISSING_MAX: Duration = Duration::from_mins(1);
/// For somebody who was just started to show new rows.
const ALIVE_MAX: Duration = Duration::from_mins(3);
/// How long rows may take that shall show that somebody is at work, before new ones are tried.
const ALIVE_ROUND: Duration = Duration::from_secs(2);

/// A table in which the rows of `users` shall become visible.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) database: &'static str,
    /// Which of the ids `$1` are there.
    pub(crate) sql: &'static str,
}

/// The view of the whole system.
pub(crate) const VIEW: Place = Place {
    database: POST_DATABASE,
    sql: "select user_id from user_view where user_id = any ($1)",
};

/// A time, to measure with and to compare with other programs' of this machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) instant: Instant,
    /// From 1970, in microseconds.
    pub(crate) micros: i64,
}

impl Moment {
    pub(crate) fn now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let micros = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
        Self { instant: Instant::now(), micros }
    }
}

/// A row on its way: when its writer knew that it was committed, when the reader found it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Passage {
    pub(crate) id: i64,
    pub(crate) committed: Moment,
    pub(crate) visible: Moment,
}

impl Passage {
    pub(crate) fn millis(&self) -> f64 {
        let took = self.visible.instant.saturating_duration_since(self.committed.instant);
        took.as_secs_f64() * 1000.0
    }
}

/// What became of writes at a fixed rate.
#[derive(Debug)]
pub(crate) struct Written {
    /// In order of their commits.
    pub(crate) passages: Vec<Passage>,
    pub(crate) committed_rate: f64,
    /// Rows not yet visible when the last one was committed.
    pub(crate) behind: u64,
}

pub(crate) async fn write_and_read(
    place: Place,
    rate: u32,
    seconds: u32,
) -> anyhow::Result<Written> {
    Box::pin(unless_interrupted(write_while_reading(place, rate, seconds))).await
}

async fn write_while_reading(place: Place, rate: u32, seconds: u32) -> anyhow::Result<Written> {
    let count = (rate / WRITES_PER_WRITER).clamp(WRITERS_MIN, WRITERS_MAX);
    let mut connections = Vec::new();
    for _ in 0..count {
        connections.push(admin(USER_DATABASE).await?);
    }
    let (sender, committed) = unbounded_channel();
    let over = Arc::new(AtomicBool::new(false));
    let db = admin(place.database).await?;
    let reader = tokio::spawn(read(db, place, committed, Arc::clone(&over)));
    let run: u32 = rand::random();
    let started = tokio::time::Instant::now();
    let period = Duration::from_secs(1) * count / rate;
    let mut writers = JoinSet::new();
    for (number, db) in (0..count).zip(connections) {
        // One after the other in time.
        let mut ticks = interval_at(started + period / count * number, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let share = (rate * seconds).saturating_sub(number).div_ceil(count);
        let prefix = format!("latency-{run:08x}-{number}");
        writers.spawn(write(db, prefix, share, ticks, sender.clone()));
    }
    drop(sender);
    while let Some(writer) = writers.join_next().await {
        let written = writer.map_err(anyhow::Error::from).flatten();
        if written.is_err() {
            reader.abort();
        }
        written?;
    }
    let took = started.elapsed().as_secs_f64().max(f64::from(seconds));
    over.store(true, Ordering::Release);
    let (mut passages, behind) = reader.await??;
    passages.sort_by_key(|passage| passage.committed.instant);
    let committed_rate = float(passages.len() as u64) / took;
    Ok(Written { passages, committed_rate, behind })
}

/// A row that was committed, and when the writer knew.
type Committed = (i64, Moment);

/// One writer's share of the rate.
async fn write(
    mut db: PgConnection,
    prefix: String,
    count: u32,
    mut ticks: Interval,
    committed: UnboundedSender<Committed>,
) -> anyhow::Result<()> {
    for number in 0..count {
        ticks.tick().await;
        let id: i64 = sqlx::query_scalar(
            "insert into users (name, email, department) values ('latency', $1, '개발팀')
             returning id",
        )
        .bind(format!("{prefix}-{number}@example.com"))
        .fetch_one(&mut db)
        .await?;
        if committed.send((id, Moment::now())).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Every row with the look that found it, and how many were missing when the writers had ended.
async fn read(
    mut db: PgConnection,
    place: Place,
    mut committed: UnboundedReceiver<Committed>,
    over: Arc<AtomicBool>,
) -> anyhow::Result<(Vec<Passage>, u64)> {
    let (mut missing, mut passages) = (HashMap::new(), Vec::new());
    let mut behind = None;
    loop {
        let ended = over.load(Ordering::Acquire);
        while let Ok((id, at)) = committed.try_recv() {
            missing.insert(id, at);
        }
        if missing.is_empty() && ended {
            return Ok((passages, behind.unwrap_or(0)));
        }
        let found = look(&mut db, place, missing.keys().copied().collect()).await?;
        let visible = Moment::now();
        for id in found {
            let committed = missing.remove(&id);
            passages.extend(committed.map(|committed| Passage { id, committed, visible }));
        }
        if ended {
            behind.get_or_insert(missing.len() as u64);
        }
        let ages = missing.values().map(|at: &Moment| at.instant.elapsed());
        let oldest = ages.max().unwrap_or_default();
        ensure!(
            oldest < MISSING_MAX,
            "{} rows are not in {} after {MISSING_MAX:?}",
            missing.len(),
            place.database
        );
        tokio::time::sleep(LOOK_EVERY.max(oldest / LOOKS_OF_AN_AGE)).await;
    }
}

async fn look(db: &mut PgConnection, place: Place, ids: Vec<i64>) -> anyhow::Result<Vec<i64>> {
    Ok(sqlx::query_scalar(place.sql).bind(ids).fetch_all(db).await?)
}

/// Writes rows until all that were written together are there: enough of them to be in every partition.
/// Who begins at the end of the topic never shows those before.
pub(crate) async fn wait_until_alive(place: Place) -> anyhow::Result<()> {
    let (mut users, mut db) = (admin(USER_DATABASE).await?, admin(place.database).await?);
    let deadline = Instant::now() + ALIVE_MAX;
    loop {
        let ids: Vec<i64> = sqlx::query_scalar(
            "insert into users (name, email, department)
             select 'latency', 'alive-' || $1 || '-' || n || '@example.com', '개발팀'
             from generate_series(1, 64) n
             returning id",
        )
        .bind(format!("{:016x}", rand::random::<u64>()))
        .fetch_all(&mut users)
        .await?;
        let round = Instant::now() + ALIVE_ROUND;
        let mut found = 0;
        while Instant::now() < round {
            found = look(&mut db, place, ids.clone()).await?.len();
            if found == ids.len() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!(
            Instant::now() < deadline,
            "{} shows {found} of {} new rows after {ALIVE_MAX:?}",
            place.database,
            ids.len()
        );
    }
}
