//! One test, run alone in a process group of its own, with a limit.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use tokio::process::Command;

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    Passed,
    /// With the first line of the reason.
    Failed(String),
    /// It did not end within its limit.
    TimedOut,
    /// The program holds no test of that name.
    Unknown,
}

/// A test that was run.
#[derive(Debug, Clone)]
pub(crate) struct Trial {
    pub(crate) ending: Ending,
    pub(crate) duration: Duration,
}

/// Runs a test; its output goes to `log`.
pub(crate) async fn run(
    mut command: Command,
    limit: Duration,
    log: &Path,
) -> anyhow::Result<Trial> {
    let out = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let error = out.try_clone().context("cannot open a log twice")?;
    let started = Instant::now();
    let mut child = command
        .process_group(0)
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(error)
        .spawn()
        .context("cannot run a test")?;
    let group = child.id();
    let ended = tokio::select! {
        ended = tokio::time::timeout(limit, child.wait()) => ended,
        _ = tokio::signal::ctrl_c() => {
            end_group(group);
            anyhow::bail!("interrupted");
        }
    };
    let duration = started.elapsed();
    // What a failed test left running, too: consumers it froze, for example.
    end_group(group);
    let Ok(status) = ended else { return Ok(Trial { ending: Ending::TimedOut, duration }) };
    let success = status.context("cannot wait for a test")?.success();
    let text = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
    let ending = ending(success, &String::from_utf8_lossy(&text));
    Ok(Trial { ending, duration })
}

fn end_group(group: Option<u32>) {
    let group = group.and_then(|id| Pid::from_raw(id.cast_signed()));
    if let Some(group) = group {
        // Usually nobody is left.
        kill_process_group(group, Signal::KILL).ok();
    }
}

fn ending(success: bool, output: &str) -> Ending {
    if !success {
        return Ending::Failed(reason(output));
    }
    let ran = output.lines().any(|line| line.starts_with("test result: ok. 1 passed"));
    if ran { Ending::Passed } else { Ending::Unknown }
}

/// What the first panic said, on one line.
fn reason(output: &str) -> String {
    const WIDTH: usize = 120;
    let mut lines = output.lines().skip_while(|line| !line.contains("panicked at"));
    lines.next();
    let text =
        lines.take(4).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("note:"));
    let text = text.collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(WIDTH) {
        _ if text.is_empty() => "it ended without a word".to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_tells_how_a_test_ended() {
        let check = |success, output: &str, expected: Ending| {
            assert_eq!(ending(success, output), expected, "{output}");
        };
        check(true, "running 1 test\ntest result: ok. 1 passed; 0 failed", Ending::Passed);
        check(true, "running 0 tests\ntest result: ok. 0 passed; 0 failed", Ending::Unknown);
        let panicked = "running 1 test\n\nthread 'a::b' (7) panicked at src/x.rs:1:2:\n\
            assertion `left == right` failed\n  left: 1\n right: 2\nnote: run with `RUST_BACKTRACE=1`";
        let said = "assertion `left == right` failed left: 1 right: 2";
        check(false, panicked, Ending::Failed(said.to_owned()));
        check(false, "", Ending::Failed("it ended without a word".to_owned()));
    }

    #[tokio::test]
    async fn a_test_that_hangs_is_ended_with_all_it_started() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 300 & echo $!; wait"]);
        let log = tempfile::NamedTempFile::new().unwrap();
        let trial = run(command, Duration::from_secs(1), log.path()).await.unwrap();
        assert_eq!(trial.ending, Ending::TimedOut);
        let sleeper = fs::read_to_string(log.path()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if !devstack::alive(sleeper.trim().parse().unwrap()) {
                break;
            }
            assert!(Instant::now() < deadline, "{sleeper} still runs");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
