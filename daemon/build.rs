//! Builds the kernel object (`ebpf/probes`) and hands its path and hash to the crate.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use sha2::{Digest, Sha256};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("..");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    for input in ["ebpf", "Cargo.toml", "rust-toolchain.toml"] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo::rerun-if-env-changed=TICKSCOPE_BPF_LINKER");

    let object = build_object(&root, &out.join("object"));
    let bytes = fs::read(&object).expect("the object was just built");
    let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo::rustc-env=TICKSCOPE_OBJECT={}", object.display());
    println!("cargo::rustc-env=TICKSCOPE_OBJECT_SHA256={hash}");

    println!("cargo::rerun-if-changed={}", root.join(".git/HEAD").display());
    println!("cargo::rustc-env=TICKSCOPE_GIT_SHA={}", git_sha(&root));
}

/// A separate cargo with a target directory of its own (this one's is locked by our caller), the
/// pinned stable toolchain, and the unstable `build-std` that a kernel target needs.
fn build_object(root: &Path, target_dir: &Path) -> PathBuf {
    let linker =
        env::var_os("TICKSCOPE_BPF_LINKER").map_or_else(|| root.join(".tools/bin/bpf-linker"), PathBuf::from);
    assert!(
        linker.exists(),
        "bpf-linker is not at {}: run `./x setup`, or name one built with LLVM 22 in TICKSCOPE_BPF_LINKER",
        linker.display()
    );
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("set by cargo");
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        format!("-Clinker={}", linker.canonicalize().expect("it exists").display()),
    ];
    let status = Command::new(env::var_os("CARGO").expect("set by cargo"))
        .current_dir(root)
        .args(["build", "--locked", "--release", "--package=tickscope-probes"])
        .args(["-Zbuild-std=core", "--target=bpfel-unknown-none", "--target-dir"])
        .arg(target_dir)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC")
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "the kernel object did not build (messages above)");
    target_dir.join("bpfel-unknown-none/release/tickscope-probes")
}

fn git_sha(root: &Path) -> String {
    Command::new("git")
        .current_dir(root)
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(|| "unknown".into(), |sha| sha.trim().to_owned())
}
