//! # preempted: how long a thread that wants to run is kept off the CPU
//!
//! | | |
//! |---|---|
//! | from | `sched_switch` with the thread as prev, preempted or runnable |
//! | to | `sched_switch` with the thread as next |
//! | since | Linux 5.15 |
//! | seen | switch-ins after such a switch-out |
//! | filtered | `sched_yield`: it asked for it |
//! | discarded | `overwritten`: it left the CPU again without having been seen to return |
//! | blind | time lost without a switch: interrupts (see `interrupt`), SMI, hypervisor steal |
//!
//! Return-to-user reschedules have `preempt` = false and state 0, so both count (kernel-signals
//! pitfall 2).

use aya_ebpf::bindings::task_struct;
use tickscope_common::call::SCHED_YIELD;
use tickscope_common::catalog::PREEMPTED;
use tickscope_common::layout::{Cpu, OVERWRITTEN};

use crate::measure::{Of, discard, enabled, filter, record};
use crate::sched::{OUT_PREEMPTED, OUT_YIELDED};
use crate::task::{self, Thread};

/// How a runnable thread left the CPU.
#[inline(always)]
pub fn kind(prev: *const task_struct) -> u64 {
    if enabled::<PREEMPTED>() && task::syscall_nr(prev) == Some(SCHED_YIELD as u64) {
        OUT_YIELDED
    } else {
        OUT_PREEMPTED
    }
}

/// It leaves the CPU, and was not seen to return since it last lost it.
#[inline(always)]
pub fn lost(cpu: &mut Cpu, thread: &Thread) {
    if enabled::<PREEMPTED>() && (thread.out == OUT_PREEMPTED || thread.out == OUT_YIELDED) {
        discard::<PREEMPTED, OVERWRITTEN>(cpu);
    }
}

/// It runs again.
#[inline(always)]
pub fn running(cpu: &mut Cpu, of: &Of, thread: &Thread, now: u64) {
    if thread.out == OUT_YIELDED {
        filter::<PREEMPTED>(cpu);
    } else {
        record::<PREEMPTED>(cpu, of, 0, thread.out_ns, now);
    }
}
