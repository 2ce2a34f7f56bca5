//! `./x demo`: a live engine's microseconds, as the kernel sees them.

use std::fs::{self, File};
use std::io::{IsTerminal, Read, Write, stdout};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::process::{is_root, output, target};
use crate::{build, setup};

/// Builds all, runs engine and daemon side by side, and shows what both say.
///
/// # Errors
/// When something cannot be built or started, or ends early.
pub fn run(time: Duration) -> Result<()> {
    let sudo = !is_root();
    if sudo && output("sudo", &["-n", "true"]).is_none() {
        return Err(setup::Missing::privilege(
            "the demo attaches kernel programs: run it as root, or let sudo work without a password",
        )
        .into());
    }
    setup::build_needs()?;
    eprintln!("x: building (two to three minutes the first time, seconds after that)");
    build::run(true)?;

    let programs = target().join("release");
    let logs = target().join("demo");
    fs::create_dir_all(&logs)?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let log = logs.join("tickscope.log");
    let mut daemon = Stopped(
        privileged(sudo, &programs.join("tickscope"))
            .args(["run", "--all-probes", "--listen", &format!("127.0.0.1:{port}")])
            .stderr(File::create(&log)?)
            .spawn()
            .context("cannot start tickscope")?,
    );
    let end = Instant::now() + Duration::from_secs(20);
    while get(port, "/-/ready").is_err() {
        if daemon.0.try_wait()?.is_some() || Instant::now() > end {
            bail!("tickscope did not get ready:\n{}", fs::read_to_string(&log)?);
        }
        thread::sleep(Duration::from_millis(50));
    }
    eprintln!("x: tickscope measures; starting the paper venue and engine for {} s", time.as_secs());

    // Under a name of its own, so that the target `engine` is the engine and not its starter too.
    let starter = logs.join("paper-demo");
    drop(fs::remove_file(&starter));
    symlink(programs.join("paper-engine"), &starter)?;
    let mut engine = Stopped(
        Command::new(&starter)
            .args(["demo", "--for", &format!("{}s", time.as_secs())])
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start paper-engine")?,
    );
    let began = Instant::now();
    // The last look is while the engine still runs, at numbers of the last ten seconds.
    let last = time.saturating_sub(Duration::from_millis(1200));
    let mut page = String::new();
    while began.elapsed() < last {
        thread::sleep(Duration::from_secs(1).min(last.saturating_sub(began.elapsed())));
        ensure!(engine.0.try_wait()?.is_none(), "paper-engine ended early");
        page = top(&programs.join("tickscope"), port)?;
        if stdout().is_terminal() {
            print!("\x1b[H\x1b[2J{page}\n{} of {} s\n", began.elapsed().as_secs(), time.as_secs());
            stdout().flush()?;
        }
    }
    let mut truth = String::new();
    if let Some(out) = &mut engine.0.stdout {
        out.read_to_string(&mut truth)?;
    }
    let status = engine.0.wait()?;
    ensure!(status.success(), "paper-engine failed: {status}");
    let exposition = get(port, "/metrics")?;
    let metrics = logs.join("metrics.txt");
    fs::write(&metrics, &exposition)?;
    drop(daemon);

    if stdout().is_terminal() {
        print!("\x1b[H\x1b[2J");
    }
    println!("What the kernel saw of the engine (tickscope top):\n\n{page}");
    println!("What the engine itself measured (its own clock, its own histograms):\n\n{truth}");
    println!(
        "`time` is the share of the window that these intervals filled, all threads together. The engine's\n\
         recv and send lie inside the calls that `syscall` shows; what its clock cannot see is runqueue (woken,\n\
         not yet running), preempted and interrupt.\n\
         Metrics as Prometheus gets them: {}. Next: `tickscope run`, `tickscope top`, README.md.",
        metrics.display()
    );
    Ok(())
}

fn privileged(sudo: bool, program: &std::path::Path) -> Command {
    if sudo {
        let mut command = Command::new("sudo");
        command.arg("-n").arg(program);
        command
    } else {
        Command::new(program)
    }
}

fn top(program: &std::path::Path, port: u16) -> Result<String> {
    let output = Command::new(program)
        .args(["top", "--once", "--url", &format!("http://127.0.0.1:{port}")])
        .output()
        .context("cannot run tickscope top")?;
    ensure!(output.status.success(), "tickscope top: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The body of a 200 answer.
fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {}", head.lines().next().unwrap_or_default());
    Ok(body.to_owned())
}

/// A child that is asked to stop when this is dropped, and ends by itself when we are interrupted:
/// an interrupt goes to the whole process group.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let pid = self.0.id().to_string();
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            drop(Command::new("kill").args(["-TERM", &pid]).status());
        }
        let end = Instant::now() + Duration::from_secs(6);
        while self.0.try_wait().is_ok_and(|status| status.is_none()) {
            if Instant::now() > end {
                drop(self.0.kill());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}
