//! The engine's session with the exchange: log in, receive what it answers, and when the connection
//! is lost, go on with the session on a new one.

use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::clock::now_ns;
use crate::error::Error;
use crate::order_entry::{FrameBuffer, Login, Refusal, Request, Response, SILENCE_NS};

/// How long connecting, logging in and sending may take.
const PEER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to wait between two attempts to connect again.
const RETRY: Duration = Duration::from_millis(50);

/// What the ack thread hands over.
#[derive(Debug)]
pub enum News {
    /// A response, and when its last byte was received, in ns.
    Response(Response, u64),
    /// The connection is lost.
    Disconnected,
    /// There is a new connection.
    Reconnected {
        /// To send orders to.
        stream: TcpStream,
        /// Highest reference that has arrived at the exchange in this session.
        last_reference: u32,
    },
}

/// A session and its connection.
#[derive(Debug)]
pub struct Gateway {
    exchange: SocketAddr,
    login: Login,
    stream: TcpStream,
    frames: FrameBuffer,
}

impl Gateway {
    /// Connects and opens a session for `user`.
    ///
    /// # Errors
    /// When the exchange cannot be reached or does not want the session.
    pub fn connect(exchange: SocketAddr, user: [u8; 10]) -> Result<Self, Error> {
        let mut login = Login::new(user);
        let (stream, frames, _) = log_in(exchange, &mut login)
            .map_err(Error::unavailable(format!("cannot open a session with the exchange {exchange}")))?;
        Ok(Self { exchange, login, stream, frames })
    }

    /// The connection, to send orders to.
    ///
    /// # Errors
    /// When the system refuses to share it.
    pub fn stream(&self) -> io::Result<TcpStream> {
        self.stream.try_clone()
    }

    /// The ack thread: hands over what the exchange answers until `closing` is set and the stream
    /// shut down. A lost connection is tried to be replaced for as long as `patience`.
    ///
    /// # Errors
    /// When the connection is lost for good, or carries something that is not order entry. The ring
    /// is abandoned then.
    pub fn run(
        mut self,
        mut news: rtrb::Producer<News>,
        closing: &Arc<AtomicBool>,
        patience: Duration,
    ) -> io::Result<()> {
        loop {
            let lost = self.receive(&mut news);
            if closing.load(Ordering::Relaxed) || news.is_abandoned() {
                return Ok(());
            }
            if patience.is_zero() {
                return lost;
            }
            push(&mut news, News::Disconnected);
            let last_reference = self.reconnect(closing, patience)?;
            push(&mut news, News::Reconnected { stream: self.stream()?, last_reference });
        }
    }

    /// Receives until the connection is lost.
    fn receive(&mut self, news: &mut rtrb::Producer<News>) -> io::Result<()> {
        let mut received_ns = now_ns();
        loop {
            while let Some(body) = self.frames.next_frame().map_err(io::Error::other)? {
                let response = Response::parse(body).map_err(io::Error::other)?;
                match response {
                    Response::Order { sequence, .. } if sequence > 0 => {
                        self.login.next_sequence = sequence + 1;
                    }
                    Response::Heartbeat => continue,
                    _ => {}
                }
                push(news, News::Response(response, received_ns));
            }
            match self.frames.fill(&mut self.stream) {
                Ok(0) => return Ok(()),
                Ok(_) => received_ns = now_ns(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Also when nothing came for so long that the exchange cannot be there any more.
                Err(_) => return Ok(()),
            }
        }
    }

    fn reconnect(&mut self, closing: &AtomicBool, patience: Duration) -> io::Result<u32> {
        let start = Instant::now();
        loop {
            match log_in(self.exchange, &mut self.login) {
                Ok((stream, frames, last_reference)) => {
                    self.stream = stream;
                    self.frames = frames;
                    return Ok(last_reference);
                }
                Err(error) if start.elapsed() > patience || closing.load(Ordering::Relaxed) => {
                    return Err(error);
                }
                Err(_) => std::thread::sleep(RETRY),
            }
        }
    }
}

/// Connects and logs in; what came after the answer is in the buffer. When the exchange does not
/// have the session any more, the next attempt is for a new one.
fn log_in(exchange: SocketAddr, login: &mut Login) -> io::Result<(TcpStream, FrameBuffer, u32)> {
    let mut stream = TcpStream::connect_timeout(&exchange, PEER_TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(PEER_TIMEOUT))?;
    stream.set_read_timeout(Some(PEER_TIMEOUT))?;
    stream.write_all(Request::Login(*login).encode().as_slice())?;
    let mut frames = FrameBuffer::default();
    loop {
        if frames.fill(&mut stream)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let Some(body) = frames.next_frame().map_err(io::Error::other)? else {
            continue;
        };
        match Response::parse(body).map_err(io::Error::other)? {
            Response::LoggedIn { session, last_reference, .. } => {
                login.session = session;
                stream.set_read_timeout(Some(Duration::from_nanos(SILENCE_NS)))?;
                return Ok((stream, frames, last_reference));
            }
            other => {
                if other == Response::Refused(Refusal::Session) {
                    *login = Login::new(login.user);
                }
                return Err(io::Error::other(format!("login answered by {other:?}")));
            }
        }
    }
}

/// Hands over, waiting for room unless nobody takes it any more.
fn push(ring: &mut rtrb::Producer<News>, mut news: News) {
    while let Err(rtrb::PushError::Full(back)) = ring.push(news) {
        if ring.is_abandoned() {
            return;
        }
        news = back;
        std::thread::sleep(Duration::from_micros(100));
    }
}
