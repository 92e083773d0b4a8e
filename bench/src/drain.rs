//! `./dev bench drain`: how fast a full topic is applied.

use std::process::ExitCode;

use clap::ValueEnum;
use serde::Serialize;

use crate::cli::{DrainOptions, Mix};
use crate::contest::{Contestant, Field, Run};
use crate::figures::Spread;
use crate::jdbc::{self, Setting};
use crate::report;
use crate::servers::{Conditions, Servers};
use crate::source::{self, Plan};
use crate::target::Target;

/// The result, as it is written.
#[derive(Debug, Serialize)]
pub(crate) struct Drain {
    mix: Mix,
    seed: u64,
    events: u64,
    records: u64,
    /// The sink's setting in its tuned runs.
    tuned: Setting,
    /// Every setting that was tried, with its run.
    tuning: Vec<(Setting, Run)>,
    summaries: Vec<Summary>,
    /// How often the first is as fast as the second, round by round.
    ratios: Vec<Ratio>,
    /// How much the first lets the server write to its log, of what the second does.
    wal_ratios: Vec<Ratio>,
    runs: Vec<Run>,
    conditions: Conditions,
}

/// All runs of one contestant.
#[derive(Debug, Serialize)]
struct Summary {
    contestant: Contestant,
    per_second: Spread,
    cpu_micros_per_event: Option<Spread>,
    peak_mib: Option<u64>,
    wal_bytes_per_event: Spread,
    /// Runs whose rows equal the source's, of how many.
    right: (usize, usize),
}

#[derive(Debug, Serialize)]
struct Ratio {
    of: Contestant,
    to: Contestant,
    times: Spread,
}

const RATIOS: [(Contestant, Contestant); 10] = [
    (Contestant::Ours, Contestant::Sink),
    (Contestant::Ours, Contestant::SinkTuned),
    (Contestant::Ours, Contestant::Sql),
    (Contestant::Ours, Contestant::Transactions),
    (Contestant::Ours, Contestant::Copy),
    // The price of the fence: all of it, then the same statements with it and without.
    (Contestant::Ours, Contestant::KafkaOffsets),
    (Contestant::Transactions, Contestant::Sql),
    (Contestant::TransactionsView, Contestant::SqlView),
    (Contestant::OursView, Contestant::SqlView),
    (Contestant::OursView, Contestant::TransactionsView),
];

const WAL_RATIOS: [(Contestant, Contestant); 2] =
    [(Contestant::Ours, Contestant::RowByRow), (Contestant::OursView, Contestant::RowByRowView)];

/// Take part only when they are named.
const SLOW: [Contestant; 2] = [Contestant::RowByRow, Contestant::RowByRowView];

/// What is compared.
type Value = fn(&Run) -> f64;
const SPEED: Value = |run| run.per_second;
const WAL: Value = |run| run.wal_bytes_per_event;

fn by_default() -> Vec<Contestant> {
    let all = Contestant::value_variants().iter();
    all.copied().filter(|each| !SLOW.contains(each)).collect()
}

/// Fails with 1 when rows of the consumer differ from the source's.
pub(crate) async fn run(options: &DrainOptions) -> anyhow::Result<ExitCode> {
    let servers = Servers::new()?;
    let conditions = servers.conditions().await?;
    let contestants = match options.only.as_slice() {
        [] => by_default(),
        only => only.to_vec(),
    };
    if contestants.contains(&Contestant::Sink) || contestants.contains(&Contestant::SinkTuned) {
        jdbc::offer(&servers).await?;
    }
    let plan = Plan::new(options.mix, options.events, options.seed);
    let filled = source::fill(&servers, plan).await?;
    let target = Target::create(&filled).await?;
    let mut field = Field { servers: &servers, target: &target, tuned: jdbc::TUNED[0] };
    let mut tuning = Vec::new();
    if contestants.contains(&Contestant::SinkTuned) {
        tuning = field.tune().await?;
    } else {
        // The first run after a topic was filled meets caches, and a broker, that are cold.
        servers.progress.line("  warming up, not counted");
        field.run(contestants[0], 0).await?;
    }
    let mut runs = Vec::new();
    for round in 0..options.repeat {
        for contestant in in_turn(&contestants, round) {
            runs.push(field.run(contestant, round).await?);
        }
    }
    let drain = Drain {
        mix: options.mix,
        seed: options.seed,
        events: filled.changes,
        records: filled.records,
        tuned: field.tuned,
        tuning,
        summaries: contestants.iter().filter_map(|&each| summary(each, &runs)).collect(),
        ratios: RATIOS.iter().filter_map(|&(of, to)| ratio(of, to, &runs, SPEED)).collect(),
        wal_ratios: WAL_RATIOS.iter().filter_map(|&(of, to)| ratio(of, to, &runs, WAL)).collect(),
        runs,
        conditions,
    };
    let name = format!("drain-{}", format!("{:?}", options.mix).to_lowercase());
    report::write(&servers, &options.output, &name, &drain, &table(&drain))?;
    let ours = [Contestant::Ours, Contestant::OursView];
    let wrong = |run: &&Run| ours.contains(&run.contestant) && !run.difference.none();
    let right = drain.runs.iter().find(wrong).is_none();
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every second round the other way round: what one leaves behind is not always the same one's to bear.
pub(crate) fn in_turn<T: Copy>(sides: &[T], round: u32) -> Vec<T> {
    let mut turn = sides.to_vec();
    if !round.is_multiple_of(2) {
        turn.reverse();
    }
    turn
}

/// A wrong result has no speed: only runs that are right count.
fn right(contestant: Contestant, runs: &[Run]) -> impl Iterator<Item = &Run> {
    runs.iter().filter(move |run| run.contestant == contestant && run.difference.none())
}

fn summary(contestant: Contestant, runs: &[Run]) -> Option<Summary> {
    let of = |value: fn(&Run) -> Option<f64>| Spread::of(right(contestant, runs).filter_map(value));
    let all = runs.iter().filter(|run| run.contestant == contestant).count();
    Some(Summary {
        contestant,
        per_second: of(|run| Some(run.per_second))?,
        cpu_micros_per_event: of(|run| run.cpu_micros_per_event),
        peak_mib: right(contestant, runs).filter_map(|run| run.peak_mib).max(),
        wal_bytes_per_event: of(|run| Some(run.wal_bytes_per_event))?,
        right: (right(contestant, runs).count(), all),
    })
}

/// Runs of one round stood under the same weather.
fn ratio(of: Contestant, to: Contestant, runs: &[Run], value: Value) -> Option<Ratio> {
    let pairs = right(of, runs).filter_map(|one| {
        let other = right(to, runs).find(|other| other.round == one.round)?;
        Some(value(one) / value(other))
    });
    Some(Ratio { of, to, times: Spread::of(pairs)? })
}

fn table(drain: &Drain) -> String {
    let mut lines = vec![
        format!("{} events ({:?}), {} records", drain.events, drain.mix, drain.records),
        format!(
            "{:<30} {:>9} {:>17} {:>9} {:>8} {:>9} {:>6}",
            "", "events/s", "lowest-highest", "CPU us/ev", "peak MiB", "WAL B/ev", "right"
        ),
    ];
    let dash = || "-".to_owned();
    for summary in &drain.summaries {
        let Spread { median, min, max } = summary.per_second;
        lines.push(format!(
            "{:<30} {median:>9.0} {:>17} {:>9} {:>8} {:>9.0} {:>6}",
            summary.contestant.title(),
            format!("{min:.0}-{max:.0}"),
            summary.cpu_micros_per_event.map_or_else(dash, |it| format!("{:.2}", it.median)),
            summary.peak_mib.map_or_else(dash, |mib| mib.to_string()),
            summary.wal_bytes_per_event.median,
            format!("{}/{}", summary.right.0, summary.right.1),
        ));
    }
    for (what, ratios) in [("", &drain.ratios), ("WAL, ", &drain.wal_ratios)] {
        for Ratio { of, to, times: Spread { median, min, max } } in ratios {
            let names = format!("{what}{} / {}", of.title(), to.title());
            lines.push(format!("{names}: {median:.2} ({min:.2}-{max:.2})"));
        }
    }
    if !drain.tuning.is_empty() {
        lines.push(format!("JDBC sink tuned: {:?}", drain.tuned));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Difference;

    fn run(contestant: Contestant, round: u32, per_second: f64, missing: u64) -> Run {
        Run {
            contestant,
            round,
            start_seconds: 0.0,
            seconds: 1.0,
            per_second,
            cpu_micros_per_event: None,
            peak_mib: None,
            wal_bytes_per_event: 1.0,
            difference: Difference { missing, ..Difference::default() },
        }
    }

    #[test]
    fn only_runs_with_the_right_rows_count() {
        use Contestant::{Ours, Sink};
        let runs = [
            run(Ours, 0, 10.0, 0),
            run(Sink, 0, 5.0, 0),
            run(Ours, 1, 90.0, 0),
            run(Sink, 1, 1.0, 3),
            run(Ours, 2, 12.0, 0),
            run(Sink, 2, 4.0, 0),
        ];
        let ours = ratio(Ours, Sink, &runs, SPEED).unwrap().times;
        assert_eq!((ours.min, ours.max), (2.0, 3.0));
        let sink = summary(Sink, &runs).unwrap();
        assert_eq!(sink.right, (2, 3));
        assert_eq!((sink.per_second.min, sink.per_second.max), (4.0, 5.0));
        assert!(ratio(Ours, Contestant::Copy, &runs, SPEED).is_none());
    }
}
