//! The pure half of the daemon: measurements and time in, a [`Snapshot`] out.
//!
//! No clock, no IO, no async, no logs: live operation, replay and tests run the same code. It is
//! not the place for reading the kernel (daemon `source`) or for formats (daemon `exporter`).
//! Start with [`State::step`].
#![forbid(unsafe_code)]

mod detector;
mod forecast;
pub mod gate;
mod governor;
mod histogram;
mod measurement;
mod series;
mod slo;
mod snapshot;
mod text;
mod watch;
mod window;

pub use detector::{DETECTORS, Detector, FEATURES, Refractory, Shift, Shifted, Tail, Threshold, Trigger};
pub use forecast::{
    Counts, Direction, Effort, Eta, Forecast, Forecaster, Limit, PROMISE, Pending, TrackRecord,
};
pub use governor::{Decision, Governor, What, outlier_above_ns};
pub use histogram::{Histogram, Quantile, lower_seconds, upper_seconds};
pub use measurement::{
    Accounting, Cost, Culprit, Lost, Measurements, Outlier, ProbeReading, ProbeState, RowReading,
    TargetReading,
};
pub use series::{Now, State};
pub use slo::{BURN_WINDOWS, Budget, Burn, Events, Indicator, Objective, SloStatus, good_slot};
pub use snapshot::{Key, ProbeStatus, Series, Snapshot, TargetStatus, WINDOWS, Window};
pub use text::{length, percentile};
pub use watch::{AnomalyScore, Finding, LimitStatus, Rule, SAVED_VERSION, Saved, Stale, Subject, Watch};
