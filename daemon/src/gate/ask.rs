//! `tickscope gate check` and `watch`: what a running daemon's gate says, once or until it has
//! decided; `start` and `stop`.

use std::io::Write;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use tickscope_core::gate::Verdict;
use tickscope_core::{length, percentile};

use super::{GateError, feed};
use crate::control;
use crate::exit::Exit;
use crate::exporter::gate::Gate;
use crate::top::{Format, get};

/// Flags of `tickscope gate check`.
#[derive(Args)]
pub struct Check {
    /// The gate, as the daemon's configuration calls it
    pub name: String,
    #[expect(missing_docs, reason = "a doc comment would become a heading of the help")]
    #[command(flatten)]
    pub question: Question,
}

/// What is asked, and how the answer is printed.
#[derive(Args)]
pub struct Question {
    /// Address of the daemon
    #[arg(long, env = "TICKSCOPE_URL", default_value = "http://127.0.0.1:9464", value_name = "URL")]
    pub url: String,
    /// Which build has to be the tested one
    #[arg(long, env = "TICKSCOPE_CANARY_BUILD", value_name = "ID")]
    pub canary_build: Option<String>,
    /// Which build has to be the reference
    #[arg(long, env = "TICKSCOPE_STABLE_BUILD", value_name = "ID")]
    pub stable_build: Option<String>,
    /// How it is printed
    #[arg(long, env = "TICKSCOPE_FORMAT", value_enum, default_value = "text")]
    pub format: Format,
}

/// Flags of `tickscope gate watch`.
#[derive(Args)]
pub struct Watch {
    /// The gate, as the daemon's configuration calls it; or none, and --from or --prometheus
    #[arg(required_unless_present_any = ["from", "prometheus"], conflicts_with_all = ["from", "prometheus"])]
    pub name: Option<String>,
    /// How long to wait for a decision
    #[arg(long = "for", env = "TICKSCOPE_GATE_FOR", default_value = "5m", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub patience: Duration,
    #[expect(missing_docs, reason = "a doc comment would become a heading of the help")]
    #[command(flatten)]
    pub question: Question,
    #[expect(missing_docs, reason = "a doc comment would become a heading of the help")]
    #[command(flatten)]
    pub feed: feed::Flags,
}

/// Flags of `tickscope gate start`.
#[derive(Args)]
pub struct Start {
    /// The gate, as the daemon's configuration calls it
    pub name: String,
    /// The build that is tested, as `?canary=` will call it
    #[arg(long, env = "TICKSCOPE_CANARY_BUILD", value_name = "ID")]
    pub canary_build: Option<String>,
    /// The build that is the reference, as `?stable=` will call it
    #[arg(long, env = "TICKSCOPE_STABLE_BUILD", value_name = "ID")]
    pub stable_build: Option<String>,
    /// Share of the traffic that the canary should have; far from it, there is no pass
    #[arg(long, value_name = "SHARE", value_parser = super::share)]
    pub share: Option<f64>,
    /// The canary mends what burns the error budget: it may pass although one is burnt
    #[arg(long)]
    pub hotfix: bool,
    #[expect(missing_docs, reason = "a doc comment would become a heading of the help")]
    #[command(flatten)]
    pub socket: Socket,
}

/// Flags of `tickscope gate stop`.
#[derive(Args)]
pub struct Stop {
    /// The gate, as the daemon's configuration calls it
    pub name: String,
    #[expect(missing_docs, reason = "a doc comment would become a heading of the help")]
    #[command(flatten)]
    pub socket: Socket,
}

/// Where changes are asked for.
#[derive(Args)]
pub struct Socket {
    /// Control socket of the daemon
    #[arg(
        long,
        env = "TICKSCOPE_CONTROL",
        default_value = "/run/tickscope/control.sock",
        value_name = "PATH"
    )]
    pub control: PathBuf,
}

/// Asks once.
pub(super) fn check(flags: &Check, out: &mut impl Write) -> Result<Exit, GateError> {
    let gate = ask(&flags.name, &flags.question)?;
    tell(&gate, flags.question.format, out)?;
    Ok(super::exit(gate.verdict))
}

/// Asks until there is a decision.
pub(super) fn watch(flags: &Watch, out: &mut impl Write) -> Result<Exit, GateError> {
    let end = Instant::now() + flags.patience;
    let mut progress = Progress::default();
    let gate = match &flags.name {
        Some(name) => {
            // Who does not answer the first time is not there; later, it is waited for.
            let mut gate = ask(name, &flags.question)?;
            while !decided(gate.verdict) && Instant::now() < end {
                progress.tell(&gate);
                thread::sleep(Duration::from_secs(1).min(end.saturating_duration_since(Instant::now())));
                gate = match ask(name, &flags.question) {
                    Ok(gate) => gate,
                    Err(error) => {
                        let mut gate = Gate::unknown(name);
                        gate.reason = crate::run::chain(&error);
                        gate
                    }
                };
            }
            gate
        }
        None => feed::watch(&flags.feed, end, |gate| progress.tell(gate))?,
    };
    tell(&gate, flags.question.format, out)?;
    Ok(super::exit(gate.verdict))
}

/// Begins a step.
pub(super) fn start(flags: &Start) -> Result<Exit, GateError> {
    let Start { canary_build, stable_build, share, hotfix, .. } = flags;
    let body = control::Start {
        canary: canary_build.clone(),
        stable: stable_build.clone(),
        share: *share,
        hotfix: *hotfix,
    };
    let body = serde_json::to_string(&body).unwrap_or_default();
    control::call(&flags.socket.control, &format!("/api/v1/gates/{}/start", flags.name), &body)?;
    Ok(Exit::Done)
}

/// Ends one.
pub(super) fn stop(flags: &Stop) -> Result<Exit, GateError> {
    control::call(&flags.socket.control, &format!("/api/v1/gates/{}/stop", flags.name), "")?;
    Ok(Exit::Done)
}

fn ask(name: &str, question: &Question) -> Result<Gate, GateError> {
    let pins = [("canary", &question.canary_build), ("stable", &question.stable_build)];
    let pins: Vec<String> =
        pins.iter().filter_map(|(key, build)| Some(format!("{key}={}", build.as_ref()?))).collect();
    Ok(get(&question.url, &format!("/api/v1/gates/{name}?{}", pins.join("&")))?)
}

fn decided(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Pass | Verdict::Fail)
}

/// What is waited for, for a person in front of a terminal.
#[derive(Default)]
struct Progress(String);

impl Progress {
    fn tell(&mut self, gate: &Gate) {
        let line = format!("{}: {}", gate.verdict.name(), gate.reason);
        if std::io::IsTerminal::is_terminal(&std::io::stderr()) && line != self.0 {
            eprintln!("{line}");
        }
        self.0 = line;
    }
}

fn tell(gate: &Gate, format: Format, out: &mut impl Write) -> Result<(), GateError> {
    let text = match format {
        Format::Json => format!("{}\n", serde_json::to_string(gate).unwrap_or_default()),
        Format::Text => text(gate),
    };
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(GateError::Write)
}

fn text(gate: &Gate) -> String {
    let mut text = format!("{}: {} ({})\n", gate.gate, gate.verdict.name(), gate.reason);
    if gate.kpis.is_empty() {
        return text;
    }
    text += &format!(
        "  {:<22} {:<13} {:>11} {:>11} {:>7} {:>15} {:>8} {:>9} {:>7}\n",
        "kpi", "verdict", "baseline", "canary", "ratio", "95 %", "margin", "evidence", "needed"
    );
    for row in &gate.kpis {
        let name = row.quantile.map_or_else(|| row.kpi.clone(), |q| format!("{} {}", row.kpi, percentile(q)));
        let value = |value: Option<f64>| match value {
            Some(value) if row.quantile.is_some() => length(value),
            Some(value) => format!("{value:.4}"),
            None => "-".into(),
        };
        let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.3}"));
        text += &format!(
            "  {name:<22} {:<13} {:>11} {:>11} {:>7} {:>15} {:>7.1}% {:>9.2} {:>7.2}\n",
            row.verdict.name(),
            value(row.baseline),
            value(row.canary),
            ratio(row.ratio),
            format!("{}..{}", ratio(row.ratio_low), ratio(row.ratio_high)),
            100.0 * row.margin.unwrap_or(0.0),
            row.evidence,
            -row.alpha.ln(),
        );
    }
    text
}
