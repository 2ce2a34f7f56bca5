//! Says in the log what begins and ends: warnings, breaches, findings. Once each.

use std::collections::BTreeMap;

use tickscope_core::Snapshot;
use tracing::{info, warn};

use crate::exporter::json::forecast::{sentence, state};

/// What was said already.
#[derive(Default)]
pub struct Announcer {
    /// State of each limit that was last said, by series and direction.
    limits: BTreeMap<(String, bool), &'static str>,
    /// The latest finding that was said to begin, and those that are not yet over.
    last_finding: u64,
    open: Vec<u64>,
}

impl Announcer {
    /// Says what is new in this snapshot.
    pub fn announce(&mut self, snapshot: &Snapshot) {
        for limit in &snapshot.limits {
            let above = limit.rule.limit.direction == tickscope_core::Direction::Above;
            let before = self.limits.entry((limit.rule.series.clone(), above)).or_insert("unknown");
            let now = state(limit);
            match (*before, now) {
                (a, b) if a == b => continue,
                (_, "breached") => warn!(text = sentence(limit), "limit breached"),
                ("breached", _) => info!(series = limit.rule.series, "limit no longer breached"),
                (_, "warning") => warn!(text = sentence(limit), "limit will be breached"),
                ("warning", _) => info!(text = sentence(limit), "warning ended"),
                _ => {}
            }
            *before = now;
        }
        for finding in &snapshot.findings {
            let tickscope_core::Finding { id, series, detector, text, .. } = finding;
            if *id > self.last_finding {
                self.last_finding = *id;
                self.open.push(*id);
                warn!(id, series, detector, text, culprit = finding.culprit.as_deref(), "anomaly");
            }
            if let (Some(end_s), Some(at)) = (finding.end_s, self.open.iter().position(|open| open == id)) {
                self.open.swap_remove(at);
                let seconds = (end_s - finding.begin_s).round();
                info!(id, series, detector, seconds, size = finding.size, "anomaly over");
            }
        }
        // Those that are no longer kept are not said to end.
        self.open.retain(|id| snapshot.findings.iter().any(|finding| finding.id == *id));
    }
}
