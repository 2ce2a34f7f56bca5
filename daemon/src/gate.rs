//! The gate's surroundings: what feeds it and what its verdicts become. The gate itself is pure
//! and in the core.

pub mod ask;
pub mod feed;
mod prometheus;
pub mod replay;

use std::io::{self, Write};

use clap::{Args, Subcommand};
use tickscope_core::gate::{Policy, Verdict};

use crate::control::CallError;
use crate::exit::Exit;
use crate::top::Unreachable;

/// `tickscope gate …`
#[derive(Subcommand)]
pub enum Command {
    /// Ask a running daemon's gate; exit code 0 pass, 1 fail, 3 neither
    Check(ask::Check),
    /// Wait until a gate has decided; exit code 0 pass, 1 fail, 3 neither
    Watch(Box<ask::Watch>),
    /// Begin a new step of a running daemon's gate
    Start(ask::Start),
    /// End the step
    Stop(ask::Stop),
    /// Judge a recording, JSON Lines; exit code 0 pass, 1 fail, 3 neither
    Replay(replay::Flags),
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// No daemon answers.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// The control socket does not do it.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A recording is wrong.
    #[error(transparent)]
    Replay(#[from] replay::ReplayError),
    /// What is asked makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The result cannot be written.
    #[error("cannot write")]
    Write(#[source] io::Error),
}

impl GateError {
    /// The exit code that it means.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Unreachable(_) | Self::Call(CallError::Unreachable { .. }) => Exit::Unavailable,
            Self::Replay(error) => error.exit(),
            Self::Usage(_) => Exit::Usage,
            Self::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Self::Call(CallError::Refused(_)) | Self::Write(_) => Exit::Failed,
        }
    }
}

/// Does what was asked.
///
/// # Errors
/// When there is no verdict.
pub fn run(command: &Command, out: &mut impl Write) -> Result<Exit, GateError> {
    match command {
        Command::Check(flags) => ask::check(flags, out),
        Command::Watch(flags) => ask::watch(flags, out),
        Command::Start(flags) => ask::start(flags),
        Command::Stop(flags) => ask::stop(flags),
        Command::Replay(flags) => Ok(replay::replay(flags, out)?),
    }
}

/// How strict a gate on the command line is.
#[derive(Args)]
pub struct PolicyFlags {
    /// Probability that a harmless canary is ever rolled back in a whole rollout
    #[arg(long, env = "TICKSCOPE_GATE_ALPHA", default_value_t = Policy::default().alpha, value_parser = share)]
    pub alpha: f64,
    /// Steps of the rollout that share alpha
    #[arg(long, env = "TICKSCOPE_GATE_STEPS", default_value_t = Policy::default().steps,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub steps: u32,
    /// Share of the traffic that the canary should have; far from it, there is no pass
    #[arg(long, env = "TICKSCOPE_GATE_SHARE", value_name = "SHARE", value_parser = share)]
    pub share: Option<f64>,
}

impl PolicyFlags {
    /// As the core wants it.
    pub fn policy(&self) -> Policy {
        Policy { alpha: self.alpha, steps: self.steps, share: self.share, ..Policy::default() }
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("write a number between 0 and 1".into()),
    }
}

/// The exit code of a verdict.
pub fn exit(verdict: Verdict) -> Exit {
    match verdict {
        Verdict::Pass => Exit::Done,
        Verdict::Fail => Exit::Failed,
        Verdict::Inconclusive | Verdict::NoData => Exit::Inconclusive,
    }
}
