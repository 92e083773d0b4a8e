//! What one may type after `./dev bench`.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Measures cdc-consumer on the real servers. Nothing counts before its rows equal the source's.
#[derive(Debug, Parser)]
#[command(
    name = "./dev bench",
    bin_name = "./dev bench",
    max_term_width = 100,
    after_help = "Exit codes: 0 all rows of the consumer are right; 1 they differ from the source; 2 it \
                  could not be measured."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Every benchmark below, one after the other; takes an hour or more
    All(AllOptions),
    /// Random changes through Debezium into our table and into the Debezium JDBC sink's: the final
    /// rows of source, consumer and sink, compared row for row
    Agree(AgreeOptions),
    /// How fast a full topic is applied: the consumer, the JDBC sink, SQL alone, COPY
    Drain(DrainOptions),
    /// Whether the consumer keeps up with Debezium: changes streamed into a topic, and into the view; with
    /// everybody on all processors, and with source and view on processors of their own
    Stream(StreamOptions),
    /// Whether the shape of the load matters: one huge transaction, one department for all rows
    Shapes(ShapesOptions),
    /// Criterion measures the decoding of real envelopes: ours, and into apache-avro's values
    Decode(DecodeOptions),
    /// Requests a second through user-api and post-api, and statements a second without them
    Api(ApiOptions),
    /// From a commit at the source to a reader who sees it in the view, at fixed rates; by stages
    Latency(LatencyOptions),
    /// The original's run: users posted through REST, with the view counted beside it
    Load(LoadOptions),
    /// Draw results of `drain`, `latency` and `load` as SVG, each beside its JSON file
    Plot(PlotOptions),
}

#[derive(Debug, Args)]
pub(crate) struct AllOptions {
    /// How often the sides of a benchmark take turns, where they do [default: each its own]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct AgreeOptions {
    /// Changes to make at the source
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) changes: u64,

    /// Seed of the changes; printed, so that a run can be repeated [default: random]
    #[arg(long)]
    pub(crate) seed: Option<u64>,

    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct DrainOptions {
    /// Changes in the topic. A topic that an earlier run filled is used again. The shipped connectors are
    /// stopped during a run of up to 2,000,000: the server keeps 2 GB of log for them
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) events: u64,

    /// How often each contestant runs; they take turns. One run before is not counted
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,

    /// What the changes are
    #[arg(long, value_enum, default_value_t = Mix::Mixed)]
    pub(crate) mix: Mix,

    /// Seed of the changes
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,

    /// Run these contestants only
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) only: Vec<crate::contest::Contestant>,

    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct StreamOptions {
    /// Changes that are written at the source, as fast as it takes them. The shipped connectors are
    /// stopped meanwhile, and the server keeps 2 GB of log for them
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) changes: u64,

    /// How often each side runs; they take turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,

    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct ShapesOptions {
    /// Changes of each topic. Topics that an earlier run filled are used again
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..))]
    pub(crate) events: u64,

    /// How often each shape is applied; the two of a pair take turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,

    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct DecodeOptions {
    /// Records to decode again and again
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) records: u64,

    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct ApiOptions {
    /// How long each side runs at a time
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) seconds: u64,

    /// How often; the sides take turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,

    /// Measure these requests only
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) only: Vec<crate::api::Operation>,

    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct LatencyOptions {
    /// Writes a second, one run each
    #[arg(long, value_delimiter = ',', default_value = "500,200,2000", value_parser = clap::value_parser!(u32).range(16..=10_000))]
    pub(crate) rates: Vec<u32>,

    /// How long each run takes
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) seconds: u32,

    /// How often each run is made; they take turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,

    /// Measure the first rate once more with Debezium's and Kafka's defaults instead of the connector's
    /// shipped settings for speed
    #[arg(long)]
    pub(crate) connector_defaults: bool,

    /// Measure others at the first rate, too: the Debezium JDBC sink with its defaults, and
    /// PostgreSQL's logical replication. cdc-consumer is stopped meanwhile
    #[arg(long)]
    pub(crate) rivals: bool,

    /// Find the highest rate the view keeps up with, and measure at 10 % and at 80 % of it. Takes
    /// several minutes
    #[arg(long)]
    pub(crate) steps: bool,

    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct LoadOptions {
    /// Users to create
    #[arg(long, default_value_t = 452_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) users: u64,

    /// Clients that post side by side, each waiting for its answer
    #[arg(long, default_value = "64")]
    pub(crate) clients: NonZeroUsize,

    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct PlotOptions {
    /// JSON files that `drain`, `latency` or `load` wrote
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Output {
    /// Print the result as JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,

    /// Where the JSON goes as well [default: bench/ in cargo's target directory]
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
}

/// What the changes of a topic are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mix {
    /// 70 % create, 25 % update, 5 % delete, of keys taken evenly
    Mixed,
    /// Creates only
    Insert,
    /// A fifth creates, then updates of keys taken evenly
    Update,
    /// Any operation that the row's state allows, on hot keys and cold ones
    #[value(skip)]
    Random,
}

/// Results go to standard output. A closed pipe is not our failure.
pub(crate) fn print(text: &str) {
    writeln!(std::io::stdout(), "{text}").ok();
}

/// The error and its causes to standard error.
pub(crate) fn complain(error: &anyhow::Error) {
    writeln!(std::io::stderr(), "./dev bench: {error:#}").ok();
}
