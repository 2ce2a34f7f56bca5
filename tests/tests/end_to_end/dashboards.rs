//! What dashboards and fleet rules ask, a real Prometheus answers, from a real daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tickscope_common::catalog::PROBES;

use crate::daemon::{Daemon, tickscope};
use crate::load::Load;
use crate::privileged;
use crate::prometheus::Prometheus;

/// Every probe, one target, two objectives: the second line of the table in docs/fleet.md. Nothing is
/// given up for the budget.
pub const CONFIG: &str = "[budget]
cpu = \"100%\"
[[target]]
name = \"t\"
match = { comm = \"tickscope-load\" }
[probes.syscall]
enabled = true
[probes.page_fault]
enabled = true
[[slo]]
name = \"there\"
available = \"t\"
objective = \"99.9%\"
[[slo]]
name = \"naps\"
series = { probe = \"offcpu\", target = \"t\", label = \"sleep\" }
threshold = \"20ms\"
objective = \"99%\"
";

/// A file or directory of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// What `tickscope rules` prints for a configuration.
pub fn rules(config: &str) -> String {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), config).expect("it is written");
    let output = tickscope(&["rules", "--config", file.path().to_str().expect("a path of text")])
        .stderr(Stdio::inherit())
        .output()
        .expect("it runs");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("text")
}

/// A rule file, evaluated every second.
pub fn hurry(rules: &str) -> String {
    rules.replace("interval: 30s", "interval: 1s")
}

/// Every query of the dashboards, of everything that can be chosen.
fn queries() -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(repository("dashboards/grafana")).expect("it is there") {
        let path = entry.expect("it can be read").path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let text = fs::read_to_string(&path).expect("it can be read");
            collect(&serde_json::from_str(&text).expect("JSON"), &mut found);
        }
    }
    let chosen = |query: String| {
        ["job", "instance", "target", "slo"]
            .iter()
            .fold(query.replace("$__rate_interval", "20s"), |query, name| {
                query.replace(&format!("${name}"), ".*")
            })
    };
    let found: Vec<String> = found.into_iter().map(chosen).collect();
    assert!(found.len() > 60, "{}", found.len());
    found
}

fn collect(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            found.extend(object.get("expr").and_then(Value::as_str).map(str::to_owned));
            let definition = object.get("definition").and_then(Value::as_str);
            let metric = definition.and_then(|text| text.strip_prefix("label_values(")?.rsplit_once(", "));
            found.extend(metric.map(|(metric, _)| metric.to_owned()));
            object.values().for_each(|value| collect(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| collect(value, found)),
        _ => {}
    }
}

#[test]
fn every_panel_has_data() {
    if !privileged() {
        return;
    }
    let mut naps = Load::start(&["sleep", "200", "300", "--cpu", "0", "--compete"]);
    // So large that the allocator gives it back, and gets new pages every time.
    let mut faults = Load::start(&["touch", "10000"]);
    let daemon = Daemon::start(CONFIG);
    let data = TempDir::new().expect("a temporary directory");
    let fleet =
        fs::read_to_string(repository("dashboards/prometheus/tickscope-fleet.yml")).expect("it is there");
    fs::write(data.path().join("fleet.yml"), hurry(&fleet)).expect("it is written");
    fs::write(data.path().join("slo.yml"), hurry(&rules(CONFIG))).expect("it is written");
    let prometheus = Prometheus::start(data, &daemon, "rule_files: [fleet.yml, slo.yml]\n");

    let mut open = queries();
    // No budget holds anything back here, and nobody is to wait for one that does.
    let before = open.len();
    open.retain(|query| !query.contains("state!=\"ok\""));
    assert_eq!(before - open.len(), 1);
    for probe in PROBES {
        open.push(format!("job_target:tickscope_{}_seconds:p99_5m", probe.name));
        open.push(format!("instance_target:tickscope_{}_seconds:p99_5m", probe.name));
    }
    let end = Instant::now() + Duration::from_secs(90);
    while !open.is_empty() {
        assert!(Instant::now() < end, "no data after 90 s:\n{}\n{}", open.join("\n"), prometheus.log());
        naps.go();
        faults.go();
        open.retain(|query| {
            !prometheus.values(query).is_some_and(|values| values.iter().any(|v| v.is_finite()))
        });
        thread::sleep(Duration::from_millis(200));
    }
    let budget =
        prometheus.value("slo:tickscope_slo_budget_remaining:ratio{slo=\"naps\"}").expect("it is recorded");
    let own = daemon.metric("tickscope_slo_budget_remaining_ratio{slo=\"naps\"}");
    assert!((budget - own).abs() < 0.01, "{budget} by the rules, {own} by the daemon");
    assert!(!prometheus.log().contains("level=error"), "{}", prometheus.log());

    a_scrape_is_as_large_as_the_table_says(&daemon);
}

fn a_scrape_is_as_large_as_the_table_says(daemon: &Daemon) {
    let document = fs::read_to_string(repository("docs/fleet.md")).expect("it is there");
    let line = document.lines().find(|line| line.starts_with("| 1 | all |")).expect("the table has it");
    let classic: usize = line.split('|').nth(4).and_then(|cell| cell.trim().parse().ok()).expect("a number");
    let text = daemon.page("/metrics");
    // Two more for each series that is watched for anomalies come on top, as the document says.
    let watched = |line: &str| {
        ["tickscope_anomaly_score{", "tickscope_anomaly_open{"].iter().any(|name| line.starts_with(name))
    };
    let samples = text.lines().filter(|line| !line.starts_with('#') && !watched(line)).count();
    // What was never foreseen has no record.
    let unknown = ["tickscope_forecast_coverage_ratio ", "tickscope_forecast_lead_seconds "];
    let unknown = unknown.iter().filter(|name| !text.lines().any(|line| line.starts_with(**name))).count();
    // What was never timed has no cost: a program counts for the first probe that needs it.
    let untimed =
        PROBES.len() - text.lines().filter(|line| line.starts_with("tickscope_probe_cost_seconds{")).count();
    assert_eq!(samples + untimed + unknown, classic, "{text}");
}
