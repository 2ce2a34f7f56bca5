//! How much more the two arms differ by chance than independent observations would.
//!
//! Latencies hang together: a burst or a busy neighbour moves thousands of observations at once.
//! `tau` is the variance of the contrast over its Poisson value, the largest over windows of
//! several lengths. Three ways to it: two that need no instances ([`Temporal`], [`Own`]) and one
//! that compares instances of the baseline with each other ([`LeaveOneOut`]).

use super::constant::{INSTANCES_MIN, SCORES_MIN, WINDOWS_MIN, Z_MAX};

/// What the noise model says about the next score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Variance of the contrast over Poisson, the largest over all windows; at least 1.
    pub tau: f64,
    /// The same over one stream block.
    pub t1: f64,
    /// By how much scores hang together: the evidence is divided by it; at least 1.
    pub long_run: f64,
}

/// Counts of one block against one threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// Above the threshold.
    pub above: f64,
    /// All.
    pub all: f64,
}

impl Count {
    /// Adds another.
    pub fn add(&mut self, other: Self) {
        self.above += other.above;
        self.all += other.all;
    }
}

/// Counts of one block with both arms.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pair {
    /// Of the baseline.
    pub baseline: Count,
    /// Of the canary.
    pub canary: Count,
}

impl Pair {
    /// The canary's share of the observations, `r`.
    pub fn share(&self) -> f64 {
        self.canary.all / (self.canary.all + self.baseline.all)
    }

    /// What the canary has more above the threshold than its share of both.
    pub fn contrast(&self) -> f64 {
        self.canary.above - self.share() * (self.baseline.above + self.canary.above)
    }

    /// Variance of the contrast if observations were independent.
    pub fn variance(&self) -> f64 {
        let r = self.share();
        r * (1.0 - r) * (self.baseline.above + self.canary.above)
    }

    fn add(&mut self, other: Self) {
        self.baseline.add(other.baseline);
        self.canary.add(other.canary);
    }
}

/// What is usual: the share of the baseline above the threshold, and observations a block.
#[derive(Clone, Copy, Debug)]
pub struct Usual {
    /// Of all the baseline has ever shown.
    pub share_above: f64,
    /// Observations of the canary a block.
    pub canary: f64,
    /// Observations of the baseline a block.
    pub baseline: f64,
}

/// How the baseline alone moves from window to window. It contains what both arms share, which
/// the contrast does not: far too large, and safe for one process.
#[derive(Clone, Debug)]
pub struct Temporal {
    windows: Vec<TemporalWindow>,
}

#[derive(Clone, Debug)]
struct TemporalWindow {
    blocks: usize,
    filled: usize,
    open: Count,
    last: Option<Count>,
    squares: f64,
    poisson: f64,
    pairs: u64,
}

impl Temporal {
    /// For windows of so many blocks each.
    pub fn new(lengths: &[usize]) -> Self {
        let window = |blocks: &usize| TemporalWindow {
            blocks: *blocks,
            filled: 0,
            open: Count::default(),
            last: None,
            squares: 0.0,
            poisson: 0.0,
            pairs: 0,
        };
        Self { windows: lengths.iter().map(window).collect() }
    }

    /// One block of the baseline.
    pub fn add(&mut self, count: Count) {
        for window in &mut self.windows {
            window.add(count);
        }
    }

    /// What is not whole is not used.
    pub fn cut(&mut self) {
        for window in &mut self.windows {
            (window.filled, window.open, window.last) = (0, Count::default(), None);
        }
    }

    /// `T_L` of window `index`.
    fn ratio(&self, index: usize, usual: &Usual) -> Option<f64> {
        let window = &self.windows[index];
        let pairs = (window.pairs > 0).then_some(window.pairs as f64)?;
        let f = 1.0 + (2.0 / pairs).sqrt();
        let excess = ((window.squares - window.poisson) / (2.0 * pairs)).max(0.0) * f;
        let blocks = window.blocks as f64;
        let poisson = usual.share_above * (1.0 / (usual.canary * blocks) + 1.0 / (usual.baseline * blocks));
        Some(1.0 + 2.0 * excess / poisson)
    }
}

impl TemporalWindow {
    fn add(&mut self, count: Count) {
        self.open.add(count);
        self.filled += 1;
        if self.filled < self.blocks {
            return;
        }
        let now = std::mem::take(&mut self.open);
        self.filled = 0;
        if let Some(last) = self.last.replace(now)
            && last.all > 0.0
            && now.all > 0.0
        {
            let d = now.above / now.all - last.above / last.all;
            self.squares += d * d;
            let share = (now.above + last.above + 0.5) / (now.all + last.all + 1.0);
            self.poisson += share * (1.0 / now.all + 1.0 / last.all);
            self.pairs += 1;
        }
    }
}

/// How the contrast itself moves, its mean taken away: a steady effect is no noise.
#[derive(Clone, Debug)]
pub struct Own {
    windows: Vec<OwnWindow>,
}

#[derive(Clone, Debug)]
struct OwnWindow {
    blocks: usize,
    filled: usize,
    open: Pair,
    sum: f64,
    squares: f64,
    variance: f64,
    count: u64,
}

impl Own {
    /// For windows of so many blocks each.
    pub fn new(lengths: &[usize]) -> Self {
        let window = |blocks: &usize| OwnWindow {
            blocks: *blocks,
            filled: 0,
            open: Pair::default(),
            sum: 0.0,
            squares: 0.0,
            variance: 0.0,
            count: 0,
        };
        Self { windows: lengths.iter().map(window).collect() }
    }

    /// One block, both arms counted against the same threshold.
    pub fn add(&mut self, pair: Pair) {
        for window in &mut self.windows {
            window.open.add(pair);
            window.filled += 1;
            if window.filled == window.blocks {
                let pair = std::mem::take(&mut window.open);
                window.filled = 0;
                window.sum += pair.contrast();
                window.squares += pair.contrast().powi(2);
                window.variance += pair.variance();
                window.count += 1;
            }
        }
    }

    /// What is not whole is not used.
    pub fn cut(&mut self) {
        for window in &mut self.windows {
            (window.filled, window.open) = (0, Pair::default());
        }
    }

    /// `S_L` of window `index`.
    fn ratio(&self, index: usize) -> Option<f64> {
        let window = &self.windows[index];
        let m = (window.count >= WINDOWS_MIN && window.variance > 0.0).then_some(window.count as f64)?;
        let f = 1.0 + 2.0 * (2.0 / m).sqrt();
        let squares = (window.squares - window.sum * window.sum / m).max(0.0);
        Some(squares / window.variance * m / (m - 1.0) * f)
    }
}

/// The noise model of two arms whose instances are not told apart.
#[derive(Clone, Debug)]
pub struct TwoArm {
    /// From the baseline alone.
    pub temporal: Temporal,
    /// From the contrast.
    pub own: Own,
    /// Index of the window that is as long as a stream block.
    pub stream: usize,
}

impl TwoArm {
    /// The smaller of the two models, whole: `tau` and `t1` of one source. `None` as long as there
    /// is none. `own`: whether enough blocks with both arms have been seen for the second.
    pub fn scale(&self, own: bool, usual: &Usual) -> Option<Scale> {
        let largest = |ratio: &dyn Fn(usize) -> Option<f64>| {
            let all = (0..self.temporal.windows.len()).filter_map(ratio);
            all.reduce(f64::max).map(|tau| (tau.max(1.0), ratio(self.stream)))
        };
        let temporal = largest(&|index| self.temporal.ratio(index, usual));
        let own = if own { largest(&|index| self.own.ratio(index)) } else { None };
        let (tau, t1) = match (temporal, own) {
            (Some(a), Some(b)) => Some(if b.0 < a.0 { b } else { a }),
            (a, b) => a.or(b),
        }?;
        // Without a value at its own length, a score is as uncertain as the worst.
        let t1 = t1.map_or(tau, |t1| t1.max(1.0));
        Some(Scale { tau, t1, long_run: (tau / t1).max(1.0) })
    }
}

/// How instances of the baseline differ from each other. It needs no canary, so nothing a canary
/// does can move it. Threads or shards of one process are not instances: they share their noise.
#[derive(Clone, Debug)]
pub struct LeaveOneOut {
    windows: Vec<InstanceWindow>,
    stream: InstanceWindow,
    /// Of stream blocks: squares of the leave-one-out contrasts, and the counts they stand for.
    stream_sizes: f64,
    scores: Vec<ScoreWindow>,
}

#[derive(Clone, Debug)]
struct InstanceWindow {
    blocks: usize,
    filled: usize,
    /// By instance.
    open: Vec<Count>,
    squares: f64,
    variance: f64,
    count: u64,
}

#[derive(Clone, Debug)]
struct ScoreWindow {
    blocks: usize,
    filled: usize,
    open: Vec<f64>,
    squares: f64,
    count: u64,
}

impl LeaveOneOut {
    /// For so many instances and windows; scores of `stream` blocks each are followed over
    /// `stream_blocks` of them, ascending, the first 1.
    pub fn new(instances: usize, lengths: &[usize], stream: usize, stream_blocks: &[usize]) -> Self {
        let window = |blocks: usize| InstanceWindow {
            blocks,
            filled: 0,
            open: vec![Count::default(); instances],
            squares: 0.0,
            variance: 0.0,
            count: 0,
        };
        let score = |blocks: &usize| ScoreWindow {
            blocks: *blocks,
            filled: 0,
            open: vec![0.0; instances],
            squares: 0.0,
            count: 0,
        };
        Self {
            windows: lengths.iter().map(|blocks| window(*blocks)).collect(),
            stream: window(stream),
            stream_sizes: 0.0,
            scores: stream_blocks.iter().map(score).collect(),
        }
    }

    /// One block, by instance.
    pub fn add(&mut self, counts: &[Count]) {
        for window in &mut self.windows {
            if let Some(contrasts) = window.add(counts) {
                for (d, v, _) in contrasts {
                    window.squares += d * d;
                    window.variance += v;
                }
                window.count += 1;
            }
        }
        let Some(contrasts) = self.stream.add(counts) else { return };
        // Only what is already past scales a score.
        if self.stream.count * counts.len() as u64 >= SCORES_MIN && self.stream.squares > 0.0 {
            let scale = self.stream.squares / self.stream_sizes;
            let z: Vec<f64> = contrasts
                .iter()
                .map(
                    |(d, _, size)| {
                        if *size > 0.0 { (d / (scale * size).sqrt()).clamp(-Z_MAX, Z_MAX) } else { 0.0 }
                    },
                )
                .collect();
            for window in &mut self.scores {
                window.add(&z);
            }
        }
        for (d, _, size) in contrasts {
            self.stream.squares += d * d;
            self.stream_sizes += size;
        }
        self.stream.count += 1;
    }

    /// What is not whole is not used.
    pub fn cut(&mut self) {
        for window in self.windows.iter_mut().chain([&mut self.stream]) {
            window.filled = 0;
            window.open.fill(Count::default());
        }
        for window in &mut self.scores {
            window.filled = 0;
            window.open.fill(0.0);
        }
    }

    /// `tau`, from windows of which enough have been seen.
    pub fn tau(&self) -> Option<f64> {
        let ratio = |window: &InstanceWindow| {
            let noisy = window.squares / window.variance * self.caution(window.count);
            // Nothing above the threshold is no noise.
            (window.count >= WINDOWS_MIN).then_some(if window.variance > 0.0 { noisy } else { 1.0 })
        };
        self.windows.iter().filter_map(ratio).reduce(f64::max).map(|tau| tau.max(1.0))
    }

    /// Variance of the canary's contrast over one stream block of `pair`, beyond chance 0 where
    /// nothing was ever above the threshold, and by how much scores hang together. `None` before enough scores have been seen.
    pub fn variance(&self, pair: &Pair) -> Option<(f64, f64)> {
        let single = self.scores.first()?;
        if self.stream.squares <= 0.0 && self.stream.count * self.stream.open.len() as u64 >= SCORES_MIN {
            return Some((0.0, 1.0));
        }
        if single.count * (single.open.len() as u64) < SCORES_MIN || single.squares <= 0.0 {
            return None;
        }
        let per_score = |window: &ScoreWindow| window.squares / (window.count as f64 * window.blocks as f64);
        let ratio = |window: &ScoreWindow| {
            let enough = window.count >= WINDOWS_MIN;
            enough.then(|| per_score(window) / per_score(single) * self.caution(window.count))
        };
        let long_run = self.scores[1..].iter().filter_map(ratio).fold(1.0, f64::max);
        let r = pair.share();
        let size = r * (1.0 - r) * (pair.canary.all + pair.baseline.all);
        let own = self.stream_sizes / (self.stream.count as f64 * self.stream.open.len() as f64);
        // Noise of a whole instance grows with the square of its observations, chance with their
        // number: a canary larger than the instances is taken to be all noise.
        let larger = (size / own).max(1.0);
        Some((self.stream.squares / self.stream_sizes * size * larger, long_run))
    }

    fn caution(&self, windows: u64) -> f64 {
        1.0 + (2.0 / ((self.stream.open.len() as f64 - 1.0) * windows as f64)).sqrt()
    }
}

impl InstanceWindow {
    /// When whole: for every instance its contrast with the others, the Poisson variance of that,
    /// and the observations that it stands for.
    fn add(&mut self, counts: &[Count]) -> Option<Vec<(f64, f64, f64)>> {
        for (open, count) in self.open.iter_mut().zip(counts) {
            open.add(*count);
        }
        self.filled += 1;
        if self.filled < self.blocks {
            return None;
        }
        self.filled = 0;
        let counts: Vec<Count> = self.open.iter_mut().map(std::mem::take).collect();
        let mut sum = Count::default();
        for count in &counts {
            sum.add(*count);
        }
        let alive = counts.iter().filter(|count| count.all > 0.0).count();
        (alive >= INSTANCES_MIN).then(|| {
            let contrast = |count: &Count| {
                let share = count.all / sum.all;
                let d = count.above - share * sum.above;
                (d, share * (1.0 - share) * sum.above, share * (1.0 - share) * sum.all)
            };
            counts.iter().map(contrast).collect()
        })
    }
}

impl ScoreWindow {
    fn add(&mut self, scores: &[f64]) {
        for (open, score) in self.open.iter_mut().zip(scores) {
            *open += score;
        }
        self.filled += 1;
        if self.filled == self.blocks {
            self.filled = 0;
            self.squares += self.open.iter().map(|sum| sum * sum).sum::<f64>();
            self.count += 1;
            self.open.fill(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(above: f64, all: f64) -> Count {
        Count { above, all }
    }

    fn close(value: f64, wanted: f64) {
        assert!((value - wanted).abs() < 1e-6 * wanted.abs().max(1.0), "{value}, not {wanted}");
    }

    #[test]
    fn instances_that_differ_less_than_chance() {
        let mut noise = LeaveOneOut::new(4, &[1], 1, &[1]);
        for row in [[10, 12, 8, 10], [9, 11, 10, 10], [14, 6, 10, 10], [10, 10, 10, 16]] {
            noise.add(&row.map(|k| count(f64::from(k), 1000.0)));
        }
        close(noise.windows[0].squares, 69.0);
        close(noise.windows[0].variance, 124.5);
        close(noise.caution(4), 1.408_248);
        assert_eq!(noise.tau(), Some(1.0));
    }

    #[test]
    fn the_baseline_from_window_to_window() {
        let mut noise = Temporal::new(&[1]);
        for k in [100.0, 120.0, 80.0, 110.0, 90.0] {
            noise.add(count(k, 1000.0));
        }
        close(noise.windows[0].squares, 0.0033);
        close(noise.windows[0].poisson, 0.000_811_594);
        let usual = Usual { share_above: 500.5 / 5001.0, canary: 1000.0, baseline: 1000.0 };
        close(usual.share_above, 0.100_080);
        close(noise.ratio(0, &usual).expect("four pairs"), 6.305_724);
    }

    #[test]
    fn the_contrast_without_its_mean() {
        let mut noise = Own::new(&[1]);
        for k in [12.0, 8.0, 20.0, 10.0] {
            noise.add(Pair { baseline: count(40.0, 4000.0), canary: count(k, 1000.0) });
        }
        let window = &noise.windows[0];
        close(window.squares, 69.12);
        close(window.sum, 8.0);
        close(window.variance, 33.6);
        close(noise.ratio(0).expect("four windows"), 5.089_009);
    }

    #[test]
    fn a_cut_forgets_what_is_not_whole_and_nothing_else() {
        let mut noise = Temporal::new(&[2]);
        for k in [10.0, 10.0, 30.0, 30.0, 999.0] {
            noise.add(count(k, 1000.0));
        }
        let before = noise.windows[0].squares;
        noise.cut();
        for k in [10.0, 10.0] {
            noise.add(count(k, 1000.0));
        }
        assert_eq!((noise.windows[0].squares, noise.windows[0].pairs), (before, 1));
    }

    #[test]
    fn without_any_window_there_is_no_scale() {
        let lengths = [1, 2];
        let two = TwoArm { temporal: Temporal::new(&lengths), own: Own::new(&lengths), stream: 0 };
        let usual = Usual { share_above: 0.01, canary: 10.0, baseline: 10.0 };
        assert_eq!(two.scale(true, &usual), None);
        assert_eq!(LeaveOneOut::new(3, &lengths, 1, &[1, 2]).tau(), None);
    }

    #[test]
    fn instances_with_nothing_above_the_threshold_have_no_noise() {
        let mut noise = LeaveOneOut::new(3, &[1, 2], 1, &[1, 2]);
        let pair = Pair { baseline: count(0.0, 300.0), canary: count(5.0, 100.0) };
        assert_eq!((noise.tau(), noise.variance(&pair)), (None, None));
        (0..20).for_each(|_| noise.add(&[count(0.0, 100.0); 3]));
        assert_eq!((noise.tau(), noise.variance(&pair)), (Some(1.0), Some((0.0, 1.0))));
    }

    #[test]
    fn a_larger_canary_is_taken_to_be_noisier_than_in_proportion() {
        let mut noise = LeaveOneOut::new(4, &[1], 1, &[1]);
        for block in 0..100 {
            let counts: Vec<Count> =
                (0..4).map(|h| count(10.0 + f64::from((block * 7 + h * 3) % 5), 1000.0)).collect();
            noise.add(&counts);
        }
        let pair = |canary| Pair { baseline: count(40.0, 4000.0), canary: count(10.0, canary) };
        let (same, _) = noise.variance(&pair(1000.0)).expect("enough scores");
        let (double, _) = noise.variance(&pair(2000.0)).expect("enough scores");
        assert!(double > 2.0 * same, "{double} {same}");
    }
}
