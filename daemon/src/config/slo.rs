//! `[[slo]]`: what is promised.

use std::ops::Range;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use tickscope_common::catalog::PROBES;
use tickscope_core::{Indicator, Objective, good_slot};
use toml::Spanned;

use super::{Config, ProbeName, custom, duration, name};

/// Each takes 15 KiB.
const MAX: usize = 32;
const DAY: Duration = Duration::from_hours(24);

/// One objective.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Slo {
    /// Label `slo` of its metrics.
    #[serde(deserialize_with = "name")]
    pub name: String,
    /// Whose latencies are the events.
    pub series: Option<Series>,
    /// Up to which latency an event is good, 1us to 100s.
    #[serde(default, deserialize_with = "threshold")]
    #[schemars(with = "Option<String>")]
    pub threshold: Option<Duration>,
    /// Instead of a series: the target of which a process is to be there.
    #[schemars(with = "Option<String>")]
    available: Option<Spanned<String>>,
    /// Share of events that shall be good; written as a percentage.
    #[serde(deserialize_with = "objective")]
    #[schemars(with = "String")]
    pub objective: f64,
    /// Time over which the budget is counted, 1d to 90d.
    #[serde(default = "month", deserialize_with = "window")]
    #[schemars(with = "String")]
    pub window: Duration,
}

/// The observations of one probe in one target.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Series {
    #[schemars(with = "String")]
    probe: Spanned<ProbeName>,
    #[schemars(with = "String")]
    target: Spanned<String>,
    /// One value of the probe's label; without it, all of them.
    #[schemars(with = "Option<String>")]
    label: Option<Spanned<String>>,
}

impl Slo {
    /// For the core.
    pub(super) fn objective(&self) -> Objective {
        let indicator = match (&self.series, self.threshold) {
            (Some(series), Some(threshold)) => Indicator::Latency {
                probe: series.probe.get_ref().0,
                label: series.label(),
                good_slot: good_slot(threshold.as_nanos() as u64).expect("the threshold is in the range"),
            },
            _ => Indicator::Available,
        };
        Objective {
            name: self.name.clone(),
            target: self.target().get_ref().clone(),
            indicator,
            objective: self.objective,
            window_ns: self.window.as_nanos() as u64,
        }
    }

    /// In words: what is promised, and what is counted.
    pub fn promise(&self) -> String {
        let percent = percent(self.objective);
        let target = self.target().get_ref();
        let Some((series, threshold)) = self.series.as_ref().zip(self.threshold) else {
            return format!("{percent} of readings find a process of {target}");
        };
        let probe = &PROBES[series.probe.get_ref().0];
        let label = series.label.as_ref().map_or_else(String::new, |label| format!(" {}", label.get_ref()));
        let bound = self.objective().indicator.good_up_to_seconds().unwrap_or_default();
        format!(
            "{percent} of {}{label} in {target} take at most {} (counted up to {bound:.4e} s, a bound of the histogram)",
            probe.name,
            humantime::format_duration(threshold),
        )
    }

    fn target(&self) -> &Spanned<String> {
        let of_series = self.series.as_ref().map(|series| &series.target);
        of_series.or(self.available.as_ref()).expect("parsing made sure of one of them")
    }

    /// What it refers to that is not there, and where that stands.
    pub(super) fn dangling(&self, config: &Config) -> Option<(String, Range<usize>)> {
        let target = self.target();
        if !config.target.iter().any(|known| known.name == *target.get_ref()) {
            let names: Vec<&str> = config.target.iter().map(|target| target.name.as_str()).collect();
            let what =
                format!("there is no target \"{}\": it is one of {}", target.get_ref(), names.join(", "));
            return Some((what, target.span()));
        }
        let series = self.series.as_ref()?;
        let probe = &PROBES[series.probe.get_ref().0];
        if !config.probes.enabled(series.probe.get_ref().0) {
            let what = format!("{0} is not measured: set probes.{0}.enabled = true", probe.name);
            return Some((what, series.probe.span()));
        }
        let label = series.label.as_ref().filter(|_| series.label().is_none())?;
        let what = match &probe.label {
            None => format!("{} has no label", probe.name),
            Some(known) => format!(
                "{} has no {} \"{}\": it is one of {}",
                probe.name,
                known.name,
                label.get_ref(),
                known.values.join(", ")
            ),
        };
        Some((what, label.span()))
    }
}

impl Series {
    /// Index of the label's value; `None` for all, and for one that does not exist.
    fn label(&self) -> Option<usize> {
        let wanted = self.label.as_ref()?.get_ref();
        let known = PROBES[self.probe.get_ref().0].label.as_ref()?;
        known.values.iter().position(|value| value == wanted)
    }
}

/// 0.9999 as `99.99%`.
pub fn percent(ratio: f64) -> String {
    let digits = format!("{:.6}", ratio * 100.0);
    format!("{}%", digits.trim_end_matches('0').trim_end_matches('.'))
}

pub(super) fn slos<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Slo>, D::Error> {
    let slos = Vec::<Slo>::deserialize(from)?;
    let twice = slos
        .iter()
        .enumerate()
        .find(|(index, slo)| slos[..*index].iter().any(|before| before.name == slo.name));
    let kind = |slo: &&Slo| {
        !matches!(
            (&slo.series, slo.threshold, &slo.available),
            (Some(_), Some(_), None) | (None, None, Some(_))
        )
    };
    custom::<D, _>(if slos.len() > MAX {
        Err(format!("{} objectives, at most {MAX}", slos.len()))
    } else if let Some((_, slo)) = twice {
        Err(format!("two objectives are called \"{}\"", slo.name))
    } else if let Some(slo) = slos.iter().find(kind) {
        Err(format!("\"{}\" needs either series and threshold, or available", slo.name))
    } else {
        Ok(slos)
    })
}

fn month() -> Duration {
    30 * DAY
}

fn within<'de, D: Deserializer<'de>>(
    from: D,
    range: &std::ops::RangeInclusive<Duration>,
    what: &str,
) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    custom::<D, _>(duration(&text).and_then(
        |time| {
            if range.contains(&time) { Ok(time) } else { Err(what.into()) }
        },
    ))
}

fn threshold<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let range = Duration::from_micros(1)..=Duration::from_secs(100);
    within(from, &range, "a threshold is from 1us to 100s").map(Some)
}

fn window<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    within(from, &(DAY..=90 * DAY), "the window must be from 1d to 90d")
}

fn objective<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let text = String::deserialize(from)?;
    let number = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    custom::<D, _>(match number {
        Some(percent) if (50.0..=99.9999).contains(&percent) => Ok(percent / 100.0),
        _ => Err("write the share of good events as a percentage from 50% to 99.9999%, \"99.9%\"".into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DEFAULT;

    const FAST: &str = "[[slo]]\nname = \"fast\"\nseries = { probe = \"runqueue\", target = \"engine\" }\nthreshold = \"1ms\"\nobjective = \"99%\"\n";

    #[test]
    fn the_examples_of_the_manual_are_valid() {
        let examples = DEFAULT.lines().skip_while(|line| *line != "# [[slo]]");
        let text: String =
            examples.map(|line| format!("{}\n", line.trim_start_matches(['#', ' ']))).collect();
        let config = Config::parse(&text).unwrap();
        let promises: Vec<String> = config.slo.iter().map(Slo::promise).collect();
        assert_eq!(
            promises,
            [
                "99% of runqueue in engine take at most 100ms (counted up to 9.6388e-2 s, a bound of the histogram)",
                "99.99% of readings find a process of engine",
            ]
        );
        assert_eq!(config.objectives()[1].window_ns, 30 * 86_400 * 1_000_000_000, "if left out");
    }

    #[test]
    fn what_is_not_there_is_said_with_its_place() {
        let text = FAST.replace("target = \"engine\"", "target = \"motor\"");
        insta::assert_snapshot!(Config::parse(&text).unwrap_err(), @r#"
        TOML parse error at line 3, column 41
          |
        3 | series = { probe = "runqueue", target = "motor" }
          |                                         ^^^^^^^
        there is no target "motor": it is one of engine
        "#);
        for (from, to, what) in [
            ("\"runqueue\"", "\"syscall\"", "set probes.syscall.enabled = true"),
            ("\"runqueue\"", "\"run\"", "there is no probe \"run\""),
            ("\"engine\" }", "\"engine\", label = \"io\" }", "runqueue has no label"),
            ("\"runqueue\"", "\"offcpu\", label = \"disk\"", "no cause \"disk\": it is one of futex, io"),
            ("threshold = \"1ms\"\n", "", "needs either series and threshold, or available"),
            ("threshold", "available = \"engine\"\nthreshold", "needs either"),
            ("1ms", "100ns", "from 1us to 100s"),
            ("99%", "100%", "from 50% to 99.9999%"),
            ("99%", "0.99", "\"99.9%\""),
            ("threshold", "window = \"1h\"\nthreshold", "from 1d to 90d"),
            ("[[slo]]", &format!("{FAST}[[slo]]"), "two objectives are called \"fast\""),
        ] {
            let error = Config::parse(&FAST.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(what) && error.contains("line "), "{error}");
        }
        let many: String = (0..33).map(|i| FAST.replace("\"fast\"", &format!("\"f{i}\""))).collect();
        assert!(Config::parse(&many).unwrap_err().contains("33 objectives, at most 32"));
    }
}
