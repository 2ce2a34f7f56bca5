//! Everything that crosses between kernel and daemon, byte for byte.
//!
//! Times are nanoseconds of `CLOCK_MONOTONIC` (`bpf_ktime_get_ns`). Names of threads (`comm`) are
//! 16 bytes, NUL-padded, and not always UTF-8.

use crate::histogram::CELLS;

/// Targets at most.
pub const MAX_TARGETS: usize = 16;
/// Room for probes in [`Control`] and [`Cpu`].
pub const MAX_PROBES: usize = 16;
/// Room for programs in [`Cpu`].
pub const MAX_HOOKS: usize = 32;

/// One histogram of one CPU: the value of the per-CPU map `ROWS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Row {
    /// `counts[s]`: observations in cell `s` of [`crate::histogram::slot`]; wraps at 2^32. What is
    /// beyond [`crate::histogram::SLOTS`] stays 0.
    pub counts: [u32; CELLS],
    /// Sum of all observations, ns.
    pub sum_ns: u64,
    /// `max[e & 1]`: the largest observation of reading period `e`.
    pub max: [Max; 2],
}

/// The largest observation of one reading period.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Max {
    /// The period it belongs to, [`Control::epoch`].
    pub epoch: u64,
    /// ns
    pub ns: u64,
}

/// Where the observations of one probe went, on one CPU.
///
/// `seen` = observations in the rows + `filtered` + all of `discarded`, exactly.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Account {
    /// Ends of a measured interval in threads of targets, and starts that never ended.
    pub seen: u64,
    /// Left out on purpose: the probe was shed, or the interval is none (`sched_yield`, or woken
    /// before it had left its CPU).
    pub filtered: u64,
    /// `discarded[r]`: unusable, by [`REASONS`].
    pub discarded: [u64; REASONS.len()],
}

/// Why an observation was discarded.
pub const REASONS: &[&str] = &["no_start", "negative", "overwritten", "no_state", "no_row"];
/// The end came without a start: attached in mid-flow, or a new thread's first return.
pub const NO_START: usize = 0;
/// The end lies before the start.
pub const NEGATIVE: usize = 1;
/// A second start came before the end of the first.
pub const OVERWRITTEN: usize = 2;
/// The kernel could not allocate the thread's state.
pub const NO_STATE: usize = 3;
/// There is no histogram for it.
pub const NO_ROW: usize = 4;

/// Work of one program on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Work {
    /// Runs.
    pub runs: u64,
    /// Runs that timed themselves, one in [`TIMED_ONE_IN`].
    pub timed: u64,
    /// What those took, ns, including one of their two clock readings.
    pub timed_ns: u64,
}

/// One run in this many times itself.
pub const TIMED_ONE_IN: u64 = 1024;

/// Counters of one CPU: the only element of the per-CPU map `CPUS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Cpu {
    /// `work[h]`: program `h` of [`crate::catalog::HOOKS`].
    pub work: [Work; MAX_HOOKS],
    /// `account[p]`: probe `p` of [`crate::catalog::PROBES`].
    pub account: [Account; MAX_PROBES],
    /// Whose task runs now.
    pub known: Known,
    /// Token bucket of outlier records: what is left, and when it was last filled.
    pub tokens: u64,
    /// ns
    pub tokens_filled_ns: u64,
    /// Records the token bucket refused.
    pub lost_rate: u64,
    /// Records the ring had no room for.
    pub lost_full: u64,
}

/// Whose task runs on a CPU, so that only the first event after a switch looks it up.
///
/// Valid for that task while the map `TAGGED` is what it was, because a process can become or cease
/// to be a target's while it runs. The task is compared, because kernels exist that do not report
/// every switch (`ARCHITECTURE.md`, decision 4).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Known {
    /// Address of the task; 0: none yet.
    pub task: u64,
    /// Value of `TAGGED` at the look-up.
    pub tagged: u64,
    /// Index of the target plus one; 0: none.
    pub target: u64,
}

/// What the daemon tells the programs while they run: the only element of the map `CONTROL`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Control {
    /// Bit `p` set: probe `p` records. All clear until the last program is attached.
    pub active: u64,
    /// Reading period, for [`Row::max`].
    pub epoch: u64,
    /// `outlier_above_ns[p]`: an observation above it is sent as an [`Outlier`]; `u64::MAX`: never.
    pub outlier_above_ns: [u64; MAX_PROBES],
}

/// A name that makes a process a target: an element of the array map `COMMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Comm {
    /// Compared whole; all zero: no rule.
    pub comm: [u8; 16],
}

/// What is known of a process: task storage `PROCESS` of its group leader.
#[repr(C)]
#[derive(Clone, Copy)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Process {
    /// Index of the target.
    pub target: u32,
    /// 1: matched by something that a child does not share (pid), so children do not inherit it.
    pub alone: u32,
}

/// Kind of a record: an [`Outlier`].
pub const KIND_OUTLIER: u32 = 1;
/// Kind of a record: a process forked a child that inherits its target ([`Lifecycle`]).
pub const KIND_FORK: u32 = 2;
/// Kind of a record: a process executed a new program ([`Lifecycle`]).
pub const KIND_EXEC: u32 = 3;
/// Kind of a record: a process of a target ended ([`Lifecycle`]).
pub const KIND_EXIT: u32 = 4;

/// [`Lifecycle::target`] of a process that is no target's.
pub const NO_TARGET: u32 = u32::MAX;

/// A process came, changed or went. Sent through the ring.
#[repr(C)]
#[derive(Clone, Copy)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Lifecycle {
    /// [`KIND_FORK`], [`KIND_EXEC`] or [`KIND_EXIT`].
    pub kind: u32,
    /// Index of the target that the kernel side gave it, or [`NO_TARGET`].
    pub target: u32,
    /// Process.
    pub tgid: u32,
    /// Its parent, of a fork; else 0.
    pub parent_tgid: u32,
    /// When.
    pub ns: u64,
    /// Name of the group leader.
    pub comm: [u8; 16],
}

/// One observation above its probe's threshold, and what was going on. Sent through the ring.
#[repr(C)]
#[derive(Clone, Copy)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Outlier {
    /// [`KIND_OUTLIER`].
    pub kind: u32,
    /// CPU it ended on.
    pub cpu: u32,
    /// Index into [`crate::catalog::PROBES`].
    pub probe: u32,
    /// Index into the values of that probe's label; 0 without one.
    pub label: u32,
    /// Index of the target.
    pub target: u32,
    /// Process of the thread.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// Of `runqueue` and `preempted`: process that ran on the CPU just before; else 0.
    pub culprit_tgid: u32,
    /// When the interval ended.
    pub end_ns: u64,
    /// How long it was.
    pub duration_ns: u64,
    /// Name of the thread.
    pub comm: [u8; 16],
    /// Name of the thread that ran just before; else zero.
    pub culprit_comm: [u8; 16],
}

const _: () = {
    assert!(size_of::<Row>() == 2088);
    assert!(size_of::<Account>() == 56);
    assert!(size_of::<Work>() == 24);
    assert!(size_of::<Cpu>() == 32 * 24 + 16 * 56 + 24 + 32);
    assert!(size_of::<Known>() == 24);
    assert!(size_of::<Control>() == 144);
    assert!(size_of::<Comm>() == 16);
    assert!(size_of::<Process>() == 8);
    assert!(size_of::<Lifecycle>() == 40);
    assert!(size_of::<Outlier>() == 80);
};

#[cfg(feature = "user")]
mod user {
    //! Every bit pattern of these is a value, and none has padding (their sizes above are the sums
    //! of their members).
    use super::{Comm, Control, Cpu, Row};

    // SAFETY: plain integers and arrays of them, `repr(C)`, no padding.
    unsafe impl aya::Pod for Row {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Cpu {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Control {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Comm {}
}
