//! What building and testing need beyond Rust: LLVM, bpf-linker, and peers to test against.
//!
//! Every step looks first and does nothing when all is there. Toolchain, LLVM and linker are one
//! compatibility unit: rustc 1.98 carries LLVM 22.1, and so must the linker.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::process::{cargo, in_ci, is_root, output, root, run};

const LINKER_VERSION: &str = "0.13.0";
const LLVM: &str = "22";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// What building needs, as Debian calls it, and a file that tells whether it is there.
const BUILD: &[(&str, &str)] = &[
    ("llvm-22-dev", "/usr/lib/llvm-22/lib/libLLVM.so"),
    ("libzstd-dev", "/usr/include/zstd.h"),
    ("zlib1g-dev", "/usr/include/zlib.h"),
    ("libxml2-dev", "/usr/include/libxml2/libxml/xmlversion.h"),
    ("gcc", "/usr/bin/gcc"),
];

/// What testing and benchmarks need besides.
const TEST: &[(&str, &str)] = &[
    ("prometheus", "/usr/bin/promtool"),
    ("prometheus-alertmanager", "/usr/bin/amtool"),
    ("docker-compose", "/usr/bin/docker-compose"),
    ("libbpf-tools", "/usr/sbin/runqlat"),
    ("bpftrace", "/usr/bin/bpftrace"),
    ("bpftool", "/usr/sbin/bpftool"),
    ("curl", "/usr/bin/curl"),
];

/// What the kernel matrix needs besides.
const VM: &[(&str, &str)] = &[
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    ("debian-archive-keyring", "/usr/share/keyrings/debian-archive-keyring.gpg"),
];
/// The virtual machine.
pub const QEMU: &str = "qemu-system-x86_64";
/// What programs inside it are built for.
pub const VM_TARGET: &str = "x86_64-unknown-linux-musl";

/// Something is missing and cannot be installed here.
#[derive(Debug)]
pub struct Missing {
    what: String,
    exit: u8,
}

impl Missing {
    /// Exit code: 69 without the service, 77 without the privilege.
    pub fn exit(&self) -> u8 {
        self.exit
    }

    /// Missing privilege.
    pub fn privilege(what: &str) -> Self {
        Self { what: what.into(), exit: 77 }
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(&self.what)
    }
}

impl std::error::Error for Missing {}

/// The linker for kernel objects, as `daemon/build.rs` expects it.
fn linker() -> PathBuf {
    root().join(".tools/bin/bpf-linker")
}

/// Makes sure of what building needs.
///
/// # Errors
/// When something is missing and cannot be installed.
pub fn build_needs() -> Result<()> {
    if env::var_os("TICKSCOPE_BPF_LINKER").is_some() {
        return Ok(());
    }
    let found = linker_version(&linker());
    if found.as_deref() == Some(LINKER_VERSION) {
        return Ok(());
    }
    packages(BUILD)?;
    let began = Instant::now();
    eprintln!("x: building bpf-linker {LINKER_VERSION} for LLVM {LLVM} (about a minute)");
    run(cargo(&["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force", "--quiet"])
        .args(["--no-default-features", "--features", &format!("llvm-{LLVM}"), "--root"])
        .arg(root().join(".tools"))
        .env("LLVM_PREFIX", LLVM_PREFIX)
        .env_remove("CARGO_TARGET_DIR"))?;
    eprintln!("x: bpf-linker built in {} s", began.elapsed().as_secs());
    Ok(())
}

/// Makes sure of what testing needs.
///
/// # Errors
/// When something is missing and cannot be installed; outside CI that is only said.
pub fn test_needs() -> Result<()> {
    match packages(TEST) {
        Err(error) if !in_ci() => {
            eprintln!("x: {error:#}: tests that need it will say that they are skipped");
            Ok(())
        }
        result => result,
    }
}

/// Makes sure of what the kernel matrix needs: QEMU, Debian's keys, and Rust's library for
/// [`VM_TARGET`].
///
/// # Errors
/// When something is missing and cannot be installed.
pub fn vm_needs() -> Result<()> {
    if output(QEMU, &["--version"]).is_none() || !Path::new(VM[1].1).exists() {
        packages(VM)?;
    }
    if output("rustup", &["--version"]).is_none() {
        let what = format!("missing: Rust's library for {VM_TARGET}, and there is no rustup to install it");
        return Err(Missing { what, exit: 69 }.into());
    }
    // In the repository it is the pinned toolchain's; does nothing when it is there.
    run(Command::new("rustup").current_dir(root()).args(["--quiet", "target", "add", VM_TARGET]))
}

fn linker_version(path: &Path) -> Option<String> {
    let text = output(path.to_str()?, &["--version"])?;
    text.split_whitespace().nth(1).map(str::to_owned)
}

fn packages(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        wanted.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if output("apt-get", &["--version"]).is_none() {
        let what =
            format!("missing: {list} (Debian's names), and there is no apt-get: install them your way");
        return Err(Missing { what, exit: 69 }.into());
    }
    let sudo = !is_root();
    if sudo && output("sudo", &["-n", "true"]).is_none() {
        let what = format!("missing: {list}; run as root: apt-get install {list}");
        return Err(Missing { what, exit: 77 }.into());
    }
    let began = Instant::now();
    eprintln!("x: installing {list} (about half a minute)");
    if !install(sudo, &missing) {
        // The lists may be old or absent.
        run(apt(sudo).arg("update").arg("--quiet"))?;
        if !install(sudo, &missing) {
            let what = format!("cannot install {list}: see apt-get's messages above");
            return Err(Missing { what, exit: 69 }.into());
        }
    }
    eprintln!("x: installed in {} s", began.elapsed().as_secs());
    Ok(())
}

fn install(sudo: bool, packages: &[&str]) -> bool {
    apt(sudo)
        .args(["install", "--yes", "--quiet", "--no-install-recommends"])
        .args(packages)
        .stdout(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// apt-get that asks nothing and starts no service.
fn apt(sudo: bool) -> Command {
    let mut command = Command::new(if sudo { "sudo" } else { "env" });
    command.args(["DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get"]);
    command
}
