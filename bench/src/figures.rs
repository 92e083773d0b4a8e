//! Numbers for people.

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
}
