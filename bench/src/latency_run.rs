//! One run at one rate: what is measured, and how.

use anyhow::Context;
use serde::Serialize;

use crate::figures::{Histogram, Percentiles, calm_p99};
use crate::latency_loop::{Passage, Place, VIEW, write_and_read};
use crate::latency_stages::{Sampler, Stages};
use crate::servers::Servers;

/// Plans, caches and connections of every process on the way are made anew before a run.
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

#[derive(Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) contestant: &'static str,
    /// The connector's settings: as shipped, with Debezium's and Kafka's defaults, or no connector.
    pub(crate) connector: &'static str,
    /// Writes a second that were asked for, and that were committed.
    pub(crate) rate: u32,
    pub(crate) committed_rate: f64,
    /// Rows not yet visible when the last one was committed.
    pub(crate) behind: u64,
    /// From the commit's answer to the reader's, in milliseconds.
    pub(crate) millis: Percentiles,
    /// Median of the p99 of ten slices of the run, one after the other.
    pub(crate) calm_p99: f64,
    /// The same time by its stages, where the rows go through the topic.
    pub(crate) stages: Option<Stages>,
    /// How many writes took how many milliseconds.
    pub(crate) histogram: Histogram,
}

pub(crate) async fn measure(
    servers: &Servers,
    subject: Subject,
    rate: u32,
    seconds: u32,
) -> anyhow::Result<Run> {
    let Subject { contestant, connector, place } = subject;
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
    let calm_p99 = calm_p99(&values).context("nothing was written")?;
    let histogram = Histogram::of(&values);
    let millis = Percentiles::of(values).context("nothing was written")?;
    step.done(&format!("{contestant}: p50 {:.1} ms, p99 {:.1} ms", millis.p50, millis.p99));
    Ok(Run {
        contestant,
        connector,
        rate,
        committed_rate: written.committed_rate,
        behind: written.behind,
        millis,
        calm_p99,
        stages,
        histogram,
    })
}
