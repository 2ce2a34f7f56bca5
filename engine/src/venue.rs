//! The exchange without its sockets: sessions' requests and market data in, responses out.
//!
//! Paper trading means trading against the real market without moving it: the market data flow
//! rests in the matcher as orders of owner 0, and the sessions' orders match against it by price
//! and time. What a paper fill took from a market order is gone for the other sessions too; later
//! market data about that order applies to what is left of it.

use crate::book::Order;
use crate::matching::{Event, Matcher, NewOrder, TimeInForce};
use crate::md::{Body, Message, Packet, Sequencer};
use crate::order_entry::{Refusal, Reject, Request, Response, Update};
use crate::report::ExchangeCounters;

/// Orders that can rest.
const BOOK_ORDERS: usize = 64 * 1024;

/// Owner of the orders that market data brings.
const MARKET: u32 = 0;

/// Set in the ids of sessions' orders; ids of market orders must not have it.
const SESSION_ORDER: u64 = 1 << 63;

/// Largest session number: it shares an order id with the reference and [`SESSION_ORDER`].
const MAX_SESSION: u32 = u32::MAX >> 1;

/// What the venue knows of a connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Login {
    /// Number of the session; 0 before the login.
    pub session: u32,
    /// Highest order reference so far.
    last_reference: u32,
}

/// The trading venue for one symbol.
#[derive(Debug)]
pub struct Venue {
    symbol: u16,
    matcher: Matcher,
    sequencer: Sequencer,
    sessions: u32,
    counters: ExchangeCounters,
}

impl Venue {
    /// A venue for `symbol` with an empty book.
    pub fn new(symbol: u16) -> Self {
        Self {
            symbol,
            matcher: Matcher::with_capacity(BOOK_ORDERS),
            sequencer: Sequencer::default(),
            sessions: 0,
            counters: ExchangeCounters::default(),
        }
    }

    /// Takes a request of a connection at `now_ns`. Responses go to `emit` with the session they
    /// are for.
    ///
    /// # Errors
    /// Why the connection must be closed, after telling its peer.
    pub fn on_request(
        &mut self,
        login: &mut Login,
        request: &Request,
        now_ns: u64,
        mut emit: impl FnMut(u32, Response),
    ) -> Result<(), Refusal> {
        match (request, login.session) {
            (Request::Login { .. }, 0) => {
                if self.sessions == MAX_SESSION {
                    return Err(Refusal::Full);
                }
                self.sessions += 1;
                login.session = self.sessions;
                self.counters.sessions += 1;
                emit(login.session, Response::LoggedIn { session: login.session });
            }
            (Request::Login { .. }, _) | (_, 0) => return Err(Refusal::Login),
            (&Request::Enter(enter), session) => {
                self.counters.orders += 1;
                let rejected = if enter.reference <= login.last_reference {
                    Some(Reject::Reference)
                } else {
                    login.last_reference = enter.reference;
                    (enter.symbol != self.symbol).then_some(Reject::Symbol)
                };
                if let Some(reason) = rejected {
                    self.counters.rejected += 1;
                    emit(session, update(now_ns, enter.reference, Update::Rejected(reason)));
                    return Ok(());
                }
                let order = Order {
                    id: order_id(session, enter.reference),
                    owner: session,
                    side: enter.side,
                    price: enter.price,
                    quantity: enter.quantity,
                };
                self.submit(order, enter.time_in_force, now_ns, &mut emit);
            }
            (&Request::Cancel { reference }, session) => {
                let counters = &mut self.counters;
                let canceled = self.matcher.cancel(order_id(session, reference), |event| {
                    translate(counters, &event, now_ns, &mut emit);
                });
                if canceled.is_err() {
                    self.counters.rejected += 1;
                    emit(session, update(now_ns, reference, Update::Rejected(Reject::NotLive)));
                }
            }
        }
        Ok(())
    }

    /// Takes a market data datagram at `now_ns`; fills of resting session orders go to `emit`.
    /// Returns whether it ends the market data session.
    pub fn on_datagram(&mut self, datagram: &[u8], now_ns: u64, mut emit: impl FnMut(u32, Response)) -> bool {
        let Ok(packet) = Packet::parse(datagram) else {
            self.counters.malformed += 1;
            return false;
        };
        let arrival = self.sequencer.accept(&packet);
        self.counters.missed += arrival.missed;
        if arrival.missed > 0 || arrival.new_session {
            // As in the engine: what rests may be gone by now.
            self.matcher.cancel_owner(MARKET, |_| {});
        }
        for message in packet.messages().skip(arrival.seen as usize) {
            match message {
                Ok(message) => {
                    self.counters.ticks += 1;
                    self.apply(&message, now_ns, &mut emit);
                }
                Err(_) => self.counters.malformed += 1,
            }
        }
        packet.end_of_session
    }

    /// The connection is gone: cancels its orders.
    pub fn on_disconnect(&mut self, login: Login) {
        if login.session != 0 {
            let counters = &mut self.counters;
            self.matcher.cancel_owner(login.session, |_| counters.canceled += 1);
        }
    }

    /// What was counted so far.
    pub fn counters(&self) -> ExchangeCounters {
        let mut counters = self.counters.clone();
        counters.trades = self.matcher.trades();
        counters.resting_orders = self.matcher.book().len() as u64;
        counters
    }

    fn apply(&mut self, message: &Message, now_ns: u64, emit: &mut impl FnMut(u32, Response)) {
        if message.symbol != self.symbol {
            return;
        }
        match message.body {
            Body::Add { id, .. } | Body::Replace { new_id: id, .. } if !is_market(id) => {
                self.counters.malformed += 1;
            }
            Body::Add { id, side, quantity, price } => {
                let order = Order { id, owner: MARKET, side, price, quantity };
                self.submit(order, TimeInForce::Day, now_ns, emit);
            }
            Body::Execute { id, quantity, .. } | Body::Cancel { id, quantity } => {
                if is_market(id) && self.matcher.reduce(id, quantity).is_ok() {
                    return;
                }
                self.counters.unknown_orders += 1;
            }
            Body::Delete { id } => {
                self.take_market(id);
            }
            Body::Replace { id, new_id, quantity, price } => {
                if let Some(old) = self.take_market(id) {
                    let order = Order { id: new_id, quantity, price, ..old };
                    self.submit(order, TimeInForce::Day, now_ns, emit);
                }
            }
            Body::Trade { .. } => {}
        }
    }

    fn submit(
        &mut self,
        order: Order,
        time_in_force: TimeInForce,
        now_ns: u64,
        emit: &mut impl FnMut(u32, Response),
    ) {
        let counters = &mut self.counters;
        let new = NewOrder { order, time_in_force };
        self.matcher.submit(new, |event| translate(counters, &event, now_ns, emit));
    }

    /// Takes a market order off the book; paper fills may have taken it before.
    fn take_market(&mut self, id: u64) -> Option<Order> {
        let order = self.matcher.book().order(id).filter(|_| is_market(id));
        if order.is_none() || self.matcher.cancel(id, |_| {}).is_err() {
            self.counters.unknown_orders += 1;
        }
        order
    }
}

fn is_market(id: u64) -> bool {
    id & SESSION_ORDER == 0
}

fn order_id(session: u32, reference: u32) -> u64 {
    SESSION_ORDER | u64::from(session) << 32 | u64::from(reference)
}

fn update(timestamp_ns: u64, reference: u32, update: Update) -> Response {
    Response::Order { timestamp_ns, reference, update }
}

/// Turns what the matcher did into responses for the sessions concerned.
fn translate(
    counters: &mut ExchangeCounters,
    event: &Event,
    now_ns: u64,
    emit: &mut impl FnMut(u32, Response),
) {
    let mut tell = |order: &Order, what| {
        if order.owner != MARKET {
            emit(order.owner, update(now_ns, order.id as u32, what));
        }
    };
    let ours = |order: &Order| u64::from(order.owner != MARKET);
    match event {
        Event::Accepted(order) => {
            counters.accepted += ours(order);
            tell(order, Update::Accepted);
        }
        Event::Filled(fill) => {
            let executed = Update::Executed { quantity: fill.quantity, price: fill.price, trade: fill.trade };
            counters.fills += ours(&fill.maker) + ours(&fill.taker);
            tell(&fill.maker, executed);
            tell(&fill.taker, executed);
        }
        &Event::Canceled(order, reason) => {
            counters.canceled += ours(&order);
            let quantity = order.quantity;
            tell(&order, Update::Canceled { quantity, reason });
        }
        &Event::Rejected(order, reason) => {
            counters.rejected += ours(&order);
            tell(&order, Update::Rejected(Reject::Book(reason)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::Side;
    use crate::flow::Flow;
    use crate::matching::CancelReason;
    use crate::md::Datagram;
    use crate::order_entry::EnterOrder;
    use proptest::prelude::*;

    const SESSION: [u8; 10] = *b"TEST000001";

    fn request(venue: &mut Venue, login: &mut Login, request: Request) -> Vec<(u32, Response)> {
        let mut out = Vec::new();
        venue
            .on_request(login, &request, 0, |session, response| {
                out.push((session, response));
            })
            .unwrap();
        out
    }

    fn feed(venue: &mut Venue, sequence: u64, body: Body) -> Vec<(u32, Response)> {
        let mut datagram = Datagram::new(SESSION, sequence);
        assert!(datagram.push(&Message { symbol: 1, timestamp_ns: 0, body }));
        let mut out = Vec::new();
        venue.on_datagram(datagram.as_slice(), 0, |session, response| {
            out.push((session, response));
        });
        out
    }

    fn enter(reference: u32, side: Side, price: u32, quantity: u32) -> EnterOrder {
        EnterOrder { reference, side, quantity, symbol: 1, price, time_in_force: TimeInForce::Day }
    }

    fn logged_in(venue: &mut Venue) -> Login {
        let mut login = Login::default();
        let user = *b"someone   ";
        let out = request(venue, &mut login, Request::Login { user });
        let session = login.session;
        assert_eq!(out, [(session, Response::LoggedIn { session })]);
        login
    }

    #[test]
    fn a_login_comes_first_and_once() {
        let mut venue = Venue::new(1);
        let mut login = Login::default();
        let cancel = Request::Cancel { reference: 1 };
        let login_request = Request::Login { user: [b' '; 10] };
        assert_eq!(venue.on_request(&mut login, &cancel, 0, |_, _| {}), Err(Refusal::Login));
        let mut login = logged_in(&mut venue);
        assert_eq!(venue.on_request(&mut login, &login_request, 0, |_, _| {}), Err(Refusal::Login));
    }

    #[test]
    fn orders_trade_with_the_market_and_with_each_other() {
        let mut venue = Venue::new(1);
        let mut a = logged_in(&mut venue);
        let mut b = logged_in(&mut venue);
        feed(&mut venue, 1, Body::Add { id: 7, side: Side::Sell, quantity: 100, price: 500 });
        let executed = |quantity, price, trade| Update::Executed { quantity, price, trade };
        let out = request(&mut venue, &mut a, Request::Enter(enter(1, Side::Buy, 510, 150)));
        assert_eq!(out, [(1, update(0, 1, Update::Accepted)), (1, update(0, 1, executed(100, 500, 1))),]);
        let out = request(&mut venue, &mut b, Request::Enter(enter(1, Side::Sell, 505, 20)));
        assert_eq!(
            out,
            [
                (2, update(0, 1, Update::Accepted)),
                (1, update(0, 1, executed(20, 510, 2))),
                (2, update(0, 1, executed(20, 510, 2))),
            ]
        );
        // The market trades into the resting order; the paper-filled order 7 is unknown by now.
        feed(&mut venue, 2, Body::Delete { id: 7 });
        let body = Body::Add { id: 8, side: Side::Sell, quantity: 10, price: 510 };
        assert_eq!(feed(&mut venue, 3, body), [(1, update(0, 1, executed(10, 510, 3)))]);
        let out = request(&mut venue, &mut a, Request::Cancel { reference: 1 });
        let canceled = Update::Canceled { quantity: 20, reason: CancelReason::Requested };
        assert_eq!(out, [(1, update(0, 1, canceled))]);
        let out = request(&mut venue, &mut b, Request::Cancel { reference: 1 });
        assert_eq!(out, [(2, update(0, 1, Update::Rejected(Reject::NotLive)))]);
        let counters = venue.counters();
        assert_eq!((counters.trades, counters.fills), (3, 4));
        assert_eq!((counters.unknown_orders, counters.resting_orders), (1, 0));
    }

    #[test]
    fn bad_orders_are_rejected_by_reason() {
        let mut venue = Venue::new(1);
        let mut login = logged_in(&mut venue);
        let mut reject = |order: EnterOrder| {
            let out = request(&mut venue, &mut login, Request::Enter(order));
            match out[..] {
                [(1, Response::Order { update: Update::Rejected(reason), .. })] => Some(reason),
                _ => None,
            }
        };
        let good = enter(5, Side::Buy, 100, 1);
        let next = |reference| EnterOrder { reference, ..good };
        assert_eq!(reject(good), None);
        assert_eq!(reject(good), Some(Reject::Reference));
        assert_eq!(reject(EnterOrder { symbol: 2, ..next(6) }), Some(Reject::Symbol));
        let empty = EnterOrder { quantity: 0, ..next(7) };
        assert!(matches!(reject(empty), Some(Reject::Book(_))));
        assert_eq!(reject(next(6)), Some(Reject::Reference));
    }

    #[test]
    fn a_disconnect_cancels_the_sessions_orders_only() {
        let mut venue = Venue::new(1);
        let (mut a, mut b) = (logged_in(&mut venue), logged_in(&mut venue));
        for login in [&mut a, &mut b] {
            let order = enter(1, Side::Buy, 100, 1);
            request(&mut venue, login, Request::Enter(order));
        }
        venue.on_disconnect(a);
        assert_eq!(venue.counters().resting_orders, 1);
        let out = request(&mut venue, &mut b, Request::Cancel { reference: 1 });
        assert_eq!(out.len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn every_order_is_acked_once_and_never_overfilled(
            seed in any::<u64>(),
            orders in prop::collection::vec(
                (any::<bool>(), 9_980..10_020u32, 1..600u32, any::<bool>()),
                1..200,
            ),
        ) {
            let mut venue = Venue::new(1);
            let mut login = logged_in(&mut venue);
            let mut flow = Flow::new(seed, 1_000.0);
            let mut responses = Vec::new();
            let mut sequence = 0;
            for (reference, &(buy, ticks, quantity, ioc)) in (1..).zip(&orders) {
                for planned in flow.by_ref().take(10) {
                    sequence += 1;
                    responses.extend(feed(&mut venue, sequence, planned.body));
                }
                let side = if buy { Side::Buy } else { Side::Sell };
                let time_in_force = if ioc { TimeInForce::Ioc } else { TimeInForce::Day };
                let order = enter(reference, side, ticks * 100, quantity);
                let order = EnterOrder { time_in_force, ..order };
                responses.extend(request(&mut venue, &mut login, Request::Enter(order)));
            }
            let mut acks = vec![0; orders.len()];
            let mut left: Vec<_> = orders.iter().map(|order| order.2).collect();
            for (session, response) in responses {
                prop_assert_eq!(session, login.session);
                let Response::Order { reference, update, .. } = response else {
                    panic!("only orders are answered here");
                };
                let at = reference as usize - 1;
                match update {
                    Update::Accepted => acks[at] += 1,
                    Update::Executed { quantity, .. } | Update::Canceled { quantity, .. } => {
                        prop_assert!(quantity <= left[at]);
                        left[at] -= quantity;
                    }
                    Update::Rejected(reason) => panic!("{reason:?}"),
                }
            }
            prop_assert!(acks.iter().all(|acks| *acks == 1));
            prop_assert_eq!(venue.counters().missed, 0);
        }
    }
}
