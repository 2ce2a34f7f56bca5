//! Processes under test, and a client of the exchange.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use paper_engine::book::Side;
use paper_engine::exchange::Ready;
use paper_engine::matching::OrderType;
use paper_engine::order_entry::{EnterOrder, FrameBuffer, Login, Request, Response, Update};
use paper_engine::report::ExchangeReport;
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

/// Longest any of these processes may take to do what it was asked to.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub fn paper_engine(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paper-engine"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn run(arguments: &[&str]) -> Output {
    paper_engine(arguments).output().unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

pub fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.contains("(paper-") && !stat.contains(") Z"))
}

/// What a process says first on its stdout; nothing of the rest is read ahead and lost.
pub fn first_line<T: DeserializeOwned>(child: &mut Child) -> T {
    let stdout = child.stdout.as_mut().unwrap();
    let line: Vec<u8> = stdout.bytes().map(Result::unwrap).take_while(|byte| *byte != b'\n').collect();
    serde_json::from_slice(&line).unwrap()
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An exchange of our own to talk to.
pub struct Exchange {
    pub child: Child,
    pub ready: Ready,
}

impl Exchange {
    pub fn start() -> Self {
        let parent = std::process::id().to_string();
        let mut child = paper_engine(&["exchange", "--format", "json", "--parent", &parent]).spawn().unwrap();
        let ready = first_line(&mut child);
        Self { child, ready }
    }

    pub fn stop(self) -> ExchangeReport {
        signal(&self.child, Signal::TERM);
        let output = self.child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

pub struct Client {
    pub stream: TcpStream,
    pub frames: FrameBuffer,
}

impl Client {
    pub fn connect(exchange: SocketAddr) -> Self {
        Self::from_stream(TcpStream::connect(exchange).unwrap())
    }

    pub fn from_stream(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, frames: FrameBuffer::default() }
    }

    pub fn logged_in(exchange: SocketAddr) -> Self {
        let mut client = Self::connect(exchange);
        client.send(Request::Login(Login::new(*b"tester    ")));
        assert!(matches!(client.next(), Some(Response::LoggedIn { .. })));
        client
    }

    pub fn send(&mut self, request: Request) {
        let frame = request.encode();
        self.stream.write_all(frame.as_slice()).unwrap();
    }

    /// The next response; `None` when the exchange has closed the connection.
    pub fn next(&mut self) -> Option<Response> {
        loop {
            if let Some(body) = self.frames.next_frame().unwrap() {
                return Some(Response::parse(body).unwrap());
            }
            if self.frames.fill(&mut self.stream).ok()? == 0 {
                return None;
            }
        }
    }

    /// The next request of an engine, when we are its exchange; `None` when it has hung up.
    pub fn next_request(&mut self) -> Option<Request> {
        loop {
            if let Some(body) = self.frames.next_frame().unwrap() {
                return Some(Request::parse(body).unwrap());
            }
            if self.frames.fill(&mut self.stream).ok()? == 0 {
                return None;
            }
        }
    }

    pub fn request(&mut self) -> Request {
        self.next_request().unwrap()
    }

    pub fn update(&mut self) -> (u32, Update) {
        match self.next() {
            Some(Response::Order { reference, update, .. }) => (reference, update),
            other => panic!("{other:?}"),
        }
    }
}

pub fn enter(reference: u32, side: Side, quantity: u32) -> Request {
    Request::Enter(EnterOrder {
        reference,
        side,
        quantity,
        symbol: 1,
        price: 1_000_000,
        order_type: OrderType::Limit,
        cause_ns: 0,
    })
}
