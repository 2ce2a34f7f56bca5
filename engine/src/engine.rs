//! The engine's sockets, threads and clocks around a [`Trader`].
//!
//! The `md` thread owns everything: it receives, decides, sends, and settles what the exchange
//! answered. The `ack` thread ([`crate::gateway`]) only receives, stamps and hands over through a
//! ring, so nothing is locked. Nothing is allocated either once both run.

use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::thread::CpuSet;
use rustix::time::Timespec;
use serde::{Deserialize, Serialize};

use crate::clock::{now_ns, parse_duration};
use crate::error::Error;
use crate::gateway::{Gateway, News};
use crate::hooks::{ACK_THREAD, MD_THREAD, RECEIVE_TIMEOUT};
use crate::latency::Latency;
use crate::order_entry::{HEARTBEAT_NS, Request};
use crate::process::Stop;
use crate::report::{EngineReport, Format, Latencies, json_line, print, print_text};
use crate::risk::Limits;
use crate::trader::Trader;

/// Orders that may be unfinished at a time.
const OPEN_ORDERS: usize = 4096;

/// Responses that may wait between the threads.
const RING: usize = 64 * 1024;

/// Datagrams taken in one go in epoll mode, so that a flood of them does not starve the answers.
const DATAGRAMS_AT_ONCE: usize = 64;

/// After a stop: how long to wait for the end of the market data session, in ns.
const DRAIN_NS: u64 = 300_000_000;

/// Then: how long to wait for answers to open orders, in ns.
const SETTLE_NS: u64 = 1_000_000_000;

/// Receive buffer asked for, in bytes; holds bursts while the thread does not run.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// Run the trading engine: market data in, orders out.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where market data arrives (UDP); port 0 takes a free one
    #[arg(long, env = "PAPER_ENGINE_FEED", default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    pub feed: SocketAddr,
    /// The exchange's order entry (TCP)
    #[arg(long, env = "PAPER_ENGINE_EXCHANGE", value_name = "ADDRESS")]
    pub exchange: SocketAddr,
    /// Which build this is: its user name at the exchange, and in reports
    #[arg(long, env = "PAPER_ENGINE_BUILD", default_value = "engine", value_name = "NAME", value_parser = parse_build)]
    pub build: String,
    /// Instruments traded: 1 to this number
    #[arg(long, env = "PAPER_ENGINE_SYMBOLS", default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub symbols: u16,
    #[command(flatten)]
    /// How it runs.
    pub run: RunArguments,
    /// How to print the report at the end
    #[arg(long, env = "PAPER_ENGINE_FORMAT", value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// How the engine runs; shared with the demo, which hands it on.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArguments {
    /// How the market data thread waits
    #[arg(long, env = "PAPER_ENGINE_MODE", value_enum, default_value_t = Mode::Block)]
    pub mode: Mode,
    /// CPU that the market data thread is pinned to
    #[arg(long, env = "PAPER_ENGINE_MD_CPU", value_name = "CPU", value_parser = clap::value_parser!(u32).range(0..1024))]
    pub md_cpu: Option<u32>,
    /// CPU that the ack thread is pinned to
    #[arg(long, env = "PAPER_ENGINE_ACK_CPU", value_name = "CPU", value_parser = clap::value_parser!(u32).range(0..1024))]
    pub ack_cpu: Option<u32>,
    /// Risk: largest order, in shares
    #[arg(long, env = "PAPER_ENGINE_MAX_QUANTITY", default_value_t = 1_000, value_name = "SHARES")]
    pub max_quantity: u32,
    /// Risk: largest order, in units of the currency
    #[arg(long, env = "PAPER_ENGINE_MAX_NOTIONAL", default_value_t = 200_000, value_name = "AMOUNT")]
    pub max_notional: u32,
    /// Risk: largest distance from the middle of the book, in basis points
    #[arg(long, env = "PAPER_ENGINE_COLLAR", default_value_t = 500, value_name = "BPS")]
    pub collar: u32,
    /// Risk: most orders within any second
    #[arg(long, env = "PAPER_ENGINE_MAX_RATE", default_value_t = 2_000, value_name = "ORDERS", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub max_rate: u32,
    /// Risk: largest position in an instrument, long or short, in shares
    #[arg(long, env = "PAPER_ENGINE_MAX_POSITION", default_value_t = 500_000, value_name = "SHARES")]
    pub max_position: u32,
    /// Risk: oldest market data an order may be based on
    #[arg(long, env = "PAPER_ENGINE_MAX_DATA_AGE", default_value = "1s", value_name = "DURATION", value_parser = parse_duration)]
    pub max_data_age: Duration,
    /// How long to try to get a lost session with the exchange back; 0: end at once
    #[arg(long, env = "PAPER_ENGINE_RECONNECT", default_value = "0", value_name = "DURATION", value_parser = parse_duration)]
    pub reconnect: Duration,
}

impl RunArguments {
    /// The flags that say the same again.
    pub fn flags(&self) -> Vec<(&'static str, String)> {
        let milliseconds = |duration: Duration| format!("{}ms", duration.as_millis());
        let mut flags = vec![
            ("--mode", self.mode.name().to_owned()),
            ("--max-quantity", self.max_quantity.to_string()),
            ("--max-notional", self.max_notional.to_string()),
            ("--collar", self.collar.to_string()),
            ("--max-rate", self.max_rate.to_string()),
            ("--max-position", self.max_position.to_string()),
            ("--max-data-age", milliseconds(self.max_data_age)),
            ("--reconnect", milliseconds(self.reconnect)),
        ];
        flags.extend(self.md_cpu.map(|cpu| ("--md-cpu", cpu.to_string())));
        flags.extend(self.ack_cpu.map(|cpu| ("--ack-cpu", cpu.to_string())));
        flags
    }

    fn limits(&self) -> Limits {
        Limits {
            quantity: self.max_quantity,
            notional: u64::from(self.max_notional) * 10_000,
            collar_bps: self.collar,
            rate: self.max_rate,
            position: self.max_position,
            data_age_ns: self.max_data_age.as_nanos() as u64,
        }
    }
}

/// How the market data thread waits for data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Sleeps in the receive call
    Block,
    /// Sleeps in `epoll_wait`, then receives all there is
    Epoll,
    /// Polls the socket without pause; takes a whole CPU
    Spin,
}

impl Mode {
    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Epoll => "epoll",
            Self::Spin => "spin",
        }
    }
}

/// Where the engine can be reached.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Ready {
    /// Market data (UDP).
    pub feed: SocketAddr,
}

/// Runs until told to stop. With `announce` the first line on stdout is [`Ready`] as JSON.
///
/// # Errors
/// When a socket cannot be opened, the exchange cannot be reached or closes the session.
pub fn run(arguments: &Arguments, announce: bool, stop: &Stop) -> Result<(), Error> {
    let feed = bind_feed(arguments.feed)?;
    let address = feed
        .local_addr()
        .and_then(|address| {
            match arguments.run.mode {
                Mode::Block => feed.set_read_timeout(Some(RECEIVE_TIMEOUT))?,
                Mode::Epoll | Mode::Spin => feed.set_nonblocking(true)?,
            }
            Ok(address)
        })
        .map_err(Error::io("cannot set up the market data socket"))?;
    let poll = (arguments.run.mode == Mode::Epoll)
        .then(|| Poll::new(&feed))
        .transpose()
        .map_err(Error::io("cannot create an epoll instance"))?;
    let gateway = Gateway::connect(arguments.exchange, user(&arguments.build))?;
    if announce {
        print_text(&json_line(&Ready { feed: address })?)?;
    } else {
        eprintln!("paper-engine engine: market data on udp {address}, session with {}", arguments.exchange);
    }

    let start_ns = now_ns();
    let (produce, news) = rtrb::RingBuffer::new(RING);
    let orders = gateway.stream().map_err(Error::io("cannot share the session between threads"))?;
    let closing = Arc::new(AtomicBool::new(false));
    let mut md = MarketData {
        feed,
        poll,
        orders: Some(orders),
        last_sent_ns: start_ns,
        news,
        trader: Trader::new(arguments.symbols, arguments.run.limits(), OPEN_ORDERS),
        stop: stop.clone(),
        clock_errors: 0,
        histograms: Histograms::default(),
    };
    let RunArguments { md_cpu, ack_cpu, reconnect, .. } = arguments.run;
    let ack = spawn(ACK_THREAD, {
        let closing = Arc::clone(&closing);
        move || pin(ack_cpu).and_then(|()| gateway.run(produce, &closing, reconnect))
    })?;
    let md = spawn(MD_THREAD, move || {
        let result = pin(md_cpu).and_then(|()| md.run());
        // Ends the ack thread: its read returns 0.
        closing.store(true, Ordering::Relaxed);
        if let Some(orders) = &md.orders {
            let _ = orders.shutdown(Shutdown::Both);
        }
        (result, md)
    })?;
    let (result, md) = join(md)?;
    let lost = join(ack)?;

    let mut counters = md.trader.counters();
    counters.clock_errors = md.clock_errors;
    let report = EngineReport {
        pid: std::process::id(),
        build: arguments.build.clone(),
        mode: arguments.run.mode.name().to_owned(),
        elapsed_ns: now_ns() - start_ns,
        counters,
        latencies: md.histograms.summary(),
    };
    print(&report, arguments.format)?;
    lost.and(result).map_err(Error::unavailable(format!(
        "the session with the exchange {} ended early",
        arguments.exchange
    )))
}

/// Opens a UDP socket for market data with a large receive buffer.
///
/// # Errors
/// When the address cannot be used.
pub fn bind_feed(address: SocketAddr) -> Result<UdpSocket, Error> {
    let socket = UdpSocket::bind(address)
        .map_err(Error::unavailable(format!("cannot receive market data on udp {address}")))?;
    // The kernel gives less than asked for when its limit is lower; what is lost is counted.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER);
    Ok(socket)
}

struct MarketData {
    feed: UdpSocket,
    /// In epoll mode.
    poll: Option<Poll>,
    /// The connection to the exchange, while there is one.
    orders: Option<TcpStream>,
    last_sent_ns: u64,
    news: rtrb::Consumer<News>,
    trader: Trader,
    stop: Stop,
    clock_errors: u64,
    histograms: Histograms,
}

#[derive(Default)]
struct Histograms {
    tick_to_order: Latency,
    send: Latency,
    recv: Latency,
    recv_empty: Latency,
    feed_to_recv: Latency,
    order_to_ack: Latency,
}

impl Histograms {
    fn summary(&self) -> Latencies {
        Latencies {
            tick_to_order: self.tick_to_order.summary(),
            send: self.send.summary(),
            recv: self.recv.summary(),
            recv_empty: self.recv_empty.summary(),
            feed_to_recv: self.feed_to_recv.summary(),
            order_to_ack: self.order_to_ack.summary(),
        }
    }
}

impl MarketData {
    /// Trades until told to stop; then drains the market data session and settles open orders.
    fn run(&mut self) -> io::Result<()> {
        let mut drain_until_ns = None;
        loop {
            let ended = self.receive()?;
            self.settle()?;
            let now = now_ns();
            if now - self.last_sent_ns >= HEARTBEAT_NS {
                self.send(Request::Heartbeat.encode().as_slice(), now);
            }
            if self.stop.is_set() {
                let until_ns = *drain_until_ns.get_or_insert_with(|| {
                    self.trader.set_killed(true);
                    now + DRAIN_NS
                });
                if ended || now >= until_ns {
                    break;
                }
            }
        }
        let until_ns = now_ns() + SETTLE_NS;
        while self.trader.open_orders() > 0 && now_ns() < until_ns {
            self.settle()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits and receives as the mode says. Returns whether the market data session is over.
    fn receive(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 2048];
        let at_once = match &self.poll {
            Some(poll) if poll.wait()? => DATAGRAMS_AT_ONCE,
            Some(_) => return Ok(false),
            None => 1,
        };
        let mut ended = false;
        for _ in 0..at_once {
            let called_ns = now_ns();
            let received = self.feed.recv(&mut buffer);
            let returned_ns = now_ns();
            let took_ns = returned_ns - called_ns;
            match received {
                Ok(len) => {
                    self.histograms.recv.record(took_ns);
                    ended |= self.on_datagram(&buffer[..len], returned_ns);
                }
                Err(error) if is_no_data(&error) => {
                    self.histograms.recv_empty.record(took_ns);
                    std::hint::spin_loop();
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(ended)
    }

    /// The hot path. Returns whether the market data session is over.
    fn on_datagram(&mut self, datagram: &[u8], returned_ns: u64) -> bool {
        let arrived = self.trader.on_datagram(datagram);
        while let Some(order) = self.trader.next_order(returned_ns) {
            let frame = Request::Enter(order).encode();
            let call_ns = now_ns();
            self.send(frame.as_slice(), call_ns);
            let return_ns = now_ns();
            self.trader.sent(order.reference, call_ns);
            self.histograms.tick_to_order.record(call_ns - returned_ns);
            self.histograms.send.record(return_ns - call_ns);
        }
        if let Some(published_ns) = arrived.published_ns {
            match returned_ns.checked_sub(published_ns) {
                Some(took_ns) => self.histograms.feed_to_recv.record(took_ns),
                None => self.clock_errors += 1,
            }
        }
        arrived.end_of_session
    }

    /// Sends to the exchange. When that fails the connection is given up; what became of an order
    /// then, the next login tells.
    fn send(&mut self, frame: &[u8], now_ns: u64) {
        self.last_sent_ns = now_ns;
        if let Some(orders) = &mut self.orders
            && orders.write_all(frame).is_err()
        {
            self.disconnect();
        }
    }

    /// Takes what the ack thread handed over.
    fn settle(&mut self) -> io::Result<()> {
        while let Ok(news) = self.news.pop() {
            match news {
                News::Response(response, received_ns) => {
                    if let Some(round_trip_ns) = self.trader.on_response(&response, received_ns) {
                        self.histograms.order_to_ack.record(round_trip_ns);
                    }
                }
                News::Disconnected => self.disconnect(),
                News::Reconnected { stream, last_reference } => {
                    self.orders = Some(stream);
                    self.trader.on_reconnect(last_reference);
                }
            }
        }
        // The ring may have been filled and left between the two questions.
        if self.news.is_abandoned() && self.news.is_empty() {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    fn disconnect(&mut self) {
        if let Some(orders) = self.orders.take() {
            // Tells the ack thread, when it was us who found out.
            let _ = orders.shutdown(Shutdown::Both);
            self.trader.on_disconnect();
        }
    }
}

/// Waits for the market data socket with epoll.
struct Poll(OwnedFd);

impl Poll {
    fn new(feed: &UdpSocket) -> io::Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&poll, feed, EventData::new_u64(0), EventFlags::IN)?;
        Ok(Self(poll))
    }

    /// Returns whether there is something to receive; `false` after [`RECEIVE_TIMEOUT`].
    fn wait(&self) -> io::Result<bool> {
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }];
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(RECEIVE_TIMEOUT.subsec_nanos()) };
        match epoll::wait(&self.0, &mut events[..], Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Keeps the calling thread on `cpu`, if there is one to keep it on.
fn pin(cpu: Option<u32>) -> io::Result<()> {
    let Some(cpu) = cpu else {
        return Ok(());
    };
    let mut cpus = CpuSet::new();
    cpus.set(cpu as usize);
    rustix::thread::sched_setaffinity(None, &cpus)
        .map_err(|error| io::Error::other(format!("cannot run on CPU {cpu}: {error}")))
}

fn parse_build(name: &str) -> Result<String, String> {
    let fits = (1..=10).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    fits.then(|| name.to_owned()).ok_or_else(|| "expected 1 to 10 letters and digits".to_owned())
}

/// A build's name as a user name, padded with spaces.
fn user(build: &str) -> [u8; 10] {
    let mut user = [b' '; 10];
    user.iter_mut().zip(build.bytes()).for_each(|(to, from)| *to = from);
    user
}

/// Nothing to receive now.
fn is_no_data(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Error> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(Error::io(format!("cannot start the thread {name}")))
}

fn join<T>(thread: JoinHandle<T>) -> Result<T, Error> {
    thread.join().map_err(|_| Error::Failed("a thread of the engine panicked".to_owned()))
}
