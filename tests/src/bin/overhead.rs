//! What measuring costs the measured: the same work bare, under tickscope and under its peers.
//!
//! Machines are noisy, so nothing here is compared with a number from another day: every round runs
//! every arm, in an order that rotates, and each arm is set against the bare run of its own round.
//! Reported are the median of those ratios and differences, and their spread.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Measures what tickscope and its peers cost the process that they observe.
#[derive(Parser)]
struct Arguments {
    /// Rounds; every round runs every arm.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Work, and what one unit of it is.
const LOADS: &[(&str, &[&str], &str)] = &[
    ("pipe", &["pipe", "50000", "1"], "round trip (two switches, four calls), both ends on CPU 1"),
    ("getppid", &["getppid", "1000000"], "call"),
    ("tcp", &["tcp", "10000"], "round trip over loopback"),
];

/// Name of the process that targeted arms observe; what `tickscope-load` is called.
const OBSERVED: &str = "tickscope-load";
const SCHED: &[&str] = &["runqueue", "preempted", "offcpu"];
const ALL: &[&str] = &["runqueue", "preempted", "offcpu", "interrupt", "syscall", "page_fault"];

/// One way of observing.
struct Arm {
    name: &'static str,
    what: &'static str,
    /// Loads it says something about.
    loads: &'static [&'static str],
    how: How,
}

enum How {
    Nothing,
    Tickscope {
        comm: &'static str,
        probes: &'static [&'static str],
    },
    /// A shell command; skipped, and said so, when its program is not installed.
    Peer {
        program: &'static str,
        script: &'static str,
    },
}

const EVERY: &[&str] = &["pipe", "getppid", "tcp"];
const SWITCHING: &[&str] = &["pipe", "tcp"];

const ARMS: &[Arm] = &[
    Arm { name: "bare", what: "nothing attached", loads: EVERY, how: How::Nothing },
    Arm {
        name: "tickscope sched",
        what: "runqueue, preempted, offcpu; the process is a target",
        loads: EVERY,
        how: How::Tickscope { comm: OBSERVED, probes: SCHED },
    },
    Arm {
        name: "tickscope all",
        what: "every probe; the process is a target",
        loads: EVERY,
        how: How::Tickscope { comm: OBSERVED, probes: ALL },
    },
    Arm {
        name: "tickscope all, untargeted",
        what: "every probe; another process is the target",
        loads: EVERY,
        how: How::Tickscope { comm: "nobody", probes: ALL },
    },
    Arm {
        name: "empty programs",
        what: "two empty bpftrace programs on sys_enter and sys_exit: what the kernel charges anyone",
        loads: &["getppid"],
        how: How::Peer {
            program: "/usr/bin/bpftrace",
            script: "exec bpftrace -e 'tracepoint:raw_syscalls:sys_enter { } tracepoint:raw_syscalls:sys_exit { }'",
        },
    },
    Arm {
        name: "runqlat",
        what: "libbpf-tools runqlat, all processes",
        loads: SWITCHING,
        how: How::Peer { program: "/usr/sbin/runqlat", script: "exec /usr/sbin/runqlat 1000" },
    },
    Arm {
        name: "syscount -L",
        what: "libbpf-tools syscount with latency, all processes",
        loads: EVERY,
        how: How::Peer { program: "/usr/sbin/syscount", script: "exec /usr/sbin/syscount -L -i 1000" },
    },
    Arm {
        name: "syscount",
        what: "libbpf-tools syscount, counting only, all processes",
        loads: EVERY,
        how: How::Peer { program: "/usr/sbin/syscount", script: "exec /usr/sbin/syscount -i 1000" },
    },
    Arm {
        name: "bpftrace run queue",
        what: "bpftrace histogram of wake-up to running",
        loads: SWITCHING,
        how: How::Peer {
            program: "/usr/bin/bpftrace",
            script: "exec bpftrace -e 'tracepoint:sched:sched_waking { @w[args->pid] = nsecs } \
                     tracepoint:sched:sched_switch { if (@w[args->next_pid]) { \
                     @h = hist(nsecs - @w[args->next_pid]); delete(@w[args->next_pid]) } }'",
        },
    },
    Arm {
        name: "bpftrace syscalls",
        what: "bpftrace histogram of system call time",
        loads: EVERY,
        how: How::Peer {
            program: "/usr/bin/bpftrace",
            script: "exec bpftrace -e 'tracepoint:raw_syscalls:sys_enter { @s[tid] = nsecs } \
                     tracepoint:raw_syscalls:sys_exit /@s[tid]/ { @h = hist(nsecs - @s[tid]); delete(@s[tid]) }'",
        },
    },
];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(rustix::process::geteuid().is_root(), "attaching programs needs root");
    let beside = std::env::current_exe()?;
    let beside = beside.parent().context("the executable is in a directory")?;

    let arms: Vec<&Arm> = ARMS.iter().filter(|arm| installed(arm)).collect();
    let mut footprint = Value::Null;
    // results[arm][load]: ns per unit, one for every round.
    let mut results = vec![vec![Vec::new(); LOADS.len()]; arms.len()];
    for round in 0..arguments.rounds as usize {
        for step in 0..arms.len() {
            let index = (round + step) % arms.len();
            let arm = arms[index];
            eprintln!("round {} of {}: {}", round + 1, arguments.rounds, arm.name);
            let observer = Observer::start(arm, beside)?;
            for (load, (name, work, _)) in LOADS.iter().enumerate() {
                if arm.loads.contains(name) {
                    results[index][load].push(run(beside, work)?);
                }
            }
            if let Some(found) = observer.stop()? {
                footprint = found;
            }
        }
    }
    let report = report(&arms, &results, &footprint, arguments.rounds);
    match arguments.format {
        Format::Json => println!("{report:#}"),
        Format::Text => print(&report),
    }
    Ok(())
}

fn installed(arm: &Arm) -> bool {
    let How::Peer { program, .. } = arm.how else { return true };
    let there = Path::new(program).exists();
    if !there {
        eprintln!("SKIPPED: {}: {program} is not installed", arm.name);
    }
    there
}

/// Does the work twice and times the second: ns per unit.
fn run(beside: &Path, work: &[&str]) -> Result<f64> {
    let mut child = Command::new(beside.join(OBSERVED))
        .args(work)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start tickscope-load; build it beside this program")?;
    let mut input = child.stdin.take().context("it is piped")?;
    let mut output = BufReader::new(child.stdout.take().context("it is piped")?).lines();
    let mut line = || output.next().context("tickscope-load ended early")?.context("not a line");
    ensure!(line()? == "ready", "tickscope-load is not ready");
    input.write_all(b"\n")?;
    line()?;
    input.write_all(b"\n")?;
    let answer: Value = serde_json::from_str(&line()?)?;
    drop(input);
    child.wait()?;
    let count = answer["count"].as_f64().context("a count")?;
    Ok(answer["sum_ns"].as_f64().context("a sum")? / count)
}

/// What runs beside the work.
struct Observer {
    child: Option<Child>,
    http: Option<(u16, PathBuf)>,
}

impl Observer {
    fn start(arm: &Arm, beside: &Path) -> Result<Self> {
        match arm.how {
            How::Nothing => Ok(Self { child: None, http: None }),
            How::Peer { script, .. } => {
                // Peers need tracefs, in a mount namespace of their own so that nothing stays.
                let script = format!(
                    "mount -t tracefs tracefs /sys/kernel/tracing; ulimit -l unlimited 2>/dev/null; {script}"
                );
                let child = Command::new("unshare")
                    .args(["--mount", "sh", "-c", &script])
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .context("cannot start unshare")?;
                // It says nothing when it is attached; bpftrace takes longest.
                thread::sleep(Duration::from_millis(1500));
                let mut observer = Self { child: Some(child), http: None };
                let child = observer.child.as_mut().context("just started")?;
                ensure!(child.try_wait()?.is_none(), "{} did not stay up", arm.name);
                Ok(observer)
            }
            How::Tickscope { comm, probes } => {
                let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
                let config =
                    std::env::temp_dir().join(format!("tickscope-overhead-{}.toml", std::process::id()));
                let mut text = format!(
                    "[listen]\nhttp = \"127.0.0.1:{port}\"\n[[target]]\nname = \"t\"\nmatch = {{ comm = \"{comm}\" }}\n[budget]\ncpu = \"100%\"\n"
                );
                for probe in ALL {
                    text += &format!("[probes.{probe}]\nenabled = {}\n", probes.contains(probe));
                }
                fs::write(&config, text)?;
                let child = Command::new(beside.join("tickscope"))
                    .args(["run", "--config"])
                    .arg(&config)
                    .stderr(Stdio::null())
                    .spawn()
                    .context("cannot start tickscope; build it beside this program")?;
                let observer = Self { child: Some(child), http: Some((port, config)) };
                let end = Instant::now() + Duration::from_secs(15);
                while get(port, "/-/ready").is_err() {
                    ensure!(Instant::now() < end, "tickscope did not get ready");
                    thread::sleep(Duration::from_millis(50));
                }
                Ok(observer)
            }
        }
    }

    /// Ends it; of tickscope, what it took.
    fn stop(mut self) -> Result<Option<Value>> {
        let Some(child) = self.child.as_mut() else { return Ok(None) };
        let mut footprint = None;
        if let Some((port, config)) = &self.http {
            let status = get(*port, "/api/v1/status")?;
            let rss = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
            let rss = rss.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
            footprint = Some(json!({ "status": serde_json::from_str::<Value>(&status)?, "rss": rss.trim() }));
            fs::remove_file(config)?;
        }
        let pid = Pid::from_child(child);
        kill_process(pid, Signal::INT)?;
        let end = Instant::now() + Duration::from_secs(10);
        while child.try_wait()?.is_none() {
            if Instant::now() > end {
                child.kill()?;
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.child = None;
        Ok(footprint)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// The body of a 200 answer.
fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{path}: {}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

fn report(arms: &[&Arm], results: &[Vec<Vec<f64>>], footprint: &Value, rounds: u32) -> Value {
    let bare = &results[0];
    let mut rows = Vec::new();
    for (load, (name, _, unit)) in LOADS.iter().enumerate() {
        for (arm, of) in arms.iter().zip(results) {
            if of[load].is_empty() {
                continue;
            }
            let pairs = || of[load].iter().zip(&bare[load]);
            rows.push(json!({
                "load": name,
                "unit": unit,
                "arm": arm.name,
                "what": arm.what,
                "ns": spread(of[load].clone()),
                "ratio": spread(pairs().map(|(a, b)| a / b).collect()),
                "added_ns": spread(pairs().map(|(a, b)| a - b).collect()),
            }));
        }
    }
    json!({
        "kernel": rustix::system::uname().release().to_string_lossy(),
        "cpus": thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "rounds": rounds,
        "results": rows,
        "footprint": footprint,
    })
}

/// Median, least and greatest.
fn spread(mut values: Vec<f64>) -> Value {
    values.sort_by(f64::total_cmp);
    json!({ "median": values[values.len() / 2], "min": values[0], "max": values[values.len() - 1] })
}

fn print(report: &Value) {
    println!(
        "Linux {}, {} CPUs, {} rounds; each arm against the bare run of its own round",
        report["kernel"].as_str().unwrap_or("?"),
        report["cpus"],
        report["rounds"]
    );
    let mut load = "";
    for row in report["results"].as_array().into_iter().flatten() {
        let text = |key: &str| row[key].as_str().unwrap_or_default();
        let of = |key: &str, which: &str| row[key][which].as_f64().unwrap_or(f64::NAN);
        if text("load") != load {
            load = text("load");
            println!("\n{load}: ns per {}", text("unit"));
            println!(
                "  {:<28} {:>9} {:>8} {:>15} {:>9} {:>17}",
                "", "median", "ratio", "spread", "added", "spread"
            );
        }
        println!(
            "  {:<28} {:>9.0} {:>8.3} {:>7.3}..{:<6.3} {:>+9.0} {:>+8.0}..{:<+7.0}",
            text("arm"),
            of("ns", "median"),
            of("ratio", "median"),
            of("ratio", "min"),
            of("ratio", "max"),
            of("added_ns", "median"),
            of("added_ns", "min"),
            of("added_ns", "max"),
        );
    }
    let footprint = &report["footprint"];
    println!(
        "\ntickscope's own: RSS {}, {}",
        footprint["rss"].as_str().unwrap_or("?"),
        footprint["status"]["facts"]
    );
}
