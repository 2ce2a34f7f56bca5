//! Latency histograms: the engine's ground truth.

use hdrhistogram::Histogram;

use crate::report::LatencySummary;

/// Longest latency that is told apart, in ns; longer ones count as this: 60 s.
const LONGEST_NS: u64 = 60_000_000_000;

/// Values are kept to this many decimal digits: within 0.1 %.
const DIGITS: u8 = 3;

/// A histogram of one latency, from 1 ns to 60 s. Recording allocates nothing.
#[derive(Debug)]
pub struct Latency {
    histogram: Histogram<u64>,
    sum_ns: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            histogram: Histogram::new_with_bounds(1, LONGEST_NS, DIGITS)
                .expect("the bounds are constants within what hdrhistogram takes"),
            sum_ns: 0,
        }
    }
}

impl Latency {
    /// Records one latency in ns.
    pub fn record(&mut self, latency_ns: u64) {
        self.histogram.saturating_record(latency_ns);
        self.sum_ns = self.sum_ns.saturating_add(latency_ns);
    }

    /// Count, sum and quantiles of what was recorded.
    pub fn summary(&self) -> LatencySummary {
        let at = |quantile| self.histogram.value_at_quantile(quantile);
        LatencySummary {
            count: self.histogram.len(),
            sum_ns: self.sum_ns,
            min_ns: self.histogram.min(),
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            max_ns: self.histogram.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_thousandth_and_the_sum_is_exact() {
        let mut latency = Latency::default();
        assert_eq!(latency.summary().count, 0);
        for value in 1..=1_000 {
            latency.record(value * 1_000);
        }
        let summary = latency.summary();
        assert_eq!((summary.count, summary.sum_ns), (1_000, 500_500_000));
        assert!(summary.p50_ns.abs_diff(500_000) <= 500);
        assert!(summary.p999_ns.abs_diff(999_000) <= 999);
        latency.record(u64::MAX);
        assert!(latency.summary().max_ns >= LONGEST_NS);
    }
}
