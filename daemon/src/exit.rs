//! Exit codes.

use std::process::ExitCode;

/// How a command ended: the exit codes of every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, pass.
    Done = 0,
    /// Failed, fail.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Inconclusive, or no data.
    Inconclusive = 3,
    /// Something that is needed is not available: kernel feature, port, daemon (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// A privilege is missing (`EX_NOPERM`).
    NoPrivilege = 77,
    /// The configuration is wrong (`EX_CONFIG`).
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
