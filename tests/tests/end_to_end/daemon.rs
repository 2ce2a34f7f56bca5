//! A running `tickscope run`, and what it answers.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use tempfile::{NamedTempFile, TempDir};
use tickscope::exporter::json::{Series, Snapshot, Status};

/// A program that was built beside this test.
pub fn program(name: &str) -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_tickscope-load")).parent().expect("it lies in a directory");
    let path = beside.join(name);
    assert!(path.exists(), "{} is not built: run `./x build`", path.display());
    path
}

/// `tickscope` with these arguments and nothing of this environment that would change it.
pub fn tickscope(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("tickscope"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TICKSCOPE_"))
    {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Waits until `ready` gives something, at most `seconds`.
pub fn wait_for<T>(what: &str, seconds: u64, mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {seconds} s");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there are free ports");
    listener.local_addr().expect("it is bound").port()
}

/// The body of a 200 answer.
pub fn get(url: &str) -> Option<String> {
    ureq::get(url).call().ok()?.into_body().read_to_string().ok()
}

/// A daemon, killed when dropped.
pub struct Daemon {
    child: Child,
    config: NamedTempFile,
    logs: TempDir,
    port: u16,
}

impl Daemon {
    /// Starts it with this configuration beside its address and a short interval, and waits until
    /// it is ready.
    pub fn start(config: &str) -> Self {
        Self::start_with(config, |_| ())
    }

    /// The same, with changes to how it is started.
    pub fn start_with(config: &str, change: impl FnOnce(&mut Command)) -> Self {
        let mut daemon = Self::spawn(config, change);
        let url = daemon.url("/-/ready");
        wait_for("the daemon gets ready", 20, || {
            let ended = daemon.child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "{ended:?}\n{}", daemon.log());
            get(&url)
        });
        daemon
    }

    fn spawn(config: &str, change: impl FnOnce(&mut Command)) -> Self {
        let port = free_port();
        let file = NamedTempFile::new().expect("a temporary file");
        let logs = TempDir::new().expect("a temporary directory");
        let log = fs::File::create(logs.path().join("log")).expect("a temporary file");
        let path = file.path().to_str().expect("a path of text").to_owned();
        let mut command = tickscope(&["run", "--config", &path, "--listen", &format!("127.0.0.1:{port}")]);
        command.stderr(log);
        change(&mut command);
        configure(file.path(), config);
        let child = command.spawn().expect("it starts");
        Self { child, config: file, logs, port }
    }

    /// Writes another configuration, to be read at a reload.
    pub fn configure(&self, config: &str) {
        configure(self.config.path(), config);
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.logs.path().join("log")).expect("it is there")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Its exit code, after it has ended; `None` when a signal ended it.
    pub fn ended(&mut self) -> Option<i32> {
        let child = &mut self.child;
        wait_for("the daemon ends", 10, || child.try_wait().expect("it is our child")).code()
    }

    /// Address of one of its pages.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The body of one of its pages.
    pub fn page(&self, path: &str) -> String {
        get(&self.url(path)).unwrap_or_else(|| panic!("{path} does not answer\n{}", self.log()))
    }

    fn json<T: DeserializeOwned>(&self, path: &str) -> T {
        serde_json::from_str(&self.page(path)).expect("the shape of the API")
    }

    /// `/api/v1/status`
    pub fn status(&self) -> Status {
        self.json("/api/v1/status")
    }

    /// One series of `/api/v1/snapshot`, after at least two more readings.
    pub fn series(&self, probe: &str, label: Option<&str>) -> Series {
        self.two_readings();
        let snapshot: Snapshot = self.json("/api/v1/snapshot");
        let wanted = |series: &Series| {
            series.probe == probe
                && label.is_none_or(|label| series.labels.values().any(|value| value == label))
        };
        snapshot.series.into_iter().find(wanted).unwrap_or_else(|| panic!("no series of {probe} {label:?}"))
    }

    /// Waits until all that has happened so far is in a snapshot.
    pub fn two_readings(&self) {
        let before = self.status().readings;
        wait_for("two readings", 10, || (self.status().readings >= before + 2).then_some(()));
    }

    /// The value of a line of `/metrics`, by all that is before it.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.page("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().expect("a number")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn configure(path: &Path, config: &str) {
    let mut file = fs::File::create(path).expect("a temporary file");
    write!(file, "interval = \"200ms\"\n{config}").expect("it is written");
}

/// The TOML of one target.
pub fn target(rule: &str) -> String {
    format!("[[target]]\nname = \"t\"\nmatch = {{ {rule} }}\n")
}

/// Exit code and standard error of a command that ends by itself.
pub fn outcome(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}
