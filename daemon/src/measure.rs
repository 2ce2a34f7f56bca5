//! The measuring thread: reads the source, steps the core, publishes snapshots, keeps the budget.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use tickscope_common::catalog::PROBES;
use tickscope_core::gate::{Builds, Status, Watch};
use tickscope_core::{
    Budget, Decision, Governor, Measurements, Now, SloStatus, Snapshot, State, What, outlier_above_ns,
};
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

use crate::announce::Announcer;
use crate::config::{Config, OutlierAbove};
use crate::memory;
use crate::run::chain;
use crate::source::{Facts, Source, SourceError};

/// How often the ring is emptied between readings.
const DRAIN: Duration = Duration::from_millis(10);

/// How often what was learned is written: so much of it can be lost to a crash.
const SAVE_EVERY: Duration = Duration::from_mins(10);

/// What exporters see.
#[derive(Clone)]
pub struct View {
    /// What is known.
    pub snapshot: Arc<Snapshot>,
    /// What does not change while a source runs.
    pub facts: Arc<Facts>,
    /// What the gates say, which is newer than the snapshot.
    pub gates: Arc<Vec<Status>>,
}

/// A change to a gate.
#[derive(Clone, Debug)]
pub enum GateChange {
    /// A new step.
    Start {
        /// Which builds it compares.
        builds: Builds,
        /// Share of the traffic that the canary should have, instead of the configured.
        share: Option<f64>,
    },
    /// No step.
    Stop,
}

/// The running thread.
pub struct Measuring {
    orders: Sender<Order>,
}

/// Why nothing is measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The kernel cannot be measured so.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// No thread can be started.
    #[error("cannot start the measuring thread")]
    Thread(#[source] std::io::Error),
    /// The thread has panicked.
    #[error("the measuring thread is gone: this is a bug, its panic is in the log")]
    Gone,
}

enum Order {
    Reload { config: Box<Config>, done: oneshot::Sender<Result<(), SourceError>> },
    Gate { name: String, change: GateChange, done: oneshot::Sender<bool> },
}

/// Tells the measuring thread to change gates.
#[derive(Clone)]
pub struct Gates(Sender<Order>);

impl Gates {
    /// Changes the gate of this name; whether there is one.
    ///
    /// # Errors
    /// When the thread is gone.
    pub async fn change(&self, name: String, change: GateChange) -> Result<bool, MeasureError> {
        let (done, answer) = oneshot::channel();
        self.0.send(Order::Gate { name, change, done }).map_err(|_| MeasureError::Gone)?;
        answer.await.map_err(|_| MeasureError::Gone)
    }
}

impl Measuring {
    /// Starts a source and the thread that reads it.
    ///
    /// # Errors
    /// When nothing can be measured.
    pub fn start(config: &Config) -> Result<(Self, watch::Receiver<View>), MeasureError> {
        let source = Source::start(config)?;
        let facts = Arc::new(source.facts().clone());
        let view = View { snapshot: Arc::default(), facts, gates: Arc::default() };
        let (views, seen) = watch::channel(view);
        let (orders, received) = channel();
        let worker = Worker::new(config.clone(), source, views);
        thread::Builder::new()
            .name("measure".into())
            .spawn(move || worker.run(&received))
            .map_err(MeasureError::Thread)?;
        Ok((Self { orders }, seen))
    }

    /// Measures by another configuration from now on; on error, by the old one as before.
    ///
    /// # Errors
    /// When the new one cannot be measured.
    pub async fn reload(&self, config: Config) -> Result<(), MeasureError> {
        let (done, answer) = oneshot::channel();
        self.orders.send(Order::Reload { config: Box::new(config), done }).map_err(|_| MeasureError::Gone)?;
        Ok(answer.await.map_err(|_| MeasureError::Gone)??)
    }

    /// For those who change gates.
    pub fn gates(&self) -> Gates {
        Gates(self.orders.clone())
    }

    /// Ends the thread, and waits until its programs have left the kernel.
    pub async fn stop(self, mut views: watch::Receiver<View>) {
        drop(self.orders);
        while views.changed().await.is_ok() {}
    }
}

struct Worker {
    config: Config,
    source: Source,
    state: State,
    watch: Watch,
    governor: Governor,
    /// Read since the last snapshot.
    pending: Measurements,
    announcer: Announcer,
    /// When what was learned was last written.
    saved: Instant,
    /// Last, so that it closes when all else is gone.
    views: watch::Sender<View>,
}

impl Worker {
    fn new(config: Config, source: Source, views: watch::Sender<View>) -> Self {
        let mut state = State::new(&names(&config), config.interval.as_nanos() as u64);
        state.promise(config.objectives());
        state.watch().set_limits(config.rules());
        remember(&config, &mut state);
        let governor = Governor::new(config.budget.cpu);
        let watch = Watch::new(config.gates());
        let pending = Measurements::default();
        let (announcer, saved) = (Announcer::default(), Instant::now());
        Self { config, source, state, watch, governor, pending, announcer, saved, views }
    }

    fn run(mut self, orders: &Receiver<Order>) {
        let mut next = Instant::now() + self.period();
        let mut snapshot = Instant::now() + self.config.interval;
        loop {
            let wait = next.saturating_duration_since(Instant::now()).min(DRAIN);
            match orders.recv_timeout(wait) {
                Ok(Order::Reload { config, done }) => {
                    // What was measured so far is not lost.
                    self.read();
                    self.snapshot();
                    drop(done.send(self.reload(*config)));
                    next = Instant::now() + self.period();
                    snapshot = Instant::now() + self.config.interval;
                }
                Ok(Order::Gate { name, change, done }) => {
                    let _gone = done.send(self.change(&name, change));
                    next = next.min(Instant::now() + self.period());
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < next => self.source.drain(),
                Err(RecvTimeoutError::Timeout) => {
                    self.read();
                    if self.saved.elapsed() > SAVE_EVERY {
                        self.save();
                    }
                    let period = self.period();
                    // Deadlines do not drift; those that were missed are not made up for.
                    while next <= Instant::now() {
                        next += period;
                    }
                    if Instant::now() + period / 2 < snapshot {
                        self.publish_gates();
                        continue;
                    }
                    self.snapshot();
                    while snapshot <= Instant::now() + period / 2 {
                        snapshot += self.config.interval;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.save();
                    return;
                }
            }
        }
    }

    fn reload(&mut self, config: Config) -> Result<(), SourceError> {
        // What the old source has seen goes to the old targets.
        self.read();
        self.snapshot();
        // The new source counts before the old one stops.
        self.source = Source::start(&config)?;
        self.state.retarget(&names(&config), config.interval.as_nanos() as u64);
        self.state.promise(config.objectives());
        self.watch.set(config.gates());
        self.state.watch().set_limits(config.rules());
        self.governor = Governor::new(config.budget.cpu);
        self.config = config;
        Ok(())
    }

    /// How often the source is read: as often as snapshots are made, or more often for a gate.
    fn period(&self) -> Duration {
        let running = self.watch.running();
        let blocks = self.config.gate.iter().filter(|_| running).map(|gate| gate.block);
        blocks.fold(self.config.interval, Duration::min)
    }

    fn read(&mut self) {
        let reading = self.source.read();
        self.watch.step(&reading, now());
        self.pending.merge(reading);
    }

    fn change(&mut self, name: &str, change: GateChange) -> bool {
        let found = match change {
            GateChange::Start { builds, share } => self.watch.start(name, builds, share, now()),
            GateChange::Stop => self.watch.stop(name, now()),
        };
        self.publish_gates();
        found
    }

    fn publish_gates(&self) {
        let gates = Arc::new(self.watch.statuses());
        self.views.send_modify(|view| view.gates = gates);
    }

    fn snapshot(&mut self) {
        let reading = std::mem::take(&mut self.pending);
        let now = now();
        let snapshot = self.state.step(&reading, now);
        self.announcer.announce(&snapshot);
        self.govern(&snapshot, now.monotonic_ns);
        self.set_thresholds(&snapshot);
        self.watch.freeze(burnt(&snapshot));
        let facts = Arc::new(self.source.facts().clone());
        let gates = Arc::new(self.watch.statuses());
        self.views.send_replace(View { snapshot: Arc::new(snapshot), facts, gates });
    }

    /// Writes what was learned; that it cannot be written stops nothing.
    fn save(&mut self) {
        self.saved = Instant::now();
        let Some(directory) = &self.config.state_directory else { return };
        if let Err(error) = memory::save(directory, &self.state.watch_ref().save(now())) {
            warn!(error = chain(&error), "what was learned is not saved");
        }
    }

    fn govern(&mut self, snapshot: &Snapshot, now_ns: u64) {
        let Some(ratio) = snapshot.overhead_cpu_ratio else { return };
        let running: Vec<usize> = self.source.running().collect();
        let Some(decision) = self.governor.decide(ratio, &running, now_ns) else { return };
        let Decision { what, shed, ratio, budget } = decision;
        let name = match what {
            What::Outliers => "outliers",
            What::Probe(probe) => PROBES[probe].name,
        };
        if shed {
            warn!(what = name, ratio, budget, "over budget: giving up");
        } else {
            info!(what = name, ratio, budget, "within budget: taking up again");
        }
        if let What::Probe(probe) = what {
            self.source.set_active(probe, !shed);
        }
    }

    fn set_thresholds(&mut self, snapshot: &Snapshot) {
        let shed = self.governor.shed().contains(&What::Outliers);
        for probe in 0..PROBES.len() {
            let above = match self.config.probes.outlier_above(probe) {
                _ if shed => Some(u64::MAX),
                OutlierAbove::Never => Some(u64::MAX),
                OutlierAbove::Above(limit) => Some(limit.as_nanos() as u64),
                OutlierAbove::Auto => {
                    let (histogram, covered_ns) = last_minute(snapshot, probe);
                    outlier_above_ns(&histogram, covered_ns)
                }
            };
            if let Some(above) = above {
                self.source.set_outlier_above(probe, above);
            }
        }
    }
}

/// The first objective whose error budget forbids promotions.
fn burnt(snapshot: &Snapshot) -> Option<String> {
    let burnt = |slo: &&SloStatus| matches!(slo.budget, Budget::Frozen | Budget::HotfixOnly);
    let slo = snapshot.slos.iter().find(burnt)?;
    Some(format!("the error budget of {:?} is {}", slo.objective.name, slo.budget.name()))
}

/// Goes on from what was learned before a restart, if it is still true.
fn remember(config: &Config, state: &mut State) {
    let Some(directory) = &config.state_directory else { return };
    match memory::load(directory) {
        Ok(None) => {}
        Ok(Some(saved)) => match state.watch().restore(saved, now()) {
            Ok(()) => info!(directory = %directory.display(), "going on from what was learned before"),
            Err(stale) => info!(?stale, "what was learned before is stale: learning anew"),
        },
        Err(error) => warn!(error = chain(&error), "learning anew"),
    }
}

fn now() -> Now {
    let monotonic = clock_gettime(ClockId::Monotonic);
    Now {
        monotonic_ns: monotonic.tv_sec as u64 * 1_000_000_000 + monotonic.tv_nsec as u64,
        wall_ns: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64),
    }
}

/// The last minute of all targets and labels of a probe together.
fn last_minute(snapshot: &Snapshot, probe: usize) -> (tickscope_core::Histogram, u64) {
    let mut sum = tickscope_core::Histogram::default();
    let mut covered_ns = 0;
    for series in snapshot.series.iter().filter(|series| series.key.probe == probe) {
        sum.merge(&series.windows[1].histogram);
        covered_ns = covered_ns.max(series.windows[1].covered_ns);
    }
    (sum, covered_ns)
}

fn names(config: &Config) -> Vec<String> {
    config.target.iter().map(|target| target.name.clone()).collect()
}
