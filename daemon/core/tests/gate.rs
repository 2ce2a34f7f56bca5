//! The gate through its boundary: readings in, reports out. Exact cases, guards and properties.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use proptest::collection::vec;
use proptest::prelude::*;
use tickscope_core::gate::{Arm, Buckets, Gate, Kind, Kpi, Policy, Reading, Refused, Report, Value, Verdict};

const LATENCY: usize = 0;
const ERRORS: usize = 1;

fn kpi(name: &str, kind: Kind) -> Kpi {
    Kpi { name: name.into(), kind, seconds: 1.0 }
}

fn gate() -> Gate {
    Gate::new(Policy::default(), vec![kpi("latency", Kind::latency()), kpi("errors", Kind::Errors)])
}

/// Ten observations in each of fifty buckets, `shift` buckets higher.
fn fifty(shift: i32) -> Value {
    let bound = |index: i32| (f64::from(index + shift) / 16.0).exp2();
    Value::Latency(Buckets::new((-260..=-211).map(|index| (bound(index), 10)).collect()).unwrap())
}

fn reading(t: u32, arm: Arm, kpi: usize, value: Value) -> Reading {
    Reading { t: f64::from(t), arm, kpi, instance: 0, value }
}

/// The baseline alone for `history` seconds, then both arms.
struct Case {
    history: u32,
    to: u32,
    shift: fn(u32) -> i32,
    bad: u64,
}

impl Case {
    fn readings(&self) -> Vec<Reading> {
        let mut all = Vec::new();
        for t in 1..=self.to {
            all.push(reading(t, Arm::Baseline, LATENCY, fifty(0)));
            all.push(reading(t, Arm::Baseline, ERRORS, Value::Errors { total: 500, bad: 0 }));
            if t > self.history {
                all.push(reading(t, Arm::Canary, LATENCY, fifty((self.shift)(t))));
                all.push(reading(t, Arm::Canary, ERRORS, Value::Errors { total: 500, bad: self.bad }));
            }
        }
        all
    }

    fn run(&self) -> Report {
        run(self.readings())
    }
}

fn case(shift: fn(u32) -> i32) -> Case {
    Case { history: 60, to: 360, shift, bad: 0 }
}

fn run(readings: Vec<Reading>) -> Report {
    let mut gate = gate();
    for reading in readings {
        gate.add(reading).unwrap();
    }
    gate.finish();
    gate.report()
}

fn decided(report: &Report) -> (Verdict, Option<f64>, Option<&str>, Option<f64>) {
    (report.verdict, report.t, report.kpi.as_deref(), report.quantile)
}

/// Evidence at the moment of the decision: later blocks change it.
fn evidence_at(case: &Case, t: f64) -> f64 {
    let report = Case { to: t as u32, ..*case }.run();
    report.kpis.iter().find(|row| Some(&row.kpi) == report.kpi.as_ref()).unwrap().evidence
}

#[test]
fn identical_arms_pass_when_the_median_is_certified() {
    let report = case(|_| 0).run();
    assert_eq!(decided(&report), (Verdict::Pass, Some(116.0), Some("latency"), Some(0.5)), "{report:#?}");
    let cut = Case { to: 115, ..case(|_| 0) }.run();
    assert_eq!(decided(&cut), (Verdict::Inconclusive, Some(115.0), Some("latency"), Some(0.5)));
    let passed = |q| cut.kpis.iter().find(|row| row.quantile == Some(q)).unwrap().verdict;
    assert_eq!((passed(0.5), passed(0.99)), (Verdict::Inconclusive, Verdict::Pass));
}

#[test]
fn a_shift_within_the_margin_is_neither() {
    let report = case(|_| 1).run();
    assert_eq!(decided(&report), (Verdict::Inconclusive, Some(360.0), Some("latency"), Some(0.5)));
}

#[test]
fn a_shift_beyond_the_margin_fails() {
    for (shift, t, wanted) in
        [(case(|_| 2), 73.0, 6.3988), (case(|_| 3), 72.0, 6.4295), (case(|_| 16), 72.0, 6.6221)]
    {
        let report = shift.run();
        assert_eq!((report.verdict, report.t), (Verdict::Fail, Some(t)), "{}", report.reason);
        assert_eq!(report.kpi.as_deref(), Some("latency"));
        let found = evidence_at(&shift, t);
        assert!((found - wanted).abs() < 5e-5, "{found}, not {wanted}");
        let before = Case { to: t as u32 - 1, ..shift }.run();
        assert_eq!(before.verdict, Verdict::Inconclusive);
    }
}

#[test]
fn a_faster_canary_passes_as_soon_as_anything_can() {
    let report = case(|_| -16).run();
    assert_eq!((report.verdict, report.t), (Verdict::Pass, Some(90.0)), "{}", report.reason);
    let cut = Case { to: 89, ..case(|_| -16) }.run();
    assert_eq!(cut.verdict, Verdict::Inconclusive);
}

#[test]
fn errors_fail_in_four_blocks() {
    let case = Case { bad: 10, ..case(|_| 0) };
    let report = case.run();
    assert_eq!(decided(&report), (Verdict::Fail, Some(64.0), Some("errors"), None));
    let found = evidence_at(&case, 64.0);
    assert!((found - 7.8578).abs() < 5e-5, "{found}");
}

#[test]
fn without_history_twenty_blocks_say_what_is_normal() {
    let report = Case { history: 0, ..case(|_| 16) }.run();
    assert_eq!((report.verdict, report.t), (Verdict::Fail, Some(32.0)), "{}", report.reason);
}

#[test]
fn harm_after_the_certificate_fails_or_takes_it_back() {
    let late = case(|t| if t > 250 { 3 } else { 0 });
    assert_eq!(Case { to: 250, ..late }.run().verdict, Verdict::Pass);
    let report = late.run();
    assert_eq!(report.verdict, Verdict::Fail, "{}", report.reason);
    // One bucket is within the fail margin, but not within what the median's certificate says.
    let slight = case(|t| i32::from(t > 250));
    let report = slight.run();
    assert_eq!(report.verdict, Verdict::Inconclusive, "{}", report.reason);
    assert!(report.reason.contains("does not stand"), "{}", report.reason);
}

#[test]
fn one_arm_is_no_data_and_a_silent_canary_holds() {
    let alone: Vec<Reading> = case(|_| 0).readings().into_iter().filter(|r| r.arm == Arm::Baseline).collect();
    let report = run(alone);
    assert_eq!(report.verdict, Verdict::NoData);
    assert!(report.kpis.iter().all(|row| row.verdict == Verdict::NoData));
    assert_eq!(gate().report().verdict, Verdict::NoData);

    let silent = |after: u32| {
        let spoken = |r: &Reading| r.arm == Arm::Baseline || r.t <= f64::from(after);
        run(case(|_| 0).readings().into_iter().filter(spoken).collect())
    };
    let report = silent(345);
    assert_eq!(report.verdict, Verdict::Inconclusive);
    assert!(report.reason.contains("has not had both arms for 15 s"), "{}", report.reason);
    assert_eq!(silent(355).verdict, Verdict::Pass);
}

#[test]
fn a_gap_of_both_arms_is_missing_too() {
    let gap = |from: u32, to: u32| {
        let there = |r: &Reading| r.t <= f64::from(from) || r.t > f64::from(to);
        run(case(|_| 0).readings().into_iter().filter(there).collect())
    };
    assert_eq!(gap(200, 205).verdict, Verdict::Pass);
    assert_eq!(gap(330, 345).verdict, Verdict::Inconclusive);
    // A clock that leaps by a century is one long gap, and costs no time.
    let mut gate = gate();
    gate.add(reading(1, Arm::Baseline, LATENCY, fifty(0))).unwrap();
    gate.add(reading(1, Arm::Canary, LATENCY, fifty(0))).unwrap();
    gate.add(reading(u32::MAX, Arm::Canary, LATENCY, fifty(0))).unwrap();
    gate.advance(1e12);
    assert_eq!(gate.report().verdict, Verdict::Inconclusive);
}

#[test]
fn traffic_off_its_weight_holds() {
    let of = |share| {
        let policy = Policy { share: Some(share), ..Policy::default() };
        let mut gate = Gate::new(policy, vec![kpi("latency", Kind::latency())]);
        for reading in case(|_| 0).readings().into_iter().filter(|reading| reading.kpi == LATENCY) {
            gate.add(reading).unwrap();
        }
        gate.finish();
        gate.report()
    };
    assert_eq!(of(0.5).verdict, Verdict::Pass);
    let report = of(0.1);
    assert_eq!(report.verdict, Verdict::Inconclusive);
    assert!(report.reason.contains("50.0 %") && report.reason.contains("10.0 %"), "{}", report.reason);
}

#[test]
fn a_pass_waits_for_the_dwell() {
    let policy = Policy { dwell_seconds: 200.0, ..Policy::default() };
    let mut gate = Gate::new(policy, vec![kpi("latency", Kind::latency()), kpi("errors", Kind::Errors)]);
    for reading in case(|_| 0).readings() {
        let t = reading.t;
        gate.add(reading).unwrap();
        let verdict = gate.report().verdict;
        assert!(verdict != Verdict::Pass || t >= 260.0, "pass at {t}");
    }
    gate.finish();
    assert_eq!(gate.report().verdict, Verdict::Pass);
}

#[test]
fn restarts_and_losses_cost_blocks_and_never_decide() {
    let mut gate = gate();
    for reading in case(|_| 0).readings() {
        let restarts = reading.t > 100.0 && reading.t % 120.0 == 0.0 && reading.arm == Arm::Canary;
        let spoilt = reading.t % 16.0 == 0.0;
        gate.add(reading).unwrap();
        if restarts {
            gate.restarted(Arm::Canary);
        }
        if spoilt {
            gate.spoil();
        }
        assert_ne!(gate.report().verdict, Verdict::Fail);
    }
    gate.finish();
    let report = gate.report();
    assert_eq!(report.verdict, Verdict::Pass, "{}", report.reason);
    let blocks = report.kpis[0].canary_count / 500;
    assert!((250..=275).contains(&blocks), "{blocks} blocks were judged");
}

#[test]
fn a_new_step_forgets_all_but_the_baseline() {
    let mut gate = gate();
    for reading in (Case { to: 80, ..case(|_| 16) }).readings() {
        gate.add(reading).unwrap();
    }
    assert_eq!(gate.report().verdict, Verdict::Fail);
    gate.restart(Policy::default());
    assert_eq!(gate.report().verdict, Verdict::NoData);
    for t in 81..=150 {
        for arm in [Arm::Baseline, Arm::Canary] {
            gate.add(reading(t, arm, LATENCY, fifty(0))).unwrap();
            gate.add(reading(t, arm, ERRORS, Value::Errors { total: 500, bad: 0 })).unwrap();
        }
    }
    gate.finish();
    let report = gate.report();
    assert_eq!(report.verdict, Verdict::Pass, "history let it begin at once: {}", report.reason);
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut gate = gate();
    gate.add(reading(5, Arm::Baseline, LATENCY, fifty(0))).unwrap();
    assert_eq!(gate.add(reading(4, Arm::Canary, LATENCY, fifty(0))), Err(Refused::Backwards));
    assert_eq!(gate.add(reading(5, Arm::Canary, LATENCY, Value::Resource(1.0))), Err(Refused::Kind));
    assert_eq!(gate.add(reading(5, Arm::Canary, ERRORS, fifty(0))), Err(Refused::Kind));
}

#[test]
fn stalls_of_the_canary_alone_are_found_and_never_certified() {
    let of = |every: u32, arms: &'static [Arm]| {
        let mut readings = case(|_| 0).readings();
        for reading in &mut readings {
            let stalls =
                reading.t > 60.0 && (reading.t as u32).is_multiple_of(every) && arms.contains(&reading.arm);
            if let (true, Value::Latency(buckets)) = (stalls, &mut reading.value) {
                buckets.merge(&Buckets::new(vec![(0.01, 5)]).unwrap());
            }
        }
        run(readings)
    };
    let report = of(10, &[Arm::Canary]);
    assert_eq!(report.verdict, Verdict::Fail, "{}", report.reason);
    assert_eq!(of(15, &[Arm::Baseline, Arm::Canary]).verdict, Verdict::Pass);
    assert_ne!(of(30, &[Arm::Canary]).verdict, Verdict::Pass);
}

#[test]
fn what_lies_above_the_last_bound_is_never_certified() {
    let mut gate = Gate::new(Policy::default(), vec![kpi("latency", Kind::latency())]);
    for t in 1..=360 {
        let classic = || {
            let cells = vec![(0.001, 400), (0.0025, 95), (f64::INFINITY, 5)];
            Value::Latency(Buckets::new(cells).unwrap())
        };
        gate.add(reading(t, Arm::Baseline, LATENCY, classic())).unwrap();
        if t > 60 {
            gate.add(reading(t, Arm::Canary, LATENCY, classic())).unwrap();
        }
    }
    gate.finish();
    let report = gate.report();
    assert_eq!(report.verdict, Verdict::Inconclusive);
    let row = report.kpis.iter().find(|row| row.quantile == Some(0.999)).unwrap();
    assert_eq!((row.verdict, row.canary), (Verdict::Inconclusive, None));
}

/// One second of one arm: counts by bucket.
fn second() -> impl Strategy<Value = Vec<(i32, u64)>> {
    vec((0..60i32, 0..30u64), 1..20)
}

fn latency(cells: &[(i32, u64)], shift: i32) -> Value {
    let bound = |index: i32| (f64::from(index + shift - 260) / 16.0).exp2();
    Value::Latency(
        Buckets::new(cells.iter().map(|(index, count)| (bound(*index), *count)).collect()).unwrap(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn order_within_a_block_and_split_lines_change_nothing(
        seconds in vec((second(), second()), 100),
        turn in any::<bool>(),
    ) {
        let mut plain = Vec::new();
        let mut other = Vec::new();
        for (t, (baseline, canary)) in (1..).zip(&seconds) {
            let b = reading(t, Arm::Baseline, LATENCY, latency(baseline, 0));
            plain.push(b.clone());
            if t <= 30 {
                other.push(b);
                continue;
            }
            plain.push(reading(t, Arm::Canary, LATENCY, latency(canary, 0)));
            let (low, high) = canary.split_at(canary.len() / 2);
            let c1 = reading(t, Arm::Canary, LATENCY, latency(low, 0));
            let c2 = reading(t, Arm::Canary, LATENCY, latency(high, 0));
            other.extend(if turn { [c2, b, c1] } else { [b, c2, c1] });
        }
        prop_assert_eq!(run(plain), run(other));
    }

    #[test]
    fn the_same_shift_of_all_changes_nothing_but_the_values(
        seconds in vec((second(), second()), 80),
        shift in -40..40i32,
    ) {
        let with = |shift| {
            let mut all = Vec::new();
            for (t, (baseline, canary)) in (1..).zip(&seconds) {
                all.push(reading(t, Arm::Baseline, LATENCY, latency(baseline, shift)));
                if t > 25 {
                    all.push(reading(t, Arm::Canary, LATENCY, latency(canary, shift)));
                }
            }
            run(all)
        };
        let (a, b) = (with(0), with(shift));
        prop_assert_eq!(a.verdict, b.verdict);
        for (a, b) in a.kpis.iter().zip(&b.kpis) {
            prop_assert_eq!(a.evidence.to_bits(), b.evidence.to_bits());
        }
    }

    #[test]
    fn a_fail_stays_and_two_runs_are_the_same(seconds in vec((second(), second()), 60..120), cut in 40..120usize) {
        let mut all = Vec::new();
        for (t, (baseline, canary)) in (1..).zip(&seconds) {
            all.push(reading(t, Arm::Baseline, LATENCY, latency(baseline, 0)));
            if t > 20 {
                all.push(reading(t, Arm::Canary, LATENCY, latency(canary, t as i32 % 40)));
            }
        }
        let whole = run(all.clone());
        prop_assert_eq!(&whole, &run(all.clone()));
        all.truncate(cut);
        let prefix = run(all);
        if prefix.verdict == Verdict::Fail {
            prop_assert_eq!(decided(&whole), decided(&prefix));
        }
    }
}
