//! How often forecasts were right: each is scored when its time has come.
//!
//! An interval that holds the truth less often than it promises is widened until it does (adaptive
//! conformal inference: Gibbs and Candès 2021, arXiv:2106.00170). Scored at breaches only: an
//! interval says when, if at all.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Eta, Forecast};

/// Share of truths that intervals promise to hold.
pub const PROMISE: f64 = 0.8;
/// Leads that are remembered.
const LEADS: usize = 64;
/// Intervals of one warning that are remembered: one a minute, and of a long warning the latest.
const PENDING: usize = 64;
const EVERY_S: f64 = 60.0;
/// How fast intervals widen: the logarithm of the factor moves by this times the surprise of a
/// breach.
const GAIN: f64 = 0.25;
const WIDENING_MAX: f64 = 6.0;
/// Quiet for this long, a breach is over; before, it goes on.
const BREACH_OVER_S: f64 = 300.0;
/// A warning counts for a breach when it came so long before.
const LEAD_MIN_S: f64 = 60.0;

/// What forecasts were worth so far, over all limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrackRecord {
    /// Warnings that a breach followed.
    pub warnings_true: u64,
    /// Warnings that none followed in their time.
    pub warnings_false: u64,
    /// Breaches.
    pub breaches: u64,
    /// Breaches that were warned of a minute before and until they came.
    pub breaches_warned: u64,
    /// Intervals that held the truth.
    pub intervals_held: u64,
    /// Intervals whose truth is known.
    pub intervals: u64,
    /// How long the latest breaches were warned of, seconds.
    leads_s: VecDeque<f64>,
    /// Logarithm of the factor by which intervals are widened.
    widening_ln: f64,
}

impl TrackRecord {
    /// Share of warnings that a breach followed; `None` before the first was judged.
    pub fn precision(&self) -> Option<f64> {
        ratio(self.warnings_true, self.warnings_true + self.warnings_false)
    }

    /// Share of breaches that were warned of. A proxy of recall: of a breach that a warning
    /// prevented nothing is known.
    pub fn recall(&self) -> Option<f64> {
        ratio(self.breaches_warned, self.breaches)
    }

    /// Share of intervals that held the truth: [`PROMISE`] if they are honest.
    pub fn coverage(&self) -> Option<f64> {
        ratio(self.intervals_held, self.intervals)
    }

    /// Median lead of the latest warnings that came true, seconds.
    pub fn lead_s(&self) -> Option<f64> {
        let mut leads: Vec<f64> = self.leads_s.iter().copied().collect();
        leads.sort_unstable_by(f64::total_cmp);
        leads.get(leads.len() / 2).copied()
    }

    /// Factor by which intervals are widened, because they promised too much; 1: not at all.
    pub fn widening(&self) -> f64 {
        self.widening_ln.exp()
    }

    /// An interval as wide as the record demands. It widens on a logarithmic scale, around its
    /// median.
    pub fn widen(&self, eta: Eta) -> Eta {
        let widening = self.widening();
        if widening <= 1.0 || eta.mid <= 0.0 {
            return eta;
        }
        let away = |time: f64| eta.mid * (time.max(1.0) / eta.mid.max(1.0)).powf(widening);
        Eta { low: away(eta.low).min(eta.low), mid: eta.mid, high: away(eta.high).max(eta.high) }
    }

    fn breach(&mut self, lead_s: f64, held: usize, of: usize) {
        self.breaches += 1;
        if lead_s >= LEAD_MIN_S {
            self.breaches_warned += 1;
            self.leads_s.push_back(lead_s);
            if self.leads_s.len() > LEADS {
                self.leads_s.pop_front();
            }
        }
        if of > 0 {
            self.intervals_held += held as u64;
            self.intervals += of as u64;
            let missed = 1.0 - held as f64 / of as f64;
            let widened = self.widening_ln + GAIN * (missed - (1.0 - PROMISE));
            self.widening_ln = widened.clamp(0.0, WIDENING_MAX.ln());
        }
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// What has been said about one limit and is not yet known to be right or wrong.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Pending {
    warned_since: Option<f64>,
    /// A warning that ended without a breach counts as false from this time on.
    doubtful_until: Option<f64>,
    due: f64,
    /// `(made at, low, high)`.
    intervals: VecDeque<(f64, f64, f64)>,
    last_breached: Option<f64>,
    breached: bool,
}

impl Pending {
    /// What is foreseen and what is at `t` seconds; `forecast` as it was published. `horizon_s` is
    /// that of the limit.
    pub fn observe(
        &mut self,
        t: f64,
        forecast: Option<&Forecast>,
        breached: bool,
        horizon_s: f64,
        record: &mut TrackRecord,
    ) {
        let breaks = breached && self.last_breached.is_none_or(|last| t - last > BREACH_OVER_S);
        if breached {
            self.last_breached = Some(t);
        }
        if breaks {
            self.settle(t, record);
        }
        self.breached = breached;
        let warned = forecast.filter(|forecast| forecast.warn && !breached);
        match (warned, self.warned_since) {
            (Some(forecast), None) if self.last_breached.is_none_or(|last| t - last > BREACH_OVER_S) => {
                self.warned_since = Some(t);
                self.doubtful_until = None;
                let high = forecast.eta.map_or(f64::INFINITY, |eta| eta.high);
                self.due = t + high.min(1.5 * horizon_s);
            }
            (None, Some(_)) => {
                self.warned_since = None;
                self.intervals.clear();
                if !breached {
                    self.doubtful_until = Some(self.due.max(t));
                }
            }
            _ => {}
        }
        if self.doubtful_until.is_some_and(|until| t >= until) {
            self.doubtful_until = None;
            record.warnings_false += 1;
        }
        let fresh = self.intervals.back().is_some_and(|(made, ..)| t - made < EVERY_S);
        if let (Some(_), Some(eta), false) =
            (self.warned_since, warned.and_then(|forecast| forecast.eta), fresh)
        {
            if self.intervals.len() == PENDING {
                self.intervals.pop_front();
            }
            self.intervals.push_back((t, eta.low, eta.high));
        }
    }

    /// The breach has come.
    fn settle(&mut self, t: f64, record: &mut TrackRecord) {
        if self.warned_since.is_some() || self.doubtful_until.take().is_some() {
            record.warnings_true += 1;
        }
        let lead_s = self.warned_since.take().map_or(0.0, |since| t - since);
        // In the last minute everybody knows.
        let due = self.intervals.iter().filter(|(made, ..)| t - made >= EVERY_S);
        let (mut held, mut of) = (0, 0);
        for (made, low, high) in due {
            of += 1;
            held += usize::from((*low..=*high).contains(&(t - made)));
        }
        self.intervals.clear();
        record.breach(lead_s, held, of);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(warn: bool, low: f64, high: f64) -> Forecast {
        Forecast { p: 0.9, eta: Some(Eta { low, mid: f64::midpoint(low, high), high }), warn }
    }

    #[test]
    fn a_warning_that_comes_true_and_one_that_does_not() {
        let (mut pending, mut record) = (Pending::default(), TrackRecord::default());
        for second in 0..=1000u32 {
            let t = f64::from(second);
            // Honest at first, then 20 % too early.
            let left = 1000.0 - t;
            let forecast = said(
                t >= 400.0,
                left * if t < 700.0 { 0.9 } else { 0.7 },
                left * if t < 700.0 { 1.1 } else { 0.9 },
            );
            pending.observe(t, Some(&forecast), t >= 1000.0, 1800.0, &mut record);
        }
        assert_eq!((record.breaches, record.breaches_warned, record.warnings_true), (1, 1, 1));
        assert_eq!(record.lead_s(), Some(600.0));
        assert_eq!((record.intervals_held, record.intervals), (5, 10));
        assert!(record.widening() > 1.0);
        // It flaps around the limit: one breach.
        for second in 1001..1100u32 {
            pending.observe(
                f64::from(second),
                Some(&said(true, 0.0, 1.0)),
                second % 7 == 0,
                1800.0,
                &mut record,
            );
        }
        assert_eq!((record.breaches, record.warnings_true), (1, 1));
        // A warning for 100 s of a breach in 200 s that never comes.
        for second in 2000..2400u32 {
            pending.observe(
                f64::from(second),
                Some(&said(second < 2100, 150.0, 200.0)),
                false,
                1800.0,
                &mut record,
            );
            assert_eq!(record.warnings_false, u64::from(second >= 2200), "{second}");
        }
        assert_eq!(record.precision(), Some(0.5));
    }

    #[test]
    fn intervals_widen_until_they_hold_what_they_promise() {
        let mut record = TrackRecord::default();
        let mut missed = 0;
        for breach in 0..400u32 {
            // The truth is off by up to a factor of 3 either way, the interval says 1.2.
            let truth = 100.0 * 3f64.powf(f64::from(breach * 37 % 100) / 50.0 - 1.0);
            let eta = record.widen(Eta { low: 100.0 / 1.2, mid: 100.0, high: 120.0 });
            let held = (eta.low..=eta.high).contains(&truth);
            missed += u32::from(breach >= 100 && !held);
            record.breach(100.0, usize::from(held), 1);
        }
        let coverage = 1.0 - f64::from(missed) / 300.0;
        assert!((0.75..0.85).contains(&coverage), "{coverage}");
    }

    #[test]
    fn honest_intervals_stay_as_they_are() {
        let mut record = TrackRecord::default();
        for breach in 0..100 {
            record.breach(100.0, usize::from(breach % 5 != 4), 1);
        }
        let eta = Eta { low: 80.0, mid: 100.0, high: 130.0 };
        let widened = record.widen(eta);
        assert!(widened.low > 60.0 && widened.high < 180.0, "{widened:?}");
        assert_eq!(TrackRecord::default().widen(eta), eta);
    }
}
