//! `./dev bench`: the servers, a release build, then the program `bench`.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use devstack::addresses::environment;
use devstack::{Extent, Progress, Service, Stack};

const MEASURED: [&str; 4] = ["cdc-consumer", "user-api", "post-api", "bench"];

/// Becomes `bench`; what comes back is the reason why not.
pub(crate) async fn run(
    stack: &Stack,
    caller: &Path,
    arguments: &[String],
    progress: &Progress,
) -> anyhow::Result<()> {
    let has = |words: &[&str]| arguments.iter().any(|argument| words.contains(&argument.as_str()));
    let serverless = has(&["-h", "--help", "help", "plot"]);
    let whole_system = has(&["all", "api", "latency", "load"]);
    if !serverless {
        // All of it, whatever is measured: benches write gigabytes of log, and without the services' heartbeats
        // the slots of the shipped connectors would stay behind, until the server gives them up.
        stack.up(Extent::Everything, progress).await?;
    }
    let programs = build(stack)?;
    if !serverless && whole_system {
        let step = progress.step("programs", "restarting in their release build");
        let released = stack.clone().with_programs(&programs);
        for service in [Service::UserApi, Service::PostApi, Service::Consumer(1)] {
            released.restart(service).await?;
        }
        step.done("run in their release build");
    }
    let error = Command::new(programs.join("bench"))
        .args(arguments)
        .current_dir(caller)
        .envs(environment())
        .env("DEVSTACK_STATE", &stack.places().state)
        .exec();
    Err(error).context("cannot run bench")
}

/// What is measured is what would be deployed. The first time takes minutes. Returns the directory of
/// the programs.
fn build(stack: &Stack) -> anyhow::Result<std::path::PathBuf> {
    let programs = &stack.places().programs;
    let target = programs.parent().context("programs are built into a directory of a profile")?;
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--release", "--bins"])
        .args(MEASURED.iter().flat_map(|package| ["-p", package]))
        .arg("--target-dir")
        .arg(target)
        .current_dir(&stack.places().root)
        .env("SQLX_OFFLINE", "true")
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the release build failed");
    }
    Ok(target.join("release"))
}
