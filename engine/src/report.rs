//! What the processes print when they end, as a table or as JSON.
//!
//! The JSON of `demo` (the others print their part of it alone); every field is always there, and
//! fields are only ever added:
//!
//! ```text
//! { "version": 1, "mode": "block"|"epoll"|"spin", "rate": f, "seed": n, "elapsed_ns": n,
//!   "publisher": { "pid", "seed", "rate", "session", "published", "datagrams", "bytes", "send_errors",
//!                  "elapsed_ns", "lateness": LATENCY },
//!   "engine":    { "pid", "build", "mode", "elapsed_ns", "counters": { ... }, "latencies": { NAME: LATENCY } },
//!   "exchange":  { "pid", "elapsed_ns", "counters": { ... } } }
//! LATENCY = { "count", "sum_ns", "min_ns", "p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns" }
//! ```
//!
//! All counters are integers from 0. For the engine `ticks + malformed_messages + missed` is the
//! number of messages published, and `accepted + rejected + never_arrived` the number of orders sent, once it has
//! seen the end of the session and the exchange has answered everything.
//! `sum_ns` is exact; the other times are within 0.1 %.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Version of the JSON shape.
pub const VERSION: u32 = 1;

/// How to print a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table for people, in µs.
    Text,
    /// One line of JSON.
    Json,
}

/// Count, sum and quantiles of one latency, in ns; all 0 when nothing was recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct LatencySummary {
    pub count: u64,
    pub sum_ns: u64,
    pub min_ns: u64,
    pub p50_ns: u64,
    pub p90_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    pub max_ns: u64,
}

/// The engine's latencies; each says from where to where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latencies {
    /// Market data `recvfrom` returned -> the order's `sendto` is called. One per order.
    pub tick_to_order: LatencySummary,
    /// The order's `sendto` is called -> it returned. One per order.
    pub send: LatencySummary,
    /// Market data `recvfrom` is called -> it returned with a datagram. One per datagram; in block
    /// mode it includes the wait for it.
    pub recv: LatencySummary,
    /// Market data `recvfrom` is called -> it returned with `EAGAIN`. One per call without data.
    pub recv_empty: LatencySummary,
    /// The publisher's stamp of a datagram's first new message -> `recvfrom` returned. One per
    /// datagram with a new message.
    pub feed_to_recv: LatencySummary,
    /// The order's `sendto` is called -> the `recvfrom` that completed its ack returned. One per
    /// order that was accepted or rejected.
    pub order_to_ack: LatencySummary,
}

impl Latencies {
    /// Name, endpoints and values, in the order of the way.
    fn rows(&self) -> [(&'static str, &'static str, &LatencySummary); 6] {
        [
            ("feed_to_recv", "feed send stamp -> recv return", &self.feed_to_recv),
            ("recv", "recv call -> return with data", &self.recv),
            ("recv_empty", "recv call -> return without data", &self.recv_empty),
            ("tick_to_order", "recv return -> send call", &self.tick_to_order),
            ("send", "send call -> return", &self.send),
            ("order_to_ack", "send call -> ack recv return", &self.order_to_ack),
        ]
    }
}

/// What the engine counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineCounters {
    /// Datagrams received.
    pub datagrams: u64,
    /// Datagrams without messages: heartbeats and ends of session.
    pub heartbeats: u64,
    /// Datagrams that were not market data.
    pub malformed_datagrams: u64,
    /// Messages received for the first time and understood.
    pub ticks: u64,
    /// Messages received for the first time that made no sense.
    pub malformed_messages: u64,
    /// Messages received again.
    pub duplicates: u64,
    /// Times that sequence numbers jumped.
    pub gaps: u64,
    /// Messages they jumped over.
    pub missed: u64,
    /// Ticks of symbols that are not traded here.
    pub other_symbols: u64,
    /// Ticks about orders that the book does not hold; 0 without gaps.
    pub unknown_orders: u64,
    /// Ticks that the book refused for another reason; 0 unless the publisher is wrong.
    pub book_errors: u64,
    /// Datagrams stamped later than they were received: not this machine's clock.
    pub clock_errors: u64,
    /// Orders sent.
    pub orders: u64,
    /// Orders not sent, by the reason of the risk check.
    pub denied: BTreeMap<String, u64>,
    /// Orders the exchange accepted.
    pub accepted: u64,
    /// Orders the exchange rejected.
    pub rejected: u64,
    /// Fills; an order may have several.
    pub fills: u64,
    /// Shares filled.
    pub filled_shares: u64,
    /// Orders of which the exchange canceled the rest.
    pub canceled: u64,
    /// Responses that fit no open order.
    pub unexpected_responses: u64,
    /// Times that the session with the exchange was lost.
    pub disconnects: u64,
    /// Orders that were sent, and of which the exchange says that they did not arrive.
    pub never_arrived: u64,
    /// Orders not finished at the end.
    pub open_orders: u64,
    /// Shares held at the end; negative when short.
    pub position_shares: i64,
}

/// What the exchange counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExchangeCounters {
    /// Sessions that were opened.
    pub sessions: u64,
    /// Times that one was gone on with.
    pub resumed: u64,
    /// Connections closed for what they sent, or for not reading.
    pub closed: u64,
    /// Market data messages received.
    pub ticks: u64,
    /// Market data messages missed.
    pub missed: u64,
    /// Market data that made no sense.
    pub malformed: u64,
    /// Market data about orders that are not, or no longer, in the book.
    pub unknown_orders: u64,
    /// Orders received from sessions.
    pub orders: u64,
    /// … accepted.
    pub accepted: u64,
    /// Orders that took the place of another one.
    pub replaced: u64,
    /// … rejected; also cancels of orders that are not live.
    pub rejected: u64,
    /// Executions of session orders.
    pub fills: u64,
    /// Cancels of session orders, for whatever reason.
    pub canceled: u64,
    /// Trades in the book.
    pub trades: u64,
    /// Orders that rest at the end.
    pub resting_orders: u64,
}

/// What the publisher prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PublisherReport {
    /// Process id.
    pub pid: u32,
    /// Seed of the flow.
    pub seed: u64,
    /// Mean messages/s asked for.
    pub rate: f64,
    /// Session name in the datagrams.
    pub session: String,
    /// Messages published; each counts once, however many receivers there are.
    pub published: u64,
    /// Datagrams with messages; likewise.
    pub datagrams: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Datagrams the system refused to send, to any receiver.
    pub send_errors: u64,
    /// How long it ran, in ns.
    pub elapsed_ns: u64,
    /// When a message was due -> the send call of its datagram. One per message.
    pub lateness: LatencySummary,
}

/// What the engine prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineReport {
    /// Process id.
    pub pid: u32,
    /// Which build it is.
    pub build: String,
    /// How it received: `block`, `epoll` or `spin`.
    pub mode: String,
    /// How long it ran, in ns.
    pub elapsed_ns: u64,
    /// What it counted.
    pub counters: EngineCounters,
    /// What it measured.
    pub latencies: Latencies,
}

/// What the exchange prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExchangeReport {
    /// Process id.
    pub pid: u32,
    /// How long it ran, in ns.
    pub elapsed_ns: u64,
    /// What it counted.
    pub counters: ExchangeCounters,
}

/// What the demo prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DemoReport {
    /// [`VERSION`].
    pub version: u32,
    /// How the engine received.
    pub mode: String,
    /// Mean messages/s asked for.
    pub rate: f64,
    /// Seed of the flow.
    pub seed: u64,
    /// From the first publisher message to its last, in ns.
    pub elapsed_ns: u64,
    /// The publisher's report.
    pub publisher: PublisherReport,
    /// The engine's report.
    pub engine: EngineReport,
    /// The exchange's report.
    pub exchange: ExchangeReport,
}

/// A report that can be printed for people.
pub trait Report: Serialize {
    /// The report as lines for people.
    fn text(&self) -> String;
}

impl Report for PublisherReport {
    fn text(&self) -> String {
        let seconds = self.elapsed_ns as f64 / 1e9;
        let mut out = format!(
            "publisher  {} messages in {} datagrams, {seconds:.1} s, {:.0}/s, seed {}, {} send errors\n",
            self.published,
            self.datagrams,
            self.published as f64 / seconds.max(1e-9),
            self.seed,
            self.send_errors,
        );
        table(&mut out, &[("lateness", "due -> send call", &self.lateness)]);
        out
    }
}

impl Report for EngineReport {
    fn text(&self) -> String {
        let c = &self.counters;
        let seconds = (self.elapsed_ns as f64 / 1e9).max(1e-9);
        let mut out = format!(
            "engine     mode {}: {} ticks ({:.0}/s) in {} datagrams, {} missed in {} gaps\n\
             \x20          {} orders ({:.0}/s), {} accepted, {} rejected, {} fills, {} canceled, position {} shares\n",
            self.mode,
            c.ticks,
            c.ticks as f64 / seconds,
            c.datagrams,
            c.missed,
            c.gaps,
            c.orders,
            c.orders as f64 / seconds,
            c.accepted,
            c.rejected,
            c.fills,
            c.canceled,
            c.position_shares,
        );
        let denied: Vec<_> = c
            .denied
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        if !denied.is_empty() {
            let _ = writeln!(out, "           denied by risk: {}", denied.join(", "));
        }
        for (count, what) in [
            (c.malformed_datagrams, "malformed datagrams"),
            (c.malformed_messages, "malformed messages"),
            (c.book_errors, "messages the book refused"),
            (c.clock_errors, "stamps of another clock"),
            (c.unexpected_responses, "unexpected responses"),
            (c.disconnects, "times without a session"),
            (c.never_arrived, "orders that did not arrive"),
            (c.open_orders, "orders without an end"),
        ] {
            if count > 0 {
                let _ = writeln!(out, "           {count} {what}");
            }
        }
        out.push('\n');
        table(&mut out, &self.latencies.rows());
        out
    }
}

impl Report for ExchangeReport {
    fn text(&self) -> String {
        let c = &self.counters;
        format!(
            "exchange   {} orders in {} sessions, {} accepted, {} rejected, {} fills, {} canceled; {} ticks, {} missed\n",
            c.orders, c.sessions, c.accepted, c.rejected, c.fills, c.canceled, c.ticks, c.missed,
        )
    }
}

impl Report for DemoReport {
    fn text(&self) -> String {
        let publisher = self.publisher.text();
        let summary = publisher.lines().next().unwrap_or_default();
        format!("{summary}\n{}{}", self.exchange.text(), self.engine.text())
    }
}

/// Prints a report to stdout.
///
/// # Errors
/// When stdout does not take it; [`Error::is_closed_pipe`] tells the harmless case.
pub fn print(report: &impl Report, format: Format) -> Result<(), Error> {
    let text = match format {
        Format::Text => report.text(),
        Format::Json => json_line(report)?,
    };
    print_text(&text)
}

/// Prints text to stdout at once.
///
/// # Errors
/// As [`print`].
pub fn print_text(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::io("cannot write to stdout"))
}

/// A value as one line of JSON.
///
/// # Errors
/// Never, for the types of this module; serde cannot know.
pub fn json_line(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value)
        .map(|line| line + "\n")
        .map_err(|error| Error::Failed(format!("cannot write a report as JSON: {error}")))
}

fn table(out: &mut String, rows: &[(&str, &str, &LatencySummary)]) {
    let _ = writeln!(
        out,
        "{:<14} {:<33} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10}",
        "latency, µs", "from -> to", "count", "p50", "p90", "p99", "p99.9", "max"
    );
    for (name, endpoints, l) in rows {
        let _ = write!(out, "{name:<14} {endpoints:<33} {:>9}", l.count);
        for ns in [l.p50_ns, l.p90_ns, l.p99_ns, l.p999_ns] {
            let _ = write!(out, " {:>9.1}", ns as f64 / 1e3);
        }
        let _ = writeln!(out, " {:>10.1}", l.max_ns as f64 / 1e3);
    }
}
