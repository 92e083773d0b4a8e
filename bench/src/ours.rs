//! The consumer under measurement: the released program with its shipped defaults, in a group of its
//! own.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use devstack::addresses::environment;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::process;
use crate::servers::Servers;
use crate::target::{self, Table, Target};
use crate::topic;

/// For a clean end, with its last commit to the broker.
const END_MAX: Duration = Duration::from_secs(30);

/// A running consumer.
pub(crate) struct Consumer {
    child: Child,
    pub(crate) pid: u32,
    group: String,
    log: PathBuf,
    views: PathBuf,
}

/// What it used from its start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) cpu_micros: u64,
    pub(crate) peak_kib: u64,
}

impl Consumer {
    /// Starts it on the topic's beginning.
    pub(crate) fn start(servers: &Servers, target: &Target, table: Table) -> anyhow::Result<Self> {
        let places = servers.stack.places();
        let group = format!("bench-{:016x}", rand::random::<u64>());
        let views = places.state.join("run").join(format!("{group}.toml"));
        std::fs::write(&views, table.declaration(&target.filled.topic))?;
        let log = places.log("bench-consumer");
        let output = File::create(&log).with_context(|| log.display().to_string())?;
        let program = places.programs.join("cdc-consumer");
        let child = Command::new(&program)
            .arg("run")
            .envs(environment())
            .env("CONSUMER_GROUP", &group)
            .env("CONSUMER_LISTEN", "127.0.0.1:0")
            .env("CONSUMER_DATABASE_URL", target::url("cdc_consumer"))
            .env("VIEWS_FILE", &views)
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let pid = child.id().context("it ended at once")?;
        Ok(Self { child, pid, group, log, views })
    }

    /// Fails when it has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("cdc-consumer ended ({status}); see {}", self.log.display()),
        }
    }

    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        Ok(Usage {
            cpu_micros: process::cpu_micros(self.pid)?,
            peak_kib: process::peak_kib(self.pid)?,
        })
    }

    /// Checks that it took every record and put none aside, then ends it in order.
    pub(crate) async fn stop(mut self, servers: &Servers, target: &Target) -> anyhow::Result<()> {
        let mut db = target.db().await?;
        let sql = "select coalesce(sum(next_offset), 0)::bigint from cdc_offset";
        let taken: i64 = sqlx::query_scalar(sql).fetch_one(&mut db).await?;
        let records = target.filled.records;
        ensure!(taken.unsigned_abs() == records, "{taken} of {records} records are applied");
        let sql = "select count(*) from cdc_dead_letter";
        let letters: i64 = sqlx::query_scalar(sql).fetch_one(&mut db).await?;
        ensure!(letters == 0, "{letters} records were put aside; see table cdc_dead_letter");
        let pid = Pid::from_raw(i32::try_from(self.pid)?).context("a process has an id")?;
        kill_process(pid, Signal::TERM)?;
        let ended = tokio::time::timeout(END_MAX, self.child.wait()).await;
        let status = ended.context("cdc-consumer does not end")??;
        ensure!(status.success(), "cdc-consumer ended badly; see {}", self.log.display());
        std::fs::remove_file(&self.views)?;
        topic::forget_group(servers, &self.group).await
    }
}
