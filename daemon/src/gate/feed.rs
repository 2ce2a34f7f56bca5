//! A gate of one's own, fed by several daemons or by a Prometheus: for a fleet.
//!
//! Every tick each source says how much its cumulative histograms have grown since the tick before.
//! A source that does not answer, has begun anew or does not measure spoils the block: the gate
//! holds. Each source is an instance of its own, so that three or more tell noise from harm better.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use tickscope_core::gate::{Arm, Buckets, Gate as Core, Kind, Kpi, Policy, Reading, Report, Value, Verdict};

use super::{GateError, PolicyFlags, prometheus};
use crate::exporter::gate::Gate;
use crate::exporter::json::{Snapshot, Status};
use crate::top::get;

/// What feeds the gate.
#[derive(Args)]
pub struct Flags {
    /// A daemon; several with --from repeated: their histograms add up
    #[arg(long, value_name = "URL", requires_all = ["baseline", "canary", "kpi"])]
    pub from: Vec<String>,
    /// A Prometheus, instead of daemons
    #[arg(long, value_name = "URL", requires_all = ["baseline", "canary", "kpi"], conflicts_with = "from")]
    pub prometheus: Option<String>,
    /// The reference: a target of the daemons, or label matchers of Prometheus, target="blue"
    #[arg(long, value_name = "TARGET")]
    pub baseline: Option<String>,
    /// What is tested
    #[arg(long, value_name = "TARGET")]
    pub canary: Option<String>,
    /// What is compared: a probe, PROBE/LABEL, or a histogram metric of Prometheus; may be repeated
    #[arg(long, value_name = "KPI")]
    pub kpi: Vec<String>,
    /// Length of a block; with Prometheus, no less than its scrape interval
    #[arg(long, env = "TICKSCOPE_GATE_BLOCK", default_value = "1s", value_name = "TIME", value_parser = block)]
    pub block: Duration,
    /// No pass before so long with both
    #[arg(long, env = "TICKSCOPE_GATE_DWELL", default_value = "60s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub dwell: Duration,
    #[expect(missing_docs, reason = "a doc comment would become a heading of the help")]
    #[command(flatten)]
    pub policy: PolicyFlags,
}

fn block(text: &str) -> Result<Duration, String> {
    let block = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let range = Duration::from_millis(200)..=Duration::from_secs(60);
    if range.contains(&block) { Ok(block) } else { Err("a block is from 200ms to 60s".into()) }
}

/// Growth of one histogram in one tick.
pub(super) struct Growth {
    pub arm: Arm,
    pub kpi: usize,
    pub instance: u32,
    pub buckets: Buckets,
}

/// Cumulative counts by upper bound, seconds, as they are ordered.
pub(super) type Cumulative = BTreeMap<u64, u64>;

/// By how much a histogram has grown; `None`: it has begun anew.
pub(super) fn growth(before: &Cumulative, now: &Cumulative) -> Option<Buckets> {
    if before.iter().any(|(bound, count)| now.get(bound).copied().unwrap_or(0) < *count) {
        return None;
    }
    let grown = |(bound, count): (&u64, &u64)| {
        (f64::from_bits(*bound), count - before.get(bound).copied().unwrap_or(0))
    };
    Buckets::new(now.iter().map(grown).collect())
}

/// A question that is asked every tick.
pub(super) trait Source {
    /// What has grown since the last tick, and whether all of it can be used.
    fn tick(&mut self) -> (Vec<Growth>, bool);
}

/// Watches until there is a decision, or until `end`.
pub(super) fn watch(flags: &Flags, end: Instant, mut tell: impl FnMut(&Gate)) -> Result<Gate, GateError> {
    let (Some(baseline), Some(canary)) = (&flags.baseline, &flags.canary) else {
        return Err(GateError::Usage("say which is the baseline and which the canary".into()));
    };
    let mut source: Box<dyn Source> = match &flags.prometheus {
        Some(url) => Box::new(prometheus::Prometheus::new(url, baseline, canary, &flags.kpi)),
        None => Box::new(Daemons::new(&flags.from, baseline, canary, &flags.kpi)?),
    };
    let seconds = flags.block.as_secs_f64();
    let kpi = |name: &String| Kpi { name: name.clone(), kind: Kind::latency(), seconds };
    let policy = Policy { dwell_seconds: flags.dwell.as_secs_f64(), ..flags.policy.policy() };
    let mut gate = Core::new(policy, flags.kpi.iter().map(kpi).collect());
    let mut next = Instant::now();
    source.tick();
    for tick in 1u32.. {
        next += flags.block;
        thread::sleep(next.saturating_duration_since(Instant::now()));
        feed(&mut gate, source.as_mut(), f64::from(tick) * seconds, flags.kpi.len());
        let report = gate.report();
        let decided = matches!(report.verdict, Verdict::Pass | Verdict::Fail);
        let shown = shown(report);
        if decided || Instant::now() >= end {
            return Ok(shown);
        }
        tell(&shown);
    }
    Ok(shown(gate.report()))
}

/// One block.
fn feed(gate: &mut Core, source: &mut dyn Source, t: f64, kpis: usize) {
    let (grown, usable) = source.tick();
    // An arm that says nothing is told so, and missing.
    let silent = (0..kpis).flat_map(|kpi| {
        [Arm::Baseline, Arm::Canary].map(|arm| Growth { arm, kpi, instance: 0, buckets: Buckets::default() })
    });
    for Growth { arm, kpi, instance, buckets } in silent.chain(grown) {
        // Ticks only go forward, and there are only latencies.
        let _taken = gate.add(Reading { t, arm, kpi, instance, value: Value::Latency(buckets) });
    }
    if !usable {
        gate.spoil();
    }
    gate.finish();
}

fn shown(report: Report) -> Gate {
    let Report { verdict, action, kpi, quantile, reason, kpis, .. } = report;
    Gate { verdict, action, kpi, quantile, kpis, reason, ..Gate::unknown("watch") }
}

/// Several daemons.
struct Daemons {
    sources: Vec<Daemon>,
    baseline: String,
    canary: String,
    /// Probe and value of its label.
    kpis: Vec<(String, Option<String>)>,
}

struct Daemon {
    url: String,
    /// By arm and KPI, and when counting began; `None` before the first answer.
    before: Option<BTreeMap<(usize, usize), (Cumulative, f64)>>,
}

impl Daemons {
    /// All of them have to be there at first.
    fn new(urls: &[String], baseline: &str, canary: &str, kpis: &[String]) -> Result<Self, GateError> {
        for url in urls {
            let status: Status = get(url, "/api/v1/status")?;
            for target in [baseline, canary] {
                if !status.targets.iter().any(|known| known.name == target) {
                    return Err(GateError::Usage(format!("the daemon at {url} has no target {target:?}")));
                }
            }
        }
        let split = |kpi: &String| match kpi.split_once('/') {
            Some((probe, label)) => (probe.to_owned(), Some(label.to_owned())),
            None => (kpi.clone(), None),
        };
        Ok(Self {
            sources: urls.iter().map(|url| Daemon { url: url.clone(), before: None }).collect(),
            baseline: baseline.into(),
            canary: canary.into(),
            kpis: kpis.iter().map(split).collect(),
        })
    }

    /// Everything that a daemon has counted, and whether its probes measure.
    fn read(&self, url: &str) -> Option<BTreeMap<(usize, usize), (Cumulative, f64)>> {
        let status: Status = get(url, "/api/v1/status").ok()?;
        let measures = |(name, _): &(String, Option<String>)| {
            let state = status.probes.iter().find(|probe| probe.name == *name)?.state.as_str();
            matches!(state, "healthy" | "degraded").then_some(())
        };
        self.kpis.iter().try_for_each(measures)?;
        let snapshot: Snapshot = get(url, "/api/v1/snapshot").ok()?;
        let mut sums = BTreeMap::new();
        for series in &snapshot.series {
            for (kpi, (probe, label)) in self.kpis.iter().enumerate() {
                let labelled =
                    label.as_ref().is_none_or(|label| series.labels.values().any(|of| of == label));
                let arm = [&self.baseline, &self.canary].iter().position(|target| ***target == series.target);
                let (true, true, Some(arm)) = (series.probe == *probe, labelled, arm) else { continue };
                let (sum, since) =
                    sums.entry((arm, kpi)).or_insert_with(|| (Cumulative::new(), series.since_seconds));
                *since = since.max(series.since_seconds);
                let total = &series.total;
                let fine = total.buckets.iter().map(|(i, count)| ((f64::from(i + 1) / 16.0).exp2(), *count));
                let ends = [((-24f64).exp2(), total.zero), (f64::INFINITY, total.above)];
                for (bound, count) in ends.into_iter().filter(|(_, count)| *count > 0).chain(fine) {
                    *sum.entry(bound.to_bits()).or_default() += count;
                }
            }
        }
        Some(sums)
    }
}

impl Source for Daemons {
    fn tick(&mut self) -> (Vec<Growth>, bool) {
        let now: Vec<_> = self.sources.iter().map(|daemon| self.read(&daemon.url)).collect();
        let mut grown = Vec::new();
        let mut usable = true;
        for ((daemon, now), instance) in self.sources.iter_mut().zip(now).zip(1..) {
            let before = daemon.before.take();
            usable &= before.is_some() && now.is_some();
            if let (Some(before), Some(now)) = (&before, &now) {
                for ((arm, kpi), (sum, since)) in now {
                    let arm = if *arm == 0 { (*arm, Arm::Baseline) } else { (*arm, Arm::Canary) };
                    // What was not there before has begun within this tick.
                    let empty = (Cumulative::new(), *since);
                    let (old, began) = before.get(&(arm.0, *kpi)).unwrap_or(&empty);
                    let anew = (began - since).abs() > 0.5;
                    match growth(old, sum).filter(|_| !anew) {
                        Some(buckets) => grown.push(Growth { arm: arm.1, kpi: *kpi, instance, buckets }),
                        None => usable = false,
                    }
                }
            }
            daemon.before = now;
        }
        (grown, usable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cumulative(counts: &[(f64, u64)]) -> Cumulative {
        counts.iter().map(|(bound, count)| (bound.to_bits(), *count)).collect()
    }

    #[test]
    fn growth_is_exact_and_a_counter_that_falls_has_begun_anew() {
        let before = cumulative(&[(0.25, 3), (0.5, 1)]);
        let now = cumulative(&[(0.25, 3), (0.5, 4), (f64::INFINITY, 2)]);
        assert_eq!(growth(&before, &now), Buckets::new(vec![(0.5, 3), (f64::INFINITY, 2)]));
        assert_eq!(growth(&now, &before), None);
        assert_eq!(growth(&now, &Cumulative::new()), None);
    }

    /// Three nodes of which each has both arms; one of them can be silent.
    struct Nodes {
        ticks: u32,
        slow: u64,
        silent: std::ops::Range<u32>,
    }

    impl Source for Nodes {
        fn tick(&mut self) -> (Vec<Growth>, bool) {
            self.ticks += 1;
            let of = |instance: u32, arm: Arm| {
                let slow = if arm == Arm::Canary { self.slow } else { 1 };
                let mut histogram = tickscope_core::Histogram::default();
                let turn = u64::from(self.ticks * instance % 7);
                (0..500u64).for_each(|i| histogram.observe(slow * (10_000 + 50 * (i * 37 % (400 + turn)))));
                Growth { arm, kpi: 0, instance, buckets: Buckets::from(&histogram) }
            };
            let silent = self.silent.contains(&self.ticks);
            let nodes = if silent { 1..3 } else { 1..4 };
            let grown = nodes.flat_map(|node| [of(node, Arm::Baseline), of(node, Arm::Canary)]).collect();
            (grown, !silent)
        }
    }

    fn verdict(slow: u64, silent: std::ops::Range<u32>) -> Verdict {
        let kpi = Kpi { name: "runqueue".into(), kind: Kind::latency(), seconds: 1.0 };
        let mut gate = Core::new(Policy::default(), vec![kpi]);
        let mut nodes = Nodes { ticks: 0, slow, silent };
        for tick in 1..200u32 {
            feed(&mut gate, &mut nodes, f64::from(tick), 1);
        }
        gate.report().verdict
    }

    #[test]
    fn several_nodes_are_one_gate_and_a_silent_one_holds() {
        assert_eq!(verdict(1, 0..0), Verdict::Pass);
        assert_eq!(verdict(2, 0..0), Verdict::Fail);
        assert_eq!(verdict(1, 180..200), Verdict::Inconclusive);
        assert_eq!(verdict(2, 10..200), Verdict::Inconclusive);
    }
}
