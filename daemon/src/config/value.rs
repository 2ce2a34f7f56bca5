//! Values as people write them. Each function is a `deserialize_with`, so that an error stands at
//! the value it is about.

use std::path::PathBuf;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error};

use super::Match;

const UNITS_NS: [(&str, u64); 5] =
    [("ns", 1), ("us", 1_000), ("µs", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)];
const UNITS_BYTES: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// A whole number and one of `units`.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// "20us"
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    scaled(text, &UNITS_NS)
        .map(Duration::from_nanos)
        .ok_or_else(|| format!("`{text}` is not a duration: write a whole number and ns, us, ms or s, as in \"250ms\""))
}

pub(super) fn interval<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let interval = parse_duration(&text).map_err(Error::custom)?;
    if (Duration::from_millis(100)..=Duration::from_secs(60)).contains(&interval) {
        Ok(interval)
    } else {
        Err(Error::custom(format!("interval `{text}` is out of range: 100ms to 60s")))
    }
}

/// "1%" as 0.01
pub(super) fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.strip_suffix('%')
        .and_then(|number| number.trim_end().parse::<f64>().ok())
        .filter(|percent| *percent > 0.0 && *percent <= 100.0)
        .map(|percent| percent / 100.0)
        .ok_or_else(|| {
            Error::custom(format!("`{text}` is not a share: write more than 0% and at most 100%, as in \"1%\""))
        })
}

/// "32MiB"
pub(super) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    scaled(&text, &UNITS_BYTES).filter(|bytes| *bytes > 0).ok_or_else(|| {
        Error::custom(format!("`{text}` is not a size: write a whole number and B, KiB, MiB or GiB, as in \"32MiB\""))
    })
}

pub(super) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    let allowed = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    if (1..=63).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(name)
    } else {
        Err(Error::custom(format!(
            "`{name}` is not a target name: write 1 to 63 of a-z, 0-9, `_` and `-`"
        )))
    }
}

pub(super) fn matching<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Match, D::Error> {
    let matching = Match::deserialize(deserializer)?;
    if matching == Match::default() {
        return Err(Error::custom("matches nothing: give at least one of `comm`, `exe`, `pid`, `cgroup`, `unit`"));
    }
    Ok(matching)
}

/// What `TASK_COMM_LEN` leaves beside the NUL, bytes.
const COMM_LENGTH: usize = 15;

pub(super) fn comm<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let comm = String::deserialize(deserializer)?;
    if comm.len() > COMM_LENGTH {
        let cut = comm.floor_char_boundary(COMM_LENGTH);
        return Err(Error::custom(format!(
            "`{comm}` has {} bytes, and the kernel truncates comm to {COMM_LENGTH}: write comm = \"{}\"",
            comm.len(),
            &comm[..cut]
        )));
    }
    if comm.is_empty() || comm.contains(['\0', '\n']) {
        return Err(Error::custom("comm must be the name of a process, as /proc/PID/comm shows it"));
    }
    Ok(Some(comm))
}

pub(super) fn exe<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let exe = PathBuf::deserialize(deserializer)?;
    if exe.is_absolute() {
        Ok(Some(exe))
    } else {
        Err(Error::custom(format!(
            "`{}` is not an absolute path: write it as /proc/PID/exe shows it",
            exe.display()
        )))
    }
}

pub(super) fn pid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    match u32::deserialize(deserializer)? {
        0 => Err(Error::custom("pid 0 is no process: write 1 or more")),
        pid => Ok(Some(pid)),
    }
}

pub(super) fn cgroup<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let cgroup = String::deserialize(deserializer)?;
    if cgroup.starts_with('/') {
        Ok(Some(cgroup))
    } else {
        Err(Error::custom(format!(
            "`{cgroup}` is not a path from the root of the control groups: write it as /proc/PID/cgroup shows it, as in \"/trading.slice\""
        )))
    }
}

pub(super) fn unit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let unit = String::deserialize(deserializer)?;
    let whole = unit.rsplit_once('.').is_some_and(|(name, kind)| !name.is_empty() && !kind.is_empty());
    if whole && !unit.contains('/') {
        Ok(Some(unit))
    } else {
        Err(Error::custom(format!(
            "`{unit}` is not the name of a systemd unit: write it with its kind, as in \"engine.service\""
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("20us"), Ok(Duration::from_micros(20)));
        assert_eq!(parse_duration("20 µs"), Ok(Duration::from_micros(20)));
        assert_eq!(parse_duration("7ns"), Ok(Duration::from_nanos(7)));
        for bad in ["", "1", "s", "1.5s", "-1s", "1h", "1 m s", "99999999999999s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(scaled("32MiB", &UNITS_BYTES), Some(32 * 1024 * 1024));
        assert_eq!(scaled("1 GiB", &UNITS_BYTES), Some(1024 * 1024 * 1024));
        for bad in ["32", "32MB", "MiB", "99999999999999GiB"] {
            assert_eq!(scaled(bad, &UNITS_BYTES), None, "{bad}");
        }
    }
}
