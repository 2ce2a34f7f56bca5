//! A series with a known period: its profile is forecast, bucket by bucket.

use super::normal;
use super::warning::{Belief, Eta, Hits};

/// Buckets of a period.
const BUCKETS: usize = 120;
/// Probability from which on a forecast is a hit.
const HIT: f64 = 0.6;

/// The profile of a period and how it grows. 4.7 KiB.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
pub struct Season {
    /// Samples in a bucket.
    width: f64,
    buckets: Vec<Bucket>,
    /// The bucket that fills, and its greatest sustained value.
    open: Option<(usize, f64)>,
    /// Scale of what the profile does not explain.
    residual: f64,
    /// How far all buckets lie above their forecasts lately.
    common: f64,
    hits: Hits,
    belief: Option<Belief>,
}

#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
struct Bucket {
    /// At its latest visit.
    value: f64,
    /// Growth per period.
    growth: f64,
    /// Scale of the growth's error.
    error: f64,
    visits: u32,
}

impl Season {
    /// Nothing known of a season of `period` samples.
    pub fn new(period: f64) -> Self {
        Self {
            width: period / BUCKETS as f64,
            buckets: vec![Bucket::default(); BUCKETS],
            open: None,
            residual: 0.0,
            common: 0.0,
            hits: Hits::default(),
            belief: None,
        }
    }

    /// One more sample, at `clock` samples. Whether a bucket ended.
    pub fn push(&mut self, sustained: f64, clock: f64, limit: f64, horizon: f64) -> bool {
        let now = (clock / self.width) as usize % BUCKETS;
        match &mut self.open {
            Some((bucket, peak)) if *bucket == now => {
                *peak = peak.max(sustained);
                false
            }
            Some((bucket, peak)) => {
                let (ended, peak) = (*bucket, *peak);
                self.open = Some((now, sustained));
                self.learn(ended, peak);
                self.look_ahead(now, limit, horizon);
                true
            }
            None => {
                self.open = Some((now, sustained));
                false
            }
        }
    }

    /// A gap: the bucket that filled is not whole.
    pub fn gap(&mut self) {
        self.open = None;
    }

    /// What is believed; `None` before a bucket was seen twice.
    pub fn belief(&self) -> Option<Belief> {
        self.belief
    }

    fn learn(&mut self, index: usize, peak: f64) {
        let bucket = &mut self.buckets[index];
        let visits = bucket.visits;
        let k = f64::from(visits);
        if visits > 0 {
            let growth = peak - bucket.value;
            let surprise = (growth - bucket.growth).abs();
            if visits == 1 {
                bucket.error = growth.abs();
            } else {
                bucket.error += (1.0 / k).max(0.3) * (1.25 * surprise - bucket.error);
            }
            bucket.growth += (1.0 / k).max(0.3) * (growth - bucket.growth);
            self.residual += 0.02 * (surprise - self.residual);
            let bound = 4.0 * self.residual;
            self.common += 0.1 * ((growth - bucket.growth).clamp(-bound, bound) - self.common);
        }
        bucket.value = peak;
        bucket.visits = visits.saturating_add(1);
    }

    fn look_ahead(&mut self, now: usize, limit: f64, horizon: f64) {
        let ahead = ((horizon / self.width) as usize).min(BUCKETS);
        let breach = |j: usize| {
            let bucket = &self.buckets[(now + j) % BUCKETS];
            if bucket.visits < 2 {
                return None;
            }
            let mean = bucket.value + bucket.growth + self.common / 2.0;
            let scale = (bucket.error * (1.0 + 2.0 / f64::from(bucket.visits)))
                .max(0.7 * self.residual)
                .max(0.02 * bucket.value.abs());
            Some(normal::cdf((mean - limit) / (0.6 * scale + 1e-9)))
        };
        let Some(p) = (0..=ahead).filter_map(breach).reduce(f64::max) else {
            self.belief = None;
            return;
        };
        let first = |share: f64| {
            let at = (0..=ahead).find(|j| breach(*j).is_some_and(|here| here >= share * p));
            at.unwrap_or(0) as f64 * self.width
        };
        let eta = (p >= 0.02).then(|| Eta {
            low: (first(0.1) - self.width).max(0.0),
            mid: first(0.5) + self.width / 2.0,
            high: first(0.9) + 2.0 * self.width,
        });
        self.hits.judge(p, HIT);
        self.belief = Some(Belief { p, eta, fires: self.hits.fire() });
    }
}
