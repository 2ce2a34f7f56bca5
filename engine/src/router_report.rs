//! What the router says of itself, on its admin socket and when it ends.

use std::net::{SocketAddr, UdpSocket};

use serde::{Deserialize, Serialize};

use crate::comparison::Compared;
use crate::report::{LatencySummary, Report};
use crate::route::Arm;
use crate::splitter::SplitCounters;

/// State and counters of the router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouterReport {
    /// Process id.
    pub pid: u32,
    /// How long it runs, in ns.
    pub elapsed_ns: u64,
    /// Which arm has what the weight does not say.
    pub primary: Arm,
    /// The canary's weight in per cent.
    pub weight: f64,
    /// How long the weight holds unless it is renewed.
    pub lease_seconds_left: f64,
    /// Times that a weight ended because it was not renewed.
    pub leases_expired: u64,
    /// Whether the canary gets a copy of everything.
    pub shadow: bool,
    /// Whether instruments are still on their way to where they belong.
    pub moving: bool,
    /// What came in.
    pub market_data: SplitCounters,
    /// How the decisions of both arms compare where both had the market data.
    pub compared: Compared,
    /// The blue engine.
    pub blue: ArmReport,
    /// The green engine.
    pub green: ArmReport,
}

/// One of the two engines, as the router sees it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ArmReport {
    /// Whether it is logged in.
    pub up: bool,
    /// Number of instruments that are its own.
    pub symbols: usize,
    /// Market data messages sent to it, snapshots included.
    pub messages: u64,
    /// What was counted.
    #[serde(flatten)]
    pub counters: ArmCounters,
    /// Timestamp of the causing message -> its order arrived here. One per order with a cause.
    pub latency: LatencySummary,
}

/// What is counted of an arm; from the start of the router on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArmCounters {
    /// Times it logged in.
    pub logins: u64,
    /// Times its connection ended.
    pub disconnects: u64,
    /// Datagrams that the system refused to send to it.
    pub send_errors: u64,
    /// Orders it sent; the sum of the next three.
    pub orders: u64,
    /// … that went to the exchange.
    pub live: u64,
    /// … that went to the paper sink.
    pub paper: u64,
    /// … that were rejected, for market data that nobody remembers.
    pub late: u64,
    /// Live orders the exchange accepted.
    pub accepted: u64,
    /// Live orders the exchange rejected.
    pub rejected: u64,
    /// Executions of live orders.
    pub fills: u64,
    /// Cancels of live orders, for whatever reason.
    pub canceled: u64,
}

impl ArmCounters {
    /// Sends it a datagram, without waiting.
    pub fn send(&mut self, socket: &UdpSocket, to: SocketAddr, datagram: &[u8]) {
        self.send_errors += u64::from(socket.send_to(datagram, to).is_err());
    }
}

impl Report for RouterReport {
    fn text(&self) -> String {
        let canary = self.primary.other().name();
        let shadow = if self.shadow { ", shadowing" } else { "" };
        let mut out = format!(
            "router     primary {}, {canary} {:.1} %{shadow}; {} messages, {} missed, {} unrouted, {} handovers, {} leases expired\n",
            self.primary.name(),
            self.weight,
            self.market_data.messages,
            self.market_data.missed,
            self.market_data.unrouted,
            self.market_data.handovers,
            self.leases_expired,
        );
        for (name, arm) in [("blue", &self.blue), ("green", &self.green)] {
            let c = &arm.counters;
            out.push_str(&format!(
                "{name:<10} {} messages, {} orders: {} live ({} accepted, {} rejected, {} fills), {} paper, {} late; p50 {:.1} p99 {:.1} max {:.1} µs\n",
                arm.messages,
                c.orders,
                c.live,
                c.accepted,
                c.rejected,
                c.fills,
                c.paper,
                c.late,
                arm.latency.p50_ns as f64 / 1e3,
                arm.latency.p99_ns as f64 / 1e3,
                arm.latency.max_ns as f64 / 1e3,
            ));
        }
        let compared = &self.compared;
        out.push_str(&format!(
            "compared   {} equal, {} different, {} only of the primary, {} only of the canary\n",
            compared.equal, compared.different, compared.only_primary, compared.only_canary
        ));
        out
    }
}
