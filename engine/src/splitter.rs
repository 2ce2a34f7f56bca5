//! Splits one market data line into one for each arm, by the [`Routes`].
//!
//! Each arm gets a line of its own, with its own session and gapless numbers, made of the messages of
//! the instruments it has. The splitter keeps all books, so that an arm that gets an instrument is
//! first told what rests in it, as a snapshot; one that loses it is told that its book is cleared.
//! Messages keep their timestamps; a datagram in is at most one datagram out per arm.
//!
//! Pure: time is an argument, and datagrams go to `send`.

use serde::{Deserialize, Serialize};

use crate::book::Book;
use crate::matching::OrderType;
use crate::md::{self, Body, Datagram, Message, Packet, Sequencer, Session, Status};
use crate::order_entry::{EnterOrder, HEARTBEAT_NS};
use crate::route::{Arm, Change, Routes};
use crate::trader::book_capacity;

/// Instruments whose flow may change in one step: each can take several datagrams, and a receive
/// buffer is not endless.
const CHANGES_AT_ONCE: usize = 8;

/// Time between two such steps, in ns.
const STEP_NS: u64 = 1_000_000;

/// What the splitter counted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitCounters {
    /// Datagrams received.
    pub datagrams: u64,
    /// Datagrams and messages that made no sense.
    pub malformed: u64,
    /// Messages received for the first time.
    pub messages: u64,
    /// Messages that were missed; all books began anew then.
    pub missed: u64,
    /// Messages about instruments that nobody owned, or whose owner was just lost.
    pub unrouted: u64,
    /// Instruments that went from one arm to the other, or that an arm got a copy of.
    pub handovers: u64,
}

#[derive(Debug)]
struct Instrument {
    book: Book,
    halted: bool,
}

/// The line to one arm.
#[derive(Debug)]
struct Line {
    session: Session,
    next_sequence: u64,
    pending: Datagram,
    /// Messages sent so far, in all sessions.
    messages: u64,
    last_send_ns: u64,
}

impl Line {
    fn new(arm: Arm, now_ns: u64) -> Self {
        let session = session(arm, now_ns);
        Self { session, next_sequence: 1, pending: Datagram::new(session, 1), messages: 0, last_send_ns: 0 }
    }

    fn push(&mut self, message: &Message, send: &mut impl FnMut(&[u8])) {
        if !self.pending.push(message) {
            self.flush(0, send);
            assert!(self.pending.push(message), "an empty datagram has room for any message");
        }
    }

    /// Sends what is pending; `now_ns` is when, as far as heartbeats are concerned.
    fn flush(&mut self, now_ns: u64, send: &mut impl FnMut(&[u8])) {
        let count = u64::from(self.pending.count());
        if count > 0 {
            send(self.pending.as_slice());
            self.next_sequence += count;
            self.messages += count;
            self.last_send_ns = self.last_send_ns.max(now_ns);
            self.pending = Datagram::new(self.session, self.next_sequence);
        }
    }
}

/// Market data in, market data for each arm out.
#[derive(Debug)]
pub struct Splitter {
    routes: Routes,
    /// Instrument `symbol` is at `symbol - 1`.
    instruments: Vec<Instrument>,
    sequencer: Sequencer,
    /// By arm.
    lines: [Line; 2],
    next_step_ns: u64,
    counters: SplitCounters,
}

impl Splitter {
    /// A splitter of the instruments 1 to `symbols`, with nobody to send to yet.
    pub fn new(symbols: u16, primary: Arm, now_ns: u64) -> Self {
        let instrument = |_| Instrument { book: Book::with_capacity(book_capacity(symbols)), halted: false };
        Self {
            routes: Routes::new(symbols, primary),
            instruments: (0..symbols).map(instrument).collect(),
            sequencer: Sequencer::default(),
            lines: Arm::BOTH.map(|arm| Line::new(arm, now_ns)),
            next_step_ns: 0,
            counters: SplitCounters::default(),
        }
    }

    /// The routes, to look at.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// The routes, to change weight, shadow and primary.
    pub fn routes_mut(&mut self) -> &mut Routes {
        &mut self.routes
    }

    /// What was counted so far.
    pub fn counters(&self) -> SplitCounters {
        self.counters
    }

    /// Number of messages sent to `arm`.
    pub fn messages(&self, arm: Arm) -> u64 {
        self.lines[arm as usize].messages
    }

    /// Notes that an arm came up or went down. One that comes up gets a line with a new session.
    pub fn set_up(&mut self, arm: Arm, up: bool, now_ns: u64) {
        self.routes.set_up(arm, up);
        let line = &mut self.lines[arm as usize];
        *line = Line { messages: line.messages, ..Line::new(arm, now_ns) };
        self.next_step_ns = 0;
    }

    /// Takes a datagram and sends each arm its part of it.
    pub fn on_datagram(&mut self, datagram: &[u8], now_ns: u64, mut send: impl FnMut(Arm, &[u8])) {
        self.counters.datagrams += 1;
        let Ok(packet) = Packet::parse(datagram) else {
            self.counters.malformed += 1;
            return;
        };
        let arrival = self.sequencer.accept(&packet);
        self.counters.missed += arrival.missed;
        if arrival.missed > 0 || arrival.new_session {
            self.begin_anew(now_ns, &mut send);
        }
        for message in packet.messages().skip(arrival.seen as usize) {
            let Ok(message) = message else {
                self.counters.malformed += 1;
                continue;
            };
            self.counters.messages += 1;
            self.apply(&message);
            let (gets, owned) = self.routes.on_message(message.symbol, message.timestamp_ns);
            self.counters.unrouted += u64::from(!owned);
            for arm in Arm::BOTH {
                if gets[arm as usize] {
                    self.lines[arm as usize].push(&message, &mut |bytes| send(arm, bytes));
                }
            }
        }
        self.flush(now_ns, &mut send);
        if packet.end_of_session {
            for arm in Arm::BOTH {
                let line = &self.lines[arm as usize];
                send(arm, Datagram::end_of_session(line.session, line.next_sequence).as_slice());
            }
        }
    }

    /// Does what is due at `now_ns`: ends weights, moves instruments, sends heartbeats. Call it about
    /// every ms.
    pub fn on_time(&mut self, now_ns: u64, mut send: impl FnMut(Arm, &[u8])) {
        if self.routes.on_time(now_ns) {
            self.next_step_ns = 0;
        }
        if now_ns >= self.next_step_ns {
            for _ in 0..CHANGES_AT_ONCE {
                let Some(change) = self.routes.next_change() else {
                    break;
                };
                self.hand_over(change, now_ns, &mut send);
                self.next_step_ns = now_ns + STEP_NS;
            }
            self.flush(now_ns, &mut send);
        }
        for arm in Arm::BOTH {
            let line = &mut self.lines[arm as usize];
            if self.routes.is_up(arm) && now_ns.saturating_sub(line.last_send_ns) >= HEARTBEAT_NS {
                line.last_send_ns = now_ns;
                send(arm, line.pending.as_slice());
            }
        }
    }

    /// How many shares of `order` would trade against the market as it is, and at which price on
    /// average, in units of 1/10000 of the currency.
    pub fn tradable(&self, order: &EnterOrder) -> (u32, u32) {
        let Some(instrument) = self.instruments.get(usize::from(order.symbol).wrapping_sub(1)) else {
            return (0, 0);
        };
        let mut left = order.quantity;
        let mut worth = 0;
        for level in instrument.book.depth(order.side.opposite()) {
            let reaches =
                order.order_type == OrderType::Market || order.side.crosses(order.price, level.price);
            if left == 0 || !reaches {
                break;
            }
            let quantity = u64::from(left).min(level.quantity);
            worth += quantity * u64::from(level.price);
            left -= quantity as u32;
        }
        let quantity = order.quantity - left;
        (quantity, worth.checked_div(u64::from(quantity)).unwrap_or(0) as u32)
    }

    /// The messages are not to be had any more: all books are empty, and fill with what comes.
    fn begin_anew(&mut self, now_ns: u64, send: &mut impl FnMut(Arm, &[u8])) {
        for (symbol, instrument) in (1..).zip(&mut self.instruments) {
            instrument.book.clear();
            // Timestamp 0: it is no message of the market, so it must not move the routes on.
            let (gets, _) = self.routes.on_message(symbol, 0);
            for arm in Arm::BOTH.into_iter().filter(|arm| gets[*arm as usize]) {
                for body in [Body::Status(Status::Cleared), Body::Status(Status::Ready)] {
                    let message = Message { symbol, timestamp_ns: now_ns, body };
                    self.lines[arm as usize].push(&message, &mut |bytes| send(arm, bytes));
                }
            }
        }
    }

    fn apply(&mut self, message: &Message) {
        let Some(instrument) = self.instruments.get_mut(usize::from(message.symbol).wrapping_sub(1)) else {
            return;
        };
        // After a gap there are messages about orders that are not there.
        let _ = message.body.apply(&mut instrument.book);
        match message.body {
            Body::Status(Status::Halted) => instrument.halted = true,
            Body::Status(Status::Trading) => instrument.halted = false,
            _ => {}
        }
    }

    fn hand_over(&mut self, change: Change, now_ns: u64, send: &mut impl FnMut(Arm, &[u8])) {
        let symbol = change.symbol;
        let instrument = &self.instruments[usize::from(symbol) - 1];
        for arm in Arm::BOTH {
            let line = &mut self.lines[arm as usize];
            let mut push = |body| {
                line.push(&Message { symbol, timestamp_ns: now_ns, body }, &mut |bytes| send(arm, bytes));
            };
            if change.gains[arm as usize] {
                self.counters.handovers += 1;
                let halted = if instrument.halted { Status::Halted } else { Status::Trading };
                push(Body::Status(halted));
                md::snapshot(&instrument.book).for_each(push);
            } else if change.loses[arm as usize] {
                push(Body::Status(Status::Cleared));
            }
        }
    }

    fn flush(&mut self, now_ns: u64, send: &mut impl FnMut(Arm, &[u8])) {
        for arm in Arm::BOTH {
            self.lines[arm as usize].flush(now_ns, &mut |bytes| send(arm, bytes));
        }
    }
}

/// A name that no earlier line to this arm had since the machine was started.
fn session(arm: Arm, now_ns: u64) -> Session {
    let mut session = *b"X000000000";
    session[0] = arm.name().as_bytes()[0].to_ascii_uppercase();
    let digits = format!("{:09}", now_ns / 1_000 % 1_000_000_000);
    session[1..].copy_from_slice(digits.as_bytes());
    session
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Flow;
    use crate::risk::Limits;
    use crate::route::{FULL, Verdict};
    use crate::trader::Trader;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const SYMBOLS: u16 = 10;

    const LIMITS: Limits = Limits {
        quantity: 1_000,
        notional: u64::MAX,
        collar_bps: 10_000,
        rate: 1_000_000,
        position: u32::MAX,
        data_age_ns: u64::MAX,
    };

    /// A splitter between a generated market and two real traders, in simulated time.
    struct World {
        flow: Flow,
        sequence: u64,
        now_ns: u64,
        splitter: Splitter,
        traders: [Trader; 2],
        /// Datagrams an arm has not taken yet.
        inbox: [Vec<Vec<u8>>; 2],
        /// (arm, order) as they come out of the traders.
        orders: Vec<(Arm, EnterOrder)>,
    }

    impl World {
        fn new(seed: u64) -> Self {
            let trader = || Trader::new(SYMBOLS, LIMITS, 1 << 16);
            let mut world = Self {
                flow: Flow::new(seed, 10_000.0, SYMBOLS),
                sequence: 0,
                now_ns: 1_000,
                splitter: Splitter::new(SYMBOLS, Arm::Blue, 1_000),
                traders: [trader(), trader()],
                inbox: [Vec::new(), Vec::new()],
                orders: Vec::new(),
            };
            for arm in Arm::BOTH {
                world.splitter.set_up(arm, true, world.now_ns);
            }
            world
        }

        fn tick(&mut self) {
            self.sequence += 1;
            self.now_ns += STEP_NS / 3;
            let planned = self.flow.next().unwrap();
            let mut datagram = Datagram::new(*b"0000000001", self.sequence);
            let message = Message { symbol: planned.symbol, timestamp_ns: self.now_ns, body: planned.body };
            assert!(datagram.push(&message));
            let Self { splitter, inbox, now_ns, .. } = self;
            splitter.on_datagram(datagram.as_slice(), *now_ns, |arm, bytes| {
                inbox[arm as usize].push(bytes.to_vec());
            });
            splitter.on_time(*now_ns, |arm, bytes| inbox[arm as usize].push(bytes.to_vec()));
        }

        /// Lets an arm take what is in its inbox.
        fn take(&mut self, arm: Arm) {
            for datagram in std::mem::take(&mut self.inbox[arm as usize]) {
                let trader = &mut self.traders[arm as usize];
                trader.on_datagram(&datagram);
                while let Some(order) = trader.next_order(self.now_ns) {
                    self.orders.push((arm, order));
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// One trader alone and two behind a splitter, however slow they are and however their
        /// weights move, make the same decisions, each once.
        #[test]
        fn moving_weights_neither_lose_nor_double_a_decision(
            seed in any::<u64>(),
            steps in prop::collection::vec((1..40usize, 0..=FULL, 0..4u8), 1..40),
        ) {
            let mut world = World::new(seed);
            let mut alone = Trader::new(SYMBOLS, LIMITS, 1 << 16);
            let mut same = Flow::new(seed, 10_000.0, SYMBOLS);
            // All instruments are handed to blue before the first message.
            for _ in 0..4 {
                world.now_ns += STEP_NS;
                let World { splitter, inbox, now_ns, .. } = &mut world;
                splitter.on_time(*now_ns, |arm, bytes| inbox[arm as usize].push(bytes.to_vec()));
            }
            let mut expected = HashMap::new();
            for (ticks, weight, what) in steps {
                match what {
                    0 | 1 => world.splitter.routes_mut().set_weight(weight, u64::MAX),
                    2 => world.splitter.routes_mut().set_shadow(weight > FULL / 2),
                    // A slow green: it takes nothing this time.
                    _ => {}
                }
                for _ in 0..ticks {
                    world.tick();
                    let planned = same.next().unwrap();
                    let mut datagram = Datagram::new(*b"0000000001", world.sequence);
                    let (symbol, timestamp_ns) = (planned.symbol, world.now_ns);
                    assert!(datagram.push(&Message { symbol, timestamp_ns, body: planned.body }));
                    alone.on_datagram(datagram.as_slice());
                    while let Some(order) = alone.next_order(world.now_ns) {
                        expected.insert((symbol, timestamp_ns), (order.side, order.price, order.quantity));
                    }
                    world.take(Arm::Blue);
                }
                if what < 3 {
                    world.take(Arm::Green);
                }
            }
            world.take(Arm::Green);
            let mut live = HashMap::new();
            for (arm, order) in &world.orders {
                let key = (order.symbol, order.cause_ns);
                let decision = (order.side, order.price, order.quantity);
                match world.splitter.routes().judge(*arm, order.symbol, order.cause_ns) {
                    Verdict::Live => prop_assert_eq!(live.insert(key, decision), None, "twice"),
                    // A shadow decides as the other one does.
                    Verdict::Paper => prop_assert_eq!(expected.get(&key), Some(&decision)),
                    Verdict::Late => panic!("too few changes to forget"),
                }
            }
            prop_assert_eq!(live, expected);
            for trader in &world.traders {
                let counters = trader.counters();
                prop_assert_eq!((counters.missed, counters.duplicates), (0, 0));
                prop_assert_eq!((counters.unknown_orders, counters.book_errors), (0, 0));
            }
        }
    }

    #[test]
    fn an_arm_that_comes_back_gets_a_new_session_and_everything_again() {
        let mut world = World::new(1);
        (0..500).for_each(|_| world.tick());
        world.take(Arm::Blue);
        world.splitter.set_up(Arm::Blue, false, world.now_ns);
        let unrouted = world.splitter.counters().unrouted;
        world.tick();
        assert_eq!(world.splitter.counters().unrouted, unrouted + 1);
        world.splitter.set_up(Arm::Blue, true, world.now_ns + 1_000);
        world.traders[0] = Trader::new(SYMBOLS, LIMITS, 1 << 16);
        (0..500).for_each(|_| world.tick());
        world.take(Arm::Blue);
        assert_eq!(world.traders[0].counters().missed, 0);
        for symbol in 1..=SYMBOLS {
            let (here, there) = (world.flow.book(symbol).unwrap(), world.traders[0].book(symbol).unwrap());
            for side in [crate::book::Side::Buy, crate::book::Side::Sell] {
                assert!(here.orders(side).eq(there.orders(side)), "book {symbol}");
            }
        }
    }

    #[test]
    fn a_gap_before_the_router_begins_all_books_anew() {
        let mut world = World::new(2);
        (0..100).for_each(|_| world.tick());
        world.sequence += 5;
        (0..100).for_each(|_| world.tick());
        world.take(Arm::Blue);
        assert_eq!(world.splitter.counters().missed, 5);
        let counters = world.traders[0].counters();
        assert_eq!((counters.missed, counters.book_errors), (0, 0));
    }

    #[test]
    fn paper_orders_trade_against_the_market_as_it_is() {
        let mut splitter = Splitter::new(1, Arm::Blue, 0);
        for (id, quantity, price) in [(1, 100, 500), (2, 100, 600)] {
            let body = Body::Add { id, side: crate::book::Side::Sell, quantity, price };
            splitter.apply(&Message { symbol: 1, timestamp_ns: 0, body });
        }
        let order = |quantity, price, order_type| EnterOrder {
            reference: 1,
            side: crate::book::Side::Buy,
            quantity,
            symbol: 1,
            price,
            order_type,
            cause_ns: 0,
        };
        assert_eq!(splitter.tradable(&order(150, 600, OrderType::Ioc)), (150, 533));
        assert_eq!(splitter.tradable(&order(150, 500, OrderType::Ioc)), (100, 500));
        assert_eq!(splitter.tradable(&order(300, 0, OrderType::Market)), (200, 550));
        assert_eq!(splitter.tradable(&order(1, 499, OrderType::Ioc)), (0, 0));
        assert_eq!(splitter.tradable(&EnterOrder { symbol: 2, ..order(1, 1, OrderType::Ioc) }), (0, 0));
    }

    #[test]
    fn silence_is_filled_with_heartbeats() {
        let mut world = World::new(3);
        world.now_ns += 10 * HEARTBEAT_NS;
        let mut sent = Vec::new();
        for _ in 0..3 {
            world.splitter.on_time(world.now_ns, |arm, bytes| sent.push((arm, bytes.to_vec())));
        }
        let heartbeats = sent.iter().filter(|(_, bytes)| Packet::parse(bytes).unwrap().count == 0);
        assert_eq!(heartbeats.map(|(arm, _)| *arm).collect::<Vec<_>>(), [Arm::Green]);
    }
}
