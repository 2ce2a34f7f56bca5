//! The paper engine under observation: what the kernel saw is what the engine did.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::daemon::{Daemon, program};
use crate::privileged;

const CONFIG: &str = "[[target]]
name = \"engine\"
match = { comm = \"paper-engine\" }
[probes.syscall]
enabled = true
";

#[test]
fn the_engines_sends_and_receives_are_counted_and_timed() {
    if !privileged() {
        return;
    }
    // The daemon is there first, and finds the engine by its name.
    let daemon = Daemon::start(CONFIG);
    let output = Command::new(program("paper-engine"))
        .args(["demo", "--for", "4s", "--rate", "1000", "--seed", "7", "--format", "json"])
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let number = |path: &str| report.pointer(path).and_then(Value::as_u64).expect(path);

    let orders = number("/engine/counters/orders");
    assert!(orders > 100, "{orders}");
    let sends = daemon.series("syscall", Some("sendto")).total.count;
    // Only the engine is a target. It sends each order by one call, and a login before them.
    assert!((orders..=orders + 20).contains(&sends), "{sends} calls for {orders} orders");

    // Its own clock stands around the call, so it reads a little more than the kernel does.
    let own = number("/engine/latencies/send/sum_ns") as f64 / 1e9;
    let kernel = daemon.series("syscall", Some("sendto")).total.sum_seconds;
    assert!(kernel < own * 1.05 && kernel > own * 0.5, "{kernel} against {own}");

    let status = daemon.status();
    assert_eq!(status.targets[0].processes, 0, "all have ended");
    assert_eq!(status.targets[0].started, status.targets[0].exited);
    for probe in status.probes {
        let discarded: u64 = probe.discarded.values().sum();
        assert_eq!(probe.seen, probe.recorded + probe.filtered + discarded, "{}", probe.name);
    }
}
