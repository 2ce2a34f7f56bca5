//! Watching as the daemon does it: readings in, warnings and findings out.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use tickscope_core::{
    Culprit, Direction, Histogram, Limit, Measurements, Now, Outlier, RowReading, Rule, Saved, Snapshot,
    Stale, State, Subject, TargetReading,
};

const SECOND: u64 = 1_000_000_000;
/// A Monday.
const WALL: u64 = 1_767_571_200 * SECOND;

/// One uniform number in 0..1 a call.
struct Uniform(u64);

impl Uniform {
    fn next(&mut self) -> f64 {
        self.0 = (1_103_515_245 * self.0 + 12_345) % (1 << 31);
        self.0 as f64 / (1u64 << 31) as f64
    }
}

fn state(rules: Vec<Rule>) -> State {
    let mut state = State::new(&["engine".to_owned()], SECOND);
    state.watch().set_limits(rules);
    state
}

fn at(second: u64) -> Now {
    Now { monotonic_ns: second * SECOND, wall_ns: WALL + second * SECOND }
}

fn memory(bytes: f64) -> Measurements {
    let target = TargetReading {
        name: "engine".into(),
        processes: 1,
        resident_bytes: Some(bytes as u64),
        ..TargetReading::default()
    };
    Measurements { elapsed_ns: SECOND, targets: vec![target], ..Measurements::default() }
}

fn memory_limit() -> Rule {
    Rule {
        series: "engine/memory".into(),
        subject: Subject::Memory { target: 0 },
        limit: Limit {
            value: 1e9,
            direction: Direction::Above,
            horizon_s: 1800.0,
            step_s: 1.0,
            period_s: None,
        },
    }
}

/// `latencies` of the probe `runqueue` in this second.
fn latency(latencies: impl Iterator<Item = u64>) -> Measurements {
    let mut histogram = Histogram::default();
    latencies.for_each(|ns| histogram.observe(ns));
    let target = TargetReading { name: "engine".into(), processes: 1, ..TargetReading::default() };
    let row = RowReading { probe: 0, target: 0, label: 0, histogram };
    Measurements { elapsed_ns: SECOND, targets: vec![target], rows: vec![row], ..Measurements::default() }
}

/// A hundred latencies around `median_ns`, within a factor of two either way.
fn hundred(random: &mut Uniform, median_ns: f64) -> Measurements {
    latency((0..100).map(|_| (median_ns * 2f64.powf(random.next() + random.next() - 1.0)) as u64))
}

#[test]
fn a_leak_is_warned_of_before_the_limit_and_scored_at_the_breach() {
    let mut state = state(vec![memory_limit()]);
    let mut random = Uniform(1);
    let mut warned_at = None;
    for second in 0..4000 {
        let t = second as f64;
        let bytes = 2e8 + 3e6 * random.next() + 4e5 * (t - 1000.0).max(0.0);
        let snapshot = state.step(&memory(bytes), at(second));
        let status = &snapshot.limits[0];
        let forecast = status.forecast;
        if second < 30 {
            assert_eq!(forecast, None, "unknown, not quiet");
        }
        if forecast.is_some_and(|forecast| forecast.warn) && warned_at.is_none() {
            assert!(!status.breached);
            warned_at = Some(t);
        }
        if status.breached {
            assert_eq!((snapshot.record.breaches, snapshot.record.warnings_true), (1, 1));
            assert!(snapshot.record.lead_s().unwrap() > 300.0);
            assert!((t - warned_at.unwrap() - snapshot.record.lead_s().unwrap()).abs() < 2.0);
            return;
        }
    }
    panic!("it never breached");
}

#[test]
fn a_ramp_that_stops_is_not_warned_of() {
    let mut state = state(vec![memory_limit()]);
    let mut random = Uniform(1);
    for second in 0..8000 {
        let ramp = (second as f64 - 1000.0).clamp(0.0, 1000.0);
        let bytes = 2e8 + 3e6 * random.next() + 3e5 * ramp;
        let snapshot = state.step(&memory(bytes), at(second));
        assert!(!snapshot.limits[0].forecast.is_some_and(|forecast| forecast.warn), "{second}");
    }
}

#[test]
fn quantiles_and_rates_are_sampled_and_few_observations_are_none() {
    let limit = memory_limit().limit;
    let quantile = Rule {
        series: "engine/runqueue/p50".into(),
        subject: Subject::Quantile { probe: 0, target: 0, label: None, q: 0.5 },
        limit: Limit { step_s: 5.0, ..limit },
    };
    let rate = Rule {
        series: "engine/runqueue/rate".into(),
        subject: Subject::Rate { probe: 0, target: 0, label: Some(0) },
        limit,
    };
    let mut state = state(vec![quantile, rate]);
    let mut last = Snapshot::default();
    for second in 1..=10 {
        last = state.step(&latency((0..10).map(|_| 50_000)), at(second));
    }
    let value = last.limits[0].value.unwrap();
    assert!((value / 50e-6 - 1.0).abs() < 0.05, "50 observations in 5 s: {value}");
    assert!((last.limits[1].value.unwrap() - 10.0).abs() < 1e-9);
    for second in 11..=20 {
        last = state.step(&latency((0..2).map(|_| 50_000)), at(second));
    }
    assert_eq!((last.limits[0].value, last.limits[0].missing), (None, 2), "10 observations in 5 s");
    last = state.step(&Measurements { elapsed_ns: SECOND, ..Measurements::default() }, at(21));
    assert_eq!(last.limits[1].value, None, "the probe does not measure: no rate, not 0");
}

#[test]
fn a_slower_distribution_is_one_finding_with_its_culprit() {
    let mut state = state(Vec::new());
    let mut random = Uniform(7);
    let mut last = Snapshot::default();
    for second in 0..9000 {
        let slow = (6000..6600).contains(&second);
        let mut reading = hundred(&mut random, if slow { 80_000.0 } else { 50_000.0 });
        if slow {
            reading.outliers.push(Outlier {
                probe: 0,
                target: 0,
                label: 0,
                cpu: 0,
                tgid: 1,
                tid: 1,
                comm: "engine".into(),
                end_ns: second * SECOND,
                duration_ns: 1_000_000,
                culprit: Some(Culprit { comm: "backup".into(), tgid: 9 }),
            });
        }
        last = state.step(&reading, at(second));
        if second < 6000 {
            assert!(last.findings.is_empty(), "{second}: {:?}", last.findings);
        }
        if second == 6300 {
            let open = last.anomaly_scores.iter().find(|score| score.detector == "shift").unwrap();
            assert!(open.open && open.score > 0.5, "{open:?}");
        }
    }
    assert_eq!(last.findings.len(), 1, "{:?}", last.findings);
    let finding = &last.findings[0];
    assert_eq!((finding.series.as_str(), finding.detector.as_str()), ("engine/runqueue", "shift"));
    assert_eq!((finding.direction.as_str(), finding.culprit.as_deref()), ("up", Some("backup")));
    let wall = WALL as f64 / 1e9;
    assert!((6000.0..=6030.0).contains(&(finding.begin_s - wall)), "{finding:?}");
    assert!(finding.end_s.is_some_and(|end| (6600.0..7000.0).contains(&(end - wall))), "{finding:?}");
    assert!((1.5..=100.0).contains(&finding.size) && finding.peak > 1.0, "{finding:?}");
}

#[test]
fn losses_are_a_finding_only_when_they_are_more_than_usual() {
    let mut state = state(Vec::new());
    let mut random = Uniform(7);
    let mut last = Snapshot::default();
    for second in 0..3000 {
        let mut reading = hundred(&mut random, 50_000.0);
        // One in 500 is usual here; then a tenth is lost.
        let count = if second >= 2900 { 10 } else { u64::from(second % 5 == 0) };
        reading.lost = vec![tickscope_core::Lost { source: "ring".into(), reason: "full".into(), count }];
        reading.probes = vec![tickscope_core::ProbeReading {
            state: tickscope_core::ProbeState::Healthy,
            reason: String::new(),
            accounting: tickscope_core::Accounting { seen: 100, ..Default::default() },
            runs: 100,
            timed: 0,
            timed_ns: 0,
        }];
        last = state.step(&reading, at(second));
        assert!(second >= 2900 || last.findings.is_empty(), "{:?}", last.findings);
    }
    let finding = last.findings.last().unwrap();
    assert_eq!((finding.series.as_str(), finding.detector.as_str()), ("lost/ring.full", "loss"));
    assert!(finding.begin_s - WALL as f64 / 1e9 >= 2900.0, "{finding:?}");
}

#[test]
fn series_that_are_too_many_are_counted() {
    let targets: Vec<String> = (0..90).map(|i| format!("t{i}")).collect();
    let mut state = State::new(&targets, SECOND);
    let rows = (0..90).map(|target| {
        let row = hundred(&mut Uniform(target as u64), 50_000.0).rows.remove(0);
        RowReading { target, ..row }
    });
    let reading = Measurements { elapsed_ns: SECOND, rows: rows.collect(), ..Measurements::default() };
    let snapshot = state.step(&reading, at(1));
    assert_eq!(snapshot.anomaly_unwatched, 26);
    assert_eq!(snapshot.anomaly_scores.len(), 128, "two detectors of 64");
}

/// What is known after `seconds`, with a restart of the daemon after `restart`, whose monotonic
/// clock begins anew.
fn with_restart(seconds: u64, restart: Option<u64>) -> Snapshot {
    let mut state = state(vec![memory_limit()]);
    let mut random = Uniform(3);
    let mut last = Snapshot::default();
    let mut booted = 0;
    for second in 0..seconds {
        let mut reading = hundred(&mut random, 50_000.0);
        let bytes = 2e8 + 3e6 * random.next() + 4e5 * (second as f64 - 1000.0).max(0.0);
        reading.targets[0].resident_bytes = Some(bytes as u64);
        let now =
            |booted| Now { monotonic_ns: (second + 5 - booted) * SECOND, wall_ns: WALL + second * SECOND };
        if restart == Some(second) {
            let saved = serde_json::to_string(&state.watch().save(now(booted))).unwrap();
            booted = second;
            state = self::state(vec![memory_limit()]);
            let saved: Saved = serde_json::from_str(&saved).unwrap();
            state.watch().restore(saved, now(booted)).unwrap();
        }
        last = state.step(&reading, now(booted));
    }
    last
}

#[test]
fn a_restart_forgets_nothing() {
    let (straight, restarted) = (with_restart(2900, None), with_restart(2900, Some(2300)));
    assert!(straight.limits[0].forecast.unwrap().warn);
    let (a, b) = (straight.limits[0].forecast.unwrap(), restarted.limits[0].forecast.unwrap());
    assert!((a.p - b.p).abs() < 1e-9 && a.warn == b.warn, "{a:?} {b:?}");
    assert!((a.eta.unwrap().mid - b.eta.unwrap().mid).abs() < 1e-6);
    for (a, b) in straight.anomaly_scores.iter().zip(&restarted.anomaly_scores) {
        assert!((a.score - b.score).abs() < 1e-4, "{a:?} {b:?}");
    }
}

#[test]
fn what_is_stale_or_of_another_limit_is_not_used() {
    let mut saving = state(vec![memory_limit()]);
    for second in 0..100 {
        saving.step(&memory(2e8), at(second));
    }
    let saved = || -> Saved {
        serde_json::from_str(&serde_json::to_string(&saving.watch_ref().save(at(100))).unwrap()).unwrap()
    };
    let mut fresh = state(vec![memory_limit()]);
    assert_eq!(fresh.watch().restore(saved(), at(100 + 90_000)), Err(Stale::Old));
    assert_eq!(fresh.watch().restore(saved(), at(50)), Err(Stale::Future));
    assert_eq!(fresh.step(&memory(2e8), at(101)).limits[0].forecast, None);

    let mut other = memory_limit();
    other.limit.value = 2e9;
    let mut changed = state(vec![other.clone()]);
    changed.watch().restore(saved(), at(100)).unwrap();
    let snapshot = changed.step(&memory(2e8), at(101));
    assert_eq!((&snapshot.limits[0].rule, snapshot.limits[0].forecast), (&other, None));
    // A minute of daemon upgrade is a gap of a minute.
    let mut later = state(vec![memory_limit()]);
    later.watch().restore(saved(), at(120)).unwrap();
    assert!(later.step(&memory(2e8), at(121)).limits[0].forecast.is_some());
}
