//! `tickscope gate replay`: judges a recorded canary, from JSON Lines.
//!
//! One object per arm, KPI and interval, in time order; counts are the interval's own:
//!
//! ```json
//! {"t":12.0,"arm":"baseline","kpi":"latency","unit":"s","buckets":[[0.00002,70],[0.00004,9]]}
//! {"t":12.0,"arm":"canary","kpi":"errors","total":10000,"bad":3}
//! {"t":12.0,"arm":"canary","kpi":"cpu","value":0.42,"instance":"engine-3"}
//! ```
//!
//! What stands before the canary's first line is history. Lines come out as KPIs change their
//! state; the last one has the verdict.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use tickscope_core::gate::{Arm, Buckets, Gate, Kind, Kpi, Policy, Reading, Refused, Report, Value, Verdict};

use super::PolicyFlags;
use crate::exit::Exit;

/// A longer line is refused.
const LINE_BYTES: u64 = 16 << 20;
/// So many lines are looked at for the KPIs and the lengths of their intervals before any is judged.
const AHEAD: usize = 100_000;
/// Intervals are not taken to be shorter than this, seconds: what is shorter is added up.
const SECONDS_MIN: f64 = 0.2;

/// Flags of `tickscope gate replay`.
#[derive(Args)]
pub struct Flags {
    /// The recording; - for standard input
    pub file: PathBuf,
    #[expect(missing_docs, reason = "a doc comment would become a heading of the help")]
    #[command(flatten)]
    pub policy: PolicyFlags,
}

/// Why a recording cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// What went wrong.
        source: io::Error,
    },
    /// A line is not what it should be.
    #[error("{path}, line {line}: {what}")]
    Line {
        /// The file.
        path: String,
        /// Which, from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The result cannot be written.
    #[error("cannot write")]
    Write(#[source] io::Error),
}

impl ReplayError {
    /// The exit code that it means.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Self::Write(_) => Exit::Failed,
            Self::Read { .. } | Self::Line { .. } => Exit::Usage,
        }
    }
}

/// Judges a recording and writes what comes of it.
///
/// # Errors
/// When it cannot be read, or a line is wrong.
pub fn replay(flags: &Flags, out: &mut impl Write) -> Result<Exit, ReplayError> {
    let path = flags.file.display().to_string();
    let read = |source| ReplayError::Read { path: path.clone(), source };
    let input: Box<dyn Read> = if flags.file == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(&flags.file).map_err(read)?)
    };
    let verdict = judge(BufReader::new(input), &path, flags.policy.policy(), out)?;
    Ok(super::exit(verdict))
}

/// One line of a recording.
#[derive(Deserialize)]
struct Line {
    t: f64,
    #[serde(deserialize_with = "arm")]
    arm: Arm,
    kpi: String,
    #[serde(default)]
    instance: String,
    #[serde(default, deserialize_with = "unit")]
    unit: Unit,
    buckets: Option<Vec<(Bound, Count)>>,
    total: Option<Count>,
    bad: Option<Count>,
    value: Option<f64>,
}

/// Seconds of one unit.
struct Unit(f64);

impl Default for Unit {
    fn default() -> Self {
        Self(1.0)
    }
}

/// An upper bound: a number, or `null`, `"+Inf"` for none.
#[derive(Deserialize)]
#[serde(untagged)]
enum Bound {
    Finite(f64),
    Text(String),
    None(()),
}

/// A whole number, also when it is written as 3.0.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "serde_json::Number")]
struct Count(u64);

impl TryFrom<serde_json::Number> for Count {
    type Error = String;

    fn try_from(number: serde_json::Number) -> Result<Self, String> {
        let whole = |value: &f64| *value >= 0.0 && value.fract() == 0.0 && *value < 9e15;
        let float = || number.as_f64().filter(whole).map(|value| value as u64);
        number.as_u64().or_else(float).map(Self).ok_or_else(|| format!("{number} is not a count"))
    }
}

fn arm<'de, D: Deserializer<'de>>(from: D) -> Result<Arm, D::Error> {
    match String::deserialize(from)?.as_str() {
        "baseline" => Ok(Arm::Baseline),
        "canary" => Ok(Arm::Canary),
        other => Err(serde::de::Error::custom(format!("the arm is baseline or canary, not {other:?}"))),
    }
}

fn unit<'de, D: Deserializer<'de>>(from: D) -> Result<Unit, D::Error> {
    match String::deserialize(from)?.as_str() {
        "s" => Ok(Unit(1.0)),
        "ms" => Ok(Unit(1e-3)),
        "us" | "µs" => Ok(Unit(1e-6)),
        "ns" => Ok(Unit(1e-9)),
        other => Err(serde::de::Error::custom(format!("the unit is s, ms, us or ns, not {other:?}"))),
    }
}

/// A line, understood.
struct Understood {
    number: u64,
    t: f64,
    arm: Arm,
    kpi: String,
    instance: String,
    value: Value,
}

impl Line {
    fn value(&self) -> Result<Value, String> {
        if !self.t.is_finite() {
            return Err("t is not a number".into());
        }
        if self.kpi.is_empty() {
            return Err("the kpi has no name".into());
        }
        match (&self.buckets, self.total, self.bad, self.value) {
            (Some(buckets), None, None, None) => {
                let bound = |bound: &Bound| match bound {
                    Bound::Finite(bound) => Some(bound * self.unit.0),
                    Bound::Text(text) if text == "+Inf" || text == "Inf" => Some(f64::INFINITY),
                    Bound::Text(_) => None,
                    Bound::None(()) => Some(f64::INFINITY),
                };
                let cells: Option<Vec<_>> =
                    buckets.iter().map(|(upper, count)| Some((bound(upper)?, count.0))).collect();
                let buckets = cells.and_then(Buckets::new);
                buckets.map(Value::Latency).ok_or_else(|| "an upper bound is 0 or more, or \"+Inf\"".into())
            }
            (None, Some(total), Some(bad), None) if bad.0 <= total.0 => {
                Ok(Value::Errors { total: total.0, bad: bad.0 })
            }
            (None, Some(_), Some(_), None) => Err("more are bad than there are".into()),
            (None, None, None, Some(value)) if value.is_finite() => Ok(Value::Resource(value)),
            _ => Err("one of buckets, total with bad, or value".into()),
        }
    }
}

fn kind(value: &Value) -> Kind {
    match value {
        Value::Latency(_) => Kind::latency(),
        Value::Errors { .. } => Kind::Errors,
        Value::Resource(_) => Kind::resource(),
    }
}

/// Reads lines one by one, with their numbers.
struct Lines<'a, R> {
    input: R,
    path: &'a str,
    number: u64,
}

impl<R: BufRead> Lines<'_, R> {
    fn error(&self, what: impl Into<String>) -> ReplayError {
        ReplayError::Line { path: self.path.into(), line: self.number, what: what.into() }
    }

    fn next(&mut self) -> Result<Option<Understood>, ReplayError> {
        let mut text = Vec::new();
        loop {
            text.clear();
            self.number += 1;
            let read = |source| ReplayError::Read { path: self.path.into(), source };
            let bytes = self.input.by_ref().take(LINE_BYTES).read_until(b'\n', &mut text).map_err(read)?;
            if bytes == 0 {
                return Ok(None);
            }
            if bytes as u64 == LINE_BYTES {
                return Err(self.error(format!("more than {LINE_BYTES} bytes")));
            }
            if !text.trim_ascii().is_empty() {
                break;
            }
        }
        let line: Line =
            serde_json::from_slice(text.trim_ascii_end()).map_err(|error| self.error(json_error(&error)))?;
        let value = line.value().map_err(|what| self.error(what))?;
        let Line { t, arm, kpi, instance, .. } = line;
        Ok(Some(Understood { number: self.number, t, arm, kpi, instance, value }))
    }
}

/// Without the line that serde counts: each is a document of its own.
fn json_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line 1 column ") {
        Some((what, column)) => format!("column {column}: {what}"),
        None => text,
    }
}

fn judge(
    input: impl BufRead,
    path: &str,
    policy: Policy,
    out: &mut impl Write,
) -> Result<Verdict, ReplayError> {
    let mut lines = Lines { input, path, number: 0 };
    let mut ahead = Vec::new();
    while ahead.len() < AHEAD
        && let Some(line) = lines.next()?
    {
        ahead.push(line);
    }
    let kpis = kpis(&ahead);
    let mut recording = Recording {
        gate: Gate::new(policy, kpis.clone()),
        states: Vec::new(),
        kpis,
        instances: HashMap::new(),
        path,
        t: f64::NEG_INFINITY,
    };
    for line in ahead {
        recording.line(line, out)?;
    }
    while let Some(line) = lines.next()? {
        recording.line(line, out)?;
    }
    recording.gate.finish();
    let report = recording.tell(out)?;
    let last = serde_json::to_string(&report).map_err(|error| ReplayError::Write(error.into()))?;
    writeln!(out, "{last}").and_then(|()| out.flush()).map_err(ReplayError::Write)?;
    Ok(report.verdict)
}

struct Recording<'a> {
    gate: Gate,
    kpis: Vec<Kpi>,
    instances: HashMap<String, u32>,
    /// Of each row: the state that was told last.
    states: Vec<Verdict>,
    path: &'a str,
    t: f64,
}

impl Recording<'_> {
    fn line(&mut self, line: Understood, out: &mut impl Write) -> Result<(), ReplayError> {
        let Understood { number, t, arm, kpi: name, instance, value } = line;
        let error = |what: String| ReplayError::Line { path: self.path.into(), line: number, what };
        let Some(kpi) = self.kpis.iter().position(|kpi| kpi.name == name) else {
            return Err(error(format!("the KPI {name:?} appears only after {AHEAD} lines")));
        };
        let next = self.instances.len() as u32 + 1;
        let instance = if instance.is_empty() { 0 } else { *self.instances.entry(instance).or_insert(next) };
        if t > self.t {
            if self.t.is_finite() {
                self.tell(out)?;
            }
            self.t = t;
        }
        let refused = |refused| match refused {
            Refused::Backwards => error(format!("time goes backwards to {t}")),
            Refused::Kind => error(format!("{name:?} had another kind of data before")),
        };
        self.gate.add(Reading { t, arm, kpi, instance, value }).map_err(refused)
    }

    /// Says which rows have changed.
    fn tell(&mut self, out: &mut impl Write) -> Result<Report, ReplayError> {
        let report = self.gate.report();
        self.states.resize(report.kpis.len(), Verdict::NoData);
        for (row, told) in report.kpis.iter().zip(&mut self.states) {
            if row.verdict != *told {
                *told = row.verdict;
                let line = json!({
                    "t": self.t, "kpi": row.kpi, "quantile": row.quantile, "state": row.verdict,
                    "evidence": row.evidence, "alpha": row.alpha,
                });
                writeln!(out, "{line}").map_err(ReplayError::Write)?;
            }
        }
        Ok(report)
    }
}

/// The KPIs in order of appearance, and the lengths of their intervals: the median distance between
/// lines of the same source; a second when there is none.
fn kpis(lines: &[Understood]) -> Vec<Kpi> {
    let mut kpis: Vec<Kpi> = Vec::new();
    let mut last: HashMap<(&str, Arm, &str), f64> = HashMap::new();
    let mut distances: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for line in lines {
        if !kpis.iter().any(|kpi| kpi.name == line.kpi) {
            kpis.push(Kpi { name: line.kpi.clone(), kind: kind(&line.value), seconds: 1.0 });
        }
        if let Some(before) = last.insert((&line.kpi, line.arm, &line.instance), line.t)
            && line.t > before
        {
            distances.entry(&line.kpi).or_default().push(line.t - before);
        }
    }
    for kpi in &mut kpis {
        if let Some(distances) = distances.get_mut(kpi.name.as_str()) {
            distances.sort_unstable_by(f64::total_cmp);
            let median = distances[distances.len() / 2];
            // Differences of decimal times are not exact.
            let whole = (median * 1e3).round() / 1e3;
            kpi.seconds = if (median - whole).abs() < 1e-6 { whole } else { median }.max(SECONDS_MIN);
        }
    }
    kpis
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(text: &str) -> (Result<Verdict, String>, String) {
        let mut out = Vec::new();
        let verdict = judge(text.as_bytes(), "FILE", Policy::default(), &mut out);
        (verdict.map_err(|error| error.to_string()), String::from_utf8(out).unwrap())
    }

    fn error(text: &str) -> String {
        judged(text).0.expect_err(text)
    }

    #[test]
    fn wrong_lines_are_named() {
        let good = r#"{"t":1,"arm":"baseline","kpi":"latency","buckets":[[0.1,1]]}"#;
        let with = |line: &str| error(&format!("{good}\n\n{line}\n"));
        insta::assert_snapshot!(with("{"), @"FILE, line 3: column 1: EOF while parsing an object");
        for (line, what) in [
            ("nonsense", "line 3: column 2: expected ident"),
            ("[]", "line 3"),
            (r#"{"arm":"canary","kpi":"a","value":1}"#, "missing field `t`"),
            (r#"{"t":1,"arm":"control","kpi":"a","value":1}"#, "baseline or canary, not \"control\""),
            (r#"{"t":1,"arm":"canary","kpi":"a"}"#, "one of buckets"),
            (r#"{"t":1,"arm":"canary","kpi":"a","value":1,"total":1,"bad":0}"#, "one of buckets"),
            (r#"{"t":1,"arm":"canary","kpi":"a","total":1}"#, "one of buckets"),
            (r#"{"t":1,"arm":"canary","kpi":"a","total":1,"bad":2}"#, "more are bad"),
            (r#"{"t":1,"arm":"canary","kpi":"a","total":-1,"bad":0}"#, "-1 is not a count"),
            (r#"{"t":1,"arm":"canary","kpi":"latency","buckets":[[0.1,-3]]}"#, "-3 is not a count"),
            (r#"{"t":1,"arm":"canary","kpi":"latency","buckets":[[0.1,1.5]]}"#, "1.5 is not a count"),
            (r#"{"t":1,"arm":"canary","kpi":"latency","buckets":[[-0.1,1]]}"#, "an upper bound is 0 or more"),
            (r#"{"t":1,"arm":"canary","kpi":"latency","buckets":[["x",1]]}"#, "an upper bound is 0 or more"),
            (r#"{"t":1,"arm":"canary","kpi":"latency","unit":"h","buckets":[]}"#, "s, ms, us or ns"),
            (r#"{"t":1,"arm":"canary","kpi":"latency","value":2}"#, "another kind"),
            (r#"{"t":-9,"arm":"canary","kpi":"latency","buckets":[[0.1,1]]}"#, "time goes backwards to -9"),
        ] {
            let error = with(line);
            assert!(error.contains("line 3") && error.contains(what), "{line}: {error}");
        }
    }

    #[test]
    fn units_infinite_bounds_and_whole_numbers_written_otherwise_are_understood() {
        let text = r#"
            {"t":1,"arm":"baseline","kpi":"a","unit":"us","buckets":[[20,1.0],["+Inf",2],[null,1]]}
            {"t":1,"arm":"canary","kpi":"a","unit":"ns","buckets":[[20000,3],[20000,1]]}
        "#;
        let (verdict, out) = judged(text);
        assert_eq!(verdict, Ok(Verdict::Inconclusive));
        assert!(out.ends_with('\n') && out.contains("is being learnt"), "{out}");
    }

    #[test]
    fn intervals_are_what_the_lines_say() {
        let mut text = String::new();
        for block in 0..50 {
            let t = 0.1 + f64::from(block) * 0.2;
            text += &format!(r#"{{"t":{t},"arm":"baseline","kpi":"a","buckets":[[0.1,9]]}}"#);
            text += "\n";
            text += &format!(r#"{{"t":{},"arm":"canary","kpi":"a","buckets":[[0.1,9]]}}"#, t + 0.05);
            text += "\n";
            if block % 25 == 0 {
                text += &format!(r#"{{"t":{t},"arm":"canary","kpi":"cpu","value":1}}"#);
                text += "\n";
            }
        }
        let mut lines = Lines { input: text.as_bytes(), path: "FILE", number: 0 };
        let mut all = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            all.push(line);
        }
        let kpis = kpis(&all);
        assert_eq!(kpis.iter().map(|kpi| kpi.seconds).collect::<Vec<_>>(), [0.2, 5.0]);
        let (_, out) = judged(&text);
        // 20 are learnt from, 30 judged: the arms are skewed, but in the same blocks.
        assert!(out.contains(r#""canary_count":270"#), "{out}");
    }

    #[test]
    fn nothing_is_no_data() {
        for text in ["", "\n\n", r#"{"t":1,"arm":"canary","kpi":"a","buckets":[]}"#] {
            let (verdict, out) = judged(text);
            assert_eq!(verdict, Ok(Verdict::NoData));
            let last: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
            assert_eq!((&last["verdict"], &last["action"]), (&json!("nodata"), &json!("hold")));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,200}") {
            drop(judged(&text));
        }
    }
}
