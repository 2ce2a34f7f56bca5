//! What a gate says: the verdict, why, and the numbers it was based on.

use serde::{Deserialize, Serialize};

/// What the evidence says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Certified: within the margins of the certificate, and it stands.
    Pass,
    /// Harm beyond the tolerated margin.
    Fail,
    /// Neither.
    Inconclusive,
    /// No block with both arms.
    NoData,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pass, Self::Fail, Self::Inconclusive, Self::NoData];

    /// As it is written everywhere.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Inconclusive => "inconclusive",
            Self::NoData => "nodata",
        }
    }

    /// What it asks for. Absence of data never rolls back, and never promotes.
    pub fn action(self) -> Action {
        match self {
            Self::Pass => Action::Promote,
            Self::Fail => Action::Rollback,
            Self::Inconclusive | Self::NoData => Action::Hold,
        }
    }
}

/// What a verdict asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// On to the next step.
    Promote,
    /// Back to the baseline.
    Rollback,
    /// Wait.
    Hold,
}

/// A gate at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What the evidence says.
    pub verdict: Verdict,
    /// What it asks for.
    pub action: Action,
    /// When it was decided, in the time of the blocks; the latest block's without a decision.
    pub t: Option<f64>,
    /// The KPI that decided, or that a decision waits for.
    pub kpi: Option<String>,
    /// Its quantile.
    pub quantile: Option<f64>,
    /// One sentence for a person.
    pub reason: String,
    /// The numbers, KPI by KPI and quantile by quantile.
    pub kpis: Vec<Row>,
}

/// One KPI, or one quantile of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name.
    pub kpi: String,
    /// Which quantile; `None`: it has none.
    pub quantile: Option<f64>,
    /// What the evidence says of this row.
    pub verdict: Verdict,
    /// Value of the baseline over the step; seconds for a latency, a share for errors.
    pub baseline: Option<f64>,
    /// Value of the canary.
    pub canary: Option<f64>,
    /// Canary by baseline.
    pub ratio: Option<f64>,
    /// The ratio is between these with about 95 % confidence, the noise taken into account.
    pub ratio_low: Option<f64>,
    /// See `ratio_low`.
    pub ratio_high: Option<f64>,
    /// Tolerated ratio above 1, in force.
    pub margin: Option<f64>,
    /// Natural logarithm of the evidence of harm of the whole KPI: it fails above -ln(alpha).
    pub evidence: f64,
    /// This KPI's share of the probability of a false rollback, for this step.
    pub alpha: f64,
    /// Observations of the step.
    pub baseline_count: u64,
    /// See `baseline_count`.
    pub canary_count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pass_promotes_and_only_a_fail_rolls_back() {
        let actions = Verdict::ALL.map(Verdict::action);
        assert_eq!(actions, [Action::Promote, Action::Rollback, Action::Hold, Action::Hold]);
    }
}
