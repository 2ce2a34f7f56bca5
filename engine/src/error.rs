//! What can go wrong outside the pure modules, and the exit code each thing leads to.

use std::io;
use std::process::ExitCode;

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag makes no sense in its context: exit code 2, as clap's own errors.
    #[error("{0}")]
    Usage(String),
    /// A peer or a port is not there: exit code 69.
    #[error("{attempt}")]
    Unavailable {
        /// What was attempted, on what.
        attempt: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The system refused something: exit code 1, or 77 when it was for a missing privilege.
    #[error("{attempt}")]
    Io {
        /// What was attempted, on what.
        attempt: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A child ended with this exit code, having said why.
    #[error("the {name} process ended with exit code {code}")]
    Child {
        /// Which child.
        name: &'static str,
        /// Its exit code.
        code: u8,
    },
    /// Something else: exit code 1.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// For `map_err` on what a peer or a port is needed for.
    pub fn unavailable(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let attempt = attempt.into();
        |source| Self::Unavailable { attempt, source }
    }

    /// For `map_err` on what should just work.
    pub fn io(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let attempt = attempt.into();
        |source| Self::Io { attempt, source }
    }

    /// Whether the reader of our output went away, which is a clean end.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The exit code for it.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => 2,
            Self::Unavailable { source, .. } | Self::Io { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                77
            }
            Self::Unavailable { .. } => 69,
            Self::Child { code, .. } => *code,
            Self::Io { .. } | Self::Failed(_) => 1,
        })
    }
}
