//! `./dev bench agree`: do source, consumer and JDBC sink agree after random changes?

use std::process::ExitCode;

use serde::Serialize;

use crate::cli::{AgreeOptions, Mix};
use crate::jdbc::{self, Sink};
use crate::ours::Consumer;
use crate::report;
use crate::servers::{Conditions, Servers};
use crate::source::{self, Plan};
use crate::target::{Difference, Table, Target};

/// The result, as it is written.
#[derive(Debug, Serialize)]
struct Agreement {
    seed: u64,
    changes: u64,
    records: u64,
    consumer: Difference,
    jdbc_sink: Difference,
    jdbc_setting: jdbc::Setting,
    conditions: Conditions,
}

/// Fails with 1 when the consumer's rows differ from the source's.
pub(crate) async fn run(options: &AgreeOptions) -> anyhow::Result<ExitCode> {
    let servers = Servers::new()?;
    let conditions = servers.conditions().await?;
    let seed = options.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    servers.progress.line(&format!("  seed {seed}: --seed {seed} makes the same changes again"));
    jdbc::offer(&servers).await?;
    let plan = Plan::new(Mix::Random, options.changes, seed);
    let filled = source::fill(&servers, plan).await?;
    let target = Target::create(&filled).await?;
    target.reset().await?;

    let step = servers.progress.step("consumer", "applying");
    let mut consumer = Consumer::start(&servers, &target, Table::Bare)?;
    target.wait_until_complete(Table::Bare, || std::future::ready(consumer.check())).await?;
    consumer.stop(&servers, &target).await?;
    step.done("has applied everything");

    let step = servers.progress.step("JDBC sink", "applying");
    let sink = Sink::start(&servers, &target, jdbc::PARALLEL).await?;
    target.wait_until_complete(Table::Sink, || sink.check()).await?;
    sink.stop(&servers).await?;
    step.done("has applied everything");

    let agreement = Agreement {
        seed,
        changes: filled.changes,
        records: filled.records,
        consumer: target.compare(Table::Bare).await?,
        jdbc_sink: target.compare(Table::Sink).await?,
        jdbc_setting: jdbc::PARALLEL,
        conditions,
    };
    let text = format!(
        "{} changes of seed {seed}, compared with the source row for row:\n  \
         cdc-consumer  {}\n  JDBC sink     {}",
        agreement.changes, agreement.consumer, agreement.jdbc_sink
    );
    report::write(&servers, &options.output, "agree", &agreement, &text)?;
    Ok(if agreement.consumer.none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
