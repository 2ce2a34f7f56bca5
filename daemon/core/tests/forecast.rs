//! The forecaster against numbers computed elsewhere, and what must hold for any series.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use tickscope_core::{Direction, Effort, Forecast, Forecaster, Limit};

/// One uniform number in -0.5..0.5 a sample.
struct Uniform(u64);

impl Uniform {
    fn next(&mut self) -> f64 {
        self.0 = (1_103_515_245 * self.0 + 12_345) % (1 << 31);
        self.0 as f64 / (1u64 << 31) as f64 - 0.5
    }
}

/// `(t, warn, p, [eta_low, eta, eta_high])` as held at `t`.
type Row = (usize, bool, f64, Option<[f64; 3]>);

struct Case {
    name: &'static str,
    effort: Effort,
    value: fn(f64, f64) -> f64,
    limit: f64,
    horizon: f64,
    period: f64,
    rows: &'static [Row],
    /// `(t, on)`: every change of the warning.
    changes: &'static [(usize, bool)],
    len: usize,
}

fn run(case: &Case) -> Vec<Option<Forecast>> {
    let limit = Limit {
        value: case.limit,
        direction: Direction::Above,
        horizon_s: case.horizon,
        step_s: 1.0,
        period_s: (case.period > 0.0).then_some(case.period),
    };
    let mut forecaster = Forecaster::new(limit, case.effort);
    let mut uniform = Uniform(1);
    (0..case.len)
        .map(|t| {
            let t = t as f64;
            forecaster.push(t, Some((case.value)(t, uniform.next())))
        })
        .collect()
}

const LINE: fn(f64, f64) -> f64 = |i, _| 100.0 + 0.1 * i;
const NOISY_LINE: fn(f64, f64) -> f64 = |i, u| 100.0 + 20.0 * u + 0.25 * (i - 600.0).max(0.0);
const FLAT: fn(f64, f64) -> f64 = |_, u| 100.0 + 20.0 * u;
const STEP: fn(f64, f64) -> f64 = |i, u| 100.0 + 20.0 * u + if i >= 1000.0 { 150.0 } else { 0.0 };
const HOLD: fn(f64, f64) -> f64 = |i, u| 100.0 + 20.0 * u + 0.25 * (i - 600.0).clamp(0.0, 600.0);
const SAW: fn(f64, f64) -> f64 = |i, u| 100.0 + 4.0 * u + 0.5 * (i % 100.0) + 0.15 * (i - 600.0).max(0.0);
const EXP: fn(f64, f64) -> f64 =
    |i, u| 100.0 + 10.0 * u + if i >= 600.0 { 10.0 * (0.004 * (i - 600.0)).exp() - 10.0 } else { 0.0 };
const SEASON: fn(f64, f64) -> f64 = |i, u| {
    let spike = (600.0..660.0).contains(&(i % 1200.0));
    100.0 + 10.0 * u + if spike { 300.0 * (1.0 + 0.15 * (i / 1200.0).floor()) } else { 0.0 }
};

const CASES: &[Case] = &[
    Case {
        name: "line",
        effort: Effort::Full,
        value: LINE,
        limit: 200.0,
        horizon: 600.0,
        period: 0.0,
        rows: &[
            (100, false, 0.0, None),
            (399, false, 0.305_760, Some([334.020, 591.117, 1293.524])),
            (599, false, 0.527_501, Some([266.790, 408.708, 777.102])),
            (799, true, 0.780_101, Some([174.979, 209.058, 269.888])),
            (899, true, 0.908_646, Some([97.993, 109.096, 124.760])),
        ],
        changes: &[(703, true)],
        len: 950,
    },
    Case {
        name: "noisy line",
        effort: Effort::Full,
        value: NOISY_LINE,
        limit: 400.0,
        horizon: 1800.0,
        period: 0.0,
        rows: &[
            (599, false, 0.0, None),
            (899, false, 0.603_763, Some([212.645, 251.590, 352.032])),
            (1199, false, 0.528_487, Some([467.602, 626.611, 949.509])),
            (1499, true, 0.616_991, Some([241.938, 319.381, 525.618])),
            (1749, true, 0.884_970, Some([58.008, 69.510, 87.755])),
        ],
        changes: &[(1343, true)],
        len: 1750,
    },
    Case {
        name: "flat",
        effort: Effort::Full,
        value: FLAT,
        limit: 200.0,
        horizon: 1800.0,
        period: 0.0,
        rows: &[(99, false, 0.010_462, None), (999, false, 0.0, None), (3999, false, 0.0, None)],
        changes: &[],
        len: 4000,
    },
    Case {
        name: "step",
        effort: Effort::Full,
        value: STEP,
        limit: 400.0,
        horizon: 1800.0,
        period: 0.0,
        rows: &[
            (999, false, 0.0, None),
            (1099, true, 0.831_557, Some([33.0, 43.5, 56.2])),
            (1999, false, 0.0, None),
        ],
        changes: &[(1087, true), (1159, false)],
        len: 2000,
    },
    Case {
        name: "ramp, hold",
        effort: Effort::Full,
        value: HOLD,
        limit: 400.0,
        horizon: 1800.0,
        period: 0.0,
        rows: &[(1499, false, 0.357_341, Some([66.196, 302.137, 2714.818])), (3999, false, 0.012_360, None)],
        changes: &[],
        len: 4000,
    },
    Case {
        name: "saw, leak",
        effort: Effort::Full,
        value: SAW,
        limit: 400.0,
        horizon: 1800.0,
        period: 0.0,
        rows: &[
            (1199, false, 0.415_728, Some([841.488, 1165.840, 1784.210])),
            (1799, false, 0.471_312, Some([186.860, 474.991, 2056.573])),
            (2199, true, 0.634_751, Some([44.175, 150.642, 1019.423])),
        ],
        changes: &[(2175, true)],
        len: 2250,
    },
    Case {
        name: "exp",
        effort: Effort::Full,
        value: EXP,
        limit: 1000.0,
        horizon: 1800.0,
        period: 0.0,
        rows: &[
            (999, false, 0.0, None),
            (1299, true, 0.612_671, Some([417.210, 476.534, 564.513])),
            (1599, true, 0.798_223, Some([142.910, 167.223, 202.583])),
        ],
        changes: &[(1295, true)],
        len: 1650,
    },
    Case {
        name: "season",
        effort: Effort::Full,
        value: SEASON,
        limit: 600.0,
        horizon: 600.0,
        period: 1200.0,
        rows: &[(5999, false, 0.0, None), (6599, true, 0.994_246, Some([0.0, 15.0, 30.0]))],
        changes: &[(6010, true), (6690, false), (7210, true)],
        len: 7300,
    },
    Case {
        name: "noisy line, lite",
        effort: Effort::Lite,
        value: NOISY_LINE,
        limit: 400.0,
        horizon: 1800.0,
        period: 0.0,
        rows: &[(1199, false, 0.526_805, Some([468.662, 629.471, 957.328]))],
        changes: &[(1407, true)],
        len: 1750,
    },
    Case {
        name: "saw, leak, lite",
        effort: Effort::Lite,
        value: SAW,
        limit: 400.0,
        horizon: 1800.0,
        period: 0.0,
        rows: &[(1199, false, 0.415_830, Some([843.418, 1165.840, 1784.210]))],
        changes: &[(2175, true)],
        len: 2250,
    },
    Case {
        name: "exp, lite",
        effort: Effort::Lite,
        value: EXP,
        limit: 1000.0,
        horizon: 1800.0,
        period: 0.0,
        rows: &[],
        changes: &[(1471, true)],
        len: 1650,
    },
    Case {
        name: "line, lite",
        effort: Effort::Lite,
        value: LINE,
        limit: 200.0,
        horizon: 600.0,
        period: 0.0,
        rows: &[],
        changes: &[(703, true)],
        len: 950,
    },
    Case {
        name: "flat, lite",
        effort: Effort::Lite,
        value: FLAT,
        limit: 200.0,
        horizon: 1800.0,
        period: 0.0,
        rows: &[],
        changes: &[],
        len: 4000,
    },
    Case {
        name: "step, lite",
        effort: Effort::Lite,
        value: STEP,
        limit: 400.0,
        horizon: 1800.0,
        period: 0.0,
        rows: &[],
        changes: &[],
        len: 4000,
    },
    Case {
        name: "ramp, hold, lite",
        effort: Effort::Lite,
        value: HOLD,
        limit: 400.0,
        horizon: 1800.0,
        period: 0.0,
        rows: &[],
        changes: &[],
        len: 4000,
    },
];

/// Equal to a relative 1e-3, or as far as the table's last digit says.
fn near(got: f64, expected: f64) -> bool {
    (got - expected).abs() <= 1e-3 * expected.abs() + 1e-6
}

fn check(case: &Case, wrong: &mut Vec<String>) {
    let outputs = run(case);
    for (t, warn, p, eta) in case.rows {
        let got = outputs[*t].unwrap();
        let same_eta = match (got.eta, eta) {
            (None, None) => true,
            (Some(got), Some(eta)) => {
                [got.low, got.mid, got.high].iter().zip(eta).all(|(got, expected)| near(*got, *expected))
            }
            _ => false,
        };
        if !(got.warn == *warn && near(got.p, *p) && same_eta) {
            wrong.push(format!("{} {t}: {got:?}, expected {warn} {p} {eta:?}", case.name));
        }
    }
    let warn: Vec<bool> = outputs.iter().map(|output| output.is_some_and(|forecast| forecast.warn)).collect();
    let changes: Vec<(usize, bool)> =
        (1..warn.len()).filter(|t| warn[*t] != warn[*t - 1]).map(|t| (t, warn[t])).collect();
    let same = changes.len() == case.changes.len()
        && changes
            .iter()
            .zip(case.changes)
            .all(|(got, expected)| got.1 == expected.1 && got.0.abs_diff(expected.0) <= 4);
    if !same {
        wrong.push(format!("{}: changes {changes:?}, expected {:?}", case.name, case.changes));
    }
}

#[test]
fn forecasts_are_the_numbers_of_the_prototype() {
    let mut wrong = Vec::new();
    for case in CASES {
        check(case, &mut wrong);
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn limit(value: f64) -> Limit {
    Limit { value, direction: Direction::Above, horizon_s: 1800.0, step_s: 1.0, period_s: None }
}

fn outputs(limit: Limit, values: &[f64]) -> Vec<Option<Forecast>> {
    let mut forecaster = Forecaster::new(limit, Effort::Full);
    values
        .iter()
        .enumerate()
        .map(|(t, value)| forecaster.push(t as f64 * limit.step_s, Some(*value)))
        .collect()
}

/// All the shapes of the cases, as values.
fn series() -> impl Iterator<Item = (Limit, Vec<f64>)> {
    CASES.iter().filter(|case| case.effort == Effort::Full && case.period == 0.0).map(|case| {
        let mut uniform = Uniform(1);
        let values = (0..case.len).map(|i| (case.value)(i as f64, uniform.next())).collect();
        (Limit { horizon_s: case.horizon, ..limit(case.limit) }, values)
    })
}

fn assert_same(a: &[Option<Forecast>], b: &[Option<Forecast>], what: &str) {
    assert_eq!(a.len(), b.len());
    for (t, (a, b)) in a.iter().zip(b).enumerate() {
        let same = match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                a.warn == b.warn
                    && near(a.p, b.p)
                    && a.eta.is_some() == b.eta.is_some()
                    && a.eta.zip(b.eta).is_none_or(|(a, b)| near(a.mid, b.mid) && near(a.high, b.high))
            }
            _ => false,
        };
        assert!(same, "{what}, {t}: {a:?} and {b:?}");
    }
}

#[test]
fn units_and_direction_do_not_matter() {
    for (limit, values) in series() {
        let plain = outputs(limit, &values);
        for k in [1024.0, 1.0 / 1024.0] {
            let scaled: Vec<f64> = values.iter().map(|y| y * k).collect();
            assert_same(&plain, &outputs(Limit { value: limit.value * k, ..limit }, &scaled), "scaled");
        }
        let negated: Vec<f64> = values.iter().map(|y| -y).collect();
        let below = Limit { value: -limit.value, direction: Direction::Below, ..limit };
        assert_same(&plain, &outputs(below, &negated), "turned");
        // Of the line without noise, rounding is the noise.
        if values[..3] == [100.0, 100.1, 100.2] {
            continue;
        }
        let shifted: Vec<f64> = values.iter().map(|y| y + 512.0).collect();
        assert_same(&plain, &outputs(Limit { value: limit.value + 512.0, ..limit }, &shifted), "shifted");
    }
}

#[test]
fn times_are_seconds_whatever_the_step() {
    let (limit, values) = series().next().unwrap();
    let slow = Limit { step_s: 10.0, horizon_s: limit.horizon_s * 10.0, ..limit };
    let (plain, slow) = (outputs(limit, &values)[899].unwrap(), outputs(slow, &values)[899].unwrap());
    assert!(near(slow.p, plain.p));
    assert!(near(slow.eta.unwrap().mid, 10.0 * plain.eta.unwrap().mid));
}

#[test]
fn what_is_missing_changes_nothing_but_the_times() {
    for (limit, values) in series() {
        let plain = outputs(limit, &values);
        let mut forecaster = Forecaster::new(limit, Effort::Full);
        let mut t = 0.0;
        let mut with_holes = Vec::new();
        for (i, value) in values.iter().enumerate() {
            if i % 97 == 50 {
                let before = with_holes.last().copied().flatten();
                assert_eq!(forecaster.push(t, None), before, "the last output holds");
                assert_eq!(forecaster.push(t + 1.0, Some(f64::NAN)), before);
                t += 2.0;
            }
            if i % 89 == 60 {
                let before = with_holes.last().copied().flatten();
                assert_eq!(forecaster.push(t - 5.0, Some(1e9)), before, "the past is over");
                assert_eq!(forecaster.push(f64::NAN, Some(1e9)), before);
            }
            with_holes.push(forecaster.push(t, Some(*value)));
            t += 1.0;
        }
        assert_same(&plain, &with_holes, "holes");
        let counts = forecaster.counts();
        assert_eq!(counts.used as usize, values.len());
        assert!(counts.missing > 0 && counts.discarded > 0);
    }
}

#[test]
fn not_known_is_not_no_breach() {
    let mut forecaster = Forecaster::new(limit(400.0), Effort::Full);
    for t in 0..39 {
        assert_eq!(forecaster.push(f64::from(t), Some(100.0 + f64::from(t))), None, "{t}");
    }
    assert!(forecaster.push(39.0, Some(139.0)).is_some());
    assert!(forecaster.push(99.0, None).is_some());
    assert_eq!(forecaster.push(100.0, None), None, "a minute of silence");
    // A gap of 8 blocks of 4 samples empties that level, and no other is full.
    assert_eq!(forecaster.push(101.0, Some(140.0)), None);
    let mut never = Forecaster::new(limit(400.0), Effort::Full);
    assert!((0..1000).all(|t| never.push(f64::from(t), None).is_none()));
}

#[test]
fn after_a_restart_the_trend_before_it_is_forgotten() {
    let (limit, values) = series().nth(1).unwrap();
    let mut forecaster = Forecaster::new(limit, Effort::Full);
    for (t, value) in values.iter().enumerate() {
        forecaster.push(t as f64, Some(*value));
    }
    forecaster.restart();
    let t = values.len() as f64;
    let after: Vec<_> = (0..400).map(|i| forecaster.push(t + f64::from(i), Some(100.0))).collect();
    assert!(after[..38].iter().all(Option::is_none));
    assert!(after[60..].iter().flatten().all(|forecast| forecast.p < 0.01 && !forecast.warn));
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn outputs_are_sane_whatever_comes_in(
        seed in proptest::prelude::any::<u64>(),
        odd in proptest::collection::vec((0..1500usize, proptest::num::f64::ANY), 0..60),
        period in proptest::option::of(200.0..3000.0f64),
    ) {
        let mut uniform = Uniform(seed >> 33);
        let mut values: Vec<f64> = (0..1500).map(|i| 100.0 + uniform.next() + 0.1 * f64::from(i)).collect();
        for (at, value) in odd {
            values[at] = value;
        }
        let limit = Limit { period_s: period, ..limit(200.0) };
        let whole = outputs(limit, &values);
        for forecast in whole.iter().flatten() {
            proptest::prop_assert!((0.0..=1.0).contains(&forecast.p));
            if let Some(eta) = forecast.eta {
                let ordered = 0.0 <= eta.low && eta.low <= eta.mid && eta.mid <= eta.high;
                proptest::prop_assert!(ordered && eta.high.is_finite(), "{:?}", eta);
            }
        }
        // Causal: a prefix of the series has the prefix of the outputs.
        proptest::prop_assert_eq!(&outputs(limit, &values[..700])[..], &whole[..700]);
    }

    #[test]
    fn what_stands_still_or_goes_away_never_warns(value in -1e12..1e12f64, slope in 0.0..10.0f64) {
        let away: Vec<f64> = (0..3000).map(|i| value - slope * f64::from(i)).collect();
        let limit = limit(value + 1.0 + value.abs() * 1e-3);
        proptest::prop_assert!(outputs(limit, &away).iter().flatten().all(|forecast| !forecast.warn));
    }
}
