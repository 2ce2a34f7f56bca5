//! From the start to nothing left: signals, reloads, the service manager, what is missing.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::daemon::{Daemon, outcome, program, target, tickscope, wait_for};
use crate::privileged;

#[test]
fn a_reload_keeps_what_works_and_takes_what_is_better() {
    if !privileged() {
        return;
    }
    let daemon = Daemon::start(&target("comm = \"nobody\""));
    let successful = || daemon.metric("tickscope_config_last_reload_successful");
    assert!((successful() - 1.0).abs() < f64::EPSILON);

    daemon.configure("[[target]]\nname = \"Bad Name\"\n");
    daemon.signal(Signal::HUP);
    wait_for("the bad configuration is refused", 10, || (successful() < 0.5).then_some(()));
    assert!(daemon.log().contains("line 3, column 8"), "{}", daemon.log());
    assert_eq!(daemon.status().targets[0].name, "t", "the old one stays");
    assert!(daemon.page("/-/ready").contains("ready"));

    daemon.configure("[[target]]\nname = \"other\"\nmatch = { pid = 1 }\n");
    daemon.signal(Signal::HUP);
    wait_for("the good configuration is taken", 10, || (successful() > 0.5).then_some(()));
    wait_for("its target is seen", 10, || {
        let targets = daemon.status().targets;
        targets.first().is_some_and(|target| target.name == "other" && target.processes == 1).then_some(())
    });
}

#[test]
fn the_service_manager_is_told_and_a_stop_is_clean() {
    if !privileged() {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(Duration::from_secs(10))).expect("a time");
    let mut daemon = Daemon::start_with(&target("pid = 1"), |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    let mut bytes = [0; 256];
    let mut next = || {
        let length = manager.recv(&mut bytes).expect("a notification in time");
        String::from_utf8_lossy(&bytes[..length]).trim().to_owned()
    };
    assert_eq!(next(), "READY=1");
    assert_eq!(next(), "WATCHDOG=1");
    daemon.signal(Signal::TERM);
    let last = (0..100).map(|_| next()).find(|text| text != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
    assert_eq!(daemon.ended(), Some(0), "{}", daemon.log());
}

/// Identifiers of all kernel programs that a process holds.
fn programs_of(pid: u32) -> BTreeSet<u64> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("it runs");
    let text = descriptors.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    text.filter_map(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("prog_id:"))?;
        Some(line.trim().parse().expect("a number"))
    })
    .collect()
}

/// Identifiers of all kernel programs.
fn programs() -> BTreeSet<u64> {
    let output = Command::new("bpftool").args(["prog", "show", "--json"]).output().expect("bpftool runs");
    let all: Value = serde_json::from_slice(&output.stdout).expect("bpftool prints JSON");
    all.as_array().expect("a list").iter().map(|program| program["id"].as_u64().expect("a number")).collect()
}

#[test]
fn killed_it_leaves_nothing_in_the_kernel() {
    if !privileged() {
        return;
    }
    let mut daemon = Daemon::start(&target("pid = 1"));
    let held = programs_of(daemon.pid());
    assert!(held.len() >= 4, "{held:?}");
    daemon.signal(Signal::KILL);
    assert_eq!(daemon.ended(), None);
    // Identifiers are not given twice, so whoever else loads programs meanwhile does not matter.
    wait_for("all of them are gone", 5, || held.is_disjoint(&programs()).then_some(()));
}

#[test]
fn a_target_that_matches_nothing_is_a_state() {
    if !privileged() {
        return;
    }
    let daemon = Daemon::start(&target("comm = \"nobody-has-this\""));
    let status = daemon.status();
    assert_eq!((status.targets[0].state.as_str(), status.targets[0].processes), ("empty", 0));
    assert!(daemon.metric("tickscope_target_processes{target=\"t\"}").abs() < f64::EPSILON);
    let recent = &daemon.series("runqueue", None).windows["10s"];
    assert_eq!((recent.count, recent.p99.is_none()), (0, true), "no data has no quantile");
    let top = tickscope(&["top", "--once", "--url", &daemon.url("")]).output().expect("it runs");
    let top = String::from_utf8_lossy(&top.stdout).into_owned();
    assert!(top.contains("t (no process matches)") && top.contains("runqueue     no data"), "{top}");
}

#[test]
fn logs_can_be_json() {
    if !privileged() {
        return;
    }
    let mut daemon = Daemon::start_with(&target("pid = 1"), |command| {
        command.args(["--log-format", "json"]);
    });
    daemon.signal(Signal::INT);
    assert_eq!(daemon.ended(), Some(0));
    let log = daemon.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let measuring = lines.iter().find(|line| line["fields"]["message"] == "measuring").expect(&log);
    assert!(
        measuring["fields"]["object_sha256"].as_str().is_some_and(|hash| hash.len() == 64),
        "{measuring}"
    );
}

/// Runs `tickscope` where the kernel's description of itself is hidden.
fn without_btf(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"", "sh"])
        .arg(program("tickscope"))
        .args(arguments)
        .stdin(Stdio::null());
    let output = command.output().expect("unshare runs");
    let (code, error) = outcome(&output);
    (code, String::from_utf8_lossy(&output.stdout).into_owned(), error)
}

#[test]
fn a_kernel_without_btf_is_told_with_the_remedy() {
    if !privileged() {
        return;
    }
    let (code, _, error) = without_btf(&["run", "--listen", "127.0.0.1:0"]);
    assert_eq!(code, Some(69), "{error}");
    assert!(error.contains("CONFIG_DEBUG_INFO_BTF=y"), "{error}");
    let (code, out, _) = without_btf(&["doctor"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("CONFIG_DEBUG_INFO_BTF=y"), "{out}");
}

#[test]
fn doctor_finds_this_kernel_able() {
    if !privileged() {
        return;
    }
    let output = tickscope(&["doctor", "--format", "json"]).output().expect("it runs");
    let checks: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(0), "{checks:#}");
    for probe in tickscope_common::catalog::PROBES {
        let found = checks.as_array().expect("a list").iter().any(|check| {
            check["name"].as_str().is_some_and(|name| name.ends_with(probe.name)) && check["ok"] == true
        });
        assert!(found, "{}: {checks:#}", probe.name);
    }
}

#[test]
fn histograms_beyond_the_budget_are_refused_with_the_arithmetic() {
    if !privileged() {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = directory.path().join("small.toml");
    fs::write(&config, "[budget]\nmemory = \"64KiB\"\n").expect("it is written");
    let config = config.to_str().expect("a path of text");
    let output =
        tickscope(&["run", "--config", config, "--listen", "127.0.0.1:0"]).output().expect("it runs");
    let (code, error) = outcome(&output);
    assert_eq!(code, Some(78), "{error}");
    assert!(error.contains("rows x 2088") && error.contains("allows 65536"), "{error}");
}
