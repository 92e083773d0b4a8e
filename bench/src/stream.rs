//! `./dev bench stream`: whether the consumer keeps up with Debezium. As many changes of one mix are
//! written at the source as fast as it takes them, once into the topic alone and once with the consumer
//! behind it; with everybody on all processors, and with source and view on processors of their own.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde::Serialize;

use crate::changes;
use crate::cli::{Mix, StreamOptions};
use crate::figures::{Spread, float};
use crate::halves::Halves;
use crate::interrupt::{cleaned_up, unless_interrupted};
use crate::ours::Consumer;
use crate::report;
use crate::servers::{Conditions, Servers};
use crate::shipped;
use crate::source::{Filled, Plan, Streaming};
use crate::target::{Table, Target};

const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Clone, Copy)]
enum End {
    /// The last record is in the topic.
    Topic,
    /// The last row is in the view, and all rows are right.
    View,
}

#[derive(Debug, Serialize)]
struct Stream {
    changes: u64,
    /// Everybody on all processors.
    shared: Sides,
    /// See [`Halves`]; absent on a single processor.
    apart: Option<Sides>,
    conditions: Conditions,
}

#[derive(Debug, Serialize)]
struct Sides {
    /// From the first write to the end, changes a second.
    topic_per_second: Spread,
    view_per_second: Spread,
    /// Round by round.
    view_to_topic: Spread,
    /// From the last record in the topic to the last row in the view, of one run.
    seconds_behind_topic: Spread,
}

pub(crate) async fn run(options: &StreamOptions) -> anyhow::Result<ExitCode> {
    let servers = Servers::new()?;
    let conditions = servers.conditions().await?;
    let stream = rounds(&servers, options, conditions).await?;
    report::write(&servers, &options.output, "stream", &stream, &table(&stream))?;
    Ok(ExitCode::SUCCESS)
}

async fn rounds(
    servers: &Servers,
    options: &StreamOptions,
    conditions: Conditions,
) -> anyhow::Result<Stream> {
    let halves = Halves::of_this_machine();
    let (mut shared, mut apart) = (Rounds::default(), Rounds::default());
    // Not counted: a Connect that has just started takes a run to become as fast as it will be.
    run_to(servers, "warming up", options.changes, End::Topic, None).await?;
    for _ in 0..options.repeat {
        shared.add(servers, options.changes, None).await?;
        if let Some(halves) = &halves {
            let round = Box::pin(apart.add(servers, options.changes, Some(halves)));
            halves.during(servers, round).await?;
        }
    }
    Ok(Stream {
        changes: options.changes,
        shared: shared.sides()?,
        apart: halves.map(|_| apart.sides()).transpose()?,
        conditions,
    })
}

#[derive(Debug, Default)]
struct Rounds {
    topic: Vec<f64>,
    view: Vec<f64>,
    behind: Vec<f64>,
}

impl Rounds {
    async fn add(
        &mut self,
        servers: &Servers,
        changes: u64,
        halves: Option<&Halves>,
    ) -> anyhow::Result<()> {
        let [topic, view] = match halves {
            None => ["to the topic", "to the view"],
            Some(_) => ["to the topic, apart", "to the view, apart"],
        };
        let run = run_to(servers, topic, changes, End::Topic, halves).await?;
        self.topic.push(run.per_second);
        let run = run_to(servers, view, changes, End::View, halves).await?;
        self.view.push(run.per_second);
        self.behind.push(run.behind.as_secs_f64());
        Ok(())
    }

    fn sides(self) -> anyhow::Result<Sides> {
        Ok(Sides {
            view_to_topic: Spread::of_ratios(&self.view, &self.topic)?,
            topic_per_second: Spread::of_rounds(self.topic)?,
            view_per_second: Spread::of_rounds(self.view)?,
            seconds_behind_topic: Spread::of_rounds(self.behind)?,
        })
    }
}

fn table(stream: &Stream) -> String {
    let mut lines = vec![format!("{} changes, from the first write", stream.changes)];
    lines.extend(sides("all on all processors", &stream.shared));
    if let Some(apart) = &stream.apart {
        lines.extend(sides("source and Debezium on one half, Kafka and view on the other", apart));
    }
    lines.join("\n")
}

fn sides(placement: &str, sides: &Sides) -> [String; 5] {
    let line = |name: &str, Spread { median, min, max }, digits: usize| {
        format!("  {name:<42} {median:>10.digits$} ({min:.digits$}-{max:.digits$})")
    };
    [
        format!("{placement}:"),
        line("into the topic, changes/s", sides.topic_per_second, 0),
        line("into the view with its counts, changes/s", sides.view_per_second, 0),
        line("view / topic", sides.view_to_topic, 2),
        line("view complete after the topic, s", sides.seconds_behind_topic, 2),
    ]
}

/// What became of one run.
struct Run {
    /// Changes a second, from the first write to the end.
    per_second: f64,
    /// How long the view took behind the topic.
    behind: Duration,
}

/// Streams so many changes, on a table and a topic of their own, through one connector, the shipped ones
/// stopped.
async fn run_to(
    servers: &Servers,
    name: &'static str,
    changes: u64,
    end: End,
    halves: Option<&Halves>,
) -> anyhow::Result<Run> {
    let run = async {
        let step = servers.progress.step(name, "preparing");
        let streaming = Streaming::start(servers, Plan::new(Mix::Mixed, changes, seed()));
        let streaming = unless_interrupted(streaming).await?;
        let measured = Box::pin(measure(servers, streaming.filled.clone(), end, halves, &step));
        let run = cleaned_up(unless_interrupted(measured), streaming.discard(servers)).await?;
        step.done(&format!("{:.0} changes/s", run.per_second));
        Ok(run)
    };
    shipped::stopped(servers, Box::pin(run)).await
}

async fn measure(
    servers: &Servers,
    mut filled: Filled,
    end: End,
    halves: Option<&Halves>,
    step: &devstack::Step,
) -> anyhow::Result<Run> {
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
    let streaming_records = async {
        let records = changes::stream(servers, &filled, step).await?;
        Ok((records, started.elapsed()))
    };
    let visible = async {
        if let Some(consumer) = &mut consumer {
            let kept_apart = keep_apart(halves, consumer.pid);
            let look = || std::future::ready(consumer.check());
            tokio::select! {
                complete = target.wait_until_complete(Table::UserView, look) => complete.map(drop)?,
                kept = kept_apart => kept?,
            }
        }
        anyhow::Ok(started.elapsed())
    };
    let ((records, in_topic), in_view) = tokio::try_join!(streaming_records, visible)?;
    filled.records = records;
    if let Some(consumer) = consumer {
        target.expect(&filled).await?;
        let difference = target.compare(Table::UserView).await?;
        ensure!(difference.none(), "the view differs from the source: {difference}");
        consumer.stop(servers, &target).await?;
    }
    let end = in_topic.max(in_view);
    let per_second = float(filled.changes) / end.as_secs_f64();
    Ok(Run { per_second, behind: in_view.saturating_sub(in_topic) })
}

/// Never ends but with an error.
async fn keep_apart(halves: Option<&Halves>, consumer: u32) -> anyhow::Result<()> {
    match halves {
        Some(halves) => halves.keep_view_apart(consumer).await,
        None => std::future::pending().await,
    }
}

async fn wait_for_a_row(target: &Target, consumer: &mut Consumer) -> anyhow::Result<()> {
    let mut db = target.db().await?;
    let sql = format!("select exists (select from {})", Table::UserView.name());
    while !sqlx::query_scalar::<_, bool>(&sql).fetch_one(&mut db).await? {
        consumer.check()?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Of a topic that is of no use to others.
fn seed() -> u64 {
    rand::random::<u32>().into()
}
