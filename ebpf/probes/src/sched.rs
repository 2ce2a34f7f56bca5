//! The scheduler's hooks, shared by `runqueue`, `preempted` and `offcpu`.
//!
//! A thread of a target is always in one of four places, and each way between them is one interval:
//!
//! ```text
//!   running ──blocks──► blocked ──woken──► waiting ──picked──► running
//!      │                  [offcpu]           [runqueue]
//!      └──loses the CPU──► preempted ──picked──► running
//!                            [preempted]
//! ```
//!
//! A wake-up can find the thread still on its CPU: before it left (then the wait began before it
//! blocked) or without its ever leaving (then there is no wait). Both are told apart when it next
//! switches, never by guessing at the wake-up.

use aya_ebpf::bindings::task_struct;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use tickscope_common::catalog::{OFFCPU, PREEMPTED, RUNQUEUE};
use tickscope_common::layout::Cpu;

use crate::map::{SWITCH_HAS_STATE, read};
use crate::measure::{Of, enabled, hook, now, run};
use crate::{offcpu, preempted, runqueue, task};

/// Not seen leaving the CPU, or on it.
pub const OUT_UNKNOWN: u64 = 0;
/// Lost the CPU while runnable.
pub const OUT_PREEMPTED: u64 = 1;
/// Gave the CPU away while runnable.
pub const OUT_YIELDED: u64 = 2;
/// Blocked, and woken since: its off-CPU time is recorded.
pub const OUT_WOKEN: u64 = 3;
/// Blocked: this plus the index of the cause.
pub const OUT_BLOCKED: u64 = 4;

#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    run::<{ hook("sched_switch") }>(|cpu| {
        let prev: *const task_struct = ctx.arg(1);
        let state: u32 = if read(&SWITCH_HAS_STATE) != 0 { ctx.arg(3) } else { task::state(prev) };
        // A thread that is preempted stays runnable, whatever it was about to become.
        let runnable = ctx.arg::<u64>(0) & 1 != 0 || state == 0;
        switch_out(cpu, prev, runnable);
        switch_in(cpu, ctx.arg(2), prev);
    })
}

#[inline(always)]
fn switch_out(cpu: &mut Cpu, prev: *const task_struct, runnable: bool) {
    if task::running_target(cpu).is_none() {
        return;
    }
    let Some(thread) = task::thread::<RUNQUEUE>(cpu, prev) else {
        return;
    };
    // A start that is still open here was never ended: the kernel did not report the switch.
    preempted::lost(cpu, thread);
    offcpu::lost(cpu, thread);
    thread.out_ns = now();
    if runnable {
        runqueue::not_waiting(cpu, thread);
        thread.out = preempted::kind(prev);
    } else {
        thread.out = offcpu::kind(prev);
    }
}

#[inline(always)]
fn switch_in(cpu: &mut Cpu, next: *const task_struct, prev: *const task_struct) {
    let Some(target) = task::now_running(cpu, next) else {
        return;
    };
    let Some(thread) = task::thread::<RUNQUEUE>(cpu, next) else {
        return;
    };
    let of = Of { target, task: next, culprit: prev };
    let now = now();
    if thread.out == OUT_PREEMPTED || thread.out == OUT_YIELDED {
        if enabled::<PREEMPTED>() {
            preempted::running(cpu, &of, thread, now);
        }
        runqueue::not_waiting(cpu, thread);
    } else {
        if enabled::<OFFCPU>() {
            offcpu::running(cpu, thread);
        }
        if enabled::<RUNQUEUE>() {
            runqueue::running(cpu, &of, thread, now);
        }
    }
    thread.waking_ns = 0;
    thread.out_ns = 0;
    thread.out = OUT_UNKNOWN;
}

#[btf_tracepoint(function = "sched_waking")]
pub fn sched_waking(ctx: BtfTracePointContext) -> i32 {
    run::<{ hook("sched_waking") }>(|cpu| woken(cpu, ctx.arg(0)))
}

/// A new thread never blocked, but it waits for a CPU like any other.
#[btf_tracepoint(function = "sched_wakeup_new")]
pub fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    run::<{ hook("sched_wakeup_new") }>(|cpu| woken(cpu, ctx.arg(0)))
}

#[inline(always)]
fn woken(cpu: &mut Cpu, task: *const task_struct) {
    let Some(target) = task::target(task) else {
        return;
    };
    let Some(thread) = task::thread::<RUNQUEUE>(cpu, task) else {
        return;
    };
    let now = now();
    if enabled::<OFFCPU>() && thread.out >= OUT_BLOCKED {
        offcpu::woken(cpu, &Of { target, task, culprit: core::ptr::null() }, thread, now);
    }
    runqueue::not_waiting(cpu, thread);
    thread.waking_ns = now;
}
