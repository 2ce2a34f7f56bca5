//! Price-time matching over a [`Book`].
//!
//! An incoming order trades with the best opposite orders, oldest first, at *their* price, as far
//! as its limit allows; what is left rests or is canceled, as its time in force says. Everything
//! that happens is given to the caller's `emit` in order; nothing else comes out, so the same input
//! gives the same events.

use crate::book::{Book, BookError, Order};

/// How long an order may wait for a counterpart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeInForce {
    /// Rests until it is filled or canceled.
    Day,
    /// Immediate or cancel: trades what it can at once, the rest is canceled.
    Ioc,
}

/// A limit order that comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewOrder {
    /// The order; its id must not rest in the book.
    pub order: Order,
    /// What happens to what does not trade at once.
    pub time_in_force: TimeInForce,
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
    /// What an immediate-or-cancel order could not trade.
    ImmediateOrCancel,
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
}

/// What matching did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The order was valid; its fills follow.
    Accepted(Order),
    /// Two orders traded.
    Filled(Fill),
    /// The order's open quantity was taken away.
    Canceled(Order, CancelReason),
    /// The order was not valid; nothing changed.
    Rejected(Order, RejectReason),
}

/// The matching engine of one symbol.
#[derive(Debug)]
pub struct Matcher {
    book: Book,
    trades: u64,
}

impl Matcher {
    /// A matcher with an empty book for at most `capacity` resting orders.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { book: Book::with_capacity(capacity), trades: 0 }
    }

    /// The resting orders.
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// Number of fills so far.
    pub fn trades(&self) -> u64 {
        self.trades
    }

    /// Matches an incoming order.
    pub fn submit(&mut self, new: NewOrder, mut emit: impl FnMut(Event)) {
        let mut taker = new.order;
        if let Some(reason) = self.refuse(&taker) {
            return emit(Event::Rejected(taker, reason));
        }
        emit(Event::Accepted(taker));
        while taker.quantity > 0
            && let Some(maker) = self.book.front(taker.side.opposite())
            && taker.side.crosses(taker.price, maker.price)
        {
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
        match new.time_in_force {
            TimeInForce::Ioc => emit(Event::Canceled(taker, CancelReason::ImmediateOrCancel)),
            TimeInForce::Day if self.book.is_full() => {
                emit(Event::Canceled(taker, CancelReason::BookFull));
            }
            TimeInForce::Day => {
                self.book.add(taker).expect("the order is valid, there is room and nothing left to cross");
            }
        }
    }

    /// Takes a resting order off the book.
    ///
    /// # Errors
    /// [`BookError::UnknownId`].
    pub fn cancel(&mut self, id: u64, mut emit: impl FnMut(Event)) -> Result<(), BookError> {
        let order = self.book.remove(id)?;
        emit(Event::Canceled(order, CancelReason::Requested));
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

    fn refuse(&self, order: &Order) -> Option<RejectReason> {
        if order.quantity == 0 {
            Some(RejectReason::Quantity)
        } else if order.price == 0 {
            Some(RejectReason::Price)
        } else if self.book.order(order.id).is_some() {
            Some(RejectReason::DuplicateId)
        } else {
            None
        }
    }
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
        Cancel(u64),
        CancelOwner(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let new = (
            0..60u64,
            0..4u32,
            prop_oneof![Just(Side::Buy), Just(Side::Sell)],
            prop_oneof![20 => 95..105u32, 1 => Just(0)],
            0..8u32,
            prop_oneof![Just(TimeInForce::Day), Just(TimeInForce::Ioc)],
        );
        prop_oneof![
            40 => new.prop_map(|(id, owner, side, price, quantity, time_in_force)| {
                Step::Submit(NewOrder {
                    order: Order { id, owner, side, price, quantity },
                    time_in_force,
                })
            }),
            8 => (0..60u64).prop_map(Step::Cancel),
            1 => (0..4u32).prop_map(Step::CancelOwner),
        ]
    }

    fn apply(matcher: &mut Matcher, step: &Step) -> Vec<Event> {
        let mut events = Vec::new();
        match *step {
            Step::Submit(new) => matcher.submit(new, |event| events.push(event)),
            Step::Cancel(id) => {
                let rested = matcher.book().order(id).is_some();
                let canceled = matcher.cancel(id, |event| events.push(event));
                assert_eq!(canceled.is_ok(), rested);
            }
            Step::CancelOwner(owner) => matcher.cancel_owner(owner, |event| events.push(event)),
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
                        Event::Filled(fill) => {
                            prop_assert!(fill.quantity > 0);
                            for (id, left) in [
                                (fill.maker.id, fill.maker.quantity),
                                (fill.taker.id, fill.taker.quantity),
                            ] {
                                prop_assert_eq!(open[&id] - fill.quantity, left);
                                open.insert(id, left);
                            }
                        }
                        Event::Canceled(order, _) => {
                            prop_assert_eq!(open.insert(order.id, 0), Some(order.quantity));
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
                let resting: Vec<Order> = match step {
                    Step::Submit(new) => {
                        matcher.book().orders(new.order.side.opposite()).collect()
                    }
                    _ => Vec::new(),
                };
                let mut queue = resting.iter();
                for event in apply(&mut matcher, step) {
                    if let Event::Filled(fill) = event {
                        prop_assert_eq!(queue.next().unwrap().id, fill.maker.id, "queue jumped");
                        prop_assert_eq!(fill.price, fill.maker.price);
                        prop_assert!(fill.taker.side.crosses(fill.taker.price, fill.price));
                        prop_assert!(
                            fill.maker.quantity == 0 || fill.taker.quantity == 0,
                            "stopped early"
                        );
                    }
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

    fn submit(matcher: &mut Matcher, id: u64, side: Side, price: u32, quantity: u32) -> Vec<Event> {
        apply(
            matcher,
            &Step::Submit(NewOrder {
                order: Order { id, owner: 0, side, price, quantity },
                time_in_force: TimeInForce::Day,
            }),
        )
    }

    #[test]
    fn the_rest_of_a_day_order_rests_and_of_an_ioc_order_is_canceled() {
        let mut matcher = Matcher::with_capacity(8);
        submit(&mut matcher, 1, Side::Sell, 100, 5);
        submit(&mut matcher, 2, Side::Buy, 101, 8);
        assert_eq!(matcher.book().order(2).unwrap().quantity, 3);
        let events = apply(
            &mut matcher,
            &Step::Submit(NewOrder {
                order: Order { id: 3, owner: 0, side: Side::Sell, price: 101, quantity: 10 },
                time_in_force: TimeInForce::Ioc,
            }),
        );
        assert!(matches!(
            events[..],
            [
                Event::Accepted(_),
                Event::Filled(Fill { quantity: 3, price: 101, trade: 2, .. }),
                Event::Canceled(Order { id: 3, quantity: 7, .. }, CancelReason::ImmediateOrCancel),
            ]
        ));
        assert!(matcher.book().is_empty());
    }

    #[test]
    fn a_full_book_cancels_what_would_rest() {
        let mut matcher = Matcher::with_capacity(1);
        submit(&mut matcher, 1, Side::Buy, 100, 1);
        let events = submit(&mut matcher, 2, Side::Buy, 99, 1);
        assert!(matches!(events[1], Event::Canceled(_, CancelReason::BookFull)));
    }
}
