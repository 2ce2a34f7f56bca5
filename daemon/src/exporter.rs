//! Shows snapshots: the same snapshot always gives the same bytes.

pub mod gate;
pub mod json;
pub mod prometheus;

use std::sync::Arc;

use tickscope_common::catalog::PROBES;
use tickscope_core::gate::Status;
use tickscope_core::{Key, Snapshot};

use crate::run::Reloaded;
use crate::source::Facts;

/// Everything that exporters show.
#[derive(Clone)]
pub struct Input {
    /// What is known.
    pub snapshot: Arc<Snapshot>,
    /// What does not change while a source runs.
    pub facts: Arc<Facts>,
    /// How the latest reload went.
    pub reloaded: Reloaded,
    /// What the gates say.
    pub gates: Arc<Vec<Status>>,
}

impl Input {
    /// Name of a target.
    pub fn target(&self, key: Key) -> &str {
        self.snapshot.targets.get(key.target).map_or("", |target| target.name.as_str())
    }
}

/// Name and value of the label beside `target`, if the probe has one.
pub fn label(key: Key) -> Option<(&'static str, &'static str)> {
    let label = PROBES[key.probe].label.as_ref()?;
    Some((label.name, label.values[key.label]))
}
