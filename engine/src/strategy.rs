//! The trading decision: order book imbalance.
//!
//! When clearly more quantity rests at the best bid than at the best ask, the price tends to rise;
//! the strategy then takes the ask. And the other way round. It is a function of the books it was
//! shown, nothing else: no clock, no randomness.

use crate::book::{Book, Level, Side};

/// Imbalance in percent from which it trades.
const THRESHOLD: i64 = 30;

/// Shares per order.
const QUANTITY: u32 = 100;

/// An order the strategy wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intent {
    /// Buy or sell.
    pub side: Side,
    /// Limit: the best opposite price, in units of 1/10000 of the currency.
    pub price: u32,
    /// Shares.
    pub quantity: u32,
}

/// The imbalance strategy of one symbol.
#[derive(Debug, Default)]
pub struct Imbalance {
    /// Best bid and ask at the last decision; there is no other until one of them changes.
    last: Option<(Level, Level)>,
}

impl Imbalance {
    /// What to do about the book as it is now.
    pub fn decide(&mut self, book: &Book) -> Option<Intent> {
        let top = book.best(Side::Buy).copied().zip(book.best(Side::Sell).copied());
        if top == self.last {
            return None;
        }
        self.last = top;
        let (bid, ask) = top?;
        let (bids, asks) = (bid.quantity as i64, ask.quantity as i64);
        let (side, price) = match (bids - asks) * 100 / (bids + asks) {
            THRESHOLD.. => (Side::Buy, ask.price),
            imbalance if imbalance <= -THRESHOLD => (Side::Sell, bid.price),
            _ => return None,
        };
        Some(Intent { side, price, quantity: QUANTITY })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::Order;

    fn add(book: &mut Book, id: u64, side: Side, price: u32, quantity: u32) {
        book.add(Order { id, owner: 0, side, price, quantity }).unwrap();
    }

    #[test]
    fn takes_the_thin_side_once_per_change() {
        let mut book = Book::with_capacity(8);
        let mut strategy = Imbalance::default();
        assert_eq!(strategy.decide(&book), None);
        add(&mut book, 1, Side::Buy, 99, 300);
        assert_eq!(strategy.decide(&book), None, "one side is empty");
        add(&mut book, 2, Side::Sell, 101, 100);
        let buy = Intent { side: Side::Buy, price: 101, quantity: QUANTITY };
        assert_eq!(strategy.decide(&book), Some(buy));
        assert_eq!(strategy.decide(&book), None, "nothing changed");
        add(&mut book, 3, Side::Sell, 102, 900);
        assert_eq!(strategy.decide(&book), None, "not at the top");
        add(&mut book, 4, Side::Sell, 101, 200);
        assert_eq!(strategy.decide(&book), None, "balanced");
        book.reduce(1, 200).unwrap();
        assert_eq!(strategy.decide(&book), Some(Intent { side: Side::Sell, price: 99, ..buy }));
    }
}
