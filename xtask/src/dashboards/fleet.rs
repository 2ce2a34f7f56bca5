//! The dashboard of all nodes: who is there, who is worst, what is left of the budgets.

use tickscope_common::catalog::PROBES;

use super::grafana::{Dashboard, Kind, NODE, Panel, Row, TARGET, quantile, variables};

/// It.
pub fn dashboard() -> Dashboard {
    Dashboard {
        uid: "tickscope-fleet",
        title: "tickscope / fleet",
        description: "All nodes: which are blind, which are worst, and what is left of the error budgets.",
        variables: variables(),
        rows: vec![health(), worst(), budgets(), cost()],
    }
}

fn health() -> Row {
    let stat = |title: &str, description: &str| Panel::new(Kind::Stat, title, description, "short").width(4);
    let up = stat("Nodes", "Daemons that answer their scrapes.").query(format!("sum(up{{{NODE}}})"), "");
    let down = stat("Nodes down", "Daemons that do not answer.")
        .thresholds(0.5, 1.0)
        .query(format!("count(up{{{NODE}}} == 0) or vector(0)"), "");
    let empty =
        stat("Targets empty", "Targets without a process, over all nodes: nothing is measured there.")
            .thresholds(0.5, 1.0)
            .query(format!("count(tickscope_target_processes{{{TARGET}}} == 0) or vector(0)"), "");
    let blind = stat("Probes blind", "Probes that should measure and do not, or not all they say.")
        .thresholds(0.5, 1.0)
        .query(
            format!("count(tickscope_probe_state{{{NODE}, state=~\"degraded|unsupported|failed\"}} == 1) or vector(0)"),
            "",
        );
    let reload = stat("Bad configurations", "Daemons whose latest configuration could not be loaded.")
        .thresholds(0.5, 1.0)
        .query(format!("count(tickscope_config_last_reload_successful{{{NODE}}} == 0) or vector(0)"), "");
    let builds = stat("Builds", "Different builds in the fleet.")
        .query(format!("count(count by (version, git_sha) (tickscope_build_info{{{NODE}}}))"), "");
    Row {
        title: "Who is there".into(),
        collapsed: false,
        panels: vec![up, down, empty, blind, reload, builds],
    }
}

fn worst() -> Row {
    let panels = PROBES.iter().filter(|probe| probe.default).map(|probe| {
        let p99 = quantile("0.99", &format!("tickscope_{}_seconds", probe.name), "instance, target");
        let description =
            format!("The five nodes and targets with the highest 0.99-quantile. {}.", probe.measures);
        Panel::new(Kind::Logarithm, format!("Worst p99 {}", probe.name), description, "s")
            .width(12)
            .query(format!("topk(5, {p99})"), "{{instance}} {{target}}")
    });
    Row { title: "Who is worst".into(), collapsed: false, panels: panels.collect() }
}

fn budgets() -> Row {
    let left = Panel::new(
        Kind::Lines,
        "Error budget left, of all nodes together",
        "What is left of the budget in each objective's window, from the rules that `tickscope rules` prints.",
        "percentunit",
    )
    .query("slo:tickscope_slo_budget_remaining:ratio", "{{slo}}");
    let nodes = Panel::new(
        Kind::Lines,
        "Error budget left, worst five nodes",
        "What is left of each node's own budget since its daemon started.",
        "percentunit",
    )
    .query(format!("bottomk(5, tickscope_slo_budget_remaining_ratio{{{NODE}}})"), "{{instance}} {{slo}}");
    let state = Panel::new(
        Kind::Table,
        "Budgets that hold back promotions",
        "Nodes whose weekly budget is frozen (more than half burnt), spent (hotfix-only) or unknown (nodata).",
        "short",
    )
    .query(format!("tickscope_slo_budget_state{{{NODE}, state!=\"ok\"}} == 1"), "");
    Row { title: "Budgets".into(), collapsed: false, panels: vec![left, nodes, state] }
}

fn cost() -> Row {
    let overhead = Panel::new(
        Kind::Lines,
        "Cost of measuring, highest five",
        "Share of one CPU that programs and daemon take together.",
        "percentunit",
    )
    .query(format!("topk(5, tickscope_overhead_cpu_ratio{{{NODE}}})"), "{{instance}}");
    let lost = Panel::new(
        Kind::Lines,
        "Lost and discarded",
        "What never arrived and what is unusable, per second, over all nodes.",
        "ops",
    )
    .query(
        format!("sum by (source, reason) (rate(tickscope_lost_total{{{NODE}}}[$__rate_interval]))"),
        "lost {{source}} {{reason}}",
    )
    .query(
        format!("sum by (reason) (rate(tickscope_discarded_total{{{NODE}}}[$__rate_interval]))"),
        "discarded {{reason}}",
    );
    let series = Panel::new(
        Kind::Lines,
        "Samples per scrape",
        "Series that each node makes, highest five; docs/fleet.md has the arithmetic.",
        "short",
    )
    .query(
        format!("topk(5, scrape_samples_scraped{{{NODE}}} and on (job, instance) tickscope_build_info)"),
        "{{instance}}",
    );
    Row { title: "Cost".into(), collapsed: false, panels: vec![overhead, lost, series] }
}
