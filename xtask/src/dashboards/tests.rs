//! What is checked in is what is generated, and every query, alert and runbook fits the others.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use super::*;

/// Metrics that are not ours: Prometheus' own, and node_exporter's.
const FOREIGN: &[&str] =
    &["up", "scrape_samples_scraped", "node_cpu_seconds_total", "node_memory_", "node_filesystem_"];

fn dashboards() -> Vec<(String, Value)> {
    ["fleet", "node", "slo"]
        .into_iter()
        .map(|name| {
            let text = read(&format!("dashboards/grafana/{name}.json")).unwrap();
            (name.to_owned(), serde_json::from_str(&text).expect(name))
        })
        .collect()
}

/// All panels, those of closed rows too, without the rows.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let list = |value: &'static str, of: &Value| of[value].as_array().cloned().unwrap_or_default().len();
    let all = dashboard["panels"].as_array().expect("a list");
    let inside = all.iter().filter(|panel| list("panels", panel) > 0);
    let inside = inside.flat_map(|row| row["panels"].as_array().expect("a list"));
    all.iter().filter(|panel| panel["type"] != "row").chain(inside).collect()
}

/// Every query of every dashboard, with its place.
fn queries() -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for (name, dashboard) in dashboards() {
        for panel in panels(&dashboard) {
            for target in panel["targets"].as_array().expect("a list") {
                let expr = target["expr"].as_str().expect("a query").to_owned();
                queries.push((format!("{name}: {}", panel["title"]), expr));
            }
        }
        for variable in dashboard["templating"]["list"].as_array().expect("a list") {
            if let Some(query) = variable["definition"].as_str() {
                let inner = query.strip_prefix("label_values(").and_then(|rest| rest.rsplit_once(", "));
                queries.push((format!("{name}: ${}", variable["name"]), inner.expect(query).0.to_owned()));
            }
        }
    }
    assert!(queries.len() > 60, "{}", queries.len());
    queries
}

/// The files of rules, by name.
fn rule_files() -> Vec<(PathBuf, String)> {
    let directory = root().join("dashboards/prometheus");
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let paths = paths.filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".yml") && name != "prometheus.yml"
    });
    let mut files: Vec<_> = paths.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect();
    files.sort();
    files
}

/// The values of a key in YAML, as these files write it: one a line.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let lines = text.lines().map(|line| line.trim_start().trim_start_matches("- "));
    lines.filter_map(|line| Some(line.strip_prefix(key)?.strip_prefix(": ")?.trim())).collect()
}

#[test]
fn what_is_checked_in_is_what_is_generated() {
    for (path, text) in files().unwrap() {
        assert!(read(path).unwrap_or_default() == text, "{path} is old: cargo xtask dashboards");
    }
}

#[test]
fn every_panel_is_explained_and_every_dashboard_has_its_name() {
    let mut uids = BTreeSet::new();
    for (name, dashboard) in dashboards() {
        assert!(uids.insert(dashboard["uid"].as_str().unwrap().to_owned()), "{name}");
        assert_eq!(dashboard["editable"], false);
        let variables: Vec<&str> = dashboard["templating"]["list"]
            .as_array()
            .unwrap()
            .iter()
            .map(|variable| variable["name"].as_str().unwrap())
            .collect();
        assert_eq!(variables[..3], ["datasource", "job", "instance"], "{name}");
        let (mut ids, mut titles) = (BTreeSet::new(), BTreeSet::new());
        for panel in panels(&dashboard) {
            let title = panel["title"].as_str().unwrap();
            assert!(titles.insert(title), "{name}: two panels are called {title}");
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{name}: {title}");
            assert!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{name}: {title}");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{name}: {title}");
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{name}: {title}");
            let grid = &panel["gridPos"];
            assert!(grid["x"].as_u64().unwrap() + grid["w"].as_u64().unwrap() <= 24, "{name}: {title}");
        }
    }
}

#[test]
fn queries_are_written_as_they_should_be() {
    for (place, expr) in queries() {
        assert!(!expr.contains("le=") && !expr.contains("le=~"), "{place} matches an le: {expr}");
        let rates = expr.matches("rate(").count();
        assert_eq!(rates, expr.matches("[$__rate_interval]").count(), "{place}: {expr}");
        let recorded_only = !expr.contains("tickscope_") || expr.contains("slo:tickscope_slo_");
        let chosen = expr.contains("job=~\"$job\"") || place.ends_with("$\"job\"") || recorded_only;
        assert!(chosen, "{place} is not of the chosen job: {expr}");
    }
}

#[test]
fn every_metric_that_is_named_exists() {
    let reference = read("dashboards/METRICS.md").unwrap();
    let rules = rule_files();
    let recorded: Vec<&str> = rules.iter().flat_map(|(_, text)| values(text, "record")).collect();
    let exists = |name: &str| {
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let histogram = histogram.filter(|name| name.ends_with("_seconds")).unwrap_or(name);
        recorded.contains(&name)
            || reference.contains(&format!("| `{histogram}` |"))
            || FOREIGN.iter().any(|foreign| name.starts_with(foreign))
    };
    let of_rules = rules.iter().flat_map(|(path, text)| {
        values(text, "expr").into_iter().map(move |expr| (path.display().to_string(), expr.to_owned()))
    });
    for (place, expr) in queries().into_iter().chain(of_rules) {
        let words = expr.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
        let metrics = words.filter(|word| word.contains("tickscope_") || word.starts_with("process_"));
        for metric in metrics {
            assert!(exists(metric), "{place}: there is no {metric}");
        }
    }
}

#[test]
fn promtool_can_parse_every_query() {
    let mut rules = String::from("groups:\n- name: dashboards\n  rules:\n");
    for (index, (_, expr)) in queries().iter().enumerate() {
        let expr = expr.replace("$__rate_interval", "1m");
        rules += &format!("  - record: q{index}\n    expr: {}\n", Value::from(expr));
    }
    let file = std::env::temp_dir().join(format!("tickscope-dashboards-{}.yml", std::process::id()));
    fs::write(&file, rules).unwrap();
    let output = Command::new("promtool").args(["check", "rules"]).arg(&file).output();
    drop(fs::remove_file(&file));
    match output {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "promtool: {error}");
            eprintln!("SKIPPED: promtool is not installed (./x setup --tests)");
        }
    }
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let (mut alerts, mut count) = (BTreeSet::new(), 0);
    for (path, text) in rule_files() {
        for alert in text.split("- alert: ").skip(1) {
            let name = alert.lines().next().unwrap_or_default().trim();
            let alert = alert.split("- record: ").next().unwrap_or_default();
            let place = format!("{}: {name}", path.display());
            let severity = ["severity: page", "severity: ticket"].iter().any(|text| alert.contains(text));
            assert!(severity, "{place} has no severity");
            for key in ["summary: ", "description: "] {
                assert!(alert.contains(key), "{place} has no {key}");
            }
            assert!(
                alert.contains(&format!("runbook_url: https://tickscope.example/docs/runbooks/{name}.md")),
                "{place}"
            );
            alerts.insert(name.to_owned());
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
    let mut runbooks = BTreeSet::new();
    for entry in fs::read_dir(root().join("docs/runbooks")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        if name == "README" {
            continue;
        }
        assert!(text.starts_with(&format!("# {name}\n")), "{name}");
        for part in ["## What it means", "## Confirm", "## Do"] {
            assert!(text.contains(part), "{name} has no {part}");
        }
        runbooks.insert(name);
    }
    assert_eq!(alerts, runbooks);
}
