//! The highest rate at which the view keeps up, and the latency far below it and near it.

use serde::Serialize;

use crate::figures::Spread;
use crate::latency_run::{OURS, Pace, Run, measure};
use crate::servers::Servers;

const FIRST_RATE: u32 = 500;
/// Faster than anything this program could write.
const RATE_MAX: u32 = 100_000;
/// How long each rate is tried at first: a backlog that grows slowly shows later.
const TRY_SECONDS: u32 = 8;
/// A rate fails when it failed so often: the machine may have been busy with something else.
const TRIES: u32 = 2;
/// How far the view may be behind: longer only for one row in a hundred, and at the end for none.
const BEHIND_MAX_MILLIS: u32 = 500;
/// Halvings of what lies between a rate that is kept and one that is not.
const HALVINGS: u32 = 2;
/// Percent of the highest rate at which latency is measured.
const SHARES: [u32; 2] = [10, 80];
/// The slowest rate the writers can share.
const RATE_MIN: u32 = 16;

#[derive(Debug, Serialize)]
pub(crate) struct Steps {
    tries: Vec<Try>,
    /// Writes a second; none when not even the slowest rate was kept.
    pub(crate) sustainable: Option<u32>,
    /// The p99 at 80 % of it as a multiple of that at 10 %, round by round.
    pub(crate) p99_ratio: Option<Spread>,
}

#[derive(Debug, Serialize)]
struct Try {
    rate: u32,
    seconds: u32,
    committed_rate: f64,
    /// Rows not yet visible when the last one was committed.
    behind: u64,
    p99_millis: f64,
    keeps_up: bool,
}

/// Returns the runs at both shares besides.
pub(crate) async fn run(
    servers: &Servers,
    seconds: u32,
    repeat: u32,
) -> anyhow::Result<(Steps, Vec<Run>)> {
    let mut tries = Vec::new();
    let mut search = Search::default();
    while let Some(rate) = search.next() {
        search.note(rate, holds(servers, rate, TRY_SECONDS, &mut tries).await?);
    }
    // What is kept for as long as latency is measured is kept.
    while let Some(rate) = search.good
        && !holds(servers, rate, seconds, &mut tries).await?
    {
        search.slower();
    }
    let (mut runs, mut ratios) = (Vec::new(), Vec::new());
    if let Some(highest) = search.good {
        let [low, high] = SHARES.map(|share| (highest * share / 100).max(RATE_MIN));
        for round in 0..repeat {
            let low = measure(servers, OURS, Pace { rate: low, seconds, round }).await?;
            let high = measure(servers, OURS, Pace { rate: high, seconds, round }).await?;
            ratios.push(high.millis.p99 / low.millis.p99);
            runs.extend([low, high]);
        }
    }
    let steps = Steps { tries, sustainable: search.good, p99_ratio: Spread::of(ratios) };
    Ok((steps, runs))
}

/// Measured as the latency is, so that both stand for the same system.
async fn holds(
    servers: &Servers,
    rate: u32,
    seconds: u32,
    tries: &mut Vec<Try>,
) -> anyhow::Result<bool> {
    for round in 0..TRIES {
        let Run { committed_rate, behind, millis, .. } =
            measure(servers, OURS, Pace { rate, seconds, round }).await?;
        let keeps_up = keeps_up(rate, committed_rate, behind, millis.p99);
        let verdict = if keeps_up { "keeps up" } else { "falls behind" };
        let said = format!("  {verdict}: {committed_rate:.0}/s committed, {behind} rows missing");
        servers.progress.line(&said);
        tries.push(Try { rate, seconds, committed_rate, behind, p99_millis: millis.p99, keeps_up });
        if keeps_up {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the writers were as fast as they were asked to be, and the view not too far behind, neither
/// meanwhile nor with a backlog at the end.
fn keeps_up(rate: u32, committed_rate: f64, behind: u64, p99_millis: f64) -> bool {
    committed_rate >= f64::from(rate) * 0.97
        && p99_millis <= f64::from(BEHIND_MAX_MILLIS)
        && behind * 1000 <= u64::from(rate) * u64::from(BEHIND_MAX_MILLIS)
}

/// What is known of the highest rate that is kept.
#[derive(Debug, Default)]
struct Search {
    good: Option<u32>,
    bad: Option<u32>,
    halvings: u32,
}

impl Search {
    /// Which rate to try next: faster ones until one fails, then what lies between.
    fn next(&self) -> Option<u32> {
        match (self.good, self.bad) {
            (None, None) => Some(FIRST_RATE),
            (Some(good), None) => Some(good * 7 / 5).filter(|rate| *rate <= RATE_MAX),
            (good, Some(bad)) => {
                let between = good.unwrap_or(0).midpoint(bad);
                (self.halvings < HALVINGS).then_some(between)
            }
        }
    }

    /// The next rate below one that was kept for a short time only.
    fn slower(&mut self) {
        self.good = self.good.map(|rate| rate * 9 / 10).filter(|rate| *rate >= RATE_MIN);
    }

    fn note(&mut self, rate: u32, keeps_up: bool) {
        self.halvings += u32::from(self.bad.is_some());
        let known = if keeps_up { &mut self.good } else { &mut self.bad };
        *known = Some(rate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_when_neither_the_writers_nor_the_view_fall_behind() {
        assert!(keeps_up(1000, 1000.0, 20, 20.0));
        assert!(keeps_up(1000, 970.0, 500, 500.0));
        assert!(!keeps_up(1000, 969.0, 20, 20.0));
        assert!(!keeps_up(1000, 1000.0, 501, 20.0));
        assert!(!keeps_up(1000, 1000.0, 20, 501.0), "it was behind and caught up");
    }

    /// Tries what the search asks for on a system that keeps up to `limit`.
    fn check(limit: u32, expected_tries: &[u32], expected: Option<u32>) {
        let (mut search, mut tries) = (Search::default(), Vec::new());
        while let Some(rate) = search.next() {
            search.note(rate, rate <= limit);
            tries.push(rate);
        }
        assert_eq!((tries.as_slice(), search.good), (expected_tries, expected), "{limit}");
    }

    #[test]
    fn rates_grow_until_one_fails_and_are_then_narrowed_down_twice() {
        check(1000, &[500, 700, 980, 1372, 1176, 1078], Some(980));
        check(1300, &[500, 700, 980, 1372, 1176, 1274], Some(1274));
        check(400, &[500, 250, 375], Some(375));
        check(100, &[500, 250, 125], None);
    }

    #[test]
    fn a_rate_that_is_not_kept_for_long_gives_way_to_slower_ones_down_to_none() {
        let mut search = Search { good: Some(20), ..Search::default() };
        search.slower();
        assert_eq!(search.good, Some(18));
        search.slower();
        assert_eq!(search.good, Some(16));
        search.slower();
        assert_eq!(search.good, None);
    }

    #[test]
    fn the_search_ends_where_no_rate_fails() {
        let mut search = Search::default();
        let mut last = 0;
        while let Some(rate) = search.next() {
            search.note(rate, true);
            last = rate;
        }
        assert!(last <= RATE_MAX && search.good == Some(last));
    }
}
