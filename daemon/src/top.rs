//! `tickscope top`: a running daemon as a table.

use std::fmt::Write;
use std::time::Duration;

use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::json;
use tickscope_core::length;

use crate::exporter::json::forecast::{Forecasts, quantity};
use crate::exporter::json::{Recent, Series, Snapshot, Status};

/// Flags of `tickscope top`.
#[derive(Args)]
pub struct Flags {
    /// Print once and end, instead of every second until interrupted
    #[arg(long)]
    pub once: bool,
    /// Address of the daemon
    #[arg(long, env = "TICKSCOPE_URL", default_value = "http://127.0.0.1:9464", value_name = "URL")]
    pub url: String,
    /// Which of the windows: 10s, 1m, 5m or 1h
    #[arg(long, default_value = "10s", value_parser = ["10s", "1m", "5m", "1h"])]
    pub window: String,
    /// How it is printed
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For a person.
    Text,
    /// For a program.
    Json,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach a daemon at {url}: start one with `tickscope run`, or name another with --url")]
pub struct Unreachable {
    url: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// What the daemon knows now, as text.
///
/// # Errors
/// When there is no daemon.
pub fn page(flags: &Flags) -> Result<String, Unreachable> {
    let status: Status = get(&flags.url, "/api/v1/status")?;
    let snapshot: Snapshot = get(&flags.url, "/api/v1/snapshot")?;
    let forecasts: Forecasts = get(&flags.url, "/api/v1/forecasts")?;
    Ok(match flags.format {
        Format::Json => {
            format!("{:#}\n", json!({ "status": status, "snapshot": snapshot, "forecasts": forecasts }))
        }
        Format::Text => text(&status, &snapshot, &forecasts, &flags.window),
    })
}

/// What a daemon answers.
pub(crate) fn get<T: DeserializeOwned>(url: &str, path: &str) -> Result<T, Unreachable> {
    let unreachable =
        |source: Box<dyn std::error::Error + Send + Sync>| Unreachable { url: url.into(), source };
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).build().into();
    let body = agent
        .get(format!("{}{path}", url.trim_end_matches('/')))
        .call()
        .and_then(|answer| answer.into_body().read_to_string())
        .map_err(|error| unreachable(error.into()))?;
    serde_json::from_str(&body).map_err(|error| unreachable(error.into()))
}

fn text(status: &Status, snapshot: &Snapshot, forecasts: &Forecasts, window: &str) -> String {
    let mut page = String::new();
    for target in &status.targets {
        section(&mut page, target, snapshot, window);
    }
    if status.targets.is_empty() {
        page += "no targets are configured\n";
    }
    foreseen(&mut page, forecasts, snapshot.at_seconds);
    for probe in status.probes.iter().filter(|probe| probe.state != "healthy") {
        line(&mut page, format_args!("{} is {}: {}", probe.name, probe.state, probe.reason));
    }
    for probe in &status.probes {
        for (reason, count) in probe.discarded.iter().filter(|(_, count)| **count > 0) {
            line(&mut page, format_args!("{}: {count} of {} discarded, {reason}", probe.name, probe.seen));
        }
    }
    for lost in status.lost.iter().filter(|lost| lost.count > 0) {
        line(&mut page, format_args!("lost: {} from {}, {}", lost.count, lost.source, lost.reason));
    }
    match status.overhead_cpu_ratio {
        Some(ratio) => line(
            &mut page,
            format_args!(
                "cost: {:.2} % of one CPU for programs and daemon, {} MiB resident",
                ratio * 100.0,
                status.rss_bytes >> 20
            ),
        ),
        None => line(&mut page, format_args!("cost: not known yet")),
    }
    page
}

/// Limits, what is unusual, and how often warnings were right; nothing where there is nothing to say.
fn foreseen(page: &mut String, forecasts: &Forecasts, now_seconds: f64) {
    for forecast in &forecasts.forecasts {
        let value = forecast.value.map_or_else(|| "no data".into(), |value| quantity(value, &forecast.unit));
        line(page, format_args!("{:<8} {} (now {value})", forecast.state, forecast.text));
    }
    for finding in forecasts.findings.iter().filter(|finding| finding.end_s.is_none()) {
        let since = (now_seconds - finding.begin_s).max(0.0);
        let culprit =
            finding.culprit.as_ref().map_or_else(String::new, |comm| format!(", often after {comm}"));
        line(page, format_args!("unusual  {} for {since:.0} s: {}{culprit}", finding.series, finding.text));
    }
    let record = &forecasts.record;
    let judged = record.warnings_true + record.warnings_false;
    if judged > 0 || record.breaches > 0 {
        line(
            page,
            format_args!(
                "record   {} of {judged} warnings came true, {} of {} breaches were warned of",
                record.warnings_true, record.breaches_warned, record.breaches
            ),
        );
    }
    if !page.ends_with("\n\n") {
        page.push('\n');
    }
}

fn line(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(format_args!("{text}\n")).expect("a String takes everything");
}

fn section(page: &mut String, target: &crate::exporter::json::Target, snapshot: &Snapshot, window: &str) {
    let processes = match target.processes {
        0 => "no process matches".into(),
        1 => "1 process".into(),
        n => format!("{n} processes"),
    };
    line(page, format_args!("{} ({processes}), last {window}", target.name));
    line(
        page,
        format_args!(
            "  {:<12} {:<16} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "probe", "", "per second", "p50", "p99", "p99.9", "max", "time"
        ),
    );
    let mut silent: Vec<String> = Vec::new();
    for series in snapshot.series.iter().filter(|series| series.target == target.name) {
        let recent = &series.windows[window];
        if recent.count == 0 {
            if !silent.contains(&series.probe) {
                silent.push(series.probe.clone());
            }
            continue;
        }
        row(page, series, recent);
    }
    let shown = |probe: &String| {
        snapshot.series.iter().any(|series| {
            series.target == target.name && series.probe == *probe && series.windows[window].count > 0
        })
    };
    for probe in silent.iter().filter(|probe| !shown(probe)) {
        line(page, format_args!("  {probe:<12} no data"));
    }
    page.push('\n');
}

/// `time` is the share of the window that these intervals filled, all threads together.
fn row(page: &mut String, series: &Series, recent: &Recent) {
    let label = series.labels.values().next().map_or("", String::as_str);
    let seconds = |value: Option<f64>| value.map_or_else(|| "-".into(), length);
    let quantile = |of: Option<crate::exporter::json::Bounded>| seconds(of.map(|of| of.value));
    line(
        page,
        format_args!(
            "  {:<12} {label:<16} {:>10.1} {:>9} {:>9} {:>9} {:>9} {:>8.2}%",
            series.probe,
            recent.rate.unwrap_or(0.0),
            quantile(recent.p50),
            quantile(recent.p99),
            quantile(recent.p999),
            seconds(recent.max_seconds),
            100.0 * recent.sum_seconds / recent.covered_seconds,
        ),
    );
}
