//! How many series a node makes, from the catalog and from METRICS.md.

use anyhow::{Context, Result, bail};
use tickscope_common::catalog::{PROBES, Probe};
use tickscope_common::layout::REASONS;

/// Series of a classic histogram: 36 buckets, `+Inf`, sum and count. A native one is one series.
const CLASSIC: usize = 36 + 3;
/// Objectives a target in the table: available and fast.
const SLOS: usize = 2;
const BEGIN: &str = "<!-- cardinality: written by `cargo xtask dashboards` -->\n";
const END: &str = "<!-- /cardinality -->\n";

/// `document` with the table of today.
///
/// # Errors
/// When there is no place for it, or METRICS.md has a label that is not known here.
pub fn insert(document: &str, reference: &str) -> Result<String> {
    let (before, rest) = document.split_once(BEGIN).context("docs/fleet.md has a place for the table")?;
    let (_, after) = rest.split_once(END).context("docs/fleet.md has an end of the table")?;
    Ok(format!("{before}{BEGIN}{}{END}{after}", table(reference)?))
}

fn table(reference: &str) -> Result<String> {
    let mut text = String::from(
        "| Targets | Probes | Histograms | Series, classic | Series, native | 1,000 nodes every 15 s: samples/s, classic | native |\n\
         |---:|---|---:|---:|---:|---:|---:|\n",
    );
    for targets in [1, 2, 4, 16] {
        for (which, all) in [("default", false), ("all", true)] {
            let enabled = |probe: &&Probe| all || probe.default;
            let histograms = targets * PROBES.iter().filter(enabled).map(Probe::rows).sum::<usize>();
            let own = own(reference, targets, SLOS * targets)?;
            let (classic, native) = (histograms * CLASSIC + own, histograms + own);
            text += &format!(
                "| {targets} | {which} | {histograms} | {classic} | {native} | {} | {} |\n",
                classic * 1000 / 15,
                native * 1000 / 15
            );
        }
    }
    Ok(text)
}

/// Series of the daemon's own metrics.
fn own(reference: &str, targets: usize, slos: usize) -> Result<usize> {
    let table =
        reference.split("## The daemon itself").nth(1).context("METRICS.md has the daemon's metrics")?;
    let mut series = 0;
    for line in table.lines().filter(|line| line.starts_with("| `")) {
        let labels = line.split('|').nth(3).context("a table of four columns")?;
        let labels: Vec<&str> = labels.split(',').map(|label| label.trim().trim_matches('`')).collect();
        let mut product = 1;
        for label in &labels {
            product *= match *label {
                // One build runs on one kernel.
                "" | "version" | "git_sha" | "object_sha256" | "kernel" => 1,
                "target" => targets,
                "probe" => PROBES.len(),
                "slo" => slos,
                "window" => 7,
                "state" if labels.contains(&"slo") => 4,
                "state" => 5,
                "reason" if labels.contains(&"source") => 1,
                "reason" => REASONS.len(),
                // None is configured here.
                "gate" | "kpi" | "quantile" | "series" | "direction" | "detector" => 0,
                // Three ways to lose in the ring and one in programs; four verdicts.
                "source" | "verdict" => 4,
                "bound" => 3,
                "outcome" | "warned" => 2,
                other => bail!("METRICS.md has a label `{other}`: say here how many values it has"),
            };
        }
        series += product;
    }
    Ok(series)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_multiply() {
        let reference = "## The daemon itself\n\n| Metric | Type | Labels | Says |\n|---|---|---|---|\n\
             | `a` | gauge |  | x |\n| `b` | gauge | `slo`, `window` | x |\n| `c` | counter | `target` | x |\n";
        assert_eq!(own(reference, 3, 2).unwrap(), 1 + 14 + 3);
        let error = own(&reference.replace("`target`", "`pid`"), 1, 1).unwrap_err();
        assert!(error.to_string().contains("`pid`"), "{error}");
    }

    #[test]
    fn the_table_replaces_the_one_before() {
        let reference = "## The daemon itself\n| `a` | gauge |  | x |\n";
        let once = insert(&format!("before\n{BEGIN}{END}after\n"), reference).unwrap();
        assert!(once.starts_with("before\n") && once.ends_with("after\n") && once.contains("| 16 | all |"));
        assert_eq!(insert(&once, reference).unwrap(), once);
    }
}
