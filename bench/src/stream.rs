//! `./dev bench stream`: whether the consumer keeps up with Debezium. As many changes of one mix are
//! written at the source as fast as it takes them, once into the topic alone and once with the consumer
//! behind it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde::Serialize;
use sqlx::AssertSqlSafe;

use crate::changes::{self, WARM_UP_RECORDS};
use crate::cli::{Mix, StreamOptions};
use crate::figures::{Spread, float};
use crate::ours::Consumer;
use crate::report;
use crate::servers::{Conditions, Servers};
use crate::source::{Plan, Streaming};
use crate::target::{Table, Target};

const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The last record is in the topic.
    Topic,
    /// The last row is in the view, and all rows are right.
    View,
}

#[derive(Debug, Serialize)]
struct Stream {
    changes: u64,
    /// From the first write to the end, changes a second.
    topic_per_second: Spread,
    view_per_second: Spread,
    /// Round by round.
    view_to_topic: Spread,
    conditions: Conditions,
}

pub(crate) async fn run(options: &StreamOptions) -> anyhow::Result<ExitCode> {
    let servers = Servers::new()?;
    let conditions = servers.conditions().await?;
    let (mut topic, mut view) = (Vec::new(), Vec::new());
    for _ in 0..options.repeat {
        topic.push(rate(&servers, options.changes, End::Topic).await?);
        view.push(rate(&servers, options.changes, End::View).await?);
    }
    let stream = Stream {
        changes: options.changes,
        view_to_topic: Spread::of_ratios(&view, &topic)?,
        topic_per_second: Spread::of_rounds(topic)?,
        view_per_second: Spread::of_rounds(view)?,
        conditions,
    };
    report::write(&servers, &options.output, "stream", &stream, &table(&stream))?;
    Ok(ExitCode::SUCCESS)
}

fn table(stream: &Stream) -> String {
    let line = |name: &str, Spread { median, min, max }, digits: usize| {
        format!("{name:<44} {median:>10.digits$} ({min:.digits$}-{max:.digits$})")
    };
    [
        format!("{} changes, from the first write", stream.changes),
        line("into the topic, changes/s", stream.topic_per_second, 0),
        line("into the view with its counts, changes/s", stream.view_per_second, 0),
        line("view / topic", stream.view_to_topic, 2),
    ]
    .join("\n")
}

/// Changes a second from the first write to the end, on a table and a topic of their own.
async fn rate(servers: &Servers, changes: u64, end: End) -> anyhow::Result<f64> {
    let step = servers.progress.step(format!("to the {end:?}").to_lowercase(), "preparing");
    let streaming = Streaming::start(servers, Plan::new(Mix::Mixed, changes, seed())).await?;
    let mut filled = streaming.filled.clone();
    let mut target = Target::create(&filled).await?;
    target.reset().await?;
    let mut consumer = match end {
        End::Topic => None,
        End::View => Some(Consumer::start(servers, &target, Table::UserView)?),
    };
    // Everybody on the way has seen the topic and its schemas before the clock starts.
    changes::warm_up(servers, &filled).await?;
    if let Some(consumer) = &mut consumer {
        wait_for_a_row(&target, consumer).await?;
    }
    step.message("streaming");
    let started = Instant::now();
    let seconds = match &mut consumer {
        None => {
            changes::stream(servers, &filled, &step).await?;
            started.elapsed()
        }
        Some(consumer) => {
            let writing = changes::write_all(&filled);
            let look = || std::future::ready(consumer.check());
            target.wait_until_complete(Table::UserView, look).await?;
            let seconds = started.elapsed();
            filled.records = filled.changes + WARM_UP_RECORDS + writing.await??;
            seconds
        }
    };
    if let Some(consumer) = consumer {
        target.expect(&filled).await?;
        let difference = target.compare(Table::UserView).await?;
        ensure!(difference.none(), "the view differs from the source: {difference}");
        consumer.stop(servers, &target).await?;
    }
    streaming.discard(servers).await?;
    let rate = float(filled.changes) / seconds.as_secs_f64();
    step.done(&format!("{rate:.0} changes/s"));
    Ok(rate)
}

async fn wait_for_a_row(target: &Target, consumer: &mut Consumer) -> anyhow::Result<()> {
    let mut db = target.db().await?;
    let sql = format!("select exists (select from {})", Table::UserView.name());
    while !sqlx::query_scalar::<_, bool>(AssertSqlSafe(sql.clone())).fetch_one(&mut db).await? {
        consumer.check()?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Of a topic that is of no use to others.
fn seed() -> u64 {
    rand::random::<u32>().into()
}
