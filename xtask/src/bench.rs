//! Runs a benchmark, built as it is shipped.

use anyhow::{Result, bail};

use crate::process::{self, cargo, is_root, target};
use crate::{build, setup};

const BENCHES: &[&str] = &["overhead", "predict"];

/// Builds and runs one; its own words go to it.
///
/// # Errors
/// When there is no such benchmark, or it fails.
pub fn run(name: &str, arguments: &[String]) -> Result<()> {
    if !BENCHES.contains(&name) {
        bail!("there is no benchmark {name}: it is one of {}", BENCHES.join(", "));
    }
    if name == "predict" {
        // Pure: neither the kernel nor a privilege is needed.
        let arguments = arguments.iter().map(String::as_str);
        let run = [
            "run",
            "--locked",
            "--quiet",
            "--release",
            "--package=tickscope-core",
            "--example=predict",
            "--",
        ];
        return process::run(&mut cargo(&run.into_iter().chain(arguments).collect::<Vec<_>>()));
    }
    if !is_root() {
        return Err(setup::Missing::privilege("benchmarks attach kernel programs: run as root").into());
    }
    setup::build_needs()?;
    setup::test_needs()?;
    build::run(true)?;
    let program = target().join("release").join(name);
    process::run(std::process::Command::new(program).args(arguments))
}
