//! What each command of `./dev` does.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, anyhow};
use devstack::addresses::{self, environment};
use devstack::{Extent, Progress, Service, ServiceStatus, Stack, State};

use crate::cli::{Cli, Database, Verb, print};
use crate::{bench_run, demo, fuzz, guards, test_run};

pub(crate) async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let stack = Stack::new(&cli.settings)?;
    let progress = Progress::to_terminal();
    match cli.verb {
        Verb::Demo => {
            stack.up(Extent::Everything, &progress).await?;
            demo::play().await?;
            print(&format!("\n{}", urls(Extent::Everything)));
        }
        Verb::Up { servers_only } => {
            let extent = if servers_only { Extent::Servers } else { Extent::Everything };
            stack.up(extent, &progress).await?;
            print(&urls(extent));
        }
        Verb::Down { wipe: false } => stack.down(&progress).await?,
        Verb::Down { wipe: true } => stack.wipe(&progress).await?,
        Verb::Status { json } => return status(&stack, json).await,
        Verb::Logs { name, follow } => return Err(logs(&stack, &name, follow)),
        Verb::Test => {
            stack.up(Extent::Everything, &progress).await?;
            return test_run::run(&stack, &progress).await;
        }
        Verb::Chaos { args } => return Err(chaos(&stack, &args)),
        Verb::Guards(options) => return guards::run(&stack, &progress, &options).await,
        Verb::Bench { args } => {
            bench_run::run(&stack, &cli.settings.caller_directory, &args, &progress).await?;
        }
        Verb::Load { args } => {
            let args = [vec!["load".to_owned()], args].concat();
            bench_run::run(&stack, &cli.settings.caller_directory, &args, &progress).await?;
        }
        Verb::Fuzz(options) => return fuzz::run(stack.places(), &progress, &options).await,
        Verb::Env => print(&exports(&cli.no_proxy)),
        Verb::Kafka { tool, args } => {
            let mut command = devstack::kafka_tool(stack.places(), &tool, &args)?;
            let error = command.current_dir(&cli.settings.caller_directory).exec();
            return Err(error).context("cannot run java");
        }
        Verb::Psql { database, args } => {
            let database = match database {
                Database::Users => addresses::USER_DATABASE,
                Database::Posts => addresses::POST_DATABASE,
            };
            let mut command = Command::new("psql");
            command.arg(addresses::admin_url(database)).args(args);
            let error = command.current_dir(&cli.settings.caller_directory).exec();
            return Err(error).context("cannot run psql; install PostgreSQL's client");
        }
        Verb::Register { watch: false } => stack.register(&progress).await?,
        Verb::Register { watch: true } => {
            let error = stack.register_command().arg("--watch").as_std_mut().exec();
            return Err(error).context("cannot run connectors/register.sh");
        }
        Verb::Start { service } => {
            stack.start(service).await?;
        }
        Verb::Stop { service } => stack.stop(service).await?,
        Verb::Restart { service } => stack.restart(service).await?,
        Verb::Kill { service } => stack.kill(service).await?,
        Verb::Pause { service } => stack.pause(service)?,
        Verb::Resume { service } => stack.resume(service)?,
        Verb::Relock => print(&devstack::relock(stack.places(), &progress).await?),
    }
    Ok(ExitCode::SUCCESS)
}

/// Becomes the program of that name, which brings the stack up once it has understood its
/// arguments; what comes back is the reason why not.
fn chaos(stack: &Stack, args: &[String]) -> anyhow::Error {
    let mut command = Command::new(stack.places().programs.join("chaos"));
    let error = command.args(args).env("DEVSTACK_STATE", &stack.places().state).exec();
    anyhow::Error::new(error).context("cannot run the program chaos")
}

/// Where to look, for a person.
pub(crate) fn urls(extent: Extent) -> String {
    let url = |port: u16| format!("http://{}:{port}", addresses::HOST);
    let servers = format!(
        "PostgreSQL     ./dev psql users | posts
Kafka          {}:{}   ./dev kafka topics --list
registry       {}
Connect        {}",
        addresses::HOST,
        addresses::KAFKA_PORT,
        url(addresses::REGISTRY_PORT),
        url(addresses::CONNECT_PORT),
    );
    if extent == Extent::Servers {
        return servers;
    }
    format!(
        "user-api       {}/api/users
post-api       {}/api/posts
cdc-consumer   {}   status page, metrics at /metrics
{servers}",
        url(addresses::USER_API_PORT),
        url(addresses::POST_API_PORT),
        url(addresses::CONSUMER_PORT),
    )
}

/// Of every address, and of what keeps a proxy from being asked for them.
fn exports(no_proxy: &str) -> String {
    let no_proxy = ["NO_PROXY", "no_proxy"].map(|name| (name, no_proxy.to_owned()));
    let lines = environment().into_iter().chain(no_proxy).map(|(name, value)| {
        let value = value.replace('\'', r"'\''");
        format!("export {name}='{value}'")
    });
    lines.collect::<Vec<_>>().join("\n")
}

async fn status(stack: &Stack, json: bool) -> anyhow::Result<ExitCode> {
    let mut all = Vec::new();
    for service in Service::all() {
        let standard = Service::STANDARD.contains(&service);
        if standard || stack.running(service).is_some() {
            all.push(stack.status(service).await);
        }
    }
    if json {
        print(&serde_json::to_string_pretty(&all).context("cannot write JSON")?);
    } else {
        print(&table(&all));
    }
    let healthy = all.iter().all(|status| status.state == State::Healthy);
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(all: &[ServiceStatus]) -> String {
    let mut lines =
        vec![format!("{:<15} {:<10} {:>8} {:>6} {:>9}", "NAME", "STATE", "PID", "PORT", "MEMORY")];
    for status in all {
        let state = match status.state {
            State::Stopped => "stopped",
            State::Healthy => "healthy",
            State::Unhealthy => "unhealthy",
            State::Paused => "paused",
        };
        let pid = status.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let memory = status.memory_bytes.map_or_else(|| "-".to_owned(), mebibytes);
        let reason = status.reason.as_deref().unwrap_or_default();
        let line = format!(
            "{:<15} {state:<10} {pid:>8} {:>6} {memory:>9} {reason}",
            status.name, status.ports[0]
        );
        lines.push(line.trim_end().to_owned());
    }
    let total: u64 = all.iter().filter_map(|status| status.memory_bytes).sum();
    lines.push(format!(
        "{:<15} {:<10} {:>8} {:>6} {:>9}",
        "together",
        "",
        "",
        "",
        mebibytes(total)
    ));
    lines.join("\n")
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// Becomes `tail`; what comes back is the reason why not.
fn logs(stack: &Stack, name: &str, follow: bool) -> anyhow::Error {
    let log = stack.places().log(name);
    if !log.exists() {
        return no_log(stack, name);
    }
    let mut tail = Command::new("tail");
    tail.args(if follow { ["-n", "100", "-F"].as_slice() } else { ["-n", "+1"].as_slice() });
    anyhow::Error::new(tail.arg(log).exec()).context("cannot run tail")
}

fn no_log(stack: &Stack, name: &str) -> anyhow::Error {
    let entries = std::fs::read_dir(stack.places().logs()).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log").map(str::to_owned))
        .collect();
    names.sort();
    if names.is_empty() {
        return anyhow!("there are no logs yet; say ./dev up first");
    }
    anyhow!("there is no log of {name:?}; there are {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_that_is_given_the_addresses_asks_no_proxy_for_them() {
        let text = format!("{}; printf '%s %s' \"$NO_PROXY\" \"$no_proxy\"", exports("a,b'c"));
        let output = Command::new("sh").args(["-c", &text]).output().expect("a shell");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a,b'c a,b'c");
        assert!(text.contains("export KAFKA_BROKERS='127.0.0.1:9092'\n"), "{text}");
    }
}
