//! Histograms from a Prometheus, or whatever speaks its API.
//!
//! Native histograms where there are any; else the classic buckets. Of those only the bounds are
//! known, so a margin is at least one of their buckets: each row of the report says how much that
//! is (`margin`). With the daemon's own classic buckets, five a decade, that is 54 to 61 %.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tickscope_core::gate::Arm;

use super::feed::{Cumulative, Growth, Source, growth};

/// A store that does not answer within this is silent.
const PATIENCE: Duration = Duration::from_secs(5);

/// One store, asked about some metrics.
pub(super) struct Prometheus {
    agent: ureq::Agent,
    url: String,
    /// Label matchers of baseline and canary.
    arms: [String; 2],
    metrics: Vec<String>,
    /// By arm, metric and labels.
    before: HashMap<(usize, usize, String), Cumulative>,
    instances: HashMap<String, u32>,
}

#[derive(Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    result: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    metric: BTreeMap<String, String>,
    value: Option<(f64, String)>,
    histogram: Option<(f64, Native)>,
}

#[derive(Deserialize)]
struct Native {
    #[serde(default)]
    buckets: Vec<(Value, String, String, String)>,
}

impl Prometheus {
    /// Nothing is asked yet.
    pub fn new(url: &str, baseline: &str, canary: &str, metrics: &[String]) -> Self {
        let agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build().into();
        Self {
            agent,
            url: url.trim_end_matches('/').into(),
            arms: [baseline.into(), canary.into()],
            metrics: metrics.to_vec(),
            before: HashMap::new(),
            instances: HashMap::new(),
        }
    }

    fn query(&self, query: &str) -> Option<Vec<Sample>> {
        let url = format!("{}/api/v1/query", self.url);
        let answer = self.agent.get(url).query("query", query).call().ok()?;
        let text = answer.into_body().read_to_string().ok()?;
        Some(serde_json::from_str::<Answer>(&text).ok()?.data.result)
    }

    /// Cumulative counts by series; `None`: no answer.
    fn read(&self, metric: &str, matchers: &str) -> Option<BTreeMap<String, Cumulative>> {
        let native = self.query(&format!("{metric}{{{matchers}}}"))?;
        let mut series = BTreeMap::new();
        for sample in native {
            if let Some((_, native)) = sample.histogram {
                series.insert(labels(&sample.metric), counted(&native)?);
            }
        }
        if series.is_empty() {
            return classic(self.query(&format!("{metric}_bucket{{{matchers}}}"))?);
        }
        Some(series)
    }
}

impl Source for Prometheus {
    fn tick(&mut self) -> (Vec<Growth>, bool) {
        let mut grown = Vec::new();
        let mut usable = true;
        let mut now = HashMap::new();
        for (arm, matchers) in self.arms.iter().enumerate() {
            for (kpi, metric) in self.metrics.iter().enumerate() {
                match self.read(metric, matchers) {
                    Some(series) => {
                        now.extend(series.into_iter().map(|(labels, sum)| ((arm, kpi, labels), sum)));
                    }
                    None => usable = false,
                }
            }
        }
        for (key, sum) in &now {
            let (arm, kpi, labels) = key;
            // A series that was not there has no growth yet: it may have been counting for long.
            let Some(before) = self.before.get(key) else { continue };
            let next = self.instances.len() as u32 + 1;
            let instance = *self.instances.entry(labels.clone()).or_insert(next);
            let arm = if *arm == 0 { Arm::Baseline } else { Arm::Canary };
            match growth(before, sum) {
                Some(buckets) => grown.push(Growth { arm, kpi: *kpi, instance, buckets }),
                None => usable = false,
            }
        }
        if usable || !now.is_empty() {
            self.before = now;
        }
        (grown, usable)
    }
}

/// All labels but the bound, in order.
fn labels(metric: &BTreeMap<String, String>) -> String {
    let rest = metric.iter().filter(|(name, _)| !["le", "__name__"].contains(&name.as_str()));
    rest.map(|(name, value)| format!("{name}={value:?},")).collect()
}

/// A bucket is `[boundary rule, lower, upper, count]`.
fn counted(native: &Native) -> Option<Cumulative> {
    let mut sum = Cumulative::new();
    for (_, _, upper, count) in &native.buckets {
        let upper: f64 = upper.parse().ok()?;
        *sum.entry(upper.max(0.0).to_bits()).or_default() += whole(count)?;
    }
    Some(sum)
}

/// Classic buckets count everything up to their bound: the difference to the next lower is theirs.
fn classic(samples: Vec<Sample>) -> Option<BTreeMap<String, Cumulative>> {
    let mut bounds: BTreeMap<String, Vec<(f64, u64)>> = BTreeMap::new();
    for sample in samples {
        let le: f64 = sample.metric.get("le")?.trim_start_matches('+').parse().ok()?;
        let count = whole(&sample.value?.1)?;
        bounds.entry(labels(&sample.metric)).or_default().push((le, count));
    }
    for counts in bounds.values_mut() {
        counts.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let difference = |counts: Vec<(f64, u64)>| {
        let mut below = 0;
        let own = counts.into_iter().map(|(le, count)| {
            let own = count.saturating_sub(below);
            below = below.max(count);
            (le.max(0.0).to_bits(), own)
        });
        own.collect::<Cumulative>()
    };
    Some(bounds.into_iter().map(|(labels, counts)| (labels, difference(counts))).collect())
}

fn whole(text: &str) -> Option<u64> {
    let value: f64 = text.parse().ok()?;
    (0.0..1.8e19).contains(&value).then_some(value.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_and_classic_answers_are_read() {
        let native = r#"{"metric":{"__name__":"x","pod":"a"},"histogram":[1,{"count":"5","sum":"1",
            "buckets":[[0,"0.25","0.5","3"],[3,"-1e-9","1e-9","2"]]}]}"#;
        let sample: Sample = serde_json::from_str(native).unwrap();
        assert_eq!(labels(&sample.metric), "pod=\"a\",");
        let counts = counted(&sample.histogram.unwrap().1).unwrap();
        assert_eq!(counts, [(1e-9f64.to_bits(), 2), (0.5f64.to_bits(), 3)].into());

        let line = |le: &str, count: &str| {
            let text = format!(r#"{{"metric":{{"le":"{le}","pod":"a"}},"value":[1,"{count}"]}}"#);
            serde_json::from_str::<Sample>(&text).unwrap()
        };
        let series = classic(vec![line("+Inf", "9"), line("0.5", "7"), line("0.25", "3")]).unwrap();
        let counts: Vec<(f64, u64)> =
            series["pod=\"a\","].iter().map(|(bound, count)| (f64::from_bits(*bound), *count)).collect();
        assert_eq!(counts, [(0.25, 3), (0.5, 4), (f64::INFINITY, 2)]);
    }
}
