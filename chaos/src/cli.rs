//! What one may say after `./dev chaos`.

use std::time::Duration;

use clap::Parser;
use devstack::Settings;

use crate::fault::Kind;

/// The arguments of `./dev chaos`.
#[derive(Debug, Parser)]
#[command(
    name = "./dev chaos",
    bin_name = "./dev chaos",
    max_term_width = 100,
    about = "Breaks the running system by a seeded schedule, under writes, and checks that the views \
             tell the truth: while it lasts no row goes back or comes back, in the end the views \
             equal the source row for row and no acknowledged write is missing.",
    after_help = AFTER_HELP
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) settings: Settings,

    /// How long faults are injected, in minutes (0.5 is half of one); start and check come on top
    #[arg(long, value_name = "N", default_value = "5", value_parser = minutes)]
    pub(crate) minutes: Duration,

    /// Decides which fault comes when; without it a new one is drawn. Printed in each case
    #[arg(long, value_name = "S")]
    pub(crate) seed: Option<u64>,

    /// Only these faults, comma separated (names as in the report)
    #[arg(long, value_name = "FAULT", value_delimiter = ',')]
    pub(crate) only: Vec<Kind>,

    /// Row changes a second of all writers together
    #[arg(long, value_name = "N", default_value = "150",
          value_parser = clap::value_parser!(u32).range(1..=5000))]
    pub(crate) rate: u32,

    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Print the schedule as JSON lines, and do nothing
    #[arg(long)]
    pub(crate) plan: bool,
}

const AFTER_HELP: &str = "\
Brings the stack up if it is not. Two consumers run during a run and share the partitions, each
with a network of its own to PostgreSQL. What was written is removed at the end, unless something
was wrong. The history (one JSON line for each fault, heal, recovery and anomaly) is kept.

Exit code: 0 no anomaly and the views are equal; 1 otherwise; 2 the run itself was not possible, or
nothing was written, broken or looked at.";

fn minutes(text: &str) -> Result<Duration, String> {
    let minutes: f64 = text.parse().map_err(|_| "expected a number of minutes".to_owned())?;
    if !(0.05..=1440.0).contains(&minutes) {
        return Err("expected 0.05 to 1440 minutes".to_owned());
    }
    Ok(Duration::from_secs_f64(minutes * 60.0))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn check(args: &[&str], wanted: Result<(), &str>) {
        let args = ["./dev chaos"].iter().chain(args);
        match (Cli::try_parse_from(args), wanted) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
            (found, wanted) => panic!("wanted {wanted:?}, found {:?}", found.map(|_| ())),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_arguments_are_named() {
        check(&["--minutes", "0.5", "--seed", "1", "--json"], Ok(()));
        check(&["--only", "kill-kafka,end-sessions"], Ok(()));
        check(&["--minutes", "0"], Err("0.05 to 1440"));
        check(&["--minutes", "soon"], Err("a number of minutes"));
        check(&["--only", "kill-everything"], Err("no such fault"));
        check(&["--rate", "0"], Err("1..=5000"));
    }
}
