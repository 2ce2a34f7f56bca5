//! Market data on the wire: datagrams with a MoldUDP64-like header, messages after ITCH 5.0.
//!
//! ```text
//! datagram  session [10] | sequence u64 | count u16 | count x (length u16 | message)
//! message   type u8 | symbol u16 | timestamp u64 | fields of the type
//!   A add      id u64 | side u8 'B'/'S' | quantity u32 | price u32
//!   E execute  id u64 | quantity u32 | trade u64
//!   X cancel   id u64 | quantity u32
//!   D delete   id u64
//!   U replace  id u64 | new id u64 | quantity u32 | price u32
//!   P trade    side u8 | quantity u32 | price u32 | trade u64     (of hidden orders; no book change)
//!   S status   status u8 'H' halted, 'T' trading, 'C' book cleared, 'R' book ready
//! ```
//!
//! All integers are big-endian. `sequence` is the number of the first message, from 1; a datagram
//! without messages is a heartbeat, and a count of 0xffff ends the session: both carry the number
//! of the message that would come next, so that a loss at the end is noticed too. Differences to
//! ITCH: the timestamp is `CLOCK_MONOTONIC` in ns as u64 (ITCH: 48 bits since midnight), there is no
//! tracking number and no stock name.

use crate::book::{Book, BookError, Order, Side};
use crate::matching::NOBODY;
use crate::wire::{Reader, SIDES, Writer, code, decode};

/// Largest datagram, in bytes: fits an Ethernet frame.
pub const MAX_DATAGRAM: usize = 1400;

/// Bytes of the datagram header.
pub const HEADER: usize = 20;

/// `count` of the datagram that ends a session.
const END_OF_SESSION: u16 = 0xffff;

/// Largest message, in bytes: replace.
const MAX_MESSAGE: usize = 35;

/// Name of a run of sequence numbers.
pub type Session = [u8; 10];

/// One market data message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Which instrument (ITCH: stock locate).
    pub symbol: u16,
    /// `CLOCK_MONOTONIC` of the publisher just before the send call, in ns.
    pub timestamp_ns: u64,
    /// What happened.
    pub body: Body,
}

/// What a message says. Quantities are shares, prices units of 1/10000 of the currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named as in the book")]
pub enum Body {
    /// An order rests.
    Add { id: u64, side: Side, quantity: u32, price: u32 },
    /// A resting order traded, wholly or in part.
    Execute { id: u64, quantity: u32, trade: u64 },
    /// A resting order got smaller.
    Cancel { id: u64, quantity: u32 },
    /// A resting order is gone.
    Delete { id: u64 },
    /// A resting order was replaced and lost its priority.
    Replace { id: u64, new_id: u64, quantity: u32, price: u32 },
    /// A hidden order traded.
    Trade { side: Side, quantity: u32, price: u32, trade: u64 },
    /// The instrument's state changed.
    Status(Status),
}

impl Body {
    /// Does to the instrument's book what the message says.
    ///
    /// # Errors
    /// What the book says; it is unchanged then.
    pub fn apply(&self, book: &mut Book) -> Result<(), BookError> {
        match *self {
            Self::Add { id, side, quantity, price } => {
                book.add(Order { id, owner: NOBODY, side, price, quantity })
            }
            Self::Execute { id, quantity, .. } | Self::Cancel { id, quantity } => {
                book.reduce(id, quantity).map(drop)
            }
            Self::Delete { id } => book.remove(id).map(drop),
            Self::Replace { id, new_id, quantity, price } => {
                book.replace(id, new_id, quantity, price).map(drop)
            }
            Self::Status(Status::Cleared) => {
                book.clear();
                Ok(())
            }
            Self::Trade { .. } | Self::Status(_) => Ok(()),
        }
    }
}

/// The messages that make another book hold what this one does.
pub fn snapshot(book: &Book) -> impl Iterator<Item = Body> {
    let orders = [Side::Buy, Side::Sell].into_iter().flat_map(|side| book.orders(side));
    let adds = orders.map(|Order { id, side, quantity, price, .. }| Body::Add { id, side, quantity, price });
    let status = |status| std::iter::once(Body::Status(status));
    status(Status::Cleared).chain(adds).chain(status(Status::Ready))
}

/// State of an instrument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Nothing trades until [`Status::Trading`].
    Halted,
    /// Trading goes on.
    Trading,
    /// Its book is empty from here on. What follows up to [`Status::Ready`] fills it again with what
    /// rests already, in the order of priority: a snapshot, which is no news to decide on.
    Cleared,
    /// Its book is complete.
    Ready,
}

const STATUSES: [(u8, Status); 4] =
    [(b'H', Status::Halted), (b'T', Status::Trading), (b'C', Status::Cleared), (b'R', Status::Ready)];

/// Why bytes are not market data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MdError {
    /// Ends within the header, a length or a message.
    #[error("datagram is cut short")]
    Truncated,
    /// Goes on after the last message.
    #[error("datagram has bytes after its last message")]
    Trailing,
    /// Sequence numbers start at 1 and fit 64 bits.
    #[error("sequence number is out of range")]
    Sequence,
    /// A message of unknown type or with a wrong length or side.
    #[error("message is malformed")]
    Message,
}

impl Message {
    /// The message as bytes, without its length field.
    pub fn encode(&self) -> Writer<MAX_MESSAGE> {
        let kind = match self.body {
            Body::Add { .. } => b'A',
            Body::Execute { .. } => b'E',
            Body::Cancel { .. } => b'X',
            Body::Delete { .. } => b'D',
            Body::Replace { .. } => b'U',
            Body::Trade { .. } => b'P',
            Body::Status(_) => b'S',
        };
        let out = Writer::default().u8(kind).u16(self.symbol).u64(self.timestamp_ns);
        match self.body {
            Body::Add { id, side, quantity, price } => {
                out.u64(id).u8(code(&SIDES, &side)).u32(quantity).u32(price)
            }
            Body::Execute { id, quantity, trade } => out.u64(id).u32(quantity).u64(trade),
            Body::Cancel { id, quantity } => out.u64(id).u32(quantity),
            Body::Delete { id } => out.u64(id),
            Body::Replace { id, new_id, quantity, price } => out.u64(id).u64(new_id).u32(quantity).u32(price),
            Body::Trade { side, quantity, price, trade } => {
                out.u8(code(&SIDES, &side)).u32(quantity).u32(price).u64(trade)
            }
            Body::Status(status) => out.u8(code(&STATUSES, &status)),
        }
    }

    /// Reads one message without its length field.
    ///
    /// # Errors
    /// [`MdError::Message`].
    pub fn parse(bytes: &[u8]) -> Result<Self, MdError> {
        Self::read(Reader(bytes)).ok_or(MdError::Message)
    }

    fn read(mut from: Reader<'_>) -> Option<Self> {
        let kind = from.u8()?;
        let symbol = from.u16()?;
        let timestamp_ns = from.u64()?;
        let body = match kind {
            b'A' => Body::Add {
                id: from.u64()?,
                side: decode(&SIDES, from.u8()?)?,
                quantity: from.u32()?,
                price: from.u32()?,
            },
            b'E' => Body::Execute { id: from.u64()?, quantity: from.u32()?, trade: from.u64()? },
            b'X' => Body::Cancel { id: from.u64()?, quantity: from.u32()? },
            b'D' => Body::Delete { id: from.u64()? },
            b'U' => Body::Replace {
                id: from.u64()?,
                new_id: from.u64()?,
                quantity: from.u32()?,
                price: from.u32()?,
            },
            b'P' => Body::Trade {
                side: decode(&SIDES, from.u8()?)?,
                quantity: from.u32()?,
                price: from.u32()?,
                trade: from.u64()?,
            },
            b'S' => Body::Status(decode(&STATUSES, from.u8()?)?),
            _ => return None,
        };
        from.0.is_empty().then_some(Self { symbol, timestamp_ns, body })
    }
}

/// A received datagram whose framing was checked; its messages were not yet.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Session of the sequence number.
    pub session: Session,
    /// Number of the first message, or of the next one when there is none; from 1.
    pub sequence: u64,
    /// Number of messages.
    pub count: u16,
    /// Whether the session ends here.
    pub end_of_session: bool,
    messages: Reader<'a>,
}

impl<'a> Packet<'a> {
    /// Reads a datagram.
    ///
    /// # Errors
    /// [`MdError::Truncated`], [`MdError::Trailing`] or [`MdError::Sequence`].
    pub fn parse(datagram: &'a [u8]) -> Result<Self, MdError> {
        let mut from = Reader(datagram);
        let session = from.bytes().ok_or(MdError::Truncated)?;
        let sequence = from.u64().ok_or(MdError::Truncated)?;
        let count = from.u16().ok_or(MdError::Truncated)?;
        let end_of_session = count == END_OF_SESSION;
        let count = if end_of_session { 0 } else { count };
        if sequence == 0 || sequence.checked_add(u64::from(count)).is_none() {
            return Err(MdError::Sequence);
        }
        let messages = from;
        for _ in 0..count {
            let len = from.u16().ok_or(MdError::Truncated)?;
            from.slice(usize::from(len)).ok_or(MdError::Truncated)?;
        }
        if !from.0.is_empty() {
            return Err(MdError::Trailing);
        }
        Ok(Self { session, sequence, count, end_of_session, messages })
    }

    /// The messages in order.
    pub fn messages(&self) -> impl Iterator<Item = Result<Message, MdError>> + use<'a> {
        let mut from = self.messages;
        (0..self.count).map(move |_| {
            let len = from.u16().ok_or(MdError::Truncated)?;
            Message::parse(from.slice(usize::from(len)).ok_or(MdError::Truncated)?)
        })
    }
}

/// A datagram under construction.
#[derive(Debug)]
pub struct Datagram {
    bytes: [u8; MAX_DATAGRAM],
    len: usize,
    count: u16,
}

impl Datagram {
    /// A datagram without messages: a heartbeat, when sent as it is.
    pub fn new(session: Session, sequence: u64) -> Self {
        let header = Writer::<HEADER>::default().put(&session).u64(sequence).u16(0);
        let mut bytes = [0; MAX_DATAGRAM];
        bytes[..HEADER].copy_from_slice(header.as_slice());
        Self { bytes, len: HEADER, count: 0 }
    }

    /// The datagram that ends a session before message `sequence`.
    pub fn end_of_session(session: Session, sequence: u64) -> Self {
        let mut end = Self::new(session, sequence);
        end.bytes[HEADER - 2..HEADER].copy_from_slice(&END_OF_SESSION.to_be_bytes());
        end
    }

    /// Appends a message; `false` when there is no room for it.
    pub fn push(&mut self, message: &Message) -> bool {
        let message = message.encode();
        let message = message.as_slice();
        if self.len + 2 + message.len() > MAX_DATAGRAM {
            return false;
        }
        let body = self.len + 2;
        self.bytes[self.len..body].copy_from_slice(&(message.len() as u16).to_be_bytes());
        self.len = body + message.len();
        self.bytes[body..self.len].copy_from_slice(message);
        self.count += 1;
        self.bytes[HEADER - 2..HEADER].copy_from_slice(&self.count.to_be_bytes());
        true
    }

    /// Number of messages.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// What goes on the wire.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What a datagram's sequence number means for its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Messages at the start of the datagram that were seen before.
    pub seen: u64,
    /// Messages that should have come before this datagram and did not.
    pub missed: u64,
    /// The datagram starts a session other than the last one; its numbers start at 1 again.
    pub new_session: bool,
}

/// Follows the sequence numbers of one line.
#[derive(Debug, Clone, Default)]
pub struct Sequencer {
    session: Option<Session>,
    /// Messages of this session that are accounted for.
    last: u64,
}

impl Sequencer {
    /// Takes note of a datagram. Its messages count as seen from now on, those missed before it as
    /// lost for good.
    pub fn accept(&mut self, packet: &Packet<'_>) -> Arrival {
        let new_session = self.session.is_some_and(|session| session != packet.session);
        if new_session {
            self.last = 0;
        }
        self.session = Some(packet.session);
        let count = u64::from(packet.count);
        let before = packet.sequence - 1;
        let arrival = Arrival {
            seen: self.last.saturating_sub(before).min(count),
            missed: before.saturating_sub(self.last),
            new_session,
        };
        self.last = self.last.max(before + count);
        arrival
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SESSION: Session = *b"S000000001";

    fn message() -> impl Strategy<Value = Message> {
        let side = prop_oneof![Just(Side::Buy), Just(Side::Sell)];
        let n = any::<u64>;
        let m = any::<u32>;
        let body = prop_oneof![
            (n(), side.clone(), m(), m()).prop_map(|(id, side, quantity, price)| Body::Add {
                id,
                side,
                quantity,
                price
            }),
            (n(), m(), n()).prop_map(|(id, quantity, trade)| Body::Execute { id, quantity, trade }),
            (n(), m()).prop_map(|(id, quantity)| Body::Cancel { id, quantity }),
            n().prop_map(|id| Body::Delete { id }),
            (n(), n(), m(), m()).prop_map(|(id, new_id, quantity, price)| Body::Replace {
                id,
                new_id,
                quantity,
                price
            }),
            (side, m(), m(), n()).prop_map(|(side, quantity, price, trade)| Body::Trade {
                side,
                quantity,
                price,
                trade
            }),
            prop::sample::select(&STATUSES[..]).prop_map(|(_, status)| Body::Status(status)),
        ];
        (any::<u16>(), n(), body).prop_map(|(symbol, timestamp_ns, body)| Message {
            symbol,
            timestamp_ns,
            body,
        })
    }

    proptest! {
        #[test]
        fn datagrams_round_trip(
            messages in prop::collection::vec(message(), 0..60),
            sequence in 1..u64::MAX - 100,
        ) {
            let mut datagram = Datagram::new(SESSION, sequence);
            let fitted: Vec<_> =
                messages.iter().copied().take_while(|message| datagram.push(message)).collect();
            prop_assert!(fitted.len() == messages.len() || fitted.len() >= 37);
            let packet = Packet::parse(datagram.as_slice()).unwrap();
            prop_assert_eq!(packet.session, SESSION);
            prop_assert_eq!(packet.sequence, sequence);
            prop_assert_eq!(packet.count, datagram.count());
            prop_assert!(!packet.end_of_session);
            let back: Vec<_> = packet.messages().map(Result::unwrap).collect();
            prop_assert_eq!(back, fitted);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::parse(&bytes);
            if let Ok(packet) = Packet::parse(&bytes) {
                prop_assert_eq!(packet.messages().count(), usize::from(packet.count));
            }
        }

        #[test]
        fn a_damaged_datagram_never_panics(
            messages in prop::collection::vec(message(), 1..10),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut datagram = Datagram::new(SESSION, 1);
            for message in &messages {
                datagram.push(message);
            }
            let mut bytes = datagram.as_slice().to_vec();
            let len = bytes.len();
            prop_assert!(Packet::parse(&bytes[..cut.index(len)]).is_err());
            bytes[at.index(len)] = byte;
            if let Ok(packet) = Packet::parse(&bytes) {
                packet.messages().for_each(drop);
            }
        }

        #[test]
        fn every_message_is_seen_once_or_missed_once(
            datagrams in prop::collection::vec((1..200u64, 0..5u16), 1..50),
        ) {
            let mut sequencer = Sequencer::default();
            let mut accounted = 0;
            let mut highest = 0;
            for (sequence, count) in datagrams {
                let arrival = sequencer.accept(&packet(SESSION, sequence, count));
                prop_assert!(arrival.seen <= u64::from(count));
                prop_assert!(arrival.seen == 0 || arrival.missed == 0);
                accounted += arrival.missed + u64::from(count) - arrival.seen;
                highest = highest.max(sequence - 1 + u64::from(count));
                prop_assert_eq!(accounted, highest);
            }
        }
    }

    fn packet(session: Session, sequence: u64, count: u16) -> Packet<'static> {
        Packet { session, sequence, count, end_of_session: false, messages: Reader(&[]) }
    }

    #[test]
    fn the_end_of_a_session_tells_what_was_missed_last() {
        let mut sequencer = Sequencer::default();
        sequencer.accept(&packet(SESSION, 1, 10));
        let end = Datagram::end_of_session(SESSION, 14);
        let end = Packet::parse(end.as_slice()).unwrap();
        assert!(end.end_of_session);
        assert_eq!(sequencer.accept(&end).missed, 3);
        assert_eq!(sequencer.accept(&end).missed, 0);
        let arrival = sequencer.accept(&packet(*b"S000000002", 1, 1));
        assert!(arrival.new_session);
        assert_eq!((arrival.seen, arrival.missed), (0, 0));
    }

    #[test]
    fn bad_datagrams_are_named() {
        let heartbeat = Datagram::new(SESSION, 1);
        let mut bytes = heartbeat.as_slice().to_vec();
        bytes.push(0);
        assert_eq!(Packet::parse(&bytes).unwrap_err(), MdError::Trailing);
        assert_eq!(Packet::parse(&bytes[..19]).unwrap_err(), MdError::Truncated);
        let zero = Datagram::new(SESSION, 0);
        assert_eq!(Packet::parse(zero.as_slice()).unwrap_err(), MdError::Sequence);
        assert_eq!(Message::parse(b"Z").unwrap_err(), MdError::Message);
    }
}
