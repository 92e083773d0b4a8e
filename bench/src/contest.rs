//! Who takes part in `drain`, and one run of each.

use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use devstack::Service;
use futures_util::future::LocalBoxFuture;
use serde::Serialize;

use crate::copy;
use crate::figures::float;
use crate::interrupt::unless_interrupted;
use crate::jdbc::{self, Setting, Sink};
use crate::kafka_offsets;
use crate::ours::Consumer;
use crate::process;
use crate::replay::{Depth, Replay};
use crate::servers::Servers;
use crate::shipped;
use crate::target::{Difference, Table, Target, Times};

/// Changes a run applies at most while the shipped connectors are stopped. The server keeps 2 GB of log for
/// their slots and gives up slots that need more; a change takes 250 to 650 bytes in a view.
const CHANGES_MAX_STOPPED: u64 = 2_000_000;

/// Who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Contestant {
    /// cdc-consumer, table with a primary key only
    Ours,
    /// The row-changing statements of the same batches, nothing else
    Sql,
    /// The whole transactions of the same batches, without Kafka and decoding
    Transactions,
    /// The consumer's batches and statements, with offsets committed to Kafka alone
    KafkaOffsets,
    /// Each record in a transaction of its own. Slow: takes part only when it is named
    RowByRow,
    /// Debezium JDBC sink, its best setting
    SinkTuned,
    /// Debezium JDBC sink as shipped
    Sink,
    /// COPY of the final rows
    Copy,
    /// cdc-consumer, `user_view` with its index and counts
    OursView,
    /// Its row-changing statements, nothing else
    SqlView,
    /// Its whole transactions, without Kafka and decoding
    TransactionsView,
    /// Its records one by one. Slow: takes part only when it is named
    RowByRowView,
}

impl Contestant {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Ours => "cdc-consumer",
            Self::Sql => "SQL alone",
            Self::Transactions => "transactions alone",
            Self::KafkaOffsets => "offsets in Kafka alone",
            Self::RowByRow => "row by row",
            Self::SinkTuned => "JDBC sink, tuned",
            Self::Sink => "JDBC sink, default",
            Self::Copy => "COPY",
            Self::OursView => "cdc-consumer, user_view",
            Self::SqlView => "SQL alone, user_view",
            Self::TransactionsView => "transactions alone, user_view",
            Self::RowByRowView => "row by row, user_view",
        }
    }

    pub(crate) fn table(self) -> Table {
        match self {
            Self::Ours | Self::Sql | Self::Transactions | Self::KafkaOffsets | Self::RowByRow => {
                Table::Bare
            }
            Self::Sink | Self::SinkTuned => Table::Sink,
            Self::Copy => Table::Copy,
            Self::OursView | Self::SqlView | Self::TransactionsView | Self::RowByRowView => {
                Table::UserView
            }
        }
    }
}

/// One run, checked.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    pub(crate) contestant: Contestant,
    /// From 0; the contestants of one round ran one after the other.
    pub(crate) round: u32,
    /// From the start of the process or connector to its first visible row.
    pub(crate) start_seconds: f64,
    /// From its first visible row to its last.
    pub(crate) seconds: f64,
    /// Changes (of COPY: rows) in that time, a second: all but those that led to the first rows.
    pub(crate) per_second: f64,
    /// Processor time of the process that applies, from its start (of the sink: from the connector's).
    pub(crate) cpu_micros_per_event: Option<f64>,
    pub(crate) peak_mib: Option<u64>,
    /// What the server wrote to its log meanwhile.
    pub(crate) wal_bytes_per_event: f64,
    pub(crate) difference: Difference,
}

/// What one run needs.
pub(crate) struct Field<'a> {
    pub(crate) servers: &'a Servers,
    pub(crate) target: &'a Target,
    /// Of [`Contestant::SinkTuned`].
    pub(crate) tuned: Setting,
}

/// What a contestant reports of itself.
struct Report {
    times: Times,
    cpu_micros: Option<u64>,
    peak_kib: Option<u64>,
}

impl Field<'_> {
    /// From empty tables to a checked result. The shipped connectors would read all that is written to the
    /// server's log, the view's part of it too, which on a server of its own they do not see; so they are
    /// stopped, unless the run writes more than can be kept for them.
    pub(crate) async fn run(&self, contestant: Contestant, round: u32) -> anyhow::Result<Run> {
        let measured = Box::pin(self.measure(contestant, round));
        if self.target.filled.changes > CHANGES_MAX_STOPPED {
            return measured.await;
        }
        shipped::stopped(self.servers, measured).await
    }

    async fn measure(&self, contestant: Contestant, round: u32) -> anyhow::Result<Run> {
        let name = contestant.title();
        let step = self.servers.progress.step(name, "preparing");
        let replay = unless_interrupted(self.prepare(contestant)).await?;
        step.message("running");
        let wal_before = self.target.wal_bytes().await?;
        let report = self.apply(contestant, replay).await?;
        let wal = self.target.wal_bytes().await? - wal_before;
        step.message("comparing with the source");
        let difference = self.target.compare(contestant.table()).await?;
        let Report { times, cpu_micros, peak_kib } = report;
        let events = match contestant {
            Contestant::Copy => difference.rows,
            _ => self.target.filled.changes,
        };
        let seconds = times.last_row.saturating_sub(times.first_row).as_secs_f64();
        // What led to the first rows was applied before the clock began, little or much.
        let timed = 1.0 - times.first_share;
        let run = Run {
            contestant,
            round,
            start_seconds: times.first_row.as_secs_f64(),
            seconds,
            per_second: float(events) * timed / seconds,
            cpu_micros_per_event: cpu_micros.map(|micros| float(micros) / float(events)),
            peak_mib: peak_kib.map(|kib| kib >> 10),
            wal_bytes_per_event: float(wal) / float(events),
            difference,
        };
        step.done(&format!("{:.0} events/s; {}", run.per_second, run.difference));
        Ok(run)
    }

    /// Empties the tables, and builds the batches of those whose batches are no part of the contest.
    async fn prepare(&self, contestant: Contestant) -> anyhow::Result<Option<Replay>> {
        self.target.reset().await?;
        let records_max = match contestant {
            Contestant::Sql
            | Contestant::SqlView
            | Contestant::Transactions
            | Contestant::TransactionsView => None,
            Contestant::RowByRow | Contestant::RowByRowView => Some(1),
            _ => return Ok(None),
        };
        let table = contestant.table();
        Replay::build(self.servers, self.target, table, records_max).await.map(Some)
    }

    async fn apply(
        &self,
        contestant: Contestant,
        replay: Option<Replay>,
    ) -> anyhow::Result<Report> {
        let table = contestant.table();
        let applied: LocalBoxFuture<'_, _> = match contestant {
            // The connector must be removed in the end: it looks for an interrupt itself.
            Contestant::Sink => return self.sink(jdbc::DEFAULT).await,
            Contestant::SinkTuned => return self.sink(self.tuned).await,
            Contestant::Ours | Contestant::OursView => Box::pin(self.ours(table)),
            Contestant::KafkaOffsets => Box::pin(self.kafka_offsets(table)),
            Contestant::Copy => Box::pin(self.copy()),
            Contestant::Sql | Contestant::SqlView => Box::pin(replayed(replay, Depth::Statements)),
            Contestant::RowByRow | Contestant::RowByRowView => {
                Box::pin(replayed(replay, Depth::Upserts))
            }
            Contestant::Transactions | Contestant::TransactionsView => {
                Box::pin(replayed(replay, Depth::Transactions))
            }
        };
        unless_interrupted(applied).await
    }

    async fn copy(&self) -> anyhow::Result<Report> {
        Ok(timed(copy::run(self.target).await?, None))
    }

    async fn ours(&self, table: Table) -> anyhow::Result<Report> {
        let mut consumer = Consumer::start(self.servers, self.target, table)?;
        let look = || std::future::ready(consumer.check());
        let times = self.target.wait_until_complete(table, look).await?;
        let usage = consumer.usage()?;
        consumer.stop(self.servers, self.target).await?;
        let (cpu_micros, peak_kib) = (Some(usage.cpu_micros), Some(usage.peak_kib));
        Ok(Report { times, cpu_micros, peak_kib })
    }

    async fn kafka_offsets(&self, table: Table) -> anyhow::Result<Report> {
        let own = || process::cpu_micros(std::process::id());
        let before = own()?;
        let times = kafka_offsets::run(self.servers, self.target, table).await?;
        Ok(Report { times, cpu_micros: Some(own()? - before), peak_kib: None })
    }

    /// Its processor time is the worker's, which does nothing else meanwhile.
    async fn sink(&self, setting: Setting) -> anyhow::Result<Report> {
        let worker = self.servers.stack.running(Service::Connect);
        let pid = worker.map(|worker| worker.pid);
        let cpu = || pid.map(process::cpu_micros).transpose();
        let before = cpu()?;
        let sink = Sink::start(self.servers, self.target, setting).await?;
        let look = || sink.check();
        let complete = unless_interrupted(self.target.wait_until_complete(Table::Sink, look)).await;
        let cpu_micros = cpu()?.zip(before).map(|(after, before)| after - before);
        sink.stop(self.servers).await?;
        let peak_kib = pid.map(process::peak_kib).transpose()?;
        Ok(Report { times: complete?, cpu_micros, peak_kib })
    }

    /// Runs each candidate once and returns the fastest that is right, with all runs.
    pub(crate) async fn tune(&mut self) -> anyhow::Result<Vec<(Setting, Run)>> {
        let mut runs = Vec::new();
        for setting in jdbc::TUNED {
            self.tuned = setting;
            self.servers.progress.line(&format!("  trying {setting:?}"));
            runs.push((setting, self.run(Contestant::SinkTuned, 0).await?));
        }
        let right = runs.iter().filter(|(_, run)| run.difference.none());
        let best = right.max_by(|(_, one), (_, other)| one.per_second.total_cmp(&other.per_second));
        ensure!(best.is_some(), "no setting of the JDBC sink gives the source's rows");
        self.tuned = best.map_or(self.tuned, |(setting, _)| *setting);
        Ok(runs)
    }
}

async fn replayed(replay: Option<Replay>, depth: Depth) -> anyhow::Result<Report> {
    let replay = replay.context("nothing was prepared")?;
    let own = || process::cpu_micros(std::process::id());
    let before = own()?;
    let time = replay.run(depth).await?;
    Ok(timed(time, Some(own()? - before)))
}

/// Without a start worth mentioning: connections are open, batches and rows in memory.
fn timed(time: Duration, cpu_micros: Option<u64>) -> Report {
    Report {
        times: Times { first_row: Duration::ZERO, first_share: 0.0, last_row: time },
        cpu_micros,
        peak_kib: None,
    }
}
