//! Privileged tests: real programs in the running kernel, against work with known answers.
//!
//! They need root (CAP_BPF, CAP_PERFMON) and run one at a time, because they count what the kernel
//! does. Without privilege they say so and are skipped; with `CI=true` that is a failure.

mod harness;
mod load;
mod matrix;
mod peer;
mod truth;
