//! The engine's sockets, threads and clocks around a [`Trader`].
//!
//! The `md` thread owns everything: it receives, decides, sends, and settles what the exchange
//! answered. The `ack` thread only receives, stamps and hands over through a ring, so nothing is
//! locked. Nothing is allocated either once both run.

use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::now_ns;
use crate::error::Error;
use crate::hooks::{ACK_THREAD, MD_THREAD, RECEIVE_TIMEOUT};
use crate::latency::Latency;
use crate::order_entry::{FrameBuffer, Request, Response};
use crate::process::Stop;
use crate::report::{EngineReport, Format, Latencies, json_line, print, print_text};
use crate::risk::Limits;
use crate::trader::Trader;

/// Orders that may be unfinished at a time.
const OPEN_ORDERS: usize = 4096;

/// Responses that may wait between the threads.
const RING: usize = 64 * 1024;

/// How long connecting, logging in and sending may take.
const PEER_TIMEOUT: Duration = Duration::from_secs(2);

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
    #[command(flatten)]
    /// How it runs.
    pub run: RunArguments,
    /// How to print the report at the end
    #[arg(long, env = "PAPER_ENGINE_FORMAT", value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// How the engine runs; shared with the demo, which hands it on.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct RunArguments {
    /// How the market data thread waits
    #[arg(long, env = "PAPER_ENGINE_MODE", value_enum, default_value_t = Mode::Block)]
    pub mode: Mode,
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
    /// Risk: largest position, long or short, in shares
    #[arg(long, env = "PAPER_ENGINE_MAX_POSITION", default_value_t = 500_000, value_name = "SHARES")]
    pub max_position: u32,
}

impl RunArguments {
    fn limits(&self) -> Limits {
        Limits {
            quantity: self.max_quantity,
            notional: u64::from(self.max_notional) * 10_000,
            collar_bps: self.collar,
            rate: self.max_rate,
            position: self.max_position,
        }
    }
}

/// How the market data thread waits for data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Sleeps in the receive call
    Block,
    /// Polls the socket without pause; takes a whole CPU
    Spin,
}

impl Mode {
    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
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
                Mode::Spin => feed.set_nonblocking(true)?,
            }
            Ok(address)
        })
        .map_err(Error::io("cannot set up the market data socket"))?;
    let (stream, frames) = connect(arguments.exchange)?;
    if announce {
        print_text(&json_line(&Ready { feed: address })?)?;
    } else {
        eprintln!("paper-engine engine: market data on udp {address}, session with {}", arguments.exchange);
    }

    let start_ns = now_ns();
    let (produce, consume) = rtrb::RingBuffer::new(RING);
    let orders = stream.try_clone().map_err(Error::io("cannot share the session between threads"))?;
    let ack = spawn(ACK_THREAD, move || receive_acks(stream, frames, produce))?;
    let mut md = MarketData {
        feed,
        orders,
        responses: consume,
        trader: Trader::new(crate::SYMBOL, arguments.run.limits(), OPEN_ORDERS),
        stop: stop.clone(),
        clock_errors: 0,
        histograms: Histograms::default(),
    };
    let md = spawn(MD_THREAD, move || {
        let result = md.run();
        // Ends the ack thread: its read returns 0.
        let _ = md.orders.shutdown(Shutdown::Both);
        (result, md)
    })?;
    let (result, md) = join(md)?;
    let malformed = join(ack)?;

    let mut counters = md.trader.counters();
    counters.clock_errors = md.clock_errors;
    let report = EngineReport {
        pid: std::process::id(),
        mode: arguments.run.mode.name().to_owned(),
        elapsed_ns: now_ns() - start_ns,
        counters,
        latencies: md.histograms.summary(),
    };
    print(&report, arguments.format)?;
    malformed.and(result).map_err(Error::unavailable(format!(
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

/// Connects and logs in. What came after the answer is in the buffer.
fn connect(exchange: SocketAddr) -> Result<(TcpStream, FrameBuffer), Error> {
    let log_in = || -> io::Result<(TcpStream, FrameBuffer)> {
        let mut stream = TcpStream::connect_timeout(&exchange, PEER_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PEER_TIMEOUT))?;
        stream.set_read_timeout(Some(PEER_TIMEOUT))?;
        let login = Request::Login { user: *b"engine    " };
        stream.write_all(login.encode().as_slice())?;
        let mut frames = FrameBuffer::default();
        loop {
            if frames.fill(&mut stream)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if let Some(body) = frames.next_frame().map_err(io::Error::other)? {
                return match Response::parse(body).map_err(io::Error::other)? {
                    Response::LoggedIn { .. } => {
                        stream.set_read_timeout(None)?;
                        Ok((stream, frames))
                    }
                    other => Err(io::Error::other(format!("login answered by {other:?}"))),
                };
            }
        }
    };
    log_in().map_err(Error::unavailable(format!("cannot open a session with the exchange {exchange}")))
}

/// A response and when its last byte was received, in ns.
type Stamped = (Response, u64);

struct MarketData {
    feed: UdpSocket,
    orders: TcpStream,
    responses: rtrb::Consumer<Stamped>,
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
        let mut buffer = [0; 2048];
        let mut drain_until_ns = None;
        loop {
            let called_ns = now_ns();
            let received = self.feed.recv(&mut buffer);
            let returned_ns = now_ns();
            let took_ns = returned_ns - called_ns;
            let mut ended = false;
            match received {
                Ok(len) => {
                    self.histograms.recv.record(took_ns);
                    ended = self.on_datagram(&buffer[..len], returned_ns)?;
                }
                Err(error) if is_no_data(&error) => {
                    self.histograms.recv_empty.record(took_ns);
                    std::hint::spin_loop();
                }
                Err(error) => return Err(error),
            }
            self.settle()?;
            if self.stop.is_set() {
                let until_ns = *drain_until_ns.get_or_insert_with(|| {
                    self.trader.kill();
                    returned_ns + DRAIN_NS
                });
                if ended || returned_ns >= until_ns {
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

    /// The hot path. Returns whether the market data session is over.
    fn on_datagram(&mut self, datagram: &[u8], returned_ns: u64) -> io::Result<bool> {
        let decision = self.trader.on_datagram(datagram, returned_ns);
        if let Some(order) = decision.order {
            let frame = Request::Enter(order).encode();
            let call_ns = now_ns();
            self.orders.write_all(frame.as_slice())?;
            let return_ns = now_ns();
            self.trader.sent(order.reference, call_ns);
            self.histograms.tick_to_order.record(call_ns - returned_ns);
            self.histograms.send.record(return_ns - call_ns);
        }
        if let Some(published_ns) = decision.published_ns {
            match returned_ns.checked_sub(published_ns) {
                Some(took_ns) => self.histograms.feed_to_recv.record(took_ns),
                None => self.clock_errors += 1,
            }
        }
        Ok(decision.end_of_session)
    }

    /// Takes what the ack thread handed over.
    fn settle(&mut self) -> io::Result<()> {
        while let Ok((response, received_ns)) = self.responses.pop() {
            if let Some(round_trip_ns) = self.trader.on_response(&response, received_ns) {
                self.histograms.order_to_ack.record(round_trip_ns);
            }
        }
        // The ring may have been filled and left between the two questions.
        if self.responses.is_abandoned() && self.responses.is_empty() {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

/// The ack thread: ends, and with it the ring, when the stream does.
fn receive_acks(
    mut stream: TcpStream,
    mut frames: FrameBuffer,
    mut responses: rtrb::Producer<Stamped>,
) -> io::Result<()> {
    let mut received_ns = now_ns();
    loop {
        while let Some(body) = frames.next_frame().map_err(io::Error::other)? {
            let mut stamped = (Response::parse(body).map_err(io::Error::other)?, received_ns);
            while let Err(rtrb::PushError::Full(back)) = responses.push(stamped) {
                if responses.is_abandoned() {
                    return Ok(());
                }
                stamped = back;
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        match frames.fill(&mut stream) {
            Ok(0) => return Ok(()),
            Ok(_) => received_ns = now_ns(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // The md thread finds the ring abandoned and says that the session ended.
            Err(_) => return Ok(()),
        }
    }
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
