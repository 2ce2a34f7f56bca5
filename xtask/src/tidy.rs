//! The repository's own rules, checked as text: layering, names, marks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process::{output, root};

/// Crates, and what they must not depend on (STYLE: data flows one way).
const LAYERS: &[(&str, &[&str])] = &[
    ("ebpf/common", &["tokio", "serde", "tickscope-core", "tickscope"]),
    ("ebpf/probes", &["tokio", "serde", "tickscope-core", "tickscope"]),
    ("daemon/core", &["aya", "tokio", "tracing", "axum", "prometheus", "rustix", "tickscope"]),
    ("daemon", &["paper-engine"]),
    ("engine", &["tickscope", "tickscope-common", "tickscope-core", "aya"]),
];

/// A file of code holds one thing.
const LINES: usize = 700;

/// Marks of what is not finished. Split, so that this file has none of them.
const MARKS: &[&str] =
    &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("to", "do!("), concat!("unimple", "mented!(")];

/// Checks everything and tells all that is wrong.
///
/// # Errors
/// When anything is.
pub fn run() -> Result<()> {
    let root = root();
    let mut wrong = Vec::new();
    layers(&root, &mut wrong)?;
    probes(&root, &mut wrong)?;
    for file in
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"]
    {
        if !root.join(file).exists() {
            wrong.push(format!("{file} is missing"));
        }
    }
    for file in tracked(&root)? {
        let code = file.extension().is_some_and(|extension| extension == "rs" || extension == "sh");
        if let (true, Ok(text)) = (code, fs::read_to_string(root.join(&file))) {
            check(&file, &text, &mut wrong);
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

fn tracked(root: &Path) -> Result<Vec<PathBuf>> {
    let root = root.to_str().context("the path of the repository is text")?;
    let files = output("git", &["-C", root, "ls-files"]).context("git ls-files")?;
    Ok(files.lines().map(PathBuf::from).collect())
}

fn check(file: &Path, text: &str, wrong: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > LINES {
        wrong.push(format!("{}: {lines} lines, more than {LINES}: does it hold one thing?", file.display()));
    }
    for (number, line) in text.lines().enumerate() {
        if MARKS.iter().any(|mark| line.contains(mark)) {
            wrong.push(format!("{}:{}: unfinished: {}", file.display(), number + 1, line.trim()));
        }
    }
}

fn layers(root: &Path, wrong: &mut Vec<String>) -> Result<()> {
    for (package, forbidden) in LAYERS {
        let manifest = fs::read_to_string(root.join(package).join("Cargo.toml"))?;
        let found = dependencies(&manifest);
        for name in forbidden.iter().filter(|name| found.iter().any(|dependency| dependency == *name)) {
            wrong.push(format!("{package} must not depend on {name}"));
        }
        if !manifest.contains("[lints]\nworkspace = true") {
            wrong.push(format!("{package} does not take the workspace's lints"));
        }
    }
    Ok(())
}

/// Names under `[dependencies]`.
fn dependencies(manifest: &str) -> Vec<String> {
    manifest
        .lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

/// Every probe of the catalog has a file of its name.
fn probes(root: &Path, wrong: &mut Vec<String>) -> Result<()> {
    let catalog = fs::read_to_string(root.join("ebpf/common/src/catalog.rs"))?;
    let entries = catalog.split("pub const PROBES").nth(1).context("the catalog has PROBES")?;
    let entries = entries.split("];\n").next().unwrap_or_default();
    let names = entries.lines().filter_map(|line| line.trim().strip_prefix("name: \""));
    let names: Vec<&str> = names.filter_map(|rest| rest.split('"').next()).collect();
    if names.is_empty() {
        bail!("no probe found in the catalog");
    }
    for name in names {
        // Labels have names too; they are not probes.
        let file = format!("ebpf/probes/src/{name}.rs");
        if !["cause", "call", "kind"].contains(&name) && !root.join(&file).exists() {
            wrong.push(format!("{file} is missing"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_their_table_only() {
        let manifest = "[package]\nname = \"x\"\n\n[dependencies]\nserde.workspace = true\n# aya\naya = { optional = true }\n\n[dev-dependencies]\ntokio = \"1\"\n";
        assert_eq!(dependencies(manifest), ["serde", "aya"]);
    }

    #[test]
    fn marks_are_found() {
        let mut wrong = Vec::new();
        check(Path::new("a.rs"), concat!("fn a() {}\n// TO", "DO: more\n"), &mut wrong);
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].starts_with("a.rs:2: unfinished"), "{wrong:?}");
    }
}
