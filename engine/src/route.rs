//! Which of two builds an instrument's flow goes to: the router's decision, as a pure state machine.
//!
//! There are two arms, blue and green. One of them is the primary; the other is the canary, which
//! gets a weight in steps of 0.1 %. An instrument has a fixed bucket from 0 to 999 and belongs to the
//! canary while its bucket is below the weight: raising the weight only moves instruments to the
//! canary, lowering it only moves them back. Buckets are spread evenly, so that any weight is met to
//! within half an instrument, however many there are; the lowest numbers go first.
//!
//! The weight is a lease: unless it is renewed in time it is 0. An arm that is down gets nothing; the
//! primary takes over what a dead canary had, but a canary never gets more than its weight, so while
//! the primary is down its instruments pause.
//!
//! Market data that an arm has been given stays its responsibility, however late it answers: who had
//! an instrument when is remembered by the timestamps of its messages, and an order is judged by the
//! message that caused it. That makes every decision count once while instruments move.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// The weight that means everything.
pub const FULL: u16 = 1000;

/// Changes of ownership that are remembered of an instrument.
const MEMORY: usize = 64;

/// One of the two builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Arm {
    Blue,
    Green,
}

impl Arm {
    /// Both, in the order of `self as usize`.
    pub const BOTH: [Self; 2] = [Self::Blue, Self::Green];

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Blue => Self::Green,
            Self::Green => Self::Blue,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blue => "blue",
            Self::Green => "green",
        }
    }
}

/// What becomes of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the exchange.
    Live,
    /// The arm only shadows the instrument: the order goes to the paper sink.
    Paper,
    /// It answers market data so old that nobody remembers whose it was.
    Late,
}

/// An instrument's flow changes; apply to the arms what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Which instrument.
    pub symbol: u16,
    /// By arm: it gets the flow from now on, and needs to know what rests already.
    pub gains: [bool; 2],
    /// By arm: it no longer gets the flow.
    pub loses: [bool; 2],
}

#[derive(Debug)]
struct Route {
    /// From 0 to 999.
    bucket: u16,
    /// Who had the instrument from which timestamp on, oldest first; the last is the present owner.
    owners: VecDeque<(u64, Option<Arm>)>,
    /// By arm: from which timestamp on, and up to which, it got the flow, the last time it did.
    span_ns: [(u64, u64); 2],
    /// Timestamp of the last message.
    last_ns: u64,
}

/// Up to which timestamp an arm gets the flow that it still has.
const ON: u64 = u64::MAX;

impl Route {
    /// By arm: whether it gets the flow now.
    fn gets(&self) -> [bool; 2] {
        self.span_ns.map(|(_, until_ns)| until_ns == ON)
    }

    fn owner(&self) -> Option<Arm> {
        self.owners.back().and_then(|(_, owner)| *owner)
    }
}

/// Where the flow of every instrument goes.
#[derive(Debug)]
pub struct Routes {
    /// Instrument `symbol` is at `symbol - 1`.
    instruments: Vec<Route>,
    primary: Arm,
    weight: u16,
    lease_until_ns: u64,
    leases_expired: u64,
    shadow: bool,
    up: [bool; 2],
    /// Where to look for the next instrument whose flow must change, and how many to look at.
    cursor: usize,
    unsettled: usize,
}

impl Routes {
    /// Routes of the instruments 1 to `symbols`; no arm is up yet.
    pub fn new(symbols: u16, primary: Arm) -> Self {
        let route = |at: u32| Route {
            bucket: ((2 * at + 1) * u32::from(FULL) / (2 * u32::from(symbols))) as u16,
            owners: VecDeque::from([(0, None)]),
            span_ns: [(0, 0); 2],
            last_ns: 0,
        };
        Self {
            instruments: (0..u32::from(symbols)).map(route).collect(),
            primary,
            weight: 0,
            lease_until_ns: 0,
            leases_expired: 0,
            shadow: false,
            up: [false; 2],
            cursor: 0,
            unsettled: 0,
        }
    }

    /// The arm that has what the weight does not say.
    pub fn primary(&self) -> Arm {
        self.primary
    }

    /// The canary's weight in thousandths.
    pub fn weight(&self) -> u16 {
        self.weight
    }

    /// How long the weight holds yet at `now_ns`, in ns.
    pub fn lease_left_ns(&self, now_ns: u64) -> u64 {
        self.lease_until_ns.saturating_sub(now_ns)
    }

    /// Times that a weight ended because it was not renewed.
    pub fn leases_expired(&self) -> u64 {
        self.leases_expired
    }

    /// Whether the canary gets a copy of everything.
    pub fn shadow(&self) -> bool {
        self.shadow
    }

    /// Whether `arm` is up.
    pub fn is_up(&self, arm: Arm) -> bool {
        self.up[arm as usize]
    }

    /// Whether some instruments may not be where they belong yet.
    pub fn is_moving(&self) -> bool {
        self.unsettled > 0
    }

    /// Number of instruments whose owner is `arm`.
    pub fn owned(&self, arm: Arm) -> usize {
        self.instruments.iter().filter(|route| route.owner() == Some(arm)).count()
    }

    /// Sets the canary's weight in thousandths, at most [`FULL`], until `lease_until_ns`.
    pub fn set_weight(&mut self, weight: u16, lease_until_ns: u64) {
        self.weight = weight.min(FULL);
        self.lease_until_ns = lease_until_ns;
        self.unsettle();
    }

    /// Gives the canary a copy of everything, or no longer.
    pub fn set_shadow(&mut self, shadow: bool) {
        self.shadow = shadow;
        self.unsettle();
    }

    /// Makes the canary the primary, with the weight 0 for the other arm. Once more is the way back.
    pub fn promote(&mut self) {
        self.primary = self.primary.other();
        self.weight = 0;
        self.lease_until_ns = 0;
        self.unsettle();
    }

    /// Notes that an arm came up, knowing nothing, or went down.
    pub fn set_up(&mut self, arm: Arm, up: bool) {
        self.up[arm as usize] = up;
        for route in &mut self.instruments {
            route.span_ns[arm as usize] = (0, 0);
        }
        self.unsettle();
    }

    /// Ends a weight whose time is over. Returns whether one ended.
    pub fn on_time(&mut self, now_ns: u64) -> bool {
        let ends = self.weight > 0 && now_ns >= self.lease_until_ns;
        if ends {
            self.leases_expired += 1;
            self.set_weight(0, 0);
        }
        ends
    }

    /// Notes a message about an instrument. Returns by arm whether it gets the message, and whether
    /// an owner does.
    pub fn on_message(&mut self, symbol: u16, timestamp_ns: u64) -> ([bool; 2], bool) {
        let Some(route) = self.instruments.get_mut(usize::from(symbol).wrapping_sub(1)) else {
            return ([false; 2], false);
        };
        route.last_ns = route.last_ns.max(timestamp_ns);
        let gets = route.gets();
        (gets, route.owner().is_some_and(|owner| gets[owner as usize]))
    }

    /// What is to become of an order of `arm` that a message about `symbol` caused.
    pub fn judge(&self, arm: Arm, symbol: u16, cause_ns: u64) -> Verdict {
        let Some(route) = self.instruments.get(usize::from(symbol).wrapping_sub(1)) else {
            // The exchange will say that there is no such instrument.
            return Verdict::Live;
        };
        let owner = match cause_ns {
            0 => Some(route.owner()),
            _ => route.owners.iter().rev().find(|(since, _)| *since <= cause_ns).map(|(_, owner)| *owner),
        };
        match owner {
            None => Verdict::Late,
            Some(owner) if owner == Some(arm) => Verdict::Live,
            Some(_) => Verdict::Paper,
        }
    }

    /// Whether both arms had the flow of an instrument at a message, so that both decided on it.
    pub fn both_had(&self, symbol: u16, cause_ns: u64) -> bool {
        self.instruments.get(usize::from(symbol).wrapping_sub(1)).is_some_and(|route| {
            route.span_ns.iter().all(|(from_ns, until_ns)| (from_ns..until_ns).contains(&&cause_ns))
        })
    }

    /// Changes the flow of the next instrument that is not where it should be; `None` when all are.
    pub fn next_change(&mut self) -> Option<Change> {
        while self.unsettled > 0 {
            let at = self.cursor;
            self.cursor = (self.cursor + 1) % self.instruments.len();
            self.unsettled -= 1;
            if let Some(change) = self.change(at) {
                return Some(change);
            }
        }
        None
    }

    fn change(&mut self, at: usize) -> Option<Change> {
        let canary = self.primary.other();
        let route = &mut self.instruments[at];
        let owner = if route.bucket < self.weight && self.up[canary as usize] {
            Some(canary)
        } else {
            Some(self.primary).filter(|primary| self.up[*primary as usize])
        };
        let mut gets = [false; 2];
        if let Some(owner) = owner {
            gets[owner as usize] = true;
        }
        gets[canary as usize] |= self.shadow && self.up[canary as usize];
        // What comes after the last message.
        let from_ns = route.last_ns + 1;
        if owner != route.owner() {
            if route.owners.back().is_some_and(|(since, _)| *since == from_ns) {
                route.owners.pop_back();
            }
            if route.owners.len() == MEMORY {
                route.owners.pop_front();
            }
            route.owners.push_back((from_ns, owner));
        }
        let had = route.gets();
        let gains = [gets[0] && !had[0], gets[1] && !had[1]];
        let loses = [had[0] && !gets[0], had[1] && !gets[1]];
        for arm in Arm::BOTH {
            if gains[arm as usize] {
                route.span_ns[arm as usize] = (from_ns, ON);
            } else if loses[arm as usize] {
                route.span_ns[arm as usize].1 = from_ns;
            }
        }
        (gains != [false; 2] || loses != [false; 2]).then_some(Change { symbol: at as u16 + 1, gains, loses })
    }

    fn unsettle(&mut self) {
        self.unsettled = self.instruments.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    /// Routes with both arms up and all settled.
    fn settled(symbols: u16) -> Routes {
        let mut routes = Routes::new(symbols, Arm::Blue);
        routes.set_up(Arm::Blue, true);
        routes.set_up(Arm::Green, true);
        settle(&mut routes);
        routes
    }

    fn settle(routes: &mut Routes) {
        while routes.next_change().is_some() {}
    }

    fn owners(routes: &Routes) -> Vec<Option<Arm>> {
        routes.instruments.iter().map(Route::owner).collect()
    }

    proptest! {
        #[test]
        fn a_weight_is_met_to_within_half_an_instrument_and_moves_no_more_than_needed(
            symbols in 1..1_000u16,
            weights in prop::collection::vec(0..=FULL, 2..10),
        ) {
            let mut routes = settled(symbols);
            let mut before = (0, owners(&routes));
            for weight in weights {
                routes.set_weight(weight, SECOND);
                settle(&mut routes);
                let wanted = f64::from(symbols) * f64::from(weight) / f64::from(FULL);
                let green = routes.owned(Arm::Green);
                prop_assert!((green as f64 - wanted).abs() <= 0.5, "{green} of {symbols} at {weight}");
                prop_assert_eq!(green + routes.owned(Arm::Blue), usize::from(symbols));
                let now = owners(&routes);
                for (old, new) in before.1.iter().zip(&now) {
                    let moved_to = if weight > before.0 { Arm::Green } else { Arm::Blue };
                    prop_assert!(old == new || *new == Some(moved_to));
                }
                before = (weight, now);
            }
        }

        /// The heart of it: whatever happens, of the arms that were given a message exactly one is
        /// its owner, and stays so however late it answers.
        #[test]
        fn every_message_has_at_most_one_live_answer(
            steps in prop::collection::vec((0..7u8, 0..=FULL, 0..50u64), 1..300),
            late in 0..30usize,
        ) {
            const SYMBOLS: u16 = 5;
            let mut routes = settled(SYMBOLS);
            let (mut now, mut asked) = (1, VecDeque::new());
            for (what, weight, wait) in steps {
                now += wait;
                match what {
                    0 => routes.set_weight(weight, now + 40),
                    1 => routes.set_shadow(weight > FULL / 2),
                    2 => routes.set_up(Arm::Green, weight > FULL / 3),
                    3 => routes.set_up(Arm::Blue, weight > FULL / 5),
                    4 => routes.promote(),
                    _ => {}
                }
                routes.on_time(now);
                for _ in 0..weight % 3 {
                    routes.next_change();
                }
                for symbol in 1..=SYMBOLS {
                    now += 1;
                    let (gets, owned) = routes.on_message(symbol, now);
                    prop_assert!(!owned || gets != [false; 2]);
                    asked.push_back((symbol, now, owned));
                }
                while asked.len() > late {
                    let (symbol, cause, owned) = asked.pop_front().unwrap();
                    let live = Arm::BOTH
                        .into_iter()
                        .filter(|arm| routes.judge(*arm, symbol, cause) == Verdict::Live)
                        .count();
                    prop_assert!(live <= 1, "two would trade on it");
                    prop_assert!(live == 1 || !owned, "nobody would trade on it");
                }
            }
        }
    }

    #[test]
    fn a_weight_ends_unless_it_is_renewed() {
        let mut routes = settled(100);
        routes.set_weight(500, SECOND);
        assert!(!routes.on_time(SECOND - 1));
        routes.set_weight(500, 2 * SECOND);
        assert!(!routes.on_time(2 * SECOND - 1));
        settle(&mut routes);
        assert_eq!(routes.owned(Arm::Green), 50);
        assert!(routes.on_time(2 * SECOND));
        settle(&mut routes);
        assert_eq!((routes.owned(Arm::Green), routes.leases_expired()), (0, 1));
    }

    #[test]
    fn the_primary_takes_over_and_the_canary_never_does() {
        let mut routes = settled(10);
        routes.set_weight(300, SECOND);
        settle(&mut routes);
        assert_eq!(routes.owned(Arm::Green), 3);
        routes.set_up(Arm::Green, false);
        assert!(!routes.on_message(1, 5).1, "symbol 1 was the first to go, and now nobody has it");
        settle(&mut routes);
        assert_eq!(routes.owned(Arm::Blue), 10);
        routes.set_up(Arm::Green, true);
        settle(&mut routes);
        routes.set_up(Arm::Blue, false);
        settle(&mut routes);
        assert_eq!((routes.owned(Arm::Green), routes.owned(Arm::Blue)), (3, 0));
        routes.promote();
        settle(&mut routes);
        assert_eq!((routes.owned(Arm::Green), routes.primary()), (10, Arm::Green));
    }

    #[test]
    fn a_shadow_gets_everything_and_owns_nothing() {
        let mut routes = settled(2);
        routes.set_shadow(true);
        let gains = [false, true];
        assert_eq!(routes.next_change(), Some(Change { symbol: 1, gains, loses: [false; 2] }));
        settle(&mut routes);
        assert_eq!(routes.on_message(2, 7), ([true, true], true));
        assert_eq!(routes.judge(Arm::Blue, 2, 7), Verdict::Live);
        assert_eq!(routes.judge(Arm::Green, 2, 7), Verdict::Paper);
        assert_eq!(routes.judge(Arm::Green, 2, 0), Verdict::Paper, "of no cause: whose it is now");
        assert!(routes.both_had(2, 7) && !routes.both_had(2, 0));
        // With the copy there already, the move itself sends nothing.
        routes.set_weight(FULL, SECOND);
        assert_eq!(routes.next_change(), Some(Change { symbol: 1, gains: [false; 2], loses: [true, false] }));
        settle(&mut routes);
        routes.on_message(2, 8);
        assert!(routes.both_had(2, 7) && !routes.both_had(2, 8), "however late it is asked");
    }

    #[test]
    fn what_nobody_remembers_is_late() {
        let mut routes = settled(1);
        for at in 1..=MEMORY as u64 {
            routes.on_message(1, at);
            routes.set_weight(if at % 2 == 0 { 0 } else { FULL }, SECOND);
            settle(&mut routes);
        }
        assert_eq!(routes.judge(Arm::Blue, 1, 1), Verdict::Late);
        assert_ne!(routes.judge(Arm::Blue, 1, MEMORY as u64), Verdict::Late);
    }
}
