//! What is watched while the daemon runs: limits that will be crossed, series that are unusual.
//!
//! All of it learns, so all of it can be saved and restored: [`Watch::save`], [`Watch::restore`].

mod anomaly;
mod limit;

use serde::{Deserialize, Serialize};
use tickscope_common::catalog::PROBES;

use anomaly::{Anomalies, Context};
pub use anomaly::{AnomalyScore, Finding};
use limit::Watched;
pub use limit::{LimitStatus, Rule, Subject};

use crate::forecast::TrackRecord;
use crate::measurement::{Measurements, Outlier};
use crate::series::Now;
use crate::snapshot::Key;

/// What is saved is of this version; another one is not read.
pub const SAVED_VERSION: u32 = 1;
/// What is older than this is no longer true of the system, seconds.
pub const SAVED_AGE_MAX_S: f64 = 86_400.0;

/// All watching.
#[derive(Default)]
pub struct Watch {
    limits: Vec<Watched>,
    anomalies: Anomalies,
    record: TrackRecord,
    /// Added to the monotonic clock, seconds: a saved state goes on where it was, whatever that
    /// clock has done since.
    offset_s: f64,
}

/// What a watch remembers, to be written and read back.
#[derive(Serialize, Deserialize)]
pub struct Saved {
    limits: Vec<Watched>,
    anomalies: Anomalies,
    record: TrackRecord,
    t: f64,
    wall_ns: u64,
}

/// Why a saved state is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// It was saved too long ago.
    Old,
    /// It comes from the future: the wall clock was set back.
    Future,
}

impl Watch {
    /// Watches these limits from now on. Those that were watched before go on.
    pub fn set_limits(&mut self, rules: Vec<Rule>) {
        let mut before = std::mem::take(&mut self.limits);
        self.limits = rules
            .into_iter()
            .map(|rule| match before.iter().position(|watched| watched.rule().same(&rule)) {
                Some(index) => before.swap_remove(index).under(rule),
                None => Watched::new(rule),
            })
            .collect();
    }

    /// One more reading.
    pub fn step(&mut self, reading: &Measurements, now: Now, targets: &[String], outliers: &[Outlier]) {
        let t = now.monotonic_ns as f64 / 1e9 + self.offset_s;
        for limit in &mut self.limits {
            limit.step(reading, t, &mut self.record);
        }
        self.anomalies.step(reading, &Context { t, wall_s: now.wall_ns as f64 / 1e9, targets, outliers });
    }

    /// Every limit now.
    pub fn limits(&self) -> Vec<LimitStatus> {
        self.limits.iter().map(Watched::status).collect()
    }

    /// How forecasts have turned out.
    pub fn record(&self) -> &TrackRecord {
        &self.record
    }

    /// What was unusual lately, and is.
    pub fn findings(&self) -> Vec<Finding> {
        self.anomalies.findings()
    }

    /// How unusual every series is now.
    pub fn scores(&self) -> Vec<AnomalyScore> {
        self.anomalies.scores()
    }

    /// Series that are not watched for anomalies, because memory for them is bounded.
    pub fn unwatched(&self) -> usize {
        self.anomalies.unwatched()
    }

    /// What it remembers.
    pub fn save(&self, now: Now) -> Saved {
        Saved {
            limits: self.limits.clone(),
            anomalies: self.anomalies.clone(),
            record: self.record.clone(),
            t: now.monotonic_ns as f64 / 1e9 + self.offset_s,
            wall_ns: now.wall_ns,
        }
    }

    /// Goes on from what was saved; limits that have changed since begin anew.
    ///
    /// # Errors
    /// When it is stale; then nothing has changed.
    pub fn restore(&mut self, saved: Saved, now: Now) -> Result<(), Stale> {
        let age_s = (now.wall_ns as f64 - saved.wall_ns as f64) / 1e9;
        if age_s > SAVED_AGE_MAX_S {
            return Err(Stale::Old);
        }
        if age_s < -1.0 {
            return Err(Stale::Future);
        }
        self.offset_s = saved.t + age_s.max(0.0) - now.monotonic_ns as f64 / 1e9;
        let rules: Vec<Rule> = self.limits.iter().map(|watched| watched.rule().clone()).collect();
        self.limits = saved.limits;
        self.set_limits(rules);
        self.anomalies = saved.anomalies;
        self.record = saved.record;
        Ok(())
    }
}

/// Name of a series: `target/probe`, and `.label` where the probe has one.
fn series_name(key: Key, targets: &[String]) -> String {
    let target = targets.get(key.target).map_or("", String::as_str);
    let probe = &PROBES[key.probe];
    match &probe.label {
        Some(label) => format!("{target}/{}.{}", probe.name, label.values[key.label]),
        None => format!("{target}/{}", probe.name),
    }
}
