//! `./dev bench latency`: from a commit at the source to a reader who sees it in the view.
//!
//! Writes come at a fixed rate whatever became of those before (an open loop): a stall shows in every
//! write it delays. The reader asks the view again and again for the rows still missing.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use devstack::addresses::{POST_DATABASE, USER_DATABASE};
use serde::Serialize;
use serde_json::Value as Json;
use sqlx::PgConnection;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::cli::{LatencyOptions, print};
use crate::connect::Connector;
use crate::figures::Percentiles;
use crate::report;
use crate::servers::{Conditions, Servers, admin};

/// Connections that write; at 2,000 a second each commits every 8 ms.
const WRITERS: u32 = 16;
/// Pause of the reader between two looks, which bounds what it can tell.
const LOOK_EVERY: Duration = Duration::from_micros(500);
/// The reader gives up on what is missing for so long.
const MISSING_MAX: Duration = Duration::from_mins(1);
/// The connector under its shipped settings, and what Debezium and Kafka would do without them.
const CONNECTOR: &str = "users";
const OURS: [&str; 2] = ["poll.interval.ms", "producer.override.linger.ms"];

#[derive(Debug, Serialize)]
struct Latency {
    runs: Vec<Run>,
    conditions: Conditions,
}

#[derive(Debug, Serialize)]
struct Run {
    /// The connector's settings: as shipped, or with Debezium's defaults of [`OURS`].
    connector: &'static str,
    /// Writes a second that were asked for, and that were committed.
    rate: u32,
    committed_rate: f64,
    /// From the commit's answer to the reader's, in milliseconds.
    millis: Percentiles,
}

pub(crate) async fn run(options: &LatencyOptions) -> anyhow::Result<ExitCode> {
    let servers = Servers::new()?;
    let conditions = servers.conditions().await?;
    let mut runs = Vec::new();
    for &rate in &options.rates {
        runs.push(measure(&servers, "shipped", rate, options.seconds).await?);
    }
    if options.connector_defaults {
        let shipped = Connector::settings(&servers, CONNECTOR).await?;
        let mut plain = shipped.clone();
        if let Json::Object(settings) = &mut plain {
            settings.retain(|name, _| !OURS.contains(&name.as_str()));
        }
        Connector::start(&servers, CONNECTOR, &plain).await?;
        let measured = measure(&servers, "defaults", options.rates[0], options.seconds).await;
        Connector::start(&servers, CONNECTOR, &shipped).await?;
        runs.push(measured?);
    }
    let latency = Latency { runs, conditions };
    report::write(&servers, &options.output, "latency", &latency)?;
    if !options.output.json {
        print(&table(&latency));
    }
    Ok(ExitCode::SUCCESS)
}

fn table(latency: &Latency) -> String {
    let head = format!(
        "{:<10} {:>8} {:>9} {:>8} {:>8} {:>8} {:>8}",
        "connector", "writes/s", "committed", "p50 ms", "p90 ms", "p99 ms", "most ms"
    );
    let rows = latency.runs.iter().map(|run| {
        let Percentiles { p50, p90, p99, max, .. } = run.millis;
        format!(
            "{:<10} {:>8} {:>9.0} {p50:>8.1} {p90:>8.1} {p99:>8.1} {max:>8.1}",
            run.connector, run.rate, run.committed_rate
        )
    });
    std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n")
}

/// A row that was committed, and when the writer knew.
type Committed = (i64, Instant);

async fn measure(
    servers: &Servers,
    connector: &'static str,
    rate: u32,
    seconds: u32,
) -> anyhow::Result<Run> {
    let step = servers.progress.step(format!("{rate}/s"), "warming up");
    // Plans, caches and connections of every process on the way.
    write_and_read(rate, 5).await?;
    step.message(format!("writing for {seconds} s, {connector} connector"));
    let millis = write_and_read(rate, seconds).await?;
    let count = millis.len();
    let millis = Percentiles::of(millis).context("nothing was written")?;
    step.done(&format!("p50 {:.1} ms, p99 {:.1} ms", millis.p50, millis.p99));
    let committed_rate = f64::from(u32::try_from(count)?) / f64::from(seconds);
    Ok(Run { connector, rate, committed_rate, millis })
}

async fn write_and_read(rate: u32, seconds: u32) -> anyhow::Result<Vec<f64>> {
    let (sender, committed) = unbounded_channel();
    let over = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn(read(committed, Arc::clone(&over)));
    let run: u32 = rand::random();
    let mut writers = JoinSet::new();
    for number in 0..WRITERS {
        writers.spawn(write(run, number, rate, seconds, sender.clone()));
    }
    drop(sender);
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    over.store(true, Ordering::Release);
    reader.await?
}

/// Every writer's share of the rate, the writers one after the other in time.
async fn write(
    run: u32,
    writer: u32,
    rate: u32,
    seconds: u32,
    committed: UnboundedSender<Committed>,
) -> anyhow::Result<()> {
    let mut db = admin(USER_DATABASE).await?;
    let period = Duration::from_secs(1) * WRITERS / rate;
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    tokio::time::sleep(period / WRITERS * writer).await;
    for number in 0..rate * seconds / WRITERS {
        ticks.tick().await;
        let id: i64 = sqlx::query_scalar(
            "insert into users (name, email, department) values ('latency', $1, '개발팀')
             returning id",
        )
        .bind(format!("latency-{run:08x}-{writer}-{number}@example.com"))
        .fetch_one(&mut db)
        .await?;
        if committed.send((id, Instant::now())).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Milliseconds from each commit to the look that found its row.
async fn read(
    mut committed: UnboundedReceiver<Committed>,
    over: Arc<AtomicBool>,
) -> anyhow::Result<Vec<f64>> {
    let mut db = admin(POST_DATABASE).await?;
    let (mut missing, mut millis) = (HashMap::new(), Vec::new());
    loop {
        let last_look = over.load(Ordering::Acquire);
        while let Ok((id, at)) = committed.try_recv() {
            missing.insert(id, at);
        }
        if missing.is_empty() && last_look {
            return Ok(millis);
        }
        let found = look(&mut db, missing.keys().copied().collect()).await?;
        let now = Instant::now();
        for id in found {
            let at = missing.remove(&id);
            millis.extend(at.map(|at| now.saturating_duration_since(at).as_secs_f64() * 1000.0));
        }
        let oldest = missing.values().min();
        ensure!(
            oldest.is_none_or(|at| at.elapsed() < MISSING_MAX),
            "{} rows are not in the view after {MISSING_MAX:?}",
            missing.len()
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(db: &mut PgConnection, ids: Vec<i64>) -> anyhow::Result<Vec<i64>> {
    let sql = "select user_id from user_view where user_id = any ($1)";
    Ok(sqlx::query_scalar(sql).bind(ids).fetch_all(db).await?)
}
