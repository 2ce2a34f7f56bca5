//! One latency: from blocks of histograms of both arms to evidence and certificates.

use std::collections::VecDeque;

use super::bucket::{Buckets, Grid};
use super::constant::{
    BAND_RATE, BASELINE_ILL_SHARE, EPISODE_CHANCE, EPISODE_COUNT, EPISODE_PROCESSES, EPISODE_SHARE,
    EPISODE_SHARE_LABELLED, FAIL_MARGIN, HISTORY_SECONDS, HISTORY_SECONDS_MIN, INSTANCES_MIN,
    LEARNING_BLOCKS, LEVEL_SHARE, OPENING_BLOCKS, PASS_MARGIN, QUANTILE_WEIGHT, QUANTILES, STAND_SECONDS,
};
use super::evidence::{Episodes, log_sum_exp};
use super::track::{Expects, Seen, Track, above, count};

/// Histograms of one block, by instance; instance 0 has no name.
pub type Arm = Vec<(u32, Buckets)>;

/// One block of both arms. An arm without observations is missing, never fast.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// Reference.
    pub baseline: Arm,
    /// Tested.
    pub canary: Arm,
}

/// What is judged of a quantile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantile {
    /// In 0..1.
    pub q: f64,
    /// Share in the evidence.
    pub weight: f64,
    /// Tolerated, nominal.
    pub fail_margin: f64,
    /// Promised by a certificate, nominal, by band.
    pub pass_margin: [Option<f64>; 3],
}

impl Quantile {
    /// Quantile `index` of the table; `margin` instead of its own widens the certificate alike.
    pub fn of(index: usize, margin: Option<f64>) -> Self {
        let factor = margin.map_or(1.0, |margin| margin / FAIL_MARGIN[index]);
        Self {
            q: QUANTILES[index],
            weight: QUANTILE_WEIGHT[index],
            fail_margin: FAIL_MARGIN[index] * factor,
            pass_margin: PASS_MARGIN.map(|band| band[index].map(|margin| margin * factor)),
        }
    }
}

/// One latency.
pub struct Judge {
    quantiles: Vec<Quantile>,
    seconds: f64,
    grid: Grid,
    /// Blocks of the baseline alone; `None` where it was missing.
    history: VecDeque<Option<Arm>>,
    /// The first blocks with both arms, and when they ended; `None`: a gap.
    opening: Vec<Option<(Block, f64)>>,
    step: Option<Step>,
}

impl Judge {
    /// For blocks of `seconds`. The weights of the quantiles need not sum to 1.
    pub fn new(mut quantiles: Vec<Quantile>, seconds: f64) -> Self {
        let sum: f64 = quantiles.iter().map(|quantile| quantile.weight).sum();
        for quantile in &mut quantiles {
            quantile.weight /= sum;
        }
        Self {
            quantiles,
            seconds,
            grid: Grid::default(),
            history: VecDeque::new(),
            opening: Vec::new(),
            step: None,
        }
    }

    /// One block that ended at `t`. Says whether it had both arms.
    pub fn block(&mut self, block: Block, t: f64) -> bool {
        let (baseline, canary) = (count(&block.baseline) > 0, count(&block.canary) > 0);
        let both = baseline && canary;
        if let Some(step) = &mut self.step {
            if both {
                step.block(&block, t);
            } else {
                step.cut();
            }
            return both;
        }
        for (_, buckets) in block.baseline.iter().chain(&block.canary) {
            self.grid.learn(buckets);
        }
        if self.opening.is_empty() && !both {
            // A canary without a baseline says nothing either.
            self.history.push_back(baseline.then_some(block.baseline));
            if self.history.len() as f64 * self.seconds > HISTORY_SECONDS {
                self.history.pop_front();
            }
        } else if both {
            self.opening.push(Some((block, t)));
            self.open();
        } else if self.opening.last().is_some_and(Option::is_some) {
            self.opening.push(None);
        }
        both
    }

    /// Blocks follow that neither arm has: what is not whole is not used.
    pub fn cut(&mut self) {
        match &mut self.step {
            Some(step) => step.cut(),
            None if self.opening.is_empty() => {
                self.history.push_back(None);
            }
            None => self.opening.push(None),
        }
    }

    /// A new step: only what the baseline showed before it is kept.
    pub fn restart(&mut self) {
        if let Some(step) = self.step.take() {
            self.history = step.history;
        }
        for block in std::mem::take(&mut self.opening) {
            self.history.push_back(block.map(|(block, _)| block.baseline));
        }
        let most = (HISTORY_SECONDS / self.seconds) as usize;
        let surplus = self.history.len().saturating_sub(most);
        self.history.drain(..surplus);
    }

    /// The step, once it has begun.
    pub fn step(&self) -> Option<&Step> {
        self.step.as_ref()
    }

    fn open(&mut self) {
        let known = self.history.iter().flatten().count() as f64 * self.seconds >= HISTORY_SECONDS_MIN;
        let blocks: Vec<&Block> = self.opening.iter().flatten().map(|(block, _)| block).collect();
        if blocks.len() < if known { OPENING_BLOCKS } else { LEARNING_BLOCKS } {
            return;
        }
        let mut reference = Buckets::default();
        let mut instances: Vec<u32> = Vec::new();
        let learnt = blocks.iter().map(|block| &block.baseline).take(if known { 0 } else { usize::MAX });
        for (instance, buckets) in self.history.iter().flatten().chain(learnt).flatten() {
            reference.merge(buckets);
            if *instance > 0 && !instances.contains(instance) {
                instances.push(*instance);
            }
        }
        instances.sort_unstable();
        let canary = median(blocks.iter().map(|block| count(&block.canary)).collect());
        let mut step = Step::new(&self.quantiles, self.seconds, &self.grid, &reference, canary, instances);
        for past in &self.history {
            match past {
                Some(arm) => step.baseline_alone(arm),
                None => step.cut(),
            }
        }
        step.cut();
        for block in std::mem::take(&mut self.opening) {
            match block {
                Some((block, t)) if known => step.block(&block, t),
                Some((block, _)) => step.learn(&block),
                None => step.cut(),
            }
        }
        step.history = std::mem::take(&mut self.history);
        self.step = Some(step);
    }
}

/// What is kept of a step.
pub struct Step {
    seconds: f64,
    tracks: Vec<Track>,
    /// p99.99 of the baseline: what is above may be a stall.
    stall: f64,
    /// Baseline instances that are told apart; empty: they are not.
    instances: Vec<u32>,
    episodes: Episodes,
    /// Blocks with both arms that were judged, and those that were only learnt from.
    blocks: u64,
    learnt: u64,
    /// Everything of this step.
    pub baseline: Buckets,
    /// See `baseline`.
    pub canary: Buckets,
    history: VecDeque<Option<Arm>>,
}

impl Step {
    fn new(
        quantiles: &[Quantile],
        seconds: f64,
        grid: &Grid,
        reference: &Buckets,
        canary: f64,
        mut instances: Vec<u32>,
    ) -> Self {
        if instances.len() < INSTANCES_MIN {
            instances.clear();
        }
        let band = BAND_RATE.iter().filter(|limit| canary / seconds >= **limit).count();
        let expects = Expects { canary, band, seconds, instances: instances.len() };
        let track =
            |(index, quantile): (usize, &Quantile)| Track::new(index, *quantile, reference, grid, &expects);
        Self {
            seconds,
            tracks: quantiles.iter().enumerate().map(track).collect(),
            stall: reference.quantile(0.9999).unwrap_or(f64::INFINITY),
            instances,
            episodes: Episodes::new(),
            blocks: 0,
            learnt: 0,
            baseline: Buckets::default(),
            canary: Buckets::default(),
            history: VecDeque::new(),
        }
    }

    /// The quantiles.
    pub fn tracks(&self) -> &[Track] {
        &self.tracks
    }

    /// How often the canary alone stalled.
    pub fn stalls(&self) -> u64 {
        self.episodes.hits()
    }

    /// Logarithm of the evidence of harm.
    pub fn log_evidence(&self) -> f64 {
        let level =
            self.tracks.iter().map(|track| (LEVEL_SHARE * track.quantile.weight, track.log_evidence()));
        let all: Vec<_> = level.chain([(1.0 - LEVEL_SHARE, self.episodes.log())]).collect();
        log_sum_exp(&all)
    }

    /// The quantile with most evidence, and its share; `None`: it is the stalls.
    pub fn deciding(&self) -> Option<usize> {
        let weighted = |track: &Track| track.log_evidence() + (LEVEL_SHARE * track.quantile.weight).ln();
        let most = (0..self.tracks.len())
            .max_by(|a, b| weighted(&self.tracks[*a]).total_cmp(&weighted(&self.tracks[*b])))?;
        let stalls = self.episodes.log() + (1.0 - LEVEL_SHARE).ln();
        (weighted(&self.tracks[most]) >= stalls).then_some(most)
    }

    /// Whether more stalls of the canary are seen than the baseline explains.
    pub fn stalling(&self) -> bool {
        let processes = if self.instances.is_empty() {
            let ratio = self.baseline.count() as f64 / self.canary.count().max(1) as f64;
            ratio.clamp(1.0, EPISODE_PROCESSES)
        } else {
            1.0
        };
        self.episodes.chance(processes) < EPISODE_CHANCE
    }

    /// Whether the baseline itself is far above what it was before the step.
    pub fn baseline_ill(&self) -> bool {
        self.tracks.iter().filter(|track| track.quantile.q >= 0.99).take(1).any(|track| {
            let pair = track.recent();
            pair.baseline.all > 0.0 && pair.baseline.above > BASELINE_ILL_SHARE * pair.baseline.all
        })
    }

    /// The last certificate, when every quantile that can be certified has one.
    pub fn certified(&self) -> Option<(f64, usize)> {
        let mut last: Option<(f64, usize)> = None;
        for (index, track) in self.tracks.iter().enumerate().filter(|(_, track)| track.required) {
            let at = track.certified?;
            last = Some(last.filter(|(before, _)| *before >= at).unwrap_or((at, index)));
        }
        last
    }

    fn baseline_alone(&mut self, arm: &Arm) {
        for track in &mut self.tracks {
            track.baseline(arm, &self.instances);
        }
        let bad = self.bad_instances(arm, count(arm));
        let instances = self.instances.len().max(1);
        self.episodes.history(bad, instances, self.seconds);
    }

    fn learn(&mut self, block: &Block) {
        self.baseline_alone(&block.baseline);
        self.learnt += 1;
        for track in &mut self.tracks {
            track.contrast(block);
        }
    }

    fn block(&mut self, block: &Block, t: f64) {
        let since = self.blocks as f64 * self.seconds;
        self.blocks += 1;
        block.baseline.iter().for_each(|(_, buckets)| self.baseline.merge(buckets));
        block.canary.iter().for_each(|(_, buckets)| self.canary.merge(buckets));
        let n_canary = count(&block.canary);
        let seen = Seen {
            since,
            seconds: self.seconds,
            blocks: self.blocks,
            learnt: self.learnt,
            canary: self.canary.count(),
            baseline: self.baseline.count(),
            recent: (STAND_SECONDS / self.seconds).ceil().max(1.0) as usize,
        };
        for track in &mut self.tracks {
            track.block(block, t, &seen, &self.instances);
        }
        let canary_bad = if self.instances.is_empty() {
            stalls(above(&block.canary, self.stall), n_canary as f64, EPISODE_SHARE * n_canary as f64, true)
        } else {
            block.canary.iter().any(|(_, buckets)| labelled_stalls(buckets, self.stall))
        };
        let bad = self.bad_instances(&block.baseline, n_canary);
        let instances = self.instances.len().max(1);
        let canaries = block.canary.len();
        self.episodes.add(bad, canary_bad, instances, canaries, self.seconds);
    }

    /// What is not whole is not used.
    fn cut(&mut self) {
        self.tracks.iter_mut().for_each(Track::cut);
    }

    /// Instances of the baseline in an episode; 1 or 0 when they are not told apart. The bar is the
    /// same for both arms.
    fn bad_instances(&self, arm: &Arm, n_canary: u64) -> usize {
        if self.instances.is_empty() {
            let bad =
                stalls(above(arm, self.stall), count(arm) as f64, EPISODE_SHARE * n_canary as f64, true);
            return usize::from(bad);
        }
        arm.iter().filter(|(_, buckets)| labelled_stalls(buckets, self.stall)).count()
    }
}

fn labelled_stalls(buckets: &Buckets, bound: f64) -> bool {
    let n = buckets.count() as f64;
    stalls(buckets.above(bound), n, EPISODE_SHARE_LABELLED * n, false)
}

/// Whether so many of `n` above p99.99 are an episode.
fn stalls(above: u64, n: f64, bar: f64, less_expected: bool) -> bool {
    let above = above as f64;
    if less_expected {
        above - 1e-4 * n >= bar.max(EPISODE_COUNT)
    } else {
        above >= EPISODE_COUNT && above > bar
    }
}

fn median(mut values: Vec<u64>) -> f64 {
    values.sort_unstable();
    values[values.len() / 2] as f64
}
