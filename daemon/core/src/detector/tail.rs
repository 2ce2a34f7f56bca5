//! Values, differences and drifts that are rarer than a series has shown so far.
//!
//! Each feature of the series (how far it is from its averages at several time scales, and they
//! from each other) has its own model of large values: a generalised Pareto tail above a tracked
//! 95 % quantile, fitted by moments (Pickands 1975; Hosking and Wallis 1987), as SPOT does (Siffer
//! et al. 2017) but with constant memory. The score is the number of nines: -log10 of how
//! improbable the most improbable feature is.
//!
//! Nominal probabilities are no false-alarm rates: on wandering series they come 17 times a day.
//! [`super::Threshold`] calibrates them.

use serde::{Deserialize, Serialize};

/// Averages: their gains are 2/(6^k + 1), k from 1.
const AVERAGES: usize = 4;
/// Gain of the slow average and of its like.
const SLOW: f64 = 1.0 / 2000.0;
/// Share of values that the tail models.
const TAIL: f64 = 0.05;
/// Features with a tail; one more is a new extreme.
const TAILS: usize = 8;
/// Score of a new extreme.
const EXTREME: f64 = 8.0;
/// Hours of a week.
const HOURS: usize = 168;
/// Scores that follow a score are 0 for so long, unless they are greater.
const REFRACTORY: u32 = 60;
/// Score that becomes 1.
const SCORE_MAX: f64 = 30.0;

/// A set of features, as bits: 0 value less short average, 1 difference, 2 to 4 averages less the
/// next slower, 5 value less the slow average, 6 value less the hour's profile, 7 spread less its
/// slow average, 8 a new extreme.
pub type Features = u16;

/// All features.
pub const FEATURES: Features = 0x1ff;

/// Scores one series. 2.6 KiB.
#[derive(Clone, Serialize, Deserialize)]
pub struct Tail {
    features: Features,
    n: u64,
    /// The first value: all else is relative to it.
    first: f64,
    last: f64,
    averages: [f64; AVERAGES],
    slow: f64,
    spread: f64,
    spread_slow: f64,
    low: f64,
    high: f64,
    tails: [Excess; TAILS],
    profile: Profile,
}

impl Tail {
    /// Nothing known yet.
    pub fn new(features: Features) -> Self {
        Self {
            features,
            n: 0,
            first: 0.0,
            last: 0.0,
            averages: [0.0; AVERAGES],
            slow: 0.0,
            spread: 0.0,
            spread_slow: 0.0,
            low: 0.0,
            high: 0.0,
            tails: [Excess::default(); TAILS],
            profile: Profile::new(),
        }
    }

    /// Where the series usually is.
    pub fn typical(&self) -> f64 {
        self.first + self.slow
    }

    /// Scores `value` at `t` seconds since 1970 (only its hour of the week matters) by what came
    /// before it: 0 is usual, 6 is one in a million if values were independent. What is not a
    /// number scores 0 and is not remembered.
    pub fn score(&mut self, t: f64, value: f64) -> f64 {
        if !value.is_finite() {
            return 0.0;
        }
        let value = value.clamp(-1e60, 1e60);
        if self.n == 0 {
            self.first = value;
        }
        self.n += 1;
        let n = self.n as f64;
        let x = value - self.first;
        let before = self.averages;
        for (k, average) in self.averages.iter_mut().enumerate() {
            *average += gain(k + 1, n) * (x - *average);
        }
        let deviation = (x - before[0]).abs();
        self.spread += gain(3, n) * (deviation - self.spread);
        let of_hour = self.profile.explain(t, x, self.slow, n);

        let features = [
            Some(x - before[0]),
            Some(x - self.last),
            Some(self.averages[0] - before[1]),
            Some(self.averages[1] - before[2]),
            Some(self.averages[2] - before[3]),
            Some(x - self.slow),
            of_hour,
            Some(self.spread - self.spread_slow),
        ];
        let mut score: f64 = 0.0;
        for (k, (feature, tail)) in features.into_iter().zip(&mut self.tails).enumerate() {
            if let (true, Some(feature)) = (self.features >> k & 1 == 1, feature) {
                score = score.max(tail.score(feature.abs()));
            }
        }
        let margin = 0.05 * (self.high - self.low);
        if self.features >> TAILS & 1 == 1
            && self.n > 100
            && (x > self.high + margin || x < self.low - margin)
        {
            score = score.max(EXTREME);
        }

        self.low = self.low.min(x);
        self.high = self.high.max(x);
        self.slow += SLOW.max(1.0 / n) * (x - self.slow);
        self.spread_slow += SLOW.max(1.0 / n) * (self.spread - self.spread_slow);
        self.last = x;
        score
    }
}

fn gain(k: usize, n: f64) -> f64 {
    (2.0 / (6f64.powi(k as i32) + 1.0)).max(1.0 / n)
}

/// The tail of one feature.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Excess {
    n: u64,
    /// Tracks the 1 - [`TAIL`] quantile.
    bound: f64,
    mean: f64,
    /// How often the bound is exceeded.
    rate: f64,
    /// Excesses so far, and their first and second moment.
    count: u64,
    first: f64,
    second: f64,
}

impl Excess {
    /// -log10 of how improbable `r` is, 0 at or below the bound; then learns it.
    fn score(&mut self, r: f64) -> f64 {
        self.n += 1;
        let n = self.n as f64;
        let gain = 1.0 / n.min(4000.0);
        self.mean += gain * (r - self.mean);
        let above = r > self.bound;
        let score = if above && self.n >= 30 && self.count >= 3 { self.nines(r) } else { 0.0 };

        let mut excess = r - self.bound;
        if score > 5.0 {
            // An outlier must not teach that outliers are usual.
            let scale = self.first.max(0.01 * self.bound);
            excess = excess.min(scale * (5.0 + self.rate.log10()).max(1.0) * std::f64::consts::LN_10);
        }
        self.rate += gain * (f64::from(u8::from(above)) - self.rate);
        if above {
            self.count += 1;
            let gain = 1.0 / (self.count as f64).min((4000.0 * TAIL).max(20.0));
            self.first += gain * (excess - self.first);
            self.second += gain * (excess * excess - self.second);
        }
        let eta = if self.n < 200 { 0.5 / n.sqrt() } else { (2.0 * gain).max(0.5 / n.sqrt()) };
        let step = eta * self.mean;
        self.bound += if above { step * (1.0 - TAIL) } else { -step * TAIL };
        score
    }

    fn nines(&self, r: f64) -> f64 {
        let variance = self.second - self.first * self.first;
        let k = if variance > 0.0 { self.first * self.first / variance } else { f64::INFINITY };
        let mut xi = (1.0 - k) / 2.0;
        let mut scale = self.first * (1.0 + k) / 2.0;
        if xi < -0.1 {
            (xi, scale) = (-0.1, 1.1 * self.first);
        }
        let z = (r - self.bound) / scale.max(0.01 * self.bound).max(f64::MIN_POSITIVE);
        let natural = if xi.abs() < 1e-3 {
            z
        } else if 1.0 + xi * z <= 0.0 {
            92.0
        } else {
            (1.0 + xi * z).ln() / xi
        };
        (-self.rate.log10() + std::f64::consts::LOG10_E * natural).min(100.0)
    }
}

/// What is usual in each hour of the week, while that explains more than the slow average.
#[derive(Clone, Serialize, Deserialize)]
struct Profile {
    /// `hours[h]`: usual value in hour `h` of the week, and how many were seen.
    hours: Vec<(f32, u16)>,
    hour: usize,
    error: f64,
    error_slow: f64,
}

impl Profile {
    fn new() -> Self {
        Self { hours: vec![(0.0, 0); HOURS], hour: usize::MAX, error: 0.0, error_slow: 0.0 }
    }

    /// `x` less the profile, if the profile has proved itself.
    fn explain(&mut self, t: f64, x: f64, slow: f64, n: f64) -> Option<f64> {
        let hour = (t / 3600.0).rem_euclid(HOURS as f64) as usize % HOURS;
        let (usual, visits) = &mut self.hours[hour];
        let residual = x - f64::from(*usual);
        let known = *visits >= 2;
        let better = n > 100.0 && self.error < 0.8 * self.error_slow;
        if known {
            self.error += 0.005 * (residual.abs() - self.error);
            self.error_slow += 0.005 * ((x - slow).abs() - self.error_slow);
        }
        if hour != self.hour {
            self.hour = hour;
            *visits = visits.saturating_add(1);
        }
        *usual += ((1.0 / f64::from(*visits)).max(0.25) * residual) as f32;
        (known && better).then_some(residual)
    }
}

/// Makes of scores what a person can look at: 0 to 1, and after one only what is greater.
#[derive(Clone, Default)]
pub struct Refractory {
    left: u32,
    greatest: f64,
}

impl Refractory {
    /// The score to be shown.
    pub fn show(&mut self, score: f64) -> f64 {
        if self.left > 0 && score <= self.greatest {
            self.left -= 1;
            return 0.0;
        }
        self.left = self.left.saturating_sub(1);
        if score > 0.0 {
            (self.left, self.greatest) = (REFRACTORY, score);
        }
        (score / SCORE_MAX).min(1.0)
    }
}
