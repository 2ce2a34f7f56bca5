//! The reference of metrics is what the code says.

use std::fs;
use std::path::Path;

use tickscope::metrics;

#[test]
fn the_reference_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dashboards/METRICS.md");
    let current = metrics::reference();
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &current).unwrap();
    }
    let checked_in = fs::read_to_string(&path).unwrap_or_default();
    assert!(checked_in == current, "dashboards/METRICS.md is old: BLESS=1 cargo test -p tickscope metrics");
}
