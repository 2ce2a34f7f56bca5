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
    /// Largest position in an instrument, long or short, were all open orders filled, in shares.
    pub position: u32,
    /// Oldest market data an order may be based on, in ns.
    pub data_age_ns: u64,
}

/// The market an order is checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quote {
    /// Middle of the best bid and ask, in units of 1/10000 of the currency.
    pub middle: Option<u32>,
    /// Age of the market data it is from, in ns; `None` when some is known to be missing.
    pub age_ns: Option<u64>,
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
    /// The market data is too old, or some of it is missing.
    StaleData,
    /// There is no session with the exchange.
    NoSession,
}

impl Denied {
    /// Every reason with its name in reports; the index is `self as usize`.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::KillSwitch, "kill_switch"),
        (Self::DuplicateId, "duplicate_id"),
        (Self::Quantity, "quantity"),
        (Self::Notional, "notional"),
        (Self::Collar, "collar"),
        (Self::Rate, "rate"),
        (Self::Position, "position"),
        (Self::OpenOrders, "open_orders"),
        (Self::StaleData, "stale_data"),
        (Self::NoSession, "no_session"),
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
    /// Instrument `symbol` is at `symbol - 1`.
    exposures: Vec<Exposure>,
}

/// What is held and what could be added to it, in one instrument.
#[derive(Debug, Default, Clone, Copy)]
struct Exposure {
    /// Shares held; negative when short.
    position: i64,
    /// Shares that open buy orders could add.
    open_buy: i64,
    /// Shares that open sell orders could take.
    open_sell: i64,
}

impl Risk {
    /// Nothing sent, nothing held, of the instruments 1 to `symbols`.
    pub fn new(limits: Limits, symbols: u16) -> Self {
        Self {
            limits,
            killed: false,
            last_reference: 0,
            sent_ns: VecDeque::with_capacity(limits.rate as usize),
            exposures: vec![Exposure::default(); usize::from(symbols)],
        }
    }

    /// Checks `order`, for one of the instruments, at `now_ns` (monotonic) against the market. When
    /// it passes it counts as sent.
    ///
    /// # Errors
    /// The first reason that applies, in the order of [`Denied::ALL`].
    pub fn check(&mut self, order: &EnterOrder, quote: Quote, now_ns: u64) -> Result<(), Denied> {
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
        let in_collar = quote.middle.is_some_and(|middle| {
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
        let exposure = self.exposures[usize::from(order.symbol) - 1];
        let worst = match order.side {
            Side::Buy => exposure.position + exposure.open_buy + quantity,
            Side::Sell => -exposure.position + exposure.open_sell + quantity,
        };
        if worst > i64::from(limits.position) {
            return Err(Denied::Position);
        }
        if quote.age_ns.is_none_or(|age_ns| age_ns > limits.data_age_ns) {
            return Err(Denied::StaleData);
        }
        self.last_reference = order.reference;
        self.sent_ns.push_back(now_ns);
        *self.exposure(order.symbol).open(order.side) += quantity;
        Ok(())
    }

    /// `quantity` shares of an open order traded.
    pub fn filled(&mut self, symbol: u16, side: Side, quantity: u32) {
        let quantity = i64::from(quantity);
        let exposure = self.exposure(symbol);
        *exposure.open(side) -= quantity;
        match side {
            Side::Buy => exposure.position += quantity,
            Side::Sell => exposure.position -= quantity,
        }
    }

    /// `quantity` shares of an open order will not trade: it was canceled or rejected.
    pub fn released(&mut self, symbol: u16, side: Side, quantity: u32) {
        *self.exposure(symbol).open(side) -= i64::from(quantity);
    }

    /// Switches trading off, or on again. While it is off nothing passes.
    pub fn set_killed(&mut self, killed: bool) {
        self.killed = killed;
    }

    /// Shares held of all instruments; negative when short.
    pub fn position(&self) -> i64 {
        self.exposures.iter().map(|exposure| exposure.position).sum()
    }

    fn exposure(&mut self, symbol: u16) -> &mut Exposure {
        &mut self.exposures[usize::from(symbol) - 1]
    }
}

impl Exposure {
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
    use crate::matching::OrderType;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        quantity: 100,
        notional: 100 * 10_500,
        collar_bps: 500,
        rate: 5,
        position: 300,
        data_age_ns: 1_000,
    };

    const QUOTE: Quote = Quote { middle: Some(10_000), age_ns: Some(0) };

    fn order(reference: u32, side: Side, quantity: u32, price: u32) -> EnterOrder {
        EnterOrder { reference, side, quantity, symbol: 1, price, order_type: OrderType::Ioc, cause_ns: 0 }
    }

    #[test]
    fn reasons_are_indexed_by_their_number() {
        for (at, (reason, _)) in Denied::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at);
        }
    }

    #[test]
    fn each_limit_denies_beyond_and_passes_at() {
        let check = |order: EnterOrder, quote| Risk::new(LIMITS, 1).check(&order, quote, 0);
        assert_eq!(check(order(1, Side::Buy, 100, 10_500), QUOTE), Ok(()));
        assert_eq!(check(order(0, Side::Buy, 100, 10_000), QUOTE), Err(Denied::DuplicateId));
        assert_eq!(check(order(1, Side::Buy, 101, 10_000), QUOTE), Err(Denied::Quantity));
        assert_eq!(check(order(1, Side::Buy, 0, 10_000), QUOTE), Err(Denied::Quantity));
        assert_eq!(check(order(1, Side::Buy, 100, 10_501), QUOTE), Err(Denied::Notional));
        assert_eq!(check(order(1, Side::Buy, 1, 10_501), QUOTE), Err(Denied::Collar));
        assert_eq!(check(order(1, Side::Sell, 1, 9_500), QUOTE), Ok(()));
        assert_eq!(check(order(1, Side::Sell, 1, 9_499), QUOTE), Err(Denied::Collar));
        assert_eq!(
            check(order(1, Side::Buy, 1, 10_000), Quote { middle: None, ..QUOTE }),
            Err(Denied::Collar)
        );
        let mut risk = Risk::new(LIMITS, 2);
        risk.set_killed(true);
        assert_eq!(risk.check(&order(1, Side::Buy, 1, 10_000), QUOTE, 0), Err(Denied::KillSwitch));
        risk.set_killed(false);
        assert_eq!(risk.check(&order(1, Side::Buy, 1, 10_000), QUOTE, 0), Ok(()));
        let passable = order(1, Side::Buy, 1, 10_000);
        for (age_ns, result) in
            [(Some(1_000), Ok(())), (Some(1_001), Err(Denied::StaleData)), (None, Err(Denied::StaleData))]
        {
            assert_eq!(check(passable, Quote { age_ns, ..QUOTE }), result);
        }
    }

    #[test]
    fn a_reference_passes_once() {
        let mut risk = Risk::new(LIMITS, 2);
        let first = order(7, Side::Buy, 1, 10_000);
        assert_eq!(risk.check(&first, QUOTE, 0), Ok(()));
        assert_eq!(risk.check(&first, QUOTE, 0), Err(Denied::DuplicateId));
    }

    #[test]
    fn open_and_filled_shares_count_towards_the_position() {
        let mut risk = Risk::new(LIMITS, 2);
        let mut reference = 0;
        let mut send = |risk: &mut Risk, side, now| {
            reference += 1;
            risk.check(&order(reference, side, 100, 10_000), QUOTE, now)
        };
        for _ in 0..3 {
            assert_eq!(send(&mut risk, Side::Buy, 0), Ok(()));
        }
        assert_eq!(send(&mut risk, Side::Buy, 0), Err(Denied::Position));
        risk.filled(1, Side::Buy, 100);
        assert_eq!(send(&mut risk, Side::Buy, 0), Err(Denied::Position));
        risk.released(1, Side::Buy, 100);
        assert_eq!(send(&mut risk, Side::Buy, 0), Ok(()));
        assert_eq!(risk.position(), 100);
        assert_eq!(send(&mut risk, Side::Sell, 0), Ok(()));
        assert_eq!(send(&mut risk, Side::Sell, 0), Err(Denied::Rate));
        assert_eq!(send(&mut risk, Side::Sell, RATE_WINDOW_NS), Ok(()));
        risk.filled(1, Side::Buy, 100);
        risk.filled(1, Side::Buy, 100);
        let next = |symbol| EnterOrder { symbol, ..order(50 + u32::from(symbol), Side::Buy, 100, 10_000) };
        assert_eq!(risk.check(&next(1), QUOTE, RATE_WINDOW_NS), Err(Denied::Position));
        assert_eq!(risk.check(&next(2), QUOTE, RATE_WINDOW_NS), Ok(()), "each instrument has its limit");
    }

    proptest! {
        #[test]
        fn no_second_has_more_orders_and_no_outcome_a_larger_position(
            steps in prop::collection::vec((0..600_000_000u64, any::<bool>(), 1..120u32, 0..3u8), 1..200),
        ) {
            let mut risk = Risk::new(LIMITS, 2);
            let (mut now, mut passed, mut open) = (0, Vec::new(), Vec::new());
            for (reference, (gap, buy, quantity, outcome)) in (1..).zip(steps) {
                now += gap;
                let side = if buy { Side::Buy } else { Side::Sell };
                if risk.check(&order(reference, side, quantity, 10_000), QUOTE, now).is_ok() {
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
                        risk.filled(1, side, quantity);
                    } else {
                        risk.released(1, side, quantity);
                    }
                }
            }
        }
    }
}
