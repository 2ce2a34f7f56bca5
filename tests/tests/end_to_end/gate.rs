//! The gate over real processes: two loads, the running kernel, the built daemon.

use serde_json::Value;
use tempfile::TempDir;

use crate::daemon::{Daemon, tickscope, wait_for};
use crate::load::Load;
use crate::privileged;

/// Sleeps `micros` again and again.
fn sleeper(micros: &str) -> Load {
    let mut load = Load::start(&["sleep", "100000000", micros]);
    load.begin();
    load
}

struct Gated {
    daemon: Daemon,
    directory: TempDir,
    _loads: [Load; 2],
}

impl Gated {
    /// With room for builds that are not optimized: a probe that is shed is a gate that holds.
    /// Blue sleeps for 1 ms, green for `micros`; a gate compares how long they are off the CPU.
    fn start(micros: &str) -> Self {
        let loads = [sleeper("1000"), sleeper(micros)];
        let directory = TempDir::new().expect("a temporary directory");
        let target = |name: &str, load: &Load| {
            format!("[[target]]\nname = \"{name}\"\nmatch = {{ pid = {} }}\n", load.pid())
        };
        let config = format!(
            "[budget]\ncpu = \"50%\"\n[listen]\ncontrol = \"{}\"\n{}{}[[gate]]\nname = \"engine\"\nbaseline = \"blue\"\ncanary = \"green\"\n\
             dwell = \"5s\"\n[[gate.kpi]]\nprobe = \"offcpu\"\nlabel = \"sleep\"\nquantiles = [0.5]\n",
            directory.path().join("control.sock").display(),
            target("blue", &loads[0]),
            target("green", &loads[1]),
        );
        Self { daemon: Daemon::start(&config), directory, _loads: loads }
    }

    fn command(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let url = self.daemon.url("");
        let output = tickscope(arguments).env("TICKSCOPE_URL", url).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text + &String::from_utf8_lossy(&output.stderr))
    }

    fn gate(&self, query: &str) -> Value {
        serde_json::from_str(&self.daemon.page(&format!("/api/v1/gates/engine{query}"))).expect("JSON")
    }
}

#[test]
fn a_canary_that_sleeps_longer_is_rolled_back() {
    if !privileged() {
        return;
    }
    let gated = Gated::start("2000");
    let (code, text) = gated.command(&["gate", "watch", "engine", "--for", "120s"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.starts_with("engine: fail (offcpu/sleep p50 of the canary is"), "{text}");
    let gate = gated.gate("");
    assert_eq!((&gate["verdict"], &gate["action"]), (&"fail".into(), &"rollback".into()), "{gate}");
    let ratio = gate["kpis"][0]["ratio"].as_f64().expect("a number");
    assert!((1.5..2.5).contains(&ratio), "{gate}");
    assert_eq!(gated.command(&["gate", "check", "engine"]).0, Some(1), "it is final");
    // The same as metrics.
    assert!((gated.daemon.metric("tickscope_gate_verdict{gate=\"engine\"}") + 1.0).abs() < 1e-9);

    // A new step, of another build, begins with nothing; who asks for the old one is told so.
    let socket = gated.directory.path().join("control.sock");
    let socket = socket.to_str().expect("a path of text");
    let start = ["gate", "start", "engine", "--canary-build", "b2", "--control", socket];
    assert_eq!(gated.command(&start).0, Some(0));
    assert_ne!(gated.gate("?canary=b2")["verdict"], "fail");
    assert_eq!(gated.gate("?canary=b1")["verdict"], "nodata");
    let (code, text) = gated.command(&["gate", "start", "other", "--control", socket]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("no gate is called"), "{text}");
    assert_eq!(gated.command(&["gate", "stop", "engine", "--control", socket]).0, Some(0));
    assert_eq!(gated.gate("")["reason"], "the gate is stopped");
}

#[test]
fn a_canary_that_is_the_same_is_never_rolled_back() {
    if !privileged() {
        return;
    }
    let gated = Gated::start("1000");
    let gate = wait_for("enough is compared", 60, || {
        let gate = gated.gate("");
        assert_ne!(gate["verdict"], "fail", "{gate}");
        (gate["kpis"][0]["canary_count"].as_u64()? > 15_000).then_some(gate)
    });
    let row = &gate["kpis"][0];
    let ratio = row["ratio"].as_f64().expect("a number");
    assert!((0.8..1.25).contains(&ratio), "{gate}");
    assert!(gate["age_seconds"].as_f64().expect("a number") < 5.0, "{gate}");
}

#[test]
fn several_daemons_are_one_gate() {
    if !privileged() {
        return;
    }
    let nodes = [Gated::start("2000"), Gated::start("2000")];
    let mut arguments =
        vec!["gate", "watch", "--baseline", "blue", "--canary", "green", "--kpi", "offcpu/sleep"];
    let urls = nodes.each_ref().map(|node| node.daemon.url(""));
    for url in &urls {
        arguments.extend(["--from", url]);
    }
    let (code, text) = nodes[0].command(&[&arguments[..], &["--for", "120s", "--format", "json"]].concat());
    let gate: Value = serde_json::from_str(text.trim()).expect("JSON");
    assert_eq!((code, &gate["verdict"]), (Some(1), &"fail".into()), "{gate}");
}
