//! A series at four time scales: medians of 4, 16, 64 and 256 samples, each with its forecast.

use serde::{Deserialize, Serialize};

use super::normal;
use super::shape::{BLOCKS, BLOCKS_MIN, Effort, Fit, Fits};
use super::warning::{Belief, Eta, Hits};

/// Time scales.
pub const LEVELS: usize = 4;
/// A block closes after this many samples, or blocks of the level below.
const PER_BLOCK: usize = 4;
/// A trend younger than this, seconds, is not believed.
pub const TREND_AGE_MIN_S: f64 = 40.0;
/// Blocks ahead at which past forecasts are compared with what came.
const NEAR: usize = 8;
const FAR: usize = 24;
/// The 70 % quantile of the absolute value of a standard normal.
const QUANTILE_70: f64 = 1.04;
/// Shapes of less weight are not looked at.
const WEIGHT_MIN: f64 = 1e-4;

/// What a level is asked about.
#[derive(Clone, Copy)]
pub struct Question {
    /// Limit, above which it is breached.
    pub limit: f64,
    /// How far ahead, samples.
    pub horizon: f64,
    /// [`TREND_AGE_MIN_S`], samples.
    pub trend_age_min: f64,
    /// Mean absolute step of the samples, as a standard deviation.
    pub sigma: f64,
    /// Probability from which on a forecast is a hit.
    pub hit: f64,
    /// How many shapes are tried.
    pub effort: Effort,
    /// Time, samples.
    pub clock: f64,
}

/// All levels. 2.6 KiB.
#[derive(Clone, Serialize, Deserialize)]
pub struct Pyramid {
    levels: [Level; LEVELS],
}

impl Pyramid {
    /// Nothing known.
    pub fn new() -> Self {
        Self { levels: std::array::from_fn(|k| Level::new(PER_BLOCK.pow(k as u32 + 1) as f64)) }
    }

    /// One more sample, `sustained` the greatest value that lasts. Whether a block closed.
    pub fn push(&mut self, y: f64, sustained: f64, question: &Question) -> bool {
        let mut up = Some(y);
        let mut closed = false;
        for level in &mut self.levels {
            let Some(value) = up else { break };
            up = level.collect(value);
            if let Some(median) = up {
                closed = true;
                level.close(median, question);
            }
        }
        for level in &mut self.levels {
            level.peak = level.peak.max(sustained);
        }
        closed
    }

    /// `missing` samples did not come: open blocks are void, and levels whose blocks would no
    /// longer be evenly spaced start anew.
    pub fn gap(&mut self, missing: f64) {
        for level in &mut self.levels {
            level.filled = 0;
            level.peak = -NONE;
            if missing >= 8.0 * level.block {
                *level = Level::new(level.block);
            }
        }
    }

    /// What all levels together believe; `None` before the first has enough blocks.
    pub fn belief(&self, clock: f64) -> Option<Belief> {
        let known = || self.levels.iter().filter(|level| level.len >= BLOCKS_MIN);
        let p = known().map(|level| level.p).reduce(f64::max)?;
        let eta = known()
            .filter(|level| level.p >= 0.3)
            .filter_map(|level| Some((level, level.eta?)))
            .map(|(level, eta)| (eta.spread() / level.p, eta.later(clock - level.evaluated_at)))
            .min_by(|(a, _), (b, _)| a.total_cmp(b))
            .map(|(_, eta)| eta);
        Some(Belief { p, eta, fires: known().any(|level| level.hits.fire()) })
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct Level {
    /// Samples in a block.
    block: f64,
    /// The block that fills.
    open: [f64; PER_BLOCK],
    filled: usize,
    /// The newest blocks, oldest first.
    blocks: [f64; BLOCKS],
    len: usize,
    /// Blocks ever.
    count: usize,
    /// Greatest sustained value while the open block filled; -[`NONE`] at its start.
    peak: f64,
    /// How far that lies above the block's median, on average: saw-teeth and bursts.
    excess: f64,
    excess_count: f64,
    near: BackTest<NEAR>,
    far: BackTest<FAR>,
    hits: Hits,
    p: f64,
    eta: Option<Eta>,
    evaluated_at: f64,
}

impl Level {
    fn new(block: f64) -> Self {
        Self {
            block,
            open: [0.0; PER_BLOCK],
            filled: 0,
            blocks: [0.0; BLOCKS],
            len: 0,
            count: 0,
            peak: -NONE,
            excess: 0.0,
            excess_count: 0.0,
            near: BackTest::new(),
            far: BackTest::new(),
            hits: Hits::default(),
            p: 0.0,
            eta: None,
            evaluated_at: 0.0,
        }
    }

    /// The median of the open block once it is full.
    fn collect(&mut self, value: f64) -> Option<f64> {
        self.open[self.filled] = value;
        self.filled += 1;
        if self.filled < PER_BLOCK {
            return None;
        }
        self.filled = 0;
        self.open.sort_unstable_by(f64::total_cmp);
        Some(f64::midpoint(self.open[1], self.open[2]))
    }

    fn close(&mut self, median: f64, question: &Question) {
        if self.peak > -NONE {
            self.excess_count += 1.0;
            self.excess += (1.0 / self.excess_count).max(0.12) * (self.peak - median - self.excess);
            self.peak = -NONE;
        }
        if self.len == BLOCKS {
            self.blocks.copy_within(1.., 0);
            self.len -= 1;
        }
        self.blocks[self.len] = median;
        self.len += 1;
        self.near.compare(self.count, median);
        self.far.compare(self.count, median);
        if self.len >= BLOCKS_MIN {
            self.evaluate(question);
        }
        self.count += 1;
    }

    fn evaluate(&mut self, question: &Question) {
        let blocks = &self.blocks[..self.len];
        let last = blocks[self.len - 1];
        // What a median may reach before peaks of the usual size breach the limit.
        let limit = if self.excess_count >= 3.0 {
            question.limit - self.excess
        } else {
            question.limit - 0.25 * question.sigma
        };
        self.evaluated_at = question.clock;
        let reach = (question.horizon / self.block).min(1.5 * self.len as f64);
        if out_of_reach(blocks, limit - last, reach) {
            self.p = 0.0;
            self.eta = None;
            self.hits.clear();
            self.near.forecast(self.count, last);
            self.far.forecast(self.count, last);
            return;
        }
        let variance_min =
            0.05 * question.sigma * question.sigma / self.block + 1e-12 * (blocks[0] * blocks[0] + 1.0);
        let fits = Fits::new(blocks, variance_min, question.effort);
        let mean = |t: f64| fits.iter().map(|fit| fit.weight * fit.mean(t).0).sum::<f64>();
        let bound = 50.0 * blocks.iter().fold(0.0, |max: f64, y| max.max(y.abs())) + 1.0;
        self.near.forecast(self.count, mean(NEAR as f64).clamp(-bound, bound));
        self.far.forecast(self.count, mean(FAR as f64).clamp(-bound, bound));

        let crossing = Crossing::new(&fits, limit, self.error_model());
        self.p = crossing.probability(reach, question.trend_age_min / self.block);
        self.eta = crossing.eta(4.0 * question.horizon / self.block, self.p).map(|eta| eta.scale(self.block));
        self.hits.judge(self.p, question.hit);
    }

    /// Variance of forecasts at [`NEAR`] blocks, and the power by which it grows.
    fn error_model(&self) -> (f64, f64) {
        if self.near.errors < 6 {
            return (0.0, 1.0);
        }
        let near = (self.near.error / QUANTILE_70).powi(2);
        if self.far.errors < 6 {
            return (near, 1.5);
        }
        let far = (self.far.error / QUANTILE_70).powi(2);
        (near, ((far / near).max(1e-3).ln() / 3f64.ln()).clamp(0.5, 2.5))
    }
}

/// Whether no trend of the last 8, 16 or 32 blocks leads over a limit that is `distance` away
/// within twice the reach, nor a random walk: cheap, and right most of the time.
fn out_of_reach(blocks: &[f64], distance: f64, reach: f64) -> bool {
    let squared_steps =
        |blocks: &[f64]| blocks.windows(2).map(|pair| (pair[1] - pair[0]).powi(2)).sum::<f64>();
    let steps = (blocks.len() - 1) as f64;
    let walk = (reach * squared_steps(blocks) / steps).sqrt();
    if distance <= 2.0 * walk {
        return false;
    }
    let steepest = [8, 16, 32].map(|window| {
        let newest = &blocks[blocks.len().saturating_sub(window)..];
        let w = newest.len() as f64;
        let centre = (w - 1.0) / 2.0;
        let spread = w * (w * w - 1.0) / 12.0;
        let moment: f64 = newest.iter().enumerate().map(|(i, y)| (i as f64 - centre) * (y - newest[0])).sum();
        let noise = squared_steps(newest) / (w - 1.0) / 2.0;
        moment / spread + 2.0 * (noise / spread).sqrt()
    });
    let steepest = steepest.into_iter().fold(0.0, f64::max);
    distance > 2.0 * reach * steepest
}

/// No value: what is saved as text has no infinities.
const NONE: f64 = f64::MAX;

/// Forecasts `AHEAD` blocks ahead, and how wrong they were.
#[derive(Clone, Serialize, Deserialize)]
struct BackTest<const AHEAD: usize> {
    /// `pending[c % AHEAD]`: made at block `c`, or [`NONE`].
    #[serde(with = "fixed")]
    pending: [f64; AHEAD],
    /// 70 % quantile of the absolute error.
    error: f64,
    /// Errors seen.
    errors: u32,
}

impl<const AHEAD: usize> BackTest<AHEAD> {
    fn new() -> Self {
        Self { pending: [NONE; AHEAD], error: 0.0, errors: 0 }
    }

    /// Block number `count` has come. The quantile follows by steps of its own size.
    fn compare(&mut self, count: usize, came: f64) {
        let forecast = std::mem::replace(&mut self.pending[count % AHEAD], NONE);
        if forecast >= NONE {
            return;
        }
        let error = (came - forecast).abs();
        self.errors = self.errors.saturating_add(1);
        if self.errors == 1 {
            self.error = error;
            return;
        }
        let step = (1.0 / f64::from(self.errors)).max(0.02) * (2.0 * self.error.max(1e-9) + 0.1 * error);
        self.error += if error > self.error { 0.7 * step } else { -0.3 * step };
        self.error = self.error.max(0.0);
    }

    fn forecast(&mut self, count: usize, value: f64) {
        self.pending[count % AHEAD] = value;
    }
}

/// When the mixture of shapes crosses the limit.
struct Crossing<'a> {
    fits: &'a Fits,
    limit: f64,
    near: f64,
    power: f64,
}

impl<'a> Crossing<'a> {
    fn new(fits: &'a Fits, limit: f64, (near, power): (f64, f64)) -> Self {
        Self { fits, limit, near, power }
    }

    /// The shapes that matter.
    fn fits(&self) -> impl Iterator<Item = &Fit> {
        self.fits.iter().filter(|fit| fit.weight > WEIGHT_MIN)
    }

    /// Probability to be above the limit `t` blocks ahead, if trends go on.
    fn above(&self, t: f64) -> f64 {
        let past_error = self.near * (t / NEAR as f64).powf(self.power);
        self.fits()
            .map(|fit| {
                let (mean, trend) = fit.mean(t);
                // A slope is known to a quarter at best.
                let slope_error = (0.25 * trend).powi(2) * (t / (fit.age + 1.0)).min(1.0);
                let deviation = (fit.variance(t) + past_error + slope_error).sqrt();
                fit.weight * normal::cdf((mean - self.limit) / deviation.max(1e-9))
            })
            .sum()
    }

    /// Probability to be above the limit within `reach` blocks, given that trends end: one of age
    /// D lasts D more with probability 0.7 (Gott 1993).
    fn probability(&self, reach: f64, age_min: f64) -> f64 {
        let rising = self.fits().filter(|fit| fit.slope > 0.0);
        let (weight, sum) =
            rising.fold((0.0, 0.0), |(weight, sum), fit| (weight + fit.weight, sum + fit.weight * fit.age));
        let age = if weight > 0.0 { sum / weight } else { 0.0 };
        if age < age_min || age <= 0.0 {
            return 0.0;
        }
        let at = |t: f64| self.above(t) * (age / (age + t)).sqrt();
        let before = std::iter::successors(Some(1.0), |t| Some(t * 1.5)).take_while(|t| *t < reach);
        before.chain([reach]).map(at).fold(0.0, f64::max).clamp(0.0, 1.0)
    }

    /// When it crosses, blocks ahead: the 10, 50 and 90 % quantiles of those times that are not
    /// beyond `end`.
    fn eta(&self, end: f64, p: f64) -> Option<Eta> {
        if p < 0.02 {
            return None;
        }
        let top = self.above(end).max(p);
        let mut grid = Grid { crossing: self, end, at: 0.0, next: 1.0, above: None };
        let [low, mid, high] = [0.1, 0.5, 0.9].map(|share| grid.first(share * top));
        Some(Eta { low, mid, high })
    }
}

/// Finds ascending levels one after the other on one grid: 1, 1.35, 1.35^2 and so on.
struct Grid<'a> {
    crossing: &'a Crossing<'a>,
    end: f64,
    at: f64,
    next: f64,
    above: Option<f64>,
}

impl Grid<'_> {
    /// The first time at which the probability reaches `level`, to a hundredth of a grid step.
    fn first(&mut self, level: f64) -> f64 {
        while self.next < self.end {
            let above = *self.above.get_or_insert_with(|| self.crossing.above(self.next));
            if above >= level {
                return self.refine(level);
            }
            self.at = self.next;
            self.next *= 1.35;
            self.above = None;
        }
        self.end
    }

    fn refine(&self, level: f64) -> f64 {
        let (mut low, mut high) = (self.at, self.next);
        for _ in 0..7 {
            let mid = f64::midpoint(low, high);
            if self.crossing.above(mid) >= level { high = mid } else { low = mid }
        }
        high
    }
}

/// Arrays of any length, which serde does not know.
mod fixed {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer, const N: usize>(array: &[f64; N], to: S) -> Result<S::Ok, S::Error> {
        array.as_slice().serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>, const N: usize>(from: D) -> Result<[f64; N], D::Error> {
        let values = Vec::<f64>::deserialize(from)?;
        values.try_into().map_err(|_| D::Error::custom(format!("not {N} values")))
    }
}
