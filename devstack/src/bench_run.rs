//! `./dev bench`: the servers, a release build, then the program `bench`.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use devstack::addresses::environment;
use devstack::{Extent, Progress, Service, Stack};

const MEASURED: [&str; 4] = ["cdc-consumer", "user-api", "post-api", "bench"];
const SINK: &str = "io.debezium.connector.jdbc.JdbcSinkConnector";

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
    let rival = !has(&["api", "load"]);
    if !serverless {
        bring_up(stack, whole_system, rival, progress).await?;
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

async fn bring_up(
    stack: &Stack,
    whole_system: bool,
    rival: bool,
    progress: &Progress,
) -> anyhow::Result<()> {
    if rival {
        devstack::fetch_jdbc_sink(stack.places(), progress).await?;
    }
    let extent = if whole_system { Extent::Everything } else { Extent::Servers };
    stack.up(extent, progress).await?;
    if rival && !offers_the_sink().await? {
        // It was started before the sink was fetched.
        let step = progress.step("connect", "restarting with the JDBC sink");
        stack.restart(Service::Connect).await?;
        step.done("restarted with the JDBC sink");
    }
    Ok(())
}

async fn offers_the_sink() -> anyhow::Result<bool> {
    let url = format!("http://{}:{}", devstack::addresses::HOST, Service::Connect.ports()[0]);
    let plugins = reqwest::get(format!("{url}/connector-plugins")).await?.text().await?;
    Ok(plugins.contains(SINK))
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
