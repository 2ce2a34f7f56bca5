//! How well somebody foresaw.

use std::time::Duration;

use tickscope_core::Limit;

use crate::rival::{Record, Rival, Said};
use crate::trace::Trace;

/// Over many traces.
#[derive(Clone, Default)]
pub struct Score {
    /// Seconds of uninterrupted warning before each breach; 0 without.
    pub leads: Vec<f64>,
    /// Kind of each breach.
    pub kinds: Vec<&'static str>,
    /// False warnings, by kind of the quiet day.
    pub false_warnings: Vec<(&'static str, u32)>,
    /// Relative errors of the eta, once a minute while warned.
    pub errors: Vec<f64>,
    /// Of how many such etas the interval held the truth, and of how many there was one.
    pub covered: (u32, u32),
    /// The same of each breach.
    pub covered_each: Vec<(u32, u32)>,
    /// Samples, and the time they took.
    pub cost: (u64, Duration),
}

/// Of one contender on these traces.
pub fn of<'a>(make: fn(Limit, &Record) -> Box<dyn Rival>, traces: impl Iterator<Item = &'a Trace>) -> Score {
    let record = Record::default();
    let mut score = Score::default();
    for trace in traces {
        score.add(trace, make(trace.limit, &record).as_mut());
    }
    score
}

impl Score {
    /// One more trace.
    pub fn add(&mut self, trace: &Trace, rival: &mut dyn Rival) {
        let breach = trace.breach();
        let end = breach.map_or(trace.values.len(), |at| at + 1);
        let began = std::time::Instant::now();
        let said: Vec<Said> =
            trace.values[..end].iter().enumerate().map(|(t, y)| rival.push(t as f64, *y)).collect();
        self.cost.0 += end as u64;
        self.cost.1 += began.elapsed();
        let Some(breach) = breach else {
            let rises = said.windows(2).filter(|pair| pair[1].warn && !pair[0].warn).count();
            self.false_warnings.push((trace.kind, rises as u32));
            return;
        };
        // Of the breach itself it is too late to warn.
        let warned = said[..breach].iter().rev().take_while(|said| said.warn).count();
        self.leads.push(warned as f64);
        self.kinds.push(trace.kind);
        let before = self.covered;
        for t in (breach - warned..breach.saturating_sub(60)).filter(|t| t % 60 == 0) {
            let left = (breach - t) as f64;
            if let Some(eta) = said[t].eta {
                self.errors.push((eta - left).abs() / left);
            }
            if let Some((low, high)) = said[t].interval {
                self.covered.0 += u32::from((low..=high).contains(&left));
                self.covered.1 += 1;
            }
        }
        self.covered_each.push((self.covered.0 - before.0, self.covered.1 - before.1));
    }

    /// Share of breaches that were warned of for at least `seconds` without a break.
    pub fn recall(&self, seconds: f64) -> f64 {
        self.leads.iter().filter(|lead| **lead >= seconds).count() as f64 / self.leads.len() as f64
    }

    /// False warnings a quiet day.
    pub fn false_a_day(&self) -> f64 {
        let sum: u32 = self.false_warnings.iter().map(|(_, count)| count).sum();
        f64::from(sum) / self.false_warnings.len() as f64
    }

    /// Median of the leads, seconds.
    pub fn lead(&self) -> f64 {
        median(&self.leads)
    }

    /// Median relative error of the eta.
    pub fn error(&self) -> f64 {
        median(&self.errors)
    }

    /// Share of intervals that held the truth.
    pub fn coverage(&self) -> Option<f64> {
        (self.covered.1 > 0).then(|| f64::from(self.covered.0) / f64::from(self.covered.1))
    }

    /// Microseconds a sample.
    pub fn cost_us(&self) -> f64 {
        self.cost.1.as_secs_f64() * 1e6 / self.cost.0 as f64
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
