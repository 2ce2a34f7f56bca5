//! Latency distributions that are not what they were: slower, of another shape, with other tails.
//!
//! Recent histograms are compared with an hour's reference and with this time of day's; each
//! difference is measured in units of its own usual size (Wasserstein-1 in log latency: Ramdas et
//! al. 2017, arXiv:1509.02237; change in streams: Kifer, Ben-David and Gehrke 2004; clipping: Huber
//! 1981). Better is not unusual: only positive differences score, and any change of shape.

use serde::{Deserialize, Serialize};

/// Features: mean log slow-down, distance, and how much more often four quantiles are exceeded.
pub const FEATURES: usize = 6;
/// The quantiles.
pub const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];
/// Half-lives of recent counts, ticks.
const RECENT: [f64; 2] = [3.0, 18.0];
/// Ticks that wait before references learn them, so that a fault is not compared with itself.
const DELAY: usize = 36;
/// Half-life of the slow reference, ticks.
const SLOW: f64 = 360.0;
/// Ticks before anything is scored.
const WARM_UP: u64 = 96;
/// Fewer observations than this say nothing about a distribution.
const COUNT_MIN: u64 = 20;
const REFERENCES: usize = 2;

/// Scores one histogram over time.
#[derive(Clone, Serialize, Deserialize)]
pub struct Shift {
    /// Logarithm of a bucket's width.
    width: f64,
    buckets: usize,
    slot_s: f64,
    ticks: u64,
    recent: [Vec<f64>; RECENT.len()],
    /// The last [`DELAY`] ticks' shares and slots, a ring.
    delay: Vec<f32>,
    delay_slots: Vec<usize>,
    slow: Reference,
    slots: Vec<Slot>,
    slot: usize,
    scales: Scales,
}

/// One histogram's score, `d` of the short window against the slow reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shifted {
    /// The greatest standardised difference of all, and that of the short window only.
    pub score: f64,
    /// Short window only: tells that it is over.
    pub short: f64,
    /// `d[f]`: feature `f`, not standardised. 0: mean of ln(now/then); 1: distance in ln; then of
    /// each quantile, ln of how many times as often it is exceeded.
    pub d: [f64; FEATURES],
}

#[derive(Clone, Serialize, Deserialize)]
struct Reference {
    shares: Vec<f32>,
    n: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct Slot {
    reference: Reference,
    scales: Scales,
    visits: u32,
}

/// Usual value and size of every difference: `[window][reference][feature]`.
type Scales = [[[Scale; FEATURES]; REFERENCES]; RECENT.len()];

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Scale {
    mean: f32,
    deviation: f32,
    n: u32,
}

impl Shift {
    /// For histograms of `buckets` buckets, each `width` wide in natural logarithm, and days of
    /// `slots` slots.
    pub fn new(buckets: usize, width: f64, slots: usize) -> Self {
        let reference = Reference { shares: vec![0.0; buckets], n: 0 };
        let slot = Slot { reference: reference.clone(), scales: Scales::default(), visits: 0 };
        Self {
            width,
            buckets,
            slot_s: 86_400.0 / slots as f64,
            ticks: 0,
            recent: std::array::from_fn(|_| vec![0.0; buckets]),
            delay: vec![0.0; DELAY * buckets],
            delay_slots: vec![0; DELAY],
            slow: reference,
            slots: vec![slot; slots],
            slot: usize::MAX,
            scales: Scales::default(),
        }
    }

    /// Memory of one, bytes.
    pub fn bytes(&self) -> usize {
        let slot = size_of::<Slot>() + 4 * self.buckets;
        size_of::<Self>() + (16 + 4 * DELAY + 4) * self.buckets + slot * self.slots.len()
    }

    /// Scores the counts of one tick at `t` seconds since 1970 (only its time of day matters).
    /// `open`: this series' episode goes on, so what comes is not to be learned as usual. `None`
    /// with too few observations, which change nothing, and while there is no reference.
    pub fn score(&mut self, t: f64, counts: &[u64], open: bool) -> Option<Shifted> {
        let total: u64 = counts.iter().sum();
        if total < COUNT_MIN || counts.len() != self.buckets {
            return None;
        }
        let slot = (t / self.slot_s).rem_euclid(self.slots.len() as f64) as usize % self.slots.len();
        if slot != self.slot {
            self.slot = slot;
            self.slots[slot].visits = self.slots[slot].visits.saturating_add(1);
        }
        for (recent, half_life) in self.recent.iter_mut().zip(RECENT) {
            let kept = (-1.0 / half_life).exp2();
            for (recent, count) in recent.iter_mut().zip(counts) {
                *recent = *recent * kept + *count as f64;
            }
        }
        let at = (self.ticks % DELAY as u64) as usize;
        let place = at * self.buckets..(at + 1) * self.buckets;
        if self.ticks >= DELAY as u64 {
            let shares = &self.delay[place.clone()];
            self.slow.learn(shares, 1.0 - (-1.0 / SLOW).exp2(), open);
            self.slots[self.delay_slots[at]].reference.learn(shares, 0.01, open);
        }
        for (share, count) in self.delay[place].iter_mut().zip(counts) {
            *share = (*count as f64 / total as f64) as f32;
        }
        self.delay_slots[at] = slot;
        self.ticks += 1;
        if self.slow.n == 0 {
            return None;
        }

        let of_slot = &self.slots[slot].reference;
        // Without a reference of this time of day, that difference is not looked at.
        let references = [Some(&self.slow), (of_slot.n > 0).then_some(of_slot)];
        let differences = [0, 1].map(|window| {
            references.map(|of| of.map(|of| differences(&self.recent[window], of, self.width)))
        });
        let d = differences[0][0].unwrap_or_default();
        if self.ticks < WARM_UP {
            return Some(Shifted { score: 0.0, short: 0.0, d });
        }
        let [short, long] = [0, 1].map(|window| self.standardise(window, &differences[window]));
        if !open {
            self.learn(&differences);
        }
        Some(Shifted { score: short.max(long), short, d })
    }

    /// The greatest of one window's differences, by the less surprised of the references.
    fn standardise(&self, window: usize, differences: &[Option<[f64; FEATURES]>; REFERENCES]) -> f64 {
        let slot = &self.slots[self.slot];
        let seasoned = slot.visits >= 3;
        let mut greatest: f64 = 0.0;
        for feature in 0..FEATURES {
            let z = |reference: usize| {
                let d = differences[reference]?[feature];
                let z = self.scales[window][reference][feature].z(d)?;
                let of_slot = slot.scales[window][reference][feature].z(d).filter(|_| seasoned);
                Some(of_slot.map_or(z, |of_slot| z.min(of_slot)))
            };
            let z = match (z(0), z(1).filter(|_| seasoned)) {
                (Some(slow), Some(of_slot)) => slow.min(of_slot),
                (slow, _) => slow.unwrap_or(0.0),
            };
            greatest = greatest.max(z);
        }
        greatest
    }

    fn learn(&mut self, differences: &[[Option<[f64; FEATURES]>; REFERENCES]; RECENT.len()]) {
        let of_slot = &mut self.slots[self.slot].scales;
        for window in 0..RECENT.len() {
            for reference in 0..REFERENCES {
                let Some(d) = differences[window][reference] else { continue };
                for (feature, d) in d.into_iter().enumerate() {
                    self.scales[window][reference][feature].learn(d, 2000.0);
                    of_slot[window][reference][feature].learn(d, 300.0);
                }
            }
        }
    }
}

impl Reference {
    fn learn(&mut self, shares: &[f32], gain: f64, open: bool) {
        self.n += 1;
        let gain = gain.max(1.0 / self.n as f64) * if open { 0.1 } else { 1.0 };
        for (mine, share) in self.shares.iter_mut().zip(shares) {
            *mine += gain as f32 * (share - *mine);
        }
    }
}

impl Scale {
    /// How many times its usual size `d` is from its usual value; `None` when nothing is usual yet.
    fn z(&self, d: f64) -> Option<f64> {
        // 1.2533 = sqrt(pi/2) makes a standard deviation of a mean absolute one.
        (self.n > 0).then(|| (d - f64::from(self.mean)) / (1.2533 * f64::from(self.deviation) + 0.02))
    }

    fn learn(&mut self, d: f64, memory: f64) {
        self.n = self.n.saturating_add(1);
        let gain = 1.0 / f64::from(self.n).min(memory);
        let mut away = d - f64::from(self.mean);
        if self.n >= 30 {
            let bound = 4.0 * f64::from(self.deviation) + 0.02;
            away = away.clamp(-bound, bound);
        }
        self.deviation += (gain * (away.abs() - f64::from(self.deviation))) as f32;
        self.mean += (gain * away) as f32;
    }
}

fn differences(recent: &[f64], reference: &Reference, width: f64) -> [f64; FEATURES] {
    let mass: f64 = recent.iter().sum();
    let of_reference: f64 = reference.shares.iter().map(|share| f64::from(*share)).sum();
    let (mut now, mut then) = (0.0, 0.0);
    let mut d = [0.0; FEATURES];
    let mut next = 0;
    for (recent, share) in recent.iter().zip(&reference.shares) {
        now += recent / mass;
        then += f64::from(*share) / of_reference;
        d[0] += width * (then - now);
        d[1] += width * (then - now).abs();
        while next < QUANTILES.len() && then >= QUANTILES[next] - 1e-6 {
            let more = |cdf: f64| mass * (1.0 - cdf).max(0.0) + 0.5;
            d[2 + next] = (more(now) / more(then)).ln();
            next += 1;
        }
    }
    d
}
