//! The read-only API: what `/api/v1/…` answers and `tickscope top` reads.
//!
//! Times are seconds, counters are since start. `null` is "not known", never zero.

pub mod forecast;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tickscope_common::catalog::PROBES;
use tickscope_common::histogram::{SLOT_ABOVE, SLOT_ZERO, otlp_index};
use tickscope_common::layout::REASONS;
use tickscope_core::{BURN_WINDOWS, Histogram, Indicator, Quantile, SloStatus, WINDOWS, Window};

use super::{Input, label};

/// `/api/v1/status`
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version, commit and object of this build.
    pub build: Build,
    /// Kernel, maps and programs.
    pub facts: serde_json::Value,
    /// Readings so far.
    pub readings: u64,
    /// Readings that came more than twice their interval late.
    pub gaps: u64,
    /// Every probe of the catalog.
    pub probes: Vec<Probe>,
    /// Every configured target.
    pub targets: Vec<Target>,
    /// What never arrived.
    pub lost: Vec<tickscope_core::Lost>,
    /// Share of one CPU over the last minute.
    pub overhead_cpu_ratio: Option<f64>,
    /// Resident memory of the daemon, bytes.
    pub rss_bytes: u64,
    /// Whether the latest configuration could be loaded.
    pub config_last_reload_successful: bool,
}

/// Which build this is.
#[derive(Debug, Serialize, Deserialize)]
pub struct Build {
    /// Version of the package.
    pub version: String,
    /// Commit.
    pub git_sha: String,
    /// SHA-256 of the kernel object inside.
    pub object_sha256: String,
}

impl Build {
    /// This one.
    pub fn this() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            git_sha: env!("TICKSCOPE_GIT_SHA").into(),
            object_sha256: crate::loader::OBJECT_SHA256.into(),
        }
    }
}

/// One probe.
#[derive(Debug, Serialize, Deserialize)]
pub struct Probe {
    /// Name in the catalog.
    pub name: String,
    /// `healthy`, `degraded`, `unsupported`, `failed` or `disabled`.
    pub state: String,
    /// Why it is not healthy.
    pub reason: String,
    /// Intervals that ended in threads of targets; `seen` = `recorded` + `filtered` + `discarded`.
    pub seen: u64,
    /// In histograms.
    pub recorded: u64,
    /// Left out on purpose.
    pub filtered: u64,
    /// Unusable, by reason.
    pub discarded: BTreeMap<String, u64>,
    /// Runs of its programs.
    pub runs: u64,
    /// Mean cost of a run, seconds.
    pub cost_seconds: Option<f64>,
}

/// One target.
#[derive(Debug, Serialize, Deserialize)]
pub struct Target {
    /// Configured name.
    pub name: String,
    /// `matched`, or `empty`: no process matches now.
    pub state: String,
    /// Processes that match now.
    pub processes: usize,
    /// Processes that matched since start.
    pub started: u64,
    /// Of those, ended.
    pub exited: u64,
}

/// `/api/v1/snapshot`
#[derive(Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Wall clock of the reading, seconds since 1970.
    pub at_seconds: f64,
    /// Every series.
    pub series: Vec<Series>,
}

/// One histogram over time.
#[derive(Debug, Serialize, Deserialize)]
pub struct Series {
    /// Name of the probe.
    pub probe: String,
    /// Name of the target.
    pub target: String,
    /// The label beside it, by name; empty without one.
    pub labels: BTreeMap<String, String>,
    /// Since when `total` counts, seconds since 1970.
    pub since_seconds: f64,
    /// All observations since start.
    pub total: Buckets,
    /// The last `10s`, `1m`, `5m` and `1h`.
    pub windows: BTreeMap<String, Recent>,
}

/// A histogram of scale 4: bucket `i` holds (2^(i/16), 2^((i+1)/16)] seconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Buckets {
    /// Observations.
    pub count: u64,
    /// Their sum.
    pub sum_seconds: f64,
    /// The largest.
    pub max_seconds: Option<f64>,
    /// Not above 2^-24 s.
    pub zero: u64,
    /// Above 128 s.
    pub above: u64,
    /// `[i, count]`, ascending; buckets that are not named are empty.
    pub buckets: Vec<(i32, u64)>,
}

/// A window. All but the first two are `null` without observations.
#[derive(Debug, Serialize, Deserialize)]
pub struct Recent {
    /// Time it really covers, seconds.
    pub covered_seconds: f64,
    /// Observations.
    pub count: u64,
    /// Observations per second.
    pub rate: Option<f64>,
    /// The largest.
    pub max_seconds: Option<f64>,
    /// Sum of the observations, seconds.
    pub sum_seconds: f64,
    /// Median.
    pub p50: Option<Bounded>,
    /// 0.9-quantile.
    pub p90: Option<Bounded>,
    /// 0.99-quantile.
    pub p99: Option<Bounded>,
    /// 0.999-quantile.
    pub p999: Option<Bounded>,
}

/// A quantile and the bounds of its bucket, seconds. `high` is `null` above the range.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Bounded {
    /// Best estimate.
    pub value: f64,
    /// The truth is not below.
    pub low: f64,
    /// And not above.
    pub high: Option<f64>,
}

/// `/api/v1/outliers`
#[derive(Debug, Serialize, Deserialize)]
pub struct Outliers {
    /// Oldest first.
    pub outliers: Vec<Outlier>,
}

/// One observation above its probe's threshold.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outlier {
    /// Name of the probe.
    pub probe: String,
    /// Name of the target.
    pub target: String,
    /// The label beside it, by name.
    pub labels: BTreeMap<String, String>,
    /// Name of the thread.
    pub comm: String,
    /// Process.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// CPU it ended on.
    pub cpu: u32,
    /// End, seconds of `CLOCK_MONOTONIC`.
    pub end_seconds: f64,
    /// Length, seconds.
    pub duration_seconds: f64,
    /// Who ran on the CPU just before, when the probe knows.
    pub culprit: Option<tickscope_core::Culprit>,
}

/// `/api/v1/slos`
#[derive(Debug, Serialize, Deserialize)]
pub struct Slos {
    /// The worst of all: `ok`, `nodata`, `frozen` or `hotfix-only`; `null` without an objective.
    pub budget: Option<String>,
    /// Every configured objective.
    pub slos: Vec<Slo>,
}

/// One objective.
#[derive(Debug, Serialize, Deserialize)]
pub struct Slo {
    /// Configured name.
    pub name: String,
    /// Name of the target.
    pub target: String,
    /// Name of the probe whose observations are the events; `null`: readings are.
    pub probe: Option<String>,
    /// Bound of the histogram up to which they are good.
    pub good_up_to_seconds: Option<f64>,
    /// Share of events that shall be good.
    pub objective: f64,
    /// Time over which the budget is counted.
    pub window_seconds: f64,
    /// Events since start.
    pub events: u64,
    /// Those that were not good.
    pub bad_events: u64,
    /// How fast the budget burns, over `5m` to `3d`.
    pub burn: BTreeMap<String, Burn>,
    /// Share of the window's budget that is left; below 0 when overspent.
    pub budget_remaining_ratio: Option<f64>,
    /// Share of a week's budget that the last week burnt.
    pub week_burnt_ratio: Option<f64>,
    /// What that allows.
    pub budget: String,
}

/// A burn rate.
#[derive(Debug, Serialize, Deserialize)]
pub struct Burn {
    /// 1 uses up exactly the budget over the objective's window.
    pub rate: Option<f64>,
    /// Time that is covered.
    pub covered_seconds: f64,
}

/// The objectives of this input.
pub fn slos(input: &Input) -> Slos {
    let of = |slo: &SloStatus| {
        let objective = &slo.objective;
        let probe = match objective.indicator {
            Indicator::Latency { probe, .. } => Some(PROBES[probe].name.to_owned()),
            Indicator::Available => None,
        };
        let burn = |burn: &tickscope_core::Burn| Burn {
            rate: burn.rate,
            covered_seconds: burn.covered_ns as f64 / 1e9,
        };
        let windows = BURN_WINDOWS.iter().zip(&slo.burn);
        Slo {
            name: objective.name.clone(),
            target: objective.target.clone(),
            probe,
            good_up_to_seconds: objective.indicator.good_up_to_seconds(),
            objective: objective.objective,
            window_seconds: objective.window_ns as f64 / 1e9,
            events: slo.events.total,
            bad_events: slo.events.bad,
            burn: windows.map(|((_, name), of)| ((*name).to_owned(), burn(of))).collect(),
            budget_remaining_ratio: slo.budget_remaining_ratio,
            week_burnt_ratio: slo.week_burnt_ratio,
            budget: slo.budget.name().into(),
        }
    };
    let slos = &input.snapshot.slos;
    Slos {
        budget: slos.iter().map(|slo| slo.budget).max().map(|budget| budget.name().into()),
        slos: slos.iter().map(of).collect(),
    }
}

/// The status of this input.
pub fn status(input: &Input) -> Status {
    let snapshot = &input.snapshot;
    Status {
        build: Build::this(),
        facts: serde_json::to_value(&*input.facts).unwrap_or_default(),
        readings: snapshot.readings,
        gaps: snapshot.gaps,
        probes: PROBES
            .iter()
            .zip(&snapshot.probes)
            .map(|(entry, status)| Probe {
                name: entry.name.into(),
                state: status.state.name().into(),
                reason: status.reason.clone(),
                seen: status.accounting.seen,
                recorded: status.recorded,
                filtered: status.accounting.filtered,
                discarded: REASONS
                    .iter()
                    .map(|reason| (*reason).to_owned())
                    .zip(status.accounting.discarded.iter().copied())
                    .collect(),
                runs: status.runs,
                cost_seconds: status.cost_ns.map(|ns| ns / 1e9),
            })
            .collect(),
        targets: snapshot
            .targets
            .iter()
            .map(|target| Target {
                name: target.name.clone(),
                state: if target.processes == 0 { "empty" } else { "matched" }.into(),
                processes: target.processes,
                started: target.started,
                exited: target.exited,
            })
            .collect(),
        lost: snapshot.lost.clone(),
        overhead_cpu_ratio: snapshot.overhead_cpu_ratio,
        rss_bytes: snapshot.cost.rss_bytes,
        config_last_reload_successful: input.reloaded.successful,
    }
}

/// All series of this input.
pub fn snapshot(input: &Input) -> Snapshot {
    Snapshot {
        at_seconds: input.snapshot.wall_ns as f64 / 1e9,
        series: input
            .snapshot
            .series
            .iter()
            .map(|series| Series {
                probe: PROBES[series.key.probe].name.into(),
                target: input.target(series.key).into(),
                labels: labels(series.key),
                since_seconds: series.since_wall_ns as f64 / 1e9,
                total: buckets(&series.total),
                windows: WINDOWS
                    .iter()
                    .zip(&series.windows)
                    .map(|((_, name), window)| ((*name).to_owned(), recent(window)))
                    .collect(),
            })
            .collect(),
    }
}

/// The latest outliers of this input.
pub fn outliers(input: &Input) -> Outliers {
    let of = |outlier: &tickscope_core::Outlier| {
        let key = tickscope_core::Key { probe: outlier.probe, target: outlier.target, label: outlier.label };
        Outlier {
            probe: PROBES[outlier.probe].name.into(),
            target: input.target(key).into(),
            labels: labels(key),
            comm: outlier.comm.clone(),
            tgid: outlier.tgid,
            tid: outlier.tid,
            cpu: outlier.cpu,
            end_seconds: outlier.end_ns as f64 / 1e9,
            duration_seconds: outlier.duration_ns as f64 / 1e9,
            culprit: outlier.culprit.clone(),
        }
    };
    Outliers { outliers: input.snapshot.outliers.iter().map(of).collect() }
}

fn labels(key: tickscope_core::Key) -> BTreeMap<String, String> {
    label(key).into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn max_seconds(histogram: &Histogram) -> Option<f64> {
    (histogram.max_ns > 0).then(|| histogram.max_ns as f64 / 1e9)
}

fn buckets(histogram: &Histogram) -> Buckets {
    let of = |slot| histogram.cells().find(|(cell, _)| *cell == slot).map_or(0, |(_, count)| count);
    Buckets {
        count: histogram.count(),
        sum_seconds: histogram.sum_ns as f64 / 1e9,
        max_seconds: max_seconds(histogram),
        zero: of(SLOT_ZERO),
        above: of(SLOT_ABOVE),
        buckets: histogram.cells().filter_map(|(slot, count)| Some((otlp_index(slot)?, count))).collect(),
    }
}

fn recent(window: &Window) -> Recent {
    let bounded = |q| window.quantile(q).map(Bounded::from);
    Recent {
        covered_seconds: window.covered_ns as f64 / 1e9,
        count: window.histogram.count(),
        rate: window.rate(),
        max_seconds: max_seconds(&window.histogram),
        sum_seconds: window.histogram.sum_ns as f64 / 1e9,
        p50: bounded(0.5),
        p90: bounded(0.9),
        p99: bounded(0.99),
        p999: bounded(0.999),
    }
}

impl From<Quantile> for Bounded {
    fn from(quantile: Quantile) -> Self {
        let Quantile { seconds, low, high } = quantile;
        Self { value: seconds, low, high: high.is_finite().then_some(high) }
    }
}
