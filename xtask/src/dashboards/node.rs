//! The dashboard of a node: every probe, who is to blame, what measuring costs and what it missed.

use tickscope_common::catalog::{PROBES, Probe};

use super::grafana::{Dashboard, Kind, NODE, Panel, Row, TARGET, quantile, rate_of, variables};

/// It.
pub fn dashboard() -> Dashboard {
    let mut rows = vec![now()];
    rows.extend(PROBES.iter().map(probe));
    rows.push(measuring());
    rows.push(accounting());
    Dashboard {
        uid: "tickscope-node",
        title: "tickscope / node",
        description: "Where the microseconds of a node's targets go, probe by probe, and whether the measurement can be trusted.",
        variables: variables(),
        rows,
    }
}

fn now() -> Row {
    let p99 = PROBES.iter().filter(|probe| probe.default).map(|probe| {
        let metric = format!("tickscope_{}_seconds", probe.name);
        let description = format!("0.99-quantile of the chosen targets: {}.", probe.measures);
        Panel::new(Kind::Stat, format!("p99 {}", probe.name), description, "s")
            .width(4)
            .query(quantile("0.99", &metric, "target"), "{{target}}")
    });
    let processes = Panel::new(
        Kind::Stat,
        "Processes",
        "Processes that match a target now. 0 is not health: nothing is measured then.",
        "short",
    )
    .width(4)
    .thresholds(1.0, 0.5)
    .query(format!("sum by (target) (tickscope_target_processes{{{TARGET}}})"), "{{target}}");
    let overhead = Panel::new(
        Kind::Stat,
        "Cost",
        "Share of one CPU that programs and daemon took together over the last minute.",
        "percentunit",
    )
    .width(4)
    .thresholds(0.01, 0.02)
    .query(format!("tickscope_overhead_cpu_ratio{{{NODE}}}"), "{{instance}}");
    let panels = [processes].into_iter().chain(p99).chain([overhead]);
    Row { title: "Now".into(), collapsed: false, panels: panels.collect() }
}

fn probe(probe: &Probe) -> Row {
    let name = probe.name;
    let metric = format!("tickscope_{name}_seconds");
    let what = format!("{name}: {}. Not seen: {}.", probe.measures, probe.blind);
    let quantiles = Panel::new(Kind::Logarithm, format!("{name}: quantiles"), what.clone(), "s")
        .query(quantile("0.5", &metric, "target"), "{{target}} p50")
        .query(quantile("0.9", &metric, "target"), "{{target}} p90")
        .query(quantile("0.99", &metric, "target"), "{{target}} p99")
        .query(quantile("0.999", &metric, "target"), "{{target}} p99.9");
    let native = format!("sum(rate({metric}{{{TARGET}}}[$__rate_interval]))");
    let classic = format!("sum by (le) (rate({metric}_bucket{{{TARGET}}}[$__rate_interval]))");
    let heatmap = Panel::new(
        Kind::Heatmap,
        format!("{name}: distribution"),
        format!("All observations over time. {what}"),
        "s",
    )
    .query(format!("{native} or ({classic} unless on () {native})"), "{{le}}");
    let mut panels = vec![quantiles, heatmap];
    match &probe.label {
        None => {
            let description = format!("Observations of {name} per second, by target.");
            let rate = Panel::new(Kind::Lines, format!("{name}: rate"), description, "ops");
            panels.push(rate.query(rate_of("count", &metric, "target"), "{{target}}"));
        }
        Some(label) => {
            let legend: &'static str = match label.name {
                "cause" => "{{target}} {{cause}}",
                "call" => "{{target}} {{call}}",
                "kind" => "{{target}} {{kind}}",
                "hop" => "{{target}} {{hop}}",
                _ => "{{target}}",
            };
            let by = format!("target, {}", label.name);
            let tail = format!(
                "0.99-quantile by {}: which of them makes the tail of {name}. Its values: {}.",
                label.name,
                label.values.join(", ")
            );
            let tail = Panel::new(Kind::Logarithm, format!("{name}: p99 by {}", label.name), tail, "s")
                .width(12)
                .query(quantile("0.99", &metric, &by), legend);
            let time = format!("Seconds of {name} per second, by {}: where the time goes.", label.name);
            let time = Panel::new(Kind::Lines, format!("{name}: time by {}", label.name), time, "s")
                .width(12)
                .query(rate_of("sum", &metric, &by), legend);
            for panel in &mut panels {
                panel.width = 12;
            }
            panels.extend([tail, time]);
        }
    }
    Row { title: name.into(), collapsed: !probe.default, panels }
}

fn measuring() -> Row {
    let cost = Panel::new(
        Kind::Lines,
        "Time of a run",
        "Mean time that one run of a probe's programs takes, from one run in 1024 that times itself.",
        "s",
    )
    .query(format!("tickscope_probe_cost_seconds{{{NODE}}}"), "{{instance}} {{probe}}");
    let runs = Panel::new(
        Kind::Lines,
        "Runs",
        "Runs of a probe's programs per second; a program shared by probes counts for the first that needs it.",
        "ops",
    )
    .query(format!("rate(tickscope_probe_runs_total{{{NODE}}}[$__rate_interval])"), "{{instance}} {{probe}}");
    let overhead = Panel::new(
        Kind::Lines,
        "Cost of it all",
        "Share of one CPU that programs and daemon took together. Over budget.cpu, outliers and then probes are given up.",
        "percentunit",
    )
    .query(format!("tickscope_overhead_cpu_ratio{{{NODE}}}"), "{{instance}}");
    let memory = Panel::new(
        Kind::Lines,
        "Memory",
        "Resident memory of the daemon, and kernel memory of its maps.",
        "bytes",
    )
    .query(
        format!("process_resident_memory_bytes{{{NODE}}} and on (job, instance) tickscope_build_info"),
        "{{instance}} resident",
    )
    .query(format!("tickscope_maps_bytes{{{NODE}}}"), "{{instance}} maps");
    let readings = Panel::new(
        Kind::Lines,
        "Readings",
        "Readings of the kernel's histograms per second, and those that came more than twice their interval late.",
        "ops",
    )
    .query(format!("rate(tickscope_readings_total{{{NODE}}}[$__rate_interval])"), "{{instance}} readings")
    .query(format!("rate(tickscope_gaps_total{{{NODE}}}[$__rate_interval])"), "{{instance}} late");
    let series = Panel::new(
        Kind::Lines,
        "Series",
        "Histograms that are kept, and series that were left out because there were too many.",
        "short",
    )
    .query(format!("tickscope_series{{{NODE}}}"), "{{instance}} kept")
    .query(format!("tickscope_series_dropped_total{{{NODE}}}"), "{{instance}} left out");
    Row {
        title: "What measuring costs".into(),
        collapsed: false,
        panels: vec![cost, runs, overhead, memory, readings, series],
    }
}

fn accounting() -> Row {
    let states = Panel::new(
        Kind::Table,
        "Probes",
        "The state that each probe is in. degraded, unsupported and failed have their reason in /api/v1/status.",
        "short",
    )
    .query(format!("tickscope_probe_state{{{NODE}}} == 1"), "");
    let seen = Panel::new(
        Kind::Lines,
        "Seen",
        "Intervals that ended in threads of targets, per second: recorded + filtered + discarded, exactly.",
        "ops",
    )
    .query(format!("rate(tickscope_seen_total{{{NODE}}}[$__rate_interval])"), "{{instance}} {{probe}}");
    let filtered = Panel::new(
        Kind::Lines,
        "Filtered",
        "Intervals left out on purpose, per second: the probe was shed, or the interval is none.",
        "ops",
    )
    .query(format!("rate(tickscope_filtered_total{{{NODE}}}[$__rate_interval])"), "{{instance}} {{probe}}");
    let discarded = Panel::new(
        Kind::Lines,
        "Discarded",
        "Intervals that are unusable, per second, by reason.",
        "ops",
    )
    .width(12)
    .query(
        format!(
            "sum by (instance, probe, reason) (rate(tickscope_discarded_total{{{NODE}}}[$__rate_interval]))"
        ),
        "{{instance}} {{probe}} {{reason}}",
    );
    let lost = Panel::new(
        Kind::Lines,
        "Lost",
        "What never arrived, per second: outlier records, and runs of programs that the kernel skipped.",
        "ops",
    )
    .width(12)
    .query(
        format!("rate(tickscope_lost_total{{{NODE}}}[$__rate_interval])"),
        "{{instance}} {{source}} {{reason}}",
    );
    Row {
        title: "Can it be trusted".into(),
        collapsed: false,
        panels: vec![states, seen, filtered, discarded, lost],
    }
}
