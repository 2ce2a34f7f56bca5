//! The market data publisher: sends the generated flow over UDP when it is due.

use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::time::Duration;

use crate::clock::{now_ns, parse_duration, sleep_until};
use crate::error::Error;
use crate::flow::{Flow, Planned};
use crate::latency::Latency;
use crate::md::{Datagram, Message, Session};
use crate::process::Stop;
use crate::report::{Format, PublisherReport, print};

/// A heartbeat is sent after this long without a message.
const HEARTBEAT_NS: u64 = 1_000_000_000;

/// Longest sleep, so that a stop is noticed.
const NAP_NS: u64 = 50_000_000;

/// How often the end of the session is told, because one datagram may get lost …
const ENDS: u32 = 3;

/// … and how long apart.
const END_GAP: Duration = Duration::from_millis(10);

/// Publish seeded, bursty market data over UDP.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Receivers, as ADDRESS:PORT; repeat it or separate with commas. All get every datagram
    #[arg(long, env = "PAPER_ENGINE_TO", required = true, value_delimiter = ',', value_name = "ADDRESS")]
    pub to: Vec<SocketAddr>,
    #[command(flatten)]
    /// What to send.
    pub flow: FlowArguments,
    /// Most messages in one datagram, of those that are due together
    #[arg(long, env = "PAPER_ENGINE_BATCH", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub batch: u16,
    /// Stop after this many messages
    #[arg(long, env = "PAPER_ENGINE_COUNT", value_name = "N")]
    pub count: Option<u64>,
    /// Stop after this long, e.g. 20s; 0: on SIGINT or SIGTERM
    #[arg(long = "for", env = "PAPER_ENGINE_FOR", default_value = "0", value_name = "DURATION", value_parser = parse_duration)]
    pub duration: Duration,
    /// How to print the report at the end
    #[arg(long, env = "PAPER_ENGINE_FORMAT", value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// The generated flow; shared with the demo.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct FlowArguments {
    /// Mean messages/s; they come in bursts
    #[arg(long, env = "PAPER_ENGINE_RATE", default_value_t = 2000.0, value_name = "PER_SECOND", value_parser = parse_rate)]
    pub rate: f64,
    /// Seed of the flow; the same seed gives the same messages
    #[arg(long, env = "PAPER_ENGINE_SEED", default_value_t = 1)]
    pub seed: u64,
    /// Instruments: 1 to this number
    #[arg(long, env = "PAPER_ENGINE_SYMBOLS", default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub symbols: u16,
}

/// Runs until told to stop.
///
/// # Errors
/// When there is no socket to send from.
pub fn run(arguments: &Arguments, stop: &Stop) -> Result<(), Error> {
    let any: SocketAddr = if arguments.to.iter().any(SocketAddr::is_ipv6) {
        ([0_u16; 8], 0).into()
    } else {
        ([0_u8; 4], 0).into()
    };
    let socket = UdpSocket::bind(any).map_err(Error::unavailable("cannot open a UDP socket to send from"))?;
    // The default slack of 50 us would blur every gap that is shorter.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let start_ns = now_ns();
    let mut publisher = Publisher {
        socket,
        to: &arguments.to,
        session: session(start_ns),
        next_sequence: 1,
        datagrams: 0,
        bytes: 0,
        send_errors: 0,
        last_send_ns: start_ns,
        lateness: Latency::default(),
    };
    publisher.run(arguments, start_ns, stop);
    let elapsed_ns = now_ns() - start_ns;
    for _ in 0..ENDS {
        let end = Datagram::end_of_session(publisher.session, publisher.next_sequence);
        publisher.send(&end);
        std::thread::sleep(END_GAP);
    }
    let report = PublisherReport {
        pid: std::process::id(),
        seed: arguments.flow.seed,
        rate: arguments.flow.rate,
        session: String::from_utf8_lossy(&publisher.session).into_owned(),
        published: publisher.next_sequence - 1,
        datagrams: publisher.datagrams,
        bytes: publisher.bytes,
        send_errors: publisher.send_errors,
        elapsed_ns,
        lateness: publisher.lateness.summary(),
    };
    print(&report, arguments.format)
}

struct Publisher<'a> {
    socket: UdpSocket,
    to: &'a [SocketAddr],
    session: Session,
    next_sequence: u64,
    datagrams: u64,
    bytes: u64,
    send_errors: u64,
    last_send_ns: u64,
    lateness: Latency,
}

impl Publisher<'_> {
    fn run(&mut self, arguments: &Arguments, start_ns: u64, stop: &Stop) {
        let until_ns = match arguments.duration.as_nanos() as u64 {
            0 => u64::MAX,
            duration_ns => start_ns.saturating_add(duration_ns),
        };
        let last = arguments.count.unwrap_or(u64::MAX);
        let FlowArguments { seed, rate, symbols } = arguments.flow;
        let mut flow = Flow::new(seed, rate, symbols);
        let mut upcoming = next(&mut flow);
        let mut due_ns = start_ns + upcoming.gap_ns;
        while !stop.is_set() && due_ns < until_ns && self.next_sequence <= last {
            let now = now_ns();
            if due_ns > now {
                if now - self.last_send_ns >= HEARTBEAT_NS {
                    self.send(&Datagram::new(self.session, self.next_sequence));
                }
                sleep_until(due_ns.min(now + NAP_NS));
                continue;
            }
            let mut datagram = Datagram::new(self.session, self.next_sequence);
            while datagram.count() < arguments.batch
                && due_ns <= now
                && self.next_sequence <= last
                && datagram.push(&Message { symbol: upcoming.symbol, timestamp_ns: now, body: upcoming.body })
            {
                self.next_sequence += 1;
                self.lateness.record(now - due_ns);
                upcoming = next(&mut flow);
                due_ns += upcoming.gap_ns;
            }
            self.datagrams += 1;
            self.bytes += datagram.as_slice().len() as u64;
            self.send(&datagram);
        }
        // Ends on time, not with the last message before it.
        while !stop.is_set() && until_ns != u64::MAX && self.next_sequence <= last {
            let now = now_ns();
            if now >= until_ns {
                break;
            }
            sleep_until(until_ns.min(now + NAP_NS));
        }
    }

    fn send(&mut self, datagram: &Datagram) {
        for to in self.to {
            if self.socket.send_to(datagram.as_slice(), to).is_err() {
                self.send_errors += 1;
            }
        }
        self.last_send_ns = now_ns();
    }
}

fn next(flow: &mut Flow) -> Planned {
    flow.next().expect("a flow is endless")
}

/// A name that no earlier run on this machine had since it was started.
fn session(now_ns: u64) -> Session {
    let mut session = *b"0000000000";
    let digits = format!("{:010}", now_ns / 1_000_000 % 10_000_000_000);
    session.copy_from_slice(digits.as_bytes());
    session
}

fn parse_rate(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|rate| (0.01..=1_000_000.0).contains(rate))
        .ok_or_else(|| "expected messages per second, from 0.01 to 1000000".to_owned())
}
