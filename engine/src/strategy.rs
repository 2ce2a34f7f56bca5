//! The trading decision: order book imbalance.
//!
//! When much more quantity rests on one side of the top of the book than on the other, the price
//! tends to move away from that side; the strategy then takes the best price on the thin side. It
//! is a function of the books it was shown, nothing else: no clock, no randomness.

use crate::book::{Book, Side};

/// Levels of each side that are weighed.
const DEPTH: usize = 3;

/// Imbalance in percent from which it trades.
const THRESHOLD: i64 = 50;

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
    /// What was wanted last; it is not wanted again until the signal or the price changes.
    last: Option<Intent>,
}

impl Imbalance {
    /// What to do about the book as it is now.
    pub fn decide(&mut self, book: &Book) -> Option<Intent> {
        let intent = signal(book).and_then(|side| {
            book.best(side.opposite()).map(|best| Intent {
                side,
                price: best.price,
                quantity: QUANTITY,
            })
        });
        if intent == self.last {
            return None;
        }
        self.last = intent;
        intent
    }
}

/// The side to trade on, when the imbalance is large enough.
fn signal(book: &Book) -> Option<Side> {
    let weigh = |side| -> i64 {
        book.depth(side)
            .take(DEPTH)
            .map(|level| level.quantity as i64)
            .sum()
    };
    let (bid, ask) = (weigh(Side::Buy), weigh(Side::Sell));
    if bid == 0 || ask == 0 {
        return None;
    }
    match (bid - ask) * 100 / (bid + ask) {
        THRESHOLD.. => Some(Side::Buy),
        imbalance if imbalance <= -THRESHOLD => Some(Side::Sell),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::Order;

    fn add(book: &mut Book, id: u64, side: Side, price: u32, quantity: u32) {
        book.add(Order {
            id,
            owner: 0,
            side,
            price,
            quantity,
        })
        .unwrap();
    }

    #[test]
    fn takes_the_thin_side_once_per_change() {
        let mut book = Book::with_capacity(8);
        let mut strategy = Imbalance::default();
        assert_eq!(strategy.decide(&book), None);
        add(&mut book, 1, Side::Buy, 99, 300);
        assert_eq!(strategy.decide(&book), None, "one side is empty");
        add(&mut book, 2, Side::Sell, 101, 100);
        let buy = Intent {
            side: Side::Buy,
            price: 101,
            quantity: QUANTITY,
        };
        assert_eq!(strategy.decide(&book), Some(buy));
        assert_eq!(strategy.decide(&book), None, "nothing changed");
        add(&mut book, 3, Side::Sell, 102, 900);
        assert_eq!(
            strategy.decide(&book),
            Some(Intent {
                side: Side::Sell,
                price: 99,
                ..buy
            })
        );
        add(&mut book, 4, Side::Buy, 98, 600);
        assert_eq!(strategy.decide(&book), None, "balanced");
        book.remove(3).unwrap();
        assert_eq!(strategy.decide(&book), Some(buy), "the signal came back");
    }
}
