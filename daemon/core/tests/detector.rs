//! The detectors against numbers computed elsewhere, and what must hold for any series.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use tickscope_core::{FEATURES, Refractory, Shift, Shifted, Tail, Threshold, Trigger};

/// One uniform number in -0.5..0.5 a sample.
struct Uniform(u64);

impl Uniform {
    fn next(&mut self) -> f64 {
        self.0 = (1_103_515_245 * self.0 + 12_345) % (1 << 31);
        self.0 as f64 / (1u64 << 31) as f64 - 0.5
    }
}

fn near(got: f64, expected: f64) -> bool {
    (got - expected).abs() <= 1e-3 * expected.abs() + 1e-5
}

#[test]
fn the_tail_scores_as_the_prototype() {
    let mut uniform = Uniform(1);
    // Without feature 0.
    let (mut tail, mut shown) = (Tail::new(FEATURES & !1), Refractory::default());
    let scores: Vec<f64> = (0..1500)
        .map(|i| {
            let spike = if i == 1000 { 5.0 } else { 0.0 };
            let level = if i >= 1200 { 2.0 } else { 0.0 };
            let score = tail.score(300.0 * f64::from(i), 10.0 + 2.0 * uniform.next() + spike + level);
            30.0 * shown.show(score)
        })
        .collect();
    for (i, expected) in [
        (999, 0.0),
        (1000, 9.1717),
        (1001, 0.0),
        (1199, 0.0),
        (1200, 3.5725),
        (1201, 0.0),
        (1203, 0.0),
        (1204, 4.1899),
        (1499, 0.0),
    ] {
        assert!(near(scores[i], expected), "{i}: {} is not {expected}", scores[i]);
    }
}

/// The case's counts of tick `i`.
fn counts(i: u64) -> [u64; 8] {
    if (400..450).contains(&i) { [0, 5, 30, 40, 20, 4, 1, 0] } else { [0, 10 + i % 3, 50, 30, 8, 2, 0, 0] }
}

fn shifts(multiple: u64) -> Vec<(Shifted, bool)> {
    let mut shift = Shift::new(8, 0.5, 4);
    let mut trigger = Trigger::default();
    let nothing = Shifted { score: 0.0, short: 0.0, d: [0.0; 6] };
    (0..500)
        .map(|i| {
            let t = 10.0 * i as f64;
            assert_eq!(shift.score(t, &[0, 2, 9, 6, 1, 0, 0, 0], false), None, "too few to tell");
            let counts = counts(i).map(|count| count * multiple);
            let shifted = shift.score(t, &counts, trigger.open()).unwrap_or(nothing);
            (shifted, trigger.step(shifted.score, shifted.short, 12.0))
        })
        .collect()
}

#[test]
fn the_shift_scores_as_the_prototype() {
    let scores = shifts(1);
    for (i, score, open, d) in [
        (95, 0.0, false, [-0.001_107, 0.001_107, -0.001_572, -0.001_560, 0.0, 0.0]),
        (399, 0.040_331, false, [0.000_528, 0.000_528, 0.000_749, 0.000_743, 0.0, 0.0]),
        (400, 54.930_614, false, [0.052_025, 0.052_025, 0.123_599, 0.269_787, 1.098_612, 1.098_612]),
        (401, 79.382_208, false, [0.093_055, 0.093_055, 0.211_694, 0.441_959, 1.523_314, 1.523_314]),
        (402, 94.884_456, true, [0.125_674, 0.125_674, 0.276_601, 0.560_470, 1.765_984, 1.765_984]),
        (410, 146.140_746, true, [0.232_000, 0.232_000, 0.462_930, 0.870_997, 2.295_685, 2.295_685]),
        (449, 181.069_728, true, [0.251_098, 0.251_098, 0.492_156, 0.914_734, 2.337_018, 2.337_018]),
        (470, 132.530_352, true, [-0.001_273, 0.001_273, -0.001_973, -0.002_384, -0.005_636, -0.005_636]),
        (499, 68.998_935, false, [-0.003_543, 0.003_543, -0.009_380, -0.021_856, -0.142_156, -0.142_156]),
    ] {
        let (got, is_open) = scores[i];
        assert!(near(got.score, score), "{i}: {} is not {score}", got.score);
        assert_eq!(is_open, open, "{i}");
        for (got, expected) in got.d.iter().zip(d) {
            assert!(near(*got, expected), "{i}: {got} is not {expected}");
        }
    }
    assert!(scores[..95].iter().all(|(shifted, _)| shifted.score == 0.0));
}

#[test]
fn mean_and_distance_do_not_depend_on_how_many_observations_there_are() {
    // Later the episode may close at another tick.
    for (one, many) in shifts(1).iter().zip(shifts(7)).take(470) {
        assert!(near(one.0.d[0], many.0.d[0]) && near(one.0.d[1], many.0.d[1]));
    }
}

#[test]
fn a_threshold_holds_its_rate_on_heavy_tails() {
    // Pareto scores of index 2, independent: alarms of single scores, once calibrated, over 26 weeks.
    let mut seed = Uniform(7);
    let mut threshold = Threshold::new(1.0, 10.0);
    let (mut alarms, mut weeks) = (0u32, 0.0);
    for tick in 0..26 * 60_480u64 {
        let score = (seed.next() + 0.5).max(1e-12).powf(-0.5) / 30.0;
        if tick > 60_480 {
            alarms += u32::from(score >= threshold.value());
            weeks += 1.0 / 60_480.0;
        }
        threshold.learn(score, false);
    }
    assert!(threshold.calibrated());
    let rate = f64::from(alarms) / weeks;
    assert!((0.3..2.5).contains(&rate), "{rate} a week");
}

#[test]
fn an_episode_does_not_blind_the_threshold() {
    let mut seed = Uniform(7);
    let mut threshold = Threshold::new(1.0, 10.0);
    let mut feed = |threshold: &mut Threshold, ticks: u64, add: f64, open: bool| {
        for _ in 0..ticks {
            threshold.learn(3.0 + seed.next() + add, open);
        }
    };
    feed(&mut threshold, 60_480, 0.0, false);
    let before = threshold.value();
    feed(&mut threshold, 360, 100.0, true);
    feed(&mut threshold, 3, 100.0, false);
    feed(&mut threshold, 60_480 / 7, 0.0, false);
    let after = threshold.value();
    assert!(after < 1.2 * before, "{before} became {after}");
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 32, failure_persistence: None, ..Default::default() })]

    #[test]
    fn scores_are_sane_whatever_comes_in(
        seed in 0..u64::from(u32::MAX),
        odd in proptest::collection::vec((0..600usize, proptest::num::f64::ANY), 0..30),
    ) {
        let mut uniform = Uniform(seed);
        let mut values: Vec<f64> = (0..600).map(|_| uniform.next()).collect();
        for (at, value) in odd {
            values[at] = value;
        }
        let run = |values: &[f64]| -> Vec<f64> {
            let (mut tail, mut shown) = (Tail::new(FEATURES), Refractory::default());
            let step = |(i, value): (usize, &f64)| shown.show(tail.score(300.0 * i as f64, *value));
            values.iter().enumerate().map(step).collect()
        };
        let scores = run(&values);
        proptest::prop_assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)));
        proptest::prop_assert_eq!(&run(&values[..300])[..], &scores[..300]);
    }
}
