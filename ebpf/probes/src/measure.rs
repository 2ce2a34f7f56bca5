//! How an observation gets into its histogram, and how every program accounts for itself.

use aya_ebpf::bindings::task_struct;
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use tickscope_common::catalog::{HOOKS, PROBES};
use tickscope_common::histogram::{CELLS, slot};
use tickscope_common::layout::{
    Control, Cpu, KIND_OUTLIER, NEGATIVE, NO_ROW, NO_START, Outlier, TIMED_ONE_IN,
};

use crate::map::{CONTROL, CPUS, ENABLED, FIRST_ROW, RING, ROWS, read};
use crate::task;

/// No wake-up of the reader: it comes by itself.
const RING_NO_WAKEUP: u64 = 1;
/// Outlier records that one CPU may send in a row, and how often it gets another.
const TOKENS: u64 = 64;
const TOKEN_EVERY_NS: u64 = 2_000_000;

/// `CLOCK_MONOTONIC`, ns.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments, no effects.
    unsafe { bpf_ktime_get_ns() }
}

/// The index of a program in [`HOOKS`].
pub const fn hook(program: &str) -> usize {
    let mut index = 0;
    while index < HOOKS.len() {
        if equal(HOOKS[index].program.as_bytes(), program.as_bytes()) {
            return index;
        }
        index += 1;
    }
    panic!("not one of HOOKS")
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// Runs the body of a program: counts the run, and times one in [`TIMED_ONE_IN`].
#[inline(always)]
pub fn run<const HOOK: usize>(body: impl FnOnce(&mut Cpu)) -> i32 {
    let Some(cpu) = CPUS.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the element of this CPU, which no other program of this thread of execution holds.
    let cpu = unsafe { &mut *cpu };
    cpu.work[HOOK].runs += 1;
    let timed = cpu.work[HOOK].runs % TIMED_ONE_IN == 0;
    let began = if timed { now() } else { 0 };
    body(cpu);
    if began != 0 {
        cpu.work[HOOK].timed += 1;
        cpu.work[HOOK].timed_ns += now() - began;
    }
    0
}

/// Whether probe `PROBE` is compiled in; a constant to the verifier.
#[inline(always)]
pub fn enabled<const PROBE: usize>() -> bool {
    read(&ENABLED) & (1 << PROBE) != 0
}

#[inline(always)]
fn control() -> Option<&'static Control> {
    // SAFETY: the daemon writes whole words of it; each is read once.
    CONTROL.get_ptr(0).map(|control| unsafe { &*control })
}

/// Whose observation it is.
pub struct Of {
    /// Index of the target.
    pub target: u32,
    /// The thread.
    pub task: *const task_struct,
    /// Who ran on the CPU just before, or null.
    pub culprit: *const task_struct,
}

/// An interval of `PROBE` has ended: into the histogram, or into the account of what was not.
#[inline(always)]
pub fn record<const PROBE: usize>(cpu: &mut Cpu, of: &Of, label: u32, start_ns: u64, end_ns: u64) {
    if start_ns == 0 {
        return discard::<PROBE, NO_START>(cpu);
    }
    if end_ns < start_ns {
        return discard::<PROBE, NEGATIVE>(cpu);
    }
    let Some(control) = control() else { return };
    if control.active & (1 << PROBE) == 0 {
        return filter::<PROBE>(cpu);
    }
    let index = read(&FIRST_ROW)[PROBE] + of.target * PROBES[PROBE].rows() as u32 + label;
    let Some(row) = ROWS.get_ptr_mut(index) else {
        return discard::<PROBE, NO_ROW>(cpu);
    };
    // SAFETY: this CPU's element; one context at a time records for one probe.
    let row = unsafe { &mut *row };
    let ns = end_ns - start_ns;
    let slot = masked(slot(ns));
    cpu.account[PROBE].seen += 1;
    row.counts[slot] = row.counts[slot].wrapping_add(1);
    row.sum_ns += ns;
    let epoch = control.epoch;
    let max = &mut row.max[(epoch & 1) as usize];
    if max.epoch != epoch {
        max.epoch = epoch;
        max.ns = ns;
    } else if ns > max.ns {
        max.ns = ns;
    }
    if ns > control.outlier_above_ns[PROBE] {
        let head = Head { probe: PROBE as u32, label, target: of.target, ns, end_ns };
        outlier(cpu, &head, of.task, of.culprit);
    }
}

/// An index that the verifier sees is inside [`CELLS`]. The compiler knows that it is, and would
/// leave the mask out, if it could see where the number comes from.
#[inline(always)]
fn masked(slot: u32) -> usize {
    let slot = u64::from(slot);
    // SAFETY: a reference is valid to read.
    let slot = unsafe { core::ptr::read_volatile(&raw const slot) };
    slot as usize & (CELLS - 1)
}

/// An interval that is unusable, for `REASON`.
#[inline(always)]
pub fn discard<const PROBE: usize, const REASON: usize>(cpu: &mut Cpu) {
    cpu.account[PROBE].seen += 1;
    cpu.account[PROBE].discarded[REASON] += 1;
}

/// An interval that is left out on purpose.
#[inline(always)]
pub fn filter<const PROBE: usize>(cpu: &mut Cpu) {
    cpu.account[PROBE].seen += 1;
    cpu.account[PROBE].filtered += 1;
}

struct Head {
    probe: u32,
    label: u32,
    target: u32,
    ns: u64,
    end_ns: u64,
}

/// Sends an outlier, if the token bucket of this CPU and the ring have room.
#[inline(never)]
fn outlier(cpu: &mut Cpu, head: &Head, task: *const task_struct, culprit: *const task_struct) {
    let earned = head.end_ns.wrapping_sub(cpu.tokens_filled_ns) / TOKEN_EVERY_NS;
    if earned > 0 {
        let tokens = cpu.tokens + earned;
        cpu.tokens = if tokens > TOKENS { TOKENS } else { tokens };
        cpu.tokens_filled_ns = head.end_ns;
    }
    if cpu.tokens == 0 {
        cpu.lost_rate += 1;
        return;
    }
    cpu.tokens -= 1;
    let Some(mut entry) = RING.reserve::<Outlier>(0) else {
        cpu.lost_full += 1;
        return;
    };
    let mut record = Outlier {
        kind: KIND_OUTLIER,
        // SAFETY: no arguments, no effects.
        cpu: unsafe { bpf_get_smp_processor_id() },
        probe: head.probe,
        label: head.label,
        target: head.target,
        tgid: task::tgid(task),
        tid: task::pid(task),
        culprit_tgid: 0,
        end_ns: head.end_ns,
        duration_ns: head.ns,
        comm: task::comm(task),
        culprit_comm: [0; 16],
    };
    if !culprit.is_null() {
        record.culprit_tgid = task::tgid(culprit);
        record.culprit_comm = task::comm(culprit);
    }
    entry.write(record);
    entry.submit(RING_NO_WAKEUP);
}

/// Sends a record that is no outlier; such are rare, and only the ring bounds them.
#[inline(always)]
pub fn send<T: 'static>(cpu: &mut Cpu, record: T) {
    if let Some(mut entry) = RING.reserve::<T>(0) {
        entry.write(record);
        entry.submit(RING_NO_WAKEUP);
    } else {
        cpu.lost_full += 1;
    }
}
