//! A histogram in user space: sparse, exact, addable.

use serde::{Deserialize, Serialize};
use tickscope_common::histogram::{self, FIRST_INDEX, SLOT_ABOVE, SLOT_ZERO, SLOTS};

/// Observations by cell of `tickscope_common::histogram::slot`. Counts and sums saturate, which at
/// a billion observations a second takes 584 years.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// `(cell, count)`, cells ascending and below `SLOTS`, counts not 0.
    cells: Vec<(u16, u64)>,
    /// Sum of the observations, ns.
    pub sum_ns: u64,
    /// The largest observation, ns; 0 without one, or where it is not known.
    pub max_ns: u64,
}

/// A quantile as far as buckets can tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantile {
    /// Best estimate, seconds.
    pub seconds: f64,
    /// The true quantile is not below this, seconds.
    pub low: f64,
    /// And not above this, seconds; infinite above the range when the maximum is not known.
    pub high: f64,
}

impl Histogram {
    /// From cells in any order; empty ones and those outside the scheme are left out.
    pub fn from_cells(mut cells: Vec<(u16, u64)>, sum_ns: u64, max_ns: u64) -> Self {
        cells.retain(|(slot, count)| usize::from(*slot) < SLOTS && *count > 0);
        cells.sort_unstable_by_key(|(slot, _)| *slot);
        cells.dedup_by(|(slot, count), (before, total)| {
            let same = slot == before;
            if same {
                *total = total.saturating_add(*count);
            }
            same
        });
        Self { cells, sum_ns, max_ns }
    }

    /// One more observation of `ns`.
    pub fn observe(&mut self, ns: u64) {
        let slot = histogram::slot(ns) as u16;
        self.merge(&Self { cells: vec![(slot, 1)], sum_ns: ns, max_ns: ns });
    }

    /// How many observations.
    pub fn count(&self) -> u64 {
        self.cells.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Whether there is no observation: no data, never "fast".
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// `(cell, count)`, cells ascending, no empty ones.
    pub fn cells(&self) -> impl Iterator<Item = (usize, u64)> {
        self.cells.iter().map(|(slot, count)| (usize::from(*slot), *count))
    }

    /// Observations that are not above the upper bound of `slot`.
    pub fn up_to(&self, slot: usize) -> u64 {
        self.cells().take_while(|(cell, _)| *cell <= slot).map(|(_, count)| count).sum()
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.combine(other, u64::saturating_add);
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// Takes `other` away, which must have been added before. The maximum is left as it is: what
    /// it was without `other` cannot be known from here.
    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, u64::saturating_sub);
        self.sum_ns = self.sum_ns.saturating_sub(other.sum_ns);
    }

    /// Merges two ascending lists.
    fn combine(&mut self, other: &Self, with: impl Fn(u64, u64) -> u64) {
        let mut sum = Vec::with_capacity(self.cells.len().max(other.cells.len()));
        let (mut mine, mut theirs) = (self.cells.iter().peekable(), other.cells.iter().peekable());
        loop {
            let slot = match (mine.peek(), theirs.peek()) {
                (None, None) => break,
                (Some((slot, _)), None) | (None, Some((slot, _))) => *slot,
                (Some((a, _)), Some((b, _))) => *a.min(b),
            };
            let a = mine.next_if(|(of, _)| *of == slot).map_or(0, |(_, count)| *count);
            let b = theirs.next_if(|(of, _)| *of == slot).map_or(0, |(_, count)| *count);
            let count = with(a, b);
            if count > 0 {
                sum.push((slot, count));
            }
        }
        self.cells = sum;
    }

    /// The `q`-quantile, `q` in 0..=1: the ceil(q n)-th smallest of n observations. `None` without
    /// observations.
    ///
    /// Inside a bucket it is interpolated exponentially, as Prometheus does for native histograms
    /// (`promql/quantile.go`, `histogramQuantile`), which keeps the relative error below half a
    /// bucket (2.2 %) wherever observations are spread evenly on a logarithmic scale.
    pub fn quantile(&self, q: f64) -> Option<Quantile> {
        let count = self.count();
        let rank = ((q.clamp(0.0, 1.0) * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut before = 0;
        for (slot, here) in self.cells() {
            if before + here < rank {
                before += here;
                continue;
            }
            let max = if self.max_ns > 0 { self.max_ns as f64 / 1e9 } else { f64::INFINITY };
            let low = lower_seconds(slot);
            let high = upper_seconds(slot).min(max).max(low);
            let share = (rank - before) as f64 / here as f64;
            let seconds = if high.is_infinite() {
                low
            } else if slot == SLOT_ZERO {
                high * share
            } else {
                low * (high / low).powf(share)
            };
            return Some(Quantile { seconds: seconds.clamp(low, high), low, high });
        }
        None
    }
}

/// Upper bound of a cell, seconds: infinite for the last.
pub fn upper_seconds(slot: usize) -> f64 {
    if slot >= SLOT_ABOVE { f64::INFINITY } else { (f64::from(FIRST_INDEX + slot as i32) / 16.0).exp2() }
}

/// Lower bound of a cell, seconds.
pub fn lower_seconds(slot: usize) -> f64 {
    if slot == SLOT_ZERO { 0.0 } else { upper_seconds(slot - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn of(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        for value in values {
            histogram.observe(*value);
        }
        histogram
    }

    fn latency() -> impl Strategy<Value = u64> {
        prop_oneof![0..200u64, 1_000..1_000_000u64, 0..300_000_000_000u64]
    }

    #[test]
    fn no_observation_has_no_quantile() {
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn above_the_range_the_maximum_is_all_that_is_known() {
        let mut histogram = of(&[200_000_000_000]);
        let q = histogram.quantile(0.5).expect("one observation");
        assert_eq!((q.low, q.high), (128.0, 200.0));
        histogram.max_ns = 0;
        let q = histogram.quantile(0.5).expect("one observation");
        assert_eq!((q.seconds, q.high), (128.0, f64::INFINITY));
    }

    #[test]
    fn cells_given_twice_are_added_and_strays_left_out() {
        let histogram = Histogram::from_cells(vec![(7, 1), (3, 2), (7, 4), (5, 0), (600, 9)], 0, 0);
        assert_eq!(histogram.cells().collect::<Vec<_>>(), [(3, 2), (7, 5)]);
        assert_eq!(histogram.up_to(6), 2);
        assert_eq!(histogram.up_to(7), 7);
    }

    proptest! {
        #[test]
        fn merging_is_observing_both(a in vec(latency(), 0..50), b in vec(latency(), 0..50)) {
            let both: Vec<u64> = a.iter().chain(&b).copied().collect();
            let mut merged = of(&a);
            merged.merge(&of(&b));
            prop_assert_eq!(&merged, &of(&both));
            let mut turned = of(&b);
            turned.merge(&of(&a));
            prop_assert_eq!(&merged, &turned);
            merged.subtract(&of(&b));
            prop_assert_eq!(merged.cells, of(&a).cells);
            prop_assert_eq!(merged.sum_ns, of(&a).sum_ns);
        }

        #[test]
        fn bounds_hold_the_true_quantile(mut values in vec(latency(), 1..200), q in 0.0..=1.0f64) {
            let found = of(&values).quantile(q).expect("observations");
            values.sort_unstable();
            let rank = ((q * values.len() as f64).ceil() as usize).clamp(1, values.len());
            let truth = values[rank - 1] as f64 / 1e9;
            prop_assert!(found.low <= truth && truth <= found.high * (1.0 + 1e-12), "{found:?} {truth}");
            prop_assert!(found.low <= found.seconds && found.seconds <= found.high);
        }
    }
}
