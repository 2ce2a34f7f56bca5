//! The one clock of all processes.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// `CLOCK_MONOTONIC` in ns; through the vDSO, without a system call.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Sleeps until `CLOCK_MONOTONIC` shows `until_ns`, or a signal comes.
pub fn sleep_until(until_ns: u64) {
    let until =
        Timespec { tv_sec: (until_ns / 1_000_000_000) as i64, tv_nsec: (until_ns % 1_000_000_000) as i64 };
    // The only error that can occur is the signal; the caller looks at the clock anyway.
    let _ = rustix::thread::clock_nanosleep_absolute(ClockId::Monotonic, &until);
}

/// Reads a duration like `20s`, `500ms`, `5m`, `1h` or `0`; no unit means seconds.
///
/// # Errors
/// What was expected, when the text is something else.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err("expected a duration such as 20s, 500ms, 5m or 0".to_owned()),
    };
    number
        .parse::<f64>()
        .ok()
        .and_then(|number| Duration::try_from_secs_f64(number * seconds).ok())
        .filter(|duration| duration.as_secs() < 366 * 86_400)
        .ok_or_else(|| "expected a duration such as 20s, 500ms, 5m or 0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_or_refused() {
        for (text, milliseconds) in [
            ("0", 0),
            ("2", 2_000),
            ("20s", 20_000),
            ("1.5s", 1_500),
            ("250ms", 250),
            ("5m", 300_000),
            ("1h", 3_600_000),
        ] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration.as_millis(), milliseconds, "{text}");
        }
        for text in ["", "s", "1x", "-1s", "1 s", "1e9h", "99999999999h", "nan"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sleeping_reaches_the_time() {
        let until = now_ns() + 2_000_000;
        sleep_until(until);
        assert!(now_ns() >= until);
    }
}
