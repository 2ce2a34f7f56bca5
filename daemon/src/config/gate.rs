//! `[[gate]]`: which two targets are compared, in what, and how strictly.

use std::ops::Range;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use tickscope_common::catalog::PROBES;
use tickscope_core::gate::{Policy, QUANTILES, Spec, Watched};
use tickscope_core::percentile;
use toml::Spanned;

use super::{Config, ProbeName, custom, duration, name, percentage};

/// Gates at most: each keeps five minutes of the baseline.
const GATES_MAX: usize = 16;

/// A comparison of two targets.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// Name in the API and in metrics.
    #[serde(deserialize_with = "name")]
    pub name: String,
    /// Target that is the reference.
    #[schemars(with = "String")]
    pub baseline: Spanned<String>,
    /// Target that is tested.
    #[schemars(with = "String")]
    pub canary: Spanned<String>,
    /// How often both are compared, 100ms to 60s.
    #[serde(default = "block", deserialize_with = "block_length")]
    #[schemars(with = "String")]
    pub block: Duration,
    /// No pass before so long with both.
    #[serde(default = "dwell", deserialize_with = "some_time")]
    #[schemars(with = "String")]
    pub dwell: Duration,
    /// Probability that a harmless canary is ever rolled back in a whole rollout; a percentage.
    #[serde(default = "alpha", deserialize_with = "percentage")]
    #[schemars(with = "String")]
    pub alpha: f64,
    /// Steps of the rollout that share alpha, 1 to 100.
    #[serde(default = "steps", deserialize_with = "some_steps")]
    #[schemars(range(min = 1, max = 100))]
    pub steps: u32,
    /// Share of the traffic that the canary should have; a percentage. Far from it, there is no pass.
    #[serde(default, deserialize_with = "share")]
    #[schemars(with = "Option<String>")]
    pub share: Option<f64>,
    /// What is compared; at least one.
    #[serde(deserialize_with = "kpis")]
    pub kpi: Vec<GateKpi>,
}

/// A latency that is compared.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GateKpi {
    /// Name of the probe.
    #[schemars(with = "String")]
    probe: Spanned<ProbeName>,
    /// One value of the probe's label; without it, all together.
    #[schemars(with = "Option<String>")]
    label: Option<Spanned<String>>,
    /// Of 0.5, 0.99, 0.999 and 0.9999; without it, all.
    #[serde(default = "all_quantiles", deserialize_with = "quantiles")]
    quantiles: Vec<f64>,
    /// By how much each quantile may be higher; a percentage. Without it, 3, 5, 10 and 25 %.
    #[serde(default, deserialize_with = "share")]
    #[schemars(with = "Option<String>")]
    margin: Option<f64>,
}

/// Gates that make sense together with the rest of the configuration.
///
/// # Errors
/// Where it does not, and what is wrong.
pub(super) fn check(config: &Config) -> Result<(), (String, Range<usize>)> {
    if let Some(gate) = config.gate.get(GATES_MAX) {
        return Err((format!("{} gates, at most {GATES_MAX}", config.gate.len()), gate.baseline.span()));
    }
    for (index, gate) in config.gate.iter().enumerate() {
        if config.gate[..index].iter().any(|before| before.name == gate.name) {
            return Err((format!("two gates are called \"{}\"", gate.name), gate.baseline.span()));
        }
        for target in [&gate.baseline, &gate.canary] {
            let names: Vec<&str> = config.target.iter().map(|target| target.name.as_str()).collect();
            if !names.contains(&target.as_ref().as_str()) {
                let text =
                    format!("there is no target \"{}\": it is one of {}", target.as_ref(), names.join(", "));
                return Err((text, target.span()));
            }
        }
        if gate.baseline.as_ref() == gate.canary.as_ref() {
            return Err(("baseline and canary are the same target".into(), gate.canary.span()));
        }
        for kpi in &gate.kpi {
            kpi.check(config)?;
        }
    }
    Ok(())
}

impl GateKpi {
    fn check(&self, config: &Config) -> Result<(), (String, Range<usize>)> {
        let ProbeName(index) = *self.probe.as_ref();
        let probe = &PROBES[index];
        if !config.probes.enabled(index) {
            let text = format!("the probe is off: set enabled = true in [probes.{}]", probe.name);
            return Err((text, self.probe.span()));
        }
        match (&self.label, &probe.label) {
            (Some(wanted), None) => Err((format!("{} has no label", probe.name), wanted.span())),
            (Some(wanted), Some(label)) if !label.values.contains(&wanted.as_ref().as_str()) => {
                Err((format!("{} is one of {}", label.name, label.values.join(", ")), wanted.span()))
            }
            _ => Ok(()),
        }
    }

    fn watched(&self) -> Watched {
        let ProbeName(probe) = *self.probe.as_ref();
        let entry = &PROBES[probe];
        let label = self.label.as_ref().map(Spanned::as_ref);
        let place = |value: &String| entry.label.as_ref()?.values.iter().position(|of| of == value);
        let of =
            |q: &f64| QUANTILES.iter().position(|of| (of - q).abs() < 1e-9).map(|index| (index, self.margin));
        Watched {
            name: label.map_or_else(|| entry.name.to_owned(), |label| format!("{}/{label}", entry.name)),
            probe,
            label: label.and_then(place),
            quantiles: self.quantiles.iter().filter_map(of).collect(),
        }
    }
}

impl Config {
    /// The gates as the core wants them.
    pub fn gates(&self) -> Vec<Spec> {
        let target =
            |name: &Spanned<String>| self.target.iter().position(|target| target.name == *name.as_ref());
        let spec = |gate: &Gate| {
            Some(Spec {
                name: gate.name.clone(),
                baseline: target(&gate.baseline)?,
                canary: target(&gate.canary)?,
                kpis: gate.kpi.iter().map(GateKpi::watched).collect(),
                policy: Policy {
                    alpha: gate.alpha,
                    steps: gate.steps,
                    dwell_seconds: gate.dwell.as_secs_f64(),
                    share: gate.share,
                },
                seconds: gate.block.as_secs_f64(),
            })
        };
        self.gate.iter().filter_map(spec).collect()
    }
}

fn block() -> Duration {
    Duration::from_millis(200)
}

fn dwell() -> Duration {
    Duration::from_secs(60)
}

fn alpha() -> f64 {
    Policy::default().alpha
}

fn steps() -> u32 {
    Policy::default().steps
}

fn all_quantiles() -> Vec<f64> {
    QUANTILES.to_vec()
}

fn block_length<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    custom::<D, _>(duration(&text).and_then(|block| {
        let range = Duration::from_millis(100)..=Duration::from_secs(60);
        if range.contains(&block) { Ok(block) } else { Err("the block must be from 100ms to 60s".into()) }
    }))
}

fn some_time<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    custom::<D, _>(duration(&text))
}

fn some_steps<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let steps = u32::deserialize(from)?;
    custom::<D, _>(if (1..=100).contains(&steps) { Ok(steps) } else { Err("1 to 100 steps".into()) })
}

fn share<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    percentage(from).map(Some)
}

fn quantiles<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f64>, D::Error> {
    let quantiles = Vec::<f64>::deserialize(from)?;
    let known = |q: &f64| QUANTILES.iter().any(|of| (of - q).abs() < 1e-9);
    let twice = (1..quantiles.len()).any(|i| quantiles[..i].contains(&quantiles[i]));
    custom::<D, _>(if quantiles.is_empty() || twice || !quantiles.iter().all(known) {
        let all = QUANTILES.map(|q| format!("{q} ({})", percentile(q))).join(", ");
        Err(format!("quantiles are some of {all}, each once"))
    } else {
        Ok(quantiles)
    })
}

fn kpis<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<GateKpi>, D::Error> {
    let kpis = Vec::<GateKpi>::deserialize(from)?;
    custom::<D, _>(if kpis.is_empty() {
        Err("a gate without a KPI decides nothing".into())
    } else {
        Ok(kpis)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: &str = "[[target]]\nname = \"blue\"\nmatch = { comm = \"blue\" }\n\
                           [[target]]\nname = \"green\"\nmatch = { comm = \"green\" }\n";

    fn parsed(gate: &str) -> Result<Config, String> {
        Config::parse(&format!("{TARGETS}{gate}"))
    }

    #[test]
    fn a_short_gate_has_the_defaults() {
        let gate = "[[gate]]\nname = \"engine\"\nbaseline = \"blue\"\ncanary = \"green\"\n\
                    [[gate.kpi]]\nprobe = \"runqueue\"\n[[gate.kpi]]\nprobe = \"offcpu\"\nlabel = \"futex\"\n\
                    quantiles = [0.99]\nmargin = \"20%\"\n";
        let specs = parsed(gate).unwrap().gates();
        let [spec] = specs.as_slice() else { panic!("{specs:?}") };
        assert_eq!((spec.baseline, spec.canary), (0, 1));
        assert!((spec.seconds - 0.2).abs() < 1e-12);
        assert_eq!(spec.policy, Policy { dwell_seconds: 60.0, ..Policy::default() });
        assert_eq!(spec.kpis[0].quantiles, [(0, None), (1, None), (2, None), (3, None)]);
        let futex = &spec.kpis[1];
        assert_eq!(
            (futex.name.as_str(), futex.quantiles.as_slice()),
            ("offcpu/futex", &[(1, Some(0.2))][..])
        );
        assert_eq!(PROBES[futex.probe].label.as_ref().unwrap().values[futex.label.unwrap()], "futex");
    }

    #[test]
    fn the_example_of_the_manual_is_valid() {
        let example = crate::config::DEFAULT.lines().skip_while(|line| *line != "# [[gate]]");
        let example = example.take_while(|line| line.starts_with('#'));
        let text: String = example.map(|line| format!("{}\n", line.trim_start_matches(['#', ' ']))).collect();
        let specs = parsed(&text).unwrap().gates();
        assert_eq!((specs.len(), specs[0].policy.share), (1, Some(0.1)));
        assert_eq!(specs[0].kpis[0].name, "offcpu/futex");
    }

    #[test]
    fn errors_say_where_and_what() {
        let error = parsed(
            "[[gate]]\nname = \"engine\"\nbaseline = \"bleu\"\ncanary = \"green\"\n[[gate.kpi]]\nprobe = \"runqueue\"\n",
        )
        .unwrap_err();
        insta::assert_snapshot!(error, @r#"
        TOML parse error at line 9, column 12
          |
        9 | baseline = "bleu"
          |            ^^^^^^
        there is no target "bleu": it is one of blue, green
        "#);
        let gate = |text: &str| {
            let known = "baseline = \"blue\"\ncanary = \"green\"\nname = \"engine\"\n";
            let kpi = if text.contains("kpi") { "" } else { "[[gate.kpi]]\nprobe = \"runqueue\"\n" };
            format!("[[gate]]\n{known}{text}\n{kpi}")
        };
        for (text, what) in [
            (gate("block = \"1ms\""), "from 100ms to 60s"),
            (gate("dwell = \"now\""), "write a duration"),
            (gate("alpha = 0.01"), "expected a string"),
            (gate("steps = 0"), "1 to 100 steps"),
            (gate("share = \"0%\""), "percentage above 0"),
            (gate("kpi = []"), "without a KPI"),
            (gate("[[gate.kpi]]\nprobe = \"runqueu\""), "did you mean \"runqueue\"?"),
            (gate("[[gate.kpi]]\nprobe = \"syscall\""), "set enabled = true in [probes.syscall]"),
            (gate("[[gate.kpi]]\nprobe = \"runqueue\"\nlabel = \"x\""), "runqueue has no label"),
            (gate("[[gate.kpi]]\nprobe = \"offcpu\"\nlabel = \"x\""), "cause is one of"),
            (gate("[[gate.kpi]]\nprobe = \"runqueue\"\nquantiles = [0.95]"), "0.5 (p50), 0.99 (p99)"),
            (gate("[[gate.kpi]]\nprobe = \"runqueue\"\nquantiles = [0.5, 0.5]"), "each once"),
            (gate("") + &gate(""), "two gates are called \"engine\""),
            (gate("").replace("\"green\"", "\"blue\""), "the same target"),
            (gate("").replace("canary = \"green\"\n", ""), "missing field `canary`"),
        ] {
            let error = parsed(&text).expect_err(&text);
            assert!(error.contains(what) && error.contains("line "), "{text}: {error}");
        }
    }
}
