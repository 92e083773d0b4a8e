//! `./dev bench shapes`: whether the shape of the load matters to the consumer.

use std::process::ExitCode;

use anyhow::ensure;
use serde::Serialize;

use crate::cli::{Mix, ShapesOptions};
use crate::contest::{Contestant, Field, Run};
use crate::drain::in_turn;
use crate::figures::Spread;
use crate::jdbc;
use crate::report;
use crate::servers::{Conditions, Servers};
use crate::source::{self, Filled, Plan};
use crate::target::Target;

const SEED: u64 = 1;
const SMALL_TRANSACTION_ROWS: usize = 1000;
const MANY_DEPARTMENTS: u32 = 1000;

/// The same number of changes in two shapes.
struct Pair {
    name: &'static str,
    contestant: Contestant,
    usual: Plan,
    extreme: Plan,
}

#[derive(Debug, Serialize)]
struct Comparison {
    name: &'static str,
    usual_per_second: Spread,
    extreme_per_second: Spread,
    /// How often the rate of the usual shape the extreme one reaches, round by round.
    extreme_to_usual: Spread,
    /// Of the extreme shape.
    peak_mib: Option<u64>,
    /// Those of the usual shape, then those of the extreme one. They took turns.
    runs: Vec<Run>,
}

#[derive(Debug, Serialize)]
struct Shapes {
    events: u64,
    comparisons: Vec<Comparison>,
    conditions: Conditions,
}

fn pairs(events: u64) -> anyhow::Result<[Pair; 2]> {
    let plan = Plan::new(Mix::Mixed, events, SEED);
    let transactions = |rows| Plan { transaction_rows: Some(rows), ..plan };
    let departments = |count| Plan { departments: count, ..plan };
    Ok([
        Pair {
            name: "one transaction / transactions of 1,000 rows",
            contestant: Contestant::Ours,
            usual: transactions(SMALL_TRANSACTION_ROWS),
            extreme: transactions(usize::try_from(events)?),
        },
        Pair {
            name: "one department / 1,000 departments, user_view",
            contestant: Contestant::OursView,
            usual: departments(MANY_DEPARTMENTS),
            extreme: departments(1),
        },
    ])
}

pub(crate) async fn run(options: &ShapesOptions) -> anyhow::Result<ExitCode> {
    let servers = Servers::new()?;
    let conditions = servers.conditions().await?;
    let mut comparisons = Vec::new();
    for pair in pairs(options.events)? {
        comparisons.push(compare(&servers, &pair, options.repeat).await?);
    }
    let shapes = Shapes { events: options.events, comparisons, conditions };
    report::write(&servers, &options.output, "shapes", &shapes, &table(&shapes))?;
    Ok(ExitCode::SUCCESS)
}

async fn compare(servers: &Servers, pair: &Pair, repeat: u32) -> anyhow::Result<Comparison> {
    let filled =
        [source::fill(servers, pair.usual).await?, source::fill(servers, pair.extreme).await?];
    // As in `drain`.
    servers.progress.line("  warming up, not counted");
    measure(servers, pair.contestant, &filled[0], 0).await?;
    let mut runs = [Vec::new(), Vec::new()];
    for round in 0..repeat {
        for side in in_turn(&[0, 1], round) {
            runs[side].push(measure(servers, pair.contestant, &filled[side], round).await?);
        }
    }
    let rates = |side: usize| runs[side].iter().map(|run: &Run| run.per_second).collect::<Vec<_>>();
    let (usual, extreme) = (rates(0), rates(1));
    Ok(Comparison {
        name: pair.name,
        extreme_to_usual: Spread::of_ratios(&extreme, &usual)?,
        peak_mib: runs[1].iter().filter_map(|run| run.peak_mib).max(),
        usual_per_second: Spread::of_rounds(usual)?,
        extreme_per_second: Spread::of_rounds(extreme)?,
        runs: runs.concat(),
    })
}

async fn measure(
    servers: &Servers,
    contestant: Contestant,
    filled: &Filled,
    round: u32,
) -> anyhow::Result<Run> {
    let target = Target::create(filled).await?;
    let field = Field { servers, target: &target, tuned: jdbc::DEFAULT };
    let run = field.run(contestant, round).await?;
    ensure!(run.difference.none(), "{}: {}", filled.topic, run.difference);
    Ok(run)
}

fn table(shapes: &Shapes) -> String {
    let head = format!(
        "{:<46} {:>10} {:>10} {:>6} {:>12} {:>9}",
        format!("{} events", shapes.events),
        "extreme/s",
        "usual/s",
        "ratio",
        "low-high",
        "peak MiB"
    );
    let rows = shapes.comparisons.iter().map(|comparison| {
        let Spread { median, min, max } = comparison.extreme_to_usual;
        format!(
            "{:<46} {:>10.0} {:>10.0} {median:>6.2} {:>12} {:>9}",
            comparison.name,
            comparison.extreme_per_second.median,
            comparison.usual_per_second.median,
            format!("{min:.2}-{max:.2}"),
            comparison.peak_mib.map_or_else(|| "-".to_owned(), |mib| mib.to_string()),
        )
    });
    std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n")
}
