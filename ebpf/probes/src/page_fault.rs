//! # page_fault: how long a thread waits for memory to appear
//!
//! | | |
//! |---|---|
//! | from | `page_fault_user`, or `page_fault_kernel` in a call that copies to or from user memory |
//! | to | the software events `PAGE_FAULTS_MIN` and `PAGE_FAULTS_MAJ`, which the kernel raises when a fault has been served (`mm/memory.c`, `mm_account_fault`) |
//! | label | `kind`: `minor`, `major` (waited for storage, or was retried) |
//! | since | Linux 5.15 |
//! | cost | a perf event per fault; off by default, and where `perf_event_paranoid` is 3 it needs CAP_SYS_ADMIN |
//! | seen | faults served in threads of targets, and faults that never were |
//! | discarded | `no_start`: served without an exception, or attached inside one; `overwritten`: the one before ended in a signal |
//! | blind | CPUs that come online after the start |
//!
//! No tracepoint of any supported kernel marks the end of a fault; these events are the only one
//! that does not need a kprobe.

use aya_ebpf::macros::{btf_tracepoint, perf_event};
use aya_ebpf::programs::{BtfTracePointContext, PerfEventContext};
use tickscope_common::catalog::PAGE_FAULT;
use tickscope_common::layout::{Cpu, OVERWRITTEN};

use crate::measure::{Of, discard, hook, now, record, run};
use crate::task;

#[btf_tracepoint(function = "page_fault_user")]
pub fn page_fault_user(_ctx: BtfTracePointContext) -> i32 {
    run::<{ hook("page_fault_user") }>(begin)
}

#[btf_tracepoint(function = "page_fault_kernel")]
pub fn page_fault_kernel(_ctx: BtfTracePointContext) -> i32 {
    run::<{ hook("page_fault_kernel") }>(begin)
}

#[inline(always)]
fn begin(cpu: &mut Cpu) {
    if task::running_target(cpu).is_none() {
        return;
    }
    let task = task::current();
    let Some(thread) = task::thread::<PAGE_FAULT>(cpu, task) else {
        return;
    };
    if thread.fault_ns != 0 {
        discard::<PAGE_FAULT, OVERWRITTEN>(cpu);
    }
    thread.fault_ns = now();
}

#[perf_event]
pub fn fault_minor(_ctx: PerfEventContext) -> i32 {
    run::<{ hook("fault_minor") }>(|cpu| end(cpu, 0))
}

#[perf_event]
pub fn fault_major(_ctx: PerfEventContext) -> i32 {
    run::<{ hook("fault_major") }>(|cpu| end(cpu, 1))
}

#[inline(always)]
fn end(cpu: &mut Cpu, kind: u32) {
    let Some(target) = task::running_target(cpu) else {
        return;
    };
    let now = now();
    let task = task::current();
    let Some(thread) = task::thread::<PAGE_FAULT>(cpu, task) else {
        return;
    };
    let start = thread.fault_ns;
    thread.fault_ns = 0;
    record::<PAGE_FAULT>(cpu, &Of { target, task, culprit: core::ptr::null() }, kind, start, now);
}
