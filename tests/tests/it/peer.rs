//! Times agree with independent observers of the same kernel, at the same time.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tickscope_core::Histogram;

use crate::harness::{Watch, privileged};
use crate::load::Load;

/// `runqlat` of libbpf-tools on one process, until [`Runqlat::histogram`] ends it.
struct Runqlat(Child);

impl Runqlat {
    fn start(pid: u32) -> Self {
        // It looks for its tracepoints in tracefs, which is mounted only for it.
        let script = format!(
            "mount -t tracefs tracefs /sys/kernel/tracing; ulimit -l unlimited; exec /usr/sbin/runqlat -p {pid} 1000"
        );
        let child = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("runqlat is installed (./x setup --tests)");
        // It does not say when it is attached.
        thread::sleep(Duration::from_secs(2));
        Self(child)
    }

    /// `(low, high, count)` of its buckets, µs, both inclusive: `4 -> 7 : 12 |***|`.
    fn histogram(mut self) -> Vec<(u64, u64, u64)> {
        kill_process(Pid::from_child(&self.0), Signal::INT).expect("it runs");
        let output = self.0.stdout.take().expect("it is piped");
        let text = std::io::read_to_string(output).expect("it prints text");
        self.0.wait().expect("it is our child");
        text.lines()
            .filter_map(|line| {
                let (range, rest) = line.split_once(':')?;
                let (low, high) = range.split_once("->")?;
                let count = rest.split('|').next()?;
                Some((low.trim().parse().ok()?, high.trim().parse().ok()?, count.trim().parse().ok()?))
            })
            .collect()
    }
}

/// The bucket of runqlat that holds the median.
fn median(buckets: &[(u64, u64, u64)]) -> (u64, u64) {
    let total: u64 = buckets.iter().map(|(.., count)| count).sum();
    let mut before = 0;
    let found = buckets.iter().find(|(.., count)| {
        before += count;
        before * 2 >= total
    });
    found.map(|(low, high, _)| (*low, *high)).expect("it counted something")
}

#[test]
fn run_queue_latency_agrees_with_runqlat() {
    if !privileged() {
        return;
    }
    // The naps wait behind the competitor, and the two take turns: both ways onto a run queue.
    let mut load = Load::start("sleep 2000 500 --cpu 1 --compete");
    let mut watch = Watch::start(&format!("pid = {}", load.pid()), &["runqueue", "preempted"]);
    let runqlat = Runqlat::start(load.pid());
    watch.read();
    let before = waits(&watch);
    load.once();
    watch.read();
    let buckets = runqlat.histogram();
    let mut ours = waits(&watch);
    ours.subtract(&before);

    let theirs: u64 = buckets.iter().map(|(.., count)| count).sum();
    assert!(ours.count() >= 2000, "{}", ours.count());
    // It does not see sched_yield as we do, and its intervals begin at the wake-up's end.
    assert!(theirs.abs_diff(ours.count()) * 20 <= ours.count(), "{theirs} against {}", ours.count());
    let (low, high) = median(&buckets);
    let us = ours.quantile(0.5).expect("it has observations").seconds * 1e6;
    assert!(
        us >= low as f64 / 2.0 && us <= (high + 1) as f64 * 2.0,
        "median {us} µs, runqlat {low} to {high} µs: more than a bucket away"
    );
}

/// Every wait for a CPU, after a wake-up or after losing it: what runqlat measures as one.
fn waits(watch: &Watch) -> Histogram {
    let mut waits = watch.histogram("runqueue", "");
    waits.merge(&watch.histogram("preempted", ""));
    waits
}
