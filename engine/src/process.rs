//! Signals, parents and children.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::error::Error;

/// Set by SIGINT or SIGTERM.
#[derive(Debug, Clone)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Starts to catch the signals. A second signal does nothing more: every stop is bounded.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn on_signals() -> Result<Self, Error> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&flag))
                .map_err(Error::io("cannot catch signals"))?;
        }
        Ok(Self(flag))
    }

    /// Whether a signal came.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Makes the kernel kill this process when its parent `pid` dies, however it dies.
///
/// # Errors
/// When the parent is gone already, or the system refuses.
pub fn die_with_parent(pid: i32) -> Result<(), Error> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| Error::io("cannot follow the parent process")(error.into()))?;
    // The parent may have died before the call above.
    if getppid().map(Pid::as_raw_pid) == Some(pid) {
        Ok(())
    } else {
        Err(Error::Failed(format!("the parent process {pid} is gone")))
    }
}
