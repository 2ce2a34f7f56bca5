//! End to end: the built daemon and engine as processes, a real Prometheus, the running kernel.
//!
//! They need root, and `./x test` builds the binaries first.

mod alerting;
mod daemon;
mod dashboards;
mod engine;
mod gate;
mod lifecycle;
mod load;
mod prometheus;

/// Whether a privileged test can run here; says so when not, and fails where it must.
fn privileged() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "privileged tests must run in CI: not root");
    eprintln!("SKIPPED: needs root (CAP_BPF, CAP_PERFMON)");
    false
}
