//! The kernel side: programs that measure and count, and never decide.
//!
//! One file is one probe and its datasheet. Hooks that several probes share (`sched_switch`,
//! `sched_waking`) stand in `sched.rs`, because one program with three small parts costs a third of
//! three programs. Every interval of a thread begins and ends in its own task storage, so nothing
//! is keyed by pid and nothing outlives its thread. Start with `sched.rs`, then `measure.rs`.
#![no_std]
#![no_main]
// The kernel reads these programs; rustdoc does not.
#![allow(missing_docs)]

mod interrupt;
mod map;
mod measure;
mod offcpu;
mod page_fault;
mod preempted;
mod runqueue;
mod sched;
mod syscall;
mod task;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // No program can panic: the verifier refuses an object in which this is reachable.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
