//! From a probability to a warning that neither flaps nor cries wolf.

use serde::{Deserialize, Serialize};

/// When a limit is crossed: quantiles of the time until then. Samples inside, seconds outside.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Eta {
    /// 10 % quantile.
    pub low: f64,
    /// Median.
    pub mid: f64,
    /// 90 % quantile.
    pub high: f64,
}

impl Eta {
    /// In another unit.
    pub(super) fn scale(self, factor: f64) -> Self {
        Self { low: self.low * factor, mid: self.mid * factor, high: self.high * factor }
    }

    /// As seen `elapsed` later.
    pub(super) fn later(self, elapsed: f64) -> Self {
        let at = |time: f64| (time - elapsed).max(0.0);
        Self { low: at(self.low), mid: at(self.mid), high: at(self.high) }
    }

    /// Width beside its size.
    pub(super) fn spread(self) -> f64 {
        (self.high - self.low) / self.mid.max(1.0)
    }
}

/// What is believed at one moment.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Belief {
    /// Probability of a breach within the horizon.
    pub p: f64,
    /// When.
    pub eta: Option<Eta>,
    /// Whether it is believed firmly enough for a warning.
    pub fires: bool,
}

/// Forecasts in a row that were likely enough.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Hits(u32);

impl Hits {
    /// One more forecast.
    pub fn judge(&mut self, p: f64, hit: f64) {
        if p >= hit {
            self.0 = self.0.saturating_add(1);
        } else if p < hit / 2.0 {
            self.0 = 0;
        }
    }

    /// None.
    pub fn clear(&mut self) {
        self.0 = 0;
    }

    /// Enough for a warning.
    pub fn fire(self) -> bool {
        self.0 >= 2
    }
}

/// Below this a warning is on its way out, and a prediction has failed.
const QUIET: f64 = 0.3;
/// Quiet outputs that end a warning.
const QUIET_OUTPUTS: u32 = 3;
/// By this a false alarm's memory fades, each sample.
const FORGET: f64 = 0.99995;

/// The warning of one series.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Warning {
    on: bool,
    quiet: u32,
    reputation: Reputation,
}

/// False alarms that are remembered.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Reputation {
    /// How many, faded.
    missed: f64,
    /// When the pending prediction is due, samples.
    due: Option<f64>,
}

impl Warning {
    /// Whether it is on.
    pub fn on(&self) -> bool {
        self.on
    }

    /// Probability from which on a forecast is a hit: 0.6, and more after false alarms.
    pub fn hit(&self) -> f64 {
        1.0 - 0.4 * 0.3f64.powf(self.reputation.missed)
    }

    /// Nothing is known any more.
    pub fn end(&mut self) {
        self.on = false;
        self.quiet = 0;
    }

    /// One more output.
    pub fn update(&mut self, belief: &Belief) {
        if belief.fires {
            self.on = true;
        }
        self.quiet = if belief.p < QUIET { self.quiet + 1 } else { 0 };
        if self.quiet >= QUIET_OUTPUTS {
            self.on = false;
        }
    }

    /// Remembers what was foretold, and what became of it. `minute` is one in samples.
    pub fn remember(&mut self, belief: &Belief, clock: f64, samples: f64, horizon: f64, minute: f64) {
        let Reputation { missed, due } = &mut self.reputation;
        *missed *= FORGET.powf(samples);
        if let Some(at) = *due
            && clock > at
        {
            if belief.p < QUIET {
                *missed = (*missed + 1.0).min(5.0);
                *due = None;
            } else {
                *due = Some(clock + minute);
            }
        }
        if belief.fires && due.is_none() {
            let high = belief.eta.map_or(f64::INFINITY, |eta| eta.high);
            *due = Some(clock + high.min(1.5 * horizon));
        }
    }
}
