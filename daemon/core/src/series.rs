//! From measurements to a snapshot: what came in this period joins what was known.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::histogram::Histogram;
use crate::measurement::{Accounting, Lost, Measurements, Outlier, ProbeReading};
use crate::slo::{Objective, Tracker};
use crate::snapshot::{Key, ProbeStatus, Series, Snapshot, TargetStatus};
use crate::watch::Watch;
use crate::window::Sliding;

/// Time, as an argument.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// `CLOCK_MONOTONIC`, ns: all durations and windows.
    pub monotonic_ns: u64,
    /// Wall clock, ns since 1970: only shown, never calculated with.
    pub wall_ns: u64,
}

/// Cost is averaged over this time.
const COST_NS: u64 = 60_000_000_000;

/// Everything that is remembered between readings.
pub struct State {
    interval_ns: u64,
    /// Names of the targets, in order.
    targets: Vec<TargetStatus>,
    series: BTreeMap<Key, Tracked>,
    probes: Vec<ProbeTracked>,
    outliers: VecDeque<Outlier>,
    lost: Vec<Lost>,
    costs: VecDeque<CostPart>,
    slos: Vec<Tracker>,
    last_ns: u64,
    readings: u64,
    gaps: u64,
    watch: Watch,
}

struct Tracked {
    total: Histogram,
    since_wall_ns: u64,
    windows: [Sliding<Histogram>; crate::snapshot::WINDOWS.len()],
}

#[derive(Default)]
struct ProbeTracked {
    accounting: Accounting,
    runs: u64,
    timed: u64,
    timed_ns: u64,
}

struct CostPart {
    elapsed_ns: u64,
    ns: f64,
}

impl State {
    /// Nothing known yet of these targets, read every `interval_ns`.
    pub fn new(targets: &[String], interval_ns: u64) -> Self {
        Self {
            interval_ns,
            targets: targets
                .iter()
                .map(|name| TargetStatus { name: name.clone(), ..Default::default() })
                .collect(),
            series: BTreeMap::new(),
            probes: Vec::new(),
            outliers: VecDeque::new(),
            lost: Vec::new(),
            costs: VecDeque::new(),
            slos: Vec::new(),
            last_ns: 0,
            readings: 0,
            gaps: 0,
            watch: Watch::default(),
        }
    }

    /// What learns: its limits, what it has learned.
    pub fn watch(&mut self) -> &mut Watch {
        &mut self.watch
    }

    /// The same, to look at.
    pub fn watch_ref(&self) -> &Watch {
        &self.watch
    }

    /// The configuration changed: targets that keep their name keep their series and counts, under
    /// the index they have now; the others are forgotten.
    pub fn retarget(&mut self, targets: &[String], interval_ns: u64) {
        self.interval_ns = interval_ns;
        let place = |name: &str| targets.iter().position(|target| target == name);
        let places: Vec<_> = self.targets.iter().map(|target| place(&target.name)).collect();
        self.series = std::mem::take(&mut self.series)
            .into_iter()
            .filter_map(|(key, tracked)| Some((Key { target: (*places.get(key.target)?)?, ..key }, tracked)))
            .collect();
        self.outliers.clear();
        let mut before = std::mem::take(&mut self.targets);
        self.targets = targets
            .iter()
            .map(|name| match before.iter().position(|target| target.name == *name) {
                // The processes are found again, and then counted as started again.
                Some(index) => TargetStatus { processes: 0, ..std::mem::take(&mut before[index]) },
                None => TargetStatus { name: name.clone(), ..TargetStatus::default() },
            })
            .collect();
    }

    /// What is promised from now on; a promise that stays the same keeps its counts.
    pub fn promise(&mut self, objectives: Vec<Objective>) {
        let mut before = std::mem::take(&mut self.slos);
        self.slos = objectives
            .into_iter()
            .map(|objective| match before.iter().position(|slo| *slo.objective() == objective) {
                Some(index) => before.swap_remove(index),
                None => Tracker::new(objective),
            })
            .collect();
    }

    /// What is known once `reading` has been added.
    ///
    /// A clock that goes backwards counts as one that stands still; a wall clock that jumps changes
    /// nothing but what is shown.
    pub fn step(&mut self, reading: &Measurements, now: Now) -> Snapshot {
        let now_ns = now.monotonic_ns.max(self.last_ns);
        self.last_ns = now_ns;
        self.readings += 1;
        self.gaps += u64::from(reading.elapsed_ns > 2 * self.interval_ns);
        for row in &reading.rows {
            let key = Key { probe: row.probe, target: row.target, label: row.label };
            let tracked = self.series.entry(key).or_insert_with(|| Tracked {
                total: Histogram::default(),
                since_wall_ns: now.wall_ns.saturating_sub(reading.elapsed_ns),
                windows: Sliding::all(),
            });
            tracked.total.merge(&row.histogram);
            for window in &mut tracked.windows {
                window.add(now_ns, reading.elapsed_ns, &row.histogram);
            }
        }
        self.count(reading);
        for slo in &mut self.slos {
            slo.add(&self.targets, reading, now_ns);
        }
        let names: Vec<String> = self.targets.iter().map(|target| target.name.clone()).collect();
        let now = Now { monotonic_ns: now_ns, ..now };
        self.watch.step(reading, now, &names, self.outliers.make_contiguous());
        Snapshot {
            wall_ns: now.wall_ns,
            readings: self.readings,
            gaps: self.gaps,
            series: self.series.iter().map(|(key, tracked)| Arc::new(tracked.view(*key))).collect(),
            probes: self.statuses(&reading.probes),
            targets: self.targets.clone(),
            outliers: Arc::new(self.outliers.clone()),
            lost: self.lost.clone(),
            cost: reading.cost.clone(),
            overhead_cpu_ratio: self.overhead(),
            slos: self.slos.iter().map(Tracker::status).collect(),
            limits: self.watch.limits(),
            findings: self.watch.findings(),
            anomaly_scores: self.watch.scores(),
            anomaly_unwatched: self.watch.unwatched(),
            record: self.watch.record().clone(),
        }
    }

    fn count(&mut self, reading: &Measurements) {
        for (target, reading) in self.targets.iter_mut().zip(&reading.targets) {
            target.processes = reading.processes;
            target.started += reading.started;
            target.exited += reading.exited;
        }
        for lost in &reading.lost {
            let same = |known: &&mut Lost| known.source == lost.source && known.reason == lost.reason;
            match self.lost.iter_mut().find(same) {
                Some(known) => known.count += lost.count,
                None => self.lost.push(lost.clone()),
            }
        }
        self.outliers.extend(reading.outliers.iter().cloned());
        let surplus = self.outliers.len().saturating_sub(Snapshot::OUTLIERS);
        self.outliers.drain(..surplus);

        self.probes.resize_with(reading.probes.len(), ProbeTracked::default);
        for (tracked, reading) in self.probes.iter_mut().zip(&reading.probes) {
            tracked.add(reading);
        }
        let programs: f64 = self
            .probes
            .iter()
            .zip(&reading.probes)
            .filter_map(|(tracked, reading)| Some(tracked.cost_ns()? * reading.runs as f64))
            .sum();
        self.costs.push_back(CostPart {
            elapsed_ns: reading.elapsed_ns,
            ns: programs + reading.cost.daemon_cpu_ns as f64,
        });
        let mut covered: u64 = self.costs.iter().map(|part| part.elapsed_ns).sum();
        while self.costs.len() > 1 && covered - self.costs[0].elapsed_ns >= COST_NS {
            covered -= self.costs.pop_front().map_or(0, |part| part.elapsed_ns);
        }
    }

    fn statuses(&self, readings: &[ProbeReading]) -> Vec<ProbeStatus> {
        let mut recorded = vec![0; readings.len()];
        for (key, tracked) in &self.series {
            if let Some(sum) = recorded.get_mut(key.probe) {
                *sum += tracked.total.count();
            }
        }
        self.probes
            .iter()
            .zip(readings)
            .zip(recorded)
            .map(|((tracked, reading), recorded)| ProbeStatus {
                state: reading.state,
                reason: reading.reason.clone(),
                accounting: tracked.accounting.clone(),
                recorded,
                runs: tracked.runs,
                cost_ns: tracked.cost_ns(),
            })
            .collect()
    }

    /// Share of one CPU over the last minute; `None` until a run of any program has been timed.
    fn overhead(&self) -> Option<f64> {
        self.probes.iter().any(|probe| probe.timed > 0).then_some(())?;
        let elapsed: u64 = self.costs.iter().map(|part| part.elapsed_ns).sum();
        let ns: f64 = self.costs.iter().map(|part| part.ns).sum();
        (elapsed > 0).then(|| ns / elapsed as f64)
    }
}

impl Tracked {
    fn view(&self, key: Key) -> Series {
        Series {
            key,
            total: self.total.clone(),
            since_wall_ns: self.since_wall_ns,
            windows: std::array::from_fn(|index| self.windows[index].view()),
        }
    }
}

impl ProbeTracked {
    fn add(&mut self, reading: &ProbeReading) {
        let Accounting { seen, filtered, discarded } = &reading.accounting;
        self.accounting.seen += seen;
        self.accounting.filtered += filtered;
        self.accounting.discarded.resize(discarded.len().max(self.accounting.discarded.len()), 0);
        for (sum, count) in self.accounting.discarded.iter_mut().zip(discarded) {
            *sum += count;
        }
        self.runs += reading.runs;
        self.timed += reading.timed;
        self.timed_ns += reading.timed_ns;
        // Old timings fade, so that the mean follows the machine.
        if self.timed > 4096 {
            self.timed /= 2;
            self.timed_ns /= 2;
        }
    }

    fn cost_ns(&self) -> Option<f64> {
        (self.timed > 0).then(|| self.timed_ns as f64 / self.timed as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measurement::{Cost, ProbeState, RowReading, TargetReading};

    const SECOND: u64 = 1_000_000_000;

    fn row(target: usize, values: &[u64]) -> RowReading {
        let mut histogram = Histogram::default();
        for value in values {
            histogram.observe(*value);
        }
        RowReading { probe: 0, target, label: 0, histogram }
    }

    fn reading(elapsed_ns: u64, rows: Vec<RowReading>) -> Measurements {
        let seen = rows.iter().map(|row| row.histogram.count()).sum();
        Measurements {
            elapsed_ns,
            rows,
            probes: vec![ProbeReading {
                state: ProbeState::Healthy,
                reason: String::new(),
                accounting: Accounting { seen, filtered: 0, discarded: vec![0; 5] },
                runs: 1000,
                timed: 1,
                timed_ns: 200,
            }],
            targets: vec![TargetReading { processes: 1, ..TargetReading::default() }],
            lost: vec![Lost { source: "ring".into(), reason: "full".into(), count: 2 }],
            cost: Cost { daemon_cpu_ns: 800_000, ..Cost::default() },
            ..Measurements::default()
        }
    }

    fn at(second: u64) -> Now {
        Now { monotonic_ns: second * SECOND, wall_ns: (1_000_000 + second) * SECOND }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn totals_grow_and_windows_slide() {
        let mut state = State::new(&names(&["engine"]), SECOND);
        let mut last = Snapshot::default();
        for second in 1..=120 {
            last = state.step(&reading(SECOND, vec![row(0, &[10_000, 20_000])]), at(second));
        }
        let series = &last.series[0];
        assert_eq!(series.total.count(), 240);
        let counts: Vec<u64> = series.windows.iter().map(|window| window.histogram.count()).collect();
        assert_eq!(counts[0], 20);
        assert!((116..=120).contains(&counts[1]), "{counts:?}");
        assert_eq!(&counts[2..], [240, 240]);
        assert_eq!(series.windows[0].rate(), Some(2.0));
        assert_eq!((last.readings, last.gaps), (120, 0));
        assert_eq!(last.probes[0].recorded, 240);
        assert_eq!(last.probes[0].accounting.seen, 240);
        assert_eq!(last.lost[0].count, 240);
        // 1000 runs of 200 ns and 0.8 ms of its own, each second.
        assert!((last.overhead_cpu_ratio.expect("timed") - 0.001).abs() < 1e-9);
    }

    #[test]
    fn a_row_without_observations_is_no_data() {
        let mut state = State::new(&names(&["engine"]), SECOND);
        let snapshot = state.step(&reading(SECOND, vec![row(0, &[])]), at(1));
        assert_eq!(snapshot.series[0].windows[0].quantile(0.99), None);
        assert_eq!(snapshot.series[0].windows[0].rate(), Some(0.0));
    }

    #[test]
    fn a_late_reading_is_a_gap_and_covers_what_it_covers() {
        let mut state = State::new(&names(&["engine"]), SECOND);
        state.step(&reading(SECOND, vec![row(0, &[1000])]), at(1));
        let snapshot = state.step(&reading(30 * SECOND, vec![row(0, &[1000])]), at(31));
        assert_eq!(snapshot.gaps, 1);
        assert_eq!(snapshot.series[0].windows[0].covered_ns, 30 * SECOND);
        assert_eq!(snapshot.series[0].windows[1].covered_ns, 31 * SECOND);
    }

    #[test]
    fn clocks_that_jump_change_nothing() {
        let mut straight = State::new(&names(&["engine"]), SECOND);
        let mut jumping = State::new(&names(&["engine"]), SECOND);
        for second in 1..=20 {
            let reading = reading(SECOND, vec![row(0, &[second * 1000])]);
            let a = straight.step(&reading, at(second));
            let wall_ns = if second % 2 == 0 { 0 } else { u64::MAX };
            let b = jumping.step(&reading, Now { monotonic_ns: second * SECOND, wall_ns });
            assert_eq!(a.series[0].windows[0].histogram, b.series[0].windows[0].histogram);
        }
        let back = jumping.step(&reading(SECOND, vec![row(0, &[1000])]), at(3));
        assert_eq!(back.series[0].total.count(), 21);
        assert_eq!(back.series[0].windows[0].histogram.count(), 11, "time stood still");
    }

    #[test]
    fn targets_that_stay_keep_their_series() {
        let mut state = State::new(&names(&["a", "b"]), SECOND);
        state.step(&reading(SECOND, vec![row(0, &[1]), row(1, &[2, 3])]), at(1));
        state.retarget(&names(&["b", "c"]), SECOND);
        let snapshot = state.step(&reading(SECOND, vec![row(0, &[4]), row(1, &[])]), at(2));
        let counts: Vec<(usize, u64)> =
            snapshot.series.iter().map(|series| (series.key.target, series.total.count())).collect();
        assert_eq!(counts, [(0, 3), (1, 0)]);
        let kept: Vec<&str> = snapshot.targets.iter().map(|target| target.name.as_str()).collect();
        assert_eq!(kept, ["b", "c"]);
    }

    #[test]
    fn a_restarted_target_goes_on() {
        let mut state = State::new(&names(&["engine"]), SECOND);
        let mut with = |processes, started, exited, second| {
            let mut reading = reading(SECOND, vec![row(0, &[1000])]);
            reading.targets = vec![TargetReading {
                name: "engine".into(),
                processes,
                started,
                exited,
                ..TargetReading::default()
            }];
            state.step(&reading, at(second))
        };
        with(1, 1, 0, 1);
        with(0, 0, 1, 2);
        let snapshot = with(1, 1, 0, 3);
        let target = &snapshot.targets[0];
        assert_eq!((target.processes, target.started, target.exited), (1, 2, 1));
        assert_eq!(snapshot.series[0].total.count(), 3);
    }

    #[test]
    fn outliers_are_bounded_and_the_newest_stay() {
        let mut state = State::new(&names(&["engine"]), SECOND);
        let mut reading = reading(SECOND, Vec::new());
        reading.outliers = (0..3000)
            .map(|end_ns| Outlier {
                probe: 0,
                target: 0,
                label: 0,
                cpu: 0,
                tgid: 1,
                tid: 1,
                comm: String::new(),
                end_ns,
                duration_ns: 1,
                culprit: None,
            })
            .collect();
        let snapshot = state.step(&reading, at(1));
        assert_eq!(snapshot.outliers.len(), Snapshot::OUTLIERS);
        assert_eq!(snapshot.outliers.back().map(|outlier| outlier.end_ns), Some(2999));
    }
}
