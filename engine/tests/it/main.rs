//! End-to-end tests of `paper-engine`: real processes, real sockets, on loopback only.
#![expect(
    clippy::unwrap_used,
    clippy::unbuffered_bytes,
    reason = "what a test cannot set up fails it; one short line is read before the rest"
)]

mod peer;
mod processes;
mod router;
mod sessions;
