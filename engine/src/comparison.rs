//! Compares what two builds decide about the same market data.
//!
//! Both builds are deterministic and see the same messages, so for each message both decide alike,
//! or the builds differ. Decisions are matched by instrument and causing message, whichever comes
//! first; one that stays alone for [`PATIENCE_NS`] is counted as such. Bounded by [`MAX_WAITING`].

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::order_entry::EnterOrder;

/// How long a decision waits for its counterpart, in ns.
const PATIENCE_NS: u64 = 5_000_000_000;

/// Decisions that may wait.
const MAX_WAITING: usize = 64 * 1024;

/// How the decisions compare.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// Both decided alike.
    pub equal: u64,
    /// Both decided, but on side, quantity, price or type differently.
    pub different: u64,
    /// Only the primary sent an order, or the canary sent its one too late.
    pub only_primary: u64,
    /// Only the canary sent an order.
    pub only_canary: u64,
}

/// Which message about which instrument.
type Cause = (u16, u64);

/// Decisions that wait for their counterparts, and the result so far.
#[derive(Debug, Default)]
pub struct Comparison {
    waiting: HashMap<Cause, (bool, EnterOrder)>,
    /// Oldest first; those that found their counterpart are not in `waiting` any more.
    since: VecDeque<(Cause, u64)>,
    /// Decisions with older causes do not count any more.
    from_ns: u64,
    compared: Compared,
}

impl Comparison {
    /// Takes an order of the primary or the canary, received at `now_ns`.
    pub fn on_order(&mut self, is_primary: bool, order: &EnterOrder, now_ns: u64) {
        if order.cause_ns < self.from_ns {
            return;
        }
        let cause = (order.symbol, order.cause_ns);
        match self.waiting.get(&cause) {
            Some((of_primary, other)) if *of_primary != is_primary => {
                let alike = (other.side, other.quantity, other.price, other.order_type)
                    == (order.side, order.quantity, order.price, order.order_type);
                self.compared.equal += u64::from(alike);
                self.compared.different += u64::from(!alike);
                self.waiting.remove(&cause);
            }
            // A second order for the same cause has no counterpart either.
            Some(_) => self.alone(is_primary),
            None => {
                self.waiting.insert(cause, (is_primary, *order));
                self.since.push_back((cause, now_ns));
            }
        }
        self.on_time(now_ns);
    }

    /// Counts decisions that waited too long at `now_ns`.
    pub fn on_time(&mut self, now_ns: u64) {
        while let Some(&(cause, since_ns)) = self.since.front() {
            let is_old = now_ns.saturating_sub(since_ns) >= PATIENCE_NS || self.since.len() > MAX_WAITING;
            if self.waiting.contains_key(&cause) {
                if !is_old {
                    return;
                }
                if let Some((of_primary, _)) = self.waiting.remove(&cause) {
                    self.alone(of_primary);
                }
            }
            self.since.pop_front();
        }
    }

    /// Begins anew at `now_ns`: what was caused before will not have its counterpart.
    pub fn forget(&mut self, now_ns: u64) {
        self.from_ns = now_ns;
        self.waiting.clear();
        self.since.clear();
    }

    /// The result so far.
    pub fn compared(&self) -> Compared {
        self.compared
    }

    fn alone(&mut self, of_primary: bool) {
        self.compared.only_primary += u64::from(of_primary);
        self.compared.only_canary += u64::from(!of_primary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::Side;
    use crate::matching::OrderType;

    fn order(cause_ns: u64, price: u32) -> EnterOrder {
        EnterOrder {
            reference: 1,
            side: Side::Buy,
            quantity: 100,
            symbol: 3,
            price,
            order_type: OrderType::Ioc,
            cause_ns,
        }
    }

    #[test]
    fn decisions_are_matched_by_their_cause_in_any_order() {
        let mut comparison = Comparison::default();
        comparison.on_order(true, &order(1, 100), 0);
        comparison.on_order(false, &order(2, 100), 1);
        comparison.on_order(false, &order(1, 100), 2);
        comparison.on_order(true, &order(2, 101), 3);
        assert_eq!(comparison.compared(), Compared { equal: 1, different: 1, ..Compared::default() });
        comparison.on_order(true, &order(3, 100), 4);
        comparison.on_order(false, &order(4, 100), 5);
        comparison.on_order(false, &order(4, 100), 6);
        comparison.on_time(3 + PATIENCE_NS);
        assert_eq!(comparison.compared().only_canary, 1, "the second of two");
        comparison.on_time(5 + PATIENCE_NS);
        let compared = Compared { equal: 1, different: 1, only_primary: 1, only_canary: 2 };
        assert_eq!(comparison.compared(), compared);
        assert!(comparison.since.is_empty() && comparison.waiting.is_empty());
        comparison.on_order(true, &order(9, 100), 0);
        comparison.forget(10);
        comparison.on_order(false, &order(9, 100), 11);
        comparison.on_time(u64::MAX);
        assert_eq!(comparison.compared(), compared);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut comparison = Comparison::default();
        for cause in 0..2 * MAX_WAITING as u64 {
            comparison.on_order(true, &order(cause, 100), 0);
        }
        assert_eq!(comparison.waiting.len(), MAX_WAITING);
        assert_eq!(comparison.compared().only_primary, MAX_WAITING as u64);
    }
}
