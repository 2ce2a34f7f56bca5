//! The gate's surroundings: what feeds it and what its verdicts become. The gate itself is pure
//! and in the core.

pub mod replay;

use clap::Args;
use tickscope_core::gate::{Policy, Verdict};

use crate::exit::Exit;

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
