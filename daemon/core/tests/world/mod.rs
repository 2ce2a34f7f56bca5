//! Seeded worlds in which the truth is known: hosts with a latency distribution, noise that hangs
//! together in time, and a canary with or without harm.
//!
//! Body: lognormal, 20 µs, sigma 0.30. Tail: 3 % Pareto from 40 µs, alpha 2.5. Noise multiplies all
//! latencies of a block: an AR(1) that all hosts share and one for each host; hiccups are 20 ms
//! in which one host is five times slower.

use tickscope_core::gate::{Arm, Buckets, Gate, Kind, Kpi, Policy, Reading, Report, Value, Verdict};

/// A small generator (xoshiro256++, Blackman & Vigna), seeded by splitmix64.
pub struct Random([u64; 4]);

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut x = seed;
        Self(std::array::from_fn(|_| {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = x;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// In 0..1, never 0.
    pub fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// By inversion for small means; a rounded normal from 60 on, which is close enough there.
    pub fn poisson(&mut self, mean: f64) -> u64 {
        if mean > 60.0 {
            return (mean + mean.sqrt() * self.normal()).round().max(0.0) as u64;
        }
        let (mut p, mut k, u) = ((-mean).exp(), 0, self.uniform());
        let mut sum = p;
        while u > sum && k < 1000 {
            k += 1;
            p *= mean / k as f64;
            sum += p;
        }
        k
    }
}

/// How hosts are disturbed.
#[derive(Clone, Copy)]
pub struct Noise {
    pub name: &'static str,
    /// Standard deviations, logarithmic: shared by all, and of each host.
    pub shared: f64,
    pub own: f64,
    /// Their correlation time, seconds.
    pub seconds: f64,
    /// Hiccups of a host, per second.
    pub hiccups: f64,
}

pub const IID: Noise = Noise { name: "iid", shared: 0.0, own: 0.0, seconds: 1.0, hiccups: 0.0 };
pub const HOST: Noise = Noise { name: "host", shared: 0.10, own: 0.03, seconds: 2.0, hiccups: 1.0 / 120.0 };
pub const NASTY: Noise =
    Noise { name: "nasty", shared: 0.15, own: 0.06, seconds: 10.0, hiccups: 1.0 / 120.0 };

/// What is wrong with the canary.
#[derive(Clone, Copy, Debug)]
pub enum Harm {
    None,
    /// Everything takes so much longer.
    Scale(f64),
    /// The tail does, so that p99 rises by this.
    Tail(f64),
    /// The slowest 0.2 % take so many times as long.
    Far(f64),
    /// Like `Tail`, from this second of the step on.
    LateTail(f64, f64),
    /// Every so many seconds, 100 ms in which all take 2 ms longer.
    Stalls(f64),
    /// The error rate, instead of 0.1 %.
    Errors(f64),
}

/// A run: one canary against some baseline hosts.
#[derive(Clone, Copy)]
pub struct World {
    pub noise: Noise,
    pub harm: Harm,
    /// Observations of the canary a second; each baseline host has as many.
    pub rate: f64,
    pub hosts: usize,
    /// Whether the baseline's hosts are told apart.
    pub labelled: bool,
    pub block: f64,
    pub history: f64,
    pub step: f64,
    pub errors: bool,
}

impl World {
    pub fn new(noise: Noise, harm: Harm, rate: f64) -> Self {
        Self {
            noise,
            harm,
            rate,
            hosts: 4,
            labelled: true,
            block: 0.2,
            history: 300.0,
            step: 300.0,
            errors: matches!(harm, Harm::Errors(_)),
        }
    }
}

/// How a run ended.
pub struct Outcome {
    pub report: Report,
    /// Seconds from the start of the step to the decision.
    pub after: f64,
}

impl Outcome {
    pub fn failed(&self) -> bool {
        self.report.verdict == Verdict::Fail
    }

    pub fn passed(&self) -> bool {
        self.report.verdict == Verdict::Pass
    }
}

/// First bound of the histograms, and how many: 2^(-272/16) s = 7.6 µs to 2^(-80/16) s = 31 ms.
const FIRST: i32 = -272;
const CELLS: usize = 193;

/// Share of observations not above `x` seconds.
fn share_below(x: f64, tail_reach: f64, far_reach: f64) -> f64 {
    let body = normal_below((x / 20e-6).ln() / 0.30);
    let y = x / tail_reach;
    // p99.8, from where on all is `far_reach` times slower.
    let far = 118e-6;
    let y = if y > far { (y / far_reach).max(far) } else { y };
    let tail = if y > 40e-6 { 1.0 - (40e-6 / y).powf(2.5) } else { 0.0 };
    0.97 * body + 0.03 * tail
}

/// Abramowitz & Stegun 7.1.26, to 1.5e-7.
fn normal_below(z: f64) -> f64 {
    let x = z.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let poly = t
        * (0.254_829_592
            + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let erf = 1.0 - poly * (-x * x).exp();
    if z > 0.0 { 0.5 + 0.5 * erf } else { 0.5 - 0.5 * erf }
}

/// Cumulative shares of one latency distribution, finely, so that a factor is a shift.
struct Shape(Vec<f64>);

const FINE: f64 = 64.0;

impl Shape {
    fn new(tail: f64, far: f64) -> Self {
        let at = |index: usize| {
            share_below(((index as f64 - 4096.0) / (16.0 * FINE)).exp2() * 31.25e-6, tail, far)
        };
        Self((0..16384).map(at).collect())
    }

    fn below(&self, x: f64) -> f64 {
        let index = ((x / 31.25e-6).log2() * 16.0 * FINE + 4096.0).clamp(0.0, 16383.0);
        self.0[index.round() as usize]
    }

    /// One block of a host: `mean` observations, all slower by `factor`.
    fn draw(&self, random: &mut Random, mean: f64, factor: f64, into: &mut Vec<(f64, u64)>) {
        let mut before = 0.0;
        for cell in 0..CELLS {
            let bound = (f64::from(FIRST + cell as i32) / 16.0).exp2();
            let below = if cell == CELLS - 1 { 1.0 } else { self.below(bound / factor) };
            let share = (below - before).max(0.0);
            before = below;
            if share * mean > 1e-9 {
                into.push((bound, random.poisson(share * mean)));
            }
        }
    }
}

struct Host {
    level: f64,
}

impl World {
    fn shape(&self) -> Shape {
        match self.harm {
            // The tail decides p99: 3 % Pareto with a little of the body below it.
            Harm::Tail(by) | Harm::LateTail(by, _) => Shape::new(1.0 + by, 1.0),
            Harm::Far(by) => Shape::new(1.0, by),
            _ => Shape::new(1.0, 1.0),
        }
    }

    /// Runs it, looking after every block.
    pub fn run(&self, seed: u64) -> Outcome {
        let mut kpis = vec![Kpi { name: "latency".into(), kind: Kind::latency(), seconds: self.block }];
        if self.errors {
            kpis.push(Kpi { name: "errors".into(), kind: Kind::Errors, seconds: self.block });
        }
        let mut gate = Gate::new(Policy::default(), kpis);
        let blocks = ((self.history + self.step) / self.block).round() as u64;
        let begin = (self.history / self.block).round() as u64;
        self.feed(seed, blocks, begin, &mut |reading| gate.add(reading).expect("in order"));
        gate.finish();
        let report = gate.report();
        let after = report.t.unwrap_or(0.0) - self.history;
        Outcome { report, after }
    }

    /// All readings in order.
    pub fn feed(&self, seed: u64, blocks: u64, begin: u64, take: &mut dyn FnMut(Reading)) {
        let mut random = Random::new(seed);
        let (plain, harmed) = (Shape::new(1.0, 1.0), self.shape());
        let keep = (-self.block / self.noise.seconds).exp();
        let fresh = (1.0 - keep * keep).sqrt();
        let mut shared = random.normal();
        let mut hosts: Vec<Host> = (0..=self.hosts).map(|_| Host { level: random.normal() }).collect();
        let phase = random.uniform();
        for number in 1..=blocks {
            let t = number as f64 * self.block;
            shared = keep * shared + fresh * random.normal();
            for (index, host) in hosts.iter_mut().enumerate() {
                host.level = keep * host.level + fresh * random.normal();
                let canary = index == self.hosts;
                if canary && number <= begin {
                    continue;
                }
                let since = (number - begin.min(number)) as f64 * self.block;
                let mut factor = (self.noise.shared * shared + self.noise.own * host.level).exp();
                let mut shape = &plain;
                if canary {
                    match self.harm {
                        Harm::Scale(by) => factor *= 1.0 + by,
                        Harm::LateTail(_, from) if since < from => {}
                        Harm::Tail(_) | Harm::LateTail(..) | Harm::Far(_) => shape = &harmed,
                        _ => {}
                    }
                }
                let mean = self.rate * self.block;
                let mut cells = Vec::with_capacity(CELLS);
                let mut slow = 0.0;
                if random.uniform() < self.noise.hiccups * self.block {
                    slow = 0.02 / self.block;
                    shape.draw(&mut random, slow * mean, 5.0 * factor, &mut cells);
                }
                if let (true, Harm::Stalls(every)) = (canary, self.harm) {
                    let turn = |since: f64| (since / every + phase).floor();
                    if turn(since) > turn(since - self.block) {
                        slow = (0.1 / self.block).min(0.5);
                        let stalled = random.poisson(slow * mean);
                        cells.push((2f64.powi(-9), stalled));
                    }
                }
                shape.draw(&mut random, (1.0 - slow) * mean, factor, &mut cells);
                let arm = if canary { Arm::Canary } else { Arm::Baseline };
                let instance = if self.labelled { index as u32 + 1 } else { 0 };
                let latency = Buckets::new(cells).expect("bounds");
                let total = latency.count();
                take(Reading { t, arm, kpi: 0, instance, value: Value::Latency(latency) });
                if self.errors {
                    let rate = if let (true, Harm::Errors(rate)) = (canary, self.harm) { rate } else { 1e-3 };
                    let bad = random.poisson(rate * total as f64).min(total);
                    take(Reading { t, arm, kpi: 1, instance, value: Value::Errors { total, bad } });
                }
            }
        }
    }
}
