//! A histogram in user space: sparse, exact, addable.

use serde::{Deserialize, Serialize};
use tickscope_common::histogram::{FIRST_INDEX, SLOT_ABOVE, SLOT_ZERO};

/// Observations by cell of `tickscope_common::histogram::slot`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// `(cell, count)`, cells ascending, counts not 0.
    cells: Vec<(u16, u64)>,
    /// Sum of the observations, ns.
    pub sum_ns: u64,
    /// The largest observation, ns; 0 without one.
    pub max_ns: u64,
}

/// A quantile as far as buckets can tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantile {
    /// Best estimate, seconds.
    pub seconds: f64,
    /// The true quantile is above this, seconds.
    pub low: f64,
    /// And not above this, seconds; infinite above the range.
    pub high: f64,
}

/// Upper bound of a cell, seconds: infinite for the last.
pub fn upper_seconds(slot: usize) -> f64 {
    if slot >= SLOT_ABOVE {
        f64::INFINITY
    } else {
        (f64::from(FIRST_INDEX + slot as i32) / 16.0).exp2()
    }
}

/// Lower bound of a cell, seconds.
pub fn lower_seconds(slot: usize) -> f64 {
    if slot == SLOT_ZERO { 0.0 } else { upper_seconds(slot - 1) }
}
