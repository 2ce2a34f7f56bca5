//! Pre-trade risk: the checks every order passes before it may leave (after SEC 15c3-5, RTS 6).

use std::collections::VecDeque;

use crate::book::Side;
use crate::order_entry::EnterOrder;

/// Window of the rate limit, in ns.
const RATE_WINDOW_NS: u64 = 1_000_000_000;

/// What is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest order, in shares.
    pub quantity: u32,
    /// Largest quantity times price, in units of 1/10000 of the currency.
    pub notional: u64,
    /// Largest distance of the price from the middle of the book, in 1/10000 of the middle.
    pub collar_bps: u32,
    /// Most orders within any second.
    pub rate: u32,
    /// Largest position, long or short, were all open orders filled, in shares.
    pub position: u32,
}

/// Why an order may not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// Trading was switched off.
    KillSwitch,
    /// The reference is not higher than all before.
    DuplicateId,
    /// The order is empty or too large.
    Quantity,
    /// The order is worth too much.
    Notional,
    /// The price is too far from the middle of the book, or there is no middle.
    Collar,
    /// Too many orders within a second.
    Rate,
    /// The position could become too large.
    Position,
    /// Too many orders are open.
    OpenOrders,
}

impl Denied {
    /// Every reason with its name in reports; the index is `self as usize`.
    pub const ALL: [(Self, &'static str); 8] = [
        (Self::KillSwitch, "kill_switch"),
        (Self::DuplicateId, "duplicate_id"),
        (Self::Quantity, "quantity"),
        (Self::Notional, "notional"),
        (Self::Collar, "collar"),
        (Self::Rate, "rate"),
        (Self::Position, "position"),
        (Self::OpenOrders, "open_orders"),
    ];
}

/// The state the checks need: what was sent, what is open, what is held.
#[derive(Debug)]
pub struct Risk {
    limits: Limits,
    killed: bool,
    last_reference: u32,
    /// When the last orders left, in ns; at most `limits.rate` of them, oldest first.
    sent_ns: VecDeque<u64>,
    /// Shares held; negative when short.
    position: i64,
    /// Shares that open buy orders could add.
    open_buy: i64,
    /// Shares that open sell orders could take.
    open_sell: i64,
}

impl Risk {
    /// Nothing sent, nothing held.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            killed: false,
            last_reference: 0,
            sent_ns: VecDeque::with_capacity(limits.rate as usize),
            position: 0,
            open_buy: 0,
            open_sell: 0,
        }
    }

    /// Checks `order` at `now_ns` (monotonic) against the middle of the book, `middle`, in units of
    /// 1/10000 of the currency. When it passes it counts as sent.
    ///
    /// # Errors
    /// The first reason that applies, in the order of [`Denied::ALL`].
    pub fn check(&mut self, order: &EnterOrder, middle: Option<u32>, now_ns: u64) -> Result<(), Denied> {
        let limits = &self.limits;
        if self.killed {
            return Err(Denied::KillSwitch);
        }
        if order.reference <= self.last_reference {
            return Err(Denied::DuplicateId);
        }
        if order.quantity == 0 || order.quantity > limits.quantity {
            return Err(Denied::Quantity);
        }
        if u64::from(order.quantity) * u64::from(order.price) > limits.notional {
            return Err(Denied::Notional);
        }
        let in_collar = middle.is_some_and(|middle| {
            u64::from(order.price.abs_diff(middle)) * 10_000
                <= u64::from(limits.collar_bps) * u64::from(middle)
        });
        if !in_collar {
            return Err(Denied::Collar);
        }
        while let Some(&oldest) = self.sent_ns.front()
            && now_ns.saturating_sub(oldest) >= RATE_WINDOW_NS
        {
            self.sent_ns.pop_front();
        }
        if self.sent_ns.len() >= limits.rate as usize {
            return Err(Denied::Rate);
        }
        let quantity = i64::from(order.quantity);
        let worst = match order.side {
            Side::Buy => self.position + self.open_buy + quantity,
            Side::Sell => -self.position + self.open_sell + quantity,
        };
        if worst > i64::from(limits.position) {
            return Err(Denied::Position);
        }
        self.last_reference = order.reference;
        self.sent_ns.push_back(now_ns);
        *self.open(order.side) += quantity;
        Ok(())
    }

    /// `quantity` shares of an open order traded.
    pub fn filled(&mut self, side: Side, quantity: u32) {
        let quantity = i64::from(quantity);
        *self.open(side) -= quantity;
        match side {
            Side::Buy => self.position += quantity,
            Side::Sell => self.position -= quantity,
        }
    }

    /// `quantity` shares of an open order will not trade: it was canceled or rejected.
    pub fn released(&mut self, side: Side, quantity: u32) {
        *self.open(side) -= i64::from(quantity);
    }

    /// Switches trading off; nothing passes any more.
    pub fn kill(&mut self) {
        self.killed = true;
    }

    /// Shares held; negative when short.
    pub fn position(&self) -> i64 {
        self.position
    }

    fn open(&mut self, side: Side) -> &mut i64 {
        match side {
            Side::Buy => &mut self.open_buy,
            Side::Sell => &mut self.open_sell,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matching::TimeInForce;
    use proptest::prelude::*;

    const LIMITS: Limits =
        Limits { quantity: 100, notional: 100 * 10_500, collar_bps: 500, rate: 5, position: 300 };

    fn order(reference: u32, side: Side, quantity: u32, price: u32) -> EnterOrder {
        EnterOrder { reference, side, quantity, symbol: 1, price, time_in_force: TimeInForce::Ioc }
    }

    #[test]
    fn reasons_are_indexed_by_their_number() {
        for (at, (reason, _)) in Denied::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at);
        }
    }

    #[test]
    fn each_limit_denies_beyond_and_passes_at() {
        let middle = Some(10_000);
        let check = |order: EnterOrder, middle| Risk::new(LIMITS).check(&order, middle, 0);
        assert_eq!(check(order(1, Side::Buy, 100, 10_500), middle), Ok(()));
        assert_eq!(check(order(0, Side::Buy, 100, 10_000), middle), Err(Denied::DuplicateId));
        assert_eq!(check(order(1, Side::Buy, 101, 10_000), middle), Err(Denied::Quantity));
        assert_eq!(check(order(1, Side::Buy, 0, 10_000), middle), Err(Denied::Quantity));
        assert_eq!(check(order(1, Side::Buy, 100, 10_501), middle), Err(Denied::Notional));
        assert_eq!(check(order(1, Side::Buy, 1, 10_501), middle), Err(Denied::Collar));
        assert_eq!(check(order(1, Side::Sell, 1, 9_500), middle), Ok(()));
        assert_eq!(check(order(1, Side::Sell, 1, 9_499), middle), Err(Denied::Collar));
        assert_eq!(check(order(1, Side::Buy, 1, 10_000), None), Err(Denied::Collar));
        let mut risk = Risk::new(LIMITS);
        risk.kill();
        assert_eq!(risk.check(&order(1, Side::Buy, 1, 10_000), middle, 0), Err(Denied::KillSwitch));
    }

    #[test]
    fn a_reference_passes_once() {
        let mut risk = Risk::new(LIMITS);
        let first = order(7, Side::Buy, 1, 10_000);
        assert_eq!(risk.check(&first, Some(10_000), 0), Ok(()));
        assert_eq!(risk.check(&first, Some(10_000), 0), Err(Denied::DuplicateId));
    }

    #[test]
    fn open_and_filled_shares_count_towards_the_position() {
        let mut risk = Risk::new(LIMITS);
        let mut reference = 0;
        let mut send = |risk: &mut Risk, side, now| {
            reference += 1;
            risk.check(&order(reference, side, 100, 10_000), Some(10_000), now)
        };
        for _ in 0..3 {
            assert_eq!(send(&mut risk, Side::Buy, 0), Ok(()));
        }
        assert_eq!(send(&mut risk, Side::Buy, 0), Err(Denied::Position));
        risk.filled(Side::Buy, 100);
        assert_eq!(send(&mut risk, Side::Buy, 0), Err(Denied::Position));
        risk.released(Side::Buy, 100);
        assert_eq!(send(&mut risk, Side::Buy, 0), Ok(()));
        assert_eq!(risk.position(), 100);
        assert_eq!(send(&mut risk, Side::Sell, 0), Ok(()));
        assert_eq!(send(&mut risk, Side::Sell, 0), Err(Denied::Rate));
        assert_eq!(send(&mut risk, Side::Sell, RATE_WINDOW_NS), Ok(()));
    }

    proptest! {
        #[test]
        fn no_second_has_more_orders_and_no_outcome_a_larger_position(
            steps in prop::collection::vec((0..600_000_000u64, any::<bool>(), 1..120u32, 0..3u8), 1..200),
        ) {
            let mut risk = Risk::new(LIMITS);
            let (mut now, mut passed, mut open) = (0, Vec::new(), Vec::new());
            for (reference, (gap, buy, quantity, outcome)) in (1..).zip(steps) {
                now += gap;
                let side = if buy { Side::Buy } else { Side::Sell };
                if risk.check(&order(reference, side, quantity, 10_000), Some(10_000), now).is_ok() {
                    passed.push(now);
                    open.push((side, quantity));
                }
                let within = passed.iter().filter(|&&at| now - at < RATE_WINDOW_NS).count();
                prop_assert!(within <= LIMITS.rate as usize);
                for wanted in [Side::Buy, Side::Sell] {
                    let all: i64 = open
                        .iter()
                        .filter(|(side, _)| *side == wanted)
                        .map(|(_, quantity)| i64::from(*quantity))
                        .sum();
                    let worst = match wanted {
                        Side::Buy => risk.position() + all,
                        Side::Sell => -risk.position() + all,
                    };
                    prop_assert!(all == 0 || worst <= i64::from(LIMITS.position));
                }
                if outcome > 0 && let Some((side, quantity)) = open.pop() {
                    if outcome == 1 {
                        risk.filled(side, quantity);
                    } else {
                        risk.released(side, quantity);
                    }
                }
            }
        }
    }
}
