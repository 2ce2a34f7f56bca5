//! Price-time matching over a [`Book`].
//!
//! An incoming order trades with the best opposite orders, oldest first, at *their* price, as far
//! as its limit allows; what is left rests or is canceled, as its type says. Everything that
//! happens is given to the caller's `emit` in order; nothing else comes out, so the same input
//! gives the same events.
//!
//! Nobody trades with himself: where an order would, the resting one of the two is canceled and the
//! incoming one goes on. Orders of [`NOBODY`] are many people's, and do trade with each other.
//!
//! While a matcher is halted nothing trades: an order that would have to is rejected, others rest,
//! and cancels work.

use crate::book::{Book, BookError, Order};

/// Owner of orders whose owners are not known; not one person, so not subject to self-match
/// prevention.
pub const NOBODY: u32 = 0;

/// What may become of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderType {
    /// Trades up to its limit, and rests until it is filled or canceled.
    Limit,
    /// Rests at its limit, and is rejected when it would trade at once.
    PostOnly,
    /// Immediate or cancel: trades what it can up to its limit, the rest is canceled.
    Ioc,
    /// Fill or kill: trades all of its quantity at once up to its limit, or nothing.
    Fok,
    /// Trades what it can at any price, whatever its own says; the rest is canceled.
    Market,
}

/// An order that comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewOrder {
    /// The order; its id must not rest in the book.
    pub order: Order,
    /// What may become of it.
    pub order_type: OrderType,
}

/// What takes the place of a resting order, with the same owner on the same side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replacement {
    /// Id of the new order; must not rest in the book.
    pub id: u64,
    /// Shares of the new order.
    pub quantity: u32,
    /// Limit of the new order, in units of 1/10000 of the currency.
    pub price: u32,
    /// What may become of it.
    pub order_type: OrderType,
}

/// One trade between a resting and an incoming order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// The resting order, as it is after the fill.
    pub maker: Order,
    /// The incoming order, as it is after the fill.
    pub taker: Order,
    /// The maker's price, in units of 1/10000 of the currency.
    pub price: u32,
    /// Shares traded.
    pub quantity: u32,
    /// Number of this fill, counted from 1 by the matcher.
    pub trade: u64,
}

/// Why open quantity left the book, or never got there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelReason {
    /// The owner asked.
    Requested,
    /// What an order that may not rest could not trade.
    NotFilled,
    /// It would have traded with an order of the same owner.
    SelfMatch,
    /// The book has no room for the rest.
    BookFull,
}

/// Why an order was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// An order of that id rests already.
    DuplicateId,
    /// Quantity 0.
    Quantity,
    /// Price 0.
    Price,
    /// A post-only order would trade at once.
    WouldTrade,
    /// It would have to trade, and trading is halted.
    Halted,
}

/// What matching did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The order was valid; its fills follow.
    Accepted(Order),
    /// The first order is gone, the second was valid and takes its place; its fills follow.
    Replaced(Order, Order),
    /// Two orders traded.
    Filled(Fill),
    /// Quantity was taken away: the order's, which is what it says here and not what stays open.
    Canceled(Order, CancelReason),
    /// The order was not valid; nothing changed.
    Rejected(Order, RejectReason),
}

/// The matching engine of one symbol.
#[derive(Debug)]
pub struct Matcher {
    book: Book,
    trades: u64,
    halted: bool,
}

impl Matcher {
    /// A matcher with an empty book for at most `capacity` resting orders.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { book: Book::with_capacity(capacity), trades: 0, halted: false }
    }

    /// The resting orders.
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// Number of fills so far.
    pub fn trades(&self) -> u64 {
        self.trades
    }

    /// Whether trading is halted.
    pub fn is_halted(&self) -> bool {
        self.halted
    }

    /// Halts trading or lets it go on.
    pub fn set_halted(&mut self, halted: bool) {
        self.halted = halted;
    }

    /// Matches an incoming order.
    pub fn submit(&mut self, new: NewOrder, mut emit: impl FnMut(Event)) {
        if let Some(reason) = self.refuse(&new) {
            return emit(Event::Rejected(new.order, reason));
        }
        emit(Event::Accepted(new.order));
        self.execute(new, &mut emit);
    }

    /// Takes a resting order off the book and matches another one in its place, behind all orders of
    /// its price. When the new one is not valid the old one stays.
    ///
    /// # Errors
    /// [`BookError::UnknownId`] when there is no order `id`.
    pub fn replace(
        &mut self,
        id: u64,
        replacement: Replacement,
        mut emit: impl FnMut(Event),
    ) -> Result<(), BookError> {
        let old = self.book.order(id).ok_or(BookError::UnknownId)?;
        let Replacement { id: new_id, quantity, price, order_type } = replacement;
        let new = NewOrder { order: Order { id: new_id, quantity, price, ..old }, order_type };
        if let Some(reason) = self.refuse(&new) {
            emit(Event::Rejected(new.order, reason));
            return Ok(());
        }
        self.book.remove(id)?;
        emit(Event::Replaced(old, new.order));
        self.execute(new, &mut emit);
        Ok(())
    }

    /// Takes shares off a resting order so that at most `remaining` stay open, at its place in the
    /// queue; all of it with 0.
    ///
    /// # Errors
    /// [`BookError::UnknownId`], or [`BookError::Quantity`] when no more than `remaining` are open.
    pub fn cancel(&mut self, id: u64, remaining: u32, mut emit: impl FnMut(Event)) -> Result<(), BookError> {
        let order = self.book.order(id).ok_or(BookError::UnknownId)?;
        let quantity = order.quantity.saturating_sub(remaining);
        self.book.reduce(id, quantity)?;
        emit(Event::Canceled(Order { quantity, ..order }, CancelReason::Requested));
        Ok(())
    }

    /// Takes at most `quantity` shares off a resting order, without an event. Returns the order as
    /// it is afterwards.
    ///
    /// # Errors
    /// [`BookError::UnknownId`], or [`BookError::Quantity`] for 0.
    pub fn reduce(&mut self, id: u64, quantity: u32) -> Result<Order, BookError> {
        let open = self.book.order(id).ok_or(BookError::UnknownId)?.quantity;
        self.book.reduce(id, quantity.min(open))
    }

    /// Takes every order of `owner` off the book.
    pub fn cancel_owner(&mut self, owner: u32, mut emit: impl FnMut(Event)) {
        self.book.remove_owner(owner, |order| {
            emit(Event::Canceled(order, CancelReason::Requested));
        });
    }

    fn refuse(&self, new: &NewOrder) -> Option<RejectReason> {
        let NewOrder { order, order_type } = new;
        let would_trade = || self.counterpart(new).is_some();
        if order.quantity == 0 {
            Some(RejectReason::Quantity)
        } else if order.price == 0 && *order_type != OrderType::Market {
            Some(RejectReason::Price)
        } else if self.book.order(order.id).is_some() {
            Some(RejectReason::DuplicateId)
        } else {
            match order_type {
                OrderType::Limit if self.halted && would_trade() => Some(RejectReason::Halted),
                OrderType::Ioc | OrderType::Fok | OrderType::Market if self.halted => {
                    Some(RejectReason::Halted)
                }
                OrderType::PostOnly if would_trade() => Some(RejectReason::WouldTrade),
                _ => None,
            }
        }
    }

    /// Trades a valid order, and rests or cancels what is left.
    fn execute(&mut self, new: NewOrder, emit: &mut impl FnMut(Event)) {
        if new.order_type == OrderType::Fok && !self.can_fill(&new) {
            return emit(Event::Canceled(new.order, CancelReason::NotFilled));
        }
        let NewOrder { order: mut taker, order_type } = new;
        while taker.quantity > 0
            && let Some(maker) = self.counterpart(&new)
        {
            if is_self_match(&maker, &taker) {
                self.book.remove(maker.id).expect("the front order rests");
                emit(Event::Canceled(maker, CancelReason::SelfMatch));
                continue;
            }
            let quantity = taker.quantity.min(maker.quantity);
            let maker =
                self.book.reduce(maker.id, quantity).expect("the front order rests and has that quantity");
            taker.quantity -= quantity;
            self.trades += 1;
            emit(Event::Filled(Fill { maker, taker, price: maker.price, quantity, trade: self.trades }));
        }
        if taker.quantity == 0 {
            return;
        }
        match order_type {
            OrderType::Ioc | OrderType::Fok | OrderType::Market => {
                emit(Event::Canceled(taker, CancelReason::NotFilled));
            }
            OrderType::Limit | OrderType::PostOnly if self.book.is_full() => {
                emit(Event::Canceled(taker, CancelReason::BookFull));
            }
            OrderType::Limit | OrderType::PostOnly => {
                self.book.add(taker).expect("the order is valid, there is room and nothing left to cross");
            }
        }
    }

    /// The resting order that the incoming one meets first, if its limit allows.
    fn counterpart(&self, new: &NewOrder) -> Option<Order> {
        self.book.front(new.order.side.opposite()).filter(|maker| reaches(new, maker.price))
    }

    /// Whether the opposite side holds enough within the limit, of other owners.
    fn can_fill(&self, new: &NewOrder) -> bool {
        let mut missing = new.order.quantity;
        self.book
            .orders(new.order.side.opposite())
            .take_while(|maker| reaches(new, maker.price))
            .filter(|maker| !is_self_match(maker, &new.order))
            .any(|maker| {
                missing = missing.saturating_sub(maker.quantity);
                missing == 0
            })
    }
}

/// Whether the order may trade at the opposite price `price`.
fn reaches(new: &NewOrder, price: u32) -> bool {
    new.order_type == OrderType::Market || new.order.side.crosses(new.order.price, price)
}

fn is_self_match(maker: &Order, taker: &Order) -> bool {
    maker.owner == taker.owner && maker.owner != NOBODY
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::Side;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[derive(Debug, Clone)]
    enum Step {
        Submit(NewOrder),
        Replace(u64, Replacement),
        Cancel(u64, u32),
        CancelOwner(u32),
        Halt(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        let id = || 0..60u64;
        let price = || prop_oneof![20 => 95..105u32, 1 => Just(0)];
        let order_type = || {
            prop_oneof![
                4 => Just(OrderType::Limit),
                1 => Just(OrderType::PostOnly),
                1 => Just(OrderType::Ioc),
                1 => Just(OrderType::Fok),
                1 => Just(OrderType::Market),
            ]
        };
        let side = prop_oneof![Just(Side::Buy), Just(Side::Sell)];
        prop_oneof![
            40 => (id(), 0..4u32, side, price(), 0..8u32, order_type()).prop_map(
                |(id, owner, side, price, quantity, order_type)| Step::Submit(NewOrder {
                    order: Order { id, owner, side, price, quantity },
                    order_type,
                })
            ),
            8 => (id(), id(), price(), 0..8u32, order_type()).prop_map(
                |(id, new, price, quantity, order_type)| {
                    Step::Replace(id, Replacement { id: new, quantity, price, order_type })
                }
            ),
            8 => (id(), 0..4u32).prop_map(|(id, remaining)| Step::Cancel(id, remaining)),
            1 => (0..4u32).prop_map(Step::CancelOwner),
            1 => any::<bool>().prop_map(Step::Halt),
        ]
    }

    fn apply(matcher: &mut Matcher, step: &Step) -> Vec<Event> {
        let mut events = Vec::new();
        let emit = |event| events.push(event);
        match *step {
            Step::Submit(new) => matcher.submit(new, emit),
            Step::Replace(id, new) => {
                let rested = matcher.book().order(id).is_some();
                assert_eq!(matcher.replace(id, new, emit).is_ok(), rested);
            }
            Step::Cancel(id, remaining) => {
                let open = matcher.book().order(id).map_or(0, |order| order.quantity);
                assert_eq!(matcher.cancel(id, remaining, emit).is_ok(), open > remaining);
            }
            Step::CancelOwner(owner) => matcher.cancel_owner(owner, emit),
            Step::Halt(halted) => matcher.set_halted(halted),
        }
        events
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        prop::collection::vec(step(), 1..200)
    }

    proptest! {
        #[test]
        fn never_crossed_and_quantity_is_conserved(steps in steps()) {
            let mut matcher = Matcher::with_capacity(24);
            // id of a live order -> shares that are neither filled nor canceled yet.
            let mut open: HashMap<u64, u32> = HashMap::new();
            for step in &steps {
                for event in apply(&mut matcher, step) {
                    match event {
                        Event::Accepted(order) => {
                            prop_assert_eq!(open.insert(order.id, order.quantity), None);
                        }
                        Event::Replaced(old, new) => {
                            prop_assert_eq!(open.remove(&old.id), Some(old.quantity));
                            prop_assert_eq!((old.owner, old.side), (new.owner, new.side));
                            prop_assert_eq!(open.insert(new.id, new.quantity), None);
                        }
                        Event::Filled(fill) => {
                            prop_assert!(fill.quantity > 0);
                            let owners = (fill.maker.owner, fill.taker.owner);
                            prop_assert!(owners.0 != owners.1 || owners.0 == NOBODY, "self-match");
                            for (id, left) in [
                                (fill.maker.id, fill.maker.quantity),
                                (fill.taker.id, fill.taker.quantity),
                            ] {
                                prop_assert_eq!(open[&id] - fill.quantity, left);
                                open.insert(id, left);
                            }
                        }
                        Event::Canceled(order, _) => {
                            let left = open[&order.id].checked_sub(order.quantity);
                            open.insert(order.id, left.expect("no more than is open"));
                        }
                        Event::Rejected(..) => {}
                    }
                    open.retain(|_, left| *left > 0);
                }
                let book = matcher.book();
                prop_assert_eq!(book.len(), open.len());
                for (id, left) in &open {
                    prop_assert_eq!(book.order(*id).unwrap().quantity, *left);
                }
                if let (Some(bid), Some(ask)) = (book.best(Side::Buy), book.best(Side::Sell)) {
                    prop_assert!(bid.price < ask.price, "crossed");
                }
            }
        }

        #[test]
        fn priority_and_limit_are_kept(steps in steps()) {
            let mut matcher = Matcher::with_capacity(24);
            for step in &steps {
                let new = match *step {
                    Step::Submit(new) => Some(new),
                    Step::Replace(id, Replacement { order_type, .. }) => {
                        matcher.book().order(id).map(|order| NewOrder { order, order_type })
                    }
                    _ => None,
                };
                let mut queue: Vec<Order> = Vec::new();
                if let Some(new) = new {
                    queue.extend(matcher.book().orders(new.order.side.opposite()));
                }
                let mut queue = queue.iter();
                let halted = matcher.is_halted();
                let mut left = None;
                let events = apply(&mut matcher, step);
                for event in &events {
                    match event {
                        Event::Filled(fill) => {
                            prop_assert!(!halted);
                            prop_assert_eq!(queue.next().unwrap().id, fill.maker.id, "queue jumped");
                            prop_assert_eq!(fill.price, fill.maker.price);
                            let order_type = new.unwrap().order_type;
                            prop_assert!(
                                order_type == OrderType::Market
                                    || fill.taker.side.crosses(fill.taker.price, fill.price)
                            );
                            prop_assert!(order_type != OrderType::PostOnly);
                            prop_assert!(
                                fill.maker.quantity == 0 || fill.taker.quantity == 0,
                                "stopped early"
                            );
                            left = Some(fill.taker.quantity);
                        }
                        Event::Canceled(order, CancelReason::SelfMatch) => {
                            prop_assert_eq!(queue.next().unwrap().id, order.id);
                        }
                        _ => {}
                    }
                }
                if new.is_some_and(|new| new.order_type == OrderType::Fok) {
                    prop_assert!(left.is_none_or(|left| left == 0), "all or nothing");
                }
            }
        }

        #[test]
        fn same_input_same_events(steps in steps()) {
            let (mut a, mut b) = (Matcher::with_capacity(24), Matcher::with_capacity(24));
            for step in &steps {
                prop_assert_eq!(apply(&mut a, step), apply(&mut b, step));
            }
        }
    }

    /// A matcher in which these limit orders rest: (id, owner, side, price, quantity).
    fn with_orders(orders: &[(u64, u32, Side, u32, u32)]) -> Matcher {
        let mut matcher = Matcher::with_capacity(8);
        for &(id, owner, side, price, quantity) in orders {
            let order = Order { id, owner, side, price, quantity };
            matcher.submit(NewOrder { order, order_type: OrderType::Limit }, |_| {});
            assert_eq!(matcher.book().order(id), Some(order));
        }
        matcher
    }

    /// Submits order 9 of owner 1 and tells in short what happened.
    fn submit(matcher: &mut Matcher, order_type: OrderType, side: Side, price: u32, quantity: u32) -> String {
        let order = Order { id: 9, owner: 1, side, price, quantity };
        tell(&apply(matcher, &Step::Submit(NewOrder { order, order_type })))
    }

    fn tell(events: &[Event]) -> String {
        let words = events.iter().map(|event| match event {
            Event::Accepted(order) => format!("accepted {}", order.id),
            Event::Replaced(old, new) => format!("replaced {} by {}", old.id, new.id),
            Event::Filled(fill) => {
                format!("filled {} of {} at {}", fill.quantity, fill.maker.id, fill.price)
            }
            Event::Canceled(order, reason) => {
                format!("canceled {} of {}: {reason:?}", order.quantity, order.id)
            }
            Event::Rejected(order, reason) => format!("rejected {}: {reason:?}", order.id),
        });
        words.collect::<Vec<_>>().join(", ")
    }

    const BUY: Side = Side::Buy;
    const SELL: Side = Side::Sell;

    #[test]
    fn each_type_does_with_its_rest_what_it_says() {
        let asks = [(1, 2, SELL, 100, 5), (2, 2, SELL, 101, 5), (3, 2, SELL, 105, 5)];
        for (order_type, price, quantity, happens, rests) in [
            (OrderType::Limit, 100, 8, "accepted 9, filled 5 of 1 at 100", 3),
            (OrderType::PostOnly, 100, 8, "rejected 9: WouldTrade", 0),
            (OrderType::PostOnly, 99, 8, "accepted 9", 8),
            (OrderType::Ioc, 100, 8, "accepted 9, filled 5 of 1 at 100, canceled 3 of 9: NotFilled", 0),
            (OrderType::Fok, 101, 11, "accepted 9, canceled 11 of 9: NotFilled", 0),
            (OrderType::Fok, 101, 10, "accepted 9, filled 5 of 1 at 100, filled 5 of 2 at 101", 0),
            (
                OrderType::Market,
                0,
                16,
                "accepted 9, filled 5 of 1 at 100, filled 5 of 2 at 101, filled 5 of 3 at 105, \
                 canceled 1 of 9: NotFilled",
                0,
            ),
        ] {
            let mut matcher = with_orders(&asks);
            assert_eq!(submit(&mut matcher, order_type, BUY, price, quantity), happens);
            let rest = matcher.book().order(9).map_or(0, |order| order.quantity);
            assert_eq!(rest, rests, "{order_type:?}");
        }
    }

    #[test]
    fn nobody_trades_with_himself_but_the_market_does() {
        let bids = [(1, 1, BUY, 100, 5), (2, 2, BUY, 100, 5), (3, 1, BUY, 99, 5)];
        let mut matcher = with_orders(&bids);
        assert_eq!(
            submit(&mut matcher, OrderType::Limit, SELL, 99, 7),
            "accepted 9, canceled 5 of 1: SelfMatch, filled 5 of 2 at 100, canceled 5 of 3: SelfMatch"
        );
        assert_eq!(matcher.book().order(9).unwrap().quantity, 2);
        // What is one's own does not count towards filling all.
        let mut matcher = with_orders(&bids);
        assert_eq!(
            submit(&mut matcher, OrderType::Fok, SELL, 99, 6),
            "accepted 9, canceled 6 of 9: NotFilled"
        );
        let mut matcher = with_orders(&[(1, NOBODY, BUY, 100, 5)]);
        let order = Order { id: 2, owner: NOBODY, side: SELL, price: 100, quantity: 5 };
        let events = apply(&mut matcher, &Step::Submit(NewOrder { order, order_type: OrderType::Ioc }));
        assert_eq!(tell(&events), "accepted 2, filled 5 of 1 at 100");
    }

    #[test]
    fn less_keeps_its_place_and_a_replacement_goes_to_the_end() {
        let mut matcher = with_orders(&[(1, 2, BUY, 100, 5), (2, 2, BUY, 100, 5), (3, 2, BUY, 100, 5)]);
        assert_eq!(tell(&apply(&mut matcher, &Step::Cancel(1, 4))), "canceled 1 of 1: Requested");
        let limit = |id, quantity, price| Replacement { id, quantity, price, order_type: OrderType::Limit };
        let events = apply(&mut matcher, &Step::Replace(2, limit(4, 5, 100)));
        assert_eq!(tell(&events), "replaced 2 by 4");
        let invalid =
            [(limit(3, 5, 100), "rejected 3: DuplicateId"), (limit(5, 0, 100), "rejected 5: Quantity")];
        for (replacement, says) in invalid {
            assert_eq!(tell(&apply(&mut matcher, &Step::Replace(1, replacement))), says);
        }
        assert_eq!(
            submit(&mut matcher, OrderType::Limit, SELL, 100, 14),
            "accepted 9, filled 4 of 1 at 100, filled 5 of 3 at 100, filled 5 of 4 at 100"
        );
    }

    #[test]
    fn a_halt_lets_orders_rest_and_leave_but_not_trade() {
        let mut matcher = with_orders(&[(1, 2, BUY, 100, 5)]);
        matcher.set_halted(true);
        for order_type in [OrderType::Limit, OrderType::Ioc, OrderType::Fok, OrderType::Market] {
            assert_eq!(submit(&mut matcher, order_type, SELL, 100, 1), "rejected 9: Halted");
        }
        assert_eq!(submit(&mut matcher, OrderType::Limit, SELL, 101, 1), "accepted 9");
        let across = Replacement { id: 8, quantity: 1, price: 100, order_type: OrderType::Limit };
        assert_eq!(tell(&apply(&mut matcher, &Step::Replace(9, across))), "rejected 8: Halted");
        assert_eq!(tell(&apply(&mut matcher, &Step::Cancel(9, 0))), "canceled 1 of 9: Requested");
        matcher.set_halted(false);
        assert_eq!(submit(&mut matcher, OrderType::Limit, SELL, 100, 1), "accepted 9, filled 1 of 1 at 100");
    }

    #[test]
    fn a_full_book_cancels_what_would_rest() {
        let mut matcher = Matcher::with_capacity(1);
        assert_eq!(submit(&mut matcher, OrderType::Limit, BUY, 100, 1), "accepted 9");
        let order = Order { id: 10, owner: 1, side: BUY, price: 99, quantity: 1 };
        let events = apply(&mut matcher, &Step::Submit(NewOrder { order, order_type: OrderType::Limit }));
        assert_eq!(tell(&events), "accepted 10, canceled 1 of 10: BookFull");
    }
}
