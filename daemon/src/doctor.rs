//! `tickscope doctor`: what this kernel and these privileges allow, with the remedy.

use std::fs;

use serde::Serialize;
use tickscope_common::catalog::PROBES;
use tickscope_core::ProbeState;

use crate::config::Config;
use crate::loader::{self, Loaded};
use crate::offset::{Facts, KERNEL_BTF};
use crate::run::chain;

/// `linux/capability.h`
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// Whether default probes need it.
    pub required: bool,
    /// What was found.
    pub detail: String,
    /// What to do when it is not ok; empty when it is.
    pub remedy: String,
}

impl Check {
    fn new(name: &str, ok: bool, required: bool, detail: impl Into<String>, remedy: &str) -> Self {
        let remedy = if ok { String::new() } else { remedy.to_owned() };
        Self { name: name.to_owned(), ok, required, detail: detail.into(), remedy }
    }
}

/// Everything, the probes last: each is really loaded and attached for a moment.
pub fn checks() -> Vec<Check> {
    let mut checks = vec![kernel(), btf(), capabilities(), perf_event_paranoid(), lockdown(), cgroups()];
    let able = checks.iter().all(|check| check.ok || !check.required);
    checks.extend(probes(able));
    checks
}

/// Whether every default probe can run.
pub fn healthy(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.ok || !check.required)
}

/// The facts that decide a refusal, in one line.
pub fn privilege_facts() -> String {
    [capabilities(), perf_event_paranoid(), lockdown()]
        .iter()
        .map(|check| format!("{} {}", check.name, check.detail))
        .collect::<Vec<_>>()
        .join("; ")
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn kernel() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let numbers: Vec<u32> = release.split(['.', '-']).take(2).filter_map(|part| part.parse().ok()).collect();
    let ok = numbers >= vec![5, 15];
    Check::new("kernel", ok, true, release, "probes need Linux 5.15 or newer")
}

fn btf() -> Check {
    match fs::metadata(KERNEL_BTF) {
        Ok(file) => Check::new("btf", true, true, format!("{KERNEL_BTF}, {} KiB", file.len() / 1024), ""),
        Err(error) => Check::new(
            "btf",
            false,
            true,
            format!("{KERNEL_BTF}: {error}"),
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, and mount /sys",
        ),
    }
}

fn capability_bits() -> u64 {
    let status = read("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0)
}

fn capabilities() -> Check {
    let bits = capability_bits();
    let has = |capability: u32| bits & 1 << capability != 0;
    let names = [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON"), (CAP_SYS_ADMIN, "CAP_SYS_ADMIN")];
    let list = |wanted: bool| {
        let names: Vec<&str> =
            names.iter().filter(|(bit, _)| has(*bit) == wanted).map(|(_, name)| *name).collect();
        if names.is_empty() { "none".into() } else { names.join(" ") }
    };
    let ok = has(CAP_SYS_ADMIN) || has(CAP_BPF) && has(CAP_PERFMON);
    Check::new(
        "capabilities",
        ok,
        true,
        format!("has {}, lacks {}", list(true), list(false)),
        "run as root, or give the binary CAP_BPF and CAP_PERFMON (systemd: AmbientCapabilities=CAP_BPF CAP_PERFMON)",
    )
}

fn perf_event_paranoid() -> Check {
    let value = read("/proc/sys/kernel/perf_event_paranoid").unwrap_or_else(|| "absent".into());
    let strict = value.parse::<i32>().is_ok_and(|value| value >= 3);
    let ok = !strict || capability_bits() & 1 << CAP_SYS_ADMIN != 0;
    Check::new(
        "perf_event_paranoid",
        ok,
        false,
        value,
        "page_fault needs CAP_SYS_ADMIN while it is 3 or more: sysctl kernel.perf_event_paranoid=2",
    )
}

fn lockdown() -> Check {
    let text = read("/sys/kernel/security/lockdown");
    let mode = text.as_deref().and_then(|text| text.split(['[', ']']).nth(1)).unwrap_or("none");
    // Every default program loads under integrity and confidentiality alike.
    Check::new("lockdown", true, false, mode, "")
}

fn cgroups() -> Check {
    let mounts = read("/proc/mounts").unwrap_or_default();
    let has = |kind: &str| mounts.lines().any(|line| line.split(' ').nth(2) == Some(kind));
    let detail = match (has("cgroup"), has("cgroup2")) {
        (true, true) => "v1 and v2 (hybrid)",
        (true, false) => "v1",
        (false, true) => "v2",
        (false, false) => "none",
    };
    let ok = detail != "none";
    Check::new("cgroups", ok, false, detail, "targets by cgroup and unit need /sys/fs/cgroup")
}

/// Loads every probe for a moment; without the privilege only says what the kernel would allow.
fn probes(able: bool) -> Vec<Check> {
    let mut config = Config::default();
    config.probes.enable_all();
    config.target.clear();
    let facts = match Facts::of_running_kernel() {
        Ok(facts) => facts,
        Err(error) => {
            return PROBES.iter().map(|probe| cannot(probe.name, probe.default, &chain(&error))).collect();
        }
    };
    let (states, how) = if able {
        match Loaded::new(&config, &facts, true) {
            Ok(loaded) => (loaded.states, "loaded and attached"),
            Err(error) => {
                return PROBES
                    .iter()
                    .map(|probe| cannot(probe.name, probe.default, &chain(&error)))
                    .collect();
            }
        }
    } else {
        (loader::plan(&config, &facts), "the kernel has what it needs; not tried, see above")
    };
    PROBES
        .iter()
        .zip(states)
        .map(|(probe, state)| {
            let ok = state.runs();
            let detail = match state.state {
                ProbeState::Healthy => format!("healthy: {how}"),
                _ => format!("{}: {}", state.state.name(), state.reason),
            };
            let remedy = "a newer kernel, or turn it off in the configuration";
            Check::new(&format!("probe {}", probe.name), ok, probe.default, detail, remedy)
        })
        .collect()
}

fn cannot(probe: &str, required: bool, reason: &str) -> Check {
    Check::new(&format!("probe {probe}"), false, required, reason, "see the checks above")
}

/// The checks as a table for a person.
pub fn table(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let mark = match (check.ok, check.required) {
            (true, _) => "ok  ",
            (false, true) => "FAIL",
            (false, false) => "warn",
        };
        text += &format!("{mark}  {:<20} {}\n", check.name, check.detail);
        if !check.remedy.is_empty() {
            text += &format!("      {:<20} -> {}\n", "", check.remedy);
        }
    }
    text
}
