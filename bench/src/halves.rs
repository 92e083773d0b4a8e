//! The machine in two halves: source and Debezium on one, Kafka and the view on the other. What the
//! consumer takes then comes from no processor that Debezium uses.

use std::collections::HashSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use devstack::Service;
use sqlx::PgConnection;

use crate::interrupt::cleaned_up;
use crate::servers::{Servers, admin};
use crate::target::DATABASE;

/// A backend is bound so long after its start at the latest.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Numbers of processors, as `taskset` takes them.
#[derive(Debug)]
pub(crate) struct Halves {
    source: String,
    view: String,
    both: String,
}

impl Halves {
    /// `None` where there is nothing to split.
    pub(crate) fn of_this_machine() -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        Self::of(status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim())
    }

    fn of(both: &str) -> Option<Self> {
        let processors = numbers(both)?;
        let (source, view) = processors.split_at(processors.len() / 2);
        let list = |half: &[u32]| half.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let halves = Self { source: list(source), view: list(view), both: both.to_owned() };
        (!source.is_empty()).then_some(halves)
    }

    /// Does something on the two halves, and gives everybody all processors back whatever became of it.
    pub(crate) async fn during<T>(
        &self,
        servers: &Servers,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let apart = async {
            self.bind(servers).await?;
            work.await
        };
        cleaned_up(apart, release(servers, &self.both)).await
    }

    /// Binds everybody but who applies the view. Backends that begin later are bound like the server
    /// that starts them, to the source's half.
    async fn bind(&self, servers: &Servers) -> anyhow::Result<()> {
        bind_servers(servers, &self.source, &self.view)?;
        let mut db = admin("postgres").await?;
        // Checkpoints and the log are everybody's: who writes them stays on both halves.
        let sql = "backend_type in ('client backend', 'walsender')";
        for backend in backends(&mut db, sql).await? {
            bind(backend, &self.source)?;
        }
        Ok(())
    }

    /// Binds the consumer and the backends of its database, those that begin later as well. Never ends.
    pub(crate) async fn keep_view_apart(&self, consumer: u32) -> anyhow::Result<()> {
        bind(consumer, &self.view)?;
        let mut db = admin("postgres").await?;
        let mut bound = HashSet::new();
        loop {
            for backend in backends(&mut db, &format!("datname = '{DATABASE}'")).await? {
                if bound.insert(backend) {
                    bind(backend, &self.view)?;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

async fn release(servers: &Servers, both: &str) -> anyhow::Result<()> {
    bind_servers(servers, both, both)?;
    for backend in backends(&mut admin("postgres").await?, "true").await? {
        bind(backend, both)?;
    }
    Ok(())
}

/// This program, which writes at the source, and the servers, without the backends that run already.
fn bind_servers(servers: &Servers, source: &str, view: &str) -> anyhow::Result<()> {
    bind(std::process::id(), source)?;
    for (service, half) in [
        (Service::Postgres, source),
        (Service::Connect, source),
        (Service::Kafka, view),
        (Service::Registry, view),
    ] {
        bind(pid(servers, service)?, half)?;
    }
    Ok(())
}

fn pid(servers: &Servers, service: Service) -> anyhow::Result<u32> {
    let running = servers.stack.running(service);
    Ok(running.with_context(|| format!("{service} does not run"))?.pid)
}

async fn backends(db: &mut PgConnection, which: &str) -> anyhow::Result<Vec<u32>> {
    let sql = format!("select pid from pg_stat_activity where {which}");
    let pids: Vec<i32> = sqlx::query_scalar(&sql).fetch_all(db).await?;
    Ok(pids.into_iter().map(i32::unsigned_abs).collect())
}

/// A process with all its threads; those that it starts later are bound likewise. One that has ended
/// meanwhile, as backends do, is no error.
fn bind(pid: u32, processors: &str) -> anyhow::Result<()> {
    let mut command = Command::new("taskset");
    command.args(["--all-tasks", "--cpu-list", "--pid", processors, &pid.to_string()]);
    let output = command.output().context("cannot run taskset, which is part of util-linux")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "process {pid} cannot be bound to {processors}: {complaint}");
    Ok(())
}

/// The numbers of a list such as `0-3,8`.
fn numbers(text: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: &str) -> Option<[String; 3]> {
        Halves::of(list).map(|Halves { source, view, both }| [source, view, both])
    }

    #[test]
    fn processors_are_split_in_the_middle_of_their_list() {
        assert_eq!(of("0-1").unwrap(), ["0", "1", "0-1"]);
        assert_eq!(of("0-2,8").unwrap(), ["0,1", "2,8", "0-2,8"]);
        assert_eq!(of("2,5,7").unwrap(), ["2", "5,7", "2,5,7"]);
    }

    #[test]
    fn one_processor_or_none_that_can_be_read_is_not_split() {
        assert_eq!(of("3"), None);
        assert_eq!(of(""), None);
        assert_eq!(of("a-b"), None);
    }

    #[test]
    fn binding_fails_for_a_processor_that_is_not_there_but_not_for_a_process_that_has_ended() {
        let ended = u32::MAX / 4;
        bind(ended, "0").unwrap();
        let error = bind(std::process::id(), "8191").unwrap_err();
        assert!(error.to_string().contains("cannot be bound to 8191"), "{error}");
    }
}
