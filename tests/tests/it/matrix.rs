//! What every probe must be and count, on whatever kernel this runs: on this host, and on each
//! kernel of `tests/kernels.toml` in a virtual machine (`./x vm`), where only counts mean anything.

use std::collections::BTreeSet;
use std::env;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tickscope::exporter::json::Status;
use tickscope_common::catalog::{HOOKS, PROBES};
use tickscope_core::ProbeState;
use toml::Table;

use crate::harness::{Watch, privileged};
use crate::load::{Load, local_timer_interrupts};

/// The work of every probe: what it must count is known, whatever the time.
const WORK: &[(&str, fn())] = &[
    ("runqueue", switches),
    ("preempted", preemptions),
    ("offcpu", naps),
    ("interrupt", interrupts),
    ("syscall", calls),
    ("page_fault", faults),
];

/// Growth of a program's verified instructions over what is recorded that is no news.
const INSTRUCTIONS_RATIO_MAX: f64 = 1.25;

/// `tests/kernels.toml`
struct Kernels(Table);

impl Kernels {
    fn read() -> Self {
        Self(include_str!("../../kernels.toml").parse().expect("kernels.toml is TOML"))
    }

    fn table(&self, name: &str) -> &Table {
        self.0[name].as_table().expect("kernels.toml is made of tables")
    }

    /// Names of the kernels.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.table("kernel").keys().map(String::as_str)
    }

    /// What a table says of one name on one kernel.
    fn expected(&self, table: &str, name: &str, kernel: &str) -> Option<&toml::Value> {
        self.table(table).get(name)?.get(kernel)
    }

    /// Names that a table must have, of which some kernel's value is missing, and names that it must not.
    fn wrong(&self, table: &str, names: &[&str], example: &str) -> Vec<String> {
        let values: Vec<String> = self.names().map(|kernel| format!("\"{kernel}\" = {example}")).collect();
        let missing = names
            .iter()
            .filter(|name| self.names().any(|kernel| self.expected(table, name, kernel).is_none()))
            .map(|name| format!("[{table}] needs a row like: {name} = {{ {} }}", values.join(", ")));
        let names: BTreeSet<&str> = names.iter().copied().collect();
        let stale = self.table(table).keys().filter(|name| !names.contains(name.as_str()));
        missing.chain(stale.map(|name| format!("[{table}] has {name}, and the catalog does not"))).collect()
    }
}

/// The kernel of `kernels.toml` that runs here; `None` on a host, whose kernel may be any.
fn kernel() -> Option<String> {
    env::var("TICKSCOPE_KERNEL").ok()
}

#[test]
fn every_probe_and_program_has_its_row() {
    let kernels = Kernels::read();
    let probes: Vec<&str> = PROBES.iter().map(|probe| probe.name).collect();
    let programs: Vec<&str> = HOOKS.iter().map(|hook| hook.program).collect();
    let wrong = kernels.wrong("state", &probes, "\"healthy\"");
    assert!(wrong.is_empty(), "tests/kernels.toml:\n{}", wrong.join("\n"));
    let wrong = kernels.wrong("instructions", &programs, "0");
    assert!(wrong.is_empty(), "tests/kernels.toml (`./x vm --record` writes these):\n{}", wrong.join("\n"));
    let worked: Vec<&str> = WORK.iter().map(|(probe, _)| *probe).collect();
    assert_eq!(worked, probes, "WORK in matrix.rs has one row for each probe: work with a known answer");
}

#[test]
fn every_probe_is_what_it_should_be_here() {
    if !privileged() {
        return;
    }
    let kernels = Kernels::read();
    let everything: Vec<&str> = PROBES.iter().map(|probe| probe.name).collect();
    let mut watch = Watch::whatever("pid = 1", &everything);
    let mut wrong = Vec::new();
    println!("kernel {}", watch.source().facts().kernel);
    for (probe, reading) in PROBES.iter().zip(&watch.latest.probes) {
        let state = match reading.state {
            ProbeState::Healthy => "healthy".to_owned(),
            other => format!("{}: {}", other.name(), reading.reason),
        };
        println!("{:<20} {state}", probe.name);
        let Some(kernel) = kernel() else { continue };
        let expected = kernels.expected("state", probe.name, &kernel).and_then(toml::Value::as_str);
        if expected != Some(&state) {
            wrong.push(format!("[state] {}: \"{kernel}\" = \"{state}\", not {expected:?}", probe.name));
        }
    }
    for program in &watch.source().facts().programs {
        let walked = program.verified_instructions;
        println!("{:<20} {walked:>6} instructions", program.name);
        let Some(kernel) = kernel() else { continue };
        let recorded = kernels.expected("instructions", program.name, &kernel);
        let recorded = recorded.and_then(toml::Value::as_integer).unwrap_or(0);
        if f64::from(walked) > recorded as f64 * INSTRUCTIONS_RATIO_MAX {
            let name = program.name;
            wrong.push(format!("[instructions] {name}: \"{kernel}\" = {walked}, recorded are {recorded}"));
        }
    }
    assert!(wrong.is_empty(), "tests/kernels.toml:\n{}", wrong.join("\n"));
}

#[test]
fn every_probe_counts_work_with_a_known_answer() {
    if !privileged() {
        return;
    }
    let everything: Vec<&str> = PROBES.iter().map(|probe| probe.name).collect();
    let states = Watch::whatever("pid = 1", &everything).latest.probes.clone();
    for ((probe, work), reading) in WORK.iter().zip(states) {
        if matches!(reading.state, ProbeState::Healthy | ProbeState::Degraded) {
            println!("{probe}: counting");
            work();
        } else {
            println!("{probe}: not counted, {}", reading.reason);
        }
    }
}

/// The daemon as it is shipped; the host's tests of it are elsewhere.
#[test]
fn the_daemon_says_the_same_and_stops_when_asked() {
    let (Some(kernel), Some(daemon)) = (kernel(), env::var_os("TICKSCOPE_DAEMON")) else {
        println!("only in the virtual machines of ./x vm");
        return;
    };
    let kernels = Kernels::read();
    let expected = |probe: &str| {
        let state = kernels.expected("state", probe, &kernel).and_then(toml::Value::as_str);
        state.expect("another test says what is missing").split(':').next().expect("not empty").to_owned()
    };

    let doctor = Command::new(&daemon).args(["doctor", "--format", "json"]).output().expect("it starts");
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout).expect("it prints JSON");
    let mut able = true;
    for probe in PROBES {
        let name = format!("probe {}", probe.name);
        let checks = report.as_array().expect("a list of checks");
        let check = checks.iter().find(|check| check["name"] == name.as_str()).expect("a check a probe");
        let runs = ["healthy", "degraded"].contains(&expected(probe.name).as_str());
        assert_eq!(check["ok"], runs, "{check}");
        able &= runs || !probe.default;
    }
    assert_eq!(doctor.status.code(), Some(i32::from(!able)), "1 if a default probe cannot run");

    let mut run = Command::new(&daemon).args(["run", "--all-probes"]).spawn().expect("it starts");
    let end = Instant::now() + Duration::from_secs(60);
    let status: Status = loop {
        if let Ok(answer) = ureq::get("http://127.0.0.1:9464/api/v1/status").call() {
            let body = answer.into_body().read_to_string().expect("it is text");
            break serde_json::from_str(&body).expect("the shape of the API");
        }
        assert!(Instant::now() < end, "it does not answer");
        thread::sleep(Duration::from_millis(100));
    };
    for probe in &status.probes {
        assert_eq!(probe.state, expected(&probe.name), "{}: {}", probe.name, probe.reason);
    }
    kill_process(Pid::from_child(&run), Signal::TERM).expect("it runs");
    assert_eq!(run.wait().expect("it is our child").code(), Some(0), "asked to stop, it ends well");
}

/// Between two rests the only thread that lives is the main one, blocked in `read`: as many waits
/// ended as blocks began, and the kernel has counted those itself.
fn switches() {
    let mut load = Load::start("exec 50");
    let mut watch = Watch::start(&load.rule(), &["runqueue", "preempted"]);
    let before = load.kernel();
    load.once();
    watch.read();
    let after = load.kernel();
    let blocks = after.voluntary - before.voluntary;
    assert!(blocks >= 50, "{blocks} blocks for 50 children");
    watch.assert_waits(blocks);
    assert_eq!(watch.seen("preempted"), after.involuntary - before.involuntary);
    watch.assert_accounted();
}

/// Two threads take the CPU from each other, as often as the kernel counts.
fn preemptions() {
    let mut load = Load::start("compete 1 300");
    let mut watch = Watch::start(&load.rule(), &["preempted"]);
    let before = load.kernel();
    load.once();
    watch.read();
    let lost = load.kernel().involuntary - before.involuntary;
    let seen = watch.seen("preempted");
    assert!(lost > 0, "two threads on one CPU");
    assert!(seen.abs_diff(lost) <= unreported(lost), "{}; the kernel: {lost}", watch.told("preempted"));
    watch.assert_accounted();
}

/// How many of so many switches a kernel may leave out: none that we test, but some hosts' do
/// (ARCHITECTURE.md, decision 4).
fn unreported(switches: u64) -> u64 {
    if kernel().is_some() { 0 } else { switches / 50 }
}

/// Every nap blocks, unless its timer fires before the thread has left the CPU; then that wake-up is
/// seen not to be a wait.
fn naps() {
    let mut load = Load::start("sleep 200 2000");
    let mut watch = Watch::start(&load.rule(), &["offcpu", "runqueue"]);
    load.once();
    watch.read();
    let naps = watch.histogram("offcpu", "sleep").count();
    let unslept = watch.filtered("offcpu") + watch.discarded("runqueue", "overwritten");
    let good = naps <= 200 && naps + unslept + unreported(200) >= 200;
    assert!(good, "{}; {}", watch.told("offcpu"), watch.told("runqueue"));
    watch.assert_accounted();
}

/// A thread computes, and the timer interrupts it as long as it has the CPU; how often the timer did
/// so in all, the kernel counts.
fn interrupts() {
    let mut load = Load::start("spin 1 500");
    let mut watch = Watch::start(&load.rule(), &["interrupt"]);
    let before = local_timer_interrupts(1);
    let answer = load.once();
    watch.read();
    let timer = (local_timer_interrupts(1) - before) as f64;
    let number = |key: &str| answer[key].as_u64().expect("it prints it") as f64;
    let mine = timer * (1.0 - number("off_cpu_ns") / number("elapsed_ns"));
    let seen = watch.histogram("interrupt", "hardirq").count() as f64;
    assert!(timer > 0.0 && seen >= mine / 4.0, "{seen} seen; {timer} of the timer, {mine} in its time");
    watch.assert_accounted();
}

/// Every call is counted.
fn calls() {
    let mut load = Load::start("yield 20000");
    let mut watch = Watch::start(&load.rule(), &["syscall"]);
    load.once();
    watch.read();
    assert_eq!(watch.histogram("syscall", "sched_yield").count(), 20_000);
    watch.assert_accounted();
}

/// Every fault is counted, as the kernel counts them.
fn faults() {
    let mut load = Load::start("touch 2000");
    let mut watch = Watch::start(&load.rule(), &["page_fault"]);
    let before = load.kernel();
    load.once();
    watch.read();
    let after = load.kernel();
    let minor = after.minor - before.minor;
    assert!(minor >= 2000, "{minor} faults for 2000 new pages");
    assert_eq!(watch.histogram("page_fault", "minor").count(), minor);
    assert_eq!(watch.histogram("page_fault", "major").count(), after.major - before.major);
    watch.assert_accounted();
}
