//! From judges to what a person reads: rows of numbers, and sentences.

use super::constant::ERROR_MARGIN;
use super::latency::Step;
use super::report::{Row, Verdict};
use super::track::Track;
use super::{Buckets, Judge, Kpi};
use crate::text::{length, percentile};

/// Standard deviations of a 95 % interval.
const INTERVAL: f64 = 1.96;

impl Judge {
    /// The rows of a KPI. Whether a row failed is not known here.
    pub(super) fn rows(&self, kpi: &Kpi, alpha: f64) -> Vec<Row> {
        let empty = Row {
            kpi: kpi.name.clone(),
            quantile: None,
            verdict: Verdict::Inconclusive,
            baseline: None,
            canary: None,
            ratio: None,
            ratio_low: None,
            ratio_high: None,
            margin: None,
            evidence: self.log_evidence(),
            alpha,
            baseline_count: 0,
            canary_count: 0,
        };
        let passed = |certified: bool| if certified { Verdict::Pass } else { Verdict::Inconclusive };
        match self {
            Self::Latency(judge) => {
                let Some(step) = judge.step() else { return vec![empty] };
                let rows = step.tracks().iter().map(|track| Row {
                    quantile: Some(track.quantile.q),
                    verdict: passed(track.certified.is_some() && track.stands()),
                    margin: Some(track.fail_bound / track.threshold - 1.0)
                        .filter(|margin| margin.is_finite()),
                    baseline_count: step.baseline.count(),
                    canary_count: step.canary.count(),
                    ..compared(step, track, empty.clone())
                });
                rows.collect()
            }
            Self::Errors(judge) => {
                let share = |(total, bad): (f64, f64)| (total > 0.0).then(|| bad / total);
                let (baseline, canary) = (share(judge.baseline), share(judge.canary));
                let (low, high) = error_ratio(judge.baseline, judge.canary);
                vec![Row {
                    verdict: passed(judge.certified.is_some() && judge.stands()),
                    baseline,
                    canary,
                    ratio: ratio(baseline, canary),
                    ratio_low: low,
                    ratio_high: high,
                    margin: Some(ERROR_MARGIN),
                    baseline_count: judge.baseline.0 as u64,
                    canary_count: judge.canary.0 as u64,
                    ..empty
                }]
            }
            Self::Resource(judge) => {
                let means = judge.means();
                let (baseline, canary) = (means.map(|means| means.0), means.map(|means| means.1));
                vec![Row {
                    verdict: passed(judge.certified.is_some() && judge.stands()),
                    baseline,
                    canary,
                    ratio: ratio(baseline, canary),
                    margin: Some(judge.margin()),
                    baseline_count: judge.blocks(),
                    canary_count: judge.blocks(),
                    ..empty
                }]
            }
        }
    }

    /// What decided a fail: the quantile, and the sentence.
    pub(super) fn harm(&self, kpi: &Kpi, alpha: f64) -> (Option<f64>, String) {
        let name = &kpi.name;
        let odds = format!(
            "evidence e^{:.1} against e^{:.1} needed (alpha {})",
            self.log_evidence(),
            -alpha.ln(),
            round(alpha)
        );
        match self {
            Self::Latency(judge) => {
                let Some(step) = judge.step() else { return (None, odds) };
                let Some(index) = step.deciding() else {
                    let stalls = step.stalls();
                    return (
                        Some(0.9999),
                        format!("{name} of the canary stalls, {stalls} times alone: {odds}"),
                    );
                };
                let track = &step.tracks()[index];
                let q = track.quantile.q;
                let values = match (step.baseline.quantile(q), step.canary.quantile(q)) {
                    (Some(baseline), Some(canary)) if canary > baseline => {
                        format!("is {} against {}", length(canary), length(baseline))
                    }
                    _ => "has more above the baseline's than it should".into(),
                };
                let margin = 100.0 * (track.fail_bound / track.threshold - 1.0);
                let p = percentile(q);
                (
                    Some(q),
                    format!(
                        "{name} {p} of the canary {values}, more than the tolerated {margin:.1} %: {odds}"
                    ),
                )
            }
            Self::Errors(judge) => {
                let [baseline, canary] =
                    [judge.baseline, judge.canary].map(|(total, bad)| percent(bad / total));
                (
                    None,
                    format!(
                        "{name}: {canary} of the canary's fail against {baseline} of the baseline's: {odds}"
                    ),
                )
            }
            Self::Resource(judge) => {
                let (baseline, canary) = judge.means().unwrap_or_default();
                let (baseline, canary, margin) = (round(baseline), round(canary), 100.0 * judge.margin());
                (
                    None,
                    format!(
                        "{name} of the canary is {canary} against {baseline}, tolerated are {margin:.0} %: {odds}"
                    ),
                )
            }
        }
    }

    /// What keeps a certificate from counting.
    pub(super) fn guard(&self, name: &str) -> Option<String> {
        let Self::Latency(judge) = self else { return None };
        let step = judge.step()?;
        if step.stalling() {
            return Some(format!("{name} of the canary has stalled {} times alone", step.stalls()));
        }
        step.baseline_ill().then(|| format!("{name} of the baseline itself is far above what it was before"))
    }

    /// What a pass still waits for: which quantile, and why.
    pub(super) fn waits(&self) -> Option<(Option<f64>, &'static str)> {
        const MISSING: &str = "is not certified yet";
        const FALLEN: &str = "was certified, but does not stand over the last minute";
        let plain = |certified: bool, stands: bool| match (certified, stands) {
            (false, _) => Some((None, MISSING)),
            (true, false) => Some((None, FALLEN)),
            (true, true) => None,
        };
        match self {
            Self::Latency(judge) => {
                let Some(step) = judge.step() else { return Some((None, "is being learnt")) };
                let mut required = step.tracks().iter().filter(|track| track.required);
                let why = |track: &Track| match track.certified {
                    _ if track.pass_bounds.is_none() => {
                        Some("lies in the last bucket, where nothing can be seen")
                    }
                    None => Some(MISSING),
                    Some(_) if !track.stands() => Some(FALLEN),
                    Some(_) => None,
                };
                required.find_map(|track| Some((Some(track.quantile.q), why(track)?)))
            }
            Self::Errors(judge) => plain(judge.certified.is_some(), judge.stands()),
            Self::Resource(judge) => plain(judge.certified.is_some(), judge.stands()),
        }
    }

    /// Observations of the step, for the split of traffic: baseline and canary.
    pub(super) fn counts(&self) -> Option<(f64, f64)> {
        match self {
            Self::Latency(judge) => {
                judge.step().map(|step| (step.baseline.count() as f64, step.canary.count() as f64))
            }
            Self::Errors(judge) => Some((judge.baseline.0, judge.canary.0)),
            Self::Resource(_) => None,
        }
    }
}

/// Values of a quantile. Ranks are uncertain by the binomial's spread, times the root of the noise.
fn compared(step: &Step, track: &Track, row: Row) -> Row {
    let q = track.quantile.q;
    let tau = track.tau.unwrap_or(1.0);
    let around = |buckets: &Buckets| {
        let n = buckets.count() as f64;
        let spread = INTERVAL * (tau * n * q * (1.0 - q)).sqrt();
        let at = |rank: f64| buckets.bound_of_rank(rank.clamp(0.0, n));
        // Beyond the last observation nothing is known upwards.
        let high = if q * n + spread > n { None } else { at(q * n + spread) };
        (at(q * n - spread), at(q * n), high)
    };
    let (low_b, baseline, high_b) = around(&step.baseline);
    let (low_c, canary, high_c) = around(&step.canary);
    Row {
        baseline: baseline.filter(|value| value.is_finite()),
        canary: canary.filter(|value| value.is_finite()),
        ratio: ratio(baseline, canary),
        ratio_low: ratio(high_b, low_c),
        ratio_high: ratio(low_b, high_c),
        ..row
    }
}

fn ratio(baseline: Option<f64>, canary: Option<f64>) -> Option<f64> {
    let ratio = canary? / baseline?;
    ratio.is_finite().then_some(ratio)
}

/// 95 % interval of the ratio of two rates, on the logarithmic scale, half an error added to each.
fn error_ratio(baseline: (f64, f64), canary: (f64, f64)) -> (Option<f64>, Option<f64>) {
    if baseline.0 <= 0.0 || canary.0 <= 0.0 {
        return (None, None);
    }
    let (b, c) = (baseline.1 + 0.5, canary.1 + 0.5);
    let middle = ((c / canary.0) / (b / baseline.0)).ln();
    let spread = INTERVAL * (1.0 / b + 1.0 / c).sqrt();
    (Some((middle - spread).exp()), Some((middle + spread).exp()))
}

fn percent(share: f64) -> String {
    format!("{} %", round(100.0 * share))
}

/// Three digits.
fn round(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let digits = (2 - value.abs().log10().floor() as i32).clamp(0, 12) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}
