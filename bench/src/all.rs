//! `./dev bench all`: every benchmark, one after the other, each as it is by default.

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{self, AllOptions, Cli};

/// Most telling first: who stops the run has those. Rivals and load steps are what a user compares with.
const RUNS: [&[&str]; 8] = [
    &["drain"],
    &["latency", "--rivals", "--steps", "--connector-defaults"],
    &["api"],
    &["load"],
    &["decode"],
    &["stream"],
    &["shapes"],
    &["agree"],
];
/// Those that take `--repeat`.
const REPEATED: [&str; 5] = ["drain", "latency", "api", "stream", "shapes"];

/// Runs all, also after one that failed; the exit code is that of the first that failed.
pub(crate) async fn run(options: &AllOptions) -> ExitCode {
    let mut outcome = ExitCode::SUCCESS;
    for words in RUNS {
        let mut line = vec!["bench".to_owned()];
        line.extend(words.iter().map(|word| (*word).to_owned()));
        if let Some(repeat) = options.repeat
            && REPEATED.iter().any(|name| words.contains(name))
        {
            line.extend(["--repeat".to_owned(), repeat.to_string()]);
        }
        cli::print(&format!("\n{}", line.join(" ")));
        let code = Box::pin(crate::run(Cli::parse_from(line).verb)).await;
        if outcome == ExitCode::SUCCESS {
            outcome = code;
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_whole_run_is_a_command() {
        for words in RUNS {
            let line = ["bench"].iter().chain(words).copied();
            let extra = REPEATED.iter().any(|name| words.contains(name));
            let repeat = ["--repeat", "2"].into_iter().filter(|_| extra);
            let parsed = Cli::try_parse_from(line.chain(repeat));
            assert!(parsed.is_ok(), "{words:?}: {}", parsed.unwrap_err());
        }
    }
}
