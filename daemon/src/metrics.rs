//! The daemon's own metrics: one table. A probe's metric is not here, it follows from the catalog.

use tickscope_common::catalog::PROBES;
use tickscope_common::layout::REASONS;
use tickscope_core::gate::{Status, Verdict};
use tickscope_core::{
    AnomalyScore, BURN_WINDOWS, Budget, Eta, LimitStatus, ProbeState, ProbeStatus, SloStatus,
};

use crate::exporter::Input;
use crate::exporter::json::Build;

/// One metric of the daemon itself.
pub struct Own {
    /// Name.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
    /// Whether it can fall.
    pub kind: Kind,
    /// Names of its labels; each has a closed set of values.
    pub labels: &'static [&'static str],
    /// Values of the labels, and the value.
    pub samples: fn(&Input) -> Vec<Sample>,
}

/// Values of the labels, and the value.
pub type Sample = (Vec<String>, f64);

/// Whether a metric can fall.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It can.
    Gauge,
    /// It cannot, but for a restart.
    Counter,
}

use Kind::{Counter, Gauge};

/// All of them.
pub const OWN: &[Own] = &[
    Own {
        name: "tickscope_build_info",
        help: "Always 1; which build runs on which kernel.",
        kind: Gauge,
        labels: &["version", "git_sha", "object_sha256", "kernel"],
        samples: |input| {
            let Build { version, git_sha, object_sha256 } = Build::this();
            vec![(vec![version, git_sha, object_sha256, input.facts.kernel.clone()], 1.0)]
        },
    },
    Own {
        name: "tickscope_probe_state",
        help: "1 for the state that a probe is in, 0 for the others.",
        kind: Gauge,
        labels: &["probe", "state"],
        samples: |input| {
            let of = |(name, status): (&str, &ProbeStatus)| {
                state_set(name, ProbeState::ALL, ProbeState::name, status.state)
            };
            probes(input).flat_map(of).collect()
        },
    },
    Own {
        name: "tickscope_target_processes",
        help: "Processes that match a target now; 0 is not health.",
        kind: Gauge,
        labels: &["target"],
        samples: |input| targets(input, |target| target.processes as u64),
    },
    Own {
        name: "tickscope_target_started_total",
        help: "Processes that began to match a target.",
        kind: Counter,
        labels: &["target"],
        samples: |input| targets(input, |target| target.started),
    },
    Own {
        name: "tickscope_target_exited_total",
        help: "Processes of a target that ended.",
        kind: Counter,
        labels: &["target"],
        samples: |input| targets(input, |target| target.exited),
    },
    Own {
        name: "tickscope_seen_total",
        help: "Intervals that ended in threads of targets: recorded + filtered + discarded.",
        kind: Counter,
        labels: &["probe"],
        samples: |input| by_probe(input, |status| Some(status.accounting.seen as f64)),
    },
    Own {
        name: "tickscope_filtered_total",
        help: "Intervals left out on purpose: the probe was shed, or the interval is none.",
        kind: Counter,
        labels: &["probe"],
        samples: |input| by_probe(input, |status| Some(status.accounting.filtered as f64)),
    },
    Own {
        name: "tickscope_discarded_total",
        help: "Intervals that are unusable, by reason.",
        kind: Counter,
        labels: &["probe", "reason"],
        samples: |input| {
            probes(input)
                .flat_map(|(name, status)| {
                    REASONS.iter().zip(&status.accounting.discarded).map(move |(reason, count)| {
                        (vec![name.to_owned(), (*reason).to_owned()], *count as f64)
                    })
                })
                .collect()
        },
    },
    Own {
        name: "tickscope_lost_total",
        help: "What never arrived: outlier records (source ring), runs of programs that the kernel skipped (source program).",
        kind: Counter,
        labels: &["source", "reason"],
        samples: |input| {
            let lost = input.snapshot.lost.iter();
            lost.map(|lost| (vec![lost.source.clone(), lost.reason.clone()], lost.count as f64)).collect()
        },
    },
    Own {
        name: "tickscope_probe_runs_total",
        help: "Runs of a probe's programs; a program shared by probes counts for the first that needs it.",
        kind: Counter,
        labels: &["probe"],
        samples: |input| by_probe(input, |status| Some(status.runs as f64)),
    },
    Own {
        name: "tickscope_probe_cost_seconds",
        help: "Mean time of one run of a probe's programs, from one run in 1024 that times itself.",
        kind: Gauge,
        labels: &["probe"],
        samples: |input| by_probe(input, |status| status.cost_ns.map(|ns| ns / 1e9)),
    },
    Own {
        name: "tickscope_overhead_cpu_ratio",
        help: "Share of one CPU that programs and daemon took together over the last minute.",
        kind: Gauge,
        labels: &[],
        samples: |input| {
            input.snapshot.overhead_cpu_ratio.map(|ratio| (Vec::new(), ratio)).into_iter().collect()
        },
    },
    Own {
        name: "tickscope_gate_verdict",
        help: "1 pass, -1 fail, 0 inconclusive; no sample without data.",
        kind: Gauge,
        labels: &["gate"],
        samples: |input| {
            let value = |verdict| match verdict {
                Verdict::Pass => Some(1.0),
                Verdict::Fail => Some(-1.0),
                Verdict::Inconclusive => Some(0.0),
                Verdict::NoData => None,
            };
            let of = |status: &Status| Some((vec![status.name.clone()], value(status.report.verdict)?));
            input.gates.iter().filter_map(of).collect()
        },
    },
    Own {
        name: "tickscope_gate_state",
        help: "1 for the verdict that a gate has, 0 for the others.",
        kind: Gauge,
        labels: &["gate", "verdict"],
        samples: |input| {
            let of =
                |status: &Status| state_set(&status.name, Verdict::ALL, Verdict::name, status.report.verdict);
            input.gates.iter().flat_map(of).collect()
        },
    },
    Own {
        name: "tickscope_gate_evidence_log",
        help: "Natural logarithm of the evidence of harm; the gate fails when it exceeds -ln(alpha).",
        kind: Gauge,
        labels: &["gate", "kpi"],
        samples: |input| {
            let of = |status: &Status| {
                let mut rows = status.report.kpis.clone();
                rows.dedup_by(|row, before| row.kpi == before.kpi);
                let name = status.name.clone();
                rows.into_iter().map(move |row| (vec![name.clone(), row.kpi], row.evidence))
            };
            input.gates.iter().flat_map(of).collect()
        },
    },
    Own {
        name: "tickscope_gate_ratio",
        help: "Canary by baseline over the step, and the 95 % interval of that.",
        kind: Gauge,
        labels: &["gate", "kpi", "quantile", "bound"],
        samples: |input| {
            let of = |status: &Status| {
                let name = status.name.clone();
                status.report.kpis.clone().into_iter().flat_map(move |row| {
                    let quantile = row.quantile.map_or_else(String::new, |q| q.to_string());
                    let labels = [name.clone(), row.kpi, quantile];
                    let bounds = [("low", row.ratio_low), ("mid", row.ratio), ("high", row.ratio_high)];
                    bounds.into_iter().filter_map(move |(bound, ratio)| {
                        Some(([&labels[..], &[bound.to_owned()]].concat(), ratio?))
                    })
                })
            };
            input.gates.iter().flat_map(of).collect()
        },
    },
    Own {
        name: "tickscope_readings_total",
        help: "Readings of the kernel's histograms.",
        kind: Counter,
        labels: &[],
        samples: |input| one(input.snapshot.readings as f64),
    },
    Own {
        name: "tickscope_gaps_total",
        help: "Readings that came more than twice their interval late.",
        kind: Counter,
        labels: &[],
        samples: |input| one(input.snapshot.gaps as f64),
    },
    Own {
        name: "tickscope_series",
        help: "Histograms that are kept.",
        kind: Gauge,
        labels: &[],
        samples: |input| one(input.snapshot.series.len() as f64),
    },
    Own {
        name: "tickscope_series_dropped_total",
        help: "Series left out because there were too many. All labels are closed sets, so 0.",
        kind: Counter,
        labels: &[],
        samples: |_| one(0.0),
    },
    Own {
        name: "tickscope_maps_bytes",
        help: "Kernel memory of the maps.",
        kind: Gauge,
        labels: &[],
        samples: |input| one(input.facts.maps_bytes as f64),
    },
    Own {
        name: "tickscope_config_last_reload_successful",
        help: "1 if the latest configuration could be loaded; if 0, the one before it is in force.",
        kind: Gauge,
        labels: &[],
        samples: |input| one(f64::from(u8::from(input.reloaded.successful))),
    },
    Own {
        name: "tickscope_config_last_reload_timestamp_seconds",
        help: "When the configuration was last loaded or refused.",
        kind: Gauge,
        labels: &[],
        samples: |input| one(input.reloaded.at_seconds),
    },
    Own {
        name: "tickscope_slo_events_total",
        help: "Events of an objective: observations of its series, or readings of its target.",
        kind: Counter,
        labels: &["slo"],
        samples: |input| by_slo(input, |slo| Some(slo.events.total as f64)),
    },
    Own {
        name: "tickscope_slo_bad_events_total",
        help: "Events that were slower than the threshold, or found no process.",
        kind: Counter,
        labels: &["slo"],
        samples: |input| by_slo(input, |slo| Some(slo.events.bad as f64)),
    },
    Own {
        name: "tickscope_slo_objective_ratio",
        help: "Share of events that shall be good.",
        kind: Gauge,
        labels: &["slo"],
        samples: |input| by_slo(input, |slo| Some(slo.objective.objective)),
    },
    Own {
        name: "tickscope_slo_burn_rate",
        help: "How fast the error budget burns over a window; 1 uses it up exactly. No sample without events.",
        kind: Gauge,
        labels: &["slo", "window"],
        samples: |input| {
            let rates = input.snapshot.slos.iter().flat_map(|slo| {
                BURN_WINDOWS.iter().zip(&slo.burn).filter_map(|((_, window), burn)| {
                    Some((vec![slo.objective.name.clone(), (*window).to_owned()], burn.rate?))
                })
            });
            rates.collect()
        },
    },
    Own {
        name: "tickscope_slo_budget_remaining_ratio",
        help: "Share of the error budget that is left in the objective's window; below 0 when overspent.",
        kind: Gauge,
        labels: &["slo"],
        samples: |input| by_slo(input, |slo| slo.budget_remaining_ratio),
    },
    Own {
        name: "tickscope_slo_week_burnt_ratio",
        help: "Share of a week's error budget that the last week burnt: above 0.5 gates promote nothing.",
        kind: Gauge,
        labels: &["slo"],
        samples: |input| by_slo(input, |slo| slo.week_burnt_ratio),
    },
    Own {
        name: "tickscope_slo_budget_state",
        help: "1 for the state that an objective's weekly budget is in, 0 for the others.",
        kind: Gauge,
        labels: &["slo", "state"],
        samples: |input| {
            let of = |slo: &SloStatus| state_set(&slo.objective.name, Budget::ALL, Budget::name, slo.budget);
            input.snapshot.slos.iter().flat_map(of).collect()
        },
    },
    Own {
        name: "tickscope_forecast_breach_probability",
        help: "Probability that a limit is crossed within its horizon; no sample while that is not known.",
        kind: Gauge,
        labels: &["series", "direction"],
        samples: |input| by_limit(input, |limit| limit.forecast.map(|forecast| forecast.p)),
    },
    Own {
        name: "tickscope_forecast_breach_seconds",
        help: "Time until a limit is crossed: the 10 % (low), 50 % (mid) and 90 % (high) quantile; no sample while that is too unlikely to say.",
        kind: Gauge,
        labels: &["series", "direction", "bound"],
        samples: |input| {
            let bound = |bound: &str, of: fn(&Eta) -> f64| {
                let mut samples = by_limit(input, |limit| limit.forecast?.eta.as_ref().map(of));
                for (labels, _) in &mut samples {
                    labels.push(bound.to_owned());
                }
                samples
            };
            [bound("low", |eta| eta.low), bound("mid", |eta| eta.mid), bound("high", |eta| eta.high)].concat()
        },
    },
    Own {
        name: "tickscope_forecast_horizon_seconds",
        help: "How far ahead the breach of a limit matters.",
        kind: Gauge,
        labels: &["series", "direction"],
        samples: |input| by_limit(input, |limit| Some(limit.rule.limit.horizon_s)),
    },
    Own {
        name: "tickscope_forecast_warning",
        help: "1 while it is warned that a limit will be crossed; no sample while that is not known.",
        kind: Gauge,
        labels: &["series", "direction"],
        samples: |input| by_limit(input, |limit| Some(f64::from(u8::from(limit.forecast?.warn)))),
    },
    Own {
        name: "tickscope_limit_breached",
        help: "1 while a limit is crossed: 8 of the last 10 samples are beyond it; no sample without data.",
        kind: Gauge,
        labels: &["series", "direction"],
        samples: |input| by_limit(input, |limit| limit.value.map(|_| f64::from(u8::from(limit.breached)))),
    },
    Own {
        name: "tickscope_limit_missing_samples_total",
        help: "Samples of a limit's series that had no value: no data, or too few observations.",
        kind: Counter,
        labels: &["series", "direction"],
        samples: |input| by_limit(input, |limit| Some(limit.missing as f64)),
    },
    Own {
        name: "tickscope_forecast_warnings_total",
        help: "Warnings that a breach followed (true) and that none followed in their time (false).",
        kind: Counter,
        labels: &["outcome"],
        samples: |input| {
            let record = &input.snapshot.record;
            let outcomes = [("true", record.warnings_true), ("false", record.warnings_false)];
            outcomes.map(|(outcome, count)| (vec![outcome.to_owned()], count as f64)).into()
        },
    },
    Own {
        name: "tickscope_forecast_breaches_total",
        help: "Breaches of limits, by whether they were warned of for the minute before.",
        kind: Counter,
        labels: &["warned"],
        samples: |input| {
            let record = &input.snapshot.record;
            let missed = record.breaches - record.breaches_warned;
            let warned = [("true", record.breaches_warned), ("false", missed)];
            warned.map(|(warned, count)| (vec![warned.to_owned()], count as f64)).into()
        },
    },
    Own {
        name: "tickscope_forecast_coverage_ratio",
        help: "Share of 80 % intervals that held the time of the breach; no sample before the first breach.",
        kind: Gauge,
        labels: &[],
        samples: |input| {
            input.snapshot.record.coverage().map(|share| (Vec::new(), share)).into_iter().collect()
        },
    },
    Own {
        name: "tickscope_forecast_widening_ratio",
        help: "By how much intervals are widened because they promised too much; 1 is not at all.",
        kind: Gauge,
        labels: &[],
        samples: |input| one(input.snapshot.record.widening()),
    },
    Own {
        name: "tickscope_forecast_lead_seconds",
        help: "Median time from warning to breach, of the last 64.",
        kind: Gauge,
        labels: &[],
        samples: |input| input.snapshot.record.lead_s().map(|lead| (Vec::new(), lead)).into_iter().collect(),
    },
    Own {
        name: "tickscope_anomaly_score",
        help: "How unusual a series is, 0 to 1; 0.5 is the threshold that allows one false alarm a week.",
        kind: Gauge,
        labels: &["series", "detector"],
        samples: |input| by_score(input, |score| score.score),
    },
    Own {
        name: "tickscope_anomaly_open",
        help: "1 while a finding about a series is open.",
        kind: Gauge,
        labels: &["series", "detector"],
        samples: |input| by_score(input, |score| f64::from(u8::from(score.open))),
    },
    Own {
        name: "tickscope_anomaly_unwatched_series",
        help: "Series that are not watched for anomalies, because memory for them is bounded.",
        kind: Gauge,
        labels: &[],
        samples: |input| one(input.snapshot.anomaly_unwatched as f64),
    },
    Own {
        name: "process_resident_memory_bytes",
        help: "Resident memory of the daemon.",
        kind: Gauge,
        labels: &[],
        samples: |input| one(input.snapshot.cost.rss_bytes as f64),
    },
];

/// `dashboards/METRICS.md`: every metric, from the catalog and the table above.
pub fn reference() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         Generated from the catalog of probes and the table of the daemon's own metrics; a test holds it to\n\
         them (`BLESS=1 cargo test -p tickscope metrics` writes it anew).\n\n\
         ## Probes\n\n\
         Histograms, in seconds, with the label `target` (the configured name) and at most one more. The\n\
         classic buckets are about five a decade from 1 µs to 10 s, exact; never match a single `le`.\n\n\
         | Metric | Label | Measures | Not seen |\n|---|---|---|---|\n",
    );
    for probe in PROBES {
        let label = probe
            .label
            .as_ref()
            .map_or_else(String::new, |label| format!("`{}`: {}", label.name, label.values.join(", ")));
        text += &format!(
            "| `tickscope_{}_seconds` | {label} | {} | {} |\n",
            probe.name, probe.measures, probe.blind
        );
    }
    text += "\n## The daemon itself\n\n| Metric | Type | Labels | Says |\n|---|---|---|---|\n";
    for own in OWN {
        let kind = match own.kind {
            Gauge => "gauge",
            Counter => "counter",
        };
        let labels: Vec<String> = own.labels.iter().map(|label| format!("`{label}`")).collect();
        text += &format!("| `{}` | {kind} | {} | {} |\n", own.name, labels.join(", "), own.help);
    }
    text
}

/// A sample for every state that `of` can be in: 1 for the one it is in, 0 for the others.
fn state_set<S: Copy + PartialEq, const N: usize>(
    of: &str,
    all: [S; N],
    name: fn(S) -> &'static str,
    is: S,
) -> [Sample; N] {
    all.map(|state| (vec![of.to_owned(), name(state).to_owned()], f64::from(u8::from(state == is))))
}

fn one(value: f64) -> Vec<Sample> {
    vec![(Vec::new(), value)]
}

fn probes(input: &Input) -> impl Iterator<Item = (&'static str, &ProbeStatus)> {
    PROBES.iter().map(|entry| entry.name).zip(&input.snapshot.probes)
}

fn by_probe(input: &Input, value: impl Fn(&ProbeStatus) -> Option<f64>) -> Vec<Sample> {
    probes(input).filter_map(|(name, status)| Some((vec![name.to_owned()], value(status)?))).collect()
}

fn targets(input: &Input, value: impl Fn(&tickscope_core::TargetStatus) -> u64) -> Vec<Sample> {
    let targets = input.snapshot.targets.iter();
    targets.map(|target| (vec![target.name.clone()], value(target) as f64)).collect()
}

fn by_slo(input: &Input, value: impl Fn(&SloStatus) -> Option<f64>) -> Vec<Sample> {
    let slos = input.snapshot.slos.iter();
    slos.filter_map(|slo| Some((vec![slo.objective.name.clone()], value(slo)?))).collect()
}

fn by_limit(input: &Input, value: impl Fn(&LimitStatus) -> Option<f64>) -> Vec<Sample> {
    let limits = input.snapshot.limits.iter();
    let labels = |limit: &LimitStatus| {
        let direction = crate::exporter::json::forecast::direction(limit.rule.limit.direction);
        vec![limit.rule.series.clone(), direction.to_owned()]
    };
    limits.filter_map(|limit| Some((labels(limit), value(limit)?))).collect()
}

fn by_score(input: &Input, value: impl Fn(&AnomalyScore) -> f64) -> Vec<Sample> {
    let scores = input.snapshot.anomaly_scores.iter();
    scores.map(|score| (vec![score.series.clone(), score.detector.to_owned()], value(score))).collect()
}
