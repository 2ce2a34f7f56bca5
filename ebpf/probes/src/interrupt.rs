//! # interrupt: CPU time that interrupts took from a running thread
//!
//! | | |
//! |---|---|
//! | from, to | `irq_handler_entry/exit` and the x86 vectors for timer, reschedule, function calls and irq work; `softirq_entry/exit` |
//! | label | `cause`: `hardirq`; `softirq` while the thread was in user mode or a fault; `softirq_syscall` while it was in a system call, where on loopback it is mostly the thread's own packets |
//! | since | Linux 5.15 |
//! | seen | exits under a running thread of a target |
//! | discarded | `no_start`: attached inside one |
//! | blind | NMI, SMI, other vectors; with PREEMPT_RT softirqs run in threads and show as `preempted` |
//!
//! A hard interrupt inside a softirq is taken off the softirq's time, so the labels add up.

use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use tickscope_common::catalog::INTERRUPT;
use tickscope_common::layout::Cpu;

use crate::measure::{Of, hook, now, record, run};
use crate::task::{self, Thread};

const HARDIRQ: u32 = 0;
const SOFTIRQ: u64 = 1;
const SOFTIRQ_SYSCALL: u64 = 2;

/// The running thread, when it is a target's.
#[inline(always)]
fn running(cpu: &mut Cpu) -> Option<(Of, &'static mut Thread)> {
    let target = task::running_target(cpu)?;
    let task = task::current();
    let thread = task::thread::<INTERRUPT>(cpu, task)?;
    Some((Of { target, task, culprit: core::ptr::null() }, thread))
}

#[raw_tracepoint(tracepoint = "irq_handler_entry")]
pub fn irq_entry(_ctx: RawTracePointContext) -> i32 {
    run::<{ hook("irq_entry") }>(|cpu| {
        if let Some((_, thread)) = running(cpu) {
            thread.irq_ns = now();
        }
    })
}

#[raw_tracepoint(tracepoint = "irq_handler_exit")]
pub fn irq_exit(_ctx: RawTracePointContext) -> i32 {
    run::<{ hook("irq_exit") }>(|cpu| {
        if let Some((of, thread)) = running(cpu) {
            let (start, end) = (thread.irq_ns, now());
            thread.irq_ns = 0;
            if start != 0 && thread.softirq_ns != 0 {
                thread.softirq_stolen_ns += end - start;
            }
            record::<INTERRUPT>(cpu, &of, HARDIRQ, start, end);
        }
    })
}

#[btf_tracepoint(function = "softirq_entry")]
pub fn softirq_entry(_ctx: BtfTracePointContext) -> i32 {
    run::<{ hook("softirq_entry") }>(|cpu| {
        if let Some((of, thread)) = running(cpu) {
            thread.softirq_stolen_ns = 0;
            thread.softirq_cause =
                if task::syscall_nr(of.task).is_some() { SOFTIRQ_SYSCALL } else { SOFTIRQ };
            thread.softirq_ns = now();
        }
    })
}

#[btf_tracepoint(function = "softirq_exit")]
pub fn softirq_exit(_ctx: BtfTracePointContext) -> i32 {
    run::<{ hook("softirq_exit") }>(|cpu| {
        if let Some((of, thread)) = running(cpu) {
            let start = thread.softirq_ns;
            let end = now() - thread.softirq_stolen_ns;
            thread.softirq_ns = 0;
            thread.softirq_stolen_ns = 0;
            let cause = if thread.softirq_cause == SOFTIRQ_SYSCALL { SOFTIRQ_SYSCALL } else { SOFTIRQ };
            record::<INTERRUPT>(cpu, &of, cause as u32, start, end);
        }
    })
}
