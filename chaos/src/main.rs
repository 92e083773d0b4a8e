//! `./dev chaos`: breaks the running system by a seeded schedule while rows are written, and checks
//! that the views keep their promises all the time and equal their sources in the end.

mod checker;
mod cli;
mod fault;
mod field;
mod history;
mod http_writer;
mod inject;
mod interrupt;
mod ledger;
mod marker;
mod nemesis;
mod owed;
mod proxy;
mod recovery;
mod report;
mod run;
mod schedule;
mod sql;
mod watch;
mod watcher;
mod writer;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::cli::Cli;
use crate::fault::Kind;

/// What exit code 1 is not: the run itself was not possible.
const TROUBLE: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    match chaos(Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            writeln!(std::io::stderr(), "./dev chaos: {error:#}").ok();
            ExitCode::from(TROUBLE)
        }
    }
}

async fn chaos(cli: Cli) -> anyhow::Result<ExitCode> {
    let seed = cli.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let kinds = if cli.only.is_empty() { Kind::all() } else { cli.only.clone() };
    let schedule = schedule::schedule(seed, cli.minutes, &kinds);
    if cli.plan {
        for injection in &schedule {
            print(&serde_json::to_string(injection)?);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let report = run::run(&cli, seed, &schedule).await?;
    let text = if cli.json {
        serde_json::to_string_pretty(&report).context("cannot write JSON")?
    } else {
        report.table()
    };
    print(text.trim_end());
    Ok(if report.passed() {
        ExitCode::SUCCESS
    } else if !report.proves_something() && report.anomalies.is_empty() {
        ExitCode::from(TROUBLE)
    } else {
        ExitCode::FAILURE
    })
}

/// A closed pipe is not our failure.
fn print(text: &str) {
    writeln!(std::io::stdout(), "{text}").ok();
}
