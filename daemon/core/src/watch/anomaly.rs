//! Every series against what is usual for it, and the findings that come of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use tickscope_common::histogram::{SLOT_ABOVE, SLOT_ZERO};

use super::series_name;
use crate::detector::{FEATURES, Shift, Shifted, Tail, Threshold, Trigger};
use crate::histogram::Histogram;
use crate::measurement::{Measurements, Outlier};
use crate::snapshot::Key;

/// Scores are given this often, seconds.
const TICK_S: f64 = 10.0;
/// False alarms allowed: of each series and detector, a week.
const FALSE_ALARMS: f64 = 1.0;
/// Series that are watched: 41 KiB each.
const SERIES_MAX: usize = 64;
/// Findings that are kept.
const FINDINGS: usize = 64;
/// Findings of one series that are closer than this are one, seconds.
const MERGE_S: f64 = 60.0;
/// A finding that begins so soon after another one probably has its cause, seconds.
const TOGETHER_S: f64 = 30.0;
/// Fine buckets in one of those that shift compares: 4 an octave are enough to see a tenth.
const COARSE: usize = 4;
const BUCKETS: usize = (SLOT_ABOVE - 1) / COARSE + 2;
/// Slots of a day.
const SLOTS: usize = 24;
/// A loss is worth a report above this share, and above so many times the usual one.
const LOSS_MIN: f64 = 0.001;
const LOSS_TIMES: f64 = 10.0;
/// More often than so many times is not told apart.
const TIMES_MAX: f64 = 100.0;
/// In force for losses; their scores are made for it.
const LOSS_THRESHOLD: f64 = 12.0;

/// What is unusual about one series at one time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Counts up from 1.
    pub id: u64,
    /// Name of the series: `target/probe.label`.
    pub series: String,
    /// Name of the detector.
    pub detector: String,
    /// When it began, and its greatest score was; wall clock, seconds since 1970.
    pub begin_s: f64,
    /// Of the greatest score.
    pub peak_s: f64,
    /// When it ended; `None` while it lasts.
    pub end_s: Option<f64>,
    /// The greatest score, in units of the threshold that was in force.
    pub peak: f64,
    /// `up` or `down`.
    pub direction: String,
    /// How many times what is usual, at the greatest score.
    pub size: f64,
    /// One sentence for a person.
    pub text: String,
    /// Who ran while threads of this series waited, most often.
    pub culprit: Option<String>,
    /// A finding that began before this one or with it, and may be its cause.
    pub after: Option<u64>,
}

/// How unusual one series is now.
#[derive(Clone, Debug, PartialEq)]
pub struct AnomalyScore {
    /// Name of the series.
    pub series: String,
    /// Name of the detector.
    pub detector: &'static str,
    /// 0..1; 0.5 is the threshold that the allowed rate of false alarms gives.
    pub score: f64,
    /// Whether a finding is open.
    pub open: bool,
    /// Whether the threshold is calibrated on this series, or still the one to start with.
    pub calibrated: bool,
}

/// What comes with a reading.
pub struct Context<'a> {
    /// Seconds of a clock that only goes forward.
    pub t: f64,
    /// Seconds since 1970, for display and for the time of day.
    pub wall_s: f64,
    pub targets: &'a [String],
    /// The latest outliers.
    pub outliers: &'a [Outlier],
}

/// All series and findings.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Anomalies {
    series: BTreeMap<String, Watched>,
    losses: BTreeMap<String, Losses>,
    findings: VecDeque<Finding>,
    last_id: u64,
    elapsed_ns: u64,
    refused: BTreeSet<String>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Watched {
    sum: Histogram,
    seen: bool,
    shift: Box<Shift>,
    shift_alarm: Alarm,
    rate: Box<Tail>,
    rate_alarm: Alarm,
}

#[derive(Clone, Serialize, Deserialize)]
struct Losses {
    lost: u64,
    of: u64,
    usual: f64,
    ticks: u64,
    alarm: Alarm,
}

/// From scores to an open finding.
#[derive(Clone, Serialize, Deserialize)]
struct Alarm {
    threshold: Threshold,
    trigger: Trigger,
    score: f64,
    /// When the scores above the threshold began, wall clock.
    since: Option<f64>,
    finding: Option<u64>,
    /// When the last finding ended, on the clock that only goes forward.
    ended: Option<f64>,
    /// It is open only because the long window still sees what has ended.
    echo: bool,
}

/// What a finding says of its moment.
struct Said {
    up: bool,
    size: f64,
    text: String,
}

impl Watched {
    fn new() -> Self {
        Self {
            sum: Histogram::default(),
            seen: false,
            shift: Box::new(Shift::new(BUCKETS, std::f64::consts::LN_2 / 4.0, SLOTS)),
            shift_alarm: Alarm::new(),
            rate: Box::new(Tail::new(FEATURES)),
            rate_alarm: Alarm::new(),
        }
    }
}

impl Alarm {
    fn new() -> Self {
        Self {
            threshold: Threshold::new(FALSE_ALARMS, TICK_S),
            trigger: Trigger::default(),
            score: 0.0,
            since: None,
            finding: None,
            ended: None,
            echo: false,
        }
    }

    /// 0..1, the threshold at 0.5.
    fn level(&self, threshold: f64) -> f64 {
        self.score / (self.score + threshold)
    }
}

impl Anomalies {
    pub fn findings(&self) -> Vec<Finding> {
        self.findings.iter().cloned().collect()
    }

    pub fn unwatched(&self) -> usize {
        self.refused.len()
    }

    pub fn scores(&self) -> Vec<AnomalyScore> {
        let of = |series: &String, detector, alarm: &Alarm| AnomalyScore {
            series: series.clone(),
            detector,
            score: alarm.level(alarm.threshold.value()),
            open: alarm.trigger.open(),
            calibrated: alarm.threshold.calibrated(),
        };
        let series = self.series.iter().flat_map(|(name, watched)| {
            [of(name, "shift", &watched.shift_alarm), of(name, "rate", &watched.rate_alarm)]
        });
        let losses = self.losses.iter().map(|(name, losses)| AnomalyScore {
            score: losses.alarm.level(LOSS_THRESHOLD),
            calibrated: true,
            ..of(name, "loss", &losses.alarm)
        });
        series.chain(losses).collect()
    }

    pub fn step(&mut self, reading: &Measurements, context: &Context<'_>) {
        self.collect(reading, context);
        self.elapsed_ns += reading.elapsed_ns;
        let elapsed_s = self.elapsed_ns as f64 / 1e9;
        if elapsed_s < 0.95 * TICK_S {
            return;
        }
        self.elapsed_ns = 0;
        // What fell into a gap is not a tick's worth.
        let usable = elapsed_s < 3.0 * TICK_S;
        let mut findings = Findings { all: &mut self.findings, last_id: &mut self.last_id, context };
        for (name, watched) in &mut self.series {
            let sum = std::mem::take(&mut watched.sum);
            if !std::mem::take(&mut watched.seen) || !usable {
                continue;
            }
            watched.tick(name, &sum, elapsed_s, &mut findings);
        }
        for (name, losses) in &mut self.losses {
            losses.tick(name, &mut findings);
        }
    }

    fn collect(&mut self, reading: &Measurements, context: &Context<'_>) {
        for row in &reading.rows {
            let running = reading.targets.get(row.target).is_none_or(|target| target.processes > 0);
            // Of a target without processes, and of a series that never had an observation,
            // nothing is usual.
            let key = Key { probe: row.probe, target: row.target, label: row.label };
            let name = series_name(key, context.targets);
            if !self.series.contains_key(&name) {
                if row.histogram.is_empty() {
                    continue;
                }
                if self.series.len() >= SERIES_MAX {
                    if self.refused.len() < 4096 {
                        self.refused.insert(name);
                    }
                    continue;
                }
            }
            let watched = self.series.entry(name).or_insert_with(Watched::new);
            watched.seen |= running;
            watched.sum.merge(&row.histogram);
        }
        let seen: u64 = reading.probes.iter().map(|probe| probe.accounting.seen).sum();
        for (index, probe) in reading.probes.iter().enumerate() {
            let discarded = probe.accounting.discarded.iter().sum();
            let name = tickscope_common::catalog::PROBES[index].name;
            self.lose(format!("discarded/{name}"), discarded, probe.accounting.seen);
        }
        for lost in &reading.lost {
            self.lose(format!("lost/{}.{}", lost.source, lost.reason), lost.count, seen + lost.count);
        }
    }

    fn lose(&mut self, name: String, lost: u64, of: u64) {
        // Names come from closed sets.
        let losses = self.losses.entry(name).or_insert_with(|| Losses {
            lost: 0,
            of: 0,
            usual: 0.0,
            ticks: 0,
            alarm: Alarm::new(),
        });
        losses.lost += lost;
        losses.of += of;
    }
}

impl Watched {
    fn tick(&mut self, name: &str, sum: &Histogram, elapsed_s: f64, findings: &mut Findings<'_>) {
        let wall_s = findings.context.wall_s;
        let open = self.shift_alarm.trigger.open();
        if let Some(shifted) = self.shift.score(wall_s, &coarse(sum), open) {
            let said = || said_of_shift(&shifted);
            findings.judge(&mut self.shift_alarm, name, "shift", shifted.score, shifted.short, &said);
        }
        let rate = sum.count() as f64 / elapsed_s;
        let usual = self.rate.typical();
        let score = self.rate.score(wall_s, rate);
        let said = || Said {
            up: rate > usual,
            size: if usual > 0.0 { rate / usual } else { f64::MAX },
            text: format!("{rate:.1} observations a second, usually {usual:.1}"),
        };
        findings.judge(&mut self.rate_alarm, name, "rate", score, score, &said);
    }
}

impl Losses {
    fn tick(&mut self, name: &str, findings: &mut Findings<'_>) {
        let (lost, of) = (std::mem::take(&mut self.lost), std::mem::take(&mut self.of));
        let share = if of > 0 { lost as f64 / of as f64 } else { 0.0 };
        let usual = self.usual;
        let score = LOSS_THRESHOLD * share / (LOSS_TIMES * usual).max(LOSS_MIN);
        let said = || Said {
            up: true,
            size: if usual > 0.0 { share / usual } else { f64::MAX },
            text: format!("{:.2} % lost, usually {:.2} %", 100.0 * share, 100.0 * usual),
        };
        findings.judge(&mut self.alarm, name, "loss", score, score, &said);
        // An hour's average, which an open finding hardly teaches.
        self.ticks += 1;
        let gain = if self.alarm.trigger.open() { 0.0003 } else { (1.0 / self.ticks as f64).max(0.003) };
        self.usual += gain * (share - self.usual);
    }
}

fn said_of_shift(shifted: &Shifted) -> Said {
    let slower = shifted.d[0].exp();
    // Of p99.9 there are too few observations in a minute to say how many times; and where nothing
    // used to be, everything is any number of times as often.
    let times = shifted.d[4].exp().min(TIMES_MAX);
    let or_more = if times < TIMES_MAX { "" } else { " or more" };
    Said {
        up: slower >= 1.0 || times >= 1.0,
        size: times.max(slower),
        text: format!(
            "{slower:.2} times as long on average; the usual p99 is exceeded {times:.1}{or_more} times as often"
        ),
    }
}

/// Where findings are written.
struct Findings<'a> {
    all: &'a mut VecDeque<Finding>,
    last_id: &'a mut u64,
    context: &'a Context<'a>,
}

impl Findings<'_> {
    fn judge(
        &mut self,
        alarm: &mut Alarm,
        series: &str,
        detector: &'static str,
        score: f64,
        short: f64,
        said: &dyn Fn() -> Said,
    ) {
        let threshold = if detector == "loss" { LOSS_THRESHOLD } else { alarm.threshold.value() };
        let (t, wall_s) = (self.context.t, self.context.wall_s);
        let was_open = alarm.trigger.open();
        alarm.score = score;
        alarm.since = if score >= threshold { Some(alarm.since.unwrap_or(wall_s)) } else { None };
        let open = alarm.trigger.step(score, short, threshold);
        alarm.threshold.learn(score, was_open);
        let recent = alarm.ended.is_some_and(|ended| t - ended < MERGE_S);
        let fresh = short >= threshold / 2.0;
        if open && !was_open {
            alarm.echo = recent && !fresh;
            if !alarm.echo {
                self.begin(alarm, series, detector, recent);
            }
        } else if open && alarm.echo && fresh {
            alarm.echo = false;
            self.begin(alarm, series, detector, true);
        } else if was_open && !open {
            alarm.ended = Some(t);
            if let (false, Some(finding)) = (alarm.echo, self.of(alarm.finding)) {
                finding.end_s = Some(wall_s);
            }
        }
        if !open || alarm.echo {
            return;
        }
        let peak = score / threshold;
        let culprit = || self.context.outliers_of(series);
        if self.all.iter().any(|finding| Some(finding.id) == alarm.finding && peak > finding.peak) {
            let (Said { up, size, text }, culprit) = (said(), culprit());
            let Some(finding) = self.of(alarm.finding) else { return };
            finding.peak = peak;
            finding.peak_s = wall_s;
            finding.direction = if up { "up" } else { "down" }.into();
            finding.size = size;
            finding.text = text;
            finding.culprit = culprit.or_else(|| finding.culprit.take());
        }
    }

    fn of(&mut self, id: Option<u64>) -> Option<&mut Finding> {
        self.all.iter_mut().find(|finding| Some(finding.id) == id)
    }

    /// A finding begins, or the last one goes on.
    fn begin(&mut self, alarm: &mut Alarm, series: &str, detector: &'static str, recent: bool) {
        let wall_s = alarm.since.unwrap_or(self.context.wall_s);
        if let (true, Some(finding)) = (recent, self.of(alarm.finding)) {
            finding.end_s = None;
            return;
        }
        let overlaps = |finding: &&Finding| finding.end_s.is_none() || wall_s - finding.begin_s <= TOGETHER_S;
        let first = self.all.iter().filter(overlaps).min_by(|a, b| a.begin_s.total_cmp(&b.begin_s));
        let after = first.map(|finding| finding.id);
        *self.last_id += 1;
        alarm.finding = Some(*self.last_id);
        self.all.push_back(Finding {
            id: *self.last_id,
            series: series.into(),
            detector: detector.into(),
            begin_s: wall_s,
            peak_s: wall_s,
            end_s: None,
            peak: 0.0,
            direction: "up".into(),
            size: 1.0,
            text: String::new(),
            culprit: None,
            after,
        });
        if self.all.len() > FINDINGS {
            self.all.pop_front();
        }
    }
}

impl Context<'_> {
    /// Who ran most often before the latest outliers of a series.
    fn outliers_of(&self, series: &str) -> Option<String> {
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for outlier in self.outliers.iter().rev().take(256) {
            let key = Key { probe: outlier.probe, target: outlier.target, label: outlier.label };
            if let Some(culprit) = &outlier.culprit
                && series_name(key, self.targets) == series
            {
                *counts.entry(&culprit.comm).or_default() += 1;
            }
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(comm, _)| comm.to_owned())
    }
}

/// Counts by coarse bucket.
fn coarse(histogram: &Histogram) -> [u64; BUCKETS] {
    let mut counts = [0; BUCKETS];
    for (slot, count) in histogram.cells() {
        let bucket = match slot {
            SLOT_ZERO => 0,
            SLOT_ABOVE => BUCKETS - 1,
            fine => 1 + (fine - 1) / COARSE,
        };
        counts[bucket] += count;
    }
    counts
}
