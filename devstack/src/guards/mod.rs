//! `./dev guards`: takes the consumer's guards out of a copy of the sources, one at a time, and shows
//! that the tests notice each removal.
//!
//! First the tests must pass in the whole copy. Then, guard by guard: remove it, build, run the tests
//! named for it. While they run the next removal is built. Each of them must fail, or fail to end in a
//! small multiple of its usual time.

mod compile;
mod list;
mod report;
mod trial;
mod workshop;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use devstack::{Extent, Progress, Service, ServiceStatus, Stack, State, Step};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use crate::cli::print;
use list::{Guard, Program, Test};
use report::{Finding, Notice, Verdict};
use trial::{Ending, Trial};
use workshop::{Programs, Workshop};

/// A test may take this long, and ten times as long as it took in the whole copy.
const LIMIT_MIN: Duration = Duration::from_mins(3);
/// A server that does not answer for this long is not there.
const SERVER_PATIENCE: Duration = Duration::from_mins(2);
const SERVER_LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Tests run side by side; they wait for servers more than they work.
const TESTS_AT_ONCE: usize = 4;

/// What `./dev guards` was asked for.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Only this guard; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Show the guards, what each promises and which tests notice its removal; build nothing
    #[arg(long)]
    list: bool,
    /// Only whether the sources compile without each; runs no test, needs no stack
    #[arg(long, conflicts_with = "list")]
    check: bool,
    /// The result as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(
    stack: &Stack,
    progress: &Progress,
    options: &Options,
) -> anyhow::Result<ExitCode> {
    let guards = list::select(listed(stack)?, &options.only)?;
    if options.list {
        print(&if options.json { report::list_json(&guards)? } else { report::listed(&guards) });
        return Ok(ExitCode::SUCCESS);
    }
    if options.check {
        let broken = broken(stack, progress, &guards).await?;
        print(&if options.json { report::json(&broken)? } else { report::broken(&broken) });
        return Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let tests: BTreeSet<Test> = guards.iter().flat_map(Guard::tests).collect();
    if tests.iter().any(|test| test.program == Program::Integration) {
        stack.up(Extent::Servers, progress).await?;
    }
    let bench = Bench {
        stack: stack.clone(),
        workshop: Workshop::open(stack.places())?,
        turns: Semaphore::new(TESTS_AT_ONCE),
    };
    let bench = Arc::new(bench);
    let usual = bench.usual(progress, tests).await?;
    let findings = bench.findings(progress, guards, usual).await?;
    print(&if options.json { report::json(&findings)? } else { report::table(&findings) });
    let caught = findings.iter().all(|finding| finding.verdict == Verdict::Caught);
    Ok(if caught { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether the sources compile without each guard of the list; prints those without which they do not.
pub(crate) async fn all_compile(stack: &Stack, progress: &Progress) -> anyhow::Result<bool> {
    let broken = broken(stack, progress, &listed(stack)?).await?;
    print(&report::broken(&broken));
    Ok(broken.is_empty())
}

async fn broken(
    stack: &Stack,
    progress: &Progress,
    guards: &[Guard],
) -> anyhow::Result<Vec<Finding>> {
    compile::broken(guards, &Workshop::open(stack.places())?, progress).await
}

/// The list, which fits the sources.
fn listed(stack: &Stack) -> anyhow::Result<Vec<Guard>> {
    let root = &stack.places().root;
    let guards = list::read(root)?;
    let faults = list::faults(&guards, root);
    if !faults.is_empty() {
        bail!("the list of guards does not fit the sources:\n  {}", faults.join("\n  "));
    }
    Ok(guards)
}

/// How long each test takes in the whole copy.
type Usual = BTreeMap<Test, Duration>;

/// Where guards are taken out and tests are run.
struct Bench {
    stack: Stack,
    workshop: Workshop,
    turns: Semaphore,
}

impl Bench {
    /// Runs the tests in the whole copy; all must pass.
    async fn usual(
        self: &Arc<Self>,
        progress: &Progress,
        tests: BTreeSet<Test>,
    ) -> anyhow::Result<Usual> {
        let step = progress.step("all guards", "building the tests; the first time takes minutes");
        let programs = tests.iter().map(|test| test.program).collect();
        let built = self.workshop.build(&programs).await?;
        let programs =
            built.map_err(|output| anyhow::anyhow!("the copy does not build:\n{output}"))?;
        let total = tests.len() as u64;
        step.count(0, total);
        let mut running = JoinSet::new();
        for test in tests {
            let (bench, programs) = (Arc::clone(self), programs.clone());
            running.spawn(async move {
                let trial = bench.trial(&programs, &test, LIMIT_MIN).await?;
                anyhow::Ok((test, trial))
            });
        }
        let mut usual = Usual::new();
        while let Some(done) = running.join_next().await {
            let (test, trial) = done.context("a test was given up")??;
            if trial.ending != Ending::Passed {
                let log = self.workshop.log(&test.name);
                bail!(
                    "{} does not pass with all guards in place: {:?}; its output is in {}",
                    test.name,
                    trial.ending,
                    log.display()
                );
            }
            usual.insert(test, trial.duration);
            step.count(usual.len() as u64, total);
        }
        step.done(&format!("in place: {total} tests pass"));
        Ok(usual)
    }

    /// Takes the guards out, one after the other.
    async fn findings(
        self: &Arc<Self>,
        progress: &Progress,
        guards: Vec<Guard>,
        usual: Usual,
    ) -> anyhow::Result<Vec<Finding>> {
        let (usual, total) = (Arc::new(usual), guards.len() as u64);
        let step = progress.step("removing", "");
        let mut findings = Vec::new();
        let mut testing: Option<JoinHandle<anyhow::Result<Finding>>> = None;
        for guard in guards {
            step.message(format!("building without {}", guard.name));
            step.count(findings.len() as u64, total);
            let built = self.workshop.build_without(&guard).await?;
            if let Some(testing) = testing.take() {
                step.message(format!("{} is built, the tests of the one before run", guard.name));
                findings.push(settle(testing, progress).await?);
            }
            let programs = match built {
                Ok(programs) => programs,
                Err(output) => {
                    findings.push(announce(Finding::broken(&guard, output), progress));
                    continue;
                }
            };
            let root = &self.stack.places().root;
            let exclusive = guard.tests().iter().any(|test| test.starts_programs(root));
            let (bench, usual) = (Arc::clone(self), Arc::clone(&usual));
            let tests = tokio::spawn(async move { bench.tested(guard, programs, &usual).await });
            if exclusive {
                findings.push(waited(tests, &step, progress).await?);
            } else {
                testing = Some(tests);
            }
        }
        if let Some(testing) = testing {
            findings.push(waited(testing, &step, progress).await?);
        }
        step.done(&format!("each of {total} guards in turn"));
        Ok(findings)
    }

    async fn tested(
        &self,
        guard: Guard,
        programs: Programs,
        usual: &Usual,
    ) -> anyhow::Result<Finding> {
        let started = Instant::now();
        let trials = guard.tests().into_iter().map(async |test| {
            let limit = usual.get(&test).map_or(LIMIT_MIN, |usual| LIMIT_MIN.max(*usual * 10));
            let trial = self.trial(&programs, &test, limit).await?;
            anyhow::Ok(Notice { test: test.name, ending: trial.ending })
        });
        let mut notices = Vec::new();
        for trial in trials {
            notices.push(trial.await?);
        }
        self.workshop.forget(&guard.name);
        self.servers_are_well(&guard.tests()).await?;
        Ok(Finding::of(&guard, notices, started.elapsed()))
    }

    async fn trial(
        &self,
        programs: &Programs,
        test: &Test,
        limit: Duration,
    ) -> anyhow::Result<Trial> {
        let _turn = self.turns.acquire().await.context("no more turns")?;
        let program = programs.get(test.program).context("cargo built no test program")?;
        let command = self.workshop.command(program, &test.name);
        let trial = trial::run(command, limit, &self.workshop.log(&test.name)).await?;
        if trial.ending == Ending::Unknown {
            bail!("the program has no test {}: update the list in guards/", test.name);
        }
        Ok(trial)
    }

    /// A busy machine's server gets the time to answer.
    async fn servers_are_well(&self, tests: &[Test]) -> anyhow::Result<()> {
        for service in [Service::Postgres, Service::Kafka, Service::Registry] {
            let deadline = Instant::now() + SERVER_PATIENCE;
            loop {
                let status = self.stack.status(service).await;
                if !spoils(status.state, tests) {
                    break;
                }
                if Instant::now() > deadline {
                    let ServiceStatus { name, state, reason, .. } = status;
                    bail!("{name} is {state:?} ({reason:?}): nothing was proved");
                }
                sleep(SERVER_LOOK_INTERVAL).await;
            }
        }
        Ok(())
    }
}

/// Whether a test that failed may have failed for want of this server, and looks like one that noticed.
/// Unit tests need none.
fn spoils(state: State, tests: &[Test]) -> bool {
    state != State::Healthy && tests.iter().any(|test| test.program == Program::Integration)
}

async fn waited(
    testing: JoinHandle<anyhow::Result<Finding>>,
    step: &Step,
    progress: &Progress,
) -> anyhow::Result<Finding> {
    step.message("running its tests");
    settle(testing, progress).await
}

async fn settle(
    testing: JoinHandle<anyhow::Result<Finding>>,
    progress: &Progress,
) -> anyhow::Result<Finding> {
    Ok(announce(testing.await.context("the tests were given up")??, progress))
}

fn announce(finding: Finding, progress: &Progress) -> Finding {
    progress.line(&format!("  {:<13} {}", finding.verdict.as_str(), finding.name));
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_healthy_servers_prove_something_unless_no_test_needs_them() {
        let test = |program| Test { program, name: "sample".to_owned() };
        let (unit, integration) = (test(Program::Unit), test(Program::Integration));
        for (state, spoiled) in [
            (State::Healthy, false),
            (State::Stopped, true),
            (State::Unhealthy, true),
            (State::Paused, true),
        ] {
            assert_eq!(spoils(state, &[unit.clone(), integration.clone()]), spoiled, "{state:?}");
            assert!(!spoils(state, std::slice::from_ref(&unit)), "{state:?}");
        }
    }
}
