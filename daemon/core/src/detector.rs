//! What is unusual about a series.
//!
//! A detector scores; [`Threshold`] says from which score on it is worth a report, by the rate of
//! false alarms that is allowed; [`Trigger`] makes episodes of scores. To add a detector: one file,
//! one line in [`DETECTORS`].

mod shift;
mod tail;
mod threshold;

pub use shift::{Shift, Shifted};
pub use tail::{FEATURES, Refractory, Tail};
pub use threshold::{Threshold, Trigger};

/// What can be said about a detector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detector {
    /// Name in metrics and findings.
    pub name: &'static str,
    /// What it looks at.
    pub watches: &'static str,
    /// What it finds.
    pub finds: &'static str,
}

/// All detectors.
pub const DETECTORS: &[Detector] = &[
    Detector {
        name: "shift",
        watches: "the histogram of every series, every 10 s",
        finds: "latency that got slower, of another shape or with another tail than an hour ago and than at this time of day",
    },
    Detector {
        name: "rate",
        watches: "observations per second of every series, every 10 s",
        finds: "more or fewer observations than the series has shown so far",
    },
    Detector {
        name: "loss",
        watches: "lost and discarded observations per second, every 10 s",
        finds: "losses that are more than the usual ones",
    },
];
