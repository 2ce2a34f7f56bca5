//! All three processes on this machine: starts them, waits, stops them, collects their reports.
//!
//! They are stopped in the order of the data, each bounded in time: the publisher first, so that
//! the engine sees the end of the session, and the exchange last, so that every order is answered.
//! Whatever happens, no child survives: they are killed on every way out of here, and die with this
//! process should it be killed itself.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

use crate::clock::parse_duration;
use crate::error::Error;
use crate::process::Stop;
use crate::publisher::FlowArguments;
use crate::report::{DemoReport, EngineReport, ExchangeReport, Format, PublisherReport, VERSION, print};
use crate::{engine, exchange};

/// How long a child may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// How often the children and the clock are looked at.
const NAP: Duration = Duration::from_millis(20);

/// Largest report that is read from a child, in bytes.
const MAX_REPORT: u64 = 1024 * 1024;

/// Run publisher, engine and exchange on this machine, and print what the engine measured.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How long, e.g. 20s; 0: until SIGINT or SIGTERM
    #[arg(long = "for", env = "PAPER_ENGINE_FOR", default_value = "0", value_name = "DURATION", value_parser = parse_duration)]
    pub duration: Duration,
    #[command(flatten)]
    /// What is published.
    pub flow: FlowArguments,
    #[command(flatten)]
    /// How the engine runs.
    pub engine: engine::RunArguments,
    /// How to print the report at the end
    #[arg(long, env = "PAPER_ENGINE_FORMAT", value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// Runs for the given time or until told to stop.
///
/// # Errors
/// When a child cannot be started, ends early, or the reports do not add up.
pub fn run(arguments: &Arguments, stop: &Stop) -> Result<(), Error> {
    let symbols = ("--symbols", arguments.flow.symbols.to_string());
    let names = Names::new()?;
    let mut exchange = Process::start(&names, "exchange", std::slice::from_ref(&symbols))?;
    let at: exchange::Ready = exchange.line()?;
    let mut flags = arguments.engine.flags();
    flags.extend([symbols.clone(), ("--exchange", at.listen.to_string())]);
    let mut engine = Process::start(&names, "engine", &flags)?;
    let engine_at: engine::Ready = engine.line()?;
    let mut publisher = Process::start(
        &names,
        "publish",
        &[
            ("--to", engine_at.feed.to_string()),
            ("--to", at.feed.to_string()),
            ("--rate", arguments.flow.rate.to_string()),
            ("--seed", arguments.flow.seed.to_string()),
            symbols,
        ],
    )?;
    eprintln!(
        "paper-engine demo: engine pid {}, exchange pid {}, publisher pid {}",
        engine.child.id(),
        exchange.child.id(),
        publisher.child.id()
    );

    let start = Instant::now();
    while !stop.is_set() && (arguments.duration.is_zero() || start.elapsed() < arguments.duration) {
        for child in [&mut exchange, &mut engine, &mut publisher] {
            child.must_run()?;
        }
        std::thread::sleep(NAP);
    }

    let publisher: PublisherReport = publisher.finish()?;
    let engine: EngineReport = engine.finish()?;
    let exchange: ExchangeReport = exchange.finish()?;
    let report = DemoReport {
        version: VERSION,
        mode: engine.mode.clone(),
        rate: arguments.flow.rate,
        seed: arguments.flow.seed,
        elapsed_ns: publisher.elapsed_ns,
        publisher,
        engine,
        exchange,
    };
    print(&report, arguments.format)?;
    check(&report)
}

/// Nothing may be unaccounted for.
fn check(report: &DemoReport) -> Result<(), Error> {
    let counters = &report.engine.counters;
    let accounted = counters.ticks + counters.malformed_messages + counters.missed;
    if accounted != report.publisher.published {
        return Err(Error::Failed(format!(
            "{} messages were published, but the engine accounts for {accounted}",
            report.publisher.published
        )));
    }
    let acked = counters.accepted + counters.rejected + counters.never_arrived;
    if acked != counters.orders || counters.open_orders > 0 {
        return Err(Error::Failed(format!(
            "{} orders were sent, {acked} acked, and {} are still open",
            counters.orders, counters.open_orders
        )));
    }
    Ok(())
}

/// This program under a name for each role, because a process is called what it was started as; an
/// observer can then tell the engine from the venue around it. Removed when dropped.
struct Names(PathBuf);

impl Names {
    fn new() -> Result<Self, Error> {
        let directory = std::env::temp_dir().join(format!("paper-engine-{}", std::process::id()));
        std::fs::create_dir(&directory)
            .map_err(Error::io(format!("cannot create the directory {}", directory.display())))?;
        Ok(Self(directory))
    }

    /// `paper-ROLE`, which is this program.
    fn program(&self, role: &str) -> std::io::Result<PathBuf> {
        let path = self.0.join(format!("paper-{role}"));
        symlink(std::env::current_exe()?, &path)?;
        Ok(path)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        // What stays behind is an empty directory of links, and no reason to fail.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A child of ours, killed when dropped.
struct Process {
    name: &'static str,
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts `paper-engine name` with `flags`, and nothing of our own configuration.
    fn start(names: &Names, name: &'static str, flags: &[(&str, String)]) -> Result<Self, Error> {
        let attempt = || format!("cannot start the {name} process");
        let mut command = Command::new(names.program(name).map_err(Error::io(attempt()))?);
        command
            .arg(name)
            .args(["--format", "json", "--parent"])
            .arg(std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Ctrl-C goes to the whole group; the children are to be stopped in order.
            .process_group(0);
        for (flag, value) in flags {
            command.arg(flag).arg(value);
        }
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("PAPER_ENGINE_") {
                command.env_remove(key);
            }
        }
        let mut child = command.spawn().map_err(Error::io(attempt()))?;
        let stdout = child.stdout.take().expect("stdout is piped");
        Ok(Self { name, child, stdout: BufReader::new(stdout) })
    }

    /// The next line on its stdout. A child that ends instead has said why on stderr.
    fn line<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        let mut line = String::new();
        (&mut self.stdout)
            .take(MAX_REPORT)
            .read_line(&mut line)
            .map_err(Error::io(format!("cannot read from the {} process", self.name)))?;
        if line.is_empty() {
            let status = self.wait()?;
            return Err(self.ended(status));
        }
        serde_json::from_str(&line).map_err(|error| {
            Error::Failed(format!("the {} process printed something unexpected: {error}", self.name))
        })
    }

    fn must_run(&mut self) -> Result<(), Error> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.ended(status)),
            Err(error) => Err(self.unwaitable()(error)),
        }
    }

    /// Asks the child to end, reads its report, and waits for it.
    fn finish<T: DeserializeOwned>(mut self) -> Result<T, Error> {
        // Fails only when the child has ended already; then so it says.
        let _ = kill_process(self.pid(), Signal::TERM);
        // The wait comes first: it is bounded, and a report fits into the pipe.
        let status = self.wait()?;
        if !status.success() {
            return Err(self.ended(status));
        }
        self.line()
    }

    /// Waits for the child to end, and kills it when that takes too long.
    fn wait(&mut self) -> Result<ExitStatus, Error> {
        let start = Instant::now();
        while start.elapsed() < GRACE {
            if let Some(status) = self.child.try_wait().map_err(self.unwaitable())? {
                return Ok(status);
            }
            std::thread::sleep(NAP / 10);
        }
        Err(Error::Failed(format!(
            "the {} process did not end within {} s and was killed",
            self.name,
            GRACE.as_secs()
        )))
    }

    fn ended(&self, status: ExitStatus) -> Error {
        match status.code().map(u8::try_from) {
            Some(Ok(code)) if code != 0 => Error::Child { name: self.name, code },
            _ => Error::Failed(format!("the {} process ended early: {status}", self.name)),
        }
    }

    fn unwaitable(&self) -> impl FnOnce(std::io::Error) -> Error + use<> {
        Error::io(format!("cannot wait for the {} process", self.name))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both do nothing when the child has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
