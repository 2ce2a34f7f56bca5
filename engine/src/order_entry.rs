//! Order entry on the wire: framed fixed binary messages over TCP, after OUCH 5.0.
//!
//! ```text
//! frame     length u16 (type and fields) | type u8 | fields
//! to the exchange
//!   L login     user [10]
//!   O enter     reference u32 | side u8 'B'/'S' | quantity u32 | symbol u16 | price u32 | time in force u8 '0'/'3'
//!   X cancel    reference u32
//! from the exchange
//!   l logged in session u32
//!   j refused   reason u8
//!   A accepted  timestamp u64 | reference u32
//!   E executed  timestamp u64 | reference u32 | quantity u32 | price u32 | trade u64
//!   C canceled  timestamp u64 | reference u32 | quantity u32 | reason u8
//!   J rejected  timestamp u64 | reference u32 | reason u8
//! ```
//!
//! All integers are big-endian. References are the client's, strictly increasing within a session,
//! from 1. Timestamps are the exchange's `CLOCK_MONOTONIC` in ns.

use std::io::{self, Read};

use crate::book::Side;
use crate::matching::{CancelReason, RejectReason, TimeInForce};
use crate::wire::{Reader, Writer};

/// Largest frame that is accepted, with its length field, in bytes.
pub const MAX_FRAME: usize = 64;

/// Bytes a [`FrameBuffer`] holds.
const BUFFER: usize = 16 * 1024;

/// What a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Opens the session; must come first and once.
    Login {
        /// Who trades, padded with spaces.
        user: [u8; 10],
    },
    /// A new limit order.
    Enter(EnterOrder),
    /// Takes what is open of an order off the book.
    Cancel {
        /// Reference of the order.
        reference: u32,
    },
}

/// A new limit order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnterOrder {
    /// The client's number for it, higher than any before in the session.
    pub reference: u32,
    /// Buy or sell.
    pub side: Side,
    /// Shares.
    pub quantity: u32,
    /// Instrument, as in market data.
    pub symbol: u16,
    /// Limit in units of 1/10000 of the currency.
    pub price: u32,
    /// What happens to what does not trade at once.
    pub time_in_force: TimeInForce,
}

/// What the exchange sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Response {
    /// The session is open.
    LoggedIn {
        /// Its number.
        session: u32,
    },
    /// There will be no session; the exchange closes the connection.
    Refused(Refusal),
    /// Something happened to an order.
    Order {
        /// `CLOCK_MONOTONIC` of the exchange, in ns.
        timestamp_ns: u64,
        /// The client's number of the order.
        reference: u32,
        /// What happened.
        update: Update,
    },
}

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Something else came before the login, or a second login.
    Login,
    /// No more sessions.
    Full,
    /// A frame made no sense.
    Malformed,
}

/// What happened to an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// It is live; fills may follow.
    Accepted,
    /// It traded.
    Executed {
        /// Shares traded now.
        quantity: u32,
        /// At which price, in units of 1/10000 of the currency.
        price: u32,
        /// Number of the trade.
        trade: u64,
    },
    /// Open quantity was taken away; the order is gone.
    Canceled {
        /// Shares taken away.
        quantity: u32,
        /// Why.
        reason: CancelReason,
    },
    /// It never became live, or the cancel was for no live order.
    Rejected(Reject),
}

/// Why the exchange rejects a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// The reference is not higher than all before.
    Reference,
    /// There is no such symbol.
    Symbol,
    /// The book does not take it.
    Book(RejectReason),
    /// The order to cancel is not live.
    NotLive,
}

/// Why bytes are not order entry. There is no way to find the next frame: close the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length field says 0, or more than [`MAX_FRAME`].
    #[error("frame length {0} is out of range")]
    Length(usize),
    /// Unknown type, or wrong length or value for the type.
    #[error("frame is malformed")]
    Malformed,
}

/// A frame ready to send.
pub type Frame = Writer<MAX_FRAME>;

impl Request {
    /// The request as a frame.
    pub fn encode(&self) -> Frame {
        match *self {
            Self::Login { user } => frame(b'L', 10).put(&user),
            Self::Enter(order) => frame(b'O', 16)
                .u32(order.reference)
                .u8(match order.side {
                    Side::Buy => b'B',
                    Side::Sell => b'S',
                })
                .u32(order.quantity)
                .u16(order.symbol)
                .u32(order.price)
                .u8(match order.time_in_force {
                    TimeInForce::Day => b'0',
                    TimeInForce::Ioc => b'3',
                }),
            Self::Cancel { reference } => frame(b'X', 4).u32(reference),
        }
    }

    /// Reads a frame without its length field.
    ///
    /// # Errors
    /// [`FrameError::Malformed`].
    pub fn parse(body: &[u8]) -> Result<Self, FrameError> {
        complete(body, |from| {
            Some(match from.u8()? {
                b'L' => Self::Login { user: from.bytes()? },
                b'O' => Self::Enter(EnterOrder {
                    reference: from.u32()?,
                    side: match from.u8()? {
                        b'B' => Side::Buy,
                        b'S' => Side::Sell,
                        _ => return None,
                    },
                    quantity: from.u32()?,
                    symbol: from.u16()?,
                    price: from.u32()?,
                    time_in_force: match from.u8()? {
                        b'0' => TimeInForce::Day,
                        b'3' => TimeInForce::Ioc,
                        _ => return None,
                    },
                }),
                b'X' => Self::Cancel { reference: from.u32()? },
                _ => return None,
            })
        })
    }
}

impl Response {
    /// The response as a frame.
    pub fn encode(&self) -> Frame {
        match *self {
            Self::LoggedIn { session } => frame(b'l', 4).u32(session),
            Self::Refused(reason) => frame(b'j', 1).u8(match reason {
                Refusal::Login => b'L',
                Refusal::Full => b'F',
                Refusal::Malformed => b'M',
            }),
            Self::Order { timestamp_ns, reference, update } => {
                let head = |kind, len: u16| frame(kind, 12 + len).u64(timestamp_ns).u32(reference);
                match update {
                    Update::Accepted => head(b'A', 0),
                    Update::Executed { quantity, price, trade } => {
                        head(b'E', 16).u32(quantity).u32(price).u64(trade)
                    }
                    Update::Canceled { quantity, reason } => head(b'C', 5).u32(quantity).u8(match reason {
                        CancelReason::Requested => b'U',
                        CancelReason::ImmediateOrCancel => b'I',
                        CancelReason::BookFull => b'F',
                    }),
                    Update::Rejected(reason) => head(b'J', 1).u8(match reason {
                        Reject::Reference => b'R',
                        Reject::Symbol => b'S',
                        Reject::Book(RejectReason::DuplicateId) => b'D',
                        Reject::Book(RejectReason::Quantity) => b'Q',
                        Reject::Book(RejectReason::Price) => b'P',
                        Reject::NotLive => b'N',
                    }),
                }
            }
        }
    }

    /// Reads a frame without its length field.
    ///
    /// # Errors
    /// [`FrameError::Malformed`].
    pub fn parse(body: &[u8]) -> Result<Self, FrameError> {
        complete(body, |from| {
            let kind = from.u8()?;
            match kind {
                b'l' => {
                    return Some(Self::LoggedIn { session: from.u32()? });
                }
                b'j' => {
                    return Some(Self::Refused(match from.u8()? {
                        b'L' => Refusal::Login,
                        b'F' => Refusal::Full,
                        b'M' => Refusal::Malformed,
                        _ => return None,
                    }));
                }
                _ => {}
            }
            let timestamp_ns = from.u64()?;
            let reference = from.u32()?;
            let update = match kind {
                b'A' => Update::Accepted,
                b'E' => Update::Executed { quantity: from.u32()?, price: from.u32()?, trade: from.u64()? },
                b'C' => Update::Canceled {
                    quantity: from.u32()?,
                    reason: match from.u8()? {
                        b'U' => CancelReason::Requested,
                        b'I' => CancelReason::ImmediateOrCancel,
                        b'F' => CancelReason::BookFull,
                        _ => return None,
                    },
                },
                b'J' => Update::Rejected(match from.u8()? {
                    b'R' => Reject::Reference,
                    b'S' => Reject::Symbol,
                    b'D' => Reject::Book(RejectReason::DuplicateId),
                    b'Q' => Reject::Book(RejectReason::Quantity),
                    b'P' => Reject::Book(RejectReason::Price),
                    b'N' => Reject::NotLive,
                    _ => return None,
                }),
                _ => return None,
            };
            Some(Self::Order { timestamp_ns, reference, update })
        })
    }
}

/// Cuts a byte stream into frames, however the reads cut it. Holds 16 KiB, never more.
#[derive(Debug)]
pub struct FrameBuffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for FrameBuffer {
    fn default() -> Self {
        Self { bytes: vec![0; BUFFER].into_boxed_slice(), start: 0, end: 0 }
    }
}

impl FrameBuffer {
    /// Reads once. Returns the number of bytes; 0 is the end of the stream. Call it when
    /// [`FrameBuffer::next_frame`] has no more: then there is always room.
    ///
    /// # Errors
    /// What `from` returns.
    pub fn fill(&mut self, from: &mut impl Read) -> io::Result<usize> {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let read = from.read(&mut self.bytes[self.end..])?;
        self.end += read;
        Ok(read)
    }

    /// The next complete frame without its length field; `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError::Length`], as soon as the length field is there.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let mut from = Reader(&self.bytes[self.start..self.end]);
        let Some(len) = from.u16() else {
            return Ok(None);
        };
        let len = usize::from(len);
        if len == 0 || len + 2 > MAX_FRAME {
            return Err(FrameError::Length(len));
        }
        match from.slice(len) {
            None => Ok(None),
            Some(body) => {
                self.start += 2 + len;
                Ok(Some(body))
            }
        }
    }
}

fn frame(kind: u8, fields: u16) -> Frame {
    Frame::default().u16(1 + fields).u8(kind)
}

/// Runs `read` over `body` and insists that it takes all of it.
fn complete<T>(body: &[u8], read: impl FnOnce(&mut Reader<'_>) -> Option<T>) -> Result<T, FrameError> {
    let mut from = Reader(body);
    match read(&mut from) {
        Some(value) if from.0.is_empty() => Ok(value),
        _ => Err(FrameError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request() -> impl Strategy<Value = Request> {
        let enter = (
            any::<u32>(),
            prop_oneof![Just(Side::Buy), Just(Side::Sell)],
            any::<u32>(),
            any::<u16>(),
            any::<u32>(),
            prop_oneof![Just(TimeInForce::Day), Just(TimeInForce::Ioc)],
        );
        prop_oneof![
            any::<[u8; 10]>().prop_map(|user| Request::Login { user }),
            enter.prop_map(|(reference, side, quantity, symbol, price, time_in_force)| Request::Enter(
                EnterOrder { reference, side, quantity, symbol, price, time_in_force }
            )),
            any::<u32>().prop_map(|reference| Request::Cancel { reference }),
        ]
    }

    fn response() -> impl Strategy<Value = Response> {
        let reject = prop_oneof![
            Just(Reject::Reference),
            Just(Reject::Symbol),
            Just(Reject::Book(RejectReason::DuplicateId)),
            Just(Reject::Book(RejectReason::Quantity)),
            Just(Reject::Book(RejectReason::Price)),
            Just(Reject::NotLive),
        ];
        let reason = prop_oneof![
            Just(CancelReason::Requested),
            Just(CancelReason::ImmediateOrCancel),
            Just(CancelReason::BookFull),
        ];
        let update = prop_oneof![
            Just(Update::Accepted),
            (any::<u32>(), any::<u32>(), any::<u64>())
                .prop_map(|(quantity, price, trade)| { Update::Executed { quantity, price, trade } }),
            (any::<u32>(), reason).prop_map(|(quantity, reason)| Update::Canceled { quantity, reason }),
            reject.prop_map(Update::Rejected),
        ];
        prop_oneof![
            any::<u32>().prop_map(|session| Response::LoggedIn { session }),
            Just(Response::Refused(Refusal::Login)),
            Just(Response::Refused(Refusal::Full)),
            Just(Response::Refused(Refusal::Malformed)),
            (any::<u64>(), any::<u32>(), update).prop_map(|(timestamp_ns, reference, update)| {
                Response::Order { timestamp_ns, reference, update }
            }),
        ]
    }

    /// Hands out at most `chunk` bytes a read.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = self.1.min(self.0.len()).min(buffer.len());
            buffer[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    proptest! {
        #[test]
        fn requests_round_trip_however_the_reads_cut_them(
            requests in prop::collection::vec(request(), 0..40),
            chunk in 1..100usize,
        ) {
            let bytes: Vec<u8> =
                requests.iter().flat_map(|r| r.encode().as_slice().to_vec()).collect();
            let mut stream = Trickle(&bytes, chunk);
            let mut frames = FrameBuffer::default();
            let mut back = Vec::new();
            while frames.fill(&mut stream).unwrap() > 0 {
                while let Some(body) = frames.next_frame().unwrap() {
                    back.push(Request::parse(body).unwrap());
                }
            }
            prop_assert_eq!(back, requests);
        }

        #[test]
        fn responses_round_trip(response in response()) {
            let frame = response.encode();
            let (len, body) = frame.as_slice().split_first_chunk().unwrap();
            prop_assert_eq!(usize::from(u16::from_be_bytes(*len)), body.len());
            prop_assert_eq!(Response::parse(body), Ok(response));
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            chunk in 1..100usize,
        ) {
            let _ = Request::parse(&bytes);
            let _ = Response::parse(&bytes);
            let mut stream = Trickle(&bytes, chunk);
            let mut frames = FrameBuffer::default();
            'stream: while frames.fill(&mut stream).unwrap() > 0 {
                loop {
                    match frames.next_frame() {
                        Ok(Some(body)) => prop_assert!(body.len() + 2 <= MAX_FRAME),
                        Ok(None) => break,
                        Err(_) => break 'stream,
                    }
                }
            }
        }

        #[test]
        fn damaged_frames_never_panic(
            response in response(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut body = response.encode().as_slice()[2..].to_vec();
            prop_assert!(Response::parse(&body[..at.index(body.len())]).is_err());
            let at = at.index(body.len());
            body[at] = byte;
            let _ = Response::parse(&body);
        }
    }

    #[test]
    fn oversize_and_empty_frames_are_refused() {
        for (bytes, len) in [([0, 0], 0), ([0, 63], 63), ([0xff, 0xff], 0xffff)] {
            let mut frames = FrameBuffer::default();
            frames.fill(&mut &bytes[..]).unwrap();
            assert_eq!(frames.next_frame(), Err(FrameError::Length(len)));
        }
    }
}
