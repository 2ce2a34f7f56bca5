//! Rules: what `tickscope rules` prints is what is shipped, and the tools of those who read what is
//! in `dashboards/` agree with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn dashboards() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../dashboards")
}

/// Runs a tool of a Debian package on files; says so when it is not installed, and fails where it
/// must be.
fn tool(name: &str, arguments: &[&str], files: &[PathBuf]) {
    let output = match Command::new(name).args(arguments).args(files).output() {
        Ok(output) => output,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "{name}: {error}");
            eprintln!("SKIPPED: {name} is not installed (./x setup --tests)");
            return;
        }
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

/// All files of a directory under `dashboards` with this ending, in order.
fn files(directory: &str, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dashboards().join(directory)).expect("it is there");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.to_str().is_some_and(|path| path.ends_with(ending)));
    files.sort();
    assert!(!files.is_empty(), "{directory} has no {ending}");
    files
}

#[test]
fn the_rules_that_are_shipped_are_those_that_are_printed() {
    let config = dashboards().join("slo.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_tickscope"))
        .args(["rules", "--config"])
        .arg(config)
        .env_remove("TICKSCOPE_BY")
        .env_remove("TICKSCOPE_RUNBOOKS")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let path = dashboards().join("prometheus/tickscope-slo.yml");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &printed).unwrap();
    }
    let shipped = fs::read_to_string(&path).unwrap_or_default();
    assert!(shipped == printed, "{} is old: BLESS=1 cargo test -p tickscope rules", path.display());
}

#[test]
fn promtool_takes_the_configuration_and_every_rule() {
    // Checks the files of rules that it names, too.
    tool("promtool", &["check", "config"], &[dashboards().join("prometheus/prometheus.yml")]);
    let rules = files("prometheus", ".yml").into_iter();
    let rules = rules.filter(|path| path.file_name().is_some_and(|name| name != "prometheus.yml"));
    tool("promtool", &["check", "rules"], &rules.collect::<Vec<_>>());
}

#[test]
fn agents_of_a_fleet_take_their_configurations() {
    tool("promtool", &["check", "config", "--agent"], &files("fleet", "agent.yml"));
}

#[test]
fn alertmanager_takes_its_configuration() {
    let configuration = dashboards().join("alertmanager/alertmanager.yml");
    tool("amtool", &["check-config"], std::slice::from_ref(&configuration));
    let file = format!("--config.file={}", configuration.display());
    for (labels, receiver) in [
        (&["severity=page", "alertname=TickscopeDown"][..], "page"),
        (&["severity=ticket", "alertname=TickscopeLate"], "ticket"),
        (&["alertname=Other"], "ticket"),
    ] {
        let verify = format!("--verify.receivers={receiver}");
        tool("amtool", &[&["config", "routes", "test", &file, &verify], labels].concat(), &[]);
    }
}

#[test]
fn compose_takes_its_file() {
    let file = dashboards().join("compose.yml");
    tool("docker-compose", &["--file", file.to_str().unwrap(), "config", "--quiet"], &[]);
}

#[test]
fn rules_fire_when_they_should_and_not_otherwise() {
    tool("promtool", &["test", "rules"], &files("prometheus/tests", ".yml"));
}
