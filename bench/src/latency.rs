//! `./dev bench latency`: from a commit at the source to a reader who sees it in the view.
//!
//! One run after the other: the shipped system at each rate, others in its place, the connector with
//! other settings, then the search for the highest rate.

use std::process::ExitCode;

use serde::Serialize;
use serde_json::Value as Json;

use crate::cli::LatencyOptions;
use crate::connect::Connector;
use crate::figures::Percentiles;
use crate::latency_rivals as rivals;
use crate::latency_run::{DEFAULTS, OURS, Run, Subject, measure};
use crate::latency_steps::{self as steps, Steps};
use crate::report;
use crate::servers::{Conditions, Servers};

/// The connector of the users.
pub(crate) const CONNECTOR: &str = "users";
/// Of its shipped settings those that Debezium and Kafka would set otherwise.
const FOR_SPEED: [&str; 2] = ["poll.interval.ms", "producer.override.linger.ms"];

#[derive(Debug, Serialize)]
struct Latency {
    runs: Vec<Run>,
    steps: Option<Steps>,
    conditions: Conditions,
}

pub(crate) async fn run(options: &LatencyOptions) -> anyhow::Result<ExitCode> {
    let servers = Servers::new()?;
    let conditions = servers.conditions().await?;
    let mut latency = Latency { runs: Vec::new(), steps: None, conditions };
    let outcome = measure_all(&servers, options, &mut latency).await;
    // What was measured before something failed took its time, too.
    if !latency.runs.is_empty() {
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
    for &rate in &options.rates {
        latency.runs.push(measure(servers, OURS, rate, seconds).await?);
    }
    if options.rivals {
        latency.runs.extend(rivals::run(servers, first_rate, seconds).await?);
    }
    if options.connector_defaults {
        latency.runs.push(with_defaults(servers, first_rate, seconds).await?);
    }
    if options.steps {
        let (steps, runs) = steps::run(servers, seconds).await?;
        latency.runs.extend(runs);
        latency.steps = Some(steps);
    }
    Ok(())
}

async fn with_defaults(servers: &Servers, rate: u32, seconds: u32) -> anyhow::Result<Run> {
    let shipped = Connector::settings(servers, CONNECTOR).await?;
    let mut plain = shipped.clone();
    if let Json::Object(settings) = &mut plain {
        settings.retain(|name, _| !FOR_SPEED.contains(&name.as_str()));
    }
    Connector::start(servers, CONNECTOR, &plain).await?;
    let subject = Subject { connector: DEFAULTS, ..OURS };
    let measured = measure(servers, subject, rate, seconds).await;
    Connector::start(servers, CONNECTOR, &shipped).await?;
    measured
}

fn table(latency: &Latency) -> String {
    let mut lines = vec![format!(
        "{:<20} {:<9} {:>8} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "",
        "connector",
        "writes/s",
        "committed",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "calm p99",
        "most ms"
    )];
    lines.extend(latency.runs.iter().map(|run| {
        let Percentiles { p50, p90, p99, max, .. } = run.millis;
        format!(
            "{} {:>9.0} {p50:>8.1} {p90:>8.1} {p99:>8.1} {:>8.1} {max:>8.1}",
            name(run),
            run.committed_rate,
            run.calm_p99
        )
    }));
    lines.push(String::new());
    lines.push(format!(
        "{:<39} {:>15} {:>15} {:>15} {:>15}",
        "p50 and p99 ms of each stage",
        "Debezium read",
        "to producer",
        "to consumer",
        "to the reader"
    ));
    lines.extend(latency.runs.iter().filter_map(|run| {
        let stages = run.stages?;
        let of = |stage: Percentiles| format!("{:>7.1} {:>7.1}", stage.p50, stage.p99);
        let [read, connector, broker, apply] =
            [stages.read, stages.connector, stages.broker, stages.apply].map(of);
        Some(format!("{} {read} {connector} {broker} {apply}", name(run)))
    }));
    if let Some(Steps { sustainable, p99_ratio, calm_p99_ratio, .. }) = &latency.steps {
        lines.push(String::new());
        lines.push(match (sustainable, p99_ratio, calm_p99_ratio) {
            (Some(highest), Some(ratio), Some(calm)) => format!(
                "highest rate the view keeps up with: {highest}/s; \
                 p99 at 80 % of it / at 10 %: {ratio:.1} (calm p99: {calm:.1})"
            ),
            _ => "the view keeps up with none of the rates that were tried".to_owned(),
        });
    }
    lines.join("\n")
}

fn name(run: &Run) -> String {
    format!("{:<20} {:<9} {:>8}", run.contestant, run.connector, run.rate)
}
