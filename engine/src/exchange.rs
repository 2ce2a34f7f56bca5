//! The paper exchange's sockets: one thread that waits on all of them with epoll.
//!
//! Bounds: [`MAX_CONNECTIONS`] connections; a connection that has not logged in after
//! [`LOGIN_TIMEOUT_NS`], falls silent, does not read what it is sent, or sends what makes no sense is
//! closed, and the orders of its session are canceled.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::Timespec;
use serde::{Deserialize, Serialize};

use crate::clock::now_ns;
use crate::connection::{Closed, Connection};
use crate::error::Error;
use crate::order_entry::{HEARTBEAT_NS, Refusal, Request, Response, SILENCE_NS};
use crate::process::Stop;
use crate::report::{ExchangeReport, Format, json_line, print, print_text};
use crate::venue::Venue;

/// Most connections at a time.
const MAX_CONNECTIONS: usize = 64;

/// A connection must log in within this, in ns.
const LOGIN_TIMEOUT_NS: u64 = 5_000_000_000;

/// Datagrams taken in one go, so that a flood of them does not starve the sessions.
const DATAGRAMS_AT_ONCE: usize = 64;

/// Longest wait, so that a stop is noticed and silent connections are.
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Epoll's name of the listener; connections have the number of their place.
const LISTENER: u64 = u64::MAX;

/// Epoll's name of the market data socket.
const FEED: u64 = u64::MAX - 1;

/// Run the paper exchange: order entry over TCP, matched against the market data it receives.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where sessions connect; port 0 takes a free one
    #[arg(long, env = "PAPER_ENGINE_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Where market data arrives (UDP); port 0 takes a free one
    #[arg(long, env = "PAPER_ENGINE_FEED", default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    pub feed: SocketAddr,
    /// Instruments listed: 1 to this number
    #[arg(long, env = "PAPER_ENGINE_SYMBOLS", default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub symbols: u16,
    /// How to print the report at the end
    #[arg(long, env = "PAPER_ENGINE_FORMAT", value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// Where the exchange can be reached.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Ready {
    /// Order entry (TCP).
    pub listen: SocketAddr,
    /// Market data (UDP).
    pub feed: SocketAddr,
}

/// Runs until told to stop. With `announce` the first line on stdout is [`Ready`] as JSON.
///
/// # Errors
/// When a socket cannot be opened, or waiting for them fails.
pub fn run(arguments: &Arguments, announce: bool, stop: &Stop) -> Result<(), Error> {
    let listener = TcpListener::bind(arguments.listen)
        .map_err(Error::unavailable(format!("cannot listen for sessions on tcp {}", arguments.listen)))?;
    let feed = crate::engine::bind_feed(arguments.feed)?;
    let ready = open(&listener, &feed).map_err(Error::io("cannot set up the sockets"))?;
    if announce {
        print_text(&json_line(&ready)?)?;
    } else {
        eprintln!(
            "paper-engine exchange: sessions on tcp {}, market data on udp {}",
            ready.listen, ready.feed
        );
    }
    let start_ns = now_ns();
    let mut exchange = Exchange {
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| Error::io("cannot create an epoll instance")(error.into()))?,
        listener,
        feed,
        venue: Venue::new(arguments.symbols),
        connections: Vec::new(),
        outbox: Vec::new(),
        closed: 0,
    };
    exchange.serve(stop).map_err(Error::io("cannot wait for the sockets"))?;
    let mut counters = exchange.venue.counters();
    counters.closed = exchange.closed;
    let report = ExchangeReport { pid: std::process::id(), elapsed_ns: now_ns() - start_ns, counters };
    print(&report, arguments.format)
}

fn open(listener: &TcpListener, feed: &UdpSocket) -> io::Result<Ready> {
    listener.set_nonblocking(true)?;
    feed.set_nonblocking(true)?;
    Ok(Ready { listen: listener.local_addr()?, feed: feed.local_addr()? })
}

struct Exchange {
    epoll: OwnedFd,
    listener: TcpListener,
    feed: UdpSocket,
    venue: Venue,
    /// A closed connection leaves its place empty for the next one.
    connections: Vec<Option<Client>>,
    /// Responses of the venue that are not yet with their connection.
    outbox: Vec<(u32, Response)>,
    closed: u64,
}

struct Client {
    connection: Connection,
    /// Number of its session; 0 before the login.
    session: u32,
    /// When it was opened or last heard of, in ns.
    heard_ns: u64,
    /// When something was last sent to it, in ns.
    sent_ns: u64,
}

impl Exchange {
    fn serve(&mut self, stop: &Stop) -> io::Result<()> {
        for (fd, name) in [(self.listener.as_fd(), LISTENER), (self.feed.as_fd(), FEED)] {
            epoll::add(&self.epoll, fd, EventData::new_u64(name), EventFlags::IN)?;
        }
        let mut events = Vec::with_capacity(MAX_CONNECTIONS + 2);
        while !stop.is_set() {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&WAIT)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    FEED => self.receive(),
                    at => self.converse(at as usize, event.flags),
                }
                self.deliver();
            }
            self.keep_alive();
        }
        Ok(())
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let free = self.connections.iter().position(Option::is_none);
            let at = free.unwrap_or(self.connections.len());
            let Ok(mut connection) = Connection::new(stream, &self.epoll, at as u64) else {
                continue;
            };
            if at == MAX_CONNECTIONS {
                self.closed += 1;
                connection.tell(&Response::Refused(Refusal::Full).encode());
                continue;
            }
            if free.is_none() {
                self.connections.push(None);
            }
            let now = now_ns();
            self.connections[at] = Some(Client { connection, session: 0, heard_ns: now, sent_ns: now });
        }
    }

    fn receive(&mut self) {
        let mut buffer = [0; 2048];
        for _ in 0..DATAGRAMS_AT_ONCE {
            match self.feed.recv(&mut buffer) {
                Ok(len) => {
                    let outbox = &mut self.outbox;
                    self.venue.on_datagram(&buffer[..len], now_ns(), |session, response| {
                        outbox.push((session, response));
                    });
                }
                Err(_) => return,
            }
        }
    }

    fn converse(&mut self, at: usize, ready: EventFlags) {
        let Some(Some(client)) = self.connections.get_mut(at) else {
            return;
        };
        let mut result = Ok(());
        if ready.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            result = client.read(&mut self.venue, &mut self.outbox);
        }
        self.settle(at, result);
    }

    /// Moves the venue's responses to their connections and writes what can be written.
    fn deliver(&mut self) {
        let mut outbox = std::mem::take(&mut self.outbox);
        for (session, response) in outbox.drain(..) {
            let to = self.connections.iter_mut().flatten().find(|client| client.session == session);
            if let Some(client) = to {
                client.queue(&response);
            }
        }
        self.outbox = outbox;
        for at in 0..self.connections.len() {
            self.settle(at, Ok(()));
        }
    }

    /// Sends what is to be sent, and closes a connection that is over.
    fn settle(&mut self, at: usize, result: Result<(), Closed>) {
        let Some(client) = &mut self.connections[at] else {
            return;
        };
        if let Err(Closed { by_us }) = result.and_then(|()| client.connection.flush(&self.epoll)) {
            self.closed += u64::from(by_us);
            self.venue.on_disconnect(client.session, now_ns());
            // Dropping the stream takes it out of epoll.
            self.connections[at] = None;
        }
    }

    /// Closes connections that say nothing, and says something to those that heard nothing.
    fn keep_alive(&mut self) {
        let now = now_ns();
        for at in 0..self.connections.len() {
            let Some(client) = &mut self.connections[at] else {
                continue;
            };
            let silent_ns = now - client.heard_ns;
            let silent = match client.session {
                0 => (silent_ns > LOGIN_TIMEOUT_NS).then_some(Refusal::Login),
                _ => (silent_ns > SILENCE_NS).then_some(Refusal::Silent),
            };
            if let Some(refusal) = silent {
                client.connection.tell(&Response::Refused(refusal).encode());
                self.settle(at, Err(Closed { by_us: true }));
            } else if client.session != 0 && now - client.sent_ns > HEARTBEAT_NS {
                client.queue(&Response::Heartbeat);
            }
        }
        self.deliver();
    }
}

impl Client {
    fn queue(&mut self, response: &Response) {
        self.connection.queue(&response.encode());
        self.sent_ns = now_ns();
    }

    fn read(&mut self, venue: &mut Venue, outbox: &mut Vec<(u32, Response)>) -> Result<(), Closed> {
        // What is no login yet does not count as a sign of life.
        if self.connection.fill()? && self.session != 0 {
            self.heard_ns = now_ns();
        }
        loop {
            let request = match self.connection.next_frame() {
                Ok(None) => return Ok(()),
                Ok(Some(body)) => Request::parse(body),
                Err(error) => Err(error),
            };
            let done = request.map_err(|_| Refusal::Malformed).and_then(|request| {
                venue.on_request(&mut self.session, &request, now_ns(), |session, response| {
                    outbox.push((session, response));
                })
            });
            if let Err(refusal) = done {
                self.connection.tell(&Response::Refused(refusal).encode());
                return Err(Closed { by_us: true });
            }
        }
    }
}
