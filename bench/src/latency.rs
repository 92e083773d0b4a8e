//! `./dev bench latency`: from a commit at the source to a reader who sees it in the view.
//!
//! One run after the other, in rounds: the shipped system at each rate, others in its place, the connector
//! with other settings. Then the search for the highest rate, and rounds far below and near it.

use std::process::ExitCode;

use serde::Serialize;
use serde_json::Value as Json;

use crate::cli::LatencyOptions;
use crate::connect::Connector;
use crate::figures::Spread;
use crate::interrupt::{cleaned_up, unless_interrupted};
use crate::latency_loop::{VIEW, write_and_read};
use crate::latency_rivals as rivals;
use crate::latency_run::{DEFAULTS, OURS, Pace, Run, Subject, measure};
use crate::latency_steps::{self as steps, Steps};
use crate::latency_summary::{Rounds, Summary, summaries};
use crate::report;
use crate::servers::{Conditions, Servers};

/// The connector of the users.
pub(crate) const CONNECTOR: &str = "users";
/// Of its shipped settings those that Debezium and Kafka would set otherwise.
const FOR_SPEED: [&str; 2] = ["poll.interval.ms", "producer.override.linger.ms"];
/// Before each round. Connect and broker that have just started run code that Java has not yet compiled; the
/// round before restarted a connector and the consumer, and made and dropped databases, each with a
/// checkpoint, after which `PostgreSQL` logs each page once as a whole.
const WARM_UP_RATE: u32 = 2000;
const WARM_UP_SECONDS: u32 = 30;

#[derive(Debug, Serialize)]
struct Latency {
    summaries: Vec<Summary>,
    steps: Option<Steps>,
    runs: Vec<Run>,
    conditions: Conditions,
}

pub(crate) async fn run(options: &LatencyOptions) -> anyhow::Result<ExitCode> {
    let servers = Servers::new()?;
    let conditions = servers.conditions().await?;
    let mut latency = Latency { summaries: vec![], steps: None, runs: vec![], conditions };
    let outcome = measure_all(&servers, options, &mut latency).await;
    // What was measured before something failed took its time, too.
    if !latency.runs.is_empty() {
        latency.summaries = summaries(&latency.runs);
        report::write(&servers, &options.output, "latency", &latency, &table(&latency))?;
    }
    outcome?;
    Ok(ExitCode::SUCCESS)
}

async fn measure_all(
    servers: &Servers,
    options: &LatencyOptions,
    latency: &mut Latency,
) -> anyhow::Result<()> {
    let (first_rate, seconds) = (options.rates[0], options.seconds);
    if options.rivals {
        rivals::prepare(servers).await?;
    }
    for round in 0..options.repeat {
        warm_up(servers).await?;
        for &rate in &options.rates {
            latency.runs.push(measure(servers, OURS, Pace { rate, seconds, round }).await?);
        }
        let pace = Pace { rate: first_rate, seconds, round };
        if options.rivals {
            latency.runs.extend(rivals::run(servers, pace).await?);
        }
        if options.connector_defaults {
            latency.runs.push(with_defaults(servers, pace).await?);
        }
    }
    if options.steps {
        let (steps, runs) = steps::run(servers, seconds, options.repeat).await?;
        latency.runs.extend(runs);
        latency.steps = Some(steps);
    }
    Ok(())
}

/// Not counted.
async fn warm_up(servers: &Servers) -> anyhow::Result<()> {
    let step = servers.progress.step(format!("{WARM_UP_RATE}/s"), "warming up");
    write_and_read(VIEW, WARM_UP_RATE, WARM_UP_SECONDS).await?;
    step.done("warmed up");
    Ok(())
}

async fn with_defaults(servers: &Servers, pace: Pace) -> anyhow::Result<Run> {
    let shipped = Connector::settings(servers, CONNECTOR).await?;
    let mut plain = shipped.clone();
    if let Json::Object(settings) = &mut plain {
        settings.retain(|name, _| !FOR_SPEED.contains(&name.as_str()));
    }
    let measured = async {
        Connector::start(servers, CONNECTOR, &plain).await?;
        measure(servers, Subject { connector: DEFAULTS, ..OURS }, pace).await
    };
    let restored = async { Connector::start(servers, CONNECTOR, &shipped).await.map(drop) };
    cleaned_up(Box::pin(unless_interrupted(measured)), restored).await
}

fn table(latency: &Latency) -> String {
    let mut lines = vec![format!(
        "{:<21} {:<9} {:>8} {:>9} {:>8} {:>8} {:>8} {:>15} {:>8}",
        "medians of the rounds",
        "connector",
        "writes/s",
        "committed",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "lowest-highest",
        "most ms"
    )];
    lines.extend(latency.summaries.iter().map(|summary| {
        let Rounds { p50, p90, p99, max } = summary.millis;
        format!(
            "{} {:>9.0} {:>8.1} {:>8.1} {:>8.1} {:>15} {:>8.1}",
            name(summary),
            summary.committed_rate.median,
            p50.median,
            p90.median,
            p99.median,
            format!("{:.1}-{:.1}", p99.min, p99.max),
            max.median
        )
    }));
    lines.push(String::new());
    lines.push(format!(
        "{:<40} {:>15} {:>15} {:>15} {:>15}",
        "p50 and p99 ms of each stage",
        "Debezium read",
        "to producer",
        "to consumer",
        "to the reader"
    ));
    lines.extend(latency.summaries.iter().filter_map(|summary| {
        let stages = summary.stages?;
        let of = |stage: Rounds| format!("{:>7.1} {:>7.1}", stage.p50.median, stage.p99.median);
        let [read, connector, broker, apply] =
            [stages.read, stages.connector, stages.broker, stages.apply].map(of);
        Some(format!("{} {read} {connector} {broker} {apply}", name(summary)))
    }));
    lines.push(String::new());
    lines.extend(latency.summaries.iter().filter_map(|summary| {
        let (p50, p99) = summary.to_ours?;
        let (p50, p99) = (times(p50), times(p99));
        Some(format!("{}, times ours: p50 {p50}, p99 {p99}", name(summary)))
    }));
    lines.extend(latency.steps.as_ref().map(|Steps { sustainable, p99_ratio, .. }| {
        match (sustainable, p99_ratio) {
            (Some(highest), Some(ratio)) => format!(
                "highest rate the view keeps up with: {highest}/s; \
                 p99 at 80 % of it / at 10 %: {}",
                times(*ratio)
            ),
            _ => "the view keeps up with none of the rates that were tried".to_owned(),
        }
    }));
    lines.join("\n")
}

fn times(Spread { median, min, max }: Spread) -> String {
    format!("{median:.1} ({min:.1}-{max:.1})")
}

fn name(summary: &Summary) -> String {
    let Summary { contestant, connector, rate, .. } = summary;
    format!("{contestant:<21} {connector:<9} {rate:>8}")
}
