//! The migration step: run it before the services, and again whenever migrations were added.

mod settings;

use std::process::ExitCode;

use clap::Parser;
use migrate::Generation;
use service::telemetry;

use crate::settings::{Command, PostDatabase, Settings, UserDatabase};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let settings = Settings::parse();
    match run(settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %telemetry::chain(error.as_ref()), "migration failed");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    telemetry::init("migrate", settings.log_format, &settings.log_filter)?;
    let passwords = settings.passwords.read();
    match settings.command {
        Command::All { users: UserDatabase { user_url }, posts: PostDatabase { post_url } } => {
            migrate::users(&user_url, &passwords).await?;
            migrate::posts(&post_url, &passwords).await?;
            views(&post_url, None).await
        }
        Command::Users(UserDatabase { user_url }) => {
            Ok(migrate::users(&user_url, &passwords).await?)
        }
        Command::Posts(PostDatabase { post_url }) => {
            Ok(migrate::posts(&post_url, &passwords).await?)
        }
        Command::Views { posts: PostDatabase { post_url }, generation } => {
            views(&post_url, generation).await
        }
        Command::Drop { posts: PostDatabase { post_url }, generation } => {
            Ok(migrate::drop_generation(&post_url, generation).await?)
        }
    }
}

async fn views(url: &str, generation: Option<Generation>) -> anyhow::Result<()> {
    let generation = match generation {
        Some(generation) => generation,
        None => migrate::current_generation(url).await?.unwrap_or(Generation::FIRST),
    };
    Ok(migrate::views(url, generation).await?)
}
