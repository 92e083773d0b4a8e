//! All rounds of the same run, and how they compare with the shipped system's.

use serde::Serialize;

use crate::figures::{Histogram, Percentiles, Spread};
use crate::latency_run::{OURS, Run};
use crate::latency_stages::Stages;

/// One subject at one rate.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) contestant: &'static str,
    pub(crate) connector: &'static str,
    /// Writes a second that were asked for, and that were committed.
    pub(crate) rate: u32,
    pub(crate) committed_rate: Spread,
    /// From the commit's answer to the reader's, in milliseconds.
    pub(crate) millis: Rounds,
    pub(crate) stages: Option<Stages<Rounds>>,
    /// Of another subject: its p50 and p99 as multiples of the shipped system's in the same round.
    pub(crate) to_ours: Option<(Spread, Spread)>,
    /// How many writes of all rounds took how many milliseconds.
    pub(crate) histogram: Histogram,
}

/// How each round was spread, and how the rounds are.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Rounds {
    pub(crate) p50: Spread,
    pub(crate) p90: Spread,
    pub(crate) p99: Spread,
    pub(crate) max: Spread,
}

impl Rounds {
    /// `None` without any round.
    fn of(rounds: &[Percentiles]) -> Option<Self> {
        let spread = |value: fn(&Percentiles) -> f64| Spread::of(rounds.iter().map(value));
        Some(Self {
            p50: spread(|round| round.p50)?,
            p90: spread(|round| round.p90)?,
            p99: spread(|round| round.p99)?,
            max: spread(|round| round.max)?,
        })
    }
}

/// In the order in which subjects and rates first came.
pub(crate) fn summaries(runs: &[Run]) -> Vec<Summary> {
    let mut kinds = Vec::new();
    for kind in runs.iter().map(kind) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds.into_iter().filter_map(|kind| summary(kind, runs)).collect()
}

type Kind = (&'static str, &'static str, u32);

fn kind(run: &Run) -> Kind {
    (run.contestant, run.connector, run.pace.rate)
}

fn summary(of: Kind, all: &[Run]) -> Option<Summary> {
    let runs: Vec<&Run> = all.iter().filter(|run| kind(run) == of).collect();
    let (contestant, connector, rate) = of;
    let millis: Vec<_> = runs.iter().map(|run| run.millis).collect();
    let values: Vec<f64> = runs.iter().flat_map(|run| &run.values).copied().collect();
    Some(Summary {
        contestant,
        connector,
        rate,
        committed_rate: Spread::of(runs.iter().map(|run| run.committed_rate))?,
        millis: Rounds::of(&millis)?,
        stages: stages(&runs),
        to_ours: to_ours(&runs, all),
        histogram: Histogram::of(&values),
    })
}

fn stages(runs: &[&Run]) -> Option<Stages<Rounds>> {
    let of = |stage: fn(Stages<Percentiles>) -> Percentiles| {
        let rounds: Vec<_> = runs.iter().filter_map(|run| run.stages.map(stage)).collect();
        Rounds::of(&rounds)
    };
    Some(Stages {
        read: of(|stages| stages.read)?,
        connector: of(|stages| stages.connector)?,
        broker: of(|stages| stages.broker)?,
        apply: of(|stages| stages.apply)?,
    })
}

/// `None` of the shipped system itself, and at a rate at which it did not run.
fn to_ours(runs: &[&Run], all: &[Run]) -> Option<(Spread, Spread)> {
    let ratio = |value: fn(&Run) -> f64| {
        Spread::of(runs.iter().filter_map(|run| {
            let shipped = (OURS.contestant, OURS.connector, run.pace.rate);
            let same = |ours: &&Run| kind(ours) == shipped && ours.pace.round == run.pace.round;
            let ours = all.iter().find(same).filter(|_| kind(run) != shipped)?;
            Some(value(run) / value(ours))
        }))
    };
    Some((ratio(|run| run.millis.p50)?, ratio(|run| run.millis.p99)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency_run::{DEFAULTS, Pace};

    fn run(connector: &'static str, rate: u32, round: u32, millis: f64) -> Run {
        let values = vec![millis];
        Run {
            contestant: OURS.contestant,
            connector,
            pace: Pace { rate, seconds: 1, round },
            committed_rate: f64::from(rate),
            behind: 0,
            millis: Percentiles::of(values.clone()).unwrap(),
            stages: None,
            values,
        }
    }

    #[test]
    fn others_are_compared_with_the_shipped_system_in_the_same_round_at_the_same_rate() {
        let runs = [
            run(OURS.connector, 500, 0, 10.0),
            run(OURS.connector, 200, 0, 1.0),
            run(DEFAULTS, 500, 0, 300.0),
            run(OURS.connector, 500, 1, 90.0),
            run(DEFAULTS, 500, 1, 180.0),
        ];
        let found = summaries(&runs);
        let median = |summary: &Summary| (summary.rate, summary.millis.p99.median);
        let medians: Vec<_> = found.iter().map(median).collect();
        assert_eq!(medians, [(500, 50.0), (200, 1.0), (500, 240.0)]);
        let (p50, p99) = found[2].to_ours.unwrap();
        assert_eq!((p50.min, p50.max, p99), (2.0, 30.0, p50));
        assert!(found[0].to_ours.is_none() && found[1].to_ours.is_none());
        assert_eq!(found[0].histogram.counts.iter().sum::<u64>(), 2);
    }
}
