//! What the daemon knows at one moment: the only thing exporters read.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::forecast::TrackRecord;
use crate::histogram::{Histogram, Quantile};
use crate::measurement::{Accounting, Cost, Lost, Outlier, ProbeState};
use crate::slo::SloStatus;
use crate::watch::{AnomalyScore, Finding, LimitStatus};

/// Lengths of the windows, seconds, and their names.
pub const WINDOWS: [(u64, &str); 4] = [(10, "10s"), (60, "1m"), (300, "5m"), (3600, "1h")];

/// Everything the daemon knows at one moment. Cheap to clone; exporters must not need more.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Wall clock of the reading, ns since 1970.
    pub wall_ns: u64,
    /// Readings so far; 0: none yet, and nothing below means anything.
    pub readings: u64,
    /// Readings that came more than twice their interval late.
    pub gaps: u64,
    /// Every series, in catalog order, then target, then label.
    pub series: Vec<Arc<Series>>,
    /// `probes[p]`: probe `p` of the catalog.
    pub probes: Vec<ProbeStatus>,
    /// `targets[t]`: target `t` of the configuration.
    pub targets: Vec<TargetStatus>,
    /// The latest outliers, oldest first, at most [`Snapshot::OUTLIERS`].
    pub outliers: Arc<VecDeque<Outlier>>,
    /// Losses since start.
    pub lost: Vec<Lost>,
    /// Cost of the latest period.
    pub cost: Cost,
    /// Share of one CPU that programs and daemon took together over the last minute; `None` before
    /// anything was timed.
    pub overhead_cpu_ratio: Option<f64>,
    /// Every configured objective, in order.
    pub slos: Vec<SloStatus>,
    /// Every configured limit, in order.
    pub limits: Vec<LimitStatus>,
    /// What was unusual lately and is, oldest first.
    pub findings: Vec<Finding>,
    /// How unusual every series is.
    pub anomaly_scores: Vec<AnomalyScore>,
    /// Series that are not watched for anomalies, because memory for them is bounded.
    pub anomaly_unwatched: usize,
    /// How forecasts have turned out.
    pub record: TrackRecord,
}

impl Snapshot {
    /// Outliers that are kept.
    pub const OUTLIERS: usize = 1024;
}

/// Which series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// Index into the catalog.
    pub probe: usize,
    /// Index into the configured targets.
    pub target: usize,
    /// Index into the probe's label values, 0 without a label.
    pub label: usize,
}

/// One histogram over time.
#[derive(Clone, Debug)]
pub struct Series {
    /// Which.
    pub key: Key,
    /// All observations since start: what exporters publish as a cumulative histogram.
    pub total: Histogram,
    /// Since when `total` counts, wall clock, ns since 1970.
    pub since_wall_ns: u64,
    /// `windows[w]`: the last [`WINDOWS`]`[w]`.
    pub windows: [Window; WINDOWS.len()],
}

/// One series over the last so many seconds.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// Time it really covers, ns: less than its length after a start, and without gaps.
    pub covered_ns: u64,
    /// Its observations. Empty means no data, never "fast".
    pub histogram: Histogram,
}

impl Window {
    /// Observations per second; `None` while nothing is covered.
    pub fn rate(&self) -> Option<f64> {
        (self.covered_ns > 0).then(|| self.histogram.count() as f64 / (self.covered_ns as f64 / 1e9))
    }

    /// The `q`-quantile, `q` in 0..=1; `None` without observations.
    pub fn quantile(&self, q: f64) -> Option<Quantile> {
        self.histogram.quantile(q)
    }
}

/// One probe since start.
#[derive(Clone, Debug)]
pub struct ProbeStatus {
    /// Whether it measures.
    pub state: ProbeState,
    /// Why it is not healthy.
    pub reason: String,
    /// Where observations went since start.
    pub accounting: Accounting,
    /// Observations in histograms since start.
    pub recorded: u64,
    /// Runs of its programs since start.
    pub runs: u64,
    /// Mean cost of a run over the last timed ones, ns; `None` before the first.
    pub cost_ns: Option<f64>,
}

/// One target now.
#[derive(Clone, Debug, Default)]
pub struct TargetStatus {
    /// Configured name.
    pub name: String,
    /// Processes that match now; 0 is a state of its own, not health.
    pub processes: usize,
    /// Processes that matched since start.
    pub started: u64,
    /// Of those, ended.
    pub exited: u64,
}
