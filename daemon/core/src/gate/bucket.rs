//! Histograms as the gate sees them: counts by upper bound, whatever the bounds are.
//!
//! The daemon's own bounds are 2^(i/16) s; replay files and Prometheus may have any. Both arms are
//! counted against the same bound of their own scheme, so no count is ever guessed at. What a
//! coarse scheme costs is the margin: it is at least one bucket, and is published.

use crate::histogram::{Histogram, upper_seconds};

/// Buckets per factor of two of the daemon's own scheme.
const SCALE: f64 = 16.0;
/// A bound this close to a power of 2^(1/16), relatively, is that power.
const SNAP: f64 = 1e-6;
/// Bounds that a [`Grid`] learns at most.
const GRID_MAX: usize = 4096;

/// Counts by upper bound, seconds; ascending, bounds differ, counts not 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buckets {
    cells: Vec<(f64, u64)>,
}

impl Buckets {
    /// From `(upper bound in seconds, count)` in any order; counts of one bound add up. Bounds are
    /// 0 or more, and may be infinite; `None` otherwise.
    pub fn new(mut cells: Vec<(f64, u64)>) -> Option<Self> {
        if cells.iter().any(|(bound, _)| bound.is_nan() || *bound < 0.0) {
            return None;
        }
        for (bound, _) in &mut cells {
            *bound = snap(*bound);
        }
        cells.retain(|(_, count)| *count > 0);
        cells.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        cells.dedup_by(|(bound, count), (before, total)| {
            let same = bound.total_cmp(before).is_eq();
            if same {
                *total = total.saturating_add(*count);
            }
            same
        });
        Some(Self { cells })
    }

    /// How many observations.
    pub fn count(&self) -> u64 {
        self.cells.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Observations in buckets whose upper bound is above `bound`.
    pub fn above(&self, bound: f64) -> u64 {
        let over = self.cells.iter().rev().take_while(|(upper, _)| *upper > bound);
        over.fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        if other.cells.is_empty() {
            return;
        }
        let mut sum = Vec::with_capacity(self.cells.len() + other.cells.len());
        let (mut mine, mut theirs) = (self.cells.iter().peekable(), other.cells.iter().peekable());
        loop {
            let bound = match (mine.peek(), theirs.peek()) {
                (None, None) => break,
                (Some((bound, _)), None) | (None, Some((bound, _))) => *bound,
                (Some((a, _)), Some((b, _))) => a.min(*b),
            };
            let a = mine.next_if(|(of, _)| of.total_cmp(&bound).is_eq()).map_or(0, |(_, count)| *count);
            let b = theirs.next_if(|(of, _)| of.total_cmp(&bound).is_eq()).map_or(0, |(_, count)| *count);
            sum.push((bound, a.saturating_add(b)));
        }
        self.cells = sum;
    }

    /// Upper bound of the first bucket that has at least `rank` observations up to its end.
    pub fn bound_of_rank(&self, rank: f64) -> Option<f64> {
        let mut below = 0u64;
        for (bound, count) in &self.cells {
            below = below.saturating_add(*count);
            if below as f64 >= rank {
                return Some(*bound);
            }
        }
        self.cells.last().map(|(bound, _)| *bound)
    }

    /// Upper bound of the bucket of the `q`-quantile.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        self.bound_of_rank(q * self.count() as f64)
    }
}

impl From<&Histogram> for Buckets {
    fn from(histogram: &Histogram) -> Self {
        Self { cells: histogram.cells().map(|(slot, count)| (upper_seconds(slot), count)).collect() }
    }
}

/// The bounds there are.
#[derive(Clone, Debug, Default)]
pub struct Grid {
    /// Bounds seen, ascending.
    bounds: Vec<f64>,
    /// Whether one of them is not a power of 2^(1/16).
    other: bool,
}

/// Whether all of the daemon's own bounds are there. Somebody else's may be powers, too, but fewer:
/// then no two that were seen are neighbours, and only those that were seen are known.
fn is_fine(bounds: &[f64]) -> bool {
    let powers: Vec<f64> = bounds.iter().filter_map(|bound| power(*bound)).collect();
    powers.len() < 2 || powers.windows(2).any(|pair| pair[1] - pair[0] < 1.5)
}

impl Grid {
    /// Learns the bounds of a histogram.
    pub fn learn(&mut self, buckets: &Buckets) {
        for (bound, _) in &buckets.cells {
            if self.bounds.len() < GRID_MAX
                && let Err(place) = self.bounds.binary_search_by(|known| known.total_cmp(bound))
            {
                self.bounds.insert(place, *bound);
                self.other |= *bound > 0.0 && bound.is_finite() && power(*bound).is_none();
            }
        }
    }

    /// The bound nearest to `margin` above `from`, on a logarithmic scale, at least one bucket up.
    /// At the daemon's own scheme 5 % is one bucket, 10 % two, 25 % five.
    pub fn up(&self, from: f64, margin: f64) -> f64 {
        if from.is_infinite() {
            return from;
        }
        if self.own() {
            let buckets = (SCALE * margin.ln_1p() / std::f64::consts::LN_2).round().max(1.0);
            return power(from).map_or(from, |index| bound(index + buckets));
        }
        let wanted = (from * (1.0 + margin)).ln();
        let far = |bound: &&f64| (bound.ln() - wanted).abs();
        let above = self.bounds.iter().filter(|bound| **bound > from);
        above.min_by(|a, b| far(a).total_cmp(&far(b))).copied().unwrap_or(f64::INFINITY)
    }

    /// Whether these are the daemon's own bounds.
    fn own(&self) -> bool {
        !self.other && is_fine(&self.bounds)
    }

    /// The next bound below.
    pub fn down(&self, from: f64) -> f64 {
        if self.own()
            && let Some(index) = power(from)
        {
            return bound(index - 1.0);
        }
        self.bounds.iter().rev().find(|bound| **bound < from).copied().unwrap_or(0.0)
    }
}

/// `i` of 2^(i/16), if it is one.
fn power(value: f64) -> Option<f64> {
    let index = (SCALE * value.log2()).round();
    (index.is_finite() && (value / bound(index) - 1.0).abs() <= SNAP).then_some(index)
}

fn bound(index: f64) -> f64 {
    (index / SCALE).exp2()
}

fn snap(value: f64) -> f64 {
    power(value).map_or(value, bound)
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these values are exact")]
mod tests {
    use super::*;

    #[test]
    fn bounds_close_to_a_power_are_that_power() {
        let buckets =
            Buckets::new(vec![(2.0 * (1.0 + 4e-7), 1), (2.0, 2), (0.0, 1), (1.0, 0)]).expect("bounds");
        assert_eq!(buckets.cells, [(0.0, 1), (2.0, 3)]);
        assert_eq!(Buckets::new(vec![(-1.0, 1)]), None);
        assert_eq!(Buckets::new(vec![(f64::NAN, 1)]), None);
    }

    #[test]
    fn margins_are_whole_buckets() {
        let mut grid = Grid::default();
        grid.learn(&Buckets::new(vec![(1.0, 1)]).expect("bounds"));
        let buckets = |margin: f64| (16.0 * grid.up(1.0, margin).log2()).round() as i32;
        let table = [0.03, 0.05, 0.10, 0.15, 0.25, 0.30, 0.40, 1.00].map(buckets);
        assert_eq!(table, [1, 1, 2, 3, 5, 6, 8, 16]);
        assert_eq!(grid.down(1.0), bound(-1.0));
    }

    #[test]
    fn other_bounds_are_used_as_they_are() {
        let mut grid = Grid::default();
        let classic: Vec<(f64, u64)> = [0.001, 0.0025, 0.005, 0.01].iter().map(|bound| (*bound, 1)).collect();
        grid.learn(&Buckets::new(classic).expect("bounds"));
        assert_eq!(grid.up(0.001, 0.05), 0.0025, "at least one bucket");
        assert_eq!(grid.up(0.001, 4.0), 0.005);
        assert_eq!(grid.up(0.01, 0.05), f64::INFINITY, "nothing is known above");
        assert_eq!(grid.down(0.0025), 0.001);
        assert_eq!(grid.down(0.001), 0.0);
    }

    #[test]
    fn a_few_of_the_daemons_own_bounds_are_other_bounds() {
        let mut grid = Grid::default();
        // The classic buckets of /metrics: about ten fine ones each.
        grid.learn(&Buckets::new([0.0, 10.0, 21.0, 31.0].map(|i| (bound(i), 1)).to_vec()).expect("bounds"));
        assert_eq!((grid.up(bound(10.0), 0.05), grid.down(bound(10.0))), (bound(21.0), bound(0.0)));
        grid.learn(&Buckets::new(vec![(bound(11.0), 1)]).expect("bounds"));
        assert_eq!(grid.up(bound(10.0), 0.05), bound(11.0));
    }

    #[test]
    fn counts_above_a_bound_of_the_daemons_own_scheme_are_exact() {
        let mut histogram = Histogram::default();
        for ns in [1_000, 2_000, 2_000, 500_000_000, u64::MAX] {
            histogram.observe(ns);
        }
        let buckets = Buckets::from(&histogram);
        assert_eq!((buckets.count(), buckets.above(0.5), buckets.above(0.49)), (5, 1, 2));
        assert_eq!(buckets.above(f64::INFINITY), 0);
        assert_eq!(buckets.quantile(0.8), Some(0.5));
        let mut twice = buckets.clone();
        twice.merge(&buckets);
        assert_eq!((twice.count(), twice.above(0.49)), (10, 4));
    }
}
