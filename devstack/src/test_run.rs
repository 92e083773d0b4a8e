//! `./dev test`: what CI runs but for the fuzzing, against the stack that is up.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;
use devstack::addresses::environment;
use devstack::{Progress, Stack};

use crate::cli::print;
use crate::guards;

/// Counts of one or more runs of Rust's test runner.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    passed: u64,
    failed: u64,
    ignored: u64,
}

pub(crate) async fn run(stack: &Stack, progress: &Progress) -> anyhow::Result<ExitCode> {
    let checks: [&[&str]; 2] = [
        &["fmt", "--all", "--check"],
        &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
    ];
    for arguments in checks {
        let status = cargo(stack, arguments).status().context("cannot run cargo")?;
        if !status.success() {
            print(&format!("cargo {} failed", arguments[0]));
            return Ok(ExitCode::FAILURE);
        }
    }
    // After the checks, which compiled all but the consumer for it.
    if !guards::all_compile(stack, progress).await? {
        return Ok(ExitCode::FAILURE);
    }
    let mut summary = Summary::default();
    let tests = cargo(stack, &["test", "--workspace", "--no-fail-fast"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let success = summary.follow(tests)?;
    // The runner closes with the counts of its last part only, often a part without tests.
    print(&format!(
        "\nall parts together:\n{} passed, {} failed, {} skipped",
        summary.passed, summary.failed, summary.ignored
    ));
    let success = success && summary.failed == 0 && summary.passed > 0;
    Ok(if success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cargo(stack: &Stack, arguments: &[&str]) -> Command {
    print(&format!("\n$ cargo {}", arguments.join(" ")));
    let mut command = Command::new("cargo");
    command
        .args(arguments)
        .current_dir(&stack.places().root)
        .envs(environment())
        .env("DEVSTACK_STATE", &stack.places().state)
        .env("SQLX_OFFLINE", "true");
    command
}

impl Summary {
    /// Passes the runner's output on and counts; true when the runner was content.
    fn follow(&mut self, mut tests: std::process::Child) -> anyhow::Result<bool> {
        let output = tests.stdout.take().context("the output was not piped")?;
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("cannot read the tests' output")?;
            let line = String::from_utf8_lossy(&line);
            print(&line);
            self.count(&line);
        }
        Ok(tests.wait().context("cannot wait for cargo")?.success())
    }

    fn count(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let Some((_, counts)) = rest.split_once(". ") else { return };
        for part in counts.split("; ") {
            let Some((count, what)) = part.trim().split_once(' ') else { continue };
            let Ok(count) = count.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&str], passed: u64, failed: u64, ignored: u64) {
        let mut summary = Summary::default();
        for line in lines {
            summary.count(line);
        }
        assert_eq!(summary, Summary { passed, failed, ignored });
    }

    #[test]
    fn the_parts_are_added_up() {
        check(
            &[
                "running 3 tests",
                "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
                "test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
                "test result: unreadable",
            ],
            5,
            4,
            1,
        );
    }
}
