//! Service level objectives: which share of events was good, how fast the error budget burns, and
//! what may still be rolled out.
//!
//! Events are counted, never quantiles: counts of minutes, labels and nodes add up, quantiles do
//! not. A latency objective counts the observations of a probe up to a bound of its histogram, which
//! is exact (see [`good_slot`]); an availability objective counts readings, one event each.
//!
//! Limits: counts start with the daemon. Until a window is full, burn rates speak of the part that is
//! covered, and [`Burn::covered_ns`] says how much that is.

use tickscope_common::histogram::{SLOT_ZERO, slot};

use crate::histogram::upper_seconds;
use crate::measurement::Measurements;
use crate::snapshot::TargetStatus;
use crate::window::{Amount, Sliding};

/// Windows over which the burn rate is known, seconds and name: the pairs of the SRE workbook
/// (chapter 5, table 5-8), 1h with 5m, 6h with 30m, 1d with 2h, 3d with 6h.
pub const BURN_WINDOWS: [(u64, &str); 7] = [
    (300, "5m"),
    (1_800, "30m"),
    (3_600, "1h"),
    (7_200, "2h"),
    (21_600, "6h"),
    (86_400, "1d"),
    (259_200, "3d"),
];
/// The policy looks at the budget of the last week.
const WEEK_NS: u64 = 7 * 86_400 * 1_000_000_000;
/// More than this share of a week's budget burnt: no promotions.
const FROZEN: f64 = 0.5;
/// All of it burnt: only builds that are marked as hotfix.
const SPENT: f64 = 1.0;

/// What is promised.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// Configured name.
    pub name: String,
    /// Name of the target that it is about.
    pub target: String,
    /// What is counted.
    pub indicator: Indicator,
    /// Share of events that shall be good, above 0 and below 1.
    pub objective: f64,
    /// Time over which the budget is counted, ns.
    pub window_ns: u64,
}

/// What is an event, and which are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Indicator {
    /// Each observation of a probe; good up to a bound of its histogram.
    Latency {
        /// Index into the catalog.
        probe: usize,
        /// Index into the probe's label values; `None`: all of them.
        label: Option<usize>,
        /// The last cell whose observations are good.
        good_slot: usize,
    },
    /// Each reading; good when a process matches the target.
    Available,
}

/// The last cell of which every whole nanosecond is at most `threshold_ns`; `None` for a threshold
/// below the range.
///
/// A threshold inside a bucket is moved down to the bucket's lower bound, at most 4.3 %: what is
/// counted as good is certainly not slower than the threshold.
pub fn good_slot(threshold_ns: u64) -> Option<usize> {
    let cell = slot(threshold_ns) as usize;
    let whole = slot(threshold_ns.saturating_add(1)) as usize > cell;
    let last = if whole { cell } else { cell.checked_sub(1)? };
    (last > SLOT_ZERO).then_some(last)
}

impl Indicator {
    /// Up to which latency events are good, seconds: the bound of the histogram that is really
    /// used. `None` for availability.
    pub fn good_up_to_seconds(&self) -> Option<f64> {
        match self {
            Self::Latency { good_slot, .. } => Some(upper_seconds(*good_slot)),
            Self::Available => None,
        }
    }
}

/// Events of some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// All of them.
    pub total: u64,
    /// Those that were not good.
    pub bad: u64,
}

impl Events {
    /// Share that was bad; `None` without events: no data is not health.
    pub fn bad_ratio(&self) -> Option<f64> {
        (self.total > 0).then(|| self.bad as f64 / self.total as f64)
    }
}

impl Amount for Events {
    fn add(&mut self, other: &Self) {
        self.total = self.total.saturating_add(other.total);
        self.bad = self.bad.saturating_add(other.bad);
    }

    fn take<'a>(&mut self, other: &Self, _: impl Iterator<Item = &'a Self>) {
        self.total = self.total.saturating_sub(other.total);
        self.bad = self.bad.saturating_sub(other.bad);
    }
}

/// How fast a budget burns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Burn {
    /// 1 uses up exactly the budget over the objective's window; `None` without events.
    pub rate: Option<f64>,
    /// Time that is covered, ns.
    pub covered_ns: u64,
}

/// What the budget of the last week allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Budget {
    /// Promotions.
    Ok,
    /// No event was counted: nothing can be said.
    NoData,
    /// More than half is burnt: no promotions.
    Frozen,
    /// All is burnt: only builds that are marked as hotfix.
    HotfixOnly,
}

impl Budget {
    /// All states, from good to bad.
    pub const ALL: [Self; 4] = [Self::Ok, Self::NoData, Self::Frozen, Self::HotfixOnly];

    /// Name in metrics and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NoData => "nodata",
            Self::Frozen => "frozen",
            Self::HotfixOnly => "hotfix-only",
        }
    }

    fn of(week_burnt_ratio: Option<f64>) -> Self {
        match week_burnt_ratio {
            None => Self::NoData,
            Some(burnt) if burnt >= SPENT => Self::HotfixOnly,
            Some(burnt) if burnt > FROZEN => Self::Frozen,
            Some(_) => Self::Ok,
        }
    }
}

/// One objective now.
#[derive(Clone, Debug)]
pub struct SloStatus {
    /// What is promised.
    pub objective: Objective,
    /// Events since the daemon started, or since the promise was made.
    pub events: Events,
    /// `burn[w]`: over [`BURN_WINDOWS`]`[w]`.
    pub burn: [Burn; BURN_WINDOWS.len()],
    /// Share of the window's budget that is left; below 0 when overspent, `None` without events.
    pub budget_remaining_ratio: Option<f64>,
    /// Share of a week's budget that the last week burnt; `None` without events.
    pub week_burnt_ratio: Option<f64>,
    /// What that allows.
    pub budget: Budget,
}

/// Counts of one objective: nine windows of at most 52 parts of 32 bytes, 15 KiB.
pub struct Tracker {
    objective: Objective,
    total: Events,
    burn: [Sliding<Events>; BURN_WINDOWS.len()],
    week: Sliding<Events>,
    window: Sliding<Events>,
}

impl Tracker {
    /// Nothing counted yet.
    pub fn new(objective: Objective) -> Self {
        Self {
            total: Events::default(),
            burn: BURN_WINDOWS.map(|(seconds, _)| Sliding::new(seconds * 1_000_000_000)),
            week: Sliding::new(WEEK_NS),
            window: Sliding::new(objective.window_ns),
            objective,
        }
    }

    /// What is promised.
    pub fn objective(&self) -> &Objective {
        &self.objective
    }

    /// Counts the events of one reading that ends at `now_ns`; `targets` as that reading left them.
    pub fn add(&mut self, targets: &[TargetStatus], reading: &Measurements, now_ns: u64) {
        let events = self.events(targets, reading);
        self.total.add(&events);
        for window in self.burn.iter_mut().chain([&mut self.week, &mut self.window]) {
            window.add(now_ns, reading.elapsed_ns, &events);
        }
    }

    fn events(&self, targets: &[TargetStatus], reading: &Measurements) -> Events {
        let Some(target) = targets.iter().position(|target| target.name == self.objective.target) else {
            return Events::default();
        };
        match self.objective.indicator {
            Indicator::Available => Events { total: 1, bad: u64::from(targets[target].processes == 0) },
            Indicator::Latency { probe, label, good_slot } => {
                let mut events = Events::default();
                let mine = |row: &&crate::RowReading| {
                    row.probe == probe && row.target == target && label.is_none_or(|label| row.label == label)
                };
                for row in reading.rows.iter().filter(mine) {
                    let total = row.histogram.count();
                    events.add(&Events { total, bad: total - row.histogram.up_to(good_slot) });
                }
                events
            }
        }
    }

    /// What is known now.
    pub fn status(&self) -> SloStatus {
        let week_burnt_ratio = self.burnt(&self.week, WEEK_NS);
        SloStatus {
            objective: self.objective.clone(),
            events: self.total,
            burn: std::array::from_fn(|index| Burn {
                rate: self.rate(&self.burn[index]),
                covered_ns: self.burn[index].covered_ns(),
            }),
            budget_remaining_ratio: self
                .burnt(&self.window, self.objective.window_ns)
                .map(|burnt| 1.0 - burnt),
            week_burnt_ratio,
            budget: Budget::of(week_burnt_ratio),
        }
    }

    fn rate(&self, window: &Sliding<Events>) -> Option<f64> {
        Some(window.sum().bad_ratio()? / (1.0 - self.objective.objective))
    }

    /// Share of a whole window's budget that is burnt. A window that is covered in part holds that
    /// part of the budget: ten bad seconds after a start are not a bad week.
    fn burnt(&self, window: &Sliding<Events>, length_ns: u64) -> Option<f64> {
        let covered = (window.covered_ns() as f64 / length_ns as f64).min(1.0);
        Some(self.rate(window)? * covered)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Histogram, Now, RowReading, State, TargetReading};

    const SECOND: u64 = 1_000_000_000;
    const MILLI: u64 = 1_000_000;

    fn latency(objective: f64) -> Objective {
        // 125 ms is a bound of the histogram, so there is no doubt about any event.
        let good_slot = good_slot(125 * MILLI).expect("in range");
        Objective {
            name: "fast".into(),
            target: "engine".into(),
            indicator: Indicator::Latency { probe: 0, label: None, good_slot },
            objective,
            window_ns: 30 * 86_400 * SECOND,
        }
    }

    fn available() -> Objective {
        Objective { name: "there".into(), indicator: Indicator::Available, ..latency(0.99) }
    }

    /// A state, and the time so far.
    struct World {
        state: State,
        now_s: u64,
    }

    impl World {
        fn new(objectives: &[Objective]) -> Self {
            let mut state = State::new(&["engine".to_owned(), "api".to_owned()], SECOND);
            state.promise(objectives.to_vec());
            Self { state, now_s: 1_000_000 }
        }

        /// A reading of so many seconds with so many good and bad events, in two labels.
        fn read(&mut self, seconds: u64, good: u64, bad: u64, processes: usize) -> Vec<SloStatus> {
            self.now_s += seconds;
            let row = |label, ns, count| {
                let cells = vec![(slot(ns) as u16, count)];
                RowReading { probe: 0, target: 0, label, histogram: Histogram::from_cells(cells, 0, 0) }
            };
            // Another target's and another probe's bad events are nobody's business here.
            let mut rows = vec![row(0, 125 * MILLI, good), row(1, 125 * MILLI + 1, bad)];
            rows.push(RowReading { target: 1, ..row(1, SECOND, 1000) });
            rows.push(RowReading { probe: 1, ..row(1, SECOND, 1000) });
            let engine = TargetReading { processes, ..TargetReading::default() };
            let reading = Measurements {
                elapsed_ns: seconds * SECOND,
                rows,
                targets: vec![engine, TargetReading::default()],
                ..Measurements::default()
            };
            let now = Now { monotonic_ns: self.now_s * SECOND, wall_ns: 0 };
            self.state.step(&reading, now).slos
        }
    }

    fn near(value: Option<f64>, wanted: f64) {
        let value = value.expect("there are events");
        assert!((value - wanted).abs() < 1e-9 * wanted.abs().max(1.0), "{value}, not {wanted}");
    }

    #[test]
    fn without_events_nothing_is_known() {
        let mut world = World::new(&[latency(0.99)]);
        let slo = &world.read(1, 0, 0, 1)[0];
        assert!(slo.burn.iter().all(|burn| burn.rate.is_none() && burn.covered_ns == SECOND));
        assert_eq!((slo.budget_remaining_ratio, slo.week_burnt_ratio), (None, None));
        assert_eq!(slo.budget, Budget::NoData);
    }

    #[test]
    fn a_steady_share_of_bad_events_burns_at_its_rate_in_every_window() {
        let mut world = World::new(&[latency(0.99)]);
        let mut last = Vec::new();
        for _ in 0..7 * 24 * 60 {
            last = world.read(60, 980, 20, 1);
        }
        let slo = &last[0];
        for burn in slo.burn {
            near(burn.rate, 2.0);
        }
        // Two weekly budgets in a week; of thirty days, seven at twice the rate.
        assert!((1.95..=2.001).contains(&slo.week_burnt_ratio.expect("events")), "{slo:?}");
        near(slo.budget_remaining_ratio, 1.0 - 2.0 * 7.0 / 30.0);
        assert_eq!(slo.budget, Budget::HotfixOnly);
        assert_eq!(slo.events, Events { total: 10_080_000, bad: 201_600 });
    }

    #[test]
    fn a_burst_leaves_the_short_windows_first() {
        let mut world = World::new(&[latency(0.999)]);
        for _ in 0..3600 {
            world.read(1, 100, 0, 1);
        }
        // Two minutes in which half is bad.
        let mut last = Vec::new();
        for _ in 0..120 {
            last = world.read(1, 50, 50, 1);
        }
        let rate = |slos: &[SloStatus], name: &str| {
            let index = BURN_WINDOWS.iter().position(|(_, window)| *window == name).expect("a window");
            slos[0].burn[index].rate.expect("events")
        };
        assert!(rate(&last, "5m") > 190.0 && rate(&last, "1h") > 14.4, "page: {last:?}");
        assert_eq!(last[0].budget, Budget::Ok, "one minute's worth of a week of ten");
        for _ in 0..300 {
            last = world.read(1, 100, 0, 1);
        }
        assert!(rate(&last, "5m").abs() < f64::EPSILON, "{last:?}");
        assert!(rate(&last, "1h") > 14.4, "still in the long window");
    }

    #[test]
    fn the_policy_follows_the_share_of_the_weeks_budget() {
        // 1 % of a week is 6048 s. All events of so many seconds are bad.
        for (bad_s, budget) in [(3000, Budget::Ok), (3100, Budget::Frozen), (6100, Budget::HotfixOnly)] {
            let mut world = World::new(&[available()]);
            let mut last = Vec::new();
            for _ in 0..bad_s / 10 {
                last = world.read(10, 0, 0, 0);
            }
            near(last[0].week_burnt_ratio, f64::from(bad_s) / 6048.0);
            assert_eq!(last[0].budget, budget, "{bad_s} s");
            // Good time neither adds to it nor takes away, until the bad time is a week old.
            for _ in 0..2000 {
                last = world.read(10, 0, 0, 1);
            }
            near(last[0].week_burnt_ratio, f64::from(bad_s) / 6048.0);
            assert_eq!(last[0].budget, budget, "{bad_s} s");
        }
    }

    #[test]
    fn a_bad_week_is_forgiven_when_it_is_over() {
        let mut world = World::new(&[latency(0.99)]);
        for _ in 0..120 {
            world.read(60, 0, 100, 1);
        }
        let mut last = Vec::new();
        for _ in 0..7 * 24 * 60 {
            last = world.read(60, 100, 0, 1);
        }
        near(last[0].week_burnt_ratio, 0.0);
        assert_eq!(last[0].budget, Budget::Ok);
        // The thirty days remember.
        assert!(last[0].budget_remaining_ratio.expect("events") < 0.75, "{last:?}");
    }

    #[test]
    fn a_gap_covers_its_time() {
        let mut world = World::new(&[latency(0.99)]);
        world.read(1, 99, 1, 1);
        let slos = world.read(120, 99, 1, 1);
        near(slos[0].burn[0].rate, 1.0);
        assert_eq!(slos[0].burn[0].covered_ns, 121 * SECOND);
        // Longer than the window: what was before is gone, and the covered time says more than 5m.
        let slos = world.read(900, 0, 7, 1);
        near(slos[0].burn[0].rate, 100.0);
        assert_eq!(slos[0].burn[0].covered_ns, 900 * SECOND);
    }

    #[test]
    fn availability_counts_readings() {
        let mut world = World::new(&[available()]);
        world.read(1, 0, 0, 0);
        for _ in 0..3 {
            world.read(1, 0, 0, 2);
        }
        let slos = world.read(1, 0, 0, 1);
        assert_eq!(slos[0].events, Events { total: 5, bad: 1 });
        near(slos[0].burn[0].rate, 0.2 / 0.01);
    }

    #[test]
    fn a_label_picks_its_own_events() {
        let Indicator::Latency { probe, good_slot, .. } = latency(0.9).indicator else { unreachable!() };
        let only = |label| Objective {
            indicator: Indicator::Latency { probe, label: Some(label), good_slot },
            ..latency(0.9)
        };
        let mut world = World::new(&[only(0), only(1), only(2)]);
        let slos = world.read(1, 5, 3, 1);
        assert_eq!(slos[0].events, Events { total: 5, bad: 0 });
        assert_eq!(slos[1].events, Events { total: 3, bad: 3 });
        assert_eq!(slos[2].events, Events::default());
    }

    #[test]
    fn a_promise_that_stays_keeps_its_counts_and_a_changed_one_begins_anew() {
        let mut world = World::new(&[latency(0.99), available()]);
        world.read(1, 10, 1, 1);
        // Targets change their places, and one promise its objective.
        world.state.retarget(&["api".to_owned(), "engine".to_owned()], SECOND);
        world.state.promise(vec![available(), latency(0.999)]);
        let reading = Measurements { elapsed_ns: SECOND, ..Measurements::default() };
        let now = Now { monotonic_ns: (world.now_s + 1) * SECOND, wall_ns: 0 };
        let slos = world.state.step(&reading, now).slos;
        assert_eq!(slos[0].events, Events { total: 2, bad: 1 }, "the engine was not found again yet");
        assert_eq!(slos[1].events, Events::default());
    }

    #[test]
    fn a_promise_about_a_target_that_is_gone_has_no_data() {
        let mut world = World::new(&[Objective { target: "other".into(), ..available() }]);
        assert_eq!(world.read(1, 1, 1, 1)[0].budget, Budget::NoData);
    }

    #[test]
    fn thresholds_move_down_to_a_bound() {
        let up_to = |ns| good_slot(ns).map(upper_seconds);
        assert_eq!(up_to(125 * MILLI), Some(0.125), "a bound is exact");
        assert_eq!(up_to(125 * MILLI - 1), Some((-49.0f64 / 16.0).exp2()), "one less is the bound below");
        assert_eq!(up_to(60), None, "below the range");
        assert_eq!(up_to(128 * SECOND), Some(128.0));
    }

    proptest! {
        #[test]
        fn good_events_are_never_slower_than_the_threshold(
            threshold in 1_000u64..100_000_000_000,
            ns in 0u64..200_000_000_000,
        ) {
            let last = good_slot(threshold).expect("in range");
            let bound = upper_seconds(last) * 1e9;
            prop_assert!(bound <= threshold as f64 + 1.0 && bound > threshold as f64 / 1.0443);
            if slot(ns) as usize <= last {
                prop_assert!(ns <= threshold);
            }
        }

        #[test]
        fn nothing_is_lost_between_windows_and_total(
            readings in proptest::collection::vec((1u64..600, 0u64..1000, 0u64..1000), 1..100),
        ) {
            let mut world = World::new(&[latency(0.99)]);
            let (mut total, mut bad) = (0, 0);
            for (seconds, good, wrong) in readings {
                total += good + wrong;
                bad += wrong;
                let slo = &world.read(seconds, good, wrong, 1)[0];
                prop_assert_eq!(slo.events, Events { total, bad });
                // All of it is younger than a day.
                let wanted = slo.events.bad_ratio().map(|ratio| ratio / (1.0 - 0.99));
                prop_assert_eq!(slo.burn[5].rate, wanted);
            }
        }
    }
}
