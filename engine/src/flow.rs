//! The seeded generator of market data: what an exchange would publish.
//!
//! **When.** Messages come in bursts. The gap before a burst is exponential, a burst has
//! [`BURST_MEAN`] messages on average, and the gaps inside it are log-normal with a median of
//! 3.5 µs. For such a process the coefficient of variation of the gaps is about
//! `sqrt(2 * BURST_MEAN - 1)`, 3.4 here. One burst in 250 is a sweep of 60 to 90 messages, so that
//! the fullest millisecond of a long run holds 60 to 130. Both hold up to 5,000 messages/s; above,
//! the whole time axis is compressed, which keeps the variation and makes milliseconds fuller.
//!
//! **What.** 48 % add, 45 % delete, 4 % execute, 2 % cancel, the rest replace and trade, steered
//! slightly so that about [`LIVE`] orders rest. Prices keep near an anchor that walks randomly.
//! Executions take the oldest order of the best price, and no add crosses: the messages are those
//! of a real book.
//!
//! The numbers are those measured on LOBSTER's AAPL sample of 2012-06-21 and a Binance BTCUSDT feed
//! of 2024-08-08. The same seed gives the same messages on every machine (integer arithmetic only);
//! the gaps go through `ln` and `exp`, whose last bit may differ between C libraries.

use crate::book::{Book, Order, Side};
use crate::md::Body;

/// Smallest price step, in units of 1/10000 of the currency: one cent.
pub const TICK: u32 = 100;

/// Orders that rest in the generated book once it is warm.
pub const LIVE: usize = 100;

/// Messages per burst, on average.
const BURST_MEAN: f64 = 6.5;

/// Chance that a burst is a sweep, one in …
const SWEEP_ONE_IN: u64 = 250;

/// Messages of a sweep: from this many …
const SWEEP_MIN: u64 = 60;

/// … to this many.
const SWEEP_MAX: u64 = 90;

/// Median gap within a burst, in ns.
const GAP_MEDIAN_NS: f64 = 3_500.0;

/// Standard deviation of the natural logarithm of the gaps within a burst; p10 is 0.6 µs.
const GAP_SIGMA: f64 = 1.38;

/// Rate in messages/s above which time is compressed.
const FULL_RATE: f64 = 5_000.0;

/// Weights of the types in a warm book; they sum to 1000. Adds balance what leaves: deletes and
/// the three of four executions that take a whole order.
const ADD: i64 = 480;
const DELETE: i64 = 447;
const EXECUTE: i64 = 44;
const CANCEL: i64 = 24;
const REPLACE: i64 = 3;
const TRADE: i64 = 2;
const WEIGHTS: i64 = ADD + DELETE + EXECUTE + CANCEL + REPLACE + TRADE;

/// Where the anchor starts, in units of 1/10000 of the currency.
const ANCHOR: u32 = 1_000_000;

/// How far the anchor may walk from there, in ticks.
const ANCHOR_RANGE: u32 = 500;

/// Mean distance of a new order from the anchor, in ticks.
const DISTANCE_MEAN: u64 = 5;

/// A message and when it is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// Time since the message before, in ns.
    pub gap_ns: u64,
    /// Which instrument, from 1.
    pub symbol: u16,
    /// The message.
    pub body: Body,
}

/// An endless, seeded flow of messages.
#[derive(Debug)]
pub struct Flow {
    draw: Draw,
    /// Instrument `symbol` is at `symbol - 1`.
    markets: Vec<Market>,
    /// Where the present burst is, in `markets`.
    current: usize,
    /// Messages that must still follow in this sweep.
    sweep: u64,
    /// Chance that an ordinary burst goes on after a message.
    go_on: f64,
    /// Mean gap before a burst, in ns.
    pause_ns: f64,
    /// Factor on the gaps within a burst, 0..=1.
    scale: f64,
}

impl Flow {
    /// A flow of `rate` messages/s on average, positive and finite, about the instruments
    /// 1 to `symbols`, at least one.
    pub fn new(seed: u64, rate: f64, symbols: u16) -> Self {
        let sweep_share = 1.0 / SWEEP_ONE_IN as f64;
        let sweep_mean = (SWEEP_MIN + SWEEP_MAX) as f64 / 2.0;
        let ordinary = (BURST_MEAN - sweep_share * sweep_mean) / (1.0 - sweep_share);
        let scale = (FULL_RATE / rate).min(1.0);
        let gap_mean_ns = scale * GAP_MEDIAN_NS * (GAP_SIGMA * GAP_SIGMA / 2.0).exp();
        let inside = 1.0 - 1.0 / BURST_MEAN;
        Self {
            draw: Draw { random: Random(seed), next_id: 1, trades: 0 },
            markets: (0..symbols.max(1)).map(|_| Market::default()).collect(),
            current: 0,
            sweep: 0,
            go_on: 1.0 - 1.0 / ordinary,
            pause_ns: BURST_MEAN * (1e9 / rate - gap_mean_ns * inside),
            scale,
        }
    }

    /// The orders of an instrument that rest after the last message.
    pub fn book(&self, symbol: u16) -> Option<&Book> {
        self.markets.get(usize::from(symbol).checked_sub(1)?).map(|market| &market.book)
    }

    fn gap_ns(&mut self) -> u64 {
        let random = &mut self.draw.random;
        let inside = if self.sweep > 0 {
            self.sweep -= 1;
            true
        } else {
            random.unit() < self.go_on
        };
        if inside {
            (self.scale * GAP_MEDIAN_NS * (GAP_SIGMA * random.normal()).exp()) as u64
        } else {
            if random.below(SWEEP_ONE_IN) == 0 {
                self.sweep = SWEEP_MIN + random.below(SWEEP_MAX - SWEEP_MIN + 1) - 1;
            }
            if self.markets.len() > 1 {
                self.current = random.below(self.markets.len() as u64) as usize;
            }
            (-self.pause_ns * random.unit().ln()) as u64
        }
    }
}

impl Iterator for Flow {
    type Item = Planned;

    fn next(&mut self) -> Option<Planned> {
        let gap_ns = self.gap_ns();
        let body = self.markets[self.current].next(&mut self.draw);
        Some(Planned { gap_ns, symbol: self.current as u16 + 1, body })
    }
}

/// What all instruments draw from.
#[derive(Debug)]
struct Draw {
    random: Random,
    next_id: u64,
    trades: u64,
}

impl Draw {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    fn trade(&mut self) -> u64 {
        self.trades += 1;
        self.trades
    }

    fn side(&mut self) -> Side {
        if self.random.below(2) == 0 { Side::Buy } else { Side::Sell }
    }

    /// Round lots of 100 to 500 shares.
    fn quantity(&mut self) -> u32 {
        100 * (1 + self.random.below(5) as u32)
    }
}

/// One instrument.
#[derive(Debug)]
struct Market {
    book: Book,
    anchor: u32,
}

impl Default for Market {
    fn default() -> Self {
        Self { book: Book::with_capacity(4 * LIVE), anchor: ANCHOR }
    }
}

impl Market {
    fn next(&mut self, draw: &mut Draw) -> Body {
        self.walk(&mut draw.random);
        let live = self.book.len() as i64;
        let target = LIVE as i64;
        // Moves weight between add and delete; the ends keep both possible.
        let steer = ((live - target) * 400 / target).clamp(-400, 400);
        let mut number = draw.random.below(WEIGHTS as u64) as i64;
        let mut hit = |weight: i64| {
            number -= weight;
            number < 0
        };
        // Few orders on a side: add one there, so that neither ever runs empty.
        let thin = [Side::Buy, Side::Sell].into_iter().find(|&side| self.book.best(side).is_none());
        if let Some(side) = thin {
            self.add(draw, side)
        } else if hit(ADD - steer) {
            let side = draw.side();
            self.add(draw, side)
        } else if hit(DELETE + steer) {
            self.delete(draw)
        } else if hit(EXECUTE) {
            self.execute(draw)
        } else if hit(CANCEL) {
            self.cancel(draw)
        } else if hit(REPLACE) {
            self.replace(draw)
        } else {
            Body::Trade {
                trade: draw.trade(),
                side: draw.side(),
                quantity: draw.quantity(),
                price: self.anchor,
            }
        }
    }

    /// One message in 100 moves the anchor by a tick.
    fn walk(&mut self, random: &mut Random) {
        let range = ANCHOR_RANGE * TICK;
        self.anchor = match random.below(200) {
            0 => (self.anchor + TICK).min(ANCHOR + range),
            1 => (self.anchor - TICK).max(ANCHOR - range),
            _ => self.anchor,
        };
    }

    fn add(&mut self, draw: &mut Draw, side: Side) -> Body {
        let price = self.price(&mut draw.random, side);
        let order = Order { id: draw.id(), owner: 0, side, price, quantity: draw.quantity() };
        self.book.add(order).expect("the id is new, the price does not cross, and steering keeps room");
        Body::Add { id: order.id, side, quantity: order.quantity, price: order.price }
    }

    fn delete(&mut self, draw: &mut Draw) -> Body {
        let order = self.pick(&mut draw.random);
        self.book.remove(order.id).expect("a picked order rests in the book");
        Body::Delete { id: order.id }
    }

    fn execute(&mut self, draw: &mut Draw) -> Body {
        let side = draw.side();
        let order = self.book.front(side).expect("neither side is empty when this is drawn");
        let quantity =
            if draw.random.below(4) == 0 && order.quantity > 1 { order.quantity / 2 } else { order.quantity };
        self.book.reduce(order.id, quantity).expect("the front order has that quantity");
        Body::Execute { id: order.id, quantity, trade: draw.trade() }
    }

    fn cancel(&mut self, draw: &mut Draw) -> Body {
        let order = self.pick(&mut draw.random);
        if order.quantity == 1 {
            self.book.remove(order.id).expect("a picked order rests in the book");
            return Body::Delete { id: order.id };
        }
        let quantity = order.quantity / 2;
        self.book.reduce(order.id, quantity).expect("a picked order has more than half its quantity");
        Body::Cancel { id: order.id, quantity }
    }

    fn replace(&mut self, draw: &mut Draw) -> Body {
        let order = self.pick(&mut draw.random);
        let quantity = draw.quantity();
        let price = self.price(&mut draw.random, order.side);
        let new_id = draw.id();
        self.book
            .replace(order.id, new_id, quantity, price)
            .expect("the id is new and the price does not cross");
        Body::Replace { id: order.id, new_id, quantity, price }
    }

    fn pick(&self, random: &mut Random) -> Order {
        self.book.pick(random.next()).expect("neither side is empty when this is drawn")
    }

    /// A price behind the anchor, geometrically spread, that does not cross.
    fn price(&self, random: &mut Random, side: Side) -> u32 {
        let mut ticks = 1;
        while ticks < ANCHOR_RANGE && random.below(DISTANCE_MEAN) != 0 {
            ticks += 1;
        }
        let best = self.book.best(side.opposite()).map(|level| level.price);
        match side {
            Side::Buy => {
                let price = self.anchor - ticks * TICK;
                best.map_or(price, |ask| price.min(ask - TICK))
            }
            Side::Sell => {
                let price = self.anchor + ticks * TICK;
                best.map_or(price, |bid| price.max(bid + TICK))
            }
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): ours, so that a seed means the same flow for ever.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..`n`; the bias is below n / 2^64.
    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// Uniform in (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Normal with mean 0 and variance 1 (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, VecDeque};

    /// Messages to look at, as many as the samples have.
    const MESSAGES: usize = 92_000;

    fn warm(seed: u64, rate: f64) -> Flow {
        let mut flow = Flow::new(seed, rate, 1);
        flow.by_ref().take(10 * LIVE).for_each(drop);
        flow
    }

    /// Mean in ns and coefficient of variation of the gaps, and the most messages within 1 ms.
    fn timing(seed: u64, rate: f64) -> (f64, f64, usize) {
        let gaps: Vec<u64> = warm(seed, rate).take(MESSAGES).map(|planned| planned.gap_ns).collect();
        let n = gaps.len() as f64;
        let mean = gaps.iter().sum::<u64>() as f64 / n;
        let variance = gaps.iter().map(|&g| (g as f64 - mean).powi(2)).sum::<f64>() / n;
        let (mut now, mut last, mut fullest) = (0, VecDeque::new(), 0);
        for gap in gaps {
            now += gap;
            last.push_back(now);
            while now - last[0] >= 1_000_000 {
                last.pop_front();
            }
            fullest = fullest.max(last.len());
        }
        (mean, variance.sqrt() / mean, fullest)
    }

    #[test]
    fn gaps_have_the_measured_statistics() {
        for (seed, rate) in [(1, 26.0), (2, 272.0), (3, 1_000.0), (4, 2_000.0), (5, 5_000.0)] {
            let (mean, variation, fullest) = timing(seed, rate);
            assert!((mean * rate / 1e9 - 1.0).abs() < 0.05, "{rate}/s: mean {mean} ns");
            assert!((3.0..3.8).contains(&variation), "{rate}/s: CV {variation}");
            assert!((60..=130).contains(&fullest), "{rate}/s: {fullest} in a ms");
        }
        let (mean, variation, _) = timing(6, 200_000.0);
        assert!((mean / 5_000.0 - 1.0).abs() < 0.05, "mean {mean} ns");
        assert!((3.0..3.8).contains(&variation), "CV {variation}");
    }

    #[test]
    fn types_have_the_measured_mix() {
        let mut counts: HashMap<_, usize> = HashMap::new();
        for planned in warm(7, 1_000.0).take(MESSAGES) {
            *counts.entry(std::mem::discriminant(&planned.body)).or_default() += 1;
        }
        let share = |body: Body| 100.0 * counts[&std::mem::discriminant(&body)] as f64 / MESSAGES as f64;
        let (id, quantity, trade, price, side) = (0, 0, 0, 0, Side::Buy);
        let add = share(Body::Add { id, side, quantity, price });
        let delete = share(Body::Delete { id });
        let execute = share(Body::Execute { id, quantity, trade });
        assert!((46.0..50.0).contains(&add), "add {add} %");
        assert!((43.0..47.0).contains(&delete), "delete {delete} %");
        assert!((3.5..5.5).contains(&execute), "execute {execute} %");
        assert_eq!(counts.len(), 6, "every type occurs");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn messages_are_those_of_a_book(seed in any::<u64>()) {
            let mut flow = Flow::new(seed, 1_000.0, 1);
            let mut book = Book::with_capacity(4 * LIVE);
            for _ in 0..5_000 {
                let body = flow.next().unwrap().body;
                if let Body::Execute { id, .. } = body {
                    let side = book.order(id).unwrap().side;
                    prop_assert_eq!(book.front(side).unwrap().id, id, "queue jumped");
                }
                body.apply(&mut book).unwrap();
                if let Body::Cancel { id, .. } = body {
                    prop_assert!(book.order(id).is_some());
                }
                prop_assert!(book.len() < 2 * LIVE);
            }
            prop_assert!(book.len() > LIVE / 2);
            for side in [Side::Buy, Side::Sell] {
                prop_assert!(book.orders(side).eq(flow.book(1).unwrap().orders(side)));
            }
        }

        #[test]
        fn every_instrument_has_its_own_book(seed in any::<u64>(), symbols in 2..20u16) {
            let mut flow = Flow::new(seed, 1_000.0, symbols);
            let mut books: Vec<_> = (0..symbols).map(|_| Book::with_capacity(4 * LIVE)).collect();
            for planned in flow.by_ref().take(5_000) {
                planned.body.apply(&mut books[usize::from(planned.symbol) - 1]).unwrap();
            }
            for (symbol, book) in (1..).zip(&books) {
                prop_assert!(!book.is_empty());
                prop_assert!(book.orders(Side::Buy).eq(flow.book(symbol).unwrap().orders(Side::Buy)));
            }
        }

        #[test]
        fn same_seed_same_flow(seed in any::<u64>()) {
            prop_assert!(Flow::new(seed, 500.0, 7).take(500).eq(Flow::new(seed, 500.0, 7).take(500)));
        }
    }
}
