//! The configuration: TOML, works when empty, refuses what it does not know.
//!
//! Parsing touches nothing but the text. Every check is part of parsing, so that every error has a
//! line and a column. `daemon.toml` is the manual and says the defaults; a test holds it to that.

mod gate;
mod limit;
mod slo;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use tickscope_common::catalog::{self, PROBES};
use tickscope_common::layout::MAX_TARGETS;

pub use gate::{Gate, GateKpi};
pub use limit::{Limit, WatchedSeries};
pub use slo::{Series, Slo, percent};

/// The commented defaults, printed by `config default`.
pub const DEFAULT: &str = include_str!("../daemon.toml");
/// A configuration larger than this is refused.
const MAX_BYTES: u64 = 1 << 20;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: String,
        /// What went wrong.
        source: io::Error,
    },
    /// Nobody writes that much.
    #[error("the configuration {path} has more than {MAX_BYTES} bytes")]
    TooLarge {
        /// The file.
        path: String,
    },
    /// It does not say what it should.
    #[error("{path}: {text}")]
    Invalid {
        /// The file.
        path: String,
        /// Line, column, the line itself and what is wrong with it.
        text: String,
    },
}

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How often the kernel is read, 100ms to 60s.
    #[serde(deserialize_with = "interval")]
    #[schemars(with = "String")]
    pub interval: Duration,
    /// Where it listens.
    pub listen: Listen,
    /// What measuring may cost.
    pub budget: Budget,
    /// What is observed; at most 16.
    #[serde(deserialize_with = "targets")]
    pub target: Vec<Target>,
    /// What is measured.
    pub probes: Probes,
    /// What is promised; at most 32.
    #[serde(deserialize_with = "slo::slos")]
    pub slo: Vec<Slo>,
    /// Which targets are compared.
    pub gate: Vec<Gate>,
    /// What is foreseen: limits that series must not cross; at most 64.
    #[serde(deserialize_with = "limit::limits")]
    #[schemars(with = "Vec<limit::Written>")]
    pub limit: Vec<Limit>,
    /// Where what was learned is kept over a restart; nowhere without it.
    #[serde(deserialize_with = "directory")]
    pub state_directory: Option<PathBuf>,
}

/// Where the daemon listens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// Address of metrics and API.
    #[schemars(with = "String")]
    pub http: SocketAddr,
    /// Whether `POST /-/reload` reloads, as SIGHUP always does.
    pub reload_endpoint: bool,
    /// Socket for calls that change something; used when there are gates.
    #[serde(deserialize_with = "control")]
    pub control: PathBuf,
}

/// What measuring may cost.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// Programs and daemon together, share of one CPU; written as a percentage.
    #[serde(deserialize_with = "percentage")]
    #[schemars(with = "String")]
    pub cpu: f64,
    /// Kernel memory of the maps, bytes; written with a unit.
    #[serde(rename = "memory", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub memory_bytes: u64,
}

/// A set of processes that is observed as one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Label in every metric.
    #[serde(deserialize_with = "name")]
    pub name: String,
    /// Which processes.
    #[serde(rename = "match", deserialize_with = "matching")]
    pub matching: Match,
}

/// Which processes: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    /// Name of the process' main thread, at most 15 bytes.
    #[serde(deserialize_with = "comm")]
    pub comm: Option<String>,
    /// Path of the executable.
    #[serde(deserialize_with = "exe")]
    pub exe: Option<PathBuf>,
    /// One process.
    #[serde(deserialize_with = "pid")]
    #[schemars(with = "Option<u32>", range(min = 1))]
    pub pid: Option<u32>,
    /// Control group, and everything below it; a path from the root of any hierarchy, v1 or v2.
    #[serde(deserialize_with = "cgroup")]
    pub cgroup: Option<String>,
    /// systemd unit.
    #[serde(deserialize_with = "unit")]
    pub unit: Option<String>,
}

/// What is measured, by name of the probe; those that are not named are as the catalog says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Probes(BTreeMap<ProbeName, Probe>);

/// The name of a probe, as its index in the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
struct ProbeName(usize);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Probe {
    enabled: Option<bool>,
    #[serde(deserialize_with = "outlier_above")]
    #[schemars(with = "Option<String>")]
    outlier_above: OutlierAbove,
}

/// From which length on an observation is sent as an outlier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutlierAbove {
    /// About one a second, never more than one in a thousand.
    #[default]
    Auto,
    /// None.
    Never,
    /// Longer than this.
    Above(Duration),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            listen: Listen::default(),
            budget: Budget::default(),
            target: vec![Target {
                name: "engine".into(),
                matching: Match { comm: Some("paper-engine".into()), ..Match::default() },
            }],
            probes: Probes::default(),
            slo: Vec::new(),
            gate: Vec::new(),
            limit: Vec::new(),
            state_directory: None,
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            http: SocketAddr::from(([127, 0, 0, 1], 9464)),
            reload_endpoint: false,
            control: PathBuf::from("/run/tickscope/control.sock"),
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self { cpu: 0.01, memory_bytes: 32 << 20 }
    }
}

impl Probes {
    /// Whether probe `index` of the catalog is measured.
    pub fn enabled(&self, index: usize) -> bool {
        self.of(index).enabled.unwrap_or(PROBES[index].default)
    }

    /// From which length on its observations are outliers.
    pub fn outlier_above(&self, index: usize) -> OutlierAbove {
        self.of(index).outlier_above
    }

    /// Turns all probes on, the optional ones too.
    pub fn enable_all(&mut self) {
        for index in 0..PROBES.len() {
            self.0.entry(ProbeName(index)).or_default().enabled = Some(true);
        }
    }

    fn of(&self, index: usize) -> Probe {
        self.0.get(&ProbeName(index)).copied().unwrap_or_default()
    }
}

impl Config {
    /// Reads a file; without one, the defaults.
    ///
    /// # Errors
    /// When it cannot be read, or says what is not valid.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let name = || path.display().to_string();
        let read = |source| ConfigError::Read { path: name(), source };
        let mut text = Vec::new();
        // The length of a pipe or a device is not known before it is read.
        let file = File::open(path).map_err(read)?;
        file.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(read)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(ConfigError::TooLarge { path: name() });
        }
        let invalid = |text| ConfigError::Invalid { path: name(), text };
        let text = String::from_utf8(text).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let line = 1 + error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
            invalid(format!("line {line} is not UTF-8"))
        })?;
        Self::parse(&text).map_err(invalid)
    }

    /// Parses a configuration.
    ///
    /// # Errors
    /// The line, the column and what is wrong, for a person.
    pub fn parse(text: &str) -> Result<Self, String> {
        // The error quotes the line; a terminal must not obey what stands there.
        let plain = |c: char| if c.is_control() && c != '\n' { '\u{fffd}' } else { c };
        let parsed = toml::from_str::<Self>(text).map_err(|error| error.to_string());
        let checked = parsed.and_then(|config| config.references(text).map(|()| config));
        checked.map_err(|error| error.trim_end().chars().map(plain).collect())
    }

    /// Whether every name that refers to something else in the configuration is there.
    fn references(&self, text: &str) -> Result<(), String> {
        let of_slo = self.slo.iter().find_map(|slo| slo.dangling(self));
        let of_limit = || self.limit.iter().find_map(|limit| limit.dangling(self));
        let of_gate = || gate::check(self).err();
        let Some((what, place)) = of_slo.or_else(of_limit).or_else(of_gate) else { return Ok(()) };
        // As the parser writes its own errors.
        let before = &text[..place.start];
        let number = before.matches('\n').count() + 1;
        let begin = before.rfind('\n').map_or(0, |newline| newline + 1);
        let column = text[begin..place.start].chars().count() + 1;
        let line = text[begin..].lines().next().unwrap_or_default();
        let margin = " ".repeat(number.to_string().len());
        let marks = "^".repeat(text[place].chars().count().max(1));
        let indent = " ".repeat(column - 1);
        Err(format!(
            "TOML parse error at line {number}, column {column}\n{margin} |\n{number} | {line}\n{margin} | {indent}{marks}\n{what}"
        ))
    }

    /// What is promised, for the core.
    pub fn objectives(&self) -> Vec<tickscope_core::Objective> {
        self.slo.iter().map(Slo::objective).collect()
    }

    /// What is foreseen, for the core.
    pub fn rules(&self) -> Vec<tickscope_core::Rule> {
        self.limit.iter().filter_map(|limit| limit.rule(&self.target)).collect()
    }

    /// JSON Schema of the configuration, for editors.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}

fn custom<'de, D: Deserializer<'de>, T>(result: Result<T, String>) -> Result<T, D::Error> {
    result.map_err(serde::de::Error::custom)
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}: write a duration as \"1s\", \"250ms\" or \"20us\""))
}

fn interval<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    custom::<D, _>(duration(&text).and_then(|interval| {
        let range = Duration::from_millis(100)..=Duration::from_secs(60);
        if range.contains(&interval) {
            Ok(interval)
        } else {
            Err("the interval must be from 100ms to 60s".into())
        }
    }))
}

fn percentage<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let text = String::deserialize(from)?;
    let number = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    custom::<D, _>(match number {
        Some(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent / 100.0),
        _ => Err("write a share of one CPU as a percentage above 0, \"1%\"".into()),
    })
}

fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    let size =
        text.parse::<bytesize::ByteSize>().ok().filter(|_| !text.ends_with(|c: char| c.is_ascii_digit()));
    custom::<D, _>(match size.map(|size| size.as_u64()) {
        Some(size) if size > 0 => Ok(size),
        _ => Err("write a size above 0 with its unit, \"32MiB\"".into()),
    })
}

fn name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let name = String::deserialize(from)?;
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    custom::<D, _>(if (1..=63).contains(&name.len()) && name.chars().all(good) {
        Ok(name)
    } else {
        Err("a name is 1 to 63 of a-z, 0-9, _ and -".into())
    })
}

fn pid<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    let pid = u32::deserialize(from)?;
    custom::<D, _>(if pid > 0 { Ok(Some(pid)) } else { Err("no process has the pid 0".into()) })
}

fn unit<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let unit = String::deserialize(from)?;
    let good =
        unit.contains('.') && !unit.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control());
    custom::<D, _>(if good {
        Ok(Some(unit))
    } else {
        Err("write the unit with its suffix, \"engine.service\"".into())
    })
}

fn comm<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let comm = String::deserialize(from)?;
    custom::<D, _>(match comm.len() {
        _ if comm.contains(char::is_control) => Err("comm has a control character".into()),
        0 => Err("comm is empty".into()),
        1..=15 => Ok(Some(comm)),
        _ => {
            let cut: String = comm
                .chars()
                .scan(0, |len, c| {
                    *len += c.len_utf8();
                    (*len <= 15).then_some(c)
                })
                .collect();
            Err(format!("the kernel keeps 15 bytes of a name: write \"{cut}\""))
        }
    })
}

fn absolute(path: &str, what: &str) -> Result<(), String> {
    if path.starts_with('/') { Ok(()) } else { Err(format!("{what} is a path that begins with /")) }
}

fn exe<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    let path = String::deserialize(from)?;
    custom::<D, _>(absolute(&path, "exe").map(|()| Some(PathBuf::from(path))))
}

fn control<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    let path = String::deserialize(from)?;
    custom::<D, _>(absolute(&path, "control").map(|()| PathBuf::from(path)))
}

fn cgroup<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let path = String::deserialize(from)?;
    custom::<D, _>(absolute(&path, "cgroup").map(|()| Some(path)))
}

fn matching<'de, D: Deserializer<'de>>(from: D) -> Result<Match, D::Error> {
    let rule = Match::deserialize(from)?;
    custom::<D, _>(if rule == Match::default() {
        Err("say which processes: comm, exe, pid, cgroup or unit".into())
    } else {
        Ok(rule)
    })
}

fn targets<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Target>, D::Error> {
    let targets = Vec::<Target>::deserialize(from)?;
    let twice = targets
        .iter()
        .enumerate()
        .find(|(index, target)| targets[..*index].iter().any(|before| before.name == target.name));
    custom::<D, _>(if targets.is_empty() {
        Err("no target: say what is observed, or leave `target` out".into())
    } else if targets.len() > MAX_TARGETS {
        Err(format!("{} targets, at most {MAX_TARGETS}", targets.len()))
    } else if let Some((_, target)) = twice {
        Err(format!("two targets are called \"{}\"", target.name))
    } else {
        Ok(targets)
    })
}

fn directory<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    let path = String::deserialize(from)?;
    custom::<D, _>(absolute(&path, "state_directory").map(|()| Some(PathBuf::from(path))))
}

fn outlier_above<'de, D: Deserializer<'de>>(from: D) -> Result<OutlierAbove, D::Error> {
    let text = String::deserialize(from)?;
    custom::<D, _>(match text.as_str() {
        "auto" => Ok(OutlierAbove::Auto),
        "never" => Ok(OutlierAbove::Never),
        _ => duration(&text)
            .map(OutlierAbove::Above)
            .map_err(|error| format!("{error}, or \"auto\" or \"never\"")),
    })
}

impl TryFrom<String> for ProbeName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if let Some((index, _)) = catalog::probe(&name) {
            return Ok(Self(index));
        }
        let names: Vec<&str> = PROBES.iter().map(|probe| probe.name).collect();
        let near = names.iter().max_by(|a, b| strsim::jaro(a, &name).total_cmp(&strsim::jaro(b, &name)));
        let near = near.filter(|near| strsim::jaro(near, &name) > 0.8);
        let meant = near.map(|near| format!(" (did you mean \"{near}\"?)")).unwrap_or_default();
        Err(format!("there is no probe \"{name}\"{meant}: it is one of {}", names.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::parse(text).expect_err(text)
    }

    #[test]
    fn the_empty_file_is_the_default_and_so_is_the_manual() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
        let manual = Config::parse(DEFAULT).unwrap();
        let mut default = Config::default();
        // The manual names every probe, with what the catalog says.
        for (index, probe) in PROBES.iter().enumerate() {
            default.probes.0.insert(
                ProbeName(index),
                Probe { enabled: Some(probe.default), outlier_above: OutlierAbove::Auto },
            );
        }
        assert_eq!(manual, default);
    }

    #[test]
    fn every_key_of_the_manual_is_explained() {
        let lines: Vec<&str> = DEFAULT.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let key = !line.is_empty() && !line.starts_with('#');
            if key {
                let explained = line.contains(" # ") || lines[number.saturating_sub(1)].starts_with('#');
                assert!(explained, "line {}: {line}", number + 1);
            }
        }
    }

    #[test]
    fn errors_say_where_and_what() {
        insta::assert_snapshot!(error("[[target]]\nname = \"Engine\"\n"), @r#"
        TOML parse error at line 2, column 8
          |
        2 | name = "Engine"
          |        ^^^^^^^^
        a name is 1 to 63 of a-z, 0-9, _ and -
        "#);
        insta::assert_snapshot!(error("intervall = \"1s\"\n"), @"
        TOML parse error at line 1, column 1
          |
        1 | intervall = \"1s\"
          | ^^^^^^^^^
        unknown field `intervall`, expected one of `interval`, `listen`, `budget`, `target`, `probes`, `slo`, `gate`, `limit`, `state_directory`
        ");
        insta::assert_snapshot!(error("[probes.runqueu]\nenabled = true\n"), @r#"
        TOML parse error at line 1, column 9
          |
        1 | [probes.runqueu]
          |         ^^^^^^^
        there is no probe "runqueu" (did you mean "runqueue"?): it is one of runqueue, preempted, offcpu, interrupt, syscall, page_fault
        "#);
        for (text, what) in [
            ("interval = \"10ms\"", "the interval must be from 100ms to 60s"),
            ("interval = \"soon\"", "write a duration as"),
            ("interval = 1", "expected a string"),
            ("[budget]\ncpu = \"0%\"", "percentage above 0"),
            ("[budget]\nmemory = \"much\"", "with its unit"),
            ("[budget]\nmemory = \"33554432\"", "with its unit"),
            ("[budget]\nmemory = \"0MiB\"", "above 0"),
            ("target = []", "no target"),
            ("[[target]]\nname = \"a\"\nmatch = { pid = 0 }", "no process"),
            ("[[target]]\nname = \"a\"\nmatch = { unit = \"engine\" }", "with its suffix"),
            ("[[target]]\nname = \"a\"\nmatch = { comm = \"a\\nb\" }", "control character"),
            ("[[target]]\nname = \"a\"\nmatch = {}", "say which processes"),
            (
                "[[target]]\nname = \"a\"\nmatch = { comm = \"a-very-long-process-name\" }",
                "write \"a-very-long-pro\"",
            ),
            ("[[target]]\nname = \"a\"\nmatch = { exe = \"engine\" }", "begins with /"),
            (
                "[[target]]\nname = \"a\"\nmatch = { comm = \"x\" }\n[[target]]\nname = \"a\"\nmatch = { comm = \"y\" }",
                "two targets",
            ),
            ("[probes.runqueue]\noutlier_above = \"now and then\"", "\"auto\" or \"never\""),
            ("[listen]\nhttp = \"nowhere\"", "invalid socket address"),
        ] {
            let error = error(text);
            assert!(error.contains(what), "{error}");
            assert!(error.contains("line "), "{error}");
        }
    }

    #[test]
    fn more_targets_than_the_kernel_side_has_room_for() {
        let text: String =
            (1..18).map(|i| format!("[[target]]\nname = \"t{i}\"\nmatch = {{ pid = {i} }}\n")).collect();
        assert!(error(&text).contains("17 targets, at most 16"));
    }

    #[test]
    fn the_schema_names_every_key() {
        let schema = Config::schema().to_string();
        for key in [
            "interval",
            "listen",
            "budget",
            "target",
            "probes",
            "match",
            "reload_endpoint",
            "slo",
            "gate",
            "kpi",
            "limit",
            "horizon",
        ] {
            assert!(schema.contains(&format!("\"{key}\"")), "{key}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,200}") {
            drop(Config::parse(&text));
        }
    }
}
