//! # offcpu: how long a thread is blocked, by what it blocked on
//!
//! | | |
//! |---|---|
//! | from | `sched_switch` with the thread as prev, not runnable |
//! | to | `sched_waking` of the thread: the wait for a CPU after it is `runqueue`'s |
//! | label | `cause`: from the system call in the thread's saved registers, `in_iowait`, or a fault |
//! | since | Linux 5.15 (`bpf_task_pt_regs`) |
//! | seen | wake-ups of blocked threads, and switch-ins that no wake-up came before |
//! | filtered | woken before it had left the CPU: it was never blocked |
//! | discarded | `no_start`: the wake-up was not seen; `overwritten`: neither was its return |
//! | blind | `read` and `write` on sockets and pipes are `other`: the call does not say which it is |

use aya_ebpf::bindings::task_struct;
use tickscope_common::call::{CAUSE_FAULT, CAUSE_IO, CAUSE_OF, CAUSE_OTHER, NUMBERS};
use tickscope_common::catalog::OFFCPU;
use tickscope_common::layout::{Cpu, NO_START, OVERWRITTEN};

use crate::measure::{Of, discard, enabled, filter, record};
use crate::sched::{OUT_BLOCKED, OUT_WOKEN};
use crate::task::{self, Thread};

/// How a thread that is not runnable left the CPU.
#[inline(always)]
pub fn kind(prev: *const task_struct) -> u64 {
    if !enabled::<OFFCPU>() {
        return OUT_WOKEN;
    }
    let cause = match task::syscall_nr(prev) {
        None => CAUSE_FAULT,
        Some(_) if task::in_iowait(prev) => CAUSE_IO,
        Some(nr) if (nr as usize) < NUMBERS => CAUSE_OF[nr as usize],
        Some(_) => CAUSE_OTHER,
    };
    OUT_BLOCKED + u64::from(cause)
}

/// It is woken, after it blocked.
#[inline(always)]
pub fn woken(cpu: &mut Cpu, of: &Of, thread: &mut Thread, now: u64) {
    let cause = (thread.out - OUT_BLOCKED) as u32;
    record::<OFFCPU>(cpu, of, cause, thread.out_ns, now);
    thread.out = OUT_WOKEN;
}

/// It leaves the CPU, and was neither woken nor seen to return since it last blocked.
#[inline(always)]
pub fn lost(cpu: &mut Cpu, thread: &Thread) {
    if enabled::<OFFCPU>() && thread.out >= OUT_BLOCKED {
        discard::<OFFCPU, OVERWRITTEN>(cpu);
    }
}

/// It runs. If its being blocked is still open, no wake-up came after it left the CPU.
#[inline(always)]
pub fn running(cpu: &mut Cpu, thread: &Thread) {
    if thread.out >= OUT_BLOCKED {
        if thread.waking_ns != 0 {
            filter::<OFFCPU>(cpu);
        } else {
            discard::<OFFCPU, NO_START>(cpu);
        }
    }
}
