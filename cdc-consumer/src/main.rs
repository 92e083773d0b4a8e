//! `cdc-consumer`: see `--help`.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::io::stdout;
use std::process::ExitCode;

use cdc_consumer::board::Board;
use cdc_consumer::cli::{Cli, Command, OffsetsCommand};
use cdc_consumer::config::RunSettings;
use cdc_consumer::{
    admin, check, dead_letters, metrics, offsets_command, pipeline, rebuild, status, verify,
};
use clap::Parser;
use service::health::Readiness;
use service::{server, shutdown, telemetry};

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %telemetry::chain(error.as_ref()), "stopped");
            ExitCode::FAILURE
        }
    }
}

async fn execute(cli: Cli) -> anyhow::Result<()> {
    telemetry::init("cdc-consumer", cli.log.log_format, &cli.log.log_filter)?;
    match cli.command {
        Command::Run(settings) => run(&settings).await,
        Command::Check(settings) => check::check(&settings, &mut stdout()).await,
        Command::Status(settings) => status::status(&settings, &mut stdout()).await,
        Command::DeadLetters(command) => dead_letters::execute(&command, &mut stdout()).await,
        Command::Offsets(OffsetsCommand::Show(settings)) => {
            status::offsets(&settings, &mut stdout()).await
        }
        Command::Offsets(OffsetsCommand::Reset(settings)) => {
            offsets_command::reset(&settings, &mut stdout()).await
        }
        Command::Rebuild(settings) => {
            rebuild::rebuild(&settings, &shutdown::token()?, &mut stdout()).await
        }
        Command::Verify(settings) => verify::verify(&settings, &mut stdout()).await,
    }
}

async fn run(settings: &RunSettings) -> anyhow::Result<()> {
    let specs = pipeline::declaration(&settings.views.views_file)?;
    let shutdown = shutdown::token()?;
    let recorder = service::metrics::install(&[
        (metrics::FRESHNESS, metrics::FRESHNESS_BOUNDS),
        (metrics::APPLY, metrics::APPLY_BOUNDS),
        (metrics::BATCH, metrics::BATCH_BOUNDS),
    ])?;
    metrics::describe();
    let readiness = Readiness::new();
    readiness.block("session", "joining the consumer group");
    let board = Board::new(specs.iter().map(|spec| spec.table.clone()), readiness);

    let listener = server::listen(settings.consumer_listen).await?;
    let routes = admin::router(board.clone()).merge(service::metrics::router(recorder));
    let admin = tokio::spawn(server::serve(listener, routes, shutdown.clone()));
    let outcome = pipeline::run(settings, &specs, None, &board, &shutdown).await;
    shutdown.cancel();
    admin.await??;
    Ok(outcome?)
}
