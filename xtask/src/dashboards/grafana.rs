//! Grafana's classic dashboard JSON, as far as it is used here.

use serde_json::{Value, json};

/// Width of the grid.
const WIDTH: u32 = 24;

/// A dashboard: rows of panels, and what can be chosen above them.
pub struct Dashboard {
    /// Stable: links and bookmarks hold on to it.
    pub uid: &'static str,
    pub title: &'static str,
    pub description: &'static str,
    pub variables: Vec<Variable>,
    pub rows: Vec<Row>,
}

/// Something to choose: values of a label.
pub struct Variable {
    pub name: &'static str,
    pub title: &'static str,
    /// `label_values(…)`
    pub query: &'static str,
}

/// A titled row.
pub struct Row {
    pub title: String,
    /// Closed until clicked, and not queried before.
    pub collapsed: bool,
    pub panels: Vec<Panel>,
}

/// One panel.
pub struct Panel {
    pub kind: Kind,
    pub title: String,
    pub description: String,
    pub unit: &'static str,
    pub width: u32,
    pub queries: Vec<Query>,
    /// From which values on it is yellow and red; below it is green.
    pub thresholds: Option<(f64, f64)>,
}

/// How values are shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Lines over time.
    Lines,
    /// Lines over time on a logarithmic axis: latencies.
    Logarithm,
    /// Histograms over time.
    Heatmap,
    /// The latest value, large.
    Stat,
    /// The latest values of many.
    Table,
}

/// PromQL, and how its series are called.
pub struct Query {
    pub expr: String,
    pub legend: &'static str,
}

/// A query.
pub fn query(expr: impl Into<String>, legend: &'static str) -> Query {
    Query { expr: expr.into(), legend }
}

impl Panel {
    /// A panel of a third of the width.
    pub fn new(
        kind: Kind,
        title: impl Into<String>,
        description: impl Into<String>,
        unit: &'static str,
    ) -> Self {
        Self {
            kind,
            title: title.into(),
            description: description.into(),
            unit,
            width: 8,
            queries: Vec::new(),
            thresholds: None,
        }
    }

    /// So many of 24 columns wide.
    pub fn width(mut self, width: u32) -> Self {
        self.width = width;
        self
    }

    /// With this query too.
    pub fn query(mut self, expr: impl Into<String>, legend: &'static str) -> Self {
        self.queries.push(query(expr, legend));
        self
    }

    /// Yellow and red from these values on.
    pub fn thresholds(mut self, yellow: f64, red: f64) -> Self {
        self.thresholds = Some((yellow, red));
        self
    }

    fn height(&self) -> u32 {
        if self.kind == Kind::Stat { 4 } else { 8 }
    }

    fn json(&self, id: u32, x: u32, y: u32) -> Value {
        let instant = matches!(self.kind, Kind::Stat | Kind::Table);
        let targets = self.queries.iter().enumerate().map(|(index, query)| {
            let format = match self.kind {
                Kind::Heatmap => "heatmap",
                Kind::Table => "table",
                _ => "time_series",
            };
            json!({
                "refId": char::from(b'A' + index as u8).to_string(),
                "datasource": datasource(),
                "expr": query.expr,
                "legendFormat": query.legend,
                "format": format,
                "instant": instant,
                "range": !instant,
            })
        });
        let (kind, custom, options) = self.look();
        let mut defaults =
            json!({ "unit": self.unit, "custom": custom, "color": { "mode": "palette-classic" } });
        if let Some((yellow, red)) = self.thresholds {
            // Low is bad where the red limit is the lower one.
            let steps = if yellow < red {
                json!([step("green", None), step("yellow", Some(yellow)), step("red", Some(red))])
            } else {
                json!([step("red", None), step("yellow", Some(red)), step("green", Some(yellow))])
            };
            defaults["thresholds"] = json!({ "mode": "absolute", "steps": steps });
            defaults["color"] = json!({ "mode": "thresholds" });
        }
        json!({
            "id": id,
            "type": kind,
            "title": self.title,
            "description": self.description,
            "datasource": datasource(),
            "gridPos": { "x": x, "y": y, "w": self.width, "h": self.height() },
            "targets": targets.collect::<Vec<_>>(),
            "fieldConfig": { "defaults": defaults, "overrides": [] },
            "options": options,
        })
    }

    /// Type of the panel, `custom` of its fields, and its options.
    fn look(&self) -> (&'static str, Value, Value) {
        let legend = json!({ "displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": [] });
        let lines = json!({ "legend": legend, "tooltip": { "mode": "multi", "sort": "desc" } });
        match self.kind {
            Kind::Lines => (
                "timeseries",
                json!({ "lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "spanNulls": false }),
                lines,
            ),
            Kind::Logarithm => (
                "timeseries",
                json!({
                    "lineWidth": 1,
                    "fillOpacity": 0,
                    "showPoints": "never",
                    "spanNulls": false,
                    "scaleDistribution": { "type": "log", "log": 10 },
                }),
                lines,
            ),
            Kind::Heatmap => (
                "heatmap",
                json!({ "scaleDistribution": { "type": "linear" } }),
                json!({
                    "calculate": false,
                    "cellGap": 0,
                    "color": { "mode": "scheme", "scheme": "Turbo", "scale": "exponential", "exponent": 0.5, "steps": 64 },
                    "filterValues": { "le": 1e-9 },
                    "rowsFrame": { "layout": "auto" },
                    "tooltip": { "mode": "single", "yHistogram": true },
                    "yAxis": { "unit": self.unit, "axisPlacement": "left" },
                    "legend": { "show": true },
                }),
            ),
            Kind::Stat => (
                "stat",
                json!({}),
                json!({
                    "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
                    "colorMode": "value",
                    "graphMode": "none",
                    "textMode": "auto",
                    "orientation": "auto",
                    "justifyMode": "auto",
                }),
            ),
            Kind::Table => (
                "table",
                json!({ "align": "auto" }),
                json!({ "showHeader": true, "sortBy": [{ "displayName": "Value", "desc": true }] }),
            ),
        }
    }
}

fn step(color: &str, value: Option<f64>) -> Value {
    json!({ "color": color, "value": value })
}

fn datasource() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

impl Dashboard {
    /// As Grafana imports it.
    pub fn json(&self) -> String {
        let mut variables = vec![json!({
            "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
        })];
        variables.extend(self.variables.iter().map(|variable| {
            let mut choice = json!({
                "name": variable.name,
                "label": variable.title,
                "type": "query",
                "datasource": datasource(),
                "query": { "query": variable.query, "refId": variable.name },
                "definition": variable.query,
                "multi": true,
                "includeAll": true,
                "current": { "text": "All", "value": "$__all" },
                // When the time range changes: what is gone in it is not offered.
                "refresh": 2,
                "sort": 1,
            });
            // All jobs are those of tickscope, not every job there is; within them a thousand nodes
            // need not be spelled out.
            if variable.name != "job" {
                choice["allValue"] = ".*".into();
            }
            choice
        }));
        let dashboard = json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["tickscope"],
            "schemaVersion": 39,
            "editable": false,
            "graphTooltip": 1,
            "timezone": "browser",
            "time": { "from": "now-30m", "to": "now" },
            "refresh": "10s",
            "annotations": { "list": [] },
            "templating": { "list": variables },
            "links": [{
                "type": "dashboards", "tags": ["tickscope"], "title": "tickscope", "asDropdown": true,
                "includeVars": true, "keepTime": true,
            }],
            "panels": self.panels(),
        });
        format!("{dashboard:#}\n")
    }

    fn panels(&self) -> Vec<Value> {
        let (mut panels, mut id, mut y) = (Vec::new(), 0, 0);
        for row in &self.rows {
            id += 1;
            let mut head = json!({
                "id": id, "type": "row", "title": row.title, "collapsed": row.collapsed, "panels": [],
                "gridPos": { "x": 0, "y": y, "w": WIDTH, "h": 1 },
            });
            y += 1;
            let (mut x, mut tallest, mut inside) = (0, 0, Vec::new());
            for panel in &row.panels {
                if x + panel.width > WIDTH {
                    (x, y, tallest) = (0, y + tallest, 0);
                }
                id += 1;
                inside.push(panel.json(id, x, y));
                x += panel.width;
                tallest = tallest.max(panel.height());
            }
            y += tallest;
            if row.collapsed {
                head["panels"] = json!(inside);
                inside = Vec::new();
            }
            panels.push(head);
            panels.append(&mut inside);
        }
        panels
    }
}

/// The variables that every dashboard has.
pub fn variables() -> Vec<Variable> {
    vec![
        Variable { name: "job", title: "Job", query: "label_values(tickscope_build_info, job)" },
        Variable {
            name: "instance",
            title: "Node",
            query: "label_values(tickscope_build_info{job=~\"$job\"}, instance)",
        },
        Variable {
            name: "target",
            title: "Target",
            query: "label_values(tickscope_target_processes{job=~\"$job\", instance=~\"$instance\"}, target)",
        },
    ]
}

/// Selects what is chosen, of the daemon's own metrics.
pub const NODE: &str = "job=~\"$job\", instance=~\"$instance\"";
/// Selects what is chosen, of what is measured in targets.
pub const TARGET: &str = "job=~\"$job\", instance=~\"$instance\", target=~\"$target\"";

/// The `q`-quantile of a histogram by labels, from native histograms, else from classic buckets.
///
/// Prometheus 2.42 drops classic buckets where it takes native ones, so neither alone will do; a
/// single `le` is never matched, because its text differs between formats.
pub fn quantile(q: &str, metric: &str, by: &str) -> String {
    let range = "[$__rate_interval]";
    format!(
        "histogram_quantile({q}, sum by ({by}) (rate({metric}{{{TARGET}}}{range}))) or \
         histogram_quantile({q}, sum by ({by}, le) (rate({metric}_bucket{{{TARGET}}}{range})))"
    )
}

/// The rate of a histogram's `sum` or `count` by labels, native or classic.
pub fn rate_of(part: &str, metric: &str, by: &str) -> String {
    let range = "[$__rate_interval]";
    format!(
        "sum by ({by}) (histogram_{part}(rate({metric}{{{TARGET}}}{range}))) or \
         sum by ({by}) (rate({metric}_{part}{{{TARGET}}}{range}))"
    )
}
