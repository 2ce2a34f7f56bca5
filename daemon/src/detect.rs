//! `tickscope detect`: scores a series from standard input.

use std::io::{self, Read, Write};

use clap::{Args, ValueEnum};
use serde_json::json;
use tickscope_core::{FEATURES, Refractory, Tail};

use crate::csv::{self, CsvError, Row, Rows};

/// Flags of `tickscope detect`.
#[derive(Args)]
pub struct Flags {
    /// Leave out lines that are malformed, and say how many, instead of ending at the first
    #[arg(long, env = "TICKSCOPE_SKIP_BAD")]
    pub skip_bad: bool,
    /// How it is printed
    #[arg(long, env = "TICKSCOPE_FORMAT", value_enum, default_value = "csv")]
    pub format: Format,
}

/// How rows are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A header, and a line of values for each row.
    #[default]
    Csv,
    /// A JSON object for each row.
    Json,
}

/// Scores every row; how many malformed ones were skipped.
///
/// # Errors
/// When reading or writing fails, or a line is malformed.
pub fn run(flags: &Flags, from: impl Read, out: &mut dyn Write) -> Result<u64, CsvError> {
    let mut rows = Scoring { format: flags.format, tail: Tail::new(FEATURES), shown: Refractory::default() };
    csv::run(from, out, flags.skip_bad, &mut rows)
}

struct Scoring {
    format: Format,
    tail: Tail,
    shown: Refractory,
}

impl Rows for Scoring {
    fn comment(&mut self, _: &str) -> Result<(), String> {
        Ok(())
    }

    fn begin(&mut self, out: &mut dyn Write) -> Result<io::Result<()>, String> {
        Ok(match self.format {
            Format::Csv => writeln!(out, "timestamp,value,anomaly_score"),
            Format::Json => Ok(()),
        })
    }

    fn row(&mut self, row: &Row, out: &mut dyn Write) -> io::Result<()> {
        // A gap is not unusual; whoever must know of gaps watches for them.
        let score = row.value.map_or(0.0, |value| self.shown.show(self.tail.score(row.t, value)));
        match self.format {
            Format::Csv => writeln!(out, "{},{},{score:.6}", row.time, row.text),
            Format::Json => {
                let line = json!({ "timestamp": row.time, "value": row.value, "anomaly_score": score });
                writeln!(out, "{line}")
            }
        }
    }
}
