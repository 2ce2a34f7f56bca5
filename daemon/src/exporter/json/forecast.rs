//! `/api/v1/forecasts`: what is foreseen, what is unusual, and how often that was right.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use tickscope_core::{Direction, LimitStatus, PROMISE, length};

use crate::exporter::Input;

/// `/api/v1/forecasts`
#[derive(Debug, Serialize, Deserialize)]
pub struct Forecasts {
    /// Limits that are watched.
    pub limits: usize,
    /// One for each limit.
    pub forecasts: Vec<Forecast>,
    /// What was unusual lately and is, oldest first.
    pub findings: Vec<tickscope_core::Finding>,
    /// How unusual every series is.
    pub scores: Vec<Score>,
    /// Series that are not watched for anomalies, because memory for them is bounded.
    pub unwatched_series: usize,
    /// How forecasts have turned out.
    pub record: Record,
}

/// A limit now.
#[derive(Debug, Serialize, Deserialize)]
pub struct Forecast {
    /// Name of the series.
    pub series: String,
    /// `above` or `below`.
    pub direction: String,
    /// What must not be crossed.
    pub limit: f64,
    /// The latest sample; `null` without one.
    pub value: Option<f64>,
    /// Unit of limit and value.
    pub unit: String,
    /// How far ahead a breach matters.
    pub horizon_seconds: f64,
    /// `unknown`, `quiet`, `warning` or `breached`.
    pub state: String,
    /// Probability of a breach within the horizon; `null` is not known.
    pub probability: Option<f64>,
    /// When; `null` when that is too unlikely to say.
    pub eta_seconds: Option<Bounds>,
    /// Samples that had no value.
    pub missing: u64,
    /// One sentence for a person.
    pub text: String,
}

/// 10 %, 50 % and 90 % quantile.
#[derive(Debug, Serialize, Deserialize)]
pub struct Bounds {
    /// 10 %.
    pub low: f64,
    /// 50 %.
    pub mid: f64,
    /// 90 %.
    pub high: f64,
}

/// How unusual a series is.
#[derive(Debug, Serialize, Deserialize)]
pub struct Score {
    /// Name of the series.
    pub series: String,
    /// Name of the detector.
    pub detector: String,
    /// 0..1; 0.5 is the threshold.
    pub score: f64,
    /// Whether a finding is open.
    pub open: bool,
    /// Whether the threshold is calibrated on this series.
    pub calibrated: bool,
}

/// How forecasts have turned out, over all limits.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// Warnings that a breach followed.
    pub warnings_true: u64,
    /// Warnings that none followed.
    pub warnings_false: u64,
    /// Share of warnings that a breach followed.
    pub precision: Option<f64>,
    /// Breaches.
    pub breaches: u64,
    /// Breaches that were warned of.
    pub breaches_warned: u64,
    /// Share of breaches that were warned of.
    pub recall: Option<f64>,
    /// Share of truths that intervals promise to hold.
    pub coverage_promised: f64,
    /// Share that they held.
    pub coverage: Option<f64>,
    /// Median time from warning to breach.
    pub lead_seconds: Option<f64>,
    /// By how much intervals are widened, because they promised too much; 1 is not at all.
    pub widening: f64,
}

/// The forecasts of this input.
pub fn forecasts(input: &Input) -> Forecasts {
    let snapshot = &input.snapshot;
    let record = &snapshot.record;
    Forecasts {
        limits: snapshot.limits.len(),
        forecasts: snapshot.limits.iter().map(forecast).collect(),
        findings: snapshot.findings.clone(),
        scores: snapshot
            .anomaly_scores
            .iter()
            .map(|score| Score {
                series: score.series.clone(),
                detector: score.detector.into(),
                score: score.score,
                open: score.open,
                calibrated: score.calibrated,
            })
            .collect(),
        unwatched_series: snapshot.anomaly_unwatched,
        record: Record {
            warnings_true: record.warnings_true,
            warnings_false: record.warnings_false,
            precision: record.precision(),
            breaches: record.breaches,
            breaches_warned: record.breaches_warned,
            recall: record.recall(),
            coverage_promised: PROMISE,
            coverage: record.coverage(),
            lead_seconds: record.lead_s(),
            widening: record.widening(),
        },
    }
}

fn forecast(status: &LimitStatus) -> Forecast {
    let limit = &status.rule.limit;
    let eta = status.forecast.and_then(|forecast| forecast.eta);
    Forecast {
        series: status.rule.series.clone(),
        direction: direction(limit.direction).into(),
        limit: limit.value,
        value: status.value,
        unit: status.unit.into(),
        horizon_seconds: limit.horizon_s,
        state: state(status).into(),
        probability: status.forecast.map(|forecast| forecast.p),
        eta_seconds: eta.map(|eta| Bounds { low: eta.low, mid: eta.mid, high: eta.high }),
        missing: status.missing,
        text: sentence(status),
    }
}

/// `above` or `below`.
pub fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Above => "above",
        Direction::Below => "below",
    }
}

/// `breached`, `warning`, `quiet`, or `unknown`, which is none of these.
pub fn state(status: &LimitStatus) -> &'static str {
    match status.forecast {
        _ if status.breached => "breached",
        None => "unknown",
        Some(forecast) if forecast.warn => "warning",
        Some(_) => "quiet",
    }
}

/// "engine/runqueue/p99 crosses 500 µs in 14 min (9 min to 22 min), probability 0.93".
pub fn sentence(status: &LimitStatus) -> String {
    let series = &status.rule.series;
    let limit = quantity(status.rule.limit.value, status.unit);
    let side = direction(status.rule.limit.direction);
    let mut text = match state(status) {
        "breached" => format!("{series} is {side} {limit}"),
        "unknown" => format!("{series}: not known yet, or no data"),
        "warning" => format!("{series} crosses {limit}"),
        _ => format!("{series} stays on its side of {limit}"),
    };
    if let (false, Some(forecast)) = (status.breached, status.forecast) {
        if let (true, Some(eta)) = (forecast.warn, forecast.eta) {
            let [mid, low, high] = [eta.mid, eta.low, eta.high].map(span);
            write!(text, " in {mid} ({low} to {high})").expect("a String takes everything");
        }
        write!(text, ", probability {:.2}", forecast.p).expect("a String takes everything");
    }
    text
}

/// A value in its unit.
pub fn quantity(value: f64, unit: &str) -> String {
    match unit {
        "seconds" if value > 0.0 => length(value),
        "bytes" => format!("{}", bytesize::ByteSize(value.max(0.0) as u64)),
        _ => format!("{value} {unit}"),
    }
}

/// A time from seconds to days, as a person says it.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.0} s"),
        s if s < 6000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tickscope_core::{Eta, Limit, Rule, Subject};

    #[test]
    fn a_sentence_says_what_is_known() {
        let mut status = LimitStatus {
            rule: Rule {
                series: "engine/runqueue/p99".into(),
                subject: Subject::Quantile { probe: 0, target: 0, label: None, q: 0.99 },
                limit: Limit {
                    value: 500e-6,
                    direction: Direction::Above,
                    horizon_s: 1800.0,
                    step_s: 1.0,
                    period_s: None,
                },
            },
            unit: "seconds",
            value: Some(300e-6),
            breached: false,
            forecast: None,
            missing: 0,
        };
        assert_eq!(sentence(&status), "engine/runqueue/p99: not known yet, or no data");
        let eta = Some(Eta { low: 540.0, mid: 840.0, high: 1320.0 });
        status.forecast = Some(tickscope_core::Forecast { p: 0.931, eta, warn: true });
        assert_eq!(
            sentence(&status),
            "engine/runqueue/p99 crosses 500 µs in 14 min (9 min to 22 min), probability 0.93"
        );
        status.forecast = Some(tickscope_core::Forecast { p: 0.0, eta: None, warn: false });
        assert_eq!(sentence(&status), "engine/runqueue/p99 stays on its side of 500 µs, probability 0.00");
        status.breached = true;
        assert_eq!(sentence(&status), "engine/runqueue/p99 is above 500 µs");
        assert_eq!(quantity(2_147_483_648.0, "bytes"), "2.0 GiB");
    }
}
