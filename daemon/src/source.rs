//! The kernel as a source of measurements.
