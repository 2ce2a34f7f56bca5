//! Tests of the daemon that need no privilege.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod btf;
mod cli;
mod gate;
mod http;
mod metrics;
mod object;
mod rows;
mod rules;
