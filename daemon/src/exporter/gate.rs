//! `/api/v1/gates/…`: what Argo Rollouts, Flagger, pipelines and `tickscope gate` read.

use serde::{Deserialize, Serialize};
use tickscope_core::gate::{Action, Report, Row, Status, Verdict};

/// A gate that has not been fed for so long has no data, whatever it said last.
const STALE_SECONDS: f64 = 10.0;

/// `/api/v1/gates`
#[derive(Debug, Serialize, Deserialize)]
pub struct Gates {
    /// In the order of the configuration.
    pub gates: Vec<Gate>,
}

/// `/api/v1/gates/NAME`. Every verdict is an answer of its own; none is an error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Gate {
    /// Its name.
    pub gate: String,
    /// `pass`, `fail`, `inconclusive` or `nodata`.
    pub verdict: Verdict,
    /// `promote`, `rollback` or `hold`.
    pub action: Action,
    /// Since when it says so, seconds since 1970; `null`: it was never fed.
    pub since: Option<f64>,
    /// Age of the newest data, seconds.
    pub age_seconds: Option<f64>,
    /// Which build is tested, as whoever started the step calls it.
    pub canary: Option<String>,
    /// Which build is the reference.
    pub stable: Option<String>,
    /// The KPI that decided, or that is waited for.
    pub kpi: Option<String>,
    /// Its quantile.
    pub quantile: Option<f64>,
    /// The numbers.
    pub kpis: Vec<Row>,
    /// One sentence for a person.
    pub reason: String,
}

impl Gate {
    /// The gate at `now_ns`, wall clock.
    pub fn new(status: &Status, now_ns: u64) -> Self {
        let mut status = status.clone();
        let age = (status.read_wall_ns > 0).then(|| now_ns.saturating_sub(status.read_wall_ns) as f64 / 1e9);
        // A fail stays one: rolling back needs no fresh data.
        if status.running
            && status.report.verdict != Verdict::Fail
            && let Some(age) = age.filter(|age| *age > STALE_SECONDS)
        {
            status.without_data(&format!("nothing has been read for {age:.0} s"));
        }
        let Status { name, builds, since_wall_ns, report, .. } = status;
        let Report { verdict, action, kpi, quantile, reason, kpis, .. } = report;
        Self {
            gate: name,
            verdict,
            action,
            since: (since_wall_ns > 0).then(|| since_wall_ns as f64 / 1e9),
            age_seconds: age,
            canary: builds.canary,
            stable: builds.stable,
            kpi,
            quantile,
            kpis,
            reason,
        }
    }

    /// The answer for a name that no gate has: no data, so that whoever asks holds.
    pub fn unknown(name: &str) -> Self {
        Self {
            gate: name.into(),
            verdict: Verdict::NoData,
            action: Verdict::NoData.action(),
            since: None,
            age_seconds: None,
            canary: None,
            stable: None,
            kpi: None,
            quantile: None,
            kpis: Vec::new(),
            reason: format!("no gate is called {name:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tickscope_core::gate::{Builds, Gate as Core, Policy};

    fn status(verdict: Verdict) -> Status {
        let mut report = Core::new(Policy::default(), Vec::new()).report();
        report.verdict = verdict;
        Status {
            name: "engine".into(),
            running: true,
            builds: Builds::default(),
            since_wall_ns: 1_000_000_000,
            read_wall_ns: 2_000_000_000,
            report,
        }
    }

    #[test]
    fn a_pass_grows_old_and_a_fail_does_not() {
        let at = |verdict, second: u64| Gate::new(&status(verdict), second * 1_000_000_000).verdict;
        assert_eq!([at(Verdict::Pass, 3), at(Verdict::Pass, 13)], [Verdict::Pass, Verdict::NoData]);
        assert_eq!([at(Verdict::Fail, 3), at(Verdict::Fail, 13)], [Verdict::Fail, Verdict::Fail]);
        assert_eq!(at(Verdict::Pass, 0), Verdict::Pass, "a clock that was set back is no age");
    }
}
