//! Gates over two targets of this daemon: readings of the kernel in, what each gate says out.

use crate::histogram::Histogram;
use crate::measurement::{Measurements, ProbeState, TargetReading};
use crate::series::Now;

use super::constant::{LOST_SHARE, NEW_STEP_SECONDS};
use super::{Arm, Buckets, Gate, Kind, Kpi, Policy, Reading, Report, Value, Verdict};

/// What a gate watches.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Name of the gate.
    pub name: String,
    /// Index of the target that is the reference.
    pub baseline: usize,
    /// Index of the target that is tested.
    pub canary: usize,
    /// What is compared.
    pub kpis: Vec<Watched>,
    /// How strict it is.
    pub policy: Policy,
    /// Length of a block, seconds.
    pub seconds: f64,
}

/// A latency of both targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Watched {
    /// Its name in reports.
    pub name: String,
    /// Index into the catalog.
    pub probe: usize,
    /// Index into the probe's label values; `None`: all of them together.
    pub label: Option<usize>,
    /// As in [`Kind::Latency`].
    pub quantiles: Vec<(usize, Option<f64>)>,
}

/// Which builds a step compares, as whoever started it calls them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Builds {
    /// The tested one.
    pub canary: Option<String>,
    /// The reference.
    pub stable: Option<String>,
    /// Whether the canary mends what burns the error budget: it may then be promoted without one.
    pub hotfix: bool,
}

/// What a gate says now.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Name of the gate.
    pub name: String,
    /// Whether it looks.
    pub running: bool,
    /// Which builds it compares, if it was told.
    pub builds: Builds,
    /// Since when it says so, wall clock, ns since 1970.
    pub since_wall_ns: u64,
    /// The latest reading, wall clock, ns since 1970.
    pub read_wall_ns: u64,
    /// What it says.
    pub report: Report,
}

/// All gates of a daemon.
#[derive(Default)]
pub struct Watch {
    gates: Vec<Watching>,
    frozen: Option<String>,
}

struct Watching {
    spec: Spec,
    gate: Gate,
    running: bool,
    builds: Builds,
    /// `[arm]`: processes at the latest reading.
    processes: [usize; 2],
    /// For how long the canary has had no process; `None`: it has not had one in this step.
    absent: Option<f64>,
    since_wall_ns: u64,
    read_wall_ns: u64,
    report: Report,
}

impl Watch {
    /// Gates that have seen nothing; they look at once.
    pub fn new(specs: Vec<Spec>) -> Self {
        let mut watch = Self::default();
        watch.set(specs);
        watch
    }

    /// Other gates from now on; those that did not change go on.
    pub fn set(&mut self, specs: Vec<Spec>) {
        let mut before = std::mem::take(&mut self.gates);
        self.gates = specs
            .into_iter()
            .map(|spec| match before.iter().position(|watching| watching.spec == spec) {
                Some(index) => before.swap_remove(index),
                None => Watching::new(spec),
            })
            .collect();
    }

    /// Whether any gate looks, and the source has to be read often.
    pub fn running(&self) -> bool {
        self.gates.iter().any(|watching| watching.running)
    }

    /// A new step of the gate of this name, with all evidence anew. Whether there is one.
    pub fn start(&mut self, name: &str, builds: Builds, share: Option<f64>, now: Now) -> bool {
        self.by_name(name, |watching| {
            watching.running = true;
            watching.builds = builds;
            let share = share.or(watching.spec.policy.share);
            watching.gate.restart(Policy { share, ..watching.spec.policy.clone() });
            watching.absent = None;
            watching.tell(now);
        })
    }

    /// The gate of this name looks no more, and has no data. Whether there is one.
    pub fn stop(&mut self, name: &str, now: Now) -> bool {
        self.by_name(name, |watching| {
            watching.running = false;
            watching.gate = Watching::gate(&watching.spec);
            watching.builds = Builds::default();
            watching.tell(now);
        })
    }

    /// Why nothing but a hotfix is promoted, as long as there is a reason: an error budget is burnt.
    pub fn freeze(&mut self, reason: Option<String>) {
        self.frozen = reason;
    }

    /// One reading, at least every block.
    pub fn step(&mut self, reading: &Measurements, now: Now) {
        for watching in self.gates.iter_mut().filter(|watching| watching.running) {
            watching.step(reading, now);
        }
    }

    /// What all of them say, in the order of the configuration.
    pub fn statuses(&self) -> Vec<Status> {
        self.gates.iter().map(|watching| watching.status(self.frozen.as_deref())).collect()
    }

    fn by_name(&mut self, name: &str, change: impl FnOnce(&mut Watching)) -> bool {
        let found = self.gates.iter_mut().find(|watching| watching.spec.name == name);
        found.map(change).is_some()
    }
}

impl Watching {
    fn new(spec: Spec) -> Self {
        let gate = Self::gate(&spec);
        Self {
            report: gate.report(),
            gate,
            spec,
            running: true,
            builds: Builds::default(),
            processes: [0; 2],
            absent: None,
            since_wall_ns: 0,
            read_wall_ns: 0,
        }
    }

    fn gate(spec: &Spec) -> Gate {
        let kpi = |watched: &Watched| Kpi {
            name: watched.name.clone(),
            kind: Kind::Latency(watched.quantiles.clone()),
            seconds: spec.seconds,
        };
        Gate::new(spec.policy.clone(), spec.kpis.iter().map(kpi).collect())
    }

    fn status(&self, frozen: Option<&str>) -> Status {
        let mut report = self.report.clone();
        if let Some(reason) = frozen
            && report.verdict == Verdict::Pass
            && !self.builds.hotfix
        {
            report.verdict = Verdict::Inconclusive;
            report.action = report.verdict.action();
            report.reason = format!("it would pass, but {reason}: only a hotfix is promoted");
        }
        Status {
            name: self.spec.name.clone(),
            running: self.running,
            builds: self.builds.clone(),
            since_wall_ns: self.since_wall_ns,
            read_wall_ns: self.read_wall_ns,
            report,
        }
    }

    fn step(&mut self, reading: &Measurements, now: Now) {
        self.follow_processes(reading);
        let t = now.monotonic_ns as f64 / 1e9;
        for (kpi, watched) in self.spec.kpis.iter().enumerate() {
            for (arm, target) in [(Arm::Baseline, self.spec.baseline), (Arm::Canary, self.spec.canary)] {
                let mut sum = Histogram::default();
                let of_kpi = reading.rows.iter().filter(|row| {
                    row.probe == watched.probe
                        && row.target == target
                        && watched.label.is_none_or(|label| label == row.label)
                });
                of_kpi.for_each(|row| sum.merge(&row.histogram));
                let value = Value::Latency(Buckets::from(&sum));
                // A clock that goes backwards cannot happen; a block that is over has been judged.
                let _late = self.gate.add(Reading { t, arm, kpi, instance: 0, value });
            }
        }
        if !self.usable(reading) {
            self.gate.spoil();
        }
        self.tell(now);
    }

    /// Whether the probes measured, and nothing of weight was lost.
    fn usable(&self, reading: &Measurements) -> bool {
        let measures = |watched: &Watched| {
            let state = reading.probes.get(watched.probe).map(|probe| probe.state);
            matches!(state, Some(ProbeState::Healthy | ProbeState::Degraded))
        };
        let lost: u64 =
            reading.lost.iter().filter(|lost| lost.source == "program").map(|lost| lost.count).sum();
        let seen: u64 = reading.rows.iter().map(|row| row.histogram.count()).sum();
        self.spec.kpis.iter().all(measures) && lost as f64 <= LOST_SHARE * seen as f64
    }

    /// Processes that are replaced are a restart of their arm. A canary that comes back after a
    /// while is another one, and a new step.
    fn follow_processes(&mut self, reading: &Measurements) {
        for (arm, target) in [(Arm::Baseline, self.spec.baseline), (Arm::Canary, self.spec.canary)] {
            let Some(TargetReading { processes, started, exited, .. }) = reading.targets.get(target) else {
                continue;
            };
            let before = std::mem::replace(&mut self.processes[arm as usize], *processes);
            let replaced = *started > 0 && *exited as usize >= before;
            if arm == Arm::Canary && *processes == 0 {
                if let Some(absent) = &mut self.absent {
                    *absent += reading.elapsed_ns as f64 / 1e9;
                }
                continue;
            }
            if arm == Arm::Canary {
                let absent = self.absent.replace(0.0).unwrap_or(0.0);
                if absent > NEW_STEP_SECONDS {
                    self.gate.restart(self.spec.policy.clone());
                    self.builds = Builds::default();
                    continue;
                }
            }
            if replaced {
                self.gate.restarted(arm);
            }
        }
    }

    fn tell(&mut self, now: Now) {
        let mut report = self.gate.report();
        if !self.running {
            report.reason = "the gate is stopped".into();
        }
        if report.verdict != self.report.verdict || self.since_wall_ns == 0 {
            self.since_wall_ns = now.wall_ns;
        }
        self.read_wall_ns = now.wall_ns;
        self.report = report;
    }
}

impl Status {
    /// The same status for somebody who asks about these builds: a canary that this step does not
    /// compare has no data, whatever was said of another.
    #[must_use]
    pub fn pinned(mut self, asked: &Builds) -> Self {
        let other = |asked: &Option<String>, own: &Option<String>| asked.is_some() && asked != own;
        let reason = if other(&asked.canary, &self.builds.canary) {
            "this canary has not been seen yet"
        } else if other(&asked.stable, &self.builds.stable) {
            "this stable build is not the one that is compared with"
        } else {
            return self;
        };
        self.without_data(reason);
        self
    }

    /// Nothing of what was said holds.
    pub fn without_data(&mut self, reason: &str) {
        let verdict = Verdict::NoData;
        self.report = Report {
            verdict,
            action: verdict.action(),
            t: None,
            kpi: None,
            quantile: None,
            reason: reason.into(),
            kpis: Vec::new(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measurement::{Accounting, Lost, ProbeReading, RowReading};

    const STEP_NS: u64 = 200_000_000;

    fn spec() -> Spec {
        let quantiles = (0..4).map(|index| (index, None)).collect();
        Spec {
            name: "engine".into(),
            baseline: 0,
            canary: 1,
            kpis: vec![Watched { name: "runqueue".into(), probe: 0, label: None, quantiles }],
            policy: Policy { dwell_seconds: 60.0, ..Policy::default() },
            seconds: 0.2,
        }
    }

    /// A daemon whose targets run at 1000 observations a second each, one of them `slow` times
    /// slower.
    struct World {
        watch: Watch,
        blocks: u64,
        state: ProbeState,
        lost: u64,
    }

    impl World {
        fn new() -> Self {
            Self { watch: Watch::new(vec![spec()]), blocks: 0, state: ProbeState::Healthy, lost: 0 }
        }

        fn now(&self) -> Now {
            let ns = self.blocks * STEP_NS;
            Now { monotonic_ns: ns, wall_ns: ns + 1_000 }
        }

        fn run(&mut self, seconds: u64, canary: Option<u64>, started: u64) -> Status {
            for block in 0..seconds * 5 {
                self.blocks += 1;
                let row = |target, slow| {
                    let mut histogram = Histogram::default();
                    for i in 0..200u64 {
                        histogram.observe(slow * (10_000 + 50 * (i * 37 % 200)));
                    }
                    RowReading { probe: 0, target, label: 0, histogram }
                };
                let mut rows = vec![row(0, 1)];
                rows.extend(canary.map(|slow| row(1, slow)));
                let target =
                    |processes, started| TargetReading { processes, started, ..TargetReading::default() };
                let begins = if block == 0 { started } else { 0 };
                let probe = ProbeReading {
                    state: self.state,
                    reason: String::new(),
                    accounting: Accounting::default(),
                    runs: 0,
                    timed: 0,
                    timed_ns: 0,
                };
                let reading = Measurements {
                    elapsed_ns: STEP_NS,
                    rows,
                    probes: vec![probe],
                    targets: vec![target(1, 0), target(usize::from(canary.is_some()), begins)],
                    lost: vec![Lost {
                        source: "program".into(),
                        reason: "recursion".into(),
                        count: self.lost,
                    }],
                    ..Measurements::default()
                };
                let now = self.now();
                self.watch.step(&reading, now);
            }
            self.watch.statuses().remove(0)
        }
    }

    fn verdict(status: &Status) -> Verdict {
        status.report.verdict
    }

    #[test]
    fn from_history_to_promotion_and_to_rollback() {
        let mut world = World::new();
        assert_eq!(verdict(&world.run(30, None, 0)), Verdict::NoData);
        let status = world.run(50, Some(1), 1);
        assert_eq!(verdict(&status), Verdict::Inconclusive, "{}", status.report.reason);
        assert!(status.report.reason.contains("has to stand for 60 s"), "{}", status.report.reason);
        let status = world.run(20, Some(1), 0);
        assert_eq!(verdict(&status), Verdict::Pass, "{}", status.report.reason);
        // Within the step the canary turns slow.
        let status = world.run(60, Some(2), 0);
        assert_eq!(verdict(&status), Verdict::Fail, "{}", status.report.reason);
        let since = status.since_wall_ns;
        let status = world.run(10, Some(1), 0);
        assert_eq!((verdict(&status), status.since_wall_ns), (Verdict::Fail, since), "it is final");
        assert!(status.read_wall_ns > since);
    }

    #[test]
    fn a_canary_that_comes_back_later_is_a_new_step() {
        let mut world = World::new();
        world.run(30, None, 0);
        assert_eq!(verdict(&world.run(60, Some(2), 1)), Verdict::Fail);
        assert_eq!(verdict(&world.run(30, None, 0)), Verdict::Fail, "gone, and still known to be bad");
        assert_eq!(verdict(&world.run(1, Some(1), 1)), Verdict::Fail, "back at once: the same step");
        world.run(70, None, 0);
        assert_ne!(verdict(&world.run(1, Some(1), 1)), Verdict::Fail);
        assert_eq!(verdict(&world.run(90, Some(1), 0)), Verdict::Pass);
    }

    #[test]
    fn unhealthy_probes_and_losses_hold() {
        for (state, lost) in [(ProbeState::Failed, 0), (ProbeState::Disabled, 0), (ProbeState::Healthy, 5)] {
            let mut world = World::new();
            world.run(30, None, 0);
            assert_eq!(verdict(&world.run(80, Some(1), 1)), Verdict::Pass);
            (world.state, world.lost) = (state, lost);
            let status = world.run(15, Some(2), 0);
            assert_eq!(verdict(&status), Verdict::Inconclusive, "{}", status.report.reason);
        }
    }

    #[test]
    fn a_pinned_question_is_about_these_builds_only() {
        let mut world = World::new();
        world.run(30, None, 0);
        let builds = Builds { canary: Some("b2".into()), stable: Some("b1".into()), hotfix: false };
        let now = world.now();
        assert!(world.watch.start("engine", builds.clone(), None, now));
        assert!(!world.watch.start("other", builds.clone(), None, now));
        let status = world.run(80, Some(1), 0);
        let asked = |canary: Option<&str>, stable: Option<&str>| {
            let builds = Builds {
                canary: canary.map(str::to_owned),
                stable: stable.map(str::to_owned),
                hotfix: false,
            };
            status.clone().pinned(&builds).report.verdict
        };
        assert_eq!(asked(None, None), Verdict::Pass);
        assert_eq!(asked(Some("b2"), Some("b1")), Verdict::Pass);
        assert_eq!(asked(Some("b3"), Some("b1")), Verdict::NoData);
        assert_eq!(asked(Some("b2"), Some("b0")), Verdict::NoData);
        // The next step begins with nothing.
        let now = world.now();
        assert!(world.watch.start(
            "engine",
            Builds { canary: Some("b3".into()), ..Builds::default() },
            None,
            now
        ));
        assert_eq!(verdict(&world.run(1, Some(1), 0)), Verdict::Inconclusive);
    }

    #[test]
    fn a_burnt_budget_holds_all_but_a_hotfix() {
        let mut world = World::new();
        world.run(30, None, 0);
        assert_eq!(verdict(&world.run(80, Some(1), 1)), Verdict::Pass);
        world.watch.freeze(Some("the budget of \"fast\" is burnt".into()));
        let status = world.run(1, Some(1), 0);
        assert_eq!(verdict(&status), Verdict::Inconclusive);
        assert!(status.report.reason.contains("\"fast\""), "{}", status.report.reason);
        let now = world.now();
        world.watch.start("engine", Builds { hotfix: true, ..Builds::default() }, None, now);
        assert_eq!(verdict(&world.run(80, Some(1), 0)), Verdict::Pass);
    }

    #[test]
    fn a_stopped_gate_has_no_data_and_lets_the_source_rest() {
        let mut world = World::new();
        world.run(30, None, 0);
        assert!(world.watch.running());
        let now = world.now();
        assert!(world.watch.stop("engine", now));
        assert!(!world.watch.running());
        let status = world.run(20, Some(2), 1);
        assert_eq!((verdict(&status), status.running), (Verdict::NoData, false));
        assert_eq!(status.report.reason, "the gate is stopped");
    }

    #[test]
    fn a_gate_that_did_not_change_goes_on() {
        let mut world = World::new();
        world.run(30, None, 0);
        world.run(80, Some(1), 1);
        world.watch.set(vec![spec()]);
        assert_eq!(verdict(&world.watch.statuses()[0]), Verdict::Pass);
        world.watch.set(vec![Spec { seconds: 1.0, ..spec() }]);
        assert_eq!(verdict(&world.watch.statuses()[0]), Verdict::NoData);
        world.watch.set(Vec::new());
        assert!(!world.watch.running() && world.watch.statuses().is_empty());
    }
}
