//! Time and value, line by line: what `detect` and `forecast` read.

use std::io::{self, BufRead, BufReader, Read, Write};

use crate::exit::Exit;

/// A line longer than this is malformed, and not kept.
const LINE_BYTES: u64 = 4096;

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The timestamp as it was written.
    pub time: String,
    /// Seconds since 1970, or since any other moment.
    pub t: f64,
    /// The value as it was written.
    pub text: String,
    /// The value; `None` is a gap.
    pub value: Option<f64>,
}

/// A line.
#[derive(Clone, Debug, PartialEq)]
enum Line {
    Row(Row),
    /// What stands behind `#`.
    Comment(String),
    Header,
    Empty,
}

/// Why a stream ended early.
#[derive(Debug, thiserror::Error)]
pub enum CsvError {
    /// It cannot be read.
    #[error("cannot read standard input")]
    Read(#[source] io::Error),
    /// Nor can the result be written.
    #[error("cannot write to standard output")]
    Write(#[source] io::Error),
    /// A line is not what it should be.
    #[error("line {line}: {text}")]
    Malformed {
        /// From 1.
        line: u64,
        /// What is wrong.
        text: String,
    },
}

impl CsvError {
    /// The exit code that it means.
    pub fn exit(&self) -> Exit {
        match self {
            // Who reads has seen enough.
            Self::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Self::Read(_) | Self::Write(_) => Exit::Failed,
            Self::Malformed { .. } => Exit::Usage,
        }
    }
}

/// What a command does with rows.
pub trait Rows {
    /// A comment that stands before the first row.
    ///
    /// # Errors
    /// What is wrong with it.
    fn comment(&mut self, text: &str) -> Result<(), String>;

    /// Writes the first line of the output, when the first row has come or none will.
    ///
    /// # Errors
    /// What is missing.
    fn begin(&mut self, out: &mut dyn Write) -> Result<io::Result<()>, String>;

    /// One line for one row.
    ///
    /// # Errors
    /// When it cannot be written.
    fn row(&mut self, row: &Row, out: &mut dyn Write) -> io::Result<()>;
}

/// Hands every row to `rows` and counts the malformed ones that were skipped, which ends at the
/// first of them unless `skip_bad`. A line is written as soon as there is nothing more to read.
///
/// # Errors
/// When reading or writing fails, or a line is malformed.
pub fn run(
    from: impl Read,
    out: &mut dyn Write,
    skip_bad: bool,
    rows: &mut dyn Rows,
) -> Result<u64, CsvError> {
    let mut from = BufReader::new(from);
    let mut out = io::BufWriter::new(out);
    let (mut number, mut skipped) = (0, 0);
    let mut begun = false;
    let mut bytes = Vec::new();
    loop {
        if from.buffer().is_empty() {
            out.flush().map_err(CsvError::Write)?;
        }
        number += 1;
        if !read_line(&mut from, &mut bytes).map_err(CsvError::Read)? {
            break;
        }
        let malformed = |text| CsvError::Malformed { line: number, text };
        let line = match parse(&bytes, !begun && skipped == 0) {
            Ok(line) => line,
            Err(_) if skip_bad => {
                skipped += 1;
                continue;
            }
            Err(text) => {
                out.flush().map_err(CsvError::Write)?;
                return Err(malformed(text));
            }
        };
        match line {
            Line::Comment(text) if !begun => rows.comment(&text).map_err(malformed)?,
            Line::Comment(_) | Line::Empty => {}
            Line::Header => {
                rows.begin(&mut out).map_err(malformed)?.map_err(CsvError::Write)?;
                begun = true;
            }
            Line::Row(row) => {
                if !begun {
                    rows.begin(&mut out).map_err(malformed)?.map_err(CsvError::Write)?;
                    begun = true;
                }
                rows.row(&row, &mut out).map_err(CsvError::Write)?;
            }
        }
    }
    if !begun {
        let malformed = |text| CsvError::Malformed { line: number, text };
        rows.begin(&mut out).map_err(malformed)?.map_err(CsvError::Write)?;
    }
    out.flush().map_err(CsvError::Write)?;
    Ok(skipped)
}

/// The next line without its end, at most [`LINE_BYTES`] and one of it; `false` at the end.
fn read_line(from: &mut impl BufRead, bytes: &mut Vec<u8>) -> io::Result<bool> {
    bytes.clear();
    from.by_ref().take(LINE_BYTES + 1).read_until(b'\n', bytes)?;
    if bytes.is_empty() {
        return Ok(false);
    }
    if bytes.last() != Some(&b'\n') && bytes.len() as u64 > LINE_BYTES {
        from.skip_until(b'\n')?;
    }
    Ok(true)
}

/// `first`: a header may stand here.
fn parse(bytes: &[u8], first: bool) -> Result<Line, String> {
    if bytes.len() as u64 > LINE_BYTES {
        return Err(format!("longer than {LINE_BYTES} bytes"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())?;
    // A byte order mark is no part of the first line.
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.is_empty() {
        return Ok(Line::Empty);
    }
    if let Some(comment) = text.strip_prefix('#') {
        return Ok(Line::Comment(comment.trim().to_owned()));
    }
    let Some((time, value)) = text.split_once(',') else {
        return Err(format!("not time,value: {:?}", shortened(text)));
    };
    let (time, value) = (time.trim(), value.trim());
    let number = match value {
        "" => Some(None),
        _ => value.parse::<f64>().ok().map(|number| Some(number).filter(|number| number.is_finite())),
    };
    match (seconds(time), number) {
        (Some(t), Some(value_or_gap)) => {
            Ok(Line::Row(Row { time: time.into(), t, text: value.into(), value: value_or_gap }))
        }
        (None, None) if first => Ok(Line::Header),
        (None, _) => Err(format!("no time: {:?}: write seconds, or 2026-01-31 12:00:00", shortened(time))),
        (_, None) => Err(format!("no number: {:?}", shortened(value))),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Seconds since 1970 of a number or of an ISO 8601 date and time; without a zone it is UTC.
fn seconds(text: &str) -> Option<f64> {
    if let Ok(number) = text.parse::<f64>() {
        return Some(number).filter(|number| number.is_finite());
    }
    let (date, time) = text.split_once([' ', 'T', 't']).unwrap_or((text, "00:00"));
    let mut parts = date.splitn(3, '-').map(|part| digits(part, 4));
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (time, offset_s) = zone(time.trim())?;
    let mut parts = time.splitn(3, ':');
    let (hour, minute) = (digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let second = match parts.next() {
        Some(second) if second.starts_with(|c: char| c.is_ascii_digit()) => second.parse::<f64>().ok()?,
        Some(_) => return None,
        None => 0.0,
    };
    if hour > 24 || minute > 59 || !(0.0..61.0).contains(&second) {
        return None;
    }
    let days = days_since_1970(year, month, day);
    Some(days as f64 * 86_400.0 + (hour * 3600 + minute * 60) as f64 + second - offset_s as f64)
}

fn digits(text: &str, most: usize) -> Option<i64> {
    let good = (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    good.then(|| text.parse().ok())?
}

/// The time without its zone, and the zone's offset in seconds.
fn zone(time: &str) -> Option<(&str, i64)> {
    if let Some(time) = time.strip_suffix(['Z', 'z']) {
        return Some((time, 0));
    }
    let Some(at) = time.rfind(['+', '-']) else { return Some((time, 0)) };
    let (time, zone) = time.split_at(at);
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let zone = zone[1..].replace(':', "");
    let number = digits(&zone, 4).filter(|_| zone.len() == 2 || zone.len() == 4)?;
    let (hours, minutes) = if zone.len() == 2 { (number, 0) } else { (number / 100, number % 100) };
    Some((time.trim_end(), sign * (hours * 3600 + minutes * 60)))
}

/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_or_dates() {
        for (text, t) in [
            ("0", 0.0),
            ("12.5", 12.5),
            ("1970-01-01 00:00:00", 0.0),
            ("2014-04-01 00:05:00", 1_396_310_700.0),
            ("2014-04-01T00:05:00Z", 1_396_310_700.0),
            ("2014-04-01T02:05:00.250+02:00", 1_396_310_700.25),
            ("2014-03-31 19:05-0500", 1_396_310_700.0),
            ("2000-02-29", 951_782_400.0),
            ("1969-12-31 23:59:59", -1.0),
        ] {
            assert_eq!(seconds(text), Some(t), "{text}");
        }
        for text in [
            "",
            "now",
            "NaN",
            "inf",
            "2014-13-01",
            "2014-01-01 25:00",
            "2014-01-01 1",
            "1-2",
            "2014-01-01 10:00+1",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    #[test]
    fn lines_are_rows_comments_headers_or_wrong() {
        let row = |text: &str| parse(text.as_bytes(), false);
        let value = |text: &str| match row(text) {
            Ok(Line::Row(row)) => row.value,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(value("1,2\r\n"), Some(2.0));
        assert_eq!(value(" 1 , -2e-3 "), Some(-0.002));
        assert_eq!((value("1,"), value("1,NaN"), value("1,inf")), (None, None, None));
        assert_eq!(row("# limit=3"), Ok(Line::Comment("limit=3".into())));
        assert_eq!(row("\n"), Ok(Line::Empty));
        assert_eq!(parse(b"timestamp,value\n", true), Ok(Line::Header));
        for bad in ["timestamp,value", "1", "1,2,3", "x,1", "1,x", ",1"] {
            assert!(row(bad).is_err(), "{bad}");
        }
        assert!(parse(b"1,\xff", false).is_err());
        assert!(parse(&[b'1'; 5000], false).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(text in "\\PC{0,60}", bytes in proptest::collection::vec(0..=255u8, 0..60)) {
            drop(parse(text.as_bytes(), true));
            drop(parse(&bytes, true));
        }
    }
}
