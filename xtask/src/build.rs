//! Builds everything that runs.

use anyhow::Result;

use crate::process;

/// Builds the daemon, the engine, and what tests and benchmarks start.
///
/// # Errors
/// When it does not build.
pub fn run(release: bool) -> Result<()> {
    let mut command = process::cargo(&["build", "--locked"]);
    command.args(["--package=tickscope", "--package=paper-engine", "--package=tickscope-tests", "--bins"]);
    if release {
        command.arg("--release");
    }
    process::run(&mut command)
}
