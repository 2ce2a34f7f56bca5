//! One limit of one series: samples in, forecast and its record out.

use serde::{Deserialize, Serialize};

use crate::forecast::{Effort, Forecast, Forecaster, Limit, Pending, TrackRecord};
use crate::histogram::Histogram;
use crate::measurement::{Measurements, TargetReading};

/// Fewer observations than this have no quantile worth forecasting: missing, not zero.
const COUNT_MIN: u64 = 20;

/// A limit and what it is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Name of the series, as it was configured.
    pub series: String,
    /// What is sampled.
    pub subject: Subject,
    /// What must not be crossed.
    pub limit: Limit,
}

impl Rule {
    /// Whether what was learned about one is true of the other.
    pub fn same(&self, other: &Self) -> bool {
        self.series == other.series && self.limit == other.limit
    }
}

/// What is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Subject {
    /// A quantile, seconds. `label: None` is all labels together.
    Quantile {
        /// Index into the catalog.
        probe: usize,
        /// Index into the configured targets.
        target: usize,
        /// Index into the probe's label values.
        label: Option<usize>,
        /// In 0..=1.
        q: f64,
    },
    /// Observations per second.
    Rate {
        /// Index into the catalog.
        probe: usize,
        /// Index into the configured targets.
        target: usize,
        /// Index into the probe's label values.
        label: Option<usize>,
    },
    /// Resident memory of a target's processes, bytes.
    Memory {
        /// Index into the configured targets.
        target: usize,
    },
    /// Open file descriptors of a target's processes.
    Descriptors {
        /// Index into the configured targets.
        target: usize,
    },
}

impl Subject {
    fn target(self) -> usize {
        match self {
            Self::Quantile { target, .. }
            | Self::Rate { target, .. }
            | Self::Memory { target }
            | Self::Descriptors { target } => target,
        }
    }

    /// Unit of the samples.
    fn unit(self) -> &'static str {
        match self {
            Self::Quantile { .. } => "seconds",
            Self::Rate { .. } => "per second",
            Self::Memory { .. } => "bytes",
            Self::Descriptors { .. } => "descriptors",
        }
    }
}

/// A limit now.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitStatus {
    /// What is watched.
    pub rule: Rule,
    /// Unit of limit and value.
    pub unit: &'static str,
    /// The latest sample.
    pub value: Option<f64>,
    /// Whether the limit is crossed now: 8 of the last 10 samples are beyond it.
    pub breached: bool,
    /// What is foreseen; `None` is "not known", never "no breach".
    pub forecast: Option<Forecast>,
    /// Samples that had no value.
    pub missing: u64,
}

/// A limit that is watched.
#[derive(Clone, Serialize, Deserialize)]
pub struct Watched {
    rule: Rule,
    forecaster: Forecaster,
    pending: Pending,
    /// Observations since the last sample, and how long that is.
    sum: Histogram,
    seen: bool,
    elapsed_ns: u64,
    value: Option<f64>,
    forecast: Option<Forecast>,
}

impl Watched {
    pub fn new(rule: Rule) -> Self {
        Self {
            forecaster: Forecaster::new(rule.limit, Effort::Full),
            rule,
            pending: Pending::default(),
            sum: Histogram::default(),
            seen: false,
            elapsed_ns: 0,
            value: None,
            forecast: None,
        }
    }

    /// The same under another rule: indices may have changed.
    pub fn under(self, rule: Rule) -> Self {
        Self { rule, ..self }
    }

    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    pub fn status(&self) -> LimitStatus {
        LimitStatus {
            rule: self.rule.clone(),
            unit: self.rule.subject.unit(),
            value: self.value,
            breached: self.value.is_some() && self.forecaster.breached(),
            forecast: self.forecast,
            missing: self.forecaster.counts().missing,
        }
    }

    /// One more reading; a sample when enough time has passed.
    pub fn step(&mut self, reading: &Measurements, t: f64, record: &mut TrackRecord) {
        if reading.targets.get(self.rule.subject.target()).is_some_and(replaced) {
            self.forecaster.restart();
        }
        self.elapsed_ns += reading.elapsed_ns;
        let gauge = self.collect(reading);
        let elapsed_s = self.elapsed_ns as f64 / 1e9;
        // A reading may come a little early.
        if elapsed_s < 0.95 * self.rule.limit.step_s {
            return;
        }
        let count = self.sum.count();
        self.value = match self.rule.subject {
            Subject::Quantile { q, .. } if count >= COUNT_MIN => self.sum.quantile(q).map(|q| q.seconds),
            Subject::Quantile { .. } => None,
            Subject::Rate { .. } => self.seen.then(|| count as f64 / elapsed_s),
            Subject::Memory { .. } | Subject::Descriptors { .. } => gauge,
        };
        self.sum = Histogram::default();
        (self.elapsed_ns, self.seen) = (0, false);
        self.forecast = self.forecaster.push(t, self.value);
        if let Some(forecast) = &mut self.forecast {
            forecast.eta = forecast.eta.map(|eta| record.widen(eta));
        }
        let breached = self.value.is_some() && self.forecaster.breached();
        self.pending.observe(t, self.forecast.as_ref(), breached, self.rule.limit.horizon_s, record);
    }

    /// Adds what the reading says to what was collected; a gauge is taken as it is.
    fn collect(&mut self, reading: &Measurements) -> Option<f64> {
        let (probe, target, label) = match self.rule.subject {
            Subject::Quantile { probe, target, label, .. } | Subject::Rate { probe, target, label } => {
                (probe, target, label)
            }
            Subject::Memory { target } => {
                return Some(reading.targets.get(target)?.resident_bytes? as f64);
            }
            Subject::Descriptors { target } => {
                return Some(reading.targets.get(target)?.descriptors? as f64);
            }
        };
        let of = reading.rows.iter().filter(|row| {
            row.probe == probe && row.target == target && label.is_none_or(|label| row.label == label)
        });
        for row in of {
            self.seen = true;
            self.sum.merge(&row.histogram);
        }
        None
    }
}

/// Whether all processes of a target are other ones than before.
fn replaced(target: &TargetReading) -> bool {
    target.processes > 0 && target.started >= target.processes as u64
}
