//! Order entry on the wire: framed fixed binary messages over TCP, after OUCH 5.0 and SoupBinTCP.
//!
//! ```text
//! frame     length u16 (type and fields) | type u8 | fields
//! to the exchange
//!   L login     user [10] | session u32 | next sequence u64
//!   H heartbeat
//!   O enter     reference u32 | side u8 'B'/'S' | quantity u32 | symbol u16 | price u32 | order type u8 | cause u64
//!   X cancel    reference u32 | symbol u16 | remaining u32
//!   U replace   reference u32 | symbol u16 | new reference u32 | quantity u32 | price u32 | order type u8
//! from the exchange
//!   l logged in session u32 | next sequence u64 | last reference u32
//!   h heartbeat
//!   j refused   reason u8
//!   A accepted  sequence u64 | timestamp u64 | reference u32
//!   U replaced  sequence u64 | timestamp u64 | reference u32 | old reference u32
//!   E executed  sequence u64 | timestamp u64 | reference u32 | quantity u32 | price u32 | trade u64
//!   C canceled  sequence u64 | timestamp u64 | reference u32 | quantity u32 | reason u8
//!   J rejected  sequence u64 | timestamp u64 | reference u32 | reason u8
//! ```
//!
//! All integers are big-endian. References are the client's, strictly increasing within a session,
//! from 1. Timestamps are the exchange's `CLOCK_MONOTONIC` in ns.
//!
//! What the exchange says about orders is numbered from 1 within a session. A client that lost its
//! connection logs in to the same session again with the number it expects next, and gets what it
//! missed; the answer also says which of its orders arrived at all. Number 0 is for answers that
//! are not sent again: those of a router that answers in the exchange's stead.
//!
//! Each side sends a heartbeat when it has sent nothing for [`HEARTBEAT_NS`], and gives the other up
//! after [`SILENCE_NS`] without a byte.

use std::io::{self, Read};

use crate::book::Side;
use crate::matching::{CancelReason, OrderType, RejectReason};
use crate::wire::{Reader, SIDES, Writer, code, decode};

/// Largest frame that is accepted, with its length field, in bytes.
pub const MAX_FRAME: usize = 64;

/// Bytes a [`FrameBuffer`] holds.
const BUFFER: usize = 16 * 1024;

/// Something is sent at least this often, in ns.
pub const HEARTBEAT_NS: u64 = 1_000_000_000;

/// A peer that sends nothing for so long is given up, in ns.
pub const SILENCE_NS: u64 = 5_000_000_000;

/// What a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Opens a session or goes on with one; must come first and once in a connection.
    Login(Login),
    /// The client is alive.
    Heartbeat,
    /// A new order.
    Enter(EnterOrder),
    /// Takes shares off an order, which keeps its place in the queue.
    Cancel {
        /// Reference of the order.
        reference: u32,
        /// Its instrument.
        symbol: u16,
        /// Shares that may stay open; 0 takes all.
        remaining: u32,
    },
    /// Puts a new order in the place of one, at the end of the queue.
    Replace {
        /// Reference of the order that goes.
        reference: u32,
        /// Instrument of both.
        symbol: u16,
        /// Reference of the order that comes.
        new_reference: u32,
        /// Its shares.
        quantity: u32,
        /// Its limit in units of 1/10000 of the currency.
        price: u32,
        /// What may become of it.
        order_type: OrderType,
    },
}

/// Who trades, and where in the session's stream of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Login {
    /// Who trades, padded with spaces; a session belongs to one user.
    pub user: [u8; 10],
    /// The session to go on with; 0 opens a new one.
    pub session: u32,
    /// Number of the answer the client expects next; 1 in a new session.
    pub next_sequence: u64,
}

impl Login {
    /// The login that opens a new session.
    pub fn new(user: [u8; 10]) -> Self {
        Self { user, session: 0, next_sequence: 1 }
    }
}

/// A new order.
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
    /// What may become of it.
    pub order_type: OrderType,
    /// Timestamp of the market data message that led to it, in ns; 0 when none did. The exchange
    /// does not look at it.
    pub cause_ns: u64,
}

/// What the exchange sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Response {
    /// The session is open.
    LoggedIn {
        /// Its number.
        session: u32,
        /// Number of the answer that comes next.
        next_sequence: u64,
        /// Highest reference that has arrived in this session; 0 for none.
        last_reference: u32,
    },
    /// The exchange is alive.
    Heartbeat,
    /// There will be no session; the exchange closes the connection.
    Refused(Refusal),
    /// Something happened to an order.
    Order {
        /// Number of this answer in the session; 0 when it is not sent again.
        sequence: u64,
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
    /// The session to go on with is not there, is another user's, is in use, or no longer has the
    /// answers that are asked for.
    Session,
    /// No more sessions.
    Full,
    /// A frame made no sense.
    Malformed,
    /// Nothing was heard of the client.
    Silent,
}

/// What happened to an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// It is live; fills may follow.
    Accepted,
    /// It is live in the place of another one, which is gone.
    Replaced {
        /// Reference of the other one.
        old_reference: u32,
    },
    /// It traded.
    Executed {
        /// Shares traded now.
        quantity: u32,
        /// At which price, in units of 1/10000 of the currency.
        price: u32,
        /// Number of the trade.
        trade: u64,
    },
    /// Open quantity was taken away; the order is gone when none is left.
    Canceled {
        /// Shares taken away.
        quantity: u32,
        /// Why.
        reason: CancelReason,
    },
    /// It never became live, or the order to cancel or replace is not live.
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
    /// The order to cancel or replace is not live, or has no more shares than may remain.
    NotLive,
    /// The venue takes no orders now.
    Unavailable,
}

const ORDER_TYPES: [(u8, OrderType); 5] = [
    (b'0', OrderType::Limit),
    (b'P', OrderType::PostOnly),
    (b'3', OrderType::Ioc),
    (b'4', OrderType::Fok),
    (b'M', OrderType::Market),
];

const REFUSALS: [(u8, Refusal); 5] = [
    (b'L', Refusal::Login),
    (b'N', Refusal::Session),
    (b'F', Refusal::Full),
    (b'M', Refusal::Malformed),
    (b'T', Refusal::Silent),
];

const CANCEL_REASONS: [(u8, CancelReason); 4] = [
    (b'U', CancelReason::Requested),
    (b'I', CancelReason::NotFilled),
    (b'Q', CancelReason::SelfMatch),
    (b'F', CancelReason::BookFull),
];

const REJECTS: [(u8, Reject); 9] = [
    (b'R', Reject::Reference),
    (b'S', Reject::Symbol),
    (b'D', Reject::Book(RejectReason::DuplicateId)),
    (b'Q', Reject::Book(RejectReason::Quantity)),
    (b'P', Reject::Book(RejectReason::Price)),
    (b'W', Reject::Book(RejectReason::WouldTrade)),
    (b'H', Reject::Book(RejectReason::Halted)),
    (b'N', Reject::NotLive),
    (b'X', Reject::Unavailable),
];

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
            Self::Login(Login { user, session, next_sequence }) => {
                frame(b'L', 22).put(&user).u32(session).u64(next_sequence)
            }
            Self::Heartbeat => frame(b'H', 0),
            Self::Enter(order) => frame(b'O', 24)
                .u32(order.reference)
                .u8(code(&SIDES, &order.side))
                .u32(order.quantity)
                .u16(order.symbol)
                .u32(order.price)
                .u8(code(&ORDER_TYPES, &order.order_type))
                .u64(order.cause_ns),
            Self::Cancel { reference, symbol, remaining } => {
                frame(b'X', 10).u32(reference).u16(symbol).u32(remaining)
            }
            Self::Replace { reference, symbol, new_reference, quantity, price, order_type } => {
                frame(b'U', 19)
                    .u32(reference)
                    .u16(symbol)
                    .u32(new_reference)
                    .u32(quantity)
                    .u32(price)
                    .u8(code(&ORDER_TYPES, &order_type))
            }
        }
    }

    /// Reads a frame without its length field.
    ///
    /// # Errors
    /// [`FrameError::Malformed`].
    pub fn parse(body: &[u8]) -> Result<Self, FrameError> {
        complete(body, |from| {
            Some(match from.u8()? {
                b'L' => Self::Login(Login {
                    user: from.bytes()?,
                    session: from.u32()?,
                    next_sequence: from.u64()?,
                }),
                b'H' => Self::Heartbeat,
                b'O' => Self::Enter(EnterOrder {
                    reference: from.u32()?,
                    side: decode(&SIDES, from.u8()?)?,
                    quantity: from.u32()?,
                    symbol: from.u16()?,
                    price: from.u32()?,
                    order_type: decode(&ORDER_TYPES, from.u8()?)?,
                    cause_ns: from.u64()?,
                }),
                b'X' => Self::Cancel { reference: from.u32()?, symbol: from.u16()?, remaining: from.u32()? },
                b'U' => Self::Replace {
                    reference: from.u32()?,
                    symbol: from.u16()?,
                    new_reference: from.u32()?,
                    quantity: from.u32()?,
                    price: from.u32()?,
                    order_type: decode(&ORDER_TYPES, from.u8()?)?,
                },
                _ => return None,
            })
        })
    }
}

impl Response {
    /// The response as a frame.
    pub fn encode(&self) -> Frame {
        match *self {
            Self::LoggedIn { session, next_sequence, last_reference } => {
                frame(b'l', 16).u32(session).u64(next_sequence).u32(last_reference)
            }
            Self::Heartbeat => frame(b'h', 0),
            Self::Refused(reason) => frame(b'j', 1).u8(code(&REFUSALS, &reason)),
            Self::Order { sequence, timestamp_ns, reference, update } => {
                let head = |kind, fields: u16| {
                    frame(kind, 20 + fields).u64(sequence).u64(timestamp_ns).u32(reference)
                };
                match update {
                    Update::Accepted => head(b'A', 0),
                    Update::Replaced { old_reference } => head(b'U', 4).u32(old_reference),
                    Update::Executed { quantity, price, trade } => {
                        head(b'E', 16).u32(quantity).u32(price).u64(trade)
                    }
                    Update::Canceled { quantity, reason } => {
                        head(b'C', 5).u32(quantity).u8(code(&CANCEL_REASONS, &reason))
                    }
                    Update::Rejected(reason) => head(b'J', 1).u8(code(&REJECTS, &reason)),
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
                    return Some(Self::LoggedIn {
                        session: from.u32()?,
                        next_sequence: from.u64()?,
                        last_reference: from.u32()?,
                    });
                }
                b'h' => return Some(Self::Heartbeat),
                b'j' => return Some(Self::Refused(decode(&REFUSALS, from.u8()?)?)),
                _ => {}
            }
            let sequence = from.u64()?;
            let timestamp_ns = from.u64()?;
            let reference = from.u32()?;
            let update = match kind {
                b'A' => Update::Accepted,
                b'U' => Update::Replaced { old_reference: from.u32()? },
                b'E' => Update::Executed { quantity: from.u32()?, price: from.u32()?, trade: from.u64()? },
                b'C' => {
                    Update::Canceled { quantity: from.u32()?, reason: decode(&CANCEL_REASONS, from.u8()?)? }
                }
                b'J' => Update::Rejected(decode(&REJECTS, from.u8()?)?),
                _ => return None,
            };
            Some(Self::Order { sequence, timestamp_ns, reference, update })
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

    fn one_of<T: Copy + std::fmt::Debug + 'static>(table: &'static [(u8, T)]) -> impl Strategy<Value = T> {
        prop::sample::select(table).prop_map(|(_, value)| value)
    }

    fn request() -> impl Strategy<Value = Request> {
        let m = any::<u32>;
        let order_type = || one_of(&ORDER_TYPES);
        let enter = (m(), one_of(&SIDES), m(), any::<u16>(), m(), order_type(), any::<u64>());
        prop_oneof![
            (any::<[u8; 10]>(), m(), any::<u64>()).prop_map(|(user, session, next_sequence)| {
                Request::Login(Login { user, session, next_sequence })
            }),
            Just(Request::Heartbeat),
            enter.prop_map(|(reference, side, quantity, symbol, price, order_type, cause_ns)| {
                Request::Enter(EnterOrder { reference, side, quantity, symbol, price, order_type, cause_ns })
            }),
            (m(), any::<u16>(), m()).prop_map(|(reference, symbol, remaining)| Request::Cancel {
                reference,
                symbol,
                remaining
            }),
            (m(), any::<u16>(), m(), m(), m(), order_type()).prop_map(
                |(reference, symbol, new_reference, quantity, price, order_type)| Request::Replace {
                    reference,
                    symbol,
                    new_reference,
                    quantity,
                    price,
                    order_type,
                }
            ),
        ]
    }

    fn response() -> impl Strategy<Value = Response> {
        let m = any::<u32>;
        let n = any::<u64>;
        let update = prop_oneof![
            Just(Update::Accepted),
            m().prop_map(|old_reference| Update::Replaced { old_reference }),
            (m(), m(), n()).prop_map(|(quantity, price, trade)| Update::Executed { quantity, price, trade }),
            (m(), one_of(&CANCEL_REASONS))
                .prop_map(|(quantity, reason)| Update::Canceled { quantity, reason }),
            one_of(&REJECTS).prop_map(Update::Rejected),
        ];
        prop_oneof![
            (m(), n(), m()).prop_map(|(session, next_sequence, last_reference)| Response::LoggedIn {
                session,
                next_sequence,
                last_reference
            }),
            Just(Response::Heartbeat),
            one_of(&REFUSALS).prop_map(Response::Refused),
            (n(), n(), m(), update).prop_map(|(sequence, timestamp_ns, reference, update)| {
                Response::Order { sequence, timestamp_ns, reference, update }
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
