//! The exchange without its sockets: sessions' requests and market data in, responses out.
//!
//! Paper trading means trading against the real market without moving it: the market data flow
//! rests in the matchers as orders of [`NOBODY`], and the sessions' orders match against it by price
//! and time. What a paper fill took from a market order is gone for the other sessions too; later
//! market data about that order applies to what is left of it.

use crate::book::{BookError, Order};
use crate::matching::{Event, Matcher, NOBODY, NewOrder, OrderType, Replacement};
use crate::md::{Body, Message, Packet, Sequencer, Status};
use crate::order_entry::{EnterOrder, Refusal, Reject, Request, Response, Update};
use crate::report::ExchangeCounters;
use crate::session::Sessions;
use crate::trader::book_capacity;

/// Set in the ids of sessions' orders; ids of market orders must not have it.
const SESSION_ORDER: u64 = 1 << 63;

/// The trading venue for the instruments 1 to some number.
#[derive(Debug)]
pub struct Venue {
    /// Instrument `symbol` is at `symbol - 1`.
    matchers: Vec<Matcher>,
    sequencer: Sequencer,
    desk: Desk,
}

/// What answers the sessions; apart from the matchers, so that their events can go straight to it.
#[derive(Debug, Default)]
struct Desk {
    sessions: Sessions,
    counters: ExchangeCounters,
}

impl Venue {
    /// A venue for the instruments 1 to `symbols` with empty books.
    pub fn new(symbols: u16) -> Self {
        let matcher = |_| Matcher::with_capacity(book_capacity(symbols));
        Self {
            matchers: (0..symbols).map(matcher).collect(),
            sequencer: Sequencer::default(),
            desk: Desk::default(),
        }
    }

    /// Takes a request of a connection at `now_ns`; `session` is the number of its session, 0 before
    /// the login. Responses go to `emit` with the session they are for.
    ///
    /// # Errors
    /// Why the connection must be closed, after telling its peer.
    pub fn on_request(
        &mut self,
        session: &mut u32,
        request: &Request,
        now_ns: u64,
        mut emit: impl FnMut(u32, Response),
    ) -> Result<(), Refusal> {
        match (*request, *session) {
            (Request::Login(login), 0) => {
                let Desk { sessions, counters } = &mut self.desk;
                let mut answers = Vec::new();
                *session = sessions.log_in(&login, |response| answers.push(response))?;
                for answer in answers {
                    emit(*session, answer);
                }
                counters.sessions += u64::from(login.session == 0);
                counters.resumed += u64::from(login.session != 0);
            }
            (Request::Login(_), _) | (_, 0) => return Err(Refusal::Login),
            (Request::Heartbeat, _) => {}
            (Request::Enter(enter), session) => self.enter(session, &enter, now_ns, &mut emit),
            (Request::Cancel { reference, symbol, remaining }, session) => {
                let Self { matchers, desk, .. } = self;
                let canceled = matcher(matchers, symbol).and_then(|matcher| {
                    let id = order_id(session, reference);
                    let canceled =
                        matcher.cancel(id, remaining, |event| desk.translate(&event, now_ns, &mut emit));
                    canceled.map_err(|_| Reject::NotLive)
                });
                if let Err(reason) = canceled {
                    desk.reject(session, reference, reason, now_ns, &mut emit);
                }
            }
            (Request::Replace { reference, symbol, new_reference, quantity, price, order_type }, session) => {
                let Self { matchers, desk, .. } = self;
                let id = order_id(session, new_reference);
                let replacement = Replacement { id, quantity, price, order_type };
                let replaced = if desk.sessions.take_reference(session, new_reference) {
                    matcher(matchers, symbol).and_then(|matcher| {
                        let id = order_id(session, reference);
                        let emit = |event: Event| desk.translate(&event, now_ns, &mut emit);
                        matcher.replace(id, replacement, emit).map_err(|_: BookError| Reject::NotLive)
                    })
                } else {
                    Err(Reject::Reference)
                };
                if let Err(reason) = replaced {
                    desk.reject(session, new_reference, reason, now_ns, &mut emit);
                }
            }
        }
        Ok(())
    }

    /// Refuses an order without looking at it.
    pub fn refuse(
        &mut self,
        session: u32,
        order: &EnterOrder,
        now_ns: u64,
        mut emit: impl FnMut(u32, Response),
    ) {
        self.desk.counters.orders += 1;
        self.desk.sessions.take_reference(session, order.reference);
        self.desk.reject(session, order.reference, Reject::Unavailable, now_ns, &mut emit);
    }

    /// Takes a market data datagram at `now_ns`; fills of resting session orders go to `emit`.
    /// Returns whether it ends the market data session.
    pub fn on_datagram(&mut self, datagram: &[u8], now_ns: u64, mut emit: impl FnMut(u32, Response)) -> bool {
        let Ok(packet) = Packet::parse(datagram) else {
            self.desk.counters.malformed += 1;
            return false;
        };
        let arrival = self.sequencer.accept(&packet);
        self.desk.counters.missed += arrival.missed;
        if arrival.missed > 0 || arrival.new_session {
            // As in the engine: what rests may be gone by now.
            self.matchers.iter_mut().for_each(|matcher| matcher.cancel_owner(NOBODY, |_| {}));
        }
        for message in packet.messages().skip(arrival.seen as usize) {
            match message {
                Ok(message) => {
                    self.desk.counters.ticks += 1;
                    self.apply(&message, now_ns, &mut emit);
                }
                Err(_) => self.desk.counters.malformed += 1,
            }
        }
        packet.end_of_session
    }

    /// The connection of `session` is gone: cancels its orders at `now_ns`.
    pub fn on_disconnect(&mut self, session: u32, now_ns: u64) {
        if session == 0 {
            return;
        }
        let Self { matchers, desk, .. } = self;
        desk.sessions.disconnect(session);
        for matcher in matchers {
            matcher.cancel_owner(session, |event| desk.translate(&event, now_ns, &mut |_, _| {}));
        }
    }

    /// Halts trading in an instrument, or lets it go on; `false` when there is no such instrument.
    pub fn set_halted(&mut self, symbol: u16, halted: bool) -> bool {
        matcher(&mut self.matchers, symbol).map(|matcher| matcher.set_halted(halted)).is_ok()
    }

    /// What was counted so far.
    pub fn counters(&self) -> ExchangeCounters {
        let mut counters = self.desk.counters.clone();
        counters.trades = self.matchers.iter().map(Matcher::trades).sum();
        counters.resting_orders = self.matchers.iter().map(|matcher| matcher.book().len() as u64).sum();
        counters
    }

    fn enter(&mut self, session: u32, enter: &EnterOrder, now_ns: u64, emit: &mut impl FnMut(u32, Response)) {
        let Self { matchers, desk, .. } = self;
        desk.counters.orders += 1;
        let matcher = if desk.sessions.take_reference(session, enter.reference) {
            matcher(matchers, enter.symbol)
        } else {
            Err(Reject::Reference)
        };
        match matcher {
            Ok(matcher) => {
                let order = Order {
                    id: order_id(session, enter.reference),
                    owner: session,
                    side: enter.side,
                    price: enter.price,
                    quantity: enter.quantity,
                };
                let new = NewOrder { order, order_type: enter.order_type };
                matcher.submit(new, |event| desk.translate(&event, now_ns, emit));
            }
            Err(reason) => desk.reject(session, enter.reference, reason, now_ns, emit),
        }
    }

    fn apply(&mut self, message: &Message, now_ns: u64, emit: &mut impl FnMut(u32, Response)) {
        let Self { matchers, desk, .. } = self;
        let Ok(matcher) = matcher(matchers, message.symbol) else {
            return;
        };
        let mut submit = |matcher: &mut Matcher, order| {
            let new = NewOrder { order, order_type: OrderType::Limit };
            matcher.submit(new, |event| desk.translate(&event, now_ns, emit));
        };
        match message.body {
            Body::Add { id, .. } | Body::Replace { new_id: id, .. } if !is_market(id) => {
                desk.counters.malformed += 1;
            }
            Body::Add { id, side, quantity, price } => {
                submit(matcher, Order { id, owner: NOBODY, side, price, quantity });
            }
            Body::Execute { id, quantity, .. } | Body::Cancel { id, quantity } => {
                if !is_market(id) || matcher.reduce(id, quantity).is_err() {
                    desk.counters.unknown_orders += 1;
                }
            }
            Body::Delete { id } => {
                if take_market(matcher, id).is_none() {
                    desk.counters.unknown_orders += 1;
                }
            }
            Body::Replace { id, new_id, quantity, price } => match take_market(matcher, id) {
                Some(old) => submit(matcher, Order { id: new_id, quantity, price, ..old }),
                None => desk.counters.unknown_orders += 1,
            },
            Body::Status(Status::Halted) => matcher.set_halted(true),
            Body::Status(Status::Trading) => matcher.set_halted(false),
            Body::Status(Status::Cleared) => matcher.cancel_owner(NOBODY, |_| {}),
            Body::Status(Status::Ready) | Body::Trade { .. } => {}
        }
    }
}

impl Desk {
    fn reject(
        &mut self,
        session: u32,
        reference: u32,
        reason: Reject,
        now_ns: u64,
        emit: &mut impl FnMut(u32, Response),
    ) {
        self.counters.rejected += 1;
        self.answer(session, reference, Update::Rejected(reason), now_ns, emit);
    }

    /// Turns what a matcher did into responses for the sessions concerned.
    fn translate(&mut self, event: &Event, now_ns: u64, emit: &mut impl FnMut(u32, Response)) {
        let ours = |order: &Order| u64::from(order.owner != NOBODY);
        let mut tell = |desk: &mut Self, order: &Order, update| {
            if order.owner != NOBODY {
                desk.answer(order.owner, order.id as u32, update, now_ns, emit);
            }
        };
        match event {
            Event::Accepted(order) => {
                self.counters.accepted += ours(order);
                tell(self, order, Update::Accepted);
            }
            Event::Replaced(old, order) => {
                self.counters.replaced += ours(order);
                tell(self, order, Update::Replaced { old_reference: old.id as u32 });
            }
            Event::Filled(fill) => {
                let executed =
                    Update::Executed { quantity: fill.quantity, price: fill.price, trade: fill.trade };
                self.counters.fills += ours(&fill.maker) + ours(&fill.taker);
                tell(self, &fill.maker, executed);
                tell(self, &fill.taker, executed);
            }
            &Event::Canceled(order, reason) => {
                self.counters.canceled += ours(&order);
                let quantity = order.quantity;
                tell(self, &order, Update::Canceled { quantity, reason });
            }
            &Event::Rejected(order, reason) => {
                self.counters.rejected += ours(&order);
                tell(self, &order, Update::Rejected(Reject::Book(reason)));
            }
        }
    }

    fn answer(
        &mut self,
        session: u32,
        reference: u32,
        update: Update,
        now_ns: u64,
        emit: &mut impl FnMut(u32, Response),
    ) {
        if let Some(response) = self.sessions.answer(session, now_ns, reference, update) {
            emit(session, response);
        }
    }
}

fn matcher(matchers: &mut [Matcher], symbol: u16) -> Result<&mut Matcher, Reject> {
    matchers.get_mut(usize::from(symbol).wrapping_sub(1)).ok_or(Reject::Symbol)
}

/// Takes a market order off the book; paper fills may have taken it before.
fn take_market(matcher: &mut Matcher, id: u64) -> Option<Order> {
    let order = matcher.book().order(id).filter(|_| is_market(id))?;
    matcher.cancel(id, 0, |_| {}).ok().map(|()| order)
}

fn is_market(id: u64) -> bool {
    id & SESSION_ORDER == 0
}

fn order_id(session: u32, reference: u32) -> u64 {
    SESSION_ORDER | u64::from(session) << 32 | u64::from(reference)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::Side;
    use crate::flow::Flow;
    use crate::matching::{CancelReason, RejectReason};
    use crate::md::Datagram;
    use crate::order_entry::Login;
    use proptest::prelude::*;

    const SESSION: [u8; 10] = *b"TEST000001";

    fn request(venue: &mut Venue, login: &mut u32, request: Request) -> Vec<(u32, Response)> {
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
        EnterOrder { reference, side, quantity, symbol: 1, price, order_type: OrderType::Limit, cause_ns: 0 }
    }

    const LOGIN: Login = Login { user: *b"someone   ", session: 0, next_sequence: 1 };

    fn logged_in(venue: &mut Venue) -> u32 {
        let mut session = 0;
        let out = request(venue, &mut session, Request::Login(LOGIN));
        let logged_in = Response::LoggedIn { session, next_sequence: 1, last_reference: 0 };
        assert_eq!(out, [(session, logged_in)]);
        session
    }

    fn update(sequence: u64, reference: u32, update: Update) -> Response {
        Response::Order { sequence, timestamp_ns: 0, reference, update }
    }

    fn cancel(reference: u32) -> Request {
        Request::Cancel { reference, symbol: 1, remaining: 0 }
    }

    #[test]
    fn a_login_comes_first_and_once() {
        let mut venue = Venue::new(1);
        assert_eq!(venue.on_request(&mut 0, &cancel(1), 0, |_, _| {}), Err(Refusal::Login));
        let mut login = logged_in(&mut venue);
        let again = Request::Login(LOGIN);
        assert_eq!(venue.on_request(&mut login, &again, 0, |_, _| {}), Err(Refusal::Login));
    }

    #[test]
    fn orders_trade_with_the_market_and_with_each_other() {
        let mut venue = Venue::new(1);
        let mut a = logged_in(&mut venue);
        let mut b = logged_in(&mut venue);
        feed(&mut venue, 1, Body::Add { id: 7, side: Side::Sell, quantity: 100, price: 500 });
        let executed = |quantity, price, trade| Update::Executed { quantity, price, trade };
        let out = request(&mut venue, &mut a, Request::Enter(enter(1, Side::Buy, 510, 150)));
        assert_eq!(out, [(1, update(1, 1, Update::Accepted)), (1, update(2, 1, executed(100, 500, 1)))]);
        let out = request(&mut venue, &mut b, Request::Enter(enter(1, Side::Sell, 505, 20)));
        assert_eq!(
            out,
            [
                (2, update(1, 1, Update::Accepted)),
                (1, update(3, 1, executed(20, 510, 2))),
                (2, update(2, 1, executed(20, 510, 2))),
            ]
        );
        // The market trades into the resting order; the paper-filled order 7 is unknown by now.
        feed(&mut venue, 2, Body::Delete { id: 7 });
        let body = Body::Add { id: 8, side: Side::Sell, quantity: 10, price: 510 };
        assert_eq!(feed(&mut venue, 3, body), [(1, update(4, 1, executed(10, 510, 3)))]);
        let out = request(&mut venue, &mut a, cancel(1));
        let canceled = Update::Canceled { quantity: 20, reason: CancelReason::Requested };
        assert_eq!(out, [(1, update(5, 1, canceled))]);
        let out = request(&mut venue, &mut b, cancel(1));
        assert_eq!(out, [(2, update(3, 1, Update::Rejected(Reject::NotLive)))]);
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
        venue.on_disconnect(a, 0);
        assert_eq!(venue.counters().resting_orders, 1);
        let out = request(&mut venue, &mut b, cancel(1));
        assert_eq!(out.len(), 1);
        // Its owner learns of it when he is back.
        let mut back = 0;
        let login = Login { session: a, next_sequence: 2, ..LOGIN };
        let out = request(&mut venue, &mut back, Request::Login(login));
        let canceled = Update::Canceled { quantity: 1, reason: CancelReason::Requested };
        assert_eq!(out[1..], [(a, update(2, 1, canceled))]);
        assert_eq!(venue.counters().resumed, 1);
    }

    #[test]
    fn orders_are_replaced_reduced_halted_and_refused() {
        let mut venue = Venue::new(2);
        let mut a = logged_in(&mut venue);
        request(&mut venue, &mut a, Request::Enter(enter(1, Side::Buy, 100, 10)));
        let reduce = Request::Cancel { reference: 1, symbol: 1, remaining: 4 };
        let canceled = Update::Canceled { quantity: 6, reason: CancelReason::Requested };
        assert_eq!(request(&mut venue, &mut a, reduce), [(1, update(2, 1, canceled))]);
        let replace = |reference, new_reference, symbol| Request::Replace {
            reference,
            symbol,
            new_reference,
            quantity: 5,
            price: 101,
            order_type: OrderType::PostOnly,
        };
        let replaced = Update::Replaced { old_reference: 1 };
        assert_eq!(request(&mut venue, &mut a, replace(1, 2, 1)), [(1, update(3, 2, replaced))]);
        for (request_, sequence, reference, reason) in [
            (replace(1, 3, 1), 4, 3, Reject::NotLive),
            (replace(2, 4, 2), 5, 4, Reject::NotLive),
            (replace(2, 4, 1), 6, 4, Reject::Reference),
            (replace(2, 5, 3), 7, 5, Reject::Symbol),
        ] {
            let rejected = update(sequence, reference, Update::Rejected(reason));
            assert_eq!(request(&mut venue, &mut a, request_), [(1, rejected)]);
        }
        assert!(venue.set_halted(2, true) && !venue.set_halted(3, true));
        let market = EnterOrder { symbol: 2, order_type: OrderType::Market, ..enter(6, Side::Buy, 0, 1) };
        let halted = Update::Rejected(Reject::Book(RejectReason::Halted));
        assert_eq!(request(&mut venue, &mut a, Request::Enter(market)), [(1, update(8, 6, halted))]);
        let mut out = Vec::new();
        venue.refuse(a, &enter(7, Side::Buy, 1, 1), 0, |_, response| out.push(response));
        assert_eq!(out, [update(9, 7, Update::Rejected(Reject::Unavailable))]);
        assert_eq!((venue.counters().replaced, venue.counters().orders), (1, 3));
    }

    #[test]
    fn market_data_halts_and_clears() {
        let mut venue = Venue::new(1);
        let mut a = logged_in(&mut venue);
        feed(&mut venue, 1, Body::Add { id: 7, side: Side::Sell, quantity: 100, price: 500 });
        feed(&mut venue, 2, Body::Status(Status::Halted));
        let crossing = Request::Enter(enter(1, Side::Buy, 500, 1));
        let rejected = Update::Rejected(Reject::Book(RejectReason::Halted));
        assert_eq!(request(&mut venue, &mut a, crossing), [(1, update(1, 1, rejected))]);
        feed(&mut venue, 3, Body::Status(Status::Trading));
        feed(&mut venue, 4, Body::Status(Status::Cleared));
        feed(&mut venue, 5, Body::Status(Status::Ready));
        let out = request(&mut venue, &mut a, Request::Enter(enter(2, Side::Buy, 500, 1)));
        assert_eq!(out, [(1, update(2, 2, Update::Accepted))]);
        assert_eq!(venue.counters().resting_orders, 1);
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
            let mut flow = Flow::new(seed, 1_000.0, 1);
            let mut responses = Vec::new();
            let mut sequence = 0;
            for (reference, &(buy, ticks, quantity, ioc)) in (1..).zip(&orders) {
                for planned in flow.by_ref().take(10) {
                    sequence += 1;
                    responses.extend(feed(&mut venue, sequence, planned.body));
                }
                let side = if buy { Side::Buy } else { Side::Sell };
                let order_type = if ioc { OrderType::Ioc } else { OrderType::Limit };
                let order = enter(reference, side, ticks * 100, quantity);
                let order = EnterOrder { order_type, ..order };
                responses.extend(request(&mut venue, &mut login, Request::Enter(order)));
            }
            let mut acks = vec![0; orders.len()];
            let mut left: Vec<_> = orders.iter().map(|order| order.2).collect();
            for (session, response) in responses {
                prop_assert_eq!(session, login);
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
                    Update::Rejected(_) | Update::Replaced { .. } => panic!("{update:?}"),
                }
            }
            prop_assert!(acks.iter().all(|acks| *acks == 1));
            prop_assert_eq!(venue.counters().missed, 0);
        }
    }
}
