//! What was learned, kept over a restart: one file, written whole or not at all.
//!
//! The first line says version, checksum and length; a file that is of another version, damaged or
//! stale is left alone and learned anew. The checksum finds accidents, not malice.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tickscope_core::{SAVED_VERSION, Saved};

const NAME: &str = "learned.json";
const MAGIC: &str = "tickscope-learned";
/// 64 series and 64 limits take less than 8 MiB.
const MAX_BYTES: u64 = 64 << 20;

/// Why nothing could be written or read.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The file system says no.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{path} is not used: {why}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Writes what was learned into `directory`, which is made if it is not there.
///
/// # Errors
/// When it cannot be written; then what was there before still is.
pub fn save(directory: &Path, saved: &Saved) -> Result<(), MemoryError> {
    let path = directory.join(NAME);
    let fresh = directory.join(format!("{NAME}.new"));
    let io = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| MemoryError::Io { doing, path, source }
    };
    fs::create_dir_all(directory).map_err(io("make", directory))?;
    let text = serde_json::to_vec(saved).map_err(|error| io("write", &fresh)(error.into()))?;
    let mut file = File::create(&fresh).map_err(io("make", &fresh))?;
    writeln!(file, "{MAGIC} {SAVED_VERSION} {:016x} {}", checksum(&text), text.len())
        .and_then(|()| file.write_all(&text))
        .and_then(|()| file.sync_all())
        .map_err(io("write", &fresh))?;
    fs::rename(&fresh, &path).map_err(io("replace", &path))
}

/// What was learned before; `None` when there is no file.
///
/// # Errors
/// When it cannot be read, or is not what was written.
pub fn load(directory: &Path) -> Result<Option<Saved>, MemoryError> {
    let path = directory.join(NAME);
    let io = |source| MemoryError::Io { doing: "read", path: path.clone(), source };
    let unusable = |why: &str| MemoryError::Unusable { path: path.clone(), why: why.into() };
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(io)?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(unusable("it is too large"));
    }
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| unusable("it has no first line"))?;
    let (head, text) = (String::from_utf8_lossy(&bytes[..end]).into_owned(), &bytes[end + 1..]);
    let [MAGIC, version, sum, length] = head.split(' ').collect::<Vec<_>>()[..] else {
        return Err(unusable("its first line is not tickscope's"));
    };
    if version != SAVED_VERSION.to_string() {
        return Err(unusable(&format!("it is of version {version}, this is {SAVED_VERSION}")));
    }
    if length != text.len().to_string() || sum != format!("{:016x}", checksum(text)) {
        return Err(unusable("it is damaged"));
    }
    serde_json::from_slice(text).map(Some).map_err(|error| unusable(&error.to_string()))
}

/// FNV-1a, 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tickscope_core::{Measurements, Now, State};

    fn saved() -> Saved {
        let now = Now { monotonic_ns: 1_000_000_000, wall_ns: 1_000_000_000 };
        let mut state = State::new(&["engine".to_owned()], 1_000_000_000);
        state.step(&Measurements::default(), now);
        state.watch_ref().save(now)
    }

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("made");
        assert!(load(&directory).unwrap().is_none());
        save(&directory, &saved()).unwrap();
        assert!(load(&directory).unwrap().is_some());
        let path = directory.join(NAME);
        let good = fs::read(&path).unwrap();
        let mut flipped = good.clone();
        let last = flipped.len() - 5;
        flipped[last] ^= 1;
        let older = String::from_utf8(good.clone()).unwrap().replacen(" 1 ", " 0 ", 1).into_bytes();
        for (bytes, why) in [
            (&good[..good.len() - 1], "damaged"),
            (&flipped, "damaged"),
            (&older, "of version 0"),
            (b"", "no first line"),
            (b"hello\nworld", "not tickscope's"),
        ] {
            fs::write(&path, bytes).unwrap();
            let Err(error) = load(&directory) else { panic!("{why}") };
            assert!(error.to_string().contains(why), "{error}");
        }
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "nothing is left over");
    }
}
