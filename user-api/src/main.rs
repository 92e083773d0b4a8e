//! The user service's process.

mod settings;

use std::process::ExitCode;

use clap::Parser;
use service::{database, heartbeat, metrics, server, shutdown, telemetry};

use crate::settings::Settings;

/// Requests are many small allocations, freed by another thread as often as by their own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    match run(Settings::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %telemetry::chain(error.as_ref()), "user-api failed");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    telemetry::init("user-api", settings.log_format, &settings.log_filter)?;
    let metrics = metrics::install(&[])?;
    let shutdown = shutdown::token()?;
    let pool = database::pool("user-api", &settings.database_url, settings.connections.get())?;
    let listener = server::listen(settings.listen).await?;
    let heartbeat = heartbeat::start(pool.clone(), shutdown.clone());
    let router = user_api::app(pool.clone()).merge(metrics::router(metrics));
    server::serve(listener, router, shutdown).await?;
    heartbeat.await?;
    database::close(&pool).await;
    Ok(())
}
