//! What others use to foresee a breach, on the same traces.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tickscope_core::{Direction, Effort, Forecaster, Limit, Pending, TrackRecord};

/// What is said of one sample.
#[derive(Clone, Copy, Default)]
pub struct Said {
    /// Whether to warn.
    pub warn: bool,
    /// When it breaches, seconds from now.
    pub eta: Option<f64>,
    /// The 80 % interval of that.
    pub interval: Option<(f64, f64)>,
}

/// Foresees, a sample a second.
pub trait Rival {
    /// One more sample.
    fn push(&mut self, t: f64, value: f64) -> Said;
}

/// The record of all traces so far.
pub type Record = Rc<RefCell<TrackRecord>>;

/// A name, and how one is made for a limit.
pub type Contender = (&'static str, fn(Limit, &Record) -> Box<dyn Rival>);

/// All of them, ours first.
pub const CONTENDERS: &[Contender] = &[
    ("tickscope", |limit, _| Box::new(Ours(Forecaster::new(limit, Effort::Full)))),
    ("tickscope, with its record", |limit, record| Box::new(Recorded::new(limit, record))),
    ("tickscope, lite", |limit, _| Box::new(Ours(Forecaster::new(limit, Effort::Lite)))),
    ("predict_linear 450 s, for 60 s", |limit, _| Box::new(PredictLinear::new(limit, 450, 60))),
    ("predict_linear 900 s, for 60 s", |limit, _| Box::new(PredictLinear::new(limit, 900, 60))),
    ("predict_linear 1800 s, for 300 s", |limit, _| Box::new(PredictLinear::new(limit, 1800, 300))),
    ("Theil-Sen, 32 blocks of 20 s", |limit, _| Box::new(TheilSen::new(limit))),
    ("Holt, damped", |limit, _| Box::new(Holt::new(limit))),
    ("80 % of the way to the limit", |limit, _| Box::new(Level::new(limit))),
];

struct Ours(Forecaster);

impl Rival for Ours {
    fn push(&mut self, t: f64, value: f64) -> Said {
        self.0.push(t, Some(value)).map_or_else(Said::default, |forecast| Said {
            warn: forecast.warn,
            eta: forecast.eta.map(|eta| eta.mid),
            interval: forecast.eta.map(|eta| (eta.low, eta.high)),
        })
    }
}

/// Ours as the daemon runs it: one record of all limits, which widens what promised too much.
struct Recorded {
    limit: Limit,
    forecaster: Forecaster,
    pending: Pending,
    record: Record,
}

impl Recorded {
    fn new(limit: Limit, record: &Record) -> Self {
        let forecaster = Forecaster::new(limit, Effort::Full);
        Self { limit, forecaster, pending: Pending::default(), record: record.clone() }
    }
}

impl Rival for Recorded {
    fn push(&mut self, t: f64, value: f64) -> Said {
        let record = &mut *self.record.borrow_mut();
        let mut forecast = self.forecaster.push(t, Some(value));
        if let Some(forecast) = &mut forecast {
            forecast.eta = forecast.eta.map(|eta| record.widen(eta));
        }
        let breached = self.forecaster.breached();
        self.pending.observe(t, forecast.as_ref(), breached, self.limit.horizon_s, record);
        forecast.map_or_else(Said::default, |forecast| Said {
            warn: forecast.warn,
            eta: forecast.eta.map(|eta| eta.mid),
            interval: forecast.eta.map(|eta| (eta.low, eta.high)),
        })
    }
}

/// The value and the limit as if above were bad.
fn upright(limit: &Limit, value: f64) -> (f64, f64) {
    match limit.direction {
        Direction::Above => (value, limit.value),
        Direction::Below => (-value, -limit.value),
    }
}

/// A warning that must be true for some time, as `for` in an alerting rule.
struct For {
    seconds: u32,
    since: u32,
}

impl For {
    fn new(seconds: u32) -> Self {
        Self { seconds, since: 0 }
    }

    fn warn(&mut self, now: bool) -> bool {
        self.since = if now { self.since + 1 } else { 0 };
        self.since > self.seconds
    }
}

/// When a line reaches the limit.
fn line(distance: f64, slope: f64, horizon: f64) -> (bool, Option<f64>) {
    let eta = if distance <= 0.0 { Some(0.0) } else { (slope > 0.0).then(|| distance / slope) };
    (eta.is_some_and(|eta| eta <= horizon), eta)
}

/// Prometheus' `predict_linear(x[window], horizon) > limit`, with its least squares.
struct PredictLinear {
    limit: Limit,
    window: usize,
    values: VecDeque<f64>,
    hold: For,
}

impl PredictLinear {
    fn new(limit: Limit, window: usize, seconds: u32) -> Self {
        Self { limit, window, values: VecDeque::new(), hold: For::new(seconds) }
    }
}

impl Rival for PredictLinear {
    fn push(&mut self, _: f64, value: f64) -> Said {
        let (y, limit) = upright(&self.limit, value);
        self.values.push_back(y);
        if self.values.len() > self.window {
            self.values.pop_front();
        }
        let n = self.values.len() as f64;
        let centre = (n - 1.0) / 2.0;
        let mean = self.values.iter().sum::<f64>() / n;
        let moment: f64 = self.values.iter().enumerate().map(|(i, y)| (i as f64 - centre) * (y - mean)).sum();
        let slope = if n > 1.0 { moment / (n * (n * n - 1.0) / 12.0) } else { 0.0 };
        let (reached, eta) = line(limit - (mean + slope * centre), slope, self.limit.horizon_s);
        let warn = self.hold.warn(reached);
        Said { warn, eta, ..Said::default() }
    }
}

/// The median of all slopes between medians of 20 s (Theil 1950, Sen 1968).
struct TheilSen {
    limit: Limit,
    open: Vec<f64>,
    blocks: VecDeque<f64>,
    hold: For,
    said: Said,
}

impl TheilSen {
    fn new(limit: Limit) -> Self {
        Self { limit, open: Vec::new(), blocks: VecDeque::new(), hold: For::new(2), said: Said::default() }
    }
}

fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

impl Rival for TheilSen {
    fn push(&mut self, _: f64, value: f64) -> Said {
        let (y, limit) = upright(&self.limit, value);
        self.open.push(y);
        if self.open.len() < 20 {
            return self.said;
        }
        self.blocks.push_back(median(&mut self.open));
        self.open.clear();
        if self.blocks.len() > 32 {
            self.blocks.pop_front();
        }
        if self.blocks.len() < 10 {
            return self.said;
        }
        let blocks: Vec<f64> = self.blocks.iter().copied().collect();
        let slope_between = |i: usize, j: usize| (blocks[j] - blocks[i]) / (j - i) as f64;
        let pairs = (0..blocks.len()).flat_map(|j| (0..j).map(move |i| (i, j)));
        let mut slopes: Vec<f64> = pairs.map(|(i, j)| slope_between(i, j)).collect();
        let slope = median(&mut slopes);
        let last = blocks.len() - 1;
        let mut levels: Vec<f64> =
            blocks.iter().enumerate().map(|(i, y)| y + slope * (last - i) as f64).collect();
        let level = median(&mut levels);
        let (reached, eta) = line(limit - level, slope / 20.0, self.limit.horizon_s);
        // Where other quantiles of the slopes reach it.
        let quantile = |share: f64| {
            let mut slopes = slopes.clone();
            let at = (share * (slopes.len() - 1) as f64) as usize;
            *slopes.select_nth_unstable_by(at, f64::total_cmp).1 / 20.0
        };
        let reach = |slope: f64| line(limit - level, slope, f64::INFINITY).1.unwrap_or(f64::INFINITY);
        let interval = Some((reach(quantile(0.9)), reach(quantile(0.1))));
        self.said = Said { warn: self.hold.warn(reached), eta, interval };
        self.said
    }
}

/// Exponential smoothing of level and trend, the trend damped (Holt 1957; Gardner and McKenzie
/// 1985).
struct Holt {
    limit: Limit,
    level: f64,
    trend: f64,
    n: u32,
    hold: For,
}

impl Holt {
    const ALPHA: f64 = 0.02;
    const BETA: f64 = 0.005;
    const DAMPING: f64 = 0.9995;

    fn new(limit: Limit) -> Self {
        Self { limit, level: 0.0, trend: 0.0, n: 0, hold: For::new(60) }
    }
}

impl Rival for Holt {
    fn push(&mut self, _: f64, value: f64) -> Said {
        let (y, limit) = upright(&self.limit, value);
        self.n += 1;
        if self.n == 1 {
            self.level = y;
            return Said::default();
        }
        let before = self.level;
        self.level = Self::ALPHA * y + (1.0 - Self::ALPHA) * (self.level + Self::DAMPING * self.trend);
        self.trend = Self::BETA * (self.level - before) + (1.0 - Self::BETA) * Self::DAMPING * self.trend;
        if self.n < 120 {
            return Said::default();
        }
        let distance = limit - self.level;
        // The damped trend sums to trend (1 - d^h) / (1 - d).
        let share = distance * (1.0 - Self::DAMPING) / self.trend;
        let eta = if distance <= 0.0 {
            Some(0.0)
        } else if self.trend > 0.0 && share < 1.0 {
            Some((1.0 - share).ln() / Self::DAMPING.ln())
        } else {
            None
        };
        let warn = self.hold.warn(eta.is_some_and(|eta| eta <= self.limit.horizon_s));
        Said { warn, eta, ..Said::default() }
    }
}

/// A static threshold: 80 % of the way from where the series was in its first ten minutes.
struct Level {
    limit: Limit,
    base: f64,
    n: f64,
    hold: For,
}

impl Level {
    fn new(limit: Limit) -> Self {
        Self { limit, base: 0.0, n: 0.0, hold: For::new(60) }
    }
}

impl Rival for Level {
    fn push(&mut self, _: f64, value: f64) -> Said {
        let (y, limit) = upright(&self.limit, value);
        if self.n < 600.0 {
            self.n += 1.0;
            self.base += (y - self.base) / self.n;
            return Said::default();
        }
        let warn = self.hold.warn(y > self.base + 0.8 * (limit - self.base));
        Said { warn, ..Said::default() }
    }
}
