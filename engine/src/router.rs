//! The router's sockets: one thread that waits on all of them with epoll.
//!
//! Market data comes in over UDP and leaves for each arm by the [`Splitter`]. Each arm connects to a
//! listener of its own, as if it were the exchange, and gets a connection of its own to the real one:
//! sessions, numbers and answers pass through as they are, so an arm that loses its connection learns
//! what it missed from the exchange. Only new orders are looked at: one that the arm may not send
//! goes to the paper sink instead. When either side of an arm's connection ends, so does the other;
//! the exchange then cancels what that arm had open.
//!
//! A slow arm costs the other nothing: its market data is sent without waiting, and its answers are
//! queued up to a bound.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::time::Timespec;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::admin::Admin;
use crate::clock::now_ns;
use crate::comparison::Comparison;
use crate::connection::{Closed, Connection};
use crate::error::Error;
use crate::latency::Latency;
use crate::order_entry::{EnterOrder, Refusal, Reject, Request, Response, Update};
use crate::paper;
use crate::process::Stop;
use crate::report::{Format, json_line, print, print_text};
use crate::route::{Arm, FULL, Verdict};
use crate::router_report::{ArmCounters, ArmReport, RouterReport};
use crate::splitter::Splitter;

/// Datagrams taken in one go, so that a flood of them does not starve the orders.
const DATAGRAMS_AT_ONCE: usize = 64;

/// Longest wait: bounds how late a weight ends, a command is heard, and a stop is noticed.
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// Longest wait while instruments move.
const WAIT_MOVING: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// Longest lease of a weight, in s.
const MAX_TTL_SECONDS: f64 = 86_400.0;

/// Epoll's name of the market data socket; the others are these plus the arm.
const FEED: u64 = 0;
const LISTEN: u64 = 10;
const ARM: u64 = 20;
const EXCHANGE: u64 = 30;

/// Split market data and orders between a blue and a green engine.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where market data arrives (UDP); port 0 takes a free one
    #[arg(long, env = "PAPER_ENGINE_FEED", default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    pub feed: SocketAddr,
    /// The exchange's order entry (TCP)
    #[arg(long, env = "PAPER_ENGINE_EXCHANGE", value_name = "ADDRESS")]
    pub exchange: SocketAddr,
    /// Where the blue engine connects; port 0 takes a free one
    #[arg(long, env = "PAPER_ENGINE_BLUE_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    pub blue_listen: SocketAddr,
    /// Where the green engine connects; port 0 takes a free one
    #[arg(long, env = "PAPER_ENGINE_GREEN_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    pub green_listen: SocketAddr,
    /// Where the blue engine gets market data (UDP)
    #[arg(long, env = "PAPER_ENGINE_BLUE_FEED", value_name = "ADDRESS")]
    pub blue_feed: SocketAddr,
    /// Where the green engine gets market data (UDP)
    #[arg(long, env = "PAPER_ENGINE_GREEN_FEED", value_name = "ADDRESS")]
    pub green_feed: SocketAddr,
    /// Which of the two has what the weight does not say
    #[arg(long, env = "PAPER_ENGINE_PRIMARY", value_enum, default_value_t = Arm::Blue)]
    pub primary: Arm,
    /// Instruments routed: 1 to this number
    #[arg(long, env = "PAPER_ENGINE_SYMBOLS", default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub symbols: u16,
    /// Unix socket for commands: status, weight, shadow, promote
    #[arg(long, env = "PAPER_ENGINE_ADMIN", value_name = "PATH")]
    pub admin: Option<PathBuf>,
    /// How to print the report at the end
    #[arg(long, env = "PAPER_ENGINE_FORMAT", value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// Where the router can be reached.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Ready {
    /// Market data (UDP).
    pub feed: SocketAddr,
    /// Order entry of the blue engine (TCP).
    pub blue_listen: SocketAddr,
    /// Order entry of the green engine (TCP).
    pub green_listen: SocketAddr,
}

/// What can be asked for on the admin socket. Each is answered with the status.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
enum Command {
    /// Nothing.
    Status {},
    /// The canary gets `weight` per cent, in steps of 0.1, for so long. Also renews.
    Weight { weight: f64, ttl_seconds: f64 },
    /// The canary gets a copy of all market data.
    Shadow { on: bool },
    /// The canary becomes the primary.
    Promote {},
}

/// Runs until told to stop. With `announce` the first line on stdout is [`Ready`] as JSON.
///
/// # Errors
/// When a socket cannot be opened, or waiting for them fails.
pub fn run(arguments: &Arguments, announce: bool, stop: &Stop) -> Result<(), Error> {
    let listen = |address| {
        TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(Error::unavailable(format!("cannot listen for an engine on tcp {address}")))
    };
    let listeners = [listen(arguments.blue_listen)?, listen(arguments.green_listen)?];
    let feed = crate::engine::bind_feed(arguments.feed)?;
    feed.set_nonblocking(true).map_err(Error::io("cannot set up the market data socket"))?;
    let ready = Ready {
        feed: feed.local_addr().map_err(Error::io("cannot set up the sockets"))?,
        blue_listen: listeners[0].local_addr().map_err(Error::io("cannot set up the sockets"))?,
        green_listen: listeners[1].local_addr().map_err(Error::io("cannot set up the sockets"))?,
    };
    let admin = arguments.admin.as_deref().map(Admin::listen).transpose()?;
    if announce {
        print_text(&json_line(&ready)?)?;
    } else {
        eprintln!(
            "paper-engine router: market data on udp {}, blue on tcp {}, green on tcp {}, exchange {}",
            ready.feed, ready.blue_listen, ready.green_listen, arguments.exchange
        );
    }
    let start_ns = now_ns();
    let mut router = Router {
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| Error::io("cannot create an epoll instance")(error.into()))?,
        feed,
        listeners,
        exchange: arguments.exchange,
        to: [arguments.blue_feed, arguments.green_feed],
        splitter: Splitter::new(arguments.symbols, arguments.primary, start_ns),
        comparison: Comparison::default(),
        arms: [ArmState::default(), ArmState::default()],
        paper_trades: 0,
        start_ns,
    };
    router.serve(admin.as_ref(), stop).map_err(Error::io("cannot wait for the sockets"))?;
    print(&router.report(now_ns()), arguments.format)
}

struct Router {
    epoll: OwnedFd,
    feed: UdpSocket,
    /// By arm.
    listeners: [TcpListener; 2],
    exchange: SocketAddr,
    /// Where market data goes, by arm.
    to: [SocketAddr; 2],
    splitter: Splitter,
    comparison: Comparison,
    /// By arm.
    arms: [ArmState; 2],
    paper_trades: u64,
    start_ns: u64,
}

#[derive(Default)]
struct ArmState {
    link: Option<Link>,
    counters: ArmCounters,
    latency: Latency,
}

/// An arm's connection and its counterpart to the exchange.
struct Link {
    arm: Connection,
    exchange: Connection,
}

impl Router {
    fn serve(&mut self, admin: Option<&Admin<Command>>, stop: &Stop) -> std::io::Result<()> {
        epoll::add(&self.epoll, self.feed.as_fd(), EventData::new_u64(FEED), EventFlags::IN)?;
        for arm in Arm::BOTH {
            let name = EventData::new_u64(LISTEN + arm as u64);
            epoll::add(&self.epoll, self.listeners[arm as usize].as_fd(), name, EventFlags::IN)?;
        }
        let mut events = Vec::with_capacity(16);
        while !stop.is_set() {
            events.clear();
            let wait = if self.splitter.routes().is_moving() { WAIT_MOVING } else { WAIT };
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let name = event.data.u64();
                for arm in Arm::BOTH {
                    match name.wrapping_sub(arm as u64) {
                        LISTEN => self.accept(arm),
                        ARM => self.each(arm, Self::take_requests),
                        EXCHANGE => self.each(arm, Self::take_responses),
                        _ => {}
                    }
                }
                if name == FEED {
                    self.receive();
                }
            }
            let now = now_ns();
            let Self { splitter, feed, to, arms, .. } = self;
            splitter
                .on_time(now, |arm, bytes| arms[arm as usize].counters.send(feed, to[arm as usize], bytes));
            self.comparison.on_time(now);
            for arm in Arm::BOTH {
                self.each(arm, |_, _, _| Ok(()));
            }
            if let Some(admin) = admin {
                admin.serve(|command| self.command(command));
            }
        }
        Ok(())
    }

    fn receive(&mut self) {
        let mut buffer = [0; 2048];
        let Self { splitter, feed, to, arms, .. } = self;
        for _ in 0..DATAGRAMS_AT_ONCE {
            let Ok(len) = feed.recv(&mut buffer) else {
                return;
            };
            splitter.on_datagram(&buffer[..len], now_ns(), |arm, bytes| {
                arms[arm as usize].counters.send(feed, to[arm as usize], bytes);
            });
        }
    }

    /// A new connection of an arm takes the place of the one it may still have.
    fn accept(&mut self, arm: Arm) {
        while let Ok((stream, _)) = self.listeners[arm as usize].accept() {
            self.close(arm);
            let link = connect(self.exchange).and_then(|exchange| {
                Ok(Link {
                    arm: Connection::new(stream, &self.epoll, ARM + arm as u64)?,
                    exchange: Connection::new(exchange, &self.epoll, EXCHANGE + arm as u64)?,
                })
            });
            // Without an exchange the arm finds its connection closed, and tries again.
            self.arms[arm as usize].link = link.ok();
        }
    }

    /// Does something with an arm's link, sends what is to be sent, and closes it when it is over.
    fn each(&mut self, arm: Arm, work: impl FnOnce(&mut Self, Arm, &mut Link) -> Result<(), Closed>) {
        let Some(mut link) = self.arms[arm as usize].link.take() else {
            return;
        };
        let result = work(self, arm, &mut link);
        let flushed = link.exchange.flush(&self.epoll).and(link.arm.flush(&self.epoll));
        let over = result.and(flushed).is_err();
        self.arms[arm as usize].link = Some(link);
        if over {
            self.close(arm);
        }
    }

    fn close(&mut self, arm: Arm) {
        if self.arms[arm as usize].link.take().is_some() {
            self.arms[arm as usize].counters.disconnects += 1;
            let now = now_ns();
            self.splitter.set_up(arm, false, now);
            self.comparison.forget(now);
        }
    }

    fn take_requests(&mut self, arm: Arm, link: &mut Link) -> Result<(), Closed> {
        link.arm.fill()?;
        loop {
            let body = link.arm.next_frame();
            let request = match &body {
                Ok(None) => return Ok(()),
                Ok(Some(body)) => Request::parse(body),
                Err(error) => Err(*error),
            };
            match (request, body) {
                (Ok(Request::Enter(order)), _) => self.enter(arm, link, &order),
                (Ok(_), Ok(Some(body))) => link.exchange.queue_body(body),
                _ => {
                    link.arm.tell(&Response::Refused(Refusal::Malformed).encode());
                    return Err(Closed { by_us: true });
                }
            }
        }
    }

    fn enter(&mut self, arm: Arm, link: &mut Link, order: &EnterOrder) {
        let now = now_ns();
        let state = &mut self.arms[arm as usize];
        state.counters.orders += 1;
        if order.cause_ns > 0 {
            state.latency.record(now.saturating_sub(order.cause_ns));
        }
        let routes = self.splitter.routes();
        if routes.both_had(order.symbol, order.cause_ns) {
            self.comparison.on_order(arm == routes.primary(), order, now);
        }
        let mut answer = |update| {
            let reference = order.reference;
            let response = Response::Order { sequence: 0, timestamp_ns: now, reference, update };
            link.arm.queue(&response.encode());
        };
        match routes.judge(arm, order.symbol, order.cause_ns) {
            Verdict::Live => {
                state.counters.live += 1;
                link.exchange.queue(&Request::Enter(*order).encode());
            }
            Verdict::Paper => {
                state.counters.paper += 1;
                let (quantity, price) = self.splitter.tradable(order);
                self.paper_trades += 1;
                paper::answers(order, quantity, price, self.paper_trades).for_each(answer);
            }
            Verdict::Late => {
                state.counters.late += 1;
                answer(Update::Rejected(Reject::Unavailable));
            }
        }
    }

    fn take_responses(&mut self, arm: Arm, link: &mut Link) -> Result<(), Closed> {
        let ended = link.exchange.fill().map(drop);
        while let Ok(Some(body)) = link.exchange.next_frame() {
            let counters = &mut self.arms[arm as usize].counters;
            match Response::parse(body) {
                Ok(Response::LoggedIn { .. }) => {
                    counters.logins += 1;
                    self.splitter.set_up(arm, true, now_ns());
                }
                Ok(Response::Order { update, .. }) => match update {
                    Update::Accepted | Update::Replaced { .. } => counters.accepted += 1,
                    Update::Executed { .. } => counters.fills += 1,
                    Update::Canceled { .. } => counters.canceled += 1,
                    Update::Rejected(_) => counters.rejected += 1,
                },
                Ok(_) => {}
                Err(_) => return Err(Closed { by_us: true }),
            }
            link.arm.queue_body(body);
        }
        ended
    }

    fn command(&mut self, command: Command) -> Result<Value, String> {
        let now = now_ns();
        let routes = self.splitter.routes_mut();
        match command {
            Command::Status {} => {}
            Command::Weight { weight, ttl_seconds } => {
                let thousandths = weight * 10.0;
                if !(0.0..=f64::from(FULL)).contains(&thousandths)
                    || (thousandths - thousandths.round()).abs() > 1e-6
                {
                    return Err("weight must be from 0 to 100, in steps of 0.1".to_owned());
                }
                if !(0.0..=MAX_TTL_SECONDS).contains(&ttl_seconds) {
                    return Err(format!("ttl_seconds must be from 0 to {MAX_TTL_SECONDS}"));
                }
                routes.set_weight(thousandths.round() as u16, now + (ttl_seconds * 1e9) as u64);
            }
            Command::Shadow { on } => {
                routes.set_shadow(on);
                self.comparison.forget(now);
            }
            Command::Promote {} => {
                routes.promote();
                self.comparison.forget(now);
            }
        }
        serde_json::to_value(self.report(now)).map_err(|error| error.to_string())
    }

    fn report(&self, now_ns: u64) -> RouterReport {
        let routes = self.splitter.routes();
        let arm = |arm: Arm| {
            let state = &self.arms[arm as usize];
            ArmReport {
                up: routes.is_up(arm),
                symbols: routes.owned(arm),
                messages: self.splitter.messages(arm),
                counters: state.counters,
                latency: state.latency.summary(),
            }
        };
        RouterReport {
            pid: std::process::id(),
            elapsed_ns: now_ns - self.start_ns,
            primary: routes.primary(),
            weight: f64::from(routes.weight()) / 10.0,
            lease_seconds_left: routes.lease_left_ns(now_ns) as f64 / 1e9,
            leases_expired: routes.leases_expired(),
            shadow: routes.shadow(),
            moving: routes.is_moving(),
            market_data: self.splitter.counters(),
            compared: self.comparison.compared(),
            blue: arm(Arm::Blue),
            green: arm(Arm::Green),
        }
    }
}

/// Starts to connect, without waiting for it.
fn connect(exchange: SocketAddr) -> std::io::Result<TcpStream> {
    let family = if exchange.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &exchange) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}
