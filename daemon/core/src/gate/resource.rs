//! One use of a resource: a gauge (or a rate) of both arms, as a logarithmic ratio.
//!
//! Gauges move slowly and each arm's in its own way, so scores are a second apart at least, the
//! noise is measured on the ratio itself with its mean taken away, and nothing is said in the first
//! minute. No published operating characteristics exist for this part; ours are in
//! `examples/gate.rs`.

use std::collections::VecDeque;

use super::constant::{
    ALPHA_PASS, LEARNING_BLOCKS, PASS_BLOCKS, RESOURCE_NOISE_MIN, RESOURCE_SECONDS, STAND_SECONDS,
    WINDOW_SECONDS, WINDOWS_MIN,
};
use super::evidence::Betting;

/// Scores are at least this far apart, seconds.
const SCORE_SECONDS: f64 = 1.0;

/// Which way is worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// CPU, memory, queues.
    #[default]
    Higher,
    /// Throughput, hit ratios.
    Lower,
}

/// One resource.
pub struct Judge {
    direction: Direction,
    margin: f64,
    seconds: f64,
    /// Blocks of one score.
    blocks: usize,
    open: (usize, f64),
    windows: Vec<Spread>,
    harm: Betting,
    pass: Betting,
    recent: VecDeque<f64>,
    paired: u64,
    /// When it was certified.
    pub certified: Option<f64>,
    /// Sums of all blocks with both arms.
    pub baseline: f64,
    /// See `baseline`.
    pub canary: f64,
}

/// Variance of sums over windows of so many scores.
struct Spread {
    scores: usize,
    filled: usize,
    open: f64,
    sum: f64,
    squares: f64,
    count: u64,
}

impl Judge {
    /// For blocks of `seconds`; `margin`: tolerated ratio above 1.
    pub fn new(direction: Direction, margin: f64, seconds: f64) -> Self {
        let blocks = (SCORE_SECONDS / seconds).ceil().max(1.0) as usize;
        let mut windows = vec![Spread::new(1)];
        for length in WINDOW_SECONDS.map(|length| (length / (blocks as f64 * seconds)).round() as usize) {
            if windows.last().is_some_and(|last: &Spread| length > last.scores) {
                windows.push(Spread::new(length));
            }
        }
        Self {
            direction,
            margin,
            seconds,
            blocks,
            open: (0, 0.0),
            windows,
            harm: Betting::new(),
            pass: Betting::new(),
            recent: VecDeque::new(),
            paired: 0,
            certified: None,
            baseline: 0.0,
            canary: 0.0,
        }
    }

    /// One block that ended at `t`. Says whether it had both arms. Of nothing on one side only, no
    /// ratio can be told: such a block is missing.
    pub fn block(&mut self, baseline: f64, canary: f64, t: f64) -> bool {
        let ratio = match (baseline > 0.0, canary > 0.0) {
            (true, true) => (canary / baseline).ln(),
            (false, false) if baseline == 0.0 && canary == 0.0 => 0.0,
            _ => {
                self.cut();
                return false;
            }
        };
        self.paired += 1;
        self.baseline += baseline;
        self.canary += canary;
        self.open.0 += 1;
        self.open.1 += match self.direction {
            Direction::Higher => ratio,
            Direction::Lower => -ratio,
        };
        if self.open.0 == self.blocks {
            let (blocks, sum) = std::mem::take(&mut self.open);
            self.score(sum / blocks as f64, t);
        }
        true
    }

    /// What is not whole is not used.
    pub fn cut(&mut self) {
        self.open = (0, 0.0);
        for window in &mut self.windows {
            (window.filled, window.open) = (0, 0.0);
        }
    }

    /// Logarithm of the evidence of harm.
    pub fn log_evidence(&self) -> f64 {
        // Before it has been looked at for a minute, there is none.
        if self.paired as f64 * self.seconds < RESOURCE_SECONDS { 0.0 } else { self.harm.log_total() }
    }

    /// Mean of the blocks: baseline, canary.
    pub fn means(&self) -> Option<(f64, f64)> {
        let blocks = (self.paired > 0).then_some(self.paired as f64)?;
        Some((self.baseline / blocks, self.canary / blocks))
    }

    /// Tolerated ratio above 1.
    pub fn margin(&self) -> f64 {
        self.margin
    }

    /// Blocks with both arms.
    pub fn blocks(&self) -> u64 {
        self.paired
    }

    /// Whether the canary is within the margin over the last minute, too.
    pub fn stands(&self) -> bool {
        self.recent.iter().sum::<f64>() <= self.margin.ln_1p() * self.recent.len() as f64
    }

    fn score(&mut self, ratio: f64, t: f64) {
        let since = self.paired as f64 * self.seconds;
        if let Some((deviation, long_run)) = self.noise() {
            let z = (ratio - self.margin.ln_1p()) / deviation;
            self.harm.add(z, long_run, since);
            self.pass.add(-z, long_run, since);
        }
        for window in &mut self.windows {
            window.add(ratio);
        }
        self.recent.push_back(ratio);
        if self.recent.len() as f64 * (self.blocks as f64 * self.seconds) > STAND_SECONDS {
            self.recent.pop_front();
        }
        let enough = self.paired >= PASS_BLOCKS && since >= RESOURCE_SECONDS;
        if enough && self.certified.is_none() && self.pass.log(0) >= -ALPHA_PASS.ln() {
            self.certified = Some(t);
        }
    }

    /// Standard deviation of a score, and by how much scores hang together.
    fn noise(&self) -> Option<(f64, f64)> {
        let single = &self.windows[0];
        if single.count < LEARNING_BLOCKS as u64 {
            return None;
        }
        let variance = single.variance().max(RESOURCE_NOISE_MIN * RESOURCE_NOISE_MIN);
        let ratio = |window: &Spread| {
            let enough = window.count >= WINDOWS_MIN;
            let caution = 1.0 + 2.0 * (2.0 / window.count as f64).sqrt();
            enough.then(|| window.variance() / (window.scores as f64 * variance) * caution)
        };
        let long_run = self.windows[1..].iter().filter_map(ratio).fold(1.0, f64::max);
        Some((variance.sqrt(), long_run))
    }
}

impl Spread {
    fn new(scores: usize) -> Self {
        Self { scores, filled: 0, open: 0.0, sum: 0.0, squares: 0.0, count: 0 }
    }

    fn add(&mut self, score: f64) {
        self.open += score;
        self.filled += 1;
        if self.filled == self.scores {
            self.sum += self.open;
            self.squares += self.open * self.open;
            self.count += 1;
            (self.filled, self.open) = (0, 0.0);
        }
    }

    fn variance(&self) -> f64 {
        let n = self.count as f64;
        ((self.squares - self.sum * self.sum / n) / (n - 1.0)).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(direction: Direction, canary: f64, blocks: u32) -> Judge {
        let mut judge = Judge::new(direction, 0.1, 1.0);
        for t in 1..=blocks {
            judge.block(0.4, canary, f64::from(t));
        }
        judge
    }

    #[test]
    fn more_than_tolerated_is_found_and_the_same_is_certified() {
        assert!(after(Direction::Higher, 0.8, 120).log_evidence() > 8.1);
        assert!(after(Direction::Higher, 0.8, 59).log_evidence().abs() < 1e-12);
        assert!(after(Direction::Higher, 0.42, 120).log_evidence() < 0.0);
        assert_eq!(after(Direction::Higher, 0.4, 120).certified, Some(60.0));
        assert_eq!(after(Direction::Higher, 0.8, 120).certified, None);
    }

    #[test]
    fn where_lower_is_worse_signs_flip() {
        assert!(after(Direction::Lower, 0.2, 120).log_evidence() > 8.1);
        assert!(after(Direction::Lower, 0.8, 120).log_evidence() < 0.0);
    }

    #[test]
    fn nothing_on_one_side_is_no_ratio_and_nothing_on_both_is_the_same() {
        let mut judge = Judge::new(Direction::Higher, 0.1, 1.0);
        assert!(!judge.block(0.0, 1.0, 1.0));
        assert!(!judge.block(1.0, 0.0, 2.0));
        assert!(judge.block(0.0, 0.0, 3.0));
        assert_eq!(judge.means(), Some((0.0, 0.0)));
    }
}
