//! Numbers for people.

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// A count as a number to divide by.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53, where it begins")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

/// The middle of several measurements, and how far they lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of a benchmark whose sides took turns: there is a value for each round.
    pub(crate) fn of_rounds(values: impl IntoIterator<Item = f64>) -> anyhow::Result<Self> {
        Self::of(values).context("at least one round")
    }

    /// How often the second's rate the first one reaches, round by round.
    pub(crate) fn of_ratios(one: &[f64], other: &[f64]) -> anyhow::Result<Self> {
        Self::of_rounds(one.iter().zip(other).map(|(one, other)| one / other))
    }

    /// `None` without any value.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Some(Self { median, min, max })
    }
}

/// How measurements are spread, by rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    pub(crate) count: u64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Percentiles {
    /// `None` without any value.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let at = |percent: usize| values.get((values.len() * percent).div_ceil(100).max(1) - 1);
        let (p50, p90, p99) = (*at(50)?, *at(90)?, *at(99)?);
        Some(Self { count: values.len() as u64, p50, p90, p99, max: *values.last()? })
    }
}

/// How many values of each size there are, in buckets whose bounds grow by one factor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Histogram {
    /// Number of the first bucket, counted from the one that begins at 1.
    pub(crate) first: i32,
    /// Buckets between a value and its tenfold.
    pub(crate) per_decade: u32,
    pub(crate) counts: Vec<u64>,
}

impl Histogram {
    const PER_DECADE: u32 = 20;
    /// What is smaller than 0.01 counts as this.
    const FIRST: i32 = -40;

    pub(crate) fn of(values: &[f64]) -> Self {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let mut histogram =
            Self { first: Self::FIRST, per_decade: Self::PER_DECADE, counts: vec![] };
        let mut left = values.as_slice();
        for number in Self::FIRST.. {
            if left.is_empty() {
                break;
            }
            let inside = left.partition_point(|value| *value < histogram.bound(number + 1));
            left = left.get(inside..).unwrap_or_default();
            if inside == 0 && histogram.counts.is_empty() {
                histogram.first = number + 1;
            } else {
                histogram.counts.push(inside as u64);
            }
        }
        histogram
    }

    /// Where a bucket begins.
    pub(crate) fn bound(&self, number: i32) -> f64 {
        10_f64.powf(f64::from(number) / f64::from(self.per_decade))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[f64], expected: Option<(f64, f64, f64)>) {
        let expected = expected.map(|(median, min, max)| Spread { median, min, max });
        assert_eq!(Spread::of(values.iter().copied()), expected);
    }

    #[test]
    fn a_percentile_is_the_value_that_so_many_do_not_exceed() {
        let check = |values: Vec<f64>, expected| {
            let found = Percentiles::of(values).map(|it| (it.p50, it.p90, it.p99, it.max));
            assert_eq!(found, expected);
        };
        check(vec![], None);
        check(vec![7.0], Some((7.0, 7.0, 7.0, 7.0)));
        check((1..=200).rev().map(f64::from).collect(), Some((100.0, 180.0, 198.0, 200.0)));
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middle_ones() {
        check(&[], None);
        check(&[2.0], Some((2.0, 2.0, 2.0)));
        check(&[3.0, 1.0, 9.0], Some((3.0, 1.0, 9.0)));
        check(&[4.0, 1.0, 2.0, 9.0], Some((3.0, 1.0, 9.0)));
    }

    #[test]
    fn every_value_is_in_the_bucket_between_whose_bounds_it_lies() {
        let check = |values: &[f64], first, counts: &[u64]| {
            let found = Histogram::of(values);
            assert_eq!((found.first, found.counts.as_slice()), (first, counts), "{values:?}");
        };
        check(&[], Histogram::FIRST, &[]);
        check(&[1.0], 0, &[1]);
        check(&[1.2, 1.0, 1.1, 1.3], 0, &[2, 1, 1]);
        check(&[10.0, 12.0], 20, &[1, 1]);
        check(&[0.0], Histogram::FIRST, &[1]);
    }
}
