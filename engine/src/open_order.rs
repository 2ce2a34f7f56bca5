//! The engine's orders that are not finished: sent, and neither filled nor canceled nor rejected.

use crate::book::Side;

/// An order on its way or at the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenOrder {
    /// Our number for it.
    pub reference: u32,
    /// Instrument.
    pub symbol: u16,
    /// Buy or sell.
    pub side: Side,
    /// Shares still open.
    pub open: u32,
    /// When the send call started, in ns of `CLOCK_MONOTONIC`.
    pub sent_ns: u64,
    /// Whether the exchange has accepted or rejected it.
    pub acked: bool,
}

/// A fixed table of open orders. A reference has one place, its remainder by the size; references
/// rise one by one, so a place is taken only while an order one table's size older is still open.
#[derive(Debug)]
pub struct OpenOrders {
    places: Box<[Option<OpenOrder>]>,
    len: usize,
}

impl OpenOrders {
    /// A table of `size` places; at least one.
    pub fn new(size: usize) -> Self {
        Self { places: vec![None; size.max(1)].into_boxed_slice(), len: 0 }
    }

    /// Number of open orders.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether every order is finished.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether there is a place for `reference`.
    pub fn has_room(&self, reference: u32) -> bool {
        self.places[self.place(reference)].is_none()
    }

    /// Enters an order, over whatever has its place: ask [`OpenOrders::has_room`] first.
    pub fn insert(&mut self, order: OpenOrder) {
        let place = self.place(order.reference);
        self.len += usize::from(self.places[place].is_none());
        self.places[place] = Some(order);
    }

    /// The open order `reference`.
    pub fn order(&mut self, reference: u32) -> Option<&mut OpenOrder> {
        self.places[self.place(reference)].as_mut().filter(|order| order.reference == reference)
    }

    /// Forgets every order whose reference is above `reference`, giving each to `each`.
    pub fn remove_above(&mut self, reference: u32, mut each: impl FnMut(OpenOrder)) {
        for place in &mut self.places {
            if let Some(order) = place.take_if(|order| order.reference > reference) {
                self.len -= 1;
                each(order);
            }
        }
    }

    /// Forgets a finished order.
    pub fn remove(&mut self, reference: u32) {
        if self.order(reference).is_some() {
            self.places[self.place(reference)] = None;
            self.len -= 1;
        }
    }

    fn place(&self, reference: u32) -> usize {
        reference as usize % self.places.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_order_is_finished() {
        let mut orders = OpenOrders::new(4);
        let order = |reference| OpenOrder {
            reference,
            symbol: 1,
            side: Side::Buy,
            open: 1,
            sent_ns: 0,
            acked: false,
        };
        orders.insert(order(1));
        assert!(!orders.has_room(5) && orders.has_room(6));
        assert_eq!(orders.order(5), None);
        orders.remove(5);
        assert_eq!(orders.len(), 1);
        let mut removed = Vec::new();
        orders.insert(order(2));
        orders.remove_above(1, |order| removed.push(order.reference));
        assert_eq!((removed, orders.len()), (vec![2], 1));
        orders.remove(1);
        assert!(orders.is_empty() && orders.has_room(5));
    }
}
