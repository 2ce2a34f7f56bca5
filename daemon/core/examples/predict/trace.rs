//! Seeded traces, one sample a second: series that breach their limit, and days on which nothing
//! happens that looks as if it would.

use tickscope_core::{Direction, Limit};

/// A series and its limit.
pub struct Trace {
    /// Which kind.
    pub kind: &'static str,
    /// What is to be foreseen.
    pub limit: Limit,
    /// `values[t]`, t in seconds.
    pub values: Vec<f64>,
}

impl Trace {
    /// When it is breached: at least 8 of the last 10 samples are beyond the limit.
    pub fn breach(&self) -> Option<usize> {
        let beyond = |y: &f64| match self.limit.direction {
            Direction::Above => *y > self.limit.value,
            Direction::Below => *y < self.limit.value,
        };
        let found = self.values.windows(10).position(|ten| ten.iter().filter(|y| beyond(y)).count() >= 8);
        found.map(|start| start + 9)
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct Random(u64);

impl Random {
    /// Another sequence for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `low..high`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform on a logarithmic scale.
    pub fn log_uniform(&mut self, low: f64, high: f64) -> f64 {
        self.uniform(low.ln(), high.ln()).exp()
    }

    /// Standard normal (Box and Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform(1e-300, 1.0).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform(0.0, 1.0)).cos()
    }
}

/// A kind of trace: its name, and how one of it is made.
type Kind = (&'static str, fn(&mut Random) -> (f64, Vec<f64>));

/// Those that breach a limit. Numbers are of the size of MB, descriptors or ms; only shapes count.
const BREACHES: &[Kind] = &[
    ("leak", |random| growing(random, |x| x, Noise::White)),
    ("leak with collections", |random| growing(random, |x| x, Noise::Saw)),
    ("leak on a wandering level", |random| growing(random, |x| x, Noise::Wander)),
    ("leak under bursts", |random| growing(random, |x| x, Noise::Bursts)),
    ("exponential growth", |random| growing(random, |x| (3.0 * x).exp_m1() / 3f64.exp_m1(), Noise::White)),
    ("accelerating growth", |random| growing(random, |x| x * x, Noise::White)),
    // Waiting time while the load rises to 1.
    ("queue", |random| growing(random, |x| 0.08 * x / (1.08 - x), Noise::White)),
    // A slow leak becomes a fast one half-way.
    ("slope change", |random| {
        growing(random, |x| if x < 0.5 { 0.3 * x } else { 0.15 + 1.7 * (x - 0.5) }, Noise::White)
    }),
];

/// Days without a breach, with something that looks like the way to one every hour or two.
const QUIET: &[Kind] = &[
    ("noise", |random| quiet(random, &[], Noise::White)),
    ("heavy-tailed noise", |random| quiet(random, &[], Noise::Bursts)),
    ("collections", |random| quiet(random, &[], Noise::Saw)),
    ("wandering level", |random| quiet(random, &[], Noise::Wander)),
    ("daily load", |random| daily(random)),
    // Some work comes, and stays.
    ("ramps and holds", |random| quiet(random, &[|x, size| size * (x * 4.0).min(1.0)], Noise::White)),
    ("level shifts", |random| quiet(random, &[|_, size| size], Noise::White)),
    // Warm-up of a cache towards a level under the limit, then a restart.
    ("saturating growth", |random| quiet(random, &[|x, size| size * (1.0 - (-4.0 * x).exp())], Noise::White)),
    // Logs that are rotated, caches that are emptied.
    ("long saw-teeth", |random| quiet(random, &[|x, _| 0.7 * x], Noise::White)),
    ("slow waves", |random| {
        quiet(random, &[|x, size| 0.5 * size * (1.0 - (std::f64::consts::TAU * x).cos())], Noise::Wander)
    }),
];

const DAY: f64 = 86_400.0;

#[derive(Clone, Copy)]
enum Noise {
    White,
    /// Short saw-teeth: a garbage collector.
    Saw,
    /// AR(1) with a memory of one to ten minutes.
    Wander,
    /// Student t with three degrees of freedom, and bursts.
    Bursts,
}

/// `count` traces that breach, the kinds in turn.
pub fn breaches(seed: u64, count: usize) -> Vec<Trace> {
    make(seed, count, BREACHES)
}

/// `count` days that do not.
pub fn quiet_days(seed: u64, count: usize) -> Vec<Trace> {
    make(seed ^ 0xdead, count, QUIET)
}

fn make(seed: u64, count: usize, kinds: &[Kind]) -> Vec<Trace> {
    (0..count)
        .map(|i| {
            let (kind, make) = kinds[i % kinds.len()];
            let mut random = Random::new(seed.wrapping_add(1000 * i as u64));
            let (limit, mut values) = make(&mut random);
            let below = i % 5 == 4;
            if below {
                for y in &mut values {
                    *y = 3000.0 - *y;
                }
            }
            let (value, direction) =
                if below { (3000.0 - limit, Direction::Below) } else { (limit, Direction::Above) };
            let limit = Limit { value, direction, horizon_s: 1800.0, step_s: 1.0, period_s: None };
            Trace { kind, limit, values }
        })
        .collect()
}

/// Quiet, then growth from a level to the limit in a quarter of an hour to an hour and a half, and a
/// little beyond it.
fn growing(random: &mut Random, shape: fn(f64) -> f64, noise: Noise) -> (f64, Vec<f64>) {
    let level = random.uniform(100.0, 500.0);
    let room = random.uniform(200.0, 800.0);
    let begin = random.uniform(1200.0, 3600.0);
    let length = random.log_uniform(900.0, 5400.0);
    let size = room * random.log_uniform(0.005, 0.1);
    let end = begin + length * 1.05;
    let noise = noise_of(noise, random, size, end as usize);
    let values = noise.into_iter().enumerate().map(|(t, noise)| {
        // Beyond the limit it goes on as a line, whatever the shape.
        let x = (t as f64 - begin) / length;
        let grown = if x <= 0.0 {
            0.0
        } else if x < 1.0 {
            shape(x)
        } else {
            1.0 + 2.0 * (x - 1.0)
        };
        level + room * grown + noise
    });
    (level + room, values.collect())
}

/// A day of `shapes` on a level; each is a share of the room under the limit. They follow each
/// other, an hour or two each, and are told how much of that has passed and a size up to 0.75;
fn quiet(random: &mut Random, shapes: &[fn(f64, f64) -> f64], noise: Noise) -> (f64, Vec<f64>) {
    let level = random.uniform(100.0, 500.0);
    let room = random.uniform(200.0, 800.0);
    let size = room * random.log_uniform(0.005, 0.06);
    let noise = noise_of(noise, random, size, DAY as usize);
    let (mut begin, mut length, mut size) = (0.0, 0.0, 0.0);
    let values = noise.into_iter().enumerate().map(|(t, noise)| {
        let t = t as f64;
        if t >= begin + length {
            (begin, length, size) = (t, random.uniform(3000.0, 9000.0), random.uniform(0.2, 0.75));
        }
        let share: f64 = shapes.iter().map(|shape| shape((t - begin) / length, size)).sum();
        level + room * share + noise
    });
    (level + room, values.collect())
}

/// A day of load that rises to 0.7 of the room at noon.
fn daily(random: &mut Random) -> (f64, Vec<f64>) {
    let (limit, mut values) = quiet(random, &[], Noise::White);
    for (t, y) in values.iter_mut().enumerate() {
        *y += 0.35 * (limit - *y) * (1.0 - (std::f64::consts::TAU * t as f64 / DAY).cos());
    }
    (limit, values)
}

fn noise_of(noise: Noise, random: &mut Random, size: f64, len: usize) -> Vec<f64> {
    let period = random.uniform(20.0, 180.0);
    let memory = (-1.0 / random.log_uniform(60.0, 600.0)).exp();
    let (mut wander, mut burst) = (0.0, 0.0);
    (0..len)
        .map(|t| match noise {
            Noise::White => size * random.normal(),
            Noise::Saw => size * (4.0 * (t as f64 / period).fract() + 0.2 * random.normal()),
            Noise::Wander => {
                wander = memory * wander + (1.0 - memory * memory).sqrt() * random.normal();
                size * (wander + 0.3 * random.normal())
            }
            Noise::Bursts => {
                let chi: f64 = (0..3).map(|_| random.normal().powi(2)).sum();
                if random.uniform(0.0, 1.0) < 1.0 / 600.0 {
                    burst = random.uniform(2.0, 6.0);
                }
                burst *= 0.8;
                size * (0.5 * random.normal() / (chi / 3.0).sqrt() + burst)
            }
        })
        .collect()
}
