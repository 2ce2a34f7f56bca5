//! Work with known answers, for tests and benchmarks.
//!
//! `tickscope-load WORK …` prints `ready`, and then for every line on standard input does the work
//! once and prints one line of JSON with what its own clock says. Between lines every thread of it
//! is blocked, so whoever drives it can take counters at rest.

use std::hint::black_box;
use std::io::{BufRead, Read, Write, stdin, stdout};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use rustix::thread::{CpuSet, disable_transparent_huge_pages, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

/// Does work with known answers, once for every line on standard input.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Sleeps COUNT times for MICROS.
    Sleep {
        count: u32,
        micros: u64,
        /// Stay on this CPU.
        #[arg(long)]
        cpu: Option<usize>,
        /// Run a competitor on the same CPU meanwhile.
        #[arg(long)]
        compete: bool,
    },
    /// Calls sched_yield COUNT times.
    Yield { count: u32 },
    /// Calls getppid COUNT times.
    Getppid { count: u32 },
    /// Two threads compute on one CPU for MILLIS of its time each.
    Compete { cpu: usize, millis: u64 },
    /// One thread computes on one CPU for MILLIS of its time.
    Spin { cpu: usize, millis: u64 },
    /// Touches PAGES new pages.
    Touch { pages: usize },
    /// Starts COUNT threads that end at once, a few at a time.
    Threads { count: u32 },
    /// Forks COUNT children that exec `true`.
    Exec { count: u32 },
    /// Sends a byte to and fro through two pipes COUNT times, both ends on one CPU.
    Pipe { count: u32, cpu: usize },
    /// Sends a byte to and fro over loopback TCP COUNT times.
    Tcp { count: u32 },
}

fn main() -> Result<()> {
    let Arguments { work } = Arguments::parse();
    let mut out = stdout();
    writeln!(out, "ready")?;
    out.flush()?;
    for line in stdin().lock().lines() {
        line?;
        let began = Instant::now();
        let mut answer = once(&work)?;
        answer["elapsed_ns"] = json!(began.elapsed().as_nanos() as u64);
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn once(work: &Work) -> Result<serde_json::Value> {
    match *work {
        Work::Sleep { count, micros, cpu, compete } => sleep(count, micros, cpu, compete),
        Work::Yield { count } => Ok(timed(count, thread::yield_now)),
        Work::Getppid { count } => {
            let began = Instant::now();
            for _ in 0..count {
                black_box(rustix::process::getppid());
            }
            Ok(json!({ "count": count, "sum_ns": began.elapsed().as_nanos() as u64 }))
        }
        Work::Compete { cpu, millis } => compete(cpu, millis),
        Work::Spin { cpu, millis } => {
            let off_cpu = thread::spawn(move || spin(cpu, millis)).join().expect("it does not panic")?;
            Ok(json!({ "off_cpu_ns": off_cpu.as_nanos() as u64 }))
        }
        Work::Touch { pages } => {
            // A huge page would be one fault for many pages.
            disable_transparent_huge_pages(true)?;
            let page = rustix::param::page_size();
            let mut memory = vec![0u8; pages * page];
            for byte in memory.iter_mut().step_by(page) {
                *black_box(byte) = 1;
            }
            Ok(json!({ "pages": pages }))
        }
        Work::Threads { count } => Ok(threads(count)),
        Work::Exec { count } => {
            for _ in 0..count {
                Command::new("true").status().context("cannot run true")?;
            }
            Ok(json!({ "count": count }))
        }
        Work::Pipe { count, cpu } => pipe(count, cpu),
        Work::Tcp { count } => tcp(count),
    }
}

/// Calls something so often; its own clock around every call.
fn timed(count: u32, mut call: impl FnMut()) -> serde_json::Value {
    let mut sum = Duration::ZERO;
    for _ in 0..count {
        let began = Instant::now();
        call();
        sum += began.elapsed();
    }
    json!({ "count": count, "sum_ns": sum.as_nanos() as u64 })
}

fn stay_on(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("cannot stay on CPU {cpu}"))
}

fn sleep(count: u32, micros: u64, cpu: Option<usize>, compete: bool) -> Result<serde_json::Value> {
    let nap = move || -> Result<serde_json::Value> {
        if let Some(cpu) = cpu {
            stay_on(cpu)?;
        }
        Ok(timed(count, || thread::sleep(Duration::from_micros(micros))))
    };
    if !compete {
        return thread::spawn(nap).join().expect("it does not panic");
    }
    // The competitor computes until the sleeper is done.
    let (done, asked) = std::sync::mpsc::channel::<()>();
    let competitor = thread::spawn(move || -> Result<()> {
        if let Some(cpu) = cpu {
            stay_on(cpu)?;
        }
        while asked.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
            black_box((0..1000u64).fold(0, |sum, i| sum ^ i));
        }
        Ok(())
    });
    let answer = thread::spawn(nap).join().expect("it does not panic");
    drop(done);
    competitor.join().expect("it does not panic")?;
    answer
}

fn compete(cpu: usize, millis: u64) -> Result<serde_json::Value> {
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || {
        drop(sender.send(spin(cpu, millis)));
        // It stays, blocked, so that the kernel's counters of it can still be read.
        loop {
            thread::park();
        }
    });
    let off_cpu = spin(cpu, millis)? + receiver.recv()??;
    Ok(json!({ "off_cpu_ns": off_cpu.as_nanos() as u64 }))
}

/// Computes until it has had `millis` of the CPU's time, however long that takes; the time without.
fn spin(cpu: usize, millis: u64) -> Result<Duration> {
    stay_on(cpu)?;
    let (began, first) = (Instant::now(), thread_cpu_time());
    let wanted = Duration::from_millis(millis);
    let mut used = Duration::ZERO;
    while used < wanted {
        black_box((0..10_000u64).fold(0, |sum, i| sum ^ i));
        used = thread_cpu_time().saturating_sub(first);
    }
    Ok(began.elapsed().saturating_sub(used))
}

fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn threads(count: u32) -> serde_json::Value {
    for first in (0..count).step_by(8) {
        let batch: Vec<_> = (first..count.min(first + 8)).map(|_| thread::spawn(|| ())).collect();
        for thread in batch {
            thread.join().expect("it does not panic");
        }
    }
    json!({ "count": count })
}

fn pipe(count: u32, cpu: usize) -> Result<serde_json::Value> {
    let (mut read_ping, mut write_ping) = std::io::pipe()?;
    let (mut read_pong, mut write_pong) = std::io::pipe()?;
    let echo = thread::spawn(move || -> Result<()> {
        stay_on(cpu)?;
        let mut byte = [0];
        while read_ping.read(&mut byte)? == 1 {
            write_pong.write_all(&byte)?;
        }
        Ok(())
    });
    let answer = thread::spawn(move || -> Result<serde_json::Value> {
        stay_on(cpu)?;
        let mut byte = [0];
        let began = Instant::now();
        for _ in 0..count {
            write_ping.write_all(&byte)?;
            read_pong.read_exact(&mut byte)?;
        }
        Ok(json!({ "count": count, "sum_ns": began.elapsed().as_nanos() as u64 }))
    })
    .join()
    .expect("it does not panic");
    echo.join().expect("it does not panic")?;
    answer
}

fn tcp(count: u32) -> Result<serde_json::Value> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let echo = thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 {
            stream.write_all(&byte)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    let began = Instant::now();
    for _ in 0..count {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
    }
    let sum_ns = began.elapsed().as_nanos() as u64;
    drop(stream);
    echo.join().expect("it does not panic")?;
    Ok(json!({ "count": count, "sum_ns": sum_ns }))
}
