//! `tickscope forecast`: foresees when a series from standard input crosses its limit.

use std::io::{self, Read, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;
use tickscope_core::{
    Direction, Effort, FEATURES, Forecast, Forecaster, Limit, Refractory, Tail, Threshold, Trigger,
};

use crate::csv::{self, CsvError, Row, Rows};
use crate::detect::Format;

/// Flags of `tickscope forecast`. What is left out may stand in comment lines before the rows:
/// `# limit=400 direction=above horizon=1800 step=1 period=86400`.
#[derive(Args, Clone)]
pub struct Flags {
    /// Value that must not be crossed; may stand in the input as `# limit=…`
    #[arg(long, env = "TICKSCOPE_LIMIT", allow_negative_numbers = true, value_parser = number)]
    pub limit: Option<f64>,
    /// Which side of it is bad; above without another word
    #[arg(long, env = "TICKSCOPE_DIRECTION", value_enum)]
    pub direction: Option<Side>,
    /// How far ahead a breach matters; 1800 s without another word
    #[arg(long, env = "TICKSCOPE_HORIZON", value_name = "SECONDS", value_parser = time)]
    pub horizon: Option<f64>,
    /// Time between two rows; else that between the first two
    #[arg(long, env = "TICKSCOPE_STEP", value_name = "SECONDS", value_parser = time)]
    pub step: Option<f64>,
    /// Period of the series' season: a session, a day; none without another word
    #[arg(long, env = "TICKSCOPE_PERIOD", value_name = "SECONDS", value_parser = period)]
    pub period: Option<f64>,
    /// Try 21 shapes instead of 34: two thirds of the time
    #[arg(long, env = "TICKSCOPE_LITE")]
    pub lite: bool,
    /// Leave out lines that are malformed, and say how many, instead of ending at the first
    #[arg(long, env = "TICKSCOPE_SKIP_BAD")]
    pub skip_bad: bool,
    /// How it is printed
    #[arg(long, env = "TICKSCOPE_FORMAT", value_enum, default_value = "csv")]
    pub format: Format,
}

/// Which side of the limit is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Side {
    /// More than the limit.
    Above,
    /// Less.
    Below,
}

fn number(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
    number.ok_or_else(|| format!("{text:?} is not a number"))
}

fn time(text: &str) -> Result<f64, String> {
    let seconds =
        text.parse().ok().or_else(|| humantime::parse_duration(text).ok().map(|t: Duration| t.as_secs_f64()));
    let good = seconds.filter(|seconds: &f64| seconds.is_finite() && *seconds > 0.0);
    good.ok_or_else(|| format!("{text:?} is not a time: write seconds above 0, or \"30m\""))
}

/// 0 is none.
fn period(text: &str) -> Result<f64, String> {
    if text.parse::<f64>().is_ok_and(|seconds| seconds == 0.0) { Ok(0.0) } else { time(text) }
}

/// Foresees at every row; how many malformed ones were skipped.
///
/// # Errors
/// When reading or writing fails, a line is malformed, or there is no limit.
pub fn run(flags: &Flags, from: impl Read, out: &mut dyn Write) -> Result<u64, CsvError> {
    csv::run(from, out, flags.skip_bad, &mut Foreseeing { flags: flags.clone(), first: None, known: None })
}

struct Foreseeing {
    flags: Flags,
    /// The first row, kept until the second tells the step.
    first: Option<Row>,
    known: Option<Known>,
}

struct Known {
    forecaster: Forecaster,
    tail: Tail,
    shown: Refractory,
    threshold: Threshold,
    trigger: Trigger,
}

impl Foreseeing {
    fn known(&mut self, step_s: f64) -> &mut Known {
        let flags = &self.flags;
        let effort = if flags.lite { Effort::Lite } else { Effort::Full };
        self.known.get_or_insert_with(|| {
            let limit = Limit {
                value: flags.limit.unwrap_or_default(),
                direction: match flags.direction {
                    Some(Side::Below) => Direction::Below,
                    Some(Side::Above) | None => Direction::Above,
                },
                horizon_s: flags.horizon.unwrap_or(Limit::HORIZON_S),
                step_s,
                period_s: flags.period.filter(|period| *period > 0.0),
            };
            Known {
                forecaster: Forecaster::new(limit, effort),
                tail: Tail::new(FEATURES),
                shown: Refractory::default(),
                threshold: Threshold::new(1.0, step_s),
                trigger: Trigger::default(),
            }
        })
    }
}

impl Known {
    /// Score, whether it is an alert, and the forecast.
    fn push(&mut self, row: &Row) -> (f64, bool, Option<Forecast>) {
        let forecast = self.forecaster.push(row.t, row.value);
        let Some(value) = row.value else { return (0.0, self.trigger.open(), forecast) };
        let score = self.tail.score(row.t, value);
        self.threshold.learn(score, self.trigger.open());
        let alert = self.trigger.step(score, score, self.threshold.value());
        (self.shown.show(score), alert, forecast)
    }
}

impl Rows for Foreseeing {
    fn comment(&mut self, text: &str) -> Result<(), String> {
        for (key, value) in text.split_whitespace().filter_map(|word| word.split_once('=')) {
            let flags = &mut self.flags;
            // A flag says more than the file.
            match key {
                "limit" => flags.limit = flags.limit.or(Some(number(value)?)),
                "direction" => {
                    let side = Side::from_str(value, true)
                        .map_err(|_| format!("direction={value}: it is above or below"))?;
                    flags.direction = flags.direction.or(Some(side));
                }
                "horizon" => flags.horizon = flags.horizon.or(Some(time(value)?)),
                "step" => flags.step = flags.step.or(Some(time(value)?)),
                "period" => flags.period = flags.period.or(Some(period(value)?)),
                // Comments may say more than is asked.
                _ => {}
            }
        }
        Ok(())
    }

    fn begin(&mut self, out: &mut dyn Write) -> Result<io::Result<()>, String> {
        if self.flags.limit.is_none() {
            return Err("no limit: say --limit, or write `# limit=…` before the rows".into());
        }
        Ok(match self.flags.format {
            Format::Csv => writeln!(out, "t,score,alert,warn,p,eta_lo,eta,eta_hi"),
            Format::Json => Ok(()),
        })
    }

    fn row(&mut self, row: &Row, out: &mut dyn Write) -> io::Result<()> {
        let (score, alert, forecast) = match self.flags.step {
            Some(step_s) => self.known(step_s).push(row),
            None => match self.first.take() {
                // What is foreseen of one row does not depend on the step: nothing.
                None => {
                    self.first = Some(row.clone());
                    (0.0, false, None)
                }
                Some(first) if row.t <= first.t => {
                    self.first = Some(first);
                    (0.0, false, None)
                }
                Some(first) => {
                    let step_s = row.t - first.t;
                    self.flags.step = Some(step_s);
                    let known = self.known(step_s);
                    known.push(&first);
                    known.push(row)
                }
            },
        };
        self.print(row, score, alert, forecast, out)
    }
}

impl Foreseeing {
    fn print(
        &self,
        row: &Row,
        score: f64,
        alert: bool,
        forecast: Option<Forecast>,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let warn = forecast.is_some_and(|forecast| forecast.warn);
        let p = forecast.map(|forecast| forecast.p);
        let eta = forecast.and_then(|forecast| forecast.eta);
        let [low, mid, high] = [eta.map(|eta| eta.low), eta.map(|eta| eta.mid), eta.map(|eta| eta.high)];
        match self.flags.format {
            Format::Csv => {
                let cell = |value: Option<f64>, digits: usize| {
                    value.map_or_else(String::new, |value| format!("{value:.digits$}"))
                };
                writeln!(
                    out,
                    "{},{score:.6},{},{},{},{},{},{}",
                    row.time,
                    u8::from(alert),
                    u8::from(warn),
                    cell(p, 6),
                    cell(low, 3),
                    cell(mid, 3),
                    cell(high, 3)
                )
            }
            Format::Json => {
                let line = json!({
                    "t": row.time, "score": score, "alert": alert, "warn": warn,
                    "p": p, "eta_lo": low, "eta": mid, "eta_hi": high,
                });
                writeln!(out, "{line}")
            }
        }
    }
}
