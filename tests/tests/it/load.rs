//! Drives `tickscope-load`, and reads what the kernel itself says of it.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A running `tickscope-load`, at rest between calls of [`Load::once`].
pub struct Load {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// Counters of a process that the kernel keeps, over all its living threads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel {
    /// Switches away because it blocked.
    pub voluntary: u64,
    /// Switches away while runnable, `sched_yield` among them.
    pub involuntary: u64,
    /// Time runnable and not running (`/proc/PID/task/TID/schedstat`), ns.
    pub waited_ns: u64,
    /// Page faults served without storage.
    pub minor: u64,
    /// Page faults that waited for storage.
    pub major: u64,
}

/// The program: cargo says where it is; in a virtual machine it lies elsewhere.
pub fn program() -> String {
    env::var("TICKSCOPE_LOAD").unwrap_or_else(|_| env!("CARGO_BIN_EXE_tickscope-load").into())
}

impl Load {
    /// Starts it and waits until it is at rest.
    pub fn start(work: &str) -> Self {
        let mut child = Command::new(program())
            .args(work.split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tickscope-load starts");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut load = Self { child, input, output };
        assert_eq!(load.line(), "ready");
        load.rest();
        load
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The rule of a target that is this process.
    pub fn rule(&self) -> String {
        format!("pid = {}", self.pid())
    }

    /// Does the work once; what its own clock says.
    pub fn once(&mut self) -> Value {
        let input = self.input.as_mut().expect("only drop closes it");
        input.write_all(b"\n").expect("it listens");
        let line = self.line();
        self.rest();
        serde_json::from_str(&line).expect("it prints JSON")
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it prints lines");
        line.trim().to_owned()
    }

    /// Waits until every thread of it is blocked: it says that it sleeps, and has left its CPU, which
    /// can be later (the kernel waits for that before it tells a thread's system call) and is when
    /// the kernel counts the switch.
    fn rest(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        let asleep = |task: PathBuf| {
            // A thread that has ended meanwhile is at rest.
            let Ok(stat) = fs::read_to_string(task.join("stat")) else { return true };
            let runs = fs::read_to_string(task.join("syscall")).is_ok_and(|call| call.starts_with("running"));
            stat.contains(") S ") && !runs
        };
        while !self.threads().all(asleep) {
            assert!(Instant::now() < end, "tickscope-load does not come to rest");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn threads(&self) -> impl Iterator<Item = PathBuf> {
        fs::read_dir(format!("/proc/{}/task", self.pid()))
            .expect("it runs")
            .filter_map(|entry| Some(entry.ok()?.path()))
    }

    /// The kernel's counters of it now.
    pub fn kernel(&self) -> Kernel {
        let mut kernel = Kernel::default();
        for entry in fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs") {
            let task = entry.expect("it runs").path();
            let status = fs::read_to_string(task.join("status")).expect("it runs");
            let field = |name: &str| -> u64 {
                let line = status.lines().find(|line| line.starts_with(name)).expect("it is there");
                line.rsplit('\t').next().expect("a value").trim().parse().expect("a number")
            };
            kernel.voluntary += field("voluntary_ctxt_switches:");
            kernel.involuntary += field("nonvoluntary_ctxt_switches:");
            let schedstat = fs::read_to_string(task.join("schedstat")).expect("CONFIG_SCHED_INFO");
            kernel.waited_ns +=
                schedstat.split(' ').nth(1).expect("run_delay").parse::<u64>().expect("a number");
        }
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it runs");
        let fields: Vec<&str> = stat.rsplit(") ").next().expect("a name").split(' ').collect();
        kernel.minor = fields[7].parse().expect("minflt");
        kernel.major = fields[9].parse().expect("majflt");
        kernel
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.input.take());
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Interrupts of the local timer on one CPU since the kernel started.
pub fn local_timer_interrupts(cpu: usize) -> u64 {
    let table = fs::read_to_string("/proc/interrupts").expect("it is there");
    let line = table.lines().find(|line| line.trim_start().starts_with("LOC:")).expect("x86");
    line.split_whitespace().nth(1 + cpu).expect("a column per CPU").parse().expect("a number")
}
