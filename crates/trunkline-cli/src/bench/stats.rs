//! Medians, spreads and ratios of several runs. Pure numbers.

use serde::Serialize;

/// The middle of some runs and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Summary {
    /// The summary of `values`; `None` when there are none or one is not a number.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        if sorted.iter().any(|value| value.is_nan()) {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = sorted.first().zip(sorted.last())?;
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Some(Self { median, min, max })
    }

    /// The distance between best and worst run, as a part of the median.
    pub(super) fn spread(&self) -> Option<f64> {
        ratio(self.max - self.min, self.median)
    }
}

/// `value / baseline`, where that is a number.
pub(super) fn ratio(value: f64, baseline: f64) -> Option<f64> {
    Some(value / baseline).filter(|ratio| ratio.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_run_or_between_the_two() {
        assert_eq!(Summary::of([3.0, 1.0, 2.0]), Some(Summary { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Summary::of([4.0, 1.0, 3.0, 2.0]).map(|s| s.median), Some(2.5));
        assert_eq!(Summary::of([7.0]).map(|s| s.median), Some(7.0));
        assert_eq!(Summary::of([]), None);
        assert_eq!(Summary::of([1.0, f64::NAN]), None);
    }

    #[test]
    fn one_outlier_moves_the_spread_and_not_the_median() {
        let summary = Summary::of([10.0, 10.0, 10.0, 10.0, 100.0]).expect("values");
        assert_eq!((summary.median, summary.spread()), (10.0, Some(9.0)));
    }

    #[test]
    fn a_ratio_to_nothing_is_no_number() {
        assert_eq!(ratio(3.0, 2.0), Some(1.5));
        assert_eq!(ratio(3.0, 0.0), None);
        assert_eq!(ratio(0.0, 0.0), None);
    }
}
