//! One quantile of one latency over one step: counts against thresholds become scores and
//! certificates.

use std::collections::VecDeque;

use super::bucket::{Buckets, Grid};
use super::constant::{
    ALPHA_PASS, LEARNING_BLOCKS, OWN_SECONDS, PASS_BLOCKS, PASS_COUNT, STREAM_COUNT, STREAM_SECONDS,
    WINDOW_SECONDS,
};
use super::evidence::{Betting, Certificate};
use super::latency::{Arm, Block, Quantile};
use super::noise::{Count, LeaveOneOut, Own, Pair, Scale, Temporal, TwoArm, Usual};

/// One quantile of a step.
pub struct Track {
    /// What is judged.
    pub quantile: Quantile,
    /// Upper bound of the baseline's bucket, seconds, fixed for the step.
    pub threshold: f64,
    /// The same and the fail margin.
    pub fail_bound: f64,
    /// Bounds of the certificate for baseline and canary; `None`: cannot be certified here.
    pub pass_bounds: Option<(f64, f64)>,
    /// Whether a pass needs its certificate.
    pub required: bool,
    /// When it was certified.
    pub certified: Option<f64>,
    /// Variance of the contrast over Poisson, as last used; `None`: not known.
    pub tau: Option<f64>,
    index: u64,
    noise: Noise,
    /// All of the baseline, history too.
    usual: Count,
    stream_blocks: usize,
    stream_filled: usize,
    stream: Pair,
    betting: Betting,
    certificate: Certificate,
    recent: VecDeque<Pair>,
}

enum Noise {
    Labelled(LeaveOneOut),
    TwoArm(TwoArm),
}

/// What is known when a step begins.
#[derive(Clone, Copy)]
pub struct Expects {
    /// Observations of the canary a block.
    pub canary: f64,
    /// Index into `PASS_MARGIN`.
    pub band: usize,
    /// Length of a block.
    pub seconds: f64,
    /// Baseline instances that are told apart; 0: they are not.
    pub instances: usize,
}

/// What a track needs to know of its step.
pub struct Seen {
    /// Seconds from the start to this block.
    pub since: f64,
    /// Length of a block, seconds.
    pub seconds: f64,
    /// Blocks with both arms, this one too.
    pub blocks: u64,
    /// Blocks that were only learnt from.
    pub learnt: u64,
    /// Observations, this block's too.
    pub canary: u64,
    /// See `canary`.
    pub baseline: u64,
    /// Blocks over which a certificate has to stand.
    pub recent: usize,
}

impl Track {
    /// A track of quantile `index` that has seen nothing. `reference`: what the baseline was before
    /// the step; `canary`: observations a block, in `band`; `instances` are told apart.
    pub fn new(
        index: usize,
        quantile: Quantile,
        reference: &Buckets,
        grid: &Grid,
        expects: &Expects,
    ) -> Self {
        let Expects { canary, band, seconds, instances } = *expects;
        let lengths = lengths(seconds);
        let threshold = reference.quantile(quantile.q).unwrap_or(0.0);
        // One bucket lower, else all observations in the one bucket of the quantile leave nothing
        // above it to be certified.
        let below = grid.down(threshold);
        let pass_bounds = quantile.pass_margin[band].map(|margin| (below, grid.up(below, margin)));
        let stream_blocks = stream_blocks(canary * (1.0 - quantile.q), seconds, &lengths);
        Self {
            quantile,
            threshold,
            fail_bound: grid.up(threshold, quantile.fail_margin),
            // Above the last bound nothing can be seen, so nothing can be promised either.
            pass_bounds: pass_bounds.filter(|(_, bound)| bound.is_finite()),
            required: quantile.pass_margin[band].is_some(),
            certified: None,
            tau: None,
            index: index as u64,
            noise: Noise::new(instances, &lengths, stream_blocks, seconds),
            usual: Count::default(),
            stream_blocks,
            stream_filled: 0,
            stream: Pair::default(),
            betting: Betting::new(),
            certificate: Certificate::new(),
            recent: VecDeque::new(),
        }
    }

    /// Logarithm of this quantile's own evidence.
    pub fn log_evidence(&self) -> f64 {
        self.betting.log_total()
    }

    /// Whether the canary is within the pass margin over the last minute, too.
    pub fn stands(&self) -> bool {
        let recent = self.recent();
        recent.contrast() < 0.0 || recent.baseline.above + recent.canary.above == 0.0
    }

    /// The last minute, against the bounds of the certificate.
    pub fn recent(&self) -> Pair {
        let mut sum = Pair::default();
        for pair in &self.recent {
            sum.baseline.add(pair.baseline);
            sum.canary.add(pair.canary);
        }
        sum
    }

    fn share_above(&self) -> f64 {
        (self.usual.above + 0.5) / (self.usual.all + 1.0)
    }

    /// One block of the baseline.
    pub fn baseline(&mut self, arm: &Arm, instances: &[u32]) {
        let count = counted(arm, self.threshold);
        self.usual.add(count);
        match &mut self.noise {
            Noise::Labelled(noise) => noise.add(&by_instance(arm, instances, self.threshold)),
            Noise::TwoArm(noise) => noise.temporal.add(count),
        }
    }

    /// One block with both arms, only for the noise.
    pub fn contrast(&mut self, block: &Block) {
        if let Noise::TwoArm(noise) = &mut self.noise {
            noise.own.add(Pair {
                baseline: counted(&block.baseline, self.threshold),
                canary: counted(&block.canary, self.threshold),
            });
        }
    }

    /// What is not whole is not used.
    pub fn cut(&mut self) {
        (self.stream_filled, self.stream) = (0, Pair::default());
        match &mut self.noise {
            Noise::Labelled(noise) => noise.cut(),
            Noise::TwoArm(noise) => {
                noise.temporal.cut();
                noise.own.cut();
            }
        }
    }

    /// One block with both arms.
    pub fn block(&mut self, block: &Block, t: f64, seen: &Seen, instances: &[u32]) {
        let n = Usual {
            share_above: self.share_above(),
            canary: seen.canary as f64 / seen.blocks as f64,
            baseline: seen.baseline as f64 / seen.blocks as f64,
        };
        // Over less, slow noise looks like none.
        let paired = seen.blocks - 1 + seen.learnt;
        let own = paired >= LEARNING_BLOCKS as u64 && paired as f64 * seen.seconds >= OWN_SECONDS;
        // The noise of the past judges this block; this block then joins it.
        let scale = match &self.noise {
            Noise::TwoArm(noise) => noise.scale(own, &n),
            Noise::Labelled(noise) => noise.tau().map(|tau| Scale { tau, t1: 1.0, long_run: 1.0 }),
        };
        self.tau = scale.map(|scale| scale.tau);
        self.certify(block, t, seen, scale);
        self.stream.baseline.add(counted(&block.baseline, self.threshold));
        self.stream.canary.add(counted(&block.canary, self.fail_bound));
        self.stream_filled += 1;
        if self.stream_filled == self.stream_blocks {
            self.stream_filled = 0;
            let pair = std::mem::take(&mut self.stream).thinned(seen.blocks << 8 | self.index);
            if let Some((variance, long_run)) = self.variance(&pair, scale) {
                self.betting.add(pair.contrast() / variance.sqrt(), long_run, seen.since);
            }
        }
        self.baseline(&block.baseline, instances);
        self.contrast(block);
    }

    /// Variance of a stream block's contrast, and by how much scores hang together.
    fn variance(&self, pair: &Pair, scale: Option<Scale>) -> Option<(f64, f64)> {
        let r = pair.share();
        let poisson = r * (1.0 - r) * self.share_above() * (pair.canary.all + pair.baseline.all);
        match &self.noise {
            Noise::TwoArm(_) => scale.map(|scale| (scale.t1 * poisson, scale.long_run)),
            Noise::Labelled(noise) => {
                noise.variance(pair).map(|(variance, long_run)| (variance.max(poisson), long_run))
            }
        }
    }

    fn certify(&mut self, block: &Block, t: f64, seen: &Seen, scale: Option<Scale>) {
        let Some((baseline, canary)) = self.pass_bounds else { return };
        let pair =
            Pair { baseline: counted(&block.baseline, baseline), canary: counted(&block.canary, canary) };
        self.recent.push_back(pair);
        if self.recent.len() > seen.recent {
            self.recent.pop_front();
        }
        if let Some(Scale { tau, .. }) = scale {
            self.certificate.add(pair.baseline.above, pair.canary.above, pair.share(), tau);
        }
        let enough = seen.blocks >= PASS_BLOCKS && seen.canary >= PASS_COUNT;
        if enough && self.certified.is_none() && self.certificate.log() >= -ALPHA_PASS.ln() {
            self.certified = Some(t);
        }
    }
}

impl Noise {
    fn new(instances: usize, lengths: &[usize], stream: usize, seconds: f64) -> Self {
        if instances == 0 {
            return Self::TwoArm(TwoArm {
                temporal: Temporal::new(lengths),
                own: Own::new(lengths),
                stream: lengths.iter().position(|blocks| *blocks >= stream).unwrap_or(0),
            });
        }
        let longest = WINDOW_SECONDS[WINDOW_SECONDS.len() - 1] / (stream as f64 * seconds);
        let scores = [1, 2, 4, 8, 16, 32, 64, 100];
        let scores = scores.into_iter().filter(|blocks| *blocks == 1 || *blocks as f64 <= longest + 1e-6);
        Self::Labelled(LeaveOneOut::new(instances, lengths, stream, &scores.collect::<Vec<_>>()))
    }
}

impl Pair {
    /// When the canary has more observations than the baseline, skewed counts would turn against
    /// it: its counts are thinned to the baseline's number, seeded, the same in every replay.
    fn thinned(self, seed: u64) -> Self {
        if self.canary.all <= self.baseline.all {
            return self;
        }
        let keep = self.baseline.all / self.canary.all;
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut uniform = || {
            // splitmix64 (Steele, Lea & Flood 2014)
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut x = state;
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (x ^ (x >> 31)) as f64 / 18_446_744_073_709_551_616.0
        };
        let above = if self.canary.above <= 4096.0 {
            (0..self.canary.above as u64).filter(|_| uniform() < keep).count() as f64
        } else {
            // Of so many, the sum of twelve uniforms is normal enough.
            let normal = (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
            let mean = keep * self.canary.above;
            (mean + normal * (mean * (1.0 - keep)).sqrt()).round().clamp(0.0, self.canary.above)
        };
        Self { canary: Count { above, all: self.baseline.all }, ..self }
    }
}

/// All observations of an arm.
pub fn count(arm: &Arm) -> u64 {
    arm.iter().fold(0, |sum, (_, buckets)| sum.saturating_add(buckets.count()))
}

/// Those above a bound.
pub fn above(arm: &Arm, bound: f64) -> u64 {
    arm.iter().fold(0, |sum, (_, buckets)| sum.saturating_add(buckets.above(bound)))
}

fn counted(arm: &Arm, bound: f64) -> Count {
    Count { above: above(arm, bound) as f64, all: count(arm) as f64 }
}

fn by_instance(arm: &Arm, instances: &[u32], bound: f64) -> Vec<Count> {
    let of = |instance: &u32| {
        let mut sum = Count::default();
        for (_, buckets) in arm.iter().filter(|(of, _)| of == instance) {
            sum.add(Count { above: buckets.above(bound) as f64, all: buckets.count() as f64 });
        }
        sum
    };
    instances.iter().map(of).collect()
}

/// Window lengths in blocks, ascending, the first 1.
fn lengths(seconds: f64) -> Vec<usize> {
    let mut lengths = vec![1];
    for length in WINDOW_SECONDS.map(|length| (length / seconds).round() as usize) {
        if length > lengths[lengths.len() - 1] {
            lengths.push(length);
        }
    }
    lengths
}

/// Blocks of a stream block, a window length, until `above` observations a block are enough.
fn stream_blocks(above: f64, seconds: f64, lengths: &[usize]) -> usize {
    let most = STREAM_SECONDS / seconds + 1e-6;
    // A share such as 1 - 0.99 is not exact; a hair must not cost a block.
    let wanted = (STREAM_COUNT / above - 1e-6).ceil();
    let mut allowed = lengths.iter().filter(|blocks| **blocks == 1 || **blocks as f64 <= most);
    allowed
        .clone()
        .find(|blocks| **blocks as f64 >= wanted)
        .or_else(|| allowed.next_back())
        .copied()
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::super::constant::QUANTILES;
    use super::*;

    fn close(value: f64, wanted: f64) {
        assert!((value - wanted).abs() < 1e-6, "{value}, not {wanted}");
    }

    fn pair(baseline: (f64, f64), canary: (f64, f64)) -> Pair {
        let count = |(above, all)| Count { above, all };
        Pair { baseline: count(baseline), canary: count(canary) }
    }

    #[test]
    fn scores() {
        let z = |pair: Pair, p: f64, t1: f64| {
            let pair = pair.thinned(0);
            let r = pair.share();
            pair.contrast() / (t1 * r * (1.0 - r) * p * (pair.canary.all + pair.baseline.all)).sqrt()
        };
        close(z(pair((40.0, 4000.0), (20.0, 1000.0)), 0.01, 1.0), 2.828_427);
        close(z(pair((40.0, 4000.0), (20.0, 1000.0)), 0.01, 4.0), std::f64::consts::SQRT_2);
        close(z(pair((40.0, 4000.0), (10.0, 1000.0)), 0.01, 1.0), 0.0);
        close(z(pair((990.0, 9900.0), (3.0, 100.0)), 0.1, 1.0), -2.202_499);
    }

    #[test]
    fn a_block_gathers_what_its_quantile_needs() {
        let lengths = lengths(1.0);
        assert_eq!(lengths, [1, 2, 5, 10, 20]);
        let of = |count: f64| QUANTILES.map(|q| stream_blocks(count * (1.0 - q), 1.0, &lengths));
        assert_eq!(of(500.0), [1, 1, 1, 5]);
        assert_eq!(of(100.0), [1, 1, 5, 5]);
        assert_eq!(super::lengths(0.2), [1, 5, 10, 25, 50, 100]);
        assert_eq!(super::lengths(60.0), [1]);
    }

    /// When the canary is nearly all of the traffic and counts are small, the contrast is skewed
    /// to the left and bets on it would win more than their stake. Thinned, they do not: the null
    /// is exceeded no more often than alpha allows.
    #[test]
    fn a_large_canary_is_not_rolled_back_by_skew() {
        let exceeded = |thin: bool| {
            let mut state = 7u64;
            let mut uniform = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 11) as f64 / (1u64 << 53) as f64
            };
            let mut poisson = |mean: f64| {
                let (limit, mut product, mut k) = ((-mean).exp(), uniform(), 0.0);
                while product > limit {
                    product *= uniform();
                    k += 1.0;
                }
                k
            };
            let runs = 100;
            let mut over = |run: u64| {
                let mut betting = Betting::new();
                (0..2000u64).any(|block| {
                    let raw = pair((poisson(0.5 / 19.0), 50.0 / 19.0), (poisson(0.5), 50.0));
                    let pair = if thin { raw.thinned(run << 32 | block) } else { raw };
                    let r = pair.share();
                    let variance = r * (1.0 - r) * 0.01 * (pair.canary.all + pair.baseline.all);
                    betting.add(pair.contrast() / variance.sqrt(), 1.0, 0.0);
                    betting.log(0) > 100f64.ln()
                })
            };
            (0..runs).filter(|run| over(*run)).count() as f64 / runs as f64
        };
        let (raw, thinned) = (exceeded(false), exceeded(true));
        assert!(raw > 0.5, "{raw}: without thinning the bound does not hold");
        assert!(thinned <= 0.03, "{thinned}");
    }
}
