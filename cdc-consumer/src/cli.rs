//! The command line.

use clap::{Args, Parser, Subcommand};
use secrecy::SecretString;

use crate::config::{
    DatabaseSettings, KafkaSettings, LimitSettings, LogSettings, RegistrySettings, RunSettings,
    ViewSettings,
};

/// Keeps PostgreSQL tables equal to the source tables whose changes Debezium writes to Kafka.
///
/// Which topic keeps which table is declared in a views file. Offsets live in the database, beside the
/// rows, and move in the same transaction: every change takes effect exactly once, whatever is killed,
/// restarted or replayed.
///
/// Every setting is a flag or an environment variable.
#[derive(Debug, Parser)]
#[command(name = "cdc-consumer", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    #[command(flatten)]
    pub log: LogSettings,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Apply changes until stopped (SIGTERM or Ctrl-C)
    ///
    /// Start several to share the partitions. Exits with 0 after a stop, with 1 when it meets something
    /// that waiting cannot mend; the last log line says what and what to do.
    Run(Box<RunSettings>),

    /// Look at everything the consumer stands on, and say what is wrong with it
    ///
    /// Database, tables, topics and how long they keep records, stored offsets, the newest record of each
    /// partition against its table. Changes nothing. Exits with 1 when something is wrong; what is only
    /// doubtful is said.
    Check(Box<CheckSettings>),

    /// Show where every partition stands: stored offset, end of the log, lag, owner, dead letters
    ///
    /// Asks the database and the broker; needs no running consumer.
    Status(StatusSettings),

    /// Show or move the stored offsets
    #[command(subcommand)]
    Offsets(OffsetsCommand),

    /// Look at records that were kept aside, and try them again or drop them
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),

    /// Build the views anew from the topics, beside those that readers see, then put them in their place
    ///
    /// Readers see the old views until the new ones show everything that the old ones do, and then the new
    /// ones, all at once. Nothing has to be stopped: a running consumer goes on with the old views, and with
    /// the new ones afterwards. Broken off, the same command goes on where it was. The old views stay, in
    /// a schema of their own; the same command with their number brings them up to date and back.
    Rebuild(Box<RebuildSettings>),

    /// Compare a view with its source table, and what is derived from it with its definition
    ///
    /// Reads both row by row while changes go on; a row that differs is looked at again until the view
    /// had time to catch up. Exits with 1 when anything differs. Changes nothing.
    Verify(Box<VerifySettings>),
}

/// Which view to compare with which table.
#[derive(Debug, Clone, Args)]
pub struct VerifySettings {
    /// Table of the views file
    #[arg(long)]
    pub view: String,

    /// Source table, as schema.table; with quotes where SQL needs them
    #[arg(long)]
    pub source_table: String,

    /// URL of the source database; a role that may read the table
    #[arg(long, env = "SOURCE_DATABASE_URL", hide_env_values = true)]
    pub source_database_url: SecretString,

    /// How long the view may lag behind a row of the source that stands still
    #[arg(long, default_value = "10s")]
    pub wait: humantime::Duration,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub database: DatabaseSettings,

    #[command(flatten)]
    pub views: ViewSettings,
}

/// What to build, and with which rights.
#[derive(Debug, Clone, Args)]
pub struct RebuildSettings {
    /// URL of the view database for its superuser, who makes tables and publishes them
    #[arg(long, env = "POST_DATABASE_ADMIN_URL", hide_env_values = true)]
    pub admin_database_url: SecretString,

    /// Number of the generation to build: a new one, or one there is, which is brought up to date
    /// [default: the newest, if readers do not see it, or a new one]
    #[arg(long)]
    pub generation: Option<migrate::Generation>,

    /// Begin a new generation although the topic no longer has its first records: it holds a whole snapshot all
    /// the same
    #[arg(long)]
    pub from_cut_log: bool,

    #[command(flatten)]
    pub accepted: Accepted,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub views: ViewSettings,

    #[command(flatten)]
    pub kafka: KafkaSettings,

    #[command(flatten)]
    pub registry: RegistrySettings,

    #[command(flatten)]
    pub database: DatabaseSettings,

    #[command(flatten)]
    pub limits: LimitSettings,
}

/// What views are published with all the same.
#[derive(Debug, Clone, Copy, Args)]
pub struct Accepted {
    /// Publish although records are kept aside that are not in the views that readers see
    #[arg(long)]
    pub with_dead_letters: bool,

    /// Publish although rows that readers see are neither in the new views nor deleted there
    #[arg(long)]
    pub with_missing_rows: bool,
}

#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// List open dead letters, oldest first
    List(DeadLetterSettings),

    /// Show one with its record
    Show(DeadLetterChoice),

    /// Apply one, with everything that waits behind the same key, in order
    ///
    /// Needs the cause mended: the column widened, the setting changed. A newer state of the row stays.
    Retry(Box<RetrySettings>),

    /// Delete one, and give up what it says; what waits behind the same key goes with it
    Drop(DeadLetterChoice),
}

/// Where dead letters are.
#[derive(Debug, Clone, Args)]
pub struct DeadLetterSettings {
    #[command(flatten)]
    pub database: DatabaseSettings,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// One dead letter.
#[derive(Debug, Clone, Args)]
pub struct DeadLetterChoice {
    /// Number of the dead letter, as `list` shows it
    pub id: i64,

    #[command(flatten)]
    pub settings: DeadLetterSettings,
}

/// What a retry needs: it decodes the records again, as they are declared now.
#[derive(Debug, Clone, Args)]
pub struct RetrySettings {
    /// Number of the dead letter, as `list` shows it
    pub id: i64,

    #[command(flatten)]
    pub database: DatabaseSettings,

    #[command(flatten)]
    pub views: ViewSettings,

    #[command(flatten)]
    pub registry: RegistrySettings,

    #[command(flatten)]
    pub kafka: KafkaSettings,
}

#[derive(Debug, Subcommand)]
pub enum OffsetsCommand {
    /// Show the stored offsets
    Show(StatusSettings),

    /// Move stored offsets: a replay, or a jump over records. Without --execute only shows what would be
    ///
    /// A running consumer notices through the fence and continues at the new offset; nothing has to be
    /// stopped. All partitions are moved or none. An earlier reset with Kafka's tools that no consumer has
    /// followed yet is taken back. A replay moves no row backward: older changes than the view shows count
    /// as stale.
    Reset(ResetSettings),
}

/// What to look at.
#[derive(Debug, Clone, Args)]
pub struct CheckSettings {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub views: ViewSettings,

    #[command(flatten)]
    pub kafka: KafkaSettings,

    #[command(flatten)]
    pub registry: RegistrySettings,

    #[command(flatten)]
    pub database: DatabaseSettings,
}

/// Where to look, and how to print.
#[derive(Debug, Clone, Args)]
pub struct StatusSettings {
    #[command(flatten)]
    pub database: DatabaseSettings,

    #[command(flatten)]
    pub kafka: KafkaSettings,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Which offsets to move, and where to.
#[derive(Debug, Clone, Args)]
pub struct ResetSettings {
    /// Topic whose offsets to move
    #[arg(long)]
    pub topic: String,

    /// Only this partition
    #[arg(long)]
    pub partition: Option<i32>,

    /// earliest, latest, or an offset
    #[arg(long, default_value = "earliest")]
    pub to: ResetTo,

    /// The topic was deleted and made again, or its log cut: forget what was seen of the old log, and
    /// begin the new one. Rows go on to be guarded by their source positions. Refused while dead letters of the
    /// old log are open
    #[arg(long)]
    pub new_log: bool,

    /// Jump over records that nobody has read: the view goes without what they change
    #[arg(long)]
    pub skip: bool,

    /// Do it; without this flag nothing is changed
    #[arg(long)]
    pub execute: bool,

    #[command(flatten)]
    pub database: DatabaseSettings,

    #[command(flatten)]
    pub kafka: KafkaSettings,
}

/// The place offsets are moved to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetTo {
    Earliest,
    Latest,
    Offset(i64),
}

impl std::str::FromStr for ResetTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            number => match number.parse() {
                Ok(offset) if offset >= 0 => Ok(Self::Offset(offset)),
                _ => Err("expected earliest, latest or an offset from 0".to_owned()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_reset_is_a_dry_run_to_earliest_unless_told_otherwise() {
        let cli = Cli::parse_from(["cdc-consumer", "offsets", "reset", "--topic", "user-events"]);
        let Command::Offsets(OffsetsCommand::Reset(reset)) = cli.command else { panic!("a reset") };
        assert_eq!(reset.to, ResetTo::Earliest);
        assert!(!reset.execute);
    }
}
