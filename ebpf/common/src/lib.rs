//! What the kernel side and the daemon agree on: the catalog of probes, the histogram scheme, and
//! the layout of everything that crosses between them.
//!
//! It decides nothing and depends on nothing. Start with [`catalog::PROBES`]: one entry is one
//! latency that tickscope measures, and its name is the file of the probe, its configuration key,
//! its row in the status and the stem of its metric.
#![no_std]

pub mod call;
pub mod catalog;
pub mod histogram;
pub mod layout;
