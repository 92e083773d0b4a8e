//! `bench`: see `--help`. Started by `./dev bench`, which brings the servers up first.

mod agree;
mod all;
mod api;
mod batches;
mod changes;
mod cli;
mod connect;
mod contest;
mod copy;
mod decode;
mod drain;
mod figures;
mod halves;
mod http_client;
mod interrupt;
mod jdbc;
mod kafka_offsets;
mod latency;
mod latency_loop;
mod latency_rivals;
mod latency_run;
mod latency_stages;
mod latency_steps;
mod latency_summary;
mod library;
mod load;
mod operations;
mod ours;
mod plot;
mod plot_latency;
mod plot_load;
mod process;
mod replay;
mod report;
mod servers;
mod shapes;
mod shipped;
mod source;
mod stream;
mod target;
mod topic;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Verb};

#[tokio::main]
async fn main() -> ExitCode {
    run(Cli::parse().verb).await
}

async fn run(verb: Verb) -> ExitCode {
    let outcome = match verb {
        Verb::All(options) => Ok(all::run(&options).await),
        Verb::Agree(options) => agree::run(&options).await,
        Verb::Drain(options) => drain::run(&options).await,
        Verb::Stream(options) => stream::run(&options).await,
        Verb::Shapes(options) => shapes::run(&options).await,
        Verb::Decode(options) => decode::run(&options).await,
        Verb::Api(options) => api::run(&options).await,
        Verb::Latency(options) => latency::run(&options).await,
        Verb::Load(options) => load::run(&options).await,
        Verb::Plot(options) => plot::run(&options),
    };
    outcome.unwrap_or_else(|error| {
        cli::complain(&error);
        ExitCode::from(2)
    })
}
