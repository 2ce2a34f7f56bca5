//! What one reading of the kernel says: everything since the previous reading.

use serde::{Deserialize, Serialize};

use crate::histogram::Histogram;

/// One reading of all sources. Counters are differences to the previous reading.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measurements {
    /// Length of the period that the reading covers, ns of `CLOCK_MONOTONIC`.
    pub elapsed_ns: u64,
    /// Rows that exist (probe enabled, target configured), also those without an observation.
    pub rows: Vec<RowReading>,
    /// `probes[p]`: probe `p` of the catalog.
    pub probes: Vec<ProbeReading>,
    /// `targets[t]`: target `t` of the configuration.
    pub targets: Vec<TargetReading>,
    /// Outlier records, oldest first.
    pub outliers: Vec<Outlier>,
    /// What never arrived, by source and reason; every pair that can happen, also with 0.
    pub lost: Vec<Lost>,
    /// What measuring costs.
    pub cost: Cost,
}

impl Measurements {
    /// Adds a later reading of the same source, as if both were one.
    pub fn merge(&mut self, later: Self) {
        self.elapsed_ns += later.elapsed_ns;
        for row in later.rows {
            let same = |mine: &&mut RowReading| {
                (mine.probe, mine.target, mine.label) == (row.probe, row.target, row.label)
            };
            match self.rows.iter_mut().find(same) {
                Some(mine) => mine.histogram.merge(&row.histogram),
                None => self.rows.push(row),
            }
        }
        for (index, probe) in later.probes.into_iter().enumerate() {
            match self.probes.get_mut(index) {
                Some(mine) => mine.merge(probe),
                None => self.probes.push(probe),
            }
        }
        for (index, target) in later.targets.into_iter().enumerate() {
            match self.targets.get_mut(index) {
                Some(mine) => {
                    let (started, exited) = (mine.started + target.started, mine.exited + target.exited);
                    *mine = TargetReading { started, exited, ..target };
                }
                None => self.targets.push(target),
            }
        }
        self.outliers.extend(later.outliers);
        for lost in later.lost {
            match self.lost.iter_mut().find(|mine| mine.source == lost.source && mine.reason == lost.reason) {
                Some(mine) => mine.count += lost.count,
                None => self.lost.push(lost),
            }
        }
        let daemon_cpu_ns = self.cost.daemon_cpu_ns + later.cost.daemon_cpu_ns;
        self.cost = Cost { daemon_cpu_ns, ..later.cost };
    }
}

impl ProbeReading {
    fn merge(&mut self, later: Self) {
        let Accounting { seen, filtered, discarded } = &later.accounting;
        let mut accounting = std::mem::take(&mut self.accounting);
        accounting.seen += seen;
        accounting.filtered += filtered;
        accounting.discarded.resize(discarded.len().max(accounting.discarded.len()), 0);
        for (sum, count) in accounting.discarded.iter_mut().zip(discarded) {
            *sum += count;
        }
        *self = Self {
            accounting,
            runs: self.runs + later.runs,
            timed: self.timed + later.timed,
            timed_ns: self.timed_ns + later.timed_ns,
            ..later
        };
    }
}

/// New observations of one histogram.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RowReading {
    /// Index into the catalog.
    pub probe: usize,
    /// Index into the configured targets.
    pub target: usize,
    /// Index into the probe's label values, 0 without a label.
    pub label: usize,
    /// Observations of this period.
    pub histogram: Histogram,
}

/// What became of one probe in this period.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProbeReading {
    /// Whether it measures.
    pub state: ProbeState,
    /// Why it is not healthy, or what is missing; empty when healthy.
    pub reason: String,
    /// Where its observations went.
    pub accounting: Accounting,
    /// Runs of its programs; a program shared by probes counts for the first that needs it.
    pub runs: u64,
    /// Runs that timed themselves.
    pub timed: u64,
    /// What those took, ns.
    pub timed_ns: u64,
}

/// Whether a probe measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeState {
    /// It measures all it says.
    Healthy,
    /// It measures, but not all it says; the reason names what is missing.
    Degraded,
    /// This kernel cannot run it.
    Unsupported,
    /// It should run and does not.
    Failed,
    /// The configuration or the budget turned it off.
    Disabled,
}

impl ProbeState {
    /// All states, in the order in which they are shown.
    pub const ALL: [Self; 5] =
        [Self::Healthy, Self::Degraded, Self::Unsupported, Self::Failed, Self::Disabled];

    /// Name in metrics, JSON and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unsupported => "unsupported",
            Self::Failed => "failed",
            Self::Disabled => "disabled",
        }
    }
}

/// Where observations went: `seen` = `recorded` + `filtered` + all of `discarded`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accounting {
    /// Intervals that ended in threads of targets, and starts that never ended.
    pub seen: u64,
    /// Left out on purpose.
    pub filtered: u64,
    /// `discarded[r]`: unusable, by `tickscope_common::layout::REASONS`.
    pub discarded: Vec<u64>,
}

/// The processes of one target.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TargetReading {
    /// Its configured name.
    pub name: String,
    /// Processes that match now.
    pub processes: usize,
    /// Processes that began to match in this period.
    pub started: u64,
    /// Processes that ended in this period.
    pub exited: u64,
    /// Resident memory of all of them, bytes; `None` when nobody asked or it cannot be read.
    #[serde(default)]
    pub resident_bytes: Option<u64>,
    /// Their open file descriptors.
    #[serde(default)]
    pub descriptors: Option<u64>,
}

/// One observation above its probe's threshold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outlier {
    /// Index into the catalog.
    pub probe: usize,
    /// Index into the configured targets.
    pub target: usize,
    /// Index into the probe's label values.
    pub label: usize,
    /// CPU it ended on.
    pub cpu: u32,
    /// Process.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// Name of the thread.
    pub comm: String,
    /// End of the interval, ns of `CLOCK_MONOTONIC`.
    pub end_ns: u64,
    /// Length of the interval, ns.
    pub duration_ns: u64,
    /// Who ran on the CPU just before, when the probe knows.
    pub culprit: Option<Culprit>,
}

/// Who kept a thread waiting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Culprit {
    /// Name of the thread.
    pub comm: String,
    /// Its process.
    pub tgid: u32,
}

/// Something that never arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Where it was lost: `ring`, `probe`, …
    pub source: String,
    /// Why: `full`, `rate`, `recursion`, …
    pub reason: String,
    /// How many in this period.
    pub count: u64,
}

/// What measuring costs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cost {
    /// CPU time of the daemon's own process in this period, ns.
    pub daemon_cpu_ns: u64,
    /// Resident memory of the daemon, bytes.
    pub rss_bytes: u64,
    /// Memory of kernel maps, bytes.
    pub maps_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Now, State};

    fn reading(second: u64) -> Measurements {
        let mut histogram = Histogram::default();
        histogram.observe(second * 1000);
        Measurements {
            elapsed_ns: 200_000_000,
            rows: vec![RowReading { probe: 0, target: 0, label: 0, histogram }],
            probes: vec![ProbeReading {
                state: ProbeState::Healthy,
                reason: String::new(),
                accounting: Accounting { seen: 3, filtered: 1, discarded: vec![0, second] },
                runs: 100,
                timed: 1,
                timed_ns: 50,
            }],
            targets: vec![TargetReading {
                name: "a".into(),
                processes: second as usize,
                started: 1,
                exited: 0,
                resident_bytes: Some(4096 * second),
                descriptors: None,
            }],
            lost: vec![Lost { source: "ring".into(), reason: "full".into(), count: second }],
            cost: Cost { daemon_cpu_ns: 10, rss_bytes: second, maps_bytes: 1 },
            ..Measurements::default()
        }
    }

    #[test]
    fn readings_that_are_merged_say_what_each_said() {
        let now = Now { monotonic_ns: 1_000_000_000, wall_ns: 1_000_000_000 };
        let mut merged = reading(1);
        merged.merge(reading(2));
        merged.merge(Measurements::default());
        let targets = ["a".to_owned()];
        let mut both = State::new(&targets, 1_000_000_000);
        both.step(&reading(1), now);
        let both = both.step(&reading(2), now);
        let one = State::new(&targets, 1_000_000_000).step(&merged, now);
        assert_eq!(one.series[0].total, both.series[0].total);
        assert_eq!(one.probes[0].accounting, both.probes[0].accounting);
        assert_eq!(one.lost, both.lost);
        assert_eq!((one.targets[0].processes, one.targets[0].started), (2, 2));
        assert_eq!((merged.cost.daemon_cpu_ns, merged.elapsed_ns), (20, 400_000_000));
    }
}
