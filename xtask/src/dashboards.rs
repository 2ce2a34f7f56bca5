//! `cargo xtask dashboards`: what `dashboards/` holds beyond hand-written files.
//!
//! Grafana's dashboards (classic JSON) and the recording rules of a fleet follow from the catalog of
//! probes, so a new probe has its panels and its rules; the table in `docs/fleet.md` says how many
//! series all that makes. All are checked in, and a test holds them to this.

mod cardinality;
mod fleet;
mod grafana;
mod node;
mod recording;
mod slo;

use std::fs;

use anyhow::{Context, Result};

use crate::process::root;

/// Every generated file: path in the repository, and text.
///
/// # Errors
/// When a file that it builds on cannot be read.
fn files() -> Result<Vec<(&'static str, String)>> {
    Ok(vec![
        ("dashboards/grafana/fleet.json", fleet::dashboard().json()),
        ("dashboards/grafana/node.json", node::dashboard().json()),
        ("dashboards/grafana/slo.json", slo::dashboard().json()),
        ("dashboards/prometheus/tickscope-fleet.yml", recording::rules()),
        ("docs/fleet.md", cardinality::insert(&read("docs/fleet.md")?, &read("dashboards/METRICS.md")?)?),
    ])
}

/// Writes them.
///
/// # Errors
/// When one cannot be written.
pub fn run() -> Result<()> {
    for (path, text) in files()? {
        let file = root().join(path);
        fs::create_dir_all(file.parent().context("it lies in a directory")?)?;
        if fs::read_to_string(&file).unwrap_or_default() != text {
            fs::write(&file, text).with_context(|| format!("cannot write {path}"))?;
            eprintln!("x: wrote {path}");
        }
    }
    Ok(())
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| format!("cannot read {path}"))
}

#[cfg(test)]
mod tests;
