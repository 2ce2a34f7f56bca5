//! `tickscope rules`: recording and alerting rules of the configured objectives, for Prometheus and
//! whatever reads its rule files.
//!
//! They build on the daemon's counters of events, not on `_bucket` series: so a threshold is exact
//! to a bucket of the fine histogram, a restart is an ordinary counter reset, nodes add up, and
//! classic and native histograms make no difference. Burn rates are those of the SRE workbook
//! (chapter 5, table 5-8).

use std::path::PathBuf;

use clap::Args;

use crate::config::{Config, ConfigError, Slo, percent};

/// Flags of `tickscope rules`.
#[derive(Args)]
pub struct Flags {
    /// The configuration whose objectives are meant
    #[arg(long, short, env = "TICKSCOPE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Labels that keep budgets apart, besides `slo`: `instance` for one a node
    #[arg(long, env = "TICKSCOPE_BY", value_name = "LABEL", value_delimiter = ',', value_parser = label)]
    pub by: Vec<String>,
    /// Where docs/runbooks of this repository is published
    #[arg(long, env = "TICKSCOPE_RUNBOOKS", value_name = "URL", default_value = RUNBOOKS)]
    pub runbooks: String,
}

/// A place that cannot exist (RFC 2606), to be replaced by your own.
const RUNBOOKS: &str = "https://tickscope.example/docs/runbooks";

/// Seconds between evaluations. Long windows are sums over recorded rates and count them.
const INTERVAL: u64 = 30;

/// One pair of windows of an alert.
struct Pair {
    alert: &'static str,
    severity: &'static str,
    /// Burn rate over both windows, from which on it fires.
    above: f64,
    long: &'static str,
    /// Without it an alert would go on for as long as its long window after all is well.
    short: &'static str,
    /// Share of a 30-day budget that is gone by then.
    spent: &'static str,
}

const PAIRS: &[Pair] = &[
    Pair { alert: "TickscopeSloBurn", severity: "page", above: 14.4, long: "1h", short: "5m", spent: "2%" },
    Pair { alert: "TickscopeSloBurn", severity: "page", above: 6.0, long: "6h", short: "30m", spent: "5%" },
    Pair {
        alert: "TickscopeSloBurnSlow",
        severity: "ticket",
        above: 3.0,
        long: "1d",
        short: "2h",
        spent: "10%",
    },
    Pair {
        alert: "TickscopeSloBurnSlow",
        severity: "ticket",
        above: 1.0,
        long: "3d",
        short: "6h",
        spent: "10%",
    },
];

/// Windows whose burn rate comes straight from the counters; for longer ones recorded rates are
/// added up, which spares the server reading days of raw samples. The oldest 5 minutes of such a
/// window blur.
const DIRECT: &[&str] = &["30m", "1h"];
const ADDED: &[&str] = &["2h", "6h", "1d", "3d"];

/// The rules of all objectives, as YAML.
///
/// # Errors
/// When the configuration is wrong.
pub fn rules(flags: &Flags) -> Result<String, ConfigError> {
    let config = Config::load(flags.config.as_deref())?;
    Ok(text(&config, flags))
}

fn label(text: &str) -> Result<String, String> {
    let good =
        |(index, c): (usize, char)| c == '_' || c.is_ascii_alphabetic() || index > 0 && c.is_ascii_digit();
    if !text.is_empty() && text.chars().enumerate().all(good) {
        Ok(text.into())
    } else {
        Err("a label is letters, digits and _".into())
    }
}

fn text(config: &Config, flags: &Flags) -> String {
    if config.slo.is_empty() {
        return "# The configuration has no [[slo]]: nothing to record, nothing to alert on.\ngroups: []\n"
            .into();
    }
    let head = "# Printed by `tickscope rules` from the [[slo]] of a configuration: change that, not this.\ngroups:\n";
    config.slo.iter().fold(head.to_owned(), |text, slo| text + &group(slo, flags))
}

fn group(slo: &Slo, flags: &Flags) -> String {
    let name = &slo.name;
    let mine = format!("{{slo=\"{name}\"}}");
    let by: Vec<&str> = std::iter::once("slo").chain(flags.by.iter().map(String::as_str)).collect();
    let sum = format!("sum by ({})", by.join(", "));
    let budget =
        percent(1.0 - slo.objective).trim_end_matches('%').parse::<f64>().unwrap_or_default() / 100.0;
    let mut text = format!("- name: tickscope-slo-{name}\n  interval: {INTERVAL}s\n  rules:\n");
    let mut record = |record: &str, expr: &str| {
        // The label is there already; said again, it keeps promtool from taking the groups for
        // duplicates of each other.
        text += &format!(
            "  - record: slo:tickscope_slo_{record}\n    expr: {expr}\n    labels: {{slo: {name}}}\n"
        );
    };

    let raw = |what: &str, window: &str| format!("{sum} (rate(tickscope_slo_{what}_total{mine}[{window}]))");
    let of = |bad: &str, events: &str| format!("{bad} / ({events} > 0) / {budget}");
    record("events:rate5m", &raw("events", "5m"));
    record("bad_events:rate5m", &raw("bad_events", "5m"));
    let recorded = |what: &str| format!("slo:tickscope_slo_{what}:rate5m{mine}");
    record("burn_rate:5m", &of(&recorded("bad_events"), &recorded("events")));
    for window in DIRECT {
        record(&format!("burn_rate:{window}"), &of(&raw("bad_events", window), &raw("events", window)));
    }
    let added = |what: &str, window: &str| format!("sum_over_time({}[{window}])", recorded(what));
    for window in ADDED {
        record(&format!("burn_rate:{window}"), &of(&added("bad_events", window), &added("events", window)));
    }
    // Of a window that is covered in part, only that part of the budget can be burnt.
    let burnt = |seconds: u64| {
        let days = seconds / 86_400;
        let window = if seconds == days * 86_400 { format!("{days}d") } else { format!("{seconds}s") };
        let rate = of(&added("bad_events", &window), &added("events", &window));
        format!("{rate} * count_over_time({}[{window}]) * {INTERVAL} / {seconds}", recorded("events"))
    };
    record("week_burnt:ratio", &burnt(7 * 86_400));
    record("budget_remaining:ratio", &format!("1 - {}", burnt(slo.window.as_secs())));

    let promise = slo.promise();
    let mut alert = |name: &str, expr: &str, hold: &str, severity: &str, labels: &str, summary: &str| {
        let hold = if hold.is_empty() { String::new() } else { format!("    for: {hold}\n") };
        text += &format!(
            "  - alert: {name}\n    expr: {expr}\n{hold}    labels: {{slo: {}, severity: {severity}{labels}}}\n    annotations:\n\
             \x20     summary: '{summary}'\n      description: 'Promised: {promise}.'\n      runbook_url: {}/{name}.md\n",
            slo.name,
            flags.runbooks.trim_end_matches('/'),
        );
    };
    for Pair { alert: name, severity, above, long, short, spent } in PAIRS {
        let over = |window: &str| format!("slo:tickscope_slo_burn_rate:{window}{mine} > {above}");
        let expr = format!("{} and {}", over(long), over(short));
        let summary = format!(
            "{} burns its error budget {{{{ $value | printf \"%.1f\" }}}} times too fast ({long} and {short}; {spent} of 30 days is gone)",
            slo.name
        );
        alert(name, &expr, "", severity, &format!(", window: {long}"), &summary);
    }
    let share = "{{ $value | humanizePercentage }}";
    let week = format!("slo:tickscope_slo_week_burnt:ratio{mine}");
    let summary = format!("{} burnt {share} of a week''s error budget: gates promote nothing", slo.name);
    alert("TickscopeSloBudgetFrozen", &format!("{week} > 0.5"), "", "ticket", "", &summary);
    let summary = format!("{} burnt {share} of a week''s error budget: hotfixes only", slo.name);
    alert("TickscopeSloBudgetSpent", &format!("{week} >= 1"), "", "ticket", "", &summary);
    let none = format!("absent({} > 0)", recorded("events"));
    let summary = format!("{} has no events: nobody knows whether it is kept", slo.name);
    alert("TickscopeSloNoData", &none, "15m", "ticket", "", &summary);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "[[slo]]\nname = \"there\"\navailable = \"engine\"\nobjective = \"99.99%\"\n";

    fn printed(by: &[&str]) -> String {
        let by = by.iter().map(|label| (*label).to_owned()).collect();
        let flags = Flags { config: None, by, runbooks: "https://wiki.internal/tickscope/".into() };
        text(&Config::parse(CONFIG).unwrap(), &flags)
    }

    #[test]
    fn a_budget_is_written_as_the_number_it_is() {
        let text = printed(&[]);
        assert!(text.contains(" > 0) / 0.0001\n"), "{text}");
        assert!(
            text.contains("runbook_url: https://wiki.internal/tickscope/TickscopeSloBurn.md\n"),
            "{text}"
        );
    }

    #[test]
    fn budgets_are_kept_apart_by_labels() {
        let text = printed(&["instance", "cluster"]);
        assert!(text.contains("sum by (slo, instance, cluster) (rate("), "{text}");
        assert!(label("instance").is_ok());
        for wrong in ["", "1a", "a b", "a)"] {
            assert!(label(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn without_objectives_there_are_no_rules() {
        let flags = Flags { config: None, by: Vec::new(), runbooks: String::new() };
        assert!(text(&Config::default(), &flags).ends_with("groups: []\n"));
    }
}
