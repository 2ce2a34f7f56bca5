//! # runqueue: how long a woken thread waits for a CPU
//!
//! | | |
//! |---|---|
//! | from | `sched_waking` (at the waker) or `sched_wakeup_new` |
//! | to | `sched_switch` with the thread as next |
//! | since | Linux 5.15 (all three hooks older; `tp_btf` task storage 5.11) |
//! | seen | switch-ins that do not end a preemption, and wake-ups that never became a wait |
//! | discarded | `no_start`: attached while it waited; `overwritten`: woken while still running |
//! | blind | the time between the wake-up's reason (an interrupt, say) and `sched_waking` |

use tickscope_common::catalog::RUNQUEUE;
use tickscope_common::layout::{Cpu, OVERWRITTEN};

use crate::measure::{Of, discard, enabled, record};
use crate::task::Thread;

/// It runs: its wait is over.
#[inline(always)]
pub fn running(cpu: &mut Cpu, of: &Of, thread: &Thread, now: u64) {
    record::<RUNQUEUE>(cpu, of, 0, thread.waking_ns, now);
}

/// A wake-up under way turns out to be no wait: the thread had not left, or was woken twice.
#[inline(always)]
pub fn not_waiting(cpu: &mut Cpu, thread: &mut Thread) {
    if thread.waking_ns != 0 {
        if enabled::<RUNQUEUE>() {
            discard::<RUNQUEUE, OVERWRITTEN>(cpu);
        }
        thread.waking_ns = 0;
    }
}
