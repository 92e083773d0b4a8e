//! One run at one rate: what is measured, and how.

use anyhow::Context;
use serde::Serialize;

use crate::figures::Percentiles;
use crate::latency_loop::{Passage, Place, VIEW, write_and_read};
use crate::latency_stages::{Sampler, Stages};
use crate::servers::Servers;

/// Connections, plans and caches are made anew before a run.
const WARM_UP_SECONDS: u32 = 5;

/// Who brings the rows to a reader.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject {
    pub(crate) contestant: &'static str,
    /// The settings of Debezium's connector; [`NO_CONNECTOR`] without one, and so without a topic.
    pub(crate) connector: &'static str,
    pub(crate) place: Place,
}

pub(crate) const SHIPPED: &str = "shipped";
pub(crate) const DEFAULTS: &str = "defaults";
pub(crate) const NO_CONNECTOR: &str = "none";
/// The whole system as it is shipped.
pub(crate) const OURS: Subject =
    Subject { contestant: "cdc-consumer", connector: SHIPPED, place: VIEW };

/// How a run writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Pace {
    /// Writes a second that are asked for.
    pub(crate) rate: u32,
    pub(crate) seconds: u32,
    /// From 0; the runs of one round came one after the other.
    pub(crate) round: u32,
}

#[derive(Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) contestant: &'static str,
    /// The connector's settings: as shipped, with Debezium's and Kafka's defaults, or no connector.
    pub(crate) connector: &'static str,
    #[serde(flatten)]
    pub(crate) pace: Pace,
    /// Writes a second that were committed.
    pub(crate) committed_rate: f64,
    /// Rows not yet visible when the last one was committed.
    pub(crate) behind: u64,
    /// From the commit's answer to the reader's, in milliseconds.
    pub(crate) millis: Percentiles,
    /// The same time by its stages, where the rows go through the topic.
    pub(crate) stages: Option<Stages<Percentiles>>,
    /// The milliseconds of each row.
    #[serde(skip)]
    pub(crate) values: Vec<f64>,
}

pub(crate) async fn measure(
    servers: &Servers,
    subject: Subject,
    pace: Pace,
) -> anyhow::Result<Run> {
    let Subject { contestant, connector, place } = subject;
    let Pace { rate, seconds, .. } = pace;
    let step = servers.progress.step(format!("{rate}/s"), "warming up");
    // From here on, so that its first fetch is over when the run begins.
    let sampler = if connector == NO_CONNECTOR { None } else { Some(Sampler::start(servers)?) };
    write_and_read(place, rate, WARM_UP_SECONDS).await?;
    step.message(format!("{contestant}, {connector} connector: writing for {seconds} s"));
    let written = write_and_read(place, rate, seconds).await?;
    let stages = match sampler {
        Some(sampler) => Some(Stages::of(&written.passages, &sampler.stop(servers).await?)?),
        None => None,
    };
    let values: Vec<f64> = written.passages.iter().map(Passage::millis).collect();
    let millis = Percentiles::of(values.clone()).context("nothing was written")?;
    step.done(&format!("{contestant}: p50 {:.1} ms, p99 {:.1} ms", millis.p50, millis.p99));
    let (committed_rate, behind) = (written.committed_rate, written.behind);
    Ok(Run { contestant, connector, pace, committed_rate, behind, millis, stages, values })
}
