//! Reading a file, and saying what is wrong with it.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// A configuration is at most this long, bytes.
pub const SIZE_LIMIT_BYTES: u64 = 1024 * 1024;

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too long.
    #[error(
        "the configuration {} is longer than {SIZE_LIMIT_BYTES} bytes: is this the right file?",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is no text.
    #[error(
        "the configuration {} is not UTF-8 text (line {line}, byte {byte}): is this the right file?",
        path.display()
    )]
    NotText {
        /// The file.
        path: PathBuf,
        /// Line of the first invalid byte, from 1.
        line: usize,
        /// Its place in the file, from 0.
        byte: usize,
    },
    /// It says something invalid: message, place and line, as rustc shows them.
    #[error("{0}")]
    Invalid(String),
}

impl ConfigError {
    /// `message` about `span` of `text`, which is called `origin`.
    pub(super) fn invalid(
        text: &str,
        origin: &str,
        message: &str,
        span: Option<Range<usize>>,
    ) -> Self {
        // Without a place the error is about the file as a whole.
        let span = span.unwrap_or(0..0);
        let place = Snippet::source(text)
            .path(origin)
            .annotation(AnnotationKind::Primary.span(span));
        let group = Level::ERROR.no_name().primary_title(message).element(place);
        Self::Invalid(Renderer::plain().render(&[group]))
    }
}

pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(SIZE_LIMIT_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > SIZE_LIMIT_BYTES {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    String::from_utf8(bytes).map_err(|error| {
        let byte = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..byte].iter().filter(|byte| **byte == b'\n').count();
        ConfigError::NotText { path: path.to_owned(), line, byte }
    })
}
