//! The daemon as a library: what the binary and the tests share.

pub mod config;
pub mod exit;
