//! The limit order book: every order, by price and then by time (L3).
//!
//! Orders live in one slab and are chained into the queue of their price level; an index finds
//! them by id. The levels of a side are a sorted `Vec` with the best price last, because nearly
//! all traffic is close to the best price: inserting or removing there moves few elements, and no
//! price range has to be known in advance. After [`Book::with_capacity`] an order allocates
//! nothing; only more distinct prices than ever before can make a level list grow.
//!
//! The book does not match. It refuses an order that would cross it, so it is never crossed.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// End of a chain of slots.
const NIL: u32 = u32::MAX;

/// Price levels a side holds before its list has to grow; fewer when fewer orders fit.
const LEVELS: usize = 1024;

/// Side of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Buys; rests among the bids.
    Buy,
    /// Sells; rests among the asks.
    Sell,
}

impl Side {
    /// The side an order of this side trades with.
    #[must_use]
    pub fn opposite(self) -> Self {
        match self {
            Self::Buy => Self::Sell,
            Self::Sell => Self::Buy,
        }
    }

    /// Whether `a` has priority over `b` among resting orders of this side.
    pub fn better(self, a: u32, b: u32) -> bool {
        match self {
            Self::Buy => a > b,
            Self::Sell => a < b,
        }
    }

    /// Whether an order of this side limited to `price` trades with the opposite price `other`.
    pub fn crosses(self, price: u32, other: u32) -> bool {
        match self {
            Self::Buy => price >= other,
            Self::Sell => price <= other,
        }
    }
}

/// A resting order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Unique in the book.
    pub id: u64,
    /// Who owns it; the book only keeps it.
    pub owner: u32,
    /// Side it rests on.
    pub side: Side,
    /// Limit in units of 1/10000 of the currency.
    pub price: u32,
    /// Quantity still open, in shares; never 0 in the book.
    pub quantity: u32,
}

/// What one price holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Price in units of 1/10000 of the currency.
    pub price: u32,
    /// Sum of the open quantities, in shares.
    pub quantity: u64,
    /// Number of orders.
    pub orders: u32,
    /// First slot in time priority.
    head: u32,
    /// Last slot in time priority.
    tail: u32,
}

/// Why the book refused a change; it is unchanged then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// An order of that id rests already.
    #[error("order id rests in the book already")]
    DuplicateId,
    /// No order of that id rests.
    #[error("no order of that id rests in the book")]
    UnknownId,
    /// Quantity 0, or more than is open.
    #[error("quantity is zero or more than is open")]
    Quantity,
    /// The order would trade with the other side.
    #[error("order would cross the book")]
    Crosses,
    /// The capacity is used up.
    #[error("book is full")]
    Full,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Quantity 0 marks a free slot.
    order: Order,
    previous: u32,
    next: u32,
}

/// A limit order book of one symbol.
#[derive(Debug)]
pub struct Book {
    slots: Vec<Slot>,
    /// First free slot; the chain goes through `next`.
    free: u32,
    index: HashMap<u64, u32, BuildHasherDefault<IdHasher>>,
    /// Ascending: the highest bid is last.
    bids: Vec<Level>,
    /// Descending: the lowest ask is last.
    asks: Vec<Level>,
    capacity: usize,
}

impl Book {
    /// An empty book for at most `capacity` orders.
    pub fn with_capacity(capacity: usize) -> Self {
        let capacity = capacity.min(NIL as usize);
        Self {
            slots: Vec::with_capacity(capacity),
            free: NIL,
            // Twice the room: removals leave tombstones, which a half-empty table clears in place.
            index: HashMap::with_capacity_and_hasher(capacity * 2, BuildHasherDefault::default()),
            bids: Vec::with_capacity(LEVELS.min(capacity)),
            asks: Vec::with_capacity(LEVELS.min(capacity)),
            capacity,
        }
    }

    /// Number of resting orders.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether nothing rests.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Whether no further order fits.
    pub fn is_full(&self) -> bool {
        self.index.len() == self.capacity
    }

    /// The resting order `id`.
    pub fn order(&self, id: u64) -> Option<Order> {
        self.index.get(&id).map(|&slot| self.slots[slot as usize].order)
    }

    /// Best level of `side`.
    pub fn best(&self, side: Side) -> Option<&Level> {
        self.levels(side).last()
    }

    /// Levels of `side`, best first.
    pub fn depth(&self, side: Side) -> impl Iterator<Item = &Level> {
        self.levels(side).iter().rev()
    }

    /// The order of `side` that trades next.
    pub fn front(&self, side: Side) -> Option<Order> {
        self.best(side).map(|level| self.slots[level.head as usize].order)
    }

    /// Orders of `side`, in the order in which they would trade.
    pub fn orders(&self, side: Side) -> impl Iterator<Item = Order> {
        self.depth(side).flat_map(|level| {
            let first = self.slots.get(level.head as usize);
            std::iter::successors(first, |slot| self.slots.get(slot.next as usize)).map(|slot| slot.order)
        })
    }

    /// Some resting order, chosen by `seed`; any order can be chosen.
    pub fn pick(&self, seed: u64) -> Option<Order> {
        let len = self.slots.len();
        if self.is_empty() {
            return None;
        }
        let start = (seed % len as u64) as usize;
        let (head, tail) = self.slots.split_at(start);
        tail.iter().chain(head).map(|slot| slot.order).find(|order| order.quantity > 0)
    }

    /// Puts `order` at the end of its level's queue.
    ///
    /// # Errors
    /// [`BookError::Quantity`], [`BookError::DuplicateId`], [`BookError::Crosses`] or
    /// [`BookError::Full`].
    pub fn add(&mut self, order: Order) -> Result<(), BookError> {
        if order.quantity == 0 {
            return Err(BookError::Quantity);
        }
        if self.index.contains_key(&order.id) {
            return Err(BookError::DuplicateId);
        }
        if let Some(best) = self.best(order.side.opposite())
            && order.side.crosses(order.price, best.price)
        {
            return Err(BookError::Crosses);
        }
        if self.is_full() {
            return Err(BookError::Full);
        }
        let slot = self.take_slot(order);
        self.index.insert(order.id, slot);
        match self.find(order.side, order.price) {
            Ok(at) => {
                let level = &mut self.levels_mut(order.side)[at];
                let tail = level.tail;
                level.tail = slot;
                level.orders += 1;
                level.quantity += u64::from(order.quantity);
                self.slots[tail as usize].next = slot;
                self.slots[slot as usize].previous = tail;
            }
            Err(at) => self.levels_mut(order.side).insert(
                at,
                Level {
                    price: order.price,
                    quantity: u64::from(order.quantity),
                    orders: 1,
                    head: slot,
                    tail: slot,
                },
            ),
        }
        Ok(())
    }

    /// Takes `quantity` shares off the order `id`, keeping its priority, and the order off the
    /// book when nothing is left. Returns the order as it is afterwards (quantity 0 when gone).
    ///
    /// # Errors
    /// [`BookError::UnknownId`], or [`BookError::Quantity`] for 0 or more than is open.
    pub fn reduce(&mut self, id: u64, quantity: u32) -> Result<Order, BookError> {
        let &slot = self.index.get(&id).ok_or(BookError::UnknownId)?;
        let order = &mut self.slots[slot as usize].order;
        if quantity == 0 || quantity > order.quantity {
            return Err(BookError::Quantity);
        }
        if quantity == order.quantity {
            self.unlink(slot);
            let order = self.slots[slot as usize].order;
            return Ok(Order { quantity: 0, ..order });
        }
        order.quantity -= quantity;
        let order = *order;
        let at = self.find(order.side, order.price).expect("a resting order has a level");
        self.levels_mut(order.side)[at].quantity -= u64::from(quantity);
        Ok(order)
    }

    /// Takes the order `id` off the book and returns it.
    ///
    /// # Errors
    /// [`BookError::UnknownId`].
    pub fn remove(&mut self, id: u64) -> Result<Order, BookError> {
        let &slot = self.index.get(&id).ok_or(BookError::UnknownId)?;
        let order = self.slots[slot as usize].order;
        self.unlink(slot);
        Ok(order)
    }

    /// Replaces the order `id` by `new_id` with a new quantity (shares) and price, behind all
    /// orders of that price. Returns the order that was replaced.
    ///
    /// # Errors
    /// As [`Book::add`] and [`Book::remove`]; the old order stays then.
    pub fn replace(&mut self, id: u64, new_id: u64, quantity: u32, price: u32) -> Result<Order, BookError> {
        let old = self.order(id).ok_or(BookError::UnknownId)?;
        if quantity == 0 {
            return Err(BookError::Quantity);
        }
        if new_id != id && self.index.contains_key(&new_id) {
            return Err(BookError::DuplicateId);
        }
        if let Some(best) = self.best(old.side.opposite())
            && old.side.crosses(price, best.price)
        {
            return Err(BookError::Crosses);
        }
        self.remove(id)?;
        self.add(Order { id: new_id, quantity, price, ..old })
            .expect("what could fail was checked before the removal");
        Ok(old)
    }

    /// Takes every order of `owner` off the book, giving each to `each`.
    pub fn remove_owner(&mut self, owner: u32, mut each: impl FnMut(Order)) {
        for slot in 0..self.slots.len() {
            let order = self.slots[slot].order;
            if order.quantity > 0 && order.owner == owner {
                self.unlink(slot as u32);
                each(order);
            }
        }
    }

    /// Empties the book, keeping its memory.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.free = NIL;
        self.index.clear();
        self.bids.clear();
        self.asks.clear();
    }

    fn levels(&self, side: Side) -> &Vec<Level> {
        match side {
            Side::Buy => &self.bids,
            Side::Sell => &self.asks,
        }
    }

    fn levels_mut(&mut self, side: Side) -> &mut Vec<Level> {
        match side {
            Side::Buy => &mut self.bids,
            Side::Sell => &mut self.asks,
        }
    }

    /// Where the level of `price` is, or where it belongs.
    fn find(&self, side: Side, price: u32) -> Result<usize, usize> {
        let levels = self.levels(side);
        let at = levels.partition_point(|level| side.better(price, level.price));
        match levels.get(at) {
            Some(level) if level.price == price => Ok(at),
            _ => Err(at),
        }
    }

    fn take_slot(&mut self, order: Order) -> u32 {
        let filled = Slot { order, previous: NIL, next: NIL };
        if self.free == NIL {
            self.slots.push(filled);
            return (self.slots.len() - 1) as u32;
        }
        let slot = self.free;
        self.free = self.slots[slot as usize].next;
        self.slots[slot as usize] = filled;
        slot
    }

    /// Takes a used slot out of its level and the index, and puts it on the free list.
    fn unlink(&mut self, slot: u32) {
        let Slot { order, previous, next } = self.slots[slot as usize];
        self.index.remove(&order.id);
        let at = self.find(order.side, order.price).expect("a resting order has a level");
        let level = &mut self.levels_mut(order.side)[at];
        level.orders -= 1;
        level.quantity -= u64::from(order.quantity);
        if previous == NIL {
            level.head = next;
        }
        if next == NIL {
            level.tail = previous;
        }
        if level.orders == 0 {
            self.levels_mut(order.side).remove(at);
        }
        if previous != NIL {
            self.slots[previous as usize].next = next;
        }
        if next != NIL {
            self.slots[next as usize].previous = previous;
        }
        let freed = &mut self.slots[slot as usize];
        freed.order.quantity = 0;
        freed.previous = NIL;
        freed.next = self.free;
        self.free = slot;
    }
}

/// Hashes an order id by one multiplication: ids are nearly sequential, nobody chooses them to
/// collide, and SipHash would cost more than the rest of a lookup.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, id: u64) {
        // 2^64 / golden ratio; the rotation brings the well-mixed high bits down to where the
        // table takes its bucket from.
        self.0 = (self.0 ^ id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = self.0.rotate_left(26);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(id: u64, side: Side, price: u32, quantity: u32) -> Order {
        Order { id, owner: (id % 3) as u32, side, price, quantity }
    }

    /// The same book, written to be obviously right: a list in time order.
    #[derive(Default)]
    struct Model(Vec<Order>);

    impl Model {
        fn best(&self, side: Side) -> Option<u32> {
            let prices = self.0.iter().filter(|o| o.side == side).map(|o| o.price);
            match side {
                Side::Buy => prices.max(),
                Side::Sell => prices.min(),
            }
        }

        fn add(&mut self, order: Order, capacity: usize) -> Result<(), BookError> {
            if order.quantity == 0 {
                return Err(BookError::Quantity);
            }
            if self.0.iter().any(|o| o.id == order.id) {
                return Err(BookError::DuplicateId);
            }
            if let Some(best) = self.best(order.side.opposite())
                && order.side.crosses(order.price, best)
            {
                return Err(BookError::Crosses);
            }
            if self.0.len() == capacity {
                return Err(BookError::Full);
            }
            self.0.push(order);
            Ok(())
        }

        fn reduce(&mut self, id: u64, quantity: u32) -> Result<Order, BookError> {
            let at = self.0.iter().position(|o| o.id == id);
            let at = at.ok_or(BookError::UnknownId)?;
            if quantity == 0 || quantity > self.0[at].quantity {
                return Err(BookError::Quantity);
            }
            self.0[at].quantity -= quantity;
            let order = self.0[at];
            self.0.retain(|o| o.quantity > 0);
            Ok(order)
        }

        fn remove(&mut self, id: u64) -> Result<Order, BookError> {
            let at = self.0.iter().position(|o| o.id == id);
            Ok(self.0.remove(at.ok_or(BookError::UnknownId)?))
        }

        fn orders(&self, side: Side) -> Vec<Order> {
            let mut orders: Vec<_> = self.0.iter().copied().filter(|o| o.side == side).collect();
            // Stable: time order stays within a price.
            orders.sort_by_key(|o| match side {
                Side::Buy => -i64::from(o.price),
                Side::Sell => i64::from(o.price),
            });
            orders
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Add(Order),
        Reduce(u64, u32),
        Remove(u64),
        Replace(u64, u64, u32, u32),
        RemoveOwner(u32),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        let id = 0..40u64;
        let side = prop_oneof![Just(Side::Buy), Just(Side::Sell)];
        prop_oneof![
            60 => (id.clone(), side, 90..110u32, 0..5u32)
                .prop_map(|(id, side, price, quantity)| Step::Add(order(id, side, price, quantity))),
            20 => (id.clone(), 0..4u32).prop_map(|(id, quantity)| Step::Reduce(id, quantity)),
            20 => id.clone().prop_map(Step::Remove),
            10 => (id.clone(), id, 0..5u32, 90..110u32)
                .prop_map(|(id, new, quantity, price)| Step::Replace(id, new, quantity, price)),
            1 => (0..3u32).prop_map(Step::RemoveOwner),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        #[test]
        fn behaves_as_the_model(steps in prop::collection::vec(step(), 1..300)) {
            const CAPACITY: usize = 16;
            let mut book = Book::with_capacity(CAPACITY);
            let mut model = Model::default();
            for step in steps {
                match step {
                    Step::Add(order) => {
                        prop_assert_eq!(book.add(order), model.add(order, CAPACITY));
                    }
                    Step::Reduce(id, quantity) => {
                        prop_assert_eq!(book.reduce(id, quantity), model.reduce(id, quantity));
                    }
                    Step::Remove(id) => prop_assert_eq!(book.remove(id), model.remove(id)),
                    Step::Replace(id, new_id, quantity, price) => {
                        let before = model.0.clone();
                        let expected = model.remove(id).and_then(|old| {
                            model.add(Order { id: new_id, quantity, price, ..old }, CAPACITY)?;
                            Ok(old)
                        });
                        if expected.is_err() {
                            model.0 = before;
                        }
                        prop_assert_eq!(book.replace(id, new_id, quantity, price), expected);
                    }
                    Step::RemoveOwner(owner) => {
                        let mut gone = Vec::new();
                        book.remove_owner(owner, |order| gone.push(order.id));
                        let mut expected: Vec<_> =
                            model.0.iter().filter(|o| o.owner == owner).map(|o| o.id).collect();
                        model.0.retain(|o| o.owner != owner);
                        gone.sort_unstable();
                        expected.sort_unstable();
                        prop_assert_eq!(gone, expected);
                    }
                    Step::Clear => {
                        book.clear();
                        model.0.clear();
                    }
                }
                prop_assert_eq!(book.len(), model.0.len());
                for side in [Side::Buy, Side::Sell] {
                    let expected = model.orders(side);
                    prop_assert_eq!(book.orders(side).collect::<Vec<_>>(), expected.clone());
                    prop_assert_eq!(book.front(side), expected.first().copied());
                    for level in book.depth(side) {
                        let at: Vec<_> =
                            expected.iter().filter(|o| o.price == level.price).collect();
                        prop_assert_eq!(level.orders as usize, at.len());
                        let quantity: u64 = at.iter().map(|o| u64::from(o.quantity)).sum();
                        prop_assert_eq!(level.quantity, quantity);
                    }
                }
                if let (Some(bid), Some(ask)) = (book.best(Side::Buy), book.best(Side::Sell)) {
                    prop_assert!(bid.price < ask.price, "crossed");
                }
            }
        }
    }

    #[test]
    fn pick_reaches_every_order_and_only_live_ones() {
        let mut book = Book::with_capacity(8);
        assert_eq!(book.pick(3), None);
        for id in 0..6 {
            book.add(order(id, Side::Buy, 100, 1)).unwrap();
        }
        book.remove(2).unwrap();
        book.remove(3).unwrap();
        let mut seen: Vec<_> = (0..6).filter_map(|n| book.pick(n)).map(|o| o.id).collect();
        seen.dedup();
        assert_eq!(seen, [0, 1, 4, 5]);
    }

    #[test]
    fn allocates_nothing_for_an_order_after_warm_up() {
        let mut book = Book::with_capacity(64);
        let room = (book.slots.capacity(), book.index.capacity());
        for id in 0..100_000 {
            book.add(order(id, Side::Buy, 100 + (id % 50) as u32, 1)).unwrap();
            if id >= 60 {
                book.remove(id - 60).unwrap();
            }
        }
        assert_eq!(room.0, book.slots.capacity());
        // `HashMap::capacity` shrinks by its tombstones, but never grows past what was reserved.
        assert!(book.index.capacity() <= room.1);
        assert_eq!(book.bids.capacity(), 64);
    }
}
