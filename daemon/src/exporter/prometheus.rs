//! `/metrics`: the snapshot as Prometheus text.
//!
//! A probe's metric is never written by hand: it is `tickscope_<probe>_seconds` of the catalog.
//! The daemon's own metrics are the rows of `crate::metrics`.

use std::sync::LazyLock;

use prometheus::TextEncoder;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use tickscope_common::catalog::PROBES;
use tickscope_common::histogram::{FIRST_INDEX, SLOT_ABOVE};
use tickscope_core::upper_seconds;

use super::{Input, label};
use crate::metrics::{Kind, OWN};

/// The cells whose upper bounds are the classic buckets: of the fine bounds, those nearest to five
/// a decade from 1 µs to 10 s. Counts are exact, because no fine bucket is split.
static CLASSIC: LazyLock<Vec<usize>> = LazyLock::new(|| {
    (-30..=5)
        .map(|fifth| {
            let exponent = (f64::from(fifth) / 5.0 * 10f64.log2() * 16.0).round() as i32;
            (exponent - FIRST_INDEX) as usize
        })
        .inspect(|slot| assert!(*slot > 0 && *slot < SLOT_ABOVE))
        .collect()
});

/// Everything, in the text format 0.0.4.
///
/// # Errors
/// When the encoder refuses a name, which would be a defect of the catalog.
pub fn text(input: &Input) -> Result<String, prometheus::Error> {
    TextEncoder::new().encode_to_string(&families(input))
}

fn families(input: &Input) -> Vec<MetricFamily> {
    let probes = PROBES.iter().enumerate().map(|(probe, entry)| {
        let of_probe = input.snapshot.series.iter().filter(|series| series.key.probe == probe);
        let metrics = of_probe
            .map(|series| {
                let target = ("target", input.target(series.key));
                let labels = std::iter::once(target).chain(label(series.key));
                let mut metric = Metric::from_label(labels.map(pair).collect());
                metric.set_histogram(histogram(&series.total));
                metric
            })
            .collect();
        let help = format!("{}. Not seen: {}.", sentence(entry.measures), entry.blind);
        family(&format!("tickscope_{}_seconds", entry.name), &help, MetricType::HISTOGRAM, metrics)
    });
    let own = OWN.iter().map(|own| {
        let metrics = (own.samples)(input)
            .into_iter()
            .map(|(values, value)| {
                let labels = own.labels.iter().copied().zip(values.iter().map(String::as_str));
                let mut metric = Metric::from_label(labels.map(pair).collect());
                match own.kind {
                    Kind::Gauge => {
                        let mut gauge = Gauge::default();
                        gauge.set_value(value);
                        metric.set_gauge(gauge);
                    }
                    Kind::Counter => {
                        let mut counter = Counter::default();
                        counter.set_value(value);
                        metric.set_counter(counter);
                    }
                }
                metric
            })
            .collect();
        let kind = match own.kind {
            Kind::Gauge => MetricType::GAUGE,
            Kind::Counter => MetricType::COUNTER,
        };
        family(own.name, own.help, kind, metrics)
    });
    // A family without a metric is no error: there is nothing to say yet.
    probes.chain(own).filter(|family| !family.get_metric().is_empty()).collect()
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.into());
    family.set_help(help.into());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn pair((name, value): (&str, &str)) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.into());
    pair.set_value(value.into());
    pair
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn histogram(from: &tickscope_core::Histogram) -> Histogram {
    let mut histogram = Histogram::default();
    histogram.set_sample_count(from.count());
    histogram.set_sample_sum(from.sum_ns as f64 / 1e9);
    let buckets = CLASSIC.iter().map(|slot| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(upper_seconds(*slot));
        bucket.set_cumulative_count(from.up_to(*slot));
        bucket
    });
    histogram.set_bucket(buckets.collect());
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classic_bounds_are_about_five_a_decade() {
        assert_eq!(CLASSIC.len(), 36);
        assert!((upper_seconds(CLASSIC[0]) / 1e-6 - 1.0).abs() < 0.025);
        assert!((upper_seconds(CLASSIC[35]) / 10.0 - 1.0).abs() < 0.025);
        for pair in CLASSIC.windows(2) {
            let ratio = upper_seconds(pair[1]) / upper_seconds(pair[0]);
            assert!((1.5..1.65).contains(&ratio), "{ratio}");
        }
    }

    #[test]
    fn buckets_count_exactly() {
        let mut from = tickscope_core::Histogram::default();
        for ns in [10, 900, 1_000, 50_000, 200_000_000_000] {
            from.observe(ns);
        }
        let histogram = histogram(&from);
        assert_eq!(histogram.get_sample_count(), 5);
        let cumulative: Vec<u64> = histogram.get_bucket().iter().map(Bucket::cumulative_count).collect();
        assert_eq!(cumulative[0], 2, "10 ns and 900 ns are not above 0.997 µs");
        assert_eq!(cumulative[35], 4, "200 s is only in +Inf");
    }
}
