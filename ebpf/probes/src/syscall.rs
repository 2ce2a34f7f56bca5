//! # syscall: how long system calls take, by call
//!
//! | | |
//! |---|---|
//! | from, to | `sys_enter`, `sys_exit` |
//! | label | `call`: [`CALLS`](tickscope_common::call::CALLS), the rest `other` |
//! | since | Linux 5.15 |
//! | cost | both hooks run for every call of every process on the host; off by default for that |
//! | seen | exits in threads of targets, and entries that never came back |
//! | discarded | `no_start`: a new thread's or process' first return, or attached inside the call |
//! | blind | `exit` and `exit_group`; 32-bit calls carry their 64-bit namesake's label |

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use tickscope_common::call::{CALLS, LABEL_OF, NUMBERS};
use tickscope_common::catalog::SYSCALL;
use tickscope_common::layout::{Cpu, OVERWRITTEN};

use crate::measure::{Of, discard, hook, now, record, run};
use crate::task;

#[btf_tracepoint(function = "sys_enter")]
pub fn sys_enter(ctx: BtfTracePointContext) -> i32 {
    run::<{ hook("sys_enter") }>(|cpu| enter(cpu, ctx.arg(1)))
}

#[inline(always)]
fn enter(cpu: &mut Cpu, nr: u64) {
    if task::running_target(cpu).is_none() {
        return;
    }
    let task = task::current();
    let Some(thread) = task::thread::<SYSCALL>(cpu, task) else {
        return;
    };
    if thread.call_ns != 0 {
        discard::<SYSCALL, OVERWRITTEN>(cpu);
    }
    thread.call = nr;
    thread.call_ns = now();
}

#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit(_ctx: BtfTracePointContext) -> i32 {
    run::<{ hook("sys_exit") }>(exit)
}

#[inline(always)]
fn exit(cpu: &mut Cpu) {
    let Some(target) = task::running_target(cpu) else {
        return;
    };
    let now = now();
    let task = task::current();
    let Some(thread) = task::thread::<SYSCALL>(cpu, task) else {
        return;
    };
    let nr = thread.call as usize;
    let label = if nr < NUMBERS { u32::from(LABEL_OF[nr]) } else { CALLS.len() as u32 - 1 };
    let label = if label < CALLS.len() as u32 { label } else { CALLS.len() as u32 - 1 };
    let start = thread.call_ns;
    thread.call_ns = 0;
    record::<SYSCALL>(cpu, &Of { target, task, culprit: core::ptr::null() }, label, start, now);
}
