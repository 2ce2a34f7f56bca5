//! Keeps the cost of measuring within its budget, by giving up what matters least.

use crate::histogram::Histogram;

/// One change of what is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// What changes.
    pub what: What,
    /// `true`: given up; `false`: taken up again.
    pub shed: bool,
    /// Cost at that time, share of one CPU.
    pub ratio: f64,
    /// What is allowed, share of one CPU.
    pub budget: f64,
}

/// What can be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Sending outliers.
    Outliers,
    /// A probe of the catalog.
    Probe(usize),
}

/// Over budget for this long before something is given up: also the time between two steps, so
/// that the cost can follow.
const PATIENCE_NS: u64 = 10_000_000_000;
/// Quiet for this long before something is taken up again; doubled at every return, up to an hour,
/// so that what costs too much does not come and go.
const QUIET_NS: u64 = 60_000_000_000;
const QUIET_NS_MAX: u64 = 3_600_000_000_000;
/// Taken up again only below this share of the budget.
const QUIET_SHARE: f64 = 0.5;

/// Decides, one step at a time.
pub struct Governor {
    budget: f64,
    /// What was given up, latest last.
    shed: Vec<What>,
    over_since_ns: Option<u64>,
    quiet_since_ns: Option<u64>,
    quiet_ns: u64,
}

impl Governor {
    /// Allows `budget`, share of one CPU.
    pub fn new(budget: f64) -> Self {
        Self { budget, shed: Vec::new(), over_since_ns: None, quiet_since_ns: None, quiet_ns: QUIET_NS }
    }

    /// What is given up now.
    pub fn shed(&self) -> &[What] {
        &self.shed
    }

    /// At most one step for this reading. `running` are the probes that could run, most important
    /// first; the last that is not yet given up goes first.
    pub fn decide(&mut self, ratio: f64, running: &[usize], now_ns: u64) -> Option<Decision> {
        if ratio > self.budget {
            self.quiet_since_ns = None;
            let since = *self.over_since_ns.get_or_insert(now_ns);
            if now_ns.saturating_sub(since) < PATIENCE_NS {
                return None;
            }
            self.over_since_ns = Some(now_ns);
            let candidates =
                std::iter::once(What::Outliers).chain(running.iter().rev().copied().map(What::Probe));
            let what = candidates.into_iter().find(|what| !self.shed.contains(what))?;
            self.shed.push(what);
            return Some(Decision { what, shed: true, ratio, budget: self.budget });
        }
        self.over_since_ns = None;
        if ratio > self.budget * QUIET_SHARE || self.shed.is_empty() {
            self.quiet_since_ns = None;
            return None;
        }
        let since = *self.quiet_since_ns.get_or_insert(now_ns);
        if now_ns.saturating_sub(since) < self.quiet_ns {
            return None;
        }
        self.quiet_since_ns = None;
        self.quiet_ns = (self.quiet_ns * 2).min(QUIET_NS_MAX);
        let what = self.shed.pop()?;
        Some(Decision { what, shed: false, ratio, budget: self.budget })
    }
}

/// From which length on an observation is worth a record: about one a second, and never more than
/// one in a thousand. `last_minute` is what was observed in `covered_ns`; `None` without data.
pub fn outlier_above_ns(last_minute: &Histogram, covered_ns: u64) -> Option<u64> {
    let count = last_minute.count() as f64;
    if count == 0.0 {
        return None;
    }
    let rare = 1.0 - (covered_ns as f64 / 1e9) / count;
    let bound = last_minute.quantile(rare.max(0.999))?.high;
    Some(((bound * 1e9) as u64).clamp(1_000, 10_000_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Feeds one ratio a second and collects the steps as text.
    fn run(governor: &mut Governor, from: u64, seconds: u64, ratio: f64) -> Vec<String> {
        (from..from + seconds)
            .filter_map(|second| {
                let decision = governor.decide(ratio, &[0, 1, 2], second * SECOND)?;
                Some(format!(
                    "{second} {} {:?}",
                    if decision.shed { "shed" } else { "restore" },
                    decision.what
                ))
            })
            .collect()
    }

    #[test]
    fn sheds_the_least_important_first_and_one_at_a_time() {
        let mut governor = Governor::new(0.01);
        assert_eq!(
            run(&mut governor, 0, 60, 0.02),
            ["10 shed Outliers", "20 shed Probe(2)", "30 shed Probe(1)", "40 shed Probe(0)"]
        );
        assert_eq!(governor.shed().len(), 4);
    }

    #[test]
    fn a_short_burst_sheds_nothing() {
        let mut governor = Governor::new(0.01);
        assert!(run(&mut governor, 0, 9, 0.5).is_empty());
        assert!(run(&mut governor, 9, 1, 0.001).is_empty());
        assert!(run(&mut governor, 10, 9, 0.5).is_empty());
    }

    #[test]
    fn restores_late_in_reverse_and_later_each_time() {
        let mut governor = Governor::new(0.01);
        run(&mut governor, 0, 21, 0.02);
        assert!(run(&mut governor, 21, 300, 0.008).is_empty(), "not while near the budget");
        assert_eq!(run(&mut governor, 400, 200, 0.001), ["460 restore Probe(2)", "581 restore Outliers"]);
    }

    #[test]
    fn outliers_are_about_one_a_second() {
        let mut minute = Histogram::default();
        for i in 0..60_000u64 {
            minute.observe(10_000 + i);
        }
        let above = outlier_above_ns(&minute, 60 * SECOND).expect("data");
        let more = (0..60_000u64).filter(|i| 10_000 + i > above).count();
        assert!(more <= 60, "{more}");
        assert_eq!(outlier_above_ns(&Histogram::default(), SECOND), None);
    }
}
