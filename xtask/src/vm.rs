//! `./x vm`: the matrix tests (`tests/tests/it/matrix.rs`) on Debian's kernels, each in a virtual
//! machine.
//!
//! QEMU interprets (TCG), so this runs wherever CI runs and needs neither KVM nor root; what a clock
//! says in there means nothing, counts and states do. One thread for both CPUs: with a thread each,
//! the real-time kernel died in two of seven boots when the kernel patched its own text.
//!
//! The machine has no disk. Its memory holds a shell, the tests and the daemon, all static (musl, as
//! nothing else needs a C library for the target, and the daemon ships so); see `vm/init.sh`.

mod initramfs;
mod kernel;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use self::initramfs::Initramfs;
use self::kernel::{Instructions, Kernel};
use crate::process::{self, cargo, in_ci, target};
use crate::setup;
use crate::test::Count;

/// Boot and tests take half a minute; a busy machine may need a few times that.
const DEADLINE: Duration = Duration::from_secs(240);
/// What the kernel says when something is wrong with it.
const COMPLAINTS: &[&str] = &["BUG", "WARN", "Oops", "panic"];

/// Tells the kernels there are, and which of them are fetched.
///
/// # Errors
/// When `tests/kernels.toml` is not what it should be.
pub fn list() -> Result<()> {
    for kernel in kernel::all()? {
        let release = kernel.release().unwrap_or_else(|| "not fetched yet".into());
        println!("{:<10} {release}", kernel.name);
    }
    Ok(())
}

/// Tests all kernels or `only` one, and counts one test for each. To `record` is to write into
/// `tests/kernels.toml` how many instructions the verifiers walked.
///
/// # Errors
/// When a kernel fails, or, in CI, when one cannot be had.
pub fn run(only: Option<&str>, record: bool, count: &mut Count) -> Result<()> {
    let mut kernels = kernel::all()?;
    if let Some(only) = only {
        let names: Vec<String> = kernels.iter().map(|kernel| kernel.name.clone()).collect();
        kernels.retain(|kernel| kernel.name == only);
        ensure!(!kernels.is_empty(), "there is no kernel {only}: it is one of {}", names.join(", "));
    }
    let busybox = match setup::vm_needs().and_then(|()| kernel::busybox()) {
        Ok(busybox) => busybox,
        Err(error) => return kernels.iter().try_for_each(|kernel| skip(kernel, &error, count)),
    };
    let programs = Programs::build(&busybox)?;
    let mut failed = Vec::new();
    let mut instructions = Instructions::new();
    for kernel in &kernels {
        let image = match kernel.fetch() {
            Ok(image) => image,
            Err(error) => {
                skip(kernel, &error, count)?;
                continue;
            }
        };
        let began = Instant::now();
        let result = test(kernel, &image, &programs, &mut instructions);
        let seconds = began.elapsed().as_secs();
        match result {
            Ok(()) => {
                println!("test vm::{} ... ok ({seconds} s)", kernel.name);
                count.passed += 1;
            }
            Err(error) => {
                println!("test vm::{} ... FAILED ({seconds} s): {error:#}", kernel.name);
                count.failed += 1;
                failed.push(kernel.name.as_str());
            }
        }
    }
    if record {
        ensure!(count.skipped == 0, "not every kernel is here: nothing is recorded");
        kernel::record(&instructions)?;
    }
    ensure!(failed.is_empty(), "failed on Linux {}", failed.join(", "));
    Ok(())
}

/// A kernel that cannot be had is left out loudly; in CI nothing is.
fn skip(kernel: &Kernel, error: &anyhow::Error, count: &mut Count) -> Result<()> {
    if in_ci() {
        bail!("Linux {} must be tested in CI: {error:#}", kernel.name);
    }
    eprintln!("x: SKIPPED: Linux {}: {error:#}", kernel.name);
    println!("test vm::{} ... skipped", kernel.name);
    count.skipped += 1;
    Ok(())
}

/// What runs inside.
struct Programs {
    busybox: Vec<u8>,
    tests: Vec<u8>,
    load: Vec<u8>,
    daemon: Vec<u8>,
}

impl Programs {
    fn build(busybox: &Path) -> Result<Self> {
        eprintln!("x: building for the virtual machines (two minutes the first time)");
        let target = format!("--target={}", setup::VM_TARGET);
        process::run(cargo(&["build", "--locked", "--quiet", "--release", &target]).args([
            "--package=tickscope",
            "--package=tickscope-tests",
            "--bin=tickscope",
            "--bin=tickscope-load",
        ]))?;
        let mut tests = cargo(&["test", "--no-run", "--locked", "--quiet", "--release", &target]);
        tests.args(["--package=tickscope-tests", "--test=it", "--message-format=json"]);
        let output = tests.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
        ensure!(output.status.success(), "{tests:?} failed: {}", output.status);
        let tests = executable(&String::from_utf8(output.stdout)?).context("cargo built no tests")?;
        let built = process::target().join(setup::VM_TARGET).join("release");
        let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
        Ok(Self {
            busybox: read(busybox)?,
            tests: read(&tests)?,
            load: read(&built.join("tickscope-load"))?,
            daemon: read(&built.join("tickscope"))?,
        })
    }

    fn initramfs(&self, kernel: &Kernel) -> Vec<u8> {
        let mut archive = Initramfs::new(&["bin", "dev", "proc", "sys", "tmp"]);
        archive.add("init", include_bytes!("vm/init.sh"));
        archive.add("kernel", format!("{}\n", kernel.name).as_bytes());
        archive.add("bin/busybox", &self.busybox);
        archive.add("bin/it", &self.tests);
        archive.add("bin/tickscope-load", &self.load);
        archive.add("bin/tickscope", &self.daemon);
        archive.finish()
    }
}

/// The test program, from cargo's messages (one JSON object a line).
fn executable(messages: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "it").then(|| message["executable"].as_str().map(PathBuf::from))?
    })
}

/// Boots one kernel and has it run the tests.
fn test(kernel: &Kernel, image: &Path, programs: &Programs, instructions: &mut Instructions) -> Result<()> {
    let directory = target().join("vm").join(&kernel.name);
    fs::create_dir_all(&directory)?;
    let initramfs = directory.join("initramfs.cpio");
    fs::write(&initramfs, programs.initramfs(kernel))?;
    let console = directory.join("console.log");
    eprintln!("x: Linux {} ({})", kernel.name, kernel.release().unwrap_or_default());
    let mut machine = Machine::start(image, &initramfs, &console)?;
    let log = directory.join("tests.log");
    let end = machine.follow(&kernel.name, &log)?;
    let end = end.with_context(|| {
        format!("the machine stopped before the tests ended; its last words:\n{}", tail(&console))
    })?;
    for (program, walked) in verified(&fs::read_to_string(&log)?) {
        let known = instructions.iter().position(|(known, _)| *known == program);
        let row = known.unwrap_or_else(|| {
            instructions.push((program, Vec::new()));
            instructions.len() - 1
        });
        instructions[row].1.push((kernel.name.clone(), walked));
    }
    let messages = fs::read(&console)?;
    let messages = String::from_utf8_lossy(&messages);
    let complaints = complaints(&messages);
    ensure!(complaints.is_empty(), "the kernel complained:\n{}", complaints.join("\n"));
    ensure!(end == "0", "tests failed: {}", log.display());
    Ok(())
}

/// Programs and their verified instructions, from what the tests print.
fn verified(log: &str) -> Vec<(String, u32)> {
    log.lines()
        .filter_map(|line| line.strip_suffix(" instructions")?.split_once(' '))
        .filter_map(|(program, count)| Some((program.to_owned(), count.trim().parse().ok()?)))
        .collect()
}

/// Lines of the kernel's log in which something is wrong.
fn complaints(messages: &str) -> Vec<&str> {
    messages
        .lines()
        // What we told it ourselves.
        .filter(|line| !line.contains("ommand line:"))
        .filter(|line| COMPLAINTS.iter().any(|complaint| line.contains(complaint)))
        .collect()
}

fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// A running virtual machine; ends when this is dropped.
struct Machine {
    qemu: Child,
    output: Receiver<String>,
}

impl Machine {
    fn start(image: &Path, initramfs: &Path, console: &Path) -> Result<Self> {
        let mut qemu = Command::new(setup::QEMU)
            .args(["-accel", "tcg,thread=single", "-smp", "2", "-m", "768"])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(image)
            .arg("-initrd")
            .arg(initramfs)
            // A host that stalls is no lock-up of the guest.
            .args(["-append", "console=ttyS0 panic=-1 nowatchdog rcupdate.rcu_cpu_stall_suppress=1"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", setup::QEMU))?;
        let output = lines(qemu.stdout.take().context("it is piped")?);
        Ok(Self { qemu, output })
    }

    /// Shows and logs what the machine says until it is off. How the tests ended: the number after
    /// the word END, which must be there, because QEMU ends well when the kernel in it panics.
    fn follow(&mut self, name: &str, log: &Path) -> Result<Option<String>> {
        let mut log = File::create(log)?;
        let deadline = Instant::now() + DEADLINE;
        let mut end = None;
        loop {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    eprintln!("{name}| {line}");
                    writeln!(log, "{line}")?;
                    end = end.or_else(|| line.strip_prefix("END ").map(str::to_owned));
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(end),
                Err(RecvTimeoutError::Timeout) => bail!("not ready after {} s", DEADLINE.as_secs()),
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.qemu.kill());
        drop(self.qemu.wait());
    }
}

/// Lines as they come, until the end.
fn lines(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_of_the_kernel_are_found() {
        let log = "[    0.0] Command line: console=ttyS0 panic=-1\n[    1.0] all is well\n\
                   [    2.0] WARNING: CPU: 0 PID: 1 at kernel/bpf/core.c:1\n\
                   [    3.0] Kernel panic - not syncing\n";
        assert_eq!(complaints(log).len(), 2);
    }

    #[test]
    fn verified_instructions_are_read_from_the_log() {
        let log = "sys_exit              4420 instructions\nits 3 are not instructions\nruns 1 2\n";
        assert_eq!(verified(log), [("sys_exit".to_owned(), 4420)]);
    }

    #[test]
    fn the_test_program_is_found_among_cargos_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"libc\"},\"executable\":null}\n\
                        {\"target\":{\"name\":\"it\"},\"executable\":\"/a/it-1\"}\nno JSON\n";
        assert_eq!(executable(messages), Some(PathBuf::from("/a/it-1")));
        assert_eq!(executable("{}"), None);
    }
}
