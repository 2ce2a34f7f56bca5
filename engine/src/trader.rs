//! The engine without its sockets and clocks: market data in, orders out.
//!
//! Sequence check -> limit order book -> strategy -> pre-trade risk -> order. Time is an argument,
//! so the same datagrams and responses at the same times give the same orders. Nothing here
//! allocates after [`Trader::new`].
//!
//! A gap makes the books unknowable when the missed messages do not come after all. They are
//! emptied then and filled by what is added from there on: subsets of the true books, which are
//! never crossed and never hold an order that is gone.

use crate::book::{Book, BookError, Side};
use crate::matching::OrderType;
use crate::md::{Body, Message, Packet, Sequencer, Status};
use crate::open_order::{OpenOrder, OpenOrders};
use crate::order_entry::{EnterOrder, Response, Update};
use crate::report::EngineCounters;
use crate::risk::{Denied, Limits, Quote, Risk};
use crate::strategy::Imbalance;

/// Orders that all books hold together, when there are few instruments …
const BOOK_ORDERS: usize = 64 * 1024;

/// … and the fewest that each holds, when there are many.
const BOOK_ORDERS_MIN: usize = 1024;

/// Orders that each of the books of `symbols` instruments holds.
#[must_use]
pub fn book_capacity(symbols: u16) -> usize {
    (BOOK_ORDERS / usize::from(symbols.max(1))).max(BOOK_ORDERS_MIN)
}

/// What a datagram was.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// The publisher's stamp of the first new message, in ns; `None` without new messages.
    pub published_ns: Option<u64>,
    /// The market data session is over.
    pub end_of_session: bool,
}

/// The trading logic for the instruments 1 to some number.
#[derive(Debug)]
pub struct Trader {
    /// Instrument `symbol` is at `symbol - 1`.
    instruments: Vec<Instrument>,
    /// Instruments to decide about, each once.
    touched: Vec<u16>,
    sequencer: Sequencer,
    risk: Risk,
    open: OpenOrders,
    next_reference: u32,
    has_session: bool,
    counters: EngineCounters,
    /// Orders denied, by `Denied as usize`.
    denied: [u64; Denied::ALL.len()],
}

#[derive(Debug)]
struct Instrument {
    book: Book,
    strategy: Imbalance,
    /// Between [`Status::Cleared`] and [`Status::Ready`], and while halted, nothing is decided.
    rebuilding: bool,
    halted: bool,
    touched: bool,
    /// Stamp of the last message, in ns.
    published_ns: u64,
}

impl Trader {
    /// A trader of the instruments 1 to `symbols` with at most `open_orders` unfinished orders.
    pub fn new(symbols: u16, limits: Limits, open_orders: usize) -> Self {
        let instrument = || Instrument {
            book: Book::with_capacity(book_capacity(symbols)),
            strategy: Imbalance::default(),
            rebuilding: false,
            halted: false,
            touched: false,
            published_ns: 0,
        };
        Self {
            instruments: (0..symbols).map(|_| instrument()).collect(),
            touched: Vec::with_capacity(usize::from(symbols)),
            sequencer: Sequencer::default(),
            risk: Risk::new(limits, symbols),
            open: OpenOrders::new(open_orders),
            next_reference: 1,
            has_session: true,
            counters: EngineCounters::default(),
            denied: [0; Denied::ALL.len()],
        }
    }

    /// Takes a datagram. What it leads to is asked for with [`Trader::next_order`].
    pub fn on_datagram(&mut self, datagram: &[u8]) -> Arrived {
        self.counters.datagrams += 1;
        let Ok(packet) = Packet::parse(datagram) else {
            self.counters.malformed_datagrams += 1;
            return Arrived::default();
        };
        let arrival = self.sequencer.accept(&packet);
        self.counters.duplicates += arrival.seen;
        if arrival.missed > 0 {
            self.counters.gaps += 1;
            self.counters.missed += arrival.missed;
        }
        if arrival.missed > 0 || arrival.new_session {
            for instrument in &mut self.instruments {
                instrument.book.clear();
            }
        }
        let mut arrived = Arrived { end_of_session: packet.end_of_session, ..Arrived::default() };
        if packet.count == 0 {
            self.counters.heartbeats += 1;
        }
        for message in packet.messages().skip(arrival.seen as usize) {
            match message {
                Ok(message) => {
                    self.counters.ticks += 1;
                    arrived.published_ns.get_or_insert(message.timestamp_ns);
                    self.apply(&message);
                }
                Err(_) => self.counters.malformed_messages += 1,
            }
        }
        arrived
    }

    /// The next order to send because of the datagrams so far, received at `now_ns` (monotonic).
    pub fn next_order(&mut self, now_ns: u64) -> Option<EnterOrder> {
        while let Some(symbol) = self.touched.pop() {
            self.instruments[usize::from(symbol) - 1].touched = false;
            if let Some(order) = self.decide(symbol, now_ns) {
                return Some(order);
            }
        }
        None
    }

    /// Notes when the send call of an order of [`Trader::next_order`] started.
    pub fn sent(&mut self, reference: u32, sent_ns: u64) {
        self.counters.orders += 1;
        if let Some(order) = self.open.order(reference) {
            order.sent_ns = sent_ns;
        }
    }

    /// Takes a response that was received at `now_ns`. Returns the round trip in ns when it is the
    /// ack of an order: accepted or rejected.
    pub fn on_response(&mut self, response: &Response, now_ns: u64) -> Option<u64> {
        let &Response::Order { reference, update, .. } = response else {
            self.counters.unexpected_responses += u64::from(*response != Response::Heartbeat);
            return None;
        };
        let Some(order) = self.open.order(reference) else {
            self.counters.unexpected_responses += 1;
            return None;
        };
        let OpenOrder { symbol, side, .. } = *order;
        let is_ack = matches!(update, Update::Accepted | Update::Rejected(_));
        let taken = match update {
            Update::Accepted => 0,
            Update::Executed { quantity, .. } | Update::Canceled { quantity, .. } => quantity,
            // It replaces nothing, so this cannot be; the comparison below says so.
            Update::Replaced { .. } => u32::MAX,
            Update::Rejected(_) => order.open,
        };
        // The ack comes first and once, and no more leaves an order than was open.
        if is_ack == order.acked || taken > order.open {
            self.counters.unexpected_responses += 1;
            return None;
        }
        order.acked = true;
        order.open -= taken;
        let round_trip_ns = now_ns.saturating_sub(order.sent_ns);
        if order.open == 0 {
            self.open.remove(reference);
        }
        match update {
            Update::Accepted | Update::Replaced { .. } => self.counters.accepted += 1,
            Update::Executed { quantity, .. } => {
                self.counters.fills += 1;
                self.counters.filled_shares += u64::from(quantity);
                self.risk.filled(symbol, side, quantity);
            }
            Update::Canceled { quantity, .. } => {
                self.counters.canceled += 1;
                self.risk.released(symbol, side, quantity);
            }
            Update::Rejected(_) => {
                self.counters.rejected += 1;
                self.risk.released(symbol, side, taken);
            }
        }
        is_ack.then_some(round_trip_ns)
    }

    /// The session with the exchange is gone: no order can leave.
    pub fn on_disconnect(&mut self) {
        self.has_session = false;
        self.counters.disconnects += 1;
    }

    /// There is a session again, in which orders up to `last_reference` have arrived; what the
    /// exchange has to say about those follows. Orders above it never arrived.
    pub fn on_reconnect(&mut self, last_reference: u32) {
        self.has_session = true;
        let Self { open, risk, counters, .. } = self;
        open.remove_above(last_reference, |order| {
            counters.never_arrived += 1;
            risk.released(order.symbol, order.side, order.open);
        });
    }

    /// Sends no further orders, or sends some again.
    pub fn set_killed(&mut self, killed: bool) {
        self.risk.set_killed(killed);
    }

    /// Number of orders that are not finished.
    pub fn open_orders(&self) -> usize {
        self.open.len()
    }

    /// The book of an instrument as the market data says.
    pub fn book(&self, symbol: u16) -> Option<&Book> {
        self.instruments.get(usize::from(symbol).checked_sub(1)?).map(|instrument| &instrument.book)
    }

    /// What was counted so far.
    pub fn counters(&self) -> EngineCounters {
        let mut counters = self.counters.clone();
        counters.denied = Denied::ALL
            .iter()
            .map(|&(reason, name)| (name.to_owned(), self.denied[reason as usize]))
            .collect();
        counters.open_orders = self.open.len() as u64;
        counters.position_shares = self.risk.position();
        counters
    }

    fn apply(&mut self, message: &Message) {
        let at = usize::from(message.symbol).wrapping_sub(1);
        let Some(instrument) = self.instruments.get_mut(at) else {
            self.counters.other_symbols += 1;
            return;
        };
        match message.body.apply(&mut instrument.book) {
            Ok(()) => {}
            Err(BookError::UnknownId) => self.counters.unknown_orders += 1,
            Err(_) => self.counters.book_errors += 1,
        }
        instrument.published_ns = message.timestamp_ns;
        match message.body {
            Body::Status(Status::Halted) => instrument.halted = true,
            Body::Status(Status::Trading) => instrument.halted = false,
            Body::Status(Status::Cleared) => instrument.rebuilding = true,
            Body::Status(Status::Ready) => {
                instrument.rebuilding = false;
                // A snapshot is no news.
                let _ = instrument.strategy.decide(&instrument.book);
            }
            _ => {}
        }
        if !instrument.touched {
            instrument.touched = true;
            self.touched.push(message.symbol);
        }
    }

    fn decide(&mut self, symbol: u16, now_ns: u64) -> Option<EnterOrder> {
        let instrument = &mut self.instruments[usize::from(symbol) - 1];
        if instrument.rebuilding || instrument.halted {
            return None;
        }
        let intent = instrument.strategy.decide(&instrument.book)?;
        let published_ns = instrument.published_ns;
        let order = EnterOrder {
            reference: self.next_reference,
            side: intent.side,
            quantity: intent.quantity,
            symbol,
            price: intent.price,
            order_type: OrderType::Ioc,
            cause_ns: published_ns,
        };
        let quote = Quote {
            middle: middle(&instrument.book),
            // A stamp of the future is another machine's clock, which tells nothing.
            age_ns: Some(now_ns.saturating_sub(published_ns)),
        };
        let allowed = if !self.has_session {
            Err(Denied::NoSession)
        } else if self.open.has_room(order.reference) {
            self.risk.check(&order, quote, now_ns)
        } else {
            Err(Denied::OpenOrders)
        };
        if let Err(reason) = allowed {
            self.denied[reason as usize] += 1;
            // A place that an order keeps for ever must not stop all that come.
            self.next_reference += u32::from(reason == Denied::OpenOrders);
            return None;
        }
        self.next_reference += 1;
        self.open.insert(OpenOrder {
            reference: order.reference,
            symbol,
            side: order.side,
            open: order.quantity,
            sent_ns: now_ns,
            acked: false,
        });
        Some(order)
    }
}

/// Middle of the best bid and ask, in units of 1/10000 of the currency.
fn middle(book: &Book) -> Option<u32> {
    let bid = book.best(Side::Buy)?;
    let ask = book.best(Side::Sell)?;
    Some(bid.price.midpoint(ask.price))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Flow;
    use crate::md::Datagram;
    use crate::order_entry::Reject;
    use proptest::prelude::*;

    const SESSION: [u8; 10] = *b"TEST000001";

    const LIMITS: Limits = Limits {
        quantity: 1_000,
        notional: 1_000_000_000,
        collar_bps: 500,
        rate: 1_000,
        position: 100_000,
        data_age_ns: 1_000_000_000,
    };

    /// Takes a datagram and returns the order it leads to.
    fn take(trader: &mut Trader, datagram: &Datagram, now_ns: u64) -> Option<EnterOrder> {
        trader.on_datagram(datagram.as_slice());
        let order = trader.next_order(now_ns);
        assert_eq!(trader.next_order(now_ns), None, "one instrument, one order");
        order
    }

    fn datagram(sequence: u64, body: Body) -> Datagram {
        let mut datagram = Datagram::new(SESSION, sequence);
        assert!(datagram.push(&Message { symbol: 1, timestamp_ns: sequence, body }));
        datagram
    }

    fn update(reference: u32, update: Update) -> Response {
        Response::Order { sequence: 1, timestamp_ns: 0, reference, update }
    }

    /// Runs a flow through a trader, leaving out the messages `lost` says; orders fill at once.
    fn run(seed: u64, lost: &[bool]) -> (Vec<EnterOrder>, EngineCounters) {
        let mut trader = Trader::new(1, LIMITS, 64);
        let mut orders = Vec::new();
        for (sequence, planned) in (1..).zip(Flow::new(seed, 1_000.0, 1).take(lost.len())) {
            if lost[sequence as usize - 1] {
                continue;
            }
            let now = sequence * 1_000_000;
            let order = take(&mut trader, &datagram(sequence, planned.body), now);
            let book = trader.book(1).unwrap();
            if let (Some(bid), Some(ask)) = (book.best(Side::Buy), book.best(Side::Sell)) {
                assert!(bid.price < ask.price, "crossed");
            }
            if let Some(order) = order {
                assert_eq!(order.cause_ns, sequence);
                orders.push(order);
                trader.sent(order.reference, now + 5);
                let accepted = update(order.reference, Update::Accepted);
                assert_eq!(trader.on_response(&accepted, now + 12), Some(7));
                let executed = Update::Executed { quantity: order.quantity, price: order.price, trade: 1 };
                let executed = update(order.reference, executed);
                assert_eq!(trader.on_response(&executed, now + 20), None);
            }
        }
        let end = Datagram::end_of_session(SESSION, lost.len() as u64 + 1);
        assert!(trader.on_datagram(end.as_slice()).end_of_session);
        (orders, trader.counters())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_message_is_a_tick_or_missed(
            seed in any::<u64>(),
            lost in prop::collection::vec(prop::bool::weighted(0.02), 1..2_000),
        ) {
            let (orders, counters) = run(seed, &lost);
            let missed = lost.iter().filter(|lost| **lost).count() as u64;
            prop_assert_eq!(counters.missed, missed);
            prop_assert_eq!(counters.ticks + counters.missed, lost.len() as u64);
            prop_assert_eq!(counters.book_errors, 0, "a partial book is still consistent");
            prop_assert_eq!(missed > 0, counters.gaps > 0);
            prop_assert!(missed > 0 || counters.unknown_orders == 0);
            prop_assert_eq!(counters.accepted, counters.orders);
            prop_assert_eq!(counters.orders, orders.len() as u64);
            prop_assert_eq!((counters.open_orders, counters.unexpected_responses), (0, 0));
            let again = run(seed, &lost);
            prop_assert_eq!(again.0, orders, "same input, same orders");
        }

        #[test]
        fn arbitrary_datagrams_never_panic(
            datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20),
        ) {
            let mut trader = Trader::new(1, LIMITS, 64);
            for (at, mut bytes) in datagrams.into_iter().enumerate() {
                if at % 2 == 0 && bytes.len() > 20 {
                    // A believable header gets the bytes further.
                    bytes[..18].copy_from_slice(Datagram::new(SESSION, 1).as_slice()[..18].as_ref());
                }
                trader.on_datagram(&bytes);
                while trader.next_order(0).is_some() {}
            }
        }
    }

    /// A trader with one order out for 100 shares.
    fn with_open_order() -> (Trader, EnterOrder) {
        let mut trader = Trader::new(1, LIMITS, 64);
        for (sequence, (side, quantity, price)) in
            (1..).zip([(Side::Sell, 100, 10_100), (Side::Buy, 900, 10_000)])
        {
            let body = Body::Add { id: sequence, side, quantity, price };
            if let Some(order) = take(&mut trader, &datagram(sequence, body), 0) {
                trader.sent(order.reference, 0);
                return (trader, order);
            }
        }
        panic!("an imbalance must lead to an order");
    }

    #[test]
    fn responses_that_cannot_be_are_counted_and_change_nothing() {
        let (mut trader, order) = with_open_order();
        let executed = |quantity| Update::Executed { quantity, price: order.price, trade: 1 };
        let strange = [
            Response::LoggedIn { session: 1, next_sequence: 1, last_reference: 0 },
            update(99, Update::Accepted),
            update(order.reference, Update::Replaced { old_reference: 1 }),
            update(order.reference, executed(1)),
        ];
        for response in &strange {
            assert_eq!(trader.on_response(response, 0), None);
        }
        assert_eq!(trader.on_response(&update(order.reference, Update::Accepted), 3), Some(3));
        for impossible in [Update::Accepted, Update::Rejected(Reject::Symbol), executed(101)] {
            let response = update(order.reference, impossible);
            assert_eq!(trader.on_response(&response, 0), None);
        }
        let counters = trader.counters();
        assert_eq!(counters.unexpected_responses, 7);
        assert_eq!((counters.open_orders, counters.accepted), (1, 1));
    }

    #[test]
    fn a_rejected_order_is_finished_and_a_killed_trader_sends_none() {
        let (mut trader, order) = with_open_order();
        let rejected = Update::Rejected(Reject::Symbol);
        trader.on_response(&update(order.reference, rejected), 0);
        assert_eq!(trader.open_orders(), 0);
        trader.set_killed(true);
        take(&mut trader, &datagram(3, Body::Delete { id: 2 }), 0);
        let add = Body::Add { id: 9, side: Side::Buy, quantity: 900, price: 10_000 };
        assert_eq!(take(&mut trader, &datagram(4, add), 0), None);
        let counters = trader.counters();
        assert_eq!((counters.rejected, counters.denied["kill_switch"]), (1, 1));
    }

    #[test]
    fn nothing_is_decided_on_a_snapshot_or_in_a_halt() {
        let (trader, _) = with_open_order();
        let mut other = Trader::new(1, LIMITS, 64);
        let snapshot: Vec<_> = crate::md::snapshot(trader.book(1).unwrap()).collect();
        let mut sequence = 0;
        let mut take = |body| {
            sequence += 1;
            take(&mut other, &datagram(sequence, body), 0)
        };
        for body in snapshot {
            assert_eq!(take(body), None, "{body:?}");
        }
        let add = |id, quantity| Body::Add { id, side: Side::Buy, quantity, price: 10_000 };
        assert_eq!(take(Body::Status(Status::Halted)), None);
        assert_eq!(take(add(7, 1)), None);
        assert!(take(Body::Status(Status::Trading)).is_some(), "it is news by now");
        assert!(take(add(8, 1)).is_some());
    }

    #[test]
    fn orders_that_never_arrived_are_finished_by_a_new_session() {
        let (mut trader, order) = with_open_order();
        trader.on_disconnect();
        let more = |id| Body::Add { id, side: Side::Buy, quantity: 1, price: 10_000 };
        assert_eq!(take(&mut trader, &datagram(3, more(3)), 0), None);
        assert_eq!(trader.counters().denied["no_session"], 1);
        trader.on_reconnect(order.reference);
        assert_eq!(trader.open_orders(), 1, "it did arrive");
        trader.on_reconnect(order.reference - 1);
        let counters = trader.counters();
        assert_eq!((counters.open_orders, counters.never_arrived, counters.disconnects), (0, 1, 1));
        assert!(take(&mut trader, &datagram(4, more(4)), 0).is_some());
    }

    #[test]
    fn old_data_pauses_and_each_instrument_decides_for_itself() {
        let mut trader = Trader::new(2, LIMITS, 64);
        let mut both = Datagram::new(SESSION, 1);
        for symbol in [1, 2] {
            for (id, side, quantity, price) in [(1, Side::Sell, 100, 10_100), (2, Side::Buy, 900, 10_000)] {
                let body = Body::Add { id, side, quantity, price };
                assert!(both.push(&Message { symbol, timestamp_ns: 7, body }));
            }
        }
        trader.on_datagram(both.as_slice());
        let mut symbols = [trader.next_order(8).unwrap().symbol, trader.next_order(8).unwrap().symbol];
        symbols.sort_unstable();
        assert_eq!((symbols, trader.next_order(8)), ([1, 2], None));
        let add = Body::Add { id: 3, side: Side::Buy, quantity: 900, price: 10_000 };
        assert_eq!(take(&mut trader, &datagram(5, add), 6 + LIMITS.data_age_ns), None);
        assert_eq!(trader.counters().denied["stale_data"], 1);
    }
}
