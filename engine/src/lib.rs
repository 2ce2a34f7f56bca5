//! A paper-trading venue and engine, real enough to be worth observing.
//!
//! A market data publisher (UDP), a trading engine, a paper exchange (TCP), and a router that splits
//! the flow between two builds of the engine.
//! See the README for a picture. It is *not* for trading: fills are simulated.
//!
//! Start at [`trader`], which is the engine without sockets. Everything up to [`venue`] in the list
//! below is pure: no clock, no IO, the same input gives the same output. The rest is thin.
#![forbid(unsafe_code)]
#![expect(
    clippy::missing_panics_doc,
    reason = "each expect states an invariant of its own module, not a duty of the caller"
)]

pub mod book;
pub mod comparison;
pub mod flow;
pub mod matching;
pub mod md;
pub mod open_order;
pub mod order_entry;
pub mod paper;
pub mod risk;
pub mod route;
pub mod session;
pub mod splitter;
pub mod strategy;
pub mod trader;
pub mod venue;
pub mod wire;

pub mod hooks;
pub mod latency;
pub mod report;
pub mod router_report;

pub mod admin;
pub mod clock;
pub mod connection;
pub mod demo;
pub mod engine;
pub mod error;
pub mod exchange;
pub mod gateway;
pub mod process;
pub mod publisher;
pub mod router;
