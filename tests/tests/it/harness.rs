//! Runs a source in this process and adds up what it reads.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tickscope::config::Config;
use tickscope::source::Source;
use tickscope_common::catalog::{self, PROBES};
use tickscope_core::{Histogram, Measurements, ProbeState};

/// One at a time: they count what the kernel does.
static ALONE: Mutex<()> = Mutex::new(());

/// Whether a privileged test can run here; says so when not, and fails where it must.
pub fn privileged() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "privileged tests must run in CI: not root");
    eprintln!("SKIPPED: needs root (CAP_BPF, CAP_PERFMON)");
    false
}

/// A running source and everything it has read.
pub struct Watch {
    source: Source,
    histograms: BTreeMap<(usize, usize), Histogram>,
    seen: Vec<u64>,
    filtered: Vec<u64>,
    discarded: Vec<BTreeMap<&'static str, u64>>,
    /// Runs of programs that the kernel skipped.
    skipped: u64,
    /// The latest reading.
    pub latest: Measurements,
    alone: Option<MutexGuard<'static, ()>>,
}

impl Watch {
    /// Watches one target with these probes on, which must run; `rule` is the TOML of its `match`.
    pub fn start(rule: &str, probes: &[&str]) -> Self {
        let watch = Self::whatever(rule, probes);
        watch.assert_running(probes);
        watch
    }

    /// The same, beside another one.
    pub fn beside(rule: &str, probes: &[&str]) -> Self {
        let watch = Self::new(rule, probes);
        watch.assert_running(probes);
        watch
    }

    /// The same, and whatever cannot run here does not.
    pub fn whatever(rule: &str, probes: &[&str]) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut watch = Self::new(rule, probes);
        watch.alone = Some(alone);
        watch
    }

    fn new(rule: &str, probes: &[&str]) -> Self {
        let mut text = format!("[[target]]\nname = \"t\"\nmatch = {{ {rule} }}\n");
        for probe in PROBES {
            let enabled = probes.contains(&probe.name);
            text += &format!("[probes.{}]\nenabled = {enabled}\n", probe.name);
        }
        let config = Config::parse(&text).expect("the harness writes good TOML");
        let source = Source::start(&config).expect("the running kernel can be measured");
        let mut watch = Self {
            source,
            histograms: BTreeMap::new(),
            seen: vec![0; PROBES.len()],
            filtered: vec![0; PROBES.len()],
            discarded: vec![BTreeMap::new(); PROBES.len()],
            skipped: 0,
            latest: Measurements::default(),
            alone: None,
        };
        watch.read();
        watch
    }

    fn assert_running(&self, probes: &[&str]) {
        for name in probes {
            let probe = &self.latest.probes[index(name)];
            let runs = matches!(probe.state, ProbeState::Healthy | ProbeState::Degraded);
            assert!(runs, "{name}: {}: {}", probe.state.name(), probe.reason);
        }
    }

    /// Reads once more.
    pub fn read(&mut self) {
        let reading = self.source.read();
        for row in &reading.rows {
            self.histograms.entry((row.probe, row.label)).or_default().merge(&row.histogram);
        }
        for (probe, reading) in reading.probes.iter().enumerate() {
            self.seen[probe] += reading.accounting.seen;
            self.filtered[probe] += reading.accounting.filtered;
            for (reason, count) in tickscope_common::layout::REASONS.iter().zip(&reading.accounting.discarded)
            {
                *self.discarded[probe].entry(reason).or_default() += count;
            }
        }
        let skipped = reading.lost.iter().filter(|lost| lost.source == "program");
        self.skipped += skipped.map(|lost| lost.count).sum::<u64>();
        self.latest = reading;
    }

    /// Everything one probe recorded, of one value of its label, or of all together with `""`.
    pub fn histogram(&self, probe: &str, label: &str) -> Histogram {
        let (probe, entry) = catalog::probe(probe).expect("the catalog has it");
        let mut sum = Histogram::default();
        for ((_, of), histogram) in self.histograms.iter().filter(|((of, _), _)| *of == probe) {
            let name = entry.label.as_ref().map_or("", |label| label.values[*of]);
            if label.is_empty() || label == name {
                sum.merge(histogram);
            }
        }
        sum
    }

    /// Intervals that ended, usable or not.
    pub fn seen(&self, probe: &str) -> u64 {
        self.seen[index(probe)]
    }

    /// Left out on purpose.
    pub fn filtered(&self, probe: &str) -> u64 {
        self.filtered[index(probe)]
    }

    /// Unusable, by reason.
    pub fn discarded(&self, probe: &str, reason: &str) -> u64 {
        self.discarded[index(probe)].get(reason).copied().unwrap_or(0)
    }

    /// Every block ended in a wait for a CPU. A wake-up that was discarded was no wait (it found the
    /// thread still running), or a wait whose end the kernel did not report.
    pub fn assert_waits(&self, blocks: u64) {
        let seen = self.seen("runqueue");
        let sure = seen - self.discarded("runqueue", "overwritten");
        assert!((sure..=seen).contains(&blocks), "{}; the kernel: {blocks}", self.told("runqueue"));
    }

    /// Everything one probe did, for a person.
    pub fn told(&self, probe: &str) -> String {
        let (index, entry) = catalog::probe(probe).expect("the catalog has it");
        let labels = entry.label.as_ref().map_or(&[""] as &[&str], |label| label.values);
        let recorded: Vec<(&str, u64)> = labels
            .iter()
            .map(|label| (*label, self.histogram(probe, label).count()))
            .filter(|(_, count)| *count > 0)
            .collect();
        let discarded: Vec<_> = self.discarded[index].iter().filter(|(_, count)| **count > 0).collect();
        format!(
            "{probe}: seen {}, recorded {recorded:?}, filtered {}, discarded {discarded:?}",
            self.seen[index], self.filtered[index]
        )
    }

    /// The accounting identity, of every probe, exactly; and no program missed a run.
    pub fn assert_accounted(&self) {
        for (probe, entry) in PROBES.iter().enumerate() {
            let recorded = self.histogram(entry.name, "").count();
            let discarded: u64 = self.discarded[probe].values().sum();
            assert_eq!(
                self.seen[probe],
                recorded + self.filtered[probe] + discarded,
                "{}: seen {} = recorded {recorded} + filtered {} + discarded {:?}",
                entry.name,
                self.seen[probe],
                self.filtered[probe],
                self.discarded[probe],
            );
        }
        assert_eq!(self.skipped, 0, "runs of programs that the kernel skipped");
    }

    /// The source itself.
    pub fn source(&mut self) -> &mut Source {
        &mut self.source
    }
}

fn index(probe: &str) -> usize {
    catalog::probe(probe).expect("the catalog has it").0
}
