//! A framed TCP connection that never blocks, for loops that wait with epoll.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, EventData, EventFlags};

use crate::order_entry::{Frame, FrameBuffer, FrameError};

/// Most bytes that wait for a peer to read.
const MAX_UNSENT: usize = 1024 * 1024;

/// A connection is over; its peer may have been told why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Whether it was us who ended it.
    pub by_us: bool,
}

/// A connection, watched by an epoll instance under a name.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    frames: FrameBuffer,
    unsent: Vec<u8>,
    name: u64,
    /// Whether epoll tells when the stream can be written.
    waits_to_write: bool,
}

impl Connection {
    /// Takes over a stream and asks `epoll` to tell what happens to it as `name`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(stream: TcpStream, epoll: &OwnedFd, name: u64) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        epoll::add(epoll, &stream, EventData::new_u64(name), EventFlags::IN)?;
        let (frames, unsent) = (FrameBuffer::default(), Vec::new());
        Ok(Self { stream, frames, unsent, name, waits_to_write: false })
    }

    /// Reads once. Returns whether there is anything new in [`Connection::next_frame`].
    ///
    /// # Errors
    /// When the peer is gone.
    pub fn fill(&mut self) -> Result<bool, Closed> {
        match self.frames.fill(&mut self.stream) {
            Ok(0) => Err(Closed { by_us: false }),
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(_) => Err(Closed { by_us: false }),
        }
    }

    /// The next complete frame without its length field.
    ///
    /// # Errors
    /// As [`FrameBuffer::next_frame`].
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        self.frames.next_frame()
    }

    /// Puts a frame behind what is to be sent.
    pub fn queue(&mut self, frame: &Frame) {
        self.unsent.extend_from_slice(frame.as_slice());
    }

    /// Puts a frame behind what is to be sent, given without its length field.
    pub fn queue_body(&mut self, body: &[u8]) {
        self.unsent.extend_from_slice(&(body.len() as u16).to_be_bytes());
        self.unsent.extend_from_slice(body);
    }

    /// Sends what can be sent, and asks `epoll` for what this waits for.
    ///
    /// # Errors
    /// When the peer is gone, or has not read for too long.
    pub fn flush(&mut self, epoll: &OwnedFd) -> Result<(), Closed> {
        let mut sent = 0;
        while sent < self.unsent.len() {
            match self.stream.write(&self.unsent[sent..]) {
                Ok(len) if len > 0 => sent += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return Err(Closed { by_us: false }),
            }
        }
        self.unsent.drain(..sent);
        if self.unsent.len() > MAX_UNSENT {
            return Err(Closed { by_us: true });
        }
        let waits_to_write = !self.unsent.is_empty();
        if waits_to_write != self.waits_to_write {
            self.waits_to_write = waits_to_write;
            let mut flags = EventFlags::IN;
            flags.set(EventFlags::OUT, waits_to_write);
            epoll::modify(epoll, &self.stream, EventData::new_u64(self.name), flags)
                .map_err(|_| Closed { by_us: true })?;
        }
        Ok(())
    }

    /// Sends a last frame, if the peer can still be told.
    pub fn tell(&mut self, frame: &Frame) {
        self.queue(frame);
        let _ = self.stream.write(&self.unsent);
    }
}
