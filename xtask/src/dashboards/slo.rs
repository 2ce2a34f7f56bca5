//! The dashboard of objectives: how fast budgets burn, and what they allow.

use super::grafana::{Dashboard, Kind, NODE, Panel, Row, Variable, variables};

/// It.
pub fn dashboard() -> Dashboard {
    let mut variables = variables();
    // Objectives name their target; here they are what is chosen.
    variables.retain(|variable| variable.name != "target");
    variables.push(Variable {
        name: "slo",
        title: "Objective",
        query: "label_values(tickscope_slo_objective_ratio{job=~\"$job\", instance=~\"$instance\"}, slo)",
    });
    Dashboard {
        uid: "tickscope-slo",
        title: "tickscope / objectives",
        description: "Objectives, how fast their error budgets burn, and what the budgets allow.",
        variables,
        rows: vec![fleet(), node()],
    }
}

fn fleet() -> Row {
    let recorded = |name: &str| format!("slo:tickscope_slo_{name}{{slo=~\"$slo\"}}");
    let left = Panel::new(
        Kind::Stat,
        "Error budget left",
        "What is left of the budget in the objective's window; below 0 it is overspent.",
        "percentunit",
    )
    .width(8)
    .thresholds(0.5, 0.0)
    .query(recorded("budget_remaining:ratio"), "{{slo}}");
    let week = Panel::new(
        Kind::Stat,
        "Burnt of a week's budget",
        "Above a half gates promote nothing; from all of it on, only builds that are marked as hotfix.",
        "percentunit",
    )
    .width(8)
    .thresholds(0.5, 1.0)
    .query(recorded("week_burnt:ratio"), "{{slo}}");
    let objective = Panel::new(Kind::Stat, "Objective", "Share of events that shall be good.", "percentunit")
        .width(8)
        .query(format!("max by (slo) (tickscope_slo_objective_ratio{{{NODE}, slo=~\"$slo\"}})"), "{{slo}}");
    let fast = Panel::new(
        Kind::Logarithm,
        "Burn rate, fast windows",
        "1 uses up exactly the budget. A page when 1h and 5m are above 14.4, or 6h and 30m above 6.",
        "short",
    )
    .width(12)
    .query(recorded("burn_rate:5m"), "{{slo}} 5m")
    .query(recorded("burn_rate:30m"), "{{slo}} 30m")
    .query(recorded("burn_rate:1h"), "{{slo}} 1h")
    .query(recorded("burn_rate:6h"), "{{slo}} 6h");
    let slow = Panel::new(
        Kind::Logarithm,
        "Burn rate, slow windows",
        "A ticket when 1d and 2h are above 3, or 3d and 6h above 1.",
        "short",
    )
    .width(12)
    .query(recorded("burn_rate:2h"), "{{slo}} 2h")
    .query(recorded("burn_rate:6h"), "{{slo}} 6h")
    .query(recorded("burn_rate:1d"), "{{slo}} 1d")
    .query(recorded("burn_rate:3d"), "{{slo}} 3d");
    let rate = |what: &str| {
        format!("sum by (slo) (rate(tickscope_slo_{what}_total{{{NODE}, slo=~\"$slo\"}}[$__rate_interval]))")
    };
    let events = Panel::new(
        Kind::Logarithm,
        "Events",
        "Events per second, and those that were not good. Without events nothing is known.",
        "ops",
    )
    .width(12)
    .query(rate("events"), "{{slo}} all")
    .query(rate("bad_events"), "{{slo}} bad");
    let bad = Panel::new(
        Kind::Lines,
        "Bad events",
        "Share of events that were not good; what is allowed is 1 less the objective.",
        "percentunit",
    )
    .width(12)
    .query(format!("{} / {}", rate("bad_events"), rate("events")), "{{slo}}");
    Row {
        title: "All chosen nodes together (rules of `tickscope rules`)".into(),
        collapsed: false,
        panels: vec![left, week, objective, fast, slow, events, bad],
    }
}

fn node() -> Row {
    let of = |metric: &str| format!("{metric}{{{NODE}, slo=~\"$slo\"}}");
    let burn = Panel::new(
        Kind::Logarithm,
        "Burn rate by node",
        "As the daemon itself counts it since its start, over one hour; the five highest.",
        "short",
    )
    .query(
        format!("topk(5, tickscope_slo_burn_rate{{{NODE}, slo=~\"$slo\", window=\"1h\"}})"),
        "{{instance}} {{slo}}",
    );
    let left = Panel::new(
        Kind::Lines,
        "Error budget left by node",
        "As the daemon itself counts it since its start; the five lowest.",
        "percentunit",
    )
    .query(format!("bottomk(5, {})", of("tickscope_slo_budget_remaining_ratio")), "{{instance}} {{slo}}");
    let week = Panel::new(
        Kind::Lines,
        "Burnt of a week's budget by node",
        "What the daemon's own gates go by: above 0.5 they promote nothing. The five highest.",
        "percentunit",
    )
    .query(format!("topk(5, {})", of("tickscope_slo_week_burnt_ratio")), "{{instance}} {{slo}}");
    let state = Panel::new(
        Kind::Table,
        "Budget states",
        "ok, nodata (no events: nothing can be said), frozen (no promotions) or hotfix-only.",
        "short",
    )
    .width(24)
    .query(format!("{} == 1", of("tickscope_slo_budget_state")), "");
    Row { title: "Node by node".into(), collapsed: false, panels: vec![burn, left, week, state] }
}
