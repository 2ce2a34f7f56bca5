//! The gate: two arms that serve at the same time, baseline and canary, and the question whether
//! the canary is worse. Evidence is anytime-valid: it may be looked at after every block, and the
//! probability that a harmless canary is ever failed stays below alpha.
//!
//! Blocks of readings go in ([`Gate::add`]), a [`Report`] comes out. Not failing is never passing:
//! a pass needs certificates of its own, which have to stand; the absence of data is neither.
//!
//! It is not the place for formats, files and times of day (daemon `gate`). Numbers are in
//! `constant`, the tests in `latency`, `error` and `resource`, what they are made of in `evidence`
//! and `noise`.

mod bucket;
mod constant;
mod error;
mod evidence;
mod latency;
mod noise;
mod report;
mod resource;
mod row;
mod track;
mod watch;

use std::collections::VecDeque;

use crate::text::percentile;

pub use bucket::Buckets;
pub use constant::{FAIL_MARGIN, QUANTILES, RESOURCE_MARGIN};
pub use report::{Action, Report, Row, Verdict};
pub use resource::Direction;
pub use watch::{Builds, Spec, Status, Watch, Watched};

use constant::{
    ALPHA_FAIL, ERRORS_WEIGHT, LATENCY_WEIGHT, MISSING_SECONDS, MISSING_SHARE, RESOURCE_WEIGHT,
    STAND_SECONDS, STEPS, VOLUME_FACTOR, WARM_UP_SECONDS,
};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arm {
    /// Reference.
    Baseline,
    /// Tested.
    Canary,
}

/// What is judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Kpi {
    /// Name.
    pub name: String,
    /// What kind of data it is.
    pub kind: Kind,
    /// Length of its blocks, seconds.
    pub seconds: f64,
}

/// Kinds of data.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Histograms: `(index into QUANTILES, tolerated ratio above 1 instead of the default)`.
    Latency(Vec<(usize, Option<f64>)>),
    /// Total and bad.
    Errors,
    /// A gauge or a rate.
    Resource {
        /// Which way is worse.
        direction: Direction,
        /// Tolerated ratio above 1.
        margin: f64,
    },
}

impl Kind {
    /// A latency with all quantiles and default margins.
    pub fn latency() -> Self {
        Self::Latency((0..QUANTILES.len()).map(|index| (index, None)).collect())
    }

    /// A resource with defaults.
    pub fn resource() -> Self {
        Self::Resource { direction: Direction::Higher, margin: RESOURCE_MARGIN }
    }

    fn weight(&self) -> f64 {
        match self {
            Self::Latency(_) => LATENCY_WEIGHT,
            Self::Errors => ERRORS_WEIGHT,
            Self::Resource { .. } => RESOURCE_WEIGHT,
        }
    }
}

/// How strict a gate is.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Probability that an unharmed canary is ever rolled back in a whole rollout.
    pub alpha: f64,
    /// Steps of the rollout.
    pub steps: u32,
    /// No pass before so many seconds with both arms.
    pub dwell_seconds: f64,
    /// Share of the traffic that the canary should have, 0..1; `None`: not checked.
    pub share: Option<f64>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { alpha: ALPHA_FAIL, steps: STEPS, dwell_seconds: 0.0, share: None }
    }
}

/// What one arm said about one KPI, for one block.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Observations of the block.
    Latency(Buckets),
    /// Requests of the block and those that failed.
    Errors {
        /// All.
        total: u64,
        /// Failed.
        bad: u64,
    },
    /// Level or rate.
    Resource(f64),
}

/// One reading.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// End of its interval, seconds.
    pub t: f64,
    /// Whose.
    pub arm: Arm,
    /// Index into the gate's KPIs.
    pub kpi: usize,
    /// Which process or pod; 0: not told apart.
    pub instance: u32,
    /// What.
    pub value: Value,
}

/// Why a reading is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its block is closed: time went backwards.
    Backwards,
    /// The KPI has another kind of data.
    Kind,
}

/// One gate, over one step of a rollout.
pub struct Gate {
    policy: Policy,
    tracked: Vec<Tracked>,
    failed: Option<Failure>,
    /// Blocks to be left out after a restart of the canary, seconds.
    warm_up: f64,
    latest: Option<f64>,
}

struct Decision {
    verdict: Verdict,
    t: Option<f64>,
    kpi: Option<usize>,
    quantile: Option<f64>,
    reason: String,
}

struct Failure {
    t: f64,
    kpi: usize,
    quantile: Option<f64>,
    reason: String,
}

struct Tracked {
    kpi: Kpi,
    alpha: f64,
    judge: Judge,
    open: Option<Open>,
    /// `t` of the first reading: blocks are counted from it.
    origin: Option<f64>,
    presence: Presence,
}

enum Judge {
    Latency(Box<latency::Judge>),
    Errors(Box<error::Judge>),
    Resource(Box<resource::Judge>),
}

/// A block that is being filled.
struct Open {
    number: i64,
    t: f64,
    latency: latency::Block,
    /// `[arm]`: total and bad; or sum and number of values.
    sums: [(f64, f64); 2],
    unusable: bool,
}

/// How much of what should have been there was there.
#[derive(Default)]
struct Presence {
    paired: u64,
    missing: u64,
    /// Seconds in a row without both arms.
    gap: f64,
    recent: VecDeque<bool>,
}

impl Gate {
    /// Nothing seen yet.
    pub fn new(policy: Policy, kpis: Vec<Kpi>) -> Self {
        let same = |kpi: &Kpi| {
            let kind = std::mem::discriminant(&kpi.kind);
            kpis.iter().filter(|other| std::mem::discriminant(&other.kind) == kind).count() as f64
        };
        let alphas: Vec<f64> = kpis
            .iter()
            .map(|kpi| policy.alpha / f64::from(policy.steps) * kpi.kind.weight() / same(kpi))
            .collect();
        let tracked = kpis.into_iter().zip(alphas).map(|(kpi, alpha)| Tracked {
            judge: Judge::new(&kpi),
            kpi,
            alpha,
            open: None,
            origin: None,
            presence: Presence::default(),
        });
        Self { policy, tracked: tracked.collect(), failed: None, warm_up: 0.0, latest: None }
    }

    /// Takes a reading; what it completes is judged. Within a block the order does not matter.
    ///
    /// # Errors
    /// When it is older than what has been judged, or of the wrong kind.
    pub fn add(&mut self, reading: Reading) -> Result<(), Refused> {
        let tracked = &mut self.tracked[reading.kpi];
        let origin = *tracked.origin.get_or_insert(reading.t);
        let number = ((reading.t - origin) / tracked.kpi.seconds).round() as i64;
        match &tracked.open {
            Some(open) if number < open.number => return Err(Refused::Backwards),
            Some(open) if number > open.number => self.close_up_to(reading.kpi, number),
            _ => {}
        }
        let tracked = &mut self.tracked[reading.kpi];
        let open = tracked.open.get_or_insert_with(|| Open::new(number, reading.t));
        open.t = open.t.max(reading.t);
        open.take(reading, &tracked.kpi.kind)
    }

    /// Time is `t`: blocks that ended more than one block ago are judged, also without data.
    pub fn advance(&mut self, t: f64) {
        for kpi in 0..self.tracked.len() {
            let Tracked { kpi: Kpi { seconds, .. }, origin: Some(origin), open: Some(open), .. } =
                &self.tracked[kpi]
            else {
                continue;
            };
            let number = ((t - origin) / seconds).floor() as i64 - 1;
            if number > open.number {
                self.close_up_to(kpi, number);
            }
        }
    }

    /// No more readings: what is open is judged.
    pub fn finish(&mut self) {
        for kpi in 0..self.tracked.len() {
            self.close(kpi);
        }
    }

    /// The open blocks cannot be used: readings were lost, a probe was not healthy.
    pub fn spoil(&mut self) {
        for tracked in &mut self.tracked {
            if let Some(open) = &mut tracked.open {
                open.unusable = true;
            }
        }
    }

    /// An arm has been restarted: its open blocks are not used, and a canary may warm up.
    pub fn restarted(&mut self, arm: Arm) {
        self.spoil();
        if arm == Arm::Canary {
            self.warm_up = WARM_UP_SECONDS;
        }
    }

    /// A new step, or another build: everything begins anew, but for what the baseline showed.
    pub fn restart(&mut self, policy: Policy) {
        self.policy = policy;
        self.failed = None;
        self.warm_up = 0.0;
        for tracked in &mut self.tracked {
            tracked.presence = Presence::default();
            if let Some(open) = &mut tracked.open {
                open.latency.canary.clear();
                open.sums[Arm::Canary as usize] = (0.0, 0.0);
            }
            match &mut tracked.judge {
                Judge::Latency(judge) => judge.restart(),
                judge => *judge = Judge::new(&tracked.kpi),
            }
        }
    }

    /// Closes the open block, and counts those up to `number` that nobody reported for.
    fn close_up_to(&mut self, kpi: usize, number: i64) {
        let Some(open) = &self.tracked[kpi].open else { return };
        let (last, t) = (open.number, open.t);
        self.close(kpi);
        let tracked = &mut self.tracked[kpi];
        let missing = number - last - 1;
        if missing > 0 {
            tracked.judge.cut();
            tracked.presence.miss(missing as u64, tracked.kpi.seconds);
        }
        tracked.open = Some(Open::new(number, t + (number - last) as f64 * tracked.kpi.seconds));
    }

    fn close(&mut self, kpi: usize) {
        let tracked = &mut self.tracked[kpi];
        let Some(open) = tracked.open.take() else { return };
        let (t, seconds) = (open.t, tracked.kpi.seconds);
        self.latest = Some(self.latest.map_or(t, |latest| latest.max(t)));
        let usable = !open.unusable && self.warm_up <= 0.0;
        if open.has(Arm::Canary) {
            self.warm_up -= seconds / self.tracked.len() as f64;
        }
        let tracked = &mut self.tracked[kpi];
        let begun = tracked.presence.paired > 0;
        let both = if usable {
            tracked.judge.block(open, t)
        } else {
            tracked.judge.cut();
            false
        };
        if both {
            tracked.presence.pair(seconds);
        } else if begun {
            tracked.presence.miss(1, seconds);
        }
        if self.failed.is_none() && tracked.judge.log_evidence() > -tracked.alpha.ln() {
            let (quantile, reason) = tracked.judge.harm(&tracked.kpi, tracked.alpha);
            self.failed = Some(Failure { t, kpi, quantile, reason });
        }
    }

    /// What it says now.
    pub fn report(&self) -> Report {
        let kpis: Vec<Row> = self.tracked.iter().flat_map(|tracked| self.rows(tracked)).collect();
        let Decision { verdict, t, kpi, quantile, reason } = self.decide();
        let name = |kpi: usize| self.tracked[kpi].kpi.name.clone();
        Report { verdict, action: verdict.action(), t, kpi: kpi.map(name), quantile, reason, kpis }
    }

    fn decide(&self) -> Decision {
        let hold =
            |verdict, reason: String| Decision { verdict, t: self.latest, kpi: None, quantile: None, reason };
        if let Some(Failure { t, kpi, quantile, reason }) = &self.failed {
            let (kpi, quantile, reason) = (Some(*kpi), *quantile, reason.clone());
            return Decision { verdict: Verdict::Fail, t: Some(*t), kpi, quantile, reason };
        }
        if self.tracked.iter().all(|tracked| tracked.presence.paired == 0) {
            let reason = "no interval has observations of both baseline and canary yet";
            return hold(Verdict::NoData, reason.into());
        }
        if let Some((kpi, quantile, reason)) = self.holds() {
            return Decision { kpi: Some(kpi), quantile, ..hold(Verdict::Inconclusive, reason) };
        }
        let certified = |kpi: usize| Some((kpi, self.tracked[kpi].judge.certified()?));
        let all = (0..self.tracked.len()).filter_map(certified);
        let Some((kpi, (t, quantile))) = all.max_by(|a, b| a.1.0.total_cmp(&b.1.0)) else {
            return hold(Verdict::Inconclusive, "no KPI is judged".into());
        };
        let reason =
            format!("every KPI is certified to be within its margin, {} last", self.named(kpi, quantile));
        Decision { verdict: Verdict::Pass, t: Some(t), kpi: Some(kpi), quantile, reason }
    }

    /// Why there is no pass, if so: the first reason in the order in which a person should look.
    fn holds(&self) -> Option<(usize, Option<f64>, String)> {
        for (kpi, tracked) in self.tracked.iter().enumerate() {
            let name = &tracked.kpi.name;
            let presence = &tracked.presence;
            let hold = if presence.paired == 0 {
                Some(format!("{name} has no interval with both arms yet"))
            } else if presence.gap > MISSING_SECONDS {
                Some(format!("{name} has not had both arms for {:.0} s", presence.gap))
            } else if presence.too_thin(tracked.kpi.seconds) {
                Some(format!(
                    "{name} lacks an arm in {} of {} intervals",
                    presence.missing,
                    presence.missing + presence.paired
                ))
            } else {
                tracked.judge.guard(name)
            };
            if let Some(reason) = hold.or_else(|| self.volume(tracked)) {
                return Some((kpi, None, reason));
            }
        }
        for (kpi, tracked) in self.tracked.iter().enumerate() {
            if let Some((quantile, why)) = tracked.judge.waits() {
                return Some((kpi, quantile, format!("{} {why}", self.named(kpi, quantile))));
            }
        }
        let dwelt = |tracked: &Tracked| tracked.presence.paired as f64 * tracked.kpi.seconds;
        let least = self.tracked.iter().map(dwelt).fold(f64::INFINITY, f64::min);
        (least < self.policy.dwell_seconds).then(|| {
            let dwell = self.policy.dwell_seconds;
            (0, None, format!("certified after {least:.0} s, and a pass has to stand for {dwell:.0} s"))
        })
    }

    /// Traffic that is not split as it should be may not be comparable.
    fn volume(&self, tracked: &Tracked) -> Option<String> {
        let wanted = self.policy.share.filter(|share| *share > 0.0 && *share < 1.0)?;
        let (baseline, canary) = tracked.judge.counts()?;
        let odds = (canary / baseline) / (wanted / (1.0 - wanted));
        let off = baseline <= 0.0 || !(1.0 / VOLUME_FACTOR..=VOLUME_FACTOR).contains(&odds);
        off.then(|| {
            format!(
                "the canary has {:.1} % of {}'s observations, not the {:.1} % of its weight",
                100.0 * canary / (canary + baseline),
                tracked.kpi.name,
                100.0 * wanted
            )
        })
    }

    fn named(&self, kpi: usize, quantile: Option<f64>) -> String {
        let name = &self.tracked[kpi].kpi.name;
        quantile.map_or_else(|| name.clone(), |q| format!("{name} {}", percentile(q)))
    }

    fn rows(&self, tracked: &Tracked) -> Vec<Row> {
        let failed = self.failed.as_ref().filter(|failure| self.tracked[failure.kpi].kpi == tracked.kpi);
        let mut rows = tracked.judge.rows(&tracked.kpi, tracked.alpha);
        for row in &mut rows {
            if tracked.presence.paired == 0 {
                row.verdict = Verdict::NoData;
            } else if failed
                .is_some_and(|failure| failure.quantile.is_none() || failure.quantile == row.quantile)
            {
                row.verdict = Verdict::Fail;
            }
        }
        rows
    }
}

impl Judge {
    fn new(kpi: &Kpi) -> Self {
        match &kpi.kind {
            Kind::Latency(quantiles) => {
                let of = |(index, margin): &(usize, Option<f64>)| latency::Quantile::of(*index, *margin);
                Self::Latency(Box::new(latency::Judge::new(quantiles.iter().map(of).collect(), kpi.seconds)))
            }
            Kind::Errors => Self::Errors(Box::new(error::Judge::new(kpi.seconds))),
            Kind::Resource { direction, margin } => {
                Self::Resource(Box::new(resource::Judge::new(*direction, *margin, kpi.seconds)))
            }
        }
    }

    fn block(&mut self, open: Open, t: f64) -> bool {
        let [baseline, canary] = open.sums;
        match self {
            Self::Latency(judge) => judge.block(open.latency, t),
            Self::Errors(judge) => judge.block(baseline, canary, t),
            Self::Resource(_) if baseline.1 == 0.0 || canary.1 == 0.0 => {
                self.cut();
                false
            }
            Self::Resource(judge) => judge.block(baseline.0 / baseline.1, canary.0 / canary.1, t),
        }
    }

    fn cut(&mut self) {
        match self {
            Self::Latency(judge) => judge.cut(),
            Self::Errors(_) => {}
            Self::Resource(judge) => judge.cut(),
        }
    }

    fn log_evidence(&self) -> f64 {
        match self {
            Self::Latency(judge) => judge.step().map_or(0.0, latency::Step::log_evidence),
            Self::Errors(judge) => judge.log_evidence(),
            Self::Resource(judge) => judge.log_evidence(),
        }
    }

    /// When the last certificate came, and of which quantile; `None`: some are missing.
    fn certified(&self) -> Option<(f64, Option<f64>)> {
        match self {
            Self::Latency(judge) => {
                let step = judge.step()?;
                step.certified().map(|(t, index)| (t, Some(step.tracks()[index].quantile.q)))
            }
            Self::Errors(judge) => judge.certified.map(|t| (t, None)),
            Self::Resource(judge) => judge.certified.map(|t| (t, None)),
        }
    }
}

impl Open {
    fn new(number: i64, t: f64) -> Self {
        Self { number, t, latency: latency::Block::default(), sums: [(0.0, 0.0); 2], unusable: false }
    }

    fn take(&mut self, reading: Reading, kind: &Kind) -> Result<(), Refused> {
        let Reading { arm, instance, value, .. } = reading;
        let sums = &mut self.sums[arm as usize];
        match (value, kind) {
            (Value::Latency(buckets), Kind::Latency(_)) => {
                let arm = match arm {
                    Arm::Baseline => &mut self.latency.baseline,
                    Arm::Canary => &mut self.latency.canary,
                };
                match arm.iter_mut().find(|(of, _)| *of == instance) {
                    Some((_, sum)) => sum.merge(&buckets),
                    None => arm.push((instance, buckets)),
                }
            }
            (Value::Errors { total, bad }, Kind::Errors) => {
                sums.0 += total as f64;
                sums.1 += bad as f64;
            }
            (Value::Resource(value), Kind::Resource { .. }) => {
                sums.0 += value;
                sums.1 += 1.0;
            }
            _ => return Err(Refused::Kind),
        }
        Ok(())
    }

    fn has(&self, arm: Arm) -> bool {
        let latency = if arm == Arm::Baseline { &self.latency.baseline } else { &self.latency.canary };
        !latency.is_empty() || self.sums[arm as usize] != (0.0, 0.0)
    }
}

impl Presence {
    fn pair(&mut self, seconds: f64) {
        self.paired += 1;
        self.gap = 0.0;
        self.remember(true, seconds);
    }

    fn miss(&mut self, blocks: u64, seconds: f64) {
        if self.paired == 0 {
            return;
        }
        self.missing += blocks;
        self.gap += blocks as f64 * seconds;
        let most = (STAND_SECONDS / seconds).ceil() as u64;
        (0..blocks.min(most)).for_each(|_| self.remember(false, seconds));
    }

    fn remember(&mut self, both: bool, seconds: f64) {
        self.recent.push_back(both);
        if self.recent.len() as f64 * seconds > STAND_SECONDS && self.recent.len() > 1 {
            self.recent.pop_front();
        }
    }

    /// Too much is missing, in all or over the last minute.
    fn too_thin(&self, seconds: f64) -> bool {
        let missing = self.recent.iter().filter(|both| !**both).count();
        let longest = self.recent.iter().fold((0, 0), |(longest, run), both| {
            let run = if *both { 0 } else { run + 1 };
            (run.max(longest), run)
        });
        missing as f64 > MISSING_SHARE * self.recent.len() as f64
            || self.missing as f64 > MISSING_SHARE * (self.missing + self.paired) as f64
            || f64::from(longest.0) * seconds > MISSING_SECONDS
    }
}
