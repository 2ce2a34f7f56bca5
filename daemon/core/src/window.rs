//! The last so many seconds of something that adds up, kept by adding what comes and taking away
//! what goes.

use std::collections::VecDeque;

use crate::histogram::Histogram;
use crate::snapshot::{WINDOWS, Window};

/// A window is kept in at most this many parts, plus the one that fills. A series then takes
/// `4 x 51` parts of 24 bytes and 16 bytes for each filled cell in each: about 100 KiB with the
/// usual thirty filled cells, 1.7 MiB if all 498 are always filled.
const PARTS: u64 = 50;

/// What a window can hold.
pub trait Amount: Clone + Default {
    /// Adds all of `other`.
    fn add(&mut self, other: &Self);

    /// Takes `other` away, which was added before; `left` is what remains, oldest first.
    fn take<'a>(&mut self, other: &Self, left: impl Iterator<Item = &'a Self>)
    where
        Self: 'a;
}

impl Amount for Histogram {
    fn add(&mut self, other: &Self) {
        self.merge(other);
    }

    fn take<'a>(&mut self, other: &Self, left: impl Iterator<Item = &'a Self>) {
        self.subtract(other);
        self.max_ns = left.map(|part| part.max_ns).max().unwrap_or(0);
    }
}

/// The last so many seconds of an amount.
#[derive(Clone, Debug)]
pub struct Sliding<T> {
    length_ns: u64,
    parts: VecDeque<Part<T>>,
    sum: T,
    covered_ns: u64,
}

#[derive(Clone, Debug)]
struct Part<T> {
    begin_ns: u64,
    covered_ns: u64,
    amount: T,
}

impl<T: Amount> Sliding<T> {
    /// An empty window of this length.
    pub fn new(length_ns: u64) -> Self {
        Self { length_ns, parts: VecDeque::new(), sum: T::default(), covered_ns: 0 }
    }

    /// A reading that ends at `now_ns` and covers `elapsed_ns`.
    pub fn add(&mut self, now_ns: u64, elapsed_ns: u64, amount: &T) {
        let begin_ns = now_ns.saturating_sub(elapsed_ns);
        self.sum.add(amount);
        self.covered_ns += elapsed_ns;
        match self.parts.back_mut() {
            Some(part) if now_ns - part.begin_ns.min(now_ns) <= self.length_ns / PARTS => {
                part.covered_ns += elapsed_ns;
                part.amount.add(amount);
            }
            _ => {
                self.parts.push_back(Part { begin_ns, covered_ns: elapsed_ns, amount: amount.clone() });
            }
        }
        self.forget(now_ns);
    }

    /// Takes away what lies further back than the window, but never the newest part: a reading
    /// after a gap can be longer than the window, and `covered_ns` says so.
    fn forget(&mut self, now_ns: u64) {
        let oldest = now_ns.saturating_sub(self.length_ns);
        while self.parts.len() > 1 && self.parts[0].begin_ns < oldest {
            if let Some(part) = self.parts.pop_front() {
                self.sum.take(&part.amount, self.parts.iter().map(|part| &part.amount));
                self.covered_ns -= part.covered_ns;
            }
        }
    }

    /// What it holds now.
    pub fn sum(&self) -> &T {
        &self.sum
    }

    /// Time that it covers now, ns: less than its length after a start.
    pub fn covered_ns(&self) -> u64 {
        self.covered_ns
    }
}

impl Sliding<Histogram> {
    /// All of [`WINDOWS`], empty.
    pub fn all() -> [Self; WINDOWS.len()] {
        WINDOWS.map(|(seconds, _)| Self::new(seconds * 1_000_000_000))
    }

    /// What it holds now, for a snapshot.
    pub fn view(&self) -> Window {
        Window { covered_ns: self.covered_ns, histogram: self.sum.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn one(ns: u64) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.observe(ns);
        histogram
    }

    #[test]
    fn a_window_holds_its_length_and_no_more() {
        let mut ten = Sliding::all()[0].clone();
        for second in 1..=100 {
            ten.add(second * SECOND, SECOND, &one(second * 1000));
        }
        let view = ten.view();
        assert_eq!((view.histogram.count(), view.covered_ns), (10, 10 * SECOND));
        assert_eq!(view.histogram.max_ns, 100_000);
        assert_eq!(view.histogram.sum_ns, (91..=100).sum::<u64>() * 1000);
    }

    #[test]
    fn the_largest_leaves_with_its_part() {
        let mut ten = Sliding::all()[0].clone();
        ten.add(SECOND, SECOND, &one(5_000_000));
        for second in 2..=10 {
            ten.add(second * SECOND, SECOND, &one(1000));
        }
        assert_eq!(ten.view().histogram.max_ns, 5_000_000);
        ten.add(11 * SECOND, SECOND, &one(1000));
        assert_eq!(ten.view().histogram.max_ns, 1000);
    }

    #[test]
    fn memory_is_bounded_by_parts_not_by_readings() {
        for window in &mut Sliding::all() {
            for reading in 1..100_000u64 {
                window.add(reading * SECOND / 5, SECOND / 5, &one(1000));
            }
            assert!(window.parts.len() as u64 <= PARTS + 2, "{}", window.parts.len());
            let covered = window.view().covered_ns as f64;
            let length = window.length_ns as f64;
            assert!((0.95 * length..=1.001 * length).contains(&covered), "{covered} of {length}");
        }
    }

    #[test]
    fn a_reading_longer_than_the_window_is_kept_and_said() {
        let mut ten = Sliding::all()[0].clone();
        ten.add(100 * SECOND, 60 * SECOND, &one(1000));
        assert_eq!(ten.view().covered_ns, 60 * SECOND);
        assert_eq!(ten.view().histogram.count(), 1);
    }

    proptest! {
        #[test]
        fn the_sum_is_the_sum_of_its_parts(readings in vec((1..5_000u64, vec(0..10_000_000u64, 0..5)), 1..200)) {
            for mut window in Sliding::all() {
                let mut now = 0;
                for (millis, values) in &readings {
                    now += millis * 1_000_000;
                    let mut histogram = Histogram::default();
                    for value in values {
                        histogram.observe(*value);
                    }
                    window.add(now, millis * 1_000_000, &histogram);
                }
                let mut sum = Histogram::default();
                window.parts.iter().for_each(|part| sum.merge(&part.amount));
                prop_assert_eq!(&window.sum, &sum);
                prop_assert_eq!(window.covered_ns, window.parts.iter().map(|part| part.covered_ns).sum::<u64>());
            }
        }
    }
}
