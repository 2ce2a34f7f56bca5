//! When a series will cross its limit.
//!
//! A Bayesian average of trend shapes on a pyramid of block medians, corrected by the errors of its
//! own past forecasts; with a known period, a profile of it instead. Start with [`Forecaster`].

mod normal;
mod pyramid;
mod record;
mod season;
mod shape;
mod warning;

use serde::{Deserialize, Serialize};

use pyramid::{Pyramid, Question, TREND_AGE_MIN_S};
pub use record::{PROMISE, Pending, TrackRecord};
use season::Season;
pub use shape::Effort;
pub use warning::Eta;
use warning::{Belief, Warning};

/// Which side of the limit is bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// More than the limit.
    #[default]
    Above,
    /// Less.
    Below,
}

/// What is to be foreseen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// Value that must not be crossed.
    pub value: f64,
    /// From which side.
    pub direction: Direction,
    /// How far ahead a breach matters, seconds.
    pub horizon_s: f64,
    /// Time between two samples, seconds.
    pub step_s: f64,
    /// Period of the season, seconds: a trading session, a day.
    pub period_s: Option<f64>,
}

impl Limit {
    /// Horizon without another.
    pub const HORIZON_S: f64 = 1800.0;
}

/// What is foreseen at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// Probability of a breach within the horizon.
    pub p: f64,
    /// When, seconds from now; `None` when it is too unlikely to say.
    pub eta: Option<Eta>,
    /// Whether to warn.
    pub warn: bool,
}

/// Samples that may be missing without consequence.
const MISSING_MAX: f64 = 10.0;
/// In a gap longer than this, seconds, there is no forecast.
const SILENCE_S: f64 = 60.0;
/// Values beyond this in size are taken as this, so that no square overflows.
const SIZE_MAX: f64 = 1e60;

/// Foresees when one series crosses one limit. 3.5 KiB, and 4.7 KiB more with a season; nothing is
/// allocated per sample without one.
#[derive(Clone, Serialize, Deserialize)]
pub struct Forecaster {
    limit: Limit,
    effort: Effort,
    noise: Noise,
    recent: Recent,
    model: Model,
    warning: Warning,
    belief: Option<Belief>,
    /// Time of the latest sample, seconds.
    last_t: Option<f64>,
    /// Time in samples: counts them, and jumps over gaps.
    clock: f64,
    counts: Counts,
}

/// What became of samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Used.
    pub used: u64,
    /// Without a number.
    pub missing: u64,
    /// Not later than the one before.
    pub discarded: u64,
}

const _: () = assert!(Forecaster::BYTES <= 3600);

#[derive(Clone, Serialize, Deserialize)]
enum Model {
    Trend(Box<Pyramid>),
    Season(Season),
}

impl Forecaster {
    /// Memory of one without a season.
    pub const BYTES: usize = size_of::<Self>() + size_of::<Pyramid>();

    /// Nothing known yet.
    pub fn new(limit: Limit, effort: Effort) -> Self {
        let model = match limit.period_s {
            Some(period) => Model::Season(Season::new(period / limit.step_s)),
            None => Model::Trend(Box::new(Pyramid::new())),
        };
        Self {
            limit,
            effort,
            noise: Noise::default(),
            recent: Recent::default(),
            model,
            warning: Warning::default(),
            belief: None,
            last_t: None,
            clock: 0.0,
            counts: Counts::default(),
        }
    }

    /// A sample at `t` seconds; `None` or not a number is a missing one. What is foreseen now:
    /// `None` is "not known", never "no breach".
    pub fn push(&mut self, t: f64, value: Option<f64>) -> Option<Forecast> {
        let value = value.filter(|value| value.is_finite());
        if !t.is_finite() || self.last_t.is_some_and(|last| t <= last) {
            self.counts.discarded += 1;
            return self.forecast(self.last_t?);
        }
        let Some(value) = value else {
            self.counts.missing += 1;
            return self.forecast(t);
        };
        if let Some(last) = self.last_t {
            let missing = ((t - last) / self.limit.step_s).round() - 1.0;
            if missing > MISSING_MAX {
                self.gap(missing);
            }
        }
        self.last_t = Some(t);
        self.counts.used += 1;
        let value = value.clamp(-SIZE_MAX, SIZE_MAX);
        match self.limit.direction {
            Direction::Above => self.sample(value, self.limit.value),
            Direction::Below => self.sample(-value, -self.limit.value),
        }
        self.clock += 1.0;
        self.forecast(t)
    }

    /// What was foreseen last, seen from `t`.
    pub fn forecast(&self, t: f64) -> Option<Forecast> {
        let silence_max = SILENCE_S.max(MISSING_MAX * self.limit.step_s);
        if self.last_t.is_none_or(|last| t - last > silence_max) {
            return None;
        }
        let Belief { p, eta, .. } = self.belief?;
        let eta = eta.map(|eta| eta.scale(self.limit.step_s));
        Some(Forecast { p, eta, warn: self.warning.on() })
    }

    /// What became of the samples so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether the limit is breached now: at least 8 of the last 10 samples are beyond it.
    pub fn breached(&self) -> bool {
        match self.limit.direction {
            Direction::Above => self.recent.sustained() > self.limit.value,
            Direction::Below => self.recent.sustained() > -self.limit.value,
        }
    }

    /// The process behind the series is another one: what it did says nothing about this one.
    pub fn restart(&mut self) {
        self.recent = Recent::default();
        if let Model::Trend(pyramid) = &mut self.model {
            **pyramid = Pyramid::new();
            self.belief = None;
            self.warning.end();
        }
    }

    fn gap(&mut self, missing: f64) {
        self.clock += missing;
        self.recent = Recent::default();
        match &mut self.model {
            Model::Trend(pyramid) => {
                pyramid.gap(missing);
                self.belief = pyramid.belief(self.clock);
            }
            Model::Season(season) => season.gap(),
        }
        if self.belief.is_none() {
            self.warning.end();
        }
    }

    fn sample(&mut self, y: f64, limit: f64) {
        self.noise.push(y);
        let sustained = self.recent.push(y);
        let step = self.limit.step_s;
        let horizon = self.limit.horizon_s / step;
        match &mut self.model {
            Model::Trend(pyramid) => {
                let question = Question {
                    limit,
                    horizon,
                    trend_age_min: TREND_AGE_MIN_S / step,
                    sigma: self.noise.sigma,
                    hit: self.warning.hit(),
                    effort: self.effort,
                    clock: self.clock,
                };
                if pyramid.push(y, sustained, &question) {
                    self.belief = pyramid.belief(self.clock);
                    if let Some(belief) = &self.belief {
                        self.warning.remember(belief, self.clock, 4.0, horizon, SILENCE_S / step);
                        self.warning.update(belief);
                    }
                }
            }
            // Before the third sample nothing has lasted.
            Model::Season(season) => {
                if sustained.is_finite() && season.push(sustained, self.clock, limit, horizon) {
                    self.belief = season.belief();
                    if let Some(belief) = &self.belief {
                        self.warning.update(belief);
                    }
                }
            }
        }
    }
}

/// Size of the noise, from differences of neighbours, so that a trend does not count.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Noise {
    sigma: f64,
    last: f64,
    n: u32,
}

impl Noise {
    fn push(&mut self, y: f64) {
        self.n = self.n.saturating_add(1);
        let mut step = if self.n == 1 { 0.0 } else { (y - self.last).abs() };
        if self.n >= 50 {
            step = step.min(4.0 * self.sigma);
        }
        self.last = y;
        // sqrt(pi)/2: the mean absolute difference of two normals is 2/sqrt(pi) deviations.
        self.sigma += (1.0 / f64::from(self.n)).max(0.01) * (0.886 * step - self.sigma);
    }
}

/// The last ten samples.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Recent {
    samples: [f64; 10],
    len: usize,
    next: usize,
}

impl Recent {
    fn push(&mut self, y: f64) -> f64 {
        self.samples[self.next] = y;
        self.next = (self.next + 1) % self.samples.len();
        self.len = (self.len + 1).min(self.samples.len());
        self.sustained()
    }

    /// The third smallest: eight of ten are not below it. Minus infinity before the third.
    fn sustained(&self) -> f64 {
        let mut smallest = [f64::INFINITY; 3];
        for y in &self.samples[..self.len] {
            let mut y = *y;
            for place in &mut smallest {
                if y < *place {
                    std::mem::swap(place, &mut y);
                }
            }
        }
        if self.len < 3 { f64::NEG_INFINITY } else { smallest[2] }
    }
}
