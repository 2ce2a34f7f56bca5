//! The daemon as a library: what the binary and the tests share.
//!
//! Data flows one way: `loader` puts the programs into the kernel, `source` reads them, the core
//! turns readings into snapshots, `exporter` shows snapshots. Start with `run`.

pub mod announce;
pub mod btf;
pub mod config;
pub mod control;
pub mod csv;
pub mod detect;
pub mod doctor;
pub mod exit;
pub mod exporter;
pub mod forecast;
pub mod gate;
pub mod http;
pub mod loader;
pub mod measure;
pub mod memory;
pub mod metrics;
pub mod offset;
pub mod rules;
pub mod run;
pub mod source;
mod sys;
mod target;
pub mod top;
