//! `tickscope run`: starts everything, waits for signals, stops everything.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::config::{Config, ConfigError};
use crate::exit::Exit;
use crate::measure::{MeasureError, Measuring};
use crate::{control, http};

/// What is still under way at a stop is given this long.
const GRACE: Duration = Duration::from_secs(5);

/// Flags of `tickscope run`.
#[derive(Args)]
pub struct Flags {
    /// The configuration; without it, the defaults (`tickscope config default`)
    #[arg(long, short, env = "TICKSCOPE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address of metrics and API, instead of the configured one
    #[arg(long, env = "TICKSCOPE_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Where what was learned is kept over a restart, instead of the configured directory
    #[arg(long, env = "TICKSCOPE_STATE_DIRECTORY", value_name = "DIRECTORY")]
    pub state_directory: Option<PathBuf>,
    /// Measure with every probe, the optional ones too
    #[arg(long, env = "TICKSCOPE_ALL_PROBES")]
    pub all_probes: bool,
    /// What is logged: error, warn, info, debug, trace, or a filter of tracing-subscriber
    #[arg(long, env = "TICKSCOPE_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
    /// How it is logged
    #[arg(long, env = "TICKSCOPE_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// How logs look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// A line for a person.
    Text,
    /// A JSON object a line.
    Json,
}

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel cannot be measured, or no longer.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// The log filter is wrong.
    #[error("cannot use the log level {0:?}: write error, warn, info, debug or trace")]
    LogLevel(String),
    /// The address cannot be used.
    #[error(
        "cannot listen on {address}: is another tickscope running? choose another with --listen or listen.http"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The control socket cannot be used.
    #[error("cannot listen on the control socket {path}: choose another with listen.control")]
    Control {
        /// The socket.
        path: String,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The operating system refuses something basic.
    #[error("cannot start")]
    Start(#[source] std::io::Error),
}

impl RunError {
    /// The exit code that it means.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(_) => Exit::Config,
            Self::Measure(MeasureError::Source(error)) => error.exit(),
            Self::Measure(MeasureError::Gone) => Exit::Failed,
            Self::LogLevel(_) => Exit::Usage,
            Self::Measure(MeasureError::Thread(_))
            | Self::Listen { .. }
            | Self::Control { .. }
            | Self::Start(_) => Exit::Unavailable,
        }
    }
}

/// How the latest reload went, for metrics and status.
#[derive(Clone, Copy, Debug)]
pub struct Reloaded {
    /// Whether it succeeded; the first load counts.
    pub successful: bool,
    /// When, seconds since 1970.
    pub at_seconds: f64,
}

impl Reloaded {
    fn now(successful: bool) -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { successful, at_seconds: at.as_secs_f64() }
    }
}

/// Runs until a signal says stop.
///
/// # Errors
/// When it cannot start.
pub fn run(flags: &Flags) -> Result<(), RunError> {
    let config = load(flags)?;
    log_to_stderr(flags)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Start)?;
    runtime.block_on(serve(flags, config))
}

fn load(flags: &Flags) -> Result<Config, ConfigError> {
    let mut config = Config::load(flags.config.as_deref())?;
    if let Some(address) = flags.listen {
        config.listen.http = address;
    }
    // systemd names the directory of StateDirectory= in STATE_DIRECTORY; the first, if there are more.
    let systemd = || {
        let directories = std::env::var("STATE_DIRECTORY").ok()?;
        directories.split(':').next().filter(|directory| !directory.is_empty()).map(PathBuf::from)
    };
    config.state_directory = flags.state_directory.clone().or(config.state_directory).or_else(systemd);
    if flags.all_probes {
        config.probes.enable_all();
    }
    Ok(config)
}

fn log_to_stderr(flags: &Flags) -> Result<(), RunError> {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_new(&flags.log_level)
        .map_err(|_| RunError::LogLevel(flags.log_level.clone()))?;
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr);
    match flags.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

async fn serve(flags: &Flags, config: Config) -> Result<(), RunError> {
    // The port first: two daemons with one address should not both measure.
    let address = config.listen.http;
    let listener = TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })?;
    let address = listener.local_addr().map_err(RunError::Start)?;
    let control = control_socket(&config)?;
    let (measuring, mut views) = Measuring::start(&config)?;
    report_start(&views, address);

    let (stop, stopped) = watch::channel(false);
    let (ask, mut asked) = mpsc::channel::<http::ReloadRequest>(1);
    let (tell_reloaded, reloaded) = watch::channel(Reloaded::now(true));
    let state =
        http::Shared { views: views.clone(), reloaded, reload: config.listen.reload_endpoint.then_some(ask) };
    let server = tokio::spawn(http::serve(listener, state, stopped.clone()));
    let control = control
        .map(|(listener, path)| tokio::spawn(control::serve(listener, path, measuring.gates(), stopped)));
    let mut signals = Signals::new().map_err(RunError::Start)?;
    tell_systemd(&[sd_notify::NotifyState::Ready]);
    let result = loop {
        tokio::select! {
            _ = signals.terminate.recv() => break Ok(()),
            _ = signals.interrupt.recv() => break Ok(()),
            // Each reading is a sign of life; a watchdog should wait for several intervals.
            reading = views.changed() => match reading {
                Ok(()) => tell_systemd(&[sd_notify::NotifyState::Watchdog]),
                Err(_) => break Err(MeasureError::Gone),
            },
            _ = signals.hangup.recv() => {
                let done = reload(flags, &measuring).await;
                tell_reloaded.send_replace(Reloaded::now(done.is_ok()));
            }
            Some(answer) = asked.recv() => {
                let done = reload(flags, &measuring).await;
                tell_reloaded.send_replace(Reloaded::now(done.is_ok()));
                drop(answer.send(done));
            }
        }
    };
    info!("stopping");
    tell_systemd(&[sd_notify::NotifyState::Stopping]);
    stop.send_replace(true);
    if tokio::time::timeout(GRACE, server).await.is_err() {
        warn!("connections did not end in time");
    }
    if let Some(mut control) = control
        && tokio::time::timeout(GRACE, &mut control).await.is_err()
    {
        warn!("the control socket did not end in time");
        control.abort();
    }
    if tokio::time::timeout(GRACE, measuring.stop(views)).await.is_err() {
        warn!("the measuring thread did not end in time: its programs leave with this process");
    }
    Ok(result?)
}

/// The control socket, when there is something to control.
fn control_socket(config: &Config) -> Result<Option<(UnixListener, PathBuf)>, RunError> {
    if config.gate.is_empty() {
        return Ok(None);
    }
    let path = config.listen.control.clone();
    let failed = |source| RunError::Control { path: path.display().to_string(), source };
    Ok(Some((control::listen(&path).map_err(failed)?, path.clone())))
}

fn report_start(views: &watch::Receiver<crate::measure::View>, address: SocketAddr) {
    let facts = views.borrow().facts.clone();
    info!(
        %address,
        kernel = facts.kernel,
        object_sha256 = facts.object_sha256,
        programs = facts.programs.len(),
        maps_bytes = facts.maps_bytes,
        started_in_seconds = facts.started_in_seconds,
        "measuring"
    );
}

/// Loads the configuration anew; what is wrong with it is logged, and the old one stays.
async fn reload(flags: &Flags, measuring: &Measuring) -> Result<(), String> {
    tell_systemd(&[sd_notify::NotifyState::Reloading]);
    let result = match load(flags) {
        Ok(config) => measuring.reload(config).await.map_err(|error| chain(&error)),
        Err(error) => Err(chain(&error)),
    };
    match &result {
        Ok(()) => info!("configuration reloaded"),
        Err(error) => error!(error, "configuration not reloaded: the old one stays"),
    }
    tell_systemd(&[sd_notify::NotifyState::Ready]);
    result
}

fn tell_systemd(state: &[sd_notify::NotifyState<'_>]) {
    // Without systemd there is nobody to tell, and that is no error.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// An error and everything that caused it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
