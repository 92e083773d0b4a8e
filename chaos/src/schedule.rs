//! Which fault comes when. A pure function of the seed.

use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::fault::{Injection, Kind, Target};

/// Time of one fault on average: 30 minutes hold each kind five times.
const SLOT: Duration = Duration::from_secs(15);
/// Faults do not come by the clock.
const JITTER_MILLISECONDS_MAX: u64 = 4000;
/// One in so many faults comes while the one before it still lasts.
const OVERLAP_IN: u32 = 4;
/// After the beginning of the fault it overlaps.
pub(crate) const OVERLAP_AFTER: Duration = Duration::from_secs(1);

/// The faults of a run of this length, in the order of their times. Kinds come in rounds, each
/// round in an order of its own: after `n` rounds each kind was there `n` times.
pub(crate) fn schedule(seed: u64, length: Duration, kinds: &[Kind]) -> Vec<Injection> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let count = usize::try_from(length.as_secs() / SLOT.as_secs()).unwrap_or(usize::MAX).max(1);
    let mut all: Vec<Injection> = Vec::new();
    let mut round = Vec::new();
    while all.len() < count {
        if round.is_empty() {
            round = kinds.to_vec();
            round.shuffle(&mut random);
        }
        let Some(kind) = round.pop() else { break };
        let target = Target::choose(kind, random.random());
        let lasts = Duration::from_millis(random.random_range(kind.lasts_milliseconds()));
        let slot = SLOT * u32::try_from(all.len()).unwrap_or(u32::MAX);
        let mut at = slot + Duration::from_millis(random.random_range(0..=JITTER_MILLISECONDS_MAX));
        // Drawn each time, so that what follows does not depend on whether it was needed.
        let wanted = random.random_ratio(1, OVERLAP_IN);
        let before = all.last().filter(|before| wanted && may_overlap(before, kind));
        let overlaps = before.is_some();
        if let Some(before) = before {
            at = before.at + OVERLAP_AFTER;
        }
        all.push(Injection { at, kind, target, lasts, overlaps });
    }
    all
}

fn may_overlap(before: &Injection, kind: Kind) -> bool {
    !before.overlaps && before.lasts > OVERLAP_AFTER && before.kind.server() != kind.server()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const HALF_AN_HOUR: Duration = Duration::from_mins(30);

    #[test]
    fn one_seed_is_one_schedule() {
        let first = schedule(1, HALF_AN_HOUR, &Kind::all());
        assert_eq!(first, schedule(1, HALF_AN_HOUR, &Kind::all()));
        assert_ne!(first, schedule(2, HALF_AN_HOUR, &Kind::all()));
    }

    #[test]
    fn a_shorter_run_begins_like_a_longer_one() {
        let long = schedule(3, HALF_AN_HOUR, &Kind::all());
        let short = schedule(3, Duration::from_mins(5), &Kind::all());
        assert_eq!(short.len(), 20);
        assert_eq!(long[..short.len()], short[..]);
    }

    #[test]
    fn half_an_hour_holds_every_kind_five_times() {
        for seed in 0..50 {
            let mut counts: BTreeMap<Kind, u32> = BTreeMap::new();
            for injection in schedule(seed, HALF_AN_HOUR, &Kind::all()) {
                *counts.entry(injection.kind).or_default() += 1;
            }
            let rare: Vec<_> = Kind::all()
                .into_iter()
                .filter(|kind| counts.get(kind).copied().unwrap_or(0) < 5)
                .collect();
            assert!(rare.is_empty(), "seed {seed}: {rare:?}");
        }
    }

    #[test]
    fn faults_come_in_order_and_two_at_once_hit_different_servers() {
        let mut overlap_count = 0;
        for seed in 0..50 {
            let all = schedule(seed, HALF_AN_HOUR, &Kind::all());
            assert!(all.iter().all(|injection| injection.at < HALF_AN_HOUR));
            for pair in all.windows(2) {
                assert!(pair[0].at < pair[1].at, "seed {seed}: {pair:?}");
                if pair[1].overlaps {
                    overlap_count += 1;
                    assert!(pair[1].at < pair[0].at + pair[0].lasts, "seed {seed}: {pair:?}");
                    assert_ne!(pair[0].kind.server(), pair[1].kind.server(), "seed {seed}");
                    assert!(!pair[0].overlaps, "three at once, seed {seed}: {pair:?}");
                }
            }
        }
        assert!(overlap_count > 100, "faults hardly ever overlap: {overlap_count}");
    }

    #[test]
    fn a_run_of_a_few_seconds_holds_one_fault() {
        assert_eq!(schedule(1, Duration::from_secs(5), &Kind::all()).len(), 1);
    }

    #[test]
    fn only_the_wanted_kinds_come() {
        let wanted = [Kind::EndSessions, Kind::ResetOffsets];
        let all = schedule(4, HALF_AN_HOUR, &wanted);
        assert_eq!(all.len(), 120);
        assert!(all.iter().all(|injection| wanted.contains(&injection.kind)));
    }
}
