//! `[[limit]]`: what a forecast watches.

use std::ops::Range;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use tickscope_common::catalog::{self, PROBES};
use tickscope_core::{Direction, Rule, Subject};
use toml::Spanned;

use super::{Config, custom, duration};

/// Each takes 4 KiB, and 5 KiB more with a period.
const MAX: usize = 64;

/// A limit that a series must not cross.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Limit {
    /// What is watched.
    pub series: Spanned<WatchedSeries>,
    /// In the unit of the series: seconds, per second, bytes, descriptors.
    pub value: f64,
    /// Which side of it is bad.
    pub direction: Direction,
    /// How far ahead a breach matters.
    pub horizon: Duration,
    /// How often the series is sampled.
    pub step: Duration,
    /// Period of its season.
    pub period: Option<Duration>,
}

/// A limit as it stands in the file: its unit depends on the series.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "Limit")]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    /// What is watched: `engine/runqueue/p99`, `engine/offcpu.futex/rate`, `engine/memory` or
    /// `engine/descriptors`.
    #[schemars(with = "String")]
    series: Spanned<WatchedSeries>,
    /// Of a latency a duration, of memory a size, of a rate or descriptors a number.
    limit: Amount,
    /// Which side of it is bad.
    #[serde(default)]
    #[schemars(with = "Side")]
    direction: Direction,
    /// How far ahead a breach matters.
    #[serde(default = "horizon", deserialize_with = "time")]
    #[schemars(with = "String")]
    horizon: Duration,
    /// How often the series is sampled: longer where observations are few.
    #[serde(default = "step", deserialize_with = "time")]
    #[schemars(with = "String")]
    step: Duration,
    /// Period of its season: a trading session, a day.
    #[serde(default, deserialize_with = "some_time")]
    #[schemars(with = "Option<String>")]
    period: Option<Duration>,
}

/// A number, or one with its unit.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Amount {
    Number(f64),
    Text(String),
}

/// For the schema only.
#[derive(Default, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "the schema is made of its names")]
enum Side {
    #[default]
    Above,
    Below,
}

/// The name of a series, understood but for its target.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct WatchedSeries {
    /// As it was written.
    pub name: String,
    /// Name of the target.
    pub target: String,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Quantile { probe: usize, label: Option<usize>, q: f64 },
    Rate { probe: usize, label: Option<usize> },
    Memory,
    Descriptors,
}

fn horizon() -> Duration {
    Duration::from_secs(tickscope_core::Limit::HORIZON_S as u64)
}

fn step() -> Duration {
    Duration::from_secs(1)
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    custom::<D, _>(match duration(&text) {
        Ok(time) if time >= Duration::from_secs(1) => Ok(time),
        Ok(_) => Err("write at least \"1s\"".into()),
        Err(error) => Err(error),
    })
}

fn some_time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    time(from).map(Some)
}

/// All of them.
pub(super) fn limits<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Limit>, D::Error> {
    let limits = Vec::<Limit>::deserialize(from)?;
    let which = |limit: &Limit| (limit.series.get_ref().name.clone(), limit.direction);
    let twice = limits
        .iter()
        .enumerate()
        .find(|(index, limit)| limits[..*index].iter().any(|before| which(before) == which(limit)));
    custom::<D, _>(if limits.len() > MAX {
        Err(format!("{} limits, at most {MAX}", limits.len()))
    } else if let Some((_, limit)) = twice {
        Err(format!("two limits of {} in one direction", which(limit).0))
    } else {
        Ok(limits)
    })
}

impl Limit {
    /// The same for the core. `targets` are the configured ones, of which it names one.
    pub fn rule(&self, targets: &[super::Target]) -> Option<Rule> {
        let series = self.series.get_ref();
        let target = targets.iter().position(|target| target.name == series.target)?;
        let subject = match series.what {
            What::Quantile { probe, label, q } => Subject::Quantile { probe, target, label, q },
            What::Rate { probe, label } => Subject::Rate { probe, target, label },
            What::Memory => Subject::Memory { target },
            What::Descriptors => Subject::Descriptors { target },
        };
        let limit = tickscope_core::Limit {
            value: self.value,
            direction: self.direction,
            horizon_s: self.horizon.as_secs_f64(),
            step_s: self.step.as_secs_f64(),
            period_s: self.period.map(|period| period.as_secs_f64()),
        };
        Some(Rule { series: series.name.clone(), subject, limit })
    }

    /// What it refers to that is not there, and where that stands.
    pub(super) fn dangling(&self, config: &Config) -> Option<(String, Range<usize>)> {
        let series = self.series.get_ref();
        if !config.target.iter().any(|target| target.name == series.target) {
            let names: Vec<&str> = config.target.iter().map(|target| target.name.as_str()).collect();
            let what = format!("there is no target \"{}\": it is one of {}", series.target, names.join(", "));
            return Some((what, self.series.span()));
        }
        let (What::Quantile { probe, .. } | What::Rate { probe, .. }) = series.what else { return None };
        let what = || format!("{0} is not measured: set probes.{0}.enabled = true", PROBES[probe].name);
        (!config.probes.enabled(probe)).then(|| (what(), self.series.span()))
    }

    /// Whether processes of its target must be asked for their memory and descriptors.
    pub fn is_of_processes(&self) -> bool {
        matches!(self.series.get_ref().what, What::Memory | What::Descriptors)
    }
}

impl TryFrom<Written> for Limit {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { series, limit, direction, horizon, step, period } = written;
        let value = match (series.get_ref().what, limit) {
            (What::Quantile { .. }, Amount::Text(text)) => duration(&text)?.as_secs_f64(),
            (What::Quantile { .. }, Amount::Number(_)) => {
                return Err("a latency's limit has a unit, \"500us\"".into());
            }
            (What::Memory, Amount::Text(text)) => {
                let size = text.parse::<bytesize::ByteSize>().map_err(|_| "write a size, \"2GiB\"")?;
                size.as_u64() as f64
            }
            (What::Memory, Amount::Number(_)) => return Err("a size has a unit, \"2GiB\"".into()),
            (What::Rate { .. } | What::Descriptors, Amount::Number(number)) => number,
            (What::Rate { .. }, Amount::Text(_)) => {
                return Err("a rate's limit is a number of observations per second".into());
            }
            (What::Descriptors, Amount::Text(_)) => return Err("descriptors are a plain number".into()),
        };
        if !value.is_finite() {
            return Err("the limit is not a number".into());
        }
        if period.is_some_and(|period| period < 120 * step) {
            return Err("a period has at least 120 steps".into());
        }
        Ok(Self { series, value, direction, horizon, step, period })
    }
}

impl TryFrom<String> for WatchedSeries {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let parts: Vec<&str> = name.split('/').collect();
        let (target, what) = match parts[..] {
            [target, "memory"] => (target, What::Memory),
            [target, "descriptors"] => (target, What::Descriptors),
            [target, probe, what] => {
                let (probe, label) = observed(probe)?;
                (
                    target,
                    match what {
                        "rate" => What::Rate { probe, label },
                        _ => What::Quantile { probe, label, q: quantile(what)? },
                    },
                )
            }
            _ => {
                return Err(format!(
                    "\"{name}\" is no series: write \"engine/runqueue/p99\", \"engine/offcpu.futex/rate\", \
                     \"engine/memory\" or \"engine/descriptors\""
                ));
            }
        };
        Ok(Self { target: target.into(), what, name })
    }
}

/// A probe, and its label if one is written behind a dot.
fn observed(text: &str) -> Result<(usize, Option<usize>), String> {
    let (probe, label) = text.split_once('.').map_or((text, None), |(probe, label)| (probe, Some(label)));
    let Some((index, probe)) = catalog::probe(probe) else {
        let names: Vec<&str> = PROBES.iter().map(|probe| probe.name).collect();
        return Err(format!("there is no probe \"{probe}\": it is one of {}", names.join(", ")));
    };
    let Some(label) = label else { return Ok((index, None)) };
    let Some(of) = &probe.label else { return Err(format!("the probe {} has no label", probe.name)) };
    match of.values.iter().position(|value| *value == label) {
        Some(label) => Ok((index, Some(label))),
        None => Err(format!(
            "{} has no {} \"{label}\": it is one of {}",
            probe.name,
            of.name,
            of.values.join(", ")
        )),
    }
}

/// `p99` is 0.99, `p999` and `p99.9` are 0.999.
fn quantile(text: &str) -> Result<f64, String> {
    let digits = text.strip_prefix('p').map(|digits| digits.replacen('.', "", 1));
    let good =
        |digits: &String| (2..=5).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let q = digits.filter(good).and_then(|digits| format!("0.{digits}").parse::<f64>().ok());
    q.filter(|q| *q > 0.0)
        .ok_or_else(|| format!("\"{text}\" is not rate, nor a quantile as p50, p99 or p99.9"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Vec<Rule> {
        let config = Config::parse(text).unwrap();
        config.limit.iter().map(|limit| limit.rule(&config.target).unwrap()).collect()
    }

    #[test]
    fn series_and_units() {
        let rules = rules(
            "[[limit]]\nseries = \"engine/runqueue/p99\"\nlimit = \"500us\"\n\
             [[limit]]\nseries = \"engine/offcpu.futex/rate\"\nlimit = 1000\ndirection = \"below\"\nhorizon = \"10m\"\nstep = \"10s\"\n\
             [[limit]]\nseries = \"engine/offcpu/p99.9\"\nlimit = \"1ms\"\nperiod = \"1day\"\n\
             [[limit]]\nseries = \"engine/memory\"\nlimit = \"2GiB\"\n\
             [[limit]]\nseries = \"engine/descriptors\"\nlimit = 900\n",
        );
        let futex = PROBES[2].label.as_ref().unwrap().values.iter().position(|value| *value == "futex");
        let subjects: Vec<Subject> = rules.iter().map(|rule| rule.subject).collect();
        assert_eq!(
            subjects,
            [
                Subject::Quantile { probe: 0, target: 0, label: None, q: 0.99 },
                Subject::Rate { probe: 2, target: 0, label: futex },
                Subject::Quantile { probe: 2, target: 0, label: None, q: 0.999 },
                Subject::Memory { target: 0 },
                Subject::Descriptors { target: 0 },
            ]
        );
        let values: Vec<f64> = rules.iter().map(|rule| rule.limit.value).collect();
        assert_eq!(values, [500e-6, 1000.0, 1e-3, 2_147_483_648.0, 900.0]);
        let tickscope_core::Limit { direction, horizon_s, step_s, period_s, .. } = rules[1].limit;
        assert_eq!((direction, horizon_s, step_s, period_s), (Direction::Below, 600.0, 10.0, None));
        assert_eq!((rules[0].limit.horizon_s, rules[2].limit.period_s), (1800.0, Some(86_400.0)));
    }

    #[test]
    fn the_example_of_the_manual_is_valid() {
        let example = crate::config::DEFAULT.split("# [[limit]]").nth(1).unwrap();
        let lines =
            example.lines().map_while(|line| line.strip_prefix("# ").or(line.is_empty().then_some("")));
        let text: Vec<&str> = lines.take_while(|line| !line.starts_with("What")).collect();
        assert_eq!(rules(&format!("[[limit]]{}", text.join("\n"))).len(), 1);
    }

    #[test]
    fn errors_say_where_and_what() {
        insta::assert_snapshot!(
            Config::parse("interval = \"1s\"\n[[limit]]\nseries = \"ngine/memory\"\nlimit = \"1GiB\"\n").unwrap_err(),
            @r#"
        TOML parse error at line 3, column 10
          |
        3 | series = "ngine/memory"
          |          ^^^^^^^^^^^^^^
        there is no target "ngine": it is one of engine
        "#
        );
        for (text, what) in [
            ("series = \"engine\"\nlimit = 1", "is no series"),
            ("series = \"engine/runqueu/p99\"\nlimit = \"1ms\"", "there is no probe \"runqueu\""),
            ("series = \"engine/runqueue.x/p99\"\nlimit = \"1ms\"", "has no label"),
            ("series = \"engine/syscall/p99\"\nlimit = \"1ms\"", "syscall is not measured"),
            ("series = \"engine/offcpu.x/p99\"\nlimit = \"1ms\"", "offcpu has no cause \"x\""),
            ("series = \"engine/runqueue/q99\"\nlimit = \"1ms\"", "not rate, nor a quantile"),
            ("series = \"engine/runqueue/p99\"\nlimit = 1", "has a unit"),
            ("series = \"engine/runqueue/rate\"\nlimit = \"1\"", "observations per second"),
            ("series = \"engine/memory\"\nlimit = \"lots\"", "write a size"),
            ("series = \"engine/memory\"\nlimit = \"1GiB\"\nhorizon = \"soon\"", "write a duration"),
            ("series = \"engine/memory\"\nlimit = \"1GiB\"\nstep = \"10ms\"", "at least \"1s\""),
            ("series = \"engine/memory\"\nlimit = \"1GiB\"\nperiod = \"60s\"", "at least 120 steps"),
            ("series = \"engine/memory\"\nlimit = \"1GiB\"\ndirection = \"up\"", "above"),
            ("series = \"engine/memory\"", "missing field `limit`"),
            ("series = \"engine/memory\"\nlimit = \"1GiB\"\nwhy = 1", "unknown field `why`"),
        ] {
            let error = Config::parse(&format!("[[limit]]\n{text}\n")).expect_err(text);
            assert!(error.contains(what) && error.contains("line "), "{error}");
        }
        let many = "[[limit]]\nseries = \"engine/memory\"\nlimit = \"1GiB\"\n".repeat(2);
        assert!(Config::parse(&many).unwrap_err().contains("two limits"));
    }
}
