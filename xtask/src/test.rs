//! `./x test`: everything that CI checks, fastest failure first.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::process::{self, cargo, in_ci, is_root};
use crate::{setup, tidy, vm};

/// How many tests came to which end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Good.
    pub passed: u64,
    /// Not good.
    pub failed: u64,
    /// Could not run here.
    pub skipped: u64,
}

impl Count {
    /// Adds a line of cargo's, `test result: ok. 3 passed; 0 failed; 1 ignored; …`, if it is one.
    fn add(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let number = |word: &str| -> u64 {
            rest.split(['.', ';'])
                .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
                .unwrap_or(0)
        };
        self.passed += number("passed");
        self.failed += number("failed");
        self.skipped += number("ignored");
    }
}

/// Runs every check; the last line of its output counts the tests.
///
/// # Errors
/// The first stage that fails.
pub fn run(quick: bool) -> Result<()> {
    told(|count| stages(quick, count))
}

/// Runs the kernel matrix alone, or one kernel of it.
///
/// # Errors
/// When a kernel fails.
pub fn vm(kernel: Option<&str>, record: bool) -> Result<()> {
    told(|count| setup::build_needs().and_then(|()| vm::run(kernel, record, count)))
}

/// Counts tests, and tells at the end how many there were.
fn told(run: impl FnOnce(&mut Count) -> Result<()>) -> Result<()> {
    let began = Instant::now();
    let mut count = Count::default();
    let result = run(&mut count);
    let Count { passed, failed, skipped } = count;
    eprintln!("x: {} s in all", began.elapsed().as_secs());
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    result
}

fn stages(quick: bool, count: &mut Count) -> Result<()> {
    stage("set-up", || setup::build_needs().and_then(|()| setup::test_needs()))?;
    stage("format", || process::run(&mut cargo(&["fmt", "--all", "--check"])))?;
    stage("tidy", tidy::run)?;
    stage("clippy", || {
        process::run(&mut cargo(&["clippy", "--locked", "--quiet", "--all-targets", "--", "--deny=warnings"]))
    })?;
    stage("unit and property tests", || {
        // Of the privileged package only what needs no privilege is built here.
        let arguments = [
            "test",
            "--locked",
            "--quiet",
            "--workspace",
            "--exclude=tickscope-probes",
            "--exclude=tickscope-tests",
        ];
        counted(&mut cargo(&arguments), count)
    })?;
    if is_root() {
        privileged(quick, count)?;
    } else if in_ci() {
        bail!("privileged tests must run in CI, and this is not root");
    } else {
        eprintln!("x: SKIPPED: privileged and end-to-end tests need root");
        count.skipped += 1;
    }
    if quick {
        eprintln!("x: left out by --quick: end-to-end tests, kernel matrix");
        return Ok(());
    }
    stage("kernel matrix", || vm::run(None, false, count))
}

fn privileged(quick: bool, count: &mut Count) -> Result<()> {
    stage("privileged tests", || {
        let mut command = cargo(&["test", "--locked", "--quiet", "--package=tickscope-tests", "--test=it"]);
        command.args(["--", "--test-threads=1"]);
        counted(&mut command, count)
    })?;
    if quick {
        return Ok(());
    }
    stage("end-to-end tests", || {
        process::run(&mut cargo(&[
            "build",
            "--locked",
            "--quiet",
            "--package=paper-engine",
            "--package=tickscope",
            "--bins",
        ]))?;
        let mut command =
            cargo(&["test", "--locked", "--quiet", "--package=tickscope-tests", "--test=end_to_end"]);
        command.args(["--", "--test-threads=1"]);
        counted(&mut command, count)
    })
}

fn stage(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("x: {name}");
    let began = Instant::now();
    run().with_context(|| name.to_owned())?;
    eprintln!("x: {name}: good, {} s", began.elapsed().as_secs());
    Ok(())
}

/// Runs tests, shows what they print, and counts them.
fn counted(command: &mut Command, count: &mut Count) -> Result<()> {
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {command:?}"))?;
    let out = child.stdout.take().context("it is piped")?;
    let before = *count;
    for line in BufReader::new(out).lines() {
        let line = line?;
        println!("{line}");
        count.add(&line);
    }
    let status = child.wait()?;
    if !status.success() {
        if count.failed == before.failed {
            count.failed += 1;
        }
        bail!("{command:?} failed: {status}");
    }
    if count.passed == before.passed {
        bail!("{command:?} ran no test");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_cargo_are_counted_and_others_are_not() {
        let mut count = Count::default();
        count.add(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.53s",
        );
        count.add("test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out");
        count.add("running 3 tests");
        count.add("5 passed");
        assert_eq!(count, Count { passed: 14, failed: 1, skipped: 1 });
    }
}
