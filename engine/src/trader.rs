//! The engine without its sockets and clocks: market data in, orders out.
//!
//! Sequence check -> limit order book -> strategy -> pre-trade risk -> order. Time is an argument,
//! so the same datagrams and responses at the same times give the same orders. Nothing here
//! allocates after [`Trader::new`].
//!
//! A gap makes the book unknowable, since the missed messages cannot be asked for again. It is
//! emptied then and filled by what is added from there on: a subset of the true book, which is
//! never crossed and never holds an order that is gone.

use crate::book::{Book, BookError, Order, Side};
use crate::matching::TimeInForce;
use crate::md::{Body, Message, Packet, Sequencer};
use crate::open_order::{OpenOrder, OpenOrders};
use crate::order_entry::{EnterOrder, Response, Update};
use crate::report::EngineCounters;
use crate::risk::{Denied, Limits, Risk};
use crate::strategy::Imbalance;

/// Orders the book holds.
const BOOK_ORDERS: usize = 64 * 1024;

/// What a datagram led to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// The publisher's stamp of the first message, in ns; `None` without messages.
    pub published_ns: Option<u64>,
    /// The order to send now.
    pub order: Option<EnterOrder>,
    /// The market data session is over.
    pub end_of_session: bool,
}

/// The trading logic for one symbol.
#[derive(Debug)]
pub struct Trader {
    symbol: u16,
    sequencer: Sequencer,
    book: Book,
    strategy: Imbalance,
    risk: Risk,
    open: OpenOrders,
    next_reference: u32,
    counters: EngineCounters,
    /// Orders denied, by `Denied as usize`.
    denied: [u64; Denied::ALL.len()],
}

impl Trader {
    /// A trader of `symbol` with at most `open_orders` unfinished orders.
    pub fn new(symbol: u16, limits: Limits, open_orders: usize) -> Self {
        Self {
            symbol,
            sequencer: Sequencer::default(),
            book: Book::with_capacity(BOOK_ORDERS),
            strategy: Imbalance::default(),
            risk: Risk::new(limits),
            open: OpenOrders::new(open_orders),
            next_reference: 1,
            counters: EngineCounters::default(),
            denied: [0; Denied::ALL.len()],
        }
    }

    /// Takes a datagram that was received at `now_ns` (monotonic).
    pub fn on_datagram(&mut self, datagram: &[u8], now_ns: u64) -> Decision {
        self.counters.datagrams += 1;
        let Ok(packet) = Packet::parse(datagram) else {
            self.counters.malformed_datagrams += 1;
            return Decision::default();
        };
        let arrival = self.sequencer.accept(&packet);
        self.counters.duplicates += arrival.seen;
        if arrival.missed > 0 {
            self.counters.gaps += 1;
            self.counters.missed += arrival.missed;
        }
        if arrival.missed > 0 || arrival.new_session {
            self.book.clear();
        }
        let mut decision = Decision { end_of_session: packet.end_of_session, ..Decision::default() };
        if packet.count == 0 {
            self.counters.heartbeats += 1;
        }
        for message in packet.messages().skip(arrival.seen as usize) {
            match message {
                Ok(message) => {
                    self.counters.ticks += 1;
                    decision.published_ns.get_or_insert(message.timestamp_ns);
                    self.apply(&message);
                }
                Err(_) => self.counters.malformed_messages += 1,
            }
        }
        if decision.published_ns.is_some() {
            decision.order = self.decide(now_ns);
        }
        decision
    }

    /// Notes when the send call of an order of [`Decision::order`] started.
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
            self.counters.unexpected_responses += 1;
            return None;
        };
        let Some(order) = self.open.order(reference) else {
            self.counters.unexpected_responses += 1;
            return None;
        };
        let side = order.side;
        let is_ack = matches!(update, Update::Accepted | Update::Rejected(_));
        let taken = match update {
            Update::Accepted => 0,
            Update::Executed { quantity, .. } | Update::Canceled { quantity, .. } => quantity,
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
            Update::Accepted => self.counters.accepted += 1,
            Update::Executed { quantity, .. } => {
                self.counters.fills += 1;
                self.counters.filled_shares += u64::from(quantity);
                self.risk.filled(side, quantity);
            }
            Update::Canceled { quantity, .. } => {
                self.counters.canceled += 1;
                self.risk.released(side, quantity);
            }
            Update::Rejected(_) => {
                self.counters.rejected += 1;
                self.risk.released(side, taken);
            }
        }
        is_ack.then_some(round_trip_ns)
    }

    /// Sends no further orders.
    pub fn kill(&mut self) {
        self.risk.kill();
    }

    /// Number of orders that are not finished.
    pub fn open_orders(&self) -> usize {
        self.open.len()
    }

    /// The book as the market data says.
    pub fn book(&self) -> &Book {
        &self.book
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
        if message.symbol != self.symbol {
            self.counters.other_symbols += 1;
            return;
        }
        let applied = match message.body {
            Body::Add { id, side, quantity, price } => {
                self.book.add(Order { id, owner: 0, side, price, quantity })
            }
            Body::Execute { id, quantity, .. } | Body::Cancel { id, quantity } => {
                self.book.reduce(id, quantity).map(drop)
            }
            Body::Delete { id } => self.book.remove(id).map(drop),
            Body::Replace { id, new_id, quantity, price } => {
                self.book.replace(id, new_id, quantity, price).map(drop)
            }
            Body::Trade { .. } => Ok(()),
        };
        match applied {
            Ok(()) => {}
            Err(BookError::UnknownId) => self.counters.unknown_orders += 1,
            Err(_) => self.counters.book_errors += 1,
        }
    }

    fn decide(&mut self, now_ns: u64) -> Option<EnterOrder> {
        let intent = self.strategy.decide(&self.book)?;
        let order = EnterOrder {
            reference: self.next_reference,
            side: intent.side,
            quantity: intent.quantity,
            symbol: self.symbol,
            price: intent.price,
            time_in_force: TimeInForce::Ioc,
        };
        let allowed = if self.open.has_room(order.reference) {
            self.risk.check(&order, self.middle(), now_ns)
        } else {
            Err(Denied::OpenOrders)
        };
        if let Err(reason) = allowed {
            self.denied[reason as usize] += 1;
            return None;
        }
        self.next_reference += 1;
        self.open.insert(OpenOrder {
            reference: order.reference,
            side: order.side,
            open: order.quantity,
            sent_ns: now_ns,
            acked: false,
        });
        Some(order)
    }

    /// Middle of the best bid and ask, in units of 1/10000 of the currency.
    fn middle(&self) -> Option<u32> {
        let bid = self.book.best(Side::Buy)?;
        let ask = self.book.best(Side::Sell)?;
        Some(bid.price.midpoint(ask.price))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Flow;
    use crate::md::Datagram;
    use crate::order_entry::Reject;
    use proptest::prelude::*;

    const SESSION: [u8; 10] = *b"TEST000001";

    const LIMITS: Limits =
        Limits { quantity: 1_000, notional: 1_000_000_000, collar_bps: 500, rate: 1_000, position: 100_000 };

    fn datagram(sequence: u64, body: Body) -> Datagram {
        let mut datagram = Datagram::new(SESSION, sequence);
        assert!(datagram.push(&Message { symbol: 1, timestamp_ns: sequence, body }));
        datagram
    }

    fn update(reference: u32, update: Update) -> Response {
        Response::Order { timestamp_ns: 0, reference, update }
    }

    /// Runs a flow through a trader, leaving out the messages `lost` says; orders fill at once.
    fn run(seed: u64, lost: &[bool]) -> (Vec<EnterOrder>, EngineCounters) {
        let mut trader = Trader::new(1, LIMITS, 64);
        let mut orders = Vec::new();
        for (sequence, planned) in (1..).zip(Flow::new(seed, 1_000.0).take(lost.len())) {
            if lost[sequence as usize - 1] {
                continue;
            }
            let now = sequence * 1_000_000;
            let decision = trader.on_datagram(datagram(sequence, planned.body).as_slice(), now);
            let book = trader.book();
            if let (Some(bid), Some(ask)) = (book.best(Side::Buy), book.best(Side::Sell)) {
                assert!(bid.price < ask.price, "crossed");
            }
            if let Some(order) = decision.order {
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
        assert!(trader.on_datagram(end.as_slice(), 0).end_of_session);
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
                trader.on_datagram(&bytes, 0);
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
            let decision = trader.on_datagram(datagram(sequence, body).as_slice(), 0);
            if let Some(order) = decision.order {
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
            Response::LoggedIn { session: 1 },
            update(99, Update::Accepted),
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
        assert_eq!(counters.unexpected_responses, 6);
        assert_eq!((counters.open_orders, counters.accepted), (1, 1));
    }

    #[test]
    fn a_rejected_order_is_finished_and_a_killed_trader_sends_none() {
        let (mut trader, order) = with_open_order();
        let rejected = Update::Rejected(Reject::Symbol);
        trader.on_response(&update(order.reference, rejected), 0);
        assert_eq!(trader.open_orders(), 0);
        trader.kill();
        let delete = datagram(3, Body::Delete { id: 2 });
        trader.on_datagram(delete.as_slice(), 0);
        let add = Body::Add { id: 9, side: Side::Buy, quantity: 900, price: 10_000 };
        let decision = trader.on_datagram(datagram(4, add).as_slice(), 0);
        assert_eq!(decision.order, None);
        let counters = trader.counters();
        assert_eq!((counters.rejected, counters.denied["kill_switch"]), (1, 1));
    }
}
