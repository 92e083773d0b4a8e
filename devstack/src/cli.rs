//! What one may type after `./dev`.

use std::io::Write;

use clap::{Parser, Subcommand, ValueEnum};
use devstack::{Service, Settings};

use crate::{fuzz, guards};

/// The arguments of `./dev`.
#[derive(Parser)]
#[command(
    name = "./dev",
    bin_name = "./dev",
    max_term_width = 100,
    about = "Runs the whole system on this machine, without containers: PostgreSQL, Kafka, the \
             schema registry, Kafka Connect with Debezium, and the project's own programs.",
    after_help = EXAMPLES
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub settings: Settings,

    /// Hosts that no proxy stands before; ./dev adds this machine
    #[arg(long, env = "NO_PROXY", hide = true, default_value = "")]
    pub no_proxy: String,

    #[command(subcommand)]
    pub verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  ./dev demo                                   everything up, four scenarios played, URLs printed
  ./dev test                                   what CI runs, but for the fuzzing
  ./dev guards                                 shows that a test fails when a guard is removed
  ./dev fuzz --seconds 600                     ten minutes of hostile bytes for every decoder
  ./dev logs cdc-consumer -f                   follow one log
  ./dev psql posts -c 'select * from user_view'
  ./dev kafka consumer-groups --list           Kafka's own tools, pointed at the local broker
  ./dev kafka console-consumer --topic user-events --from-beginning --max-messages 3
  eval \"$(./dev env)\"                          addresses for your own shell
  ./dev chaos --minutes 5                      faults for five minutes, then a comparison
  ./dev start cdc-consumer-2                   a second consumer shares the partitions
  ./dev load                                   452,000 users through REST; the view must keep up
  ./dev bench agree                            our table, the JDBC sink's and the source, row for row
  ./dev down --wipe                            stop everything and delete its data

Processes: postgres kafka registry connect user-api post-api cdc-consumer, cdc-consumer-2 ... -8
Data and logs are in .dev (for root under /var/lib/cdc-devstack, because PostgreSQL refuses to
run as root), downloads in ~/.cache/cdc-devstack.";

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Bring everything up, play the four scenarios through HTTP, print the URLs
    Demo,
    /// Fetch, build and start what is missing, and programs that were built again, and wait until it
    /// works; harmless when it runs
    Up {
        #[arg(long, help = "Only PostgreSQL (with migrated databases), Kafka, registry, Connect")]
        servers_only: bool,
    },
    /// Stop everything
    Down {
        /// Delete the data and the logs, too
        #[arg(long)]
        wipe: bool,
    },
    /// Show each process, its health and its memory; exits with 1 unless all are healthy
    Status {
        #[arg(long)]
        json: bool,
    },
    /// Show a log: of a process, or of the steps migrations, connectors
    Logs {
        name: String,
        /// Go on as it grows
        #[arg(short, long)]
        follow: bool,
    },
    /// Format check, lints as errors, and all tests against the real servers
    Test,
    /// Break the running system by a seeded schedule, under writes, and check what the views show
    #[command(disable_help_flag = true)]
    Chaos {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Take the consumer's guards out one at a time, in a copy of the sources, and show that the tests
    /// notice each removal; exits with 1 unless all are noticed
    Guards(guards::Options),
    /// Measure the consumer beside the Debezium JDBC sink and plain SQL (release build; bench --help)
    #[command(disable_help_flag = true)]
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// The original example's run: post users through REST, and count the view beside it (load --help)
    #[command(disable_help_flag = true)]
    Load {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Try every decoder with bytes made by a fuzzer; installs the nightly compiler that needs, and exits
    /// with 1 when an input was not survived
    Fuzz(fuzz::Options),
    /// Print every address as shell exports
    Env,
    /// Run one of Kafka's own tools: topics, consumer-groups, console-consumer, ...
    #[command(disable_help_flag = true)]
    Kafka {
        tool: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Open psql as the administrator of a database; further arguments go to psql
    #[command(disable_help_flag = true)]
    Psql {
        database: Database,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Register the connectors and wait until they run
    Register {
        /// Do not end, but start again what fails later: Connect does not do it by itself
        #[arg(long)]
        watch: bool,
    },
    /// Start one process
    Start { service: Service },
    /// Stop one process
    Stop { service: Service },
    /// Stop and start one process, or a rebuilt program
    Restart { service: Service },
    /// End one process with SIGKILL, as a crash would
    Kill { service: Service },
    /// Freeze one process with SIGSTOP
    Pause { service: Service },
    /// Let a frozen process go on
    Resume { service: Service },
    /// Fetch all artefacts of all platforms and print their digests for artefacts.lock
    #[command(hide = true)]
    Relock,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Database {
    /// `user_db`, the users' own
    Users,
    /// `materialized_view_db`, posts and views
    Posts,
}

/// Results go to standard output. A closed pipe (`./dev env | head -1`) is not our failure.
pub(crate) fn print(text: &str) {
    writeln!(std::io::stdout(), "{text}").ok();
}

/// The error and its causes to standard error.
pub(crate) fn complain(error: &anyhow::Error) {
    writeln!(std::io::stderr(), "./dev: {error:#}").ok();
}
