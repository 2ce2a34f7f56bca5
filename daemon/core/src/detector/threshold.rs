//! From which score on something is reported: by how often a series may raise a false alarm.
//!
//! The greatest score of each quarter of an hour, over a week, is extrapolated to the rate that is
//! allowed (Hill 1975). Taking one score a quarter of an hour makes of neighbouring scores one.

use serde::{Deserialize, Serialize};

/// Seconds of a block.
const BLOCK_S: f64 = 900.0;
/// Blocks of a week.
const WEEK: usize = 672;
/// Blocks that a calibration needs: half a day.
const BLOCKS_MIN: usize = 48;
/// In force before.
const START: f64 = 12.0;
const RANGE: (f64, f64) = (4.0, 40.0);

/// The threshold of one series. 2.7 KiB after a week.
#[derive(Clone, Serialize, Deserialize)]
pub struct Threshold {
    /// False alarms allowed, a week.
    rate: f64,
    ticks_per_block: u32,
    ticks: u32,
    greatest: f64,
    /// The greatest score of each block, a ring.
    blocks: Vec<f32>,
    next: usize,
    value: f64,
}

impl Threshold {
    /// At most `rate` false alarms a week, a score every `tick_s` seconds.
    pub fn new(rate: f64, tick_s: f64) -> Self {
        let ticks_per_block = (BLOCK_S / tick_s).clamp(1.0, 9e5) as u32;
        Self { rate, ticks_per_block, ticks: 0, greatest: 0.0, blocks: Vec::new(), next: 0, value: START }
    }

    /// What is in force.
    pub fn value(&self) -> f64 {
        self.value
    }

    /// Whether it is calibrated, or still the one to start with.
    pub fn calibrated(&self) -> bool {
        self.blocks.len() >= BLOCKS_MIN
    }

    /// One more score. What an open episode scores is not usual, and what is above the threshold
    /// counts as the threshold: a bad day must not blind the next one.
    pub fn learn(&mut self, score: f64, open: bool) {
        if !open {
            self.greatest = self.greatest.max(score.min(self.value));
        }
        self.ticks += 1;
        if self.ticks < self.ticks_per_block {
            return;
        }
        let greatest = std::mem::take(&mut self.greatest) as f32;
        self.ticks = 0;
        if self.blocks.len() < WEEK {
            self.blocks.push(greatest);
        } else {
            self.blocks[self.next] = greatest;
            self.next = (self.next + 1) % WEEK;
        }
        if self.calibrated() {
            self.value = self.extrapolate();
        }
    }

    fn extrapolate(&self) -> f64 {
        let mut sorted = self.blocks.clone();
        sorted.sort_unstable_by(|a, b| b.total_cmp(a));
        let n = sorted.len();
        let k = (n / 5).max(8);
        let bound = f64::from(sorted[k]).max(1e-3);
        let xi =
            sorted[..k].iter().map(|score| (f64::from(*score) / bound).max(1.0).ln()).sum::<f64>() / k as f64;
        let shape = (k as f64 / n as f64 * WEEK as f64 / self.rate).powf(xi);
        (bound * shape).clamp(RANGE.0, RANGE.1)
    }
}

/// Whether an episode of one series is open.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub struct Trigger {
    above: u32,
    quiet: u32,
    open: Option<u32>,
}

/// Scores in a row that open an episode, and that close it.
pub const TICKS_TO_OPEN: u32 = 3;
const TICKS_TO_CLOSE: u32 = 6;
/// After so many ticks what is unusual has become the new normal.
const TICKS_MAX: u32 = 360;

impl Trigger {
    /// Whether it is open.
    pub fn open(&self) -> bool {
        self.open.is_some()
    }

    /// One more score; `short` is that of the shortest window, which sees the end first.
    pub fn step(&mut self, score: f64, short: f64, threshold: f64) -> bool {
        self.above = if score >= threshold { self.above.saturating_add(1) } else { 0 };
        self.quiet = if short < threshold / 2.0 { self.quiet + 1 } else { 0 };
        match &mut self.open {
            None if self.above >= TICKS_TO_OPEN => {
                self.open = Some(0);
                self.quiet = 0;
            }
            None => {}
            Some(ticks) => {
                *ticks += 1;
                if self.quiet >= TICKS_TO_CLOSE || *ticks >= TICKS_MAX {
                    self.open = None;
                }
            }
        }
        self.open()
    }
}
