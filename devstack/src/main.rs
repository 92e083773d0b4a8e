//! The command line behind `./dev`.

mod bench_run;
mod cli;
mod demo;
mod fuzz;
mod guards;
mod test_run;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match verbs::run(cli).await {
        Ok(code) => code,
        Err(error) => {
            cli::complain(&error);
            ExitCode::FAILURE
        }
    }
}
