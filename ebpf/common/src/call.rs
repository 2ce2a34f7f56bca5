//! System calls by name: which label a call number has, and what blocking in it means.
//!
//! Numbers are the architecture's own (`arch/x86/entry/syscalls/syscall_64.tbl`,
//! `include/uapi/asm-generic/unistd.h`). 32-bit compatibility calls are not told apart.

/// Values of the label `call` of the probe `syscall`, in order; the last collects the rest.
pub const CALLS: &[&str] = &[
    "read",
    "write",
    "readv",
    "writev",
    "recvfrom",
    "recvmsg",
    "recvmmsg",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "poll",
    "epoll_wait",
    "futex",
    "nanosleep",
    "sched_yield",
    "fsync",
    "fdatasync",
    "mmap",
    "munmap",
    "other",
];

/// Values of the label `cause` of the probe `offcpu`, in order; the last collects the rest.
pub const CAUSES: &[&str] = &["futex", "io", "fault", "sleep", "network", "other"];

/// Blocked in a futex.
pub const CAUSE_FUTEX: u8 = 0;
/// Blocked for block IO (`in_iowait`), or in a call that flushes to storage.
pub const CAUSE_IO: u8 = 1;
/// Blocked while a page fault was being served.
pub const CAUSE_FAULT: u8 = 2;
/// Blocked in a call that sleeps for a time.
pub const CAUSE_SLEEP: u8 = 3;
/// Blocked in a socket call, or waiting for readiness of descriptors.
pub const CAUSE_NETWORK: u8 = 4;
/// Blocked in anything else: pipes, waits for children, locks of the kernel.
pub const CAUSE_OTHER: u8 = 5;

/// Call numbers above this are `other`.
pub const NUMBERS: usize = 512;

/// One named call: its numbers on x86-64 and on arm64 (-1: not there), label, and cause.
struct Named(i32, i32, u8, u8);

const fn label(name: &str) -> u8 {
    let mut i = 0;
    while i < CALLS.len() {
        if equal(CALLS[i].as_bytes(), name.as_bytes()) {
            return i as u8;
        }
        i += 1;
    }
    panic!("not one of CALLS")
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

const OTHER: u8 = label("other");

const NAMED: &[Named] = &[
    Named(0, 63, label("read"), CAUSE_OTHER),
    Named(1, 64, label("write"), CAUSE_OTHER),
    Named(19, 65, label("readv"), CAUSE_OTHER),
    Named(20, 66, label("writev"), CAUSE_OTHER),
    Named(45, 207, label("recvfrom"), CAUSE_NETWORK),
    Named(47, 212, label("recvmsg"), CAUSE_NETWORK),
    Named(299, 243, label("recvmmsg"), CAUSE_NETWORK),
    Named(44, 206, label("sendto"), CAUSE_NETWORK),
    Named(46, 211, label("sendmsg"), CAUSE_NETWORK),
    Named(307, 269, label("sendmmsg"), CAUSE_NETWORK),
    Named(42, 203, OTHER, CAUSE_NETWORK),                // connect
    Named(43, 202, OTHER, CAUSE_NETWORK),                // accept
    Named(288, 242, OTHER, CAUSE_NETWORK),               // accept4
    Named(7, -1, label("poll"), CAUSE_NETWORK),          // poll
    Named(271, 73, label("poll"), CAUSE_NETWORK),        // ppoll
    Named(23, -1, label("poll"), CAUSE_NETWORK),         // select
    Named(270, 72, label("poll"), CAUSE_NETWORK),        // pselect6
    Named(232, -1, label("epoll_wait"), CAUSE_NETWORK),  // epoll_wait
    Named(281, 22, label("epoll_wait"), CAUSE_NETWORK),  // epoll_pwait
    Named(441, 441, label("epoll_wait"), CAUSE_NETWORK), // epoll_pwait2
    Named(202, 98, label("futex"), CAUSE_FUTEX),         // futex
    Named(449, 449, label("futex"), CAUSE_FUTEX),        // futex_waitv
    Named(455, 455, label("futex"), CAUSE_FUTEX),        // futex_wait
    Named(35, 101, label("nanosleep"), CAUSE_SLEEP),     // nanosleep
    Named(230, 115, label("nanosleep"), CAUSE_SLEEP),    // clock_nanosleep
    Named(24, 124, label("sched_yield"), CAUSE_OTHER),
    Named(74, 82, label("fsync"), CAUSE_IO),
    Named(75, 83, label("fdatasync"), CAUSE_IO),
    Named(277, 84, OTHER, CAUSE_IO),  // sync_file_range
    Named(162, 81, OTHER, CAUSE_IO),  // sync
    Named(306, 267, OTHER, CAUSE_IO), // syncfs
    Named(9, 222, label("mmap"), CAUSE_OTHER),
    Named(11, 215, label("munmap"), CAUSE_OTHER),
];

const fn by_number(arm64: bool, cause: bool) -> [u8; NUMBERS] {
    let mut table = [if cause { CAUSE_OTHER } else { OTHER }; NUMBERS];
    let mut i = 0;
    while i < NAMED.len() {
        let Named(x86, arm, label, blocked) = NAMED[i];
        let number = if arm64 { arm } else { x86 };
        if number >= 0 {
            table[number as usize] = if cause { blocked } else { label };
        }
        i += 1;
    }
    table
}

const ARM64: bool = cfg!(any(target_arch = "aarch64", bpf_target_arch = "aarch64"));

/// `LABEL_OF[nr]`: index into [`CALLS`].
pub static LABEL_OF: [u8; NUMBERS] = by_number(ARM64, false);
/// `CAUSE_OF[nr]`: index into [`CAUSES`], of a thread that blocks in this call.
pub static CAUSE_OF: [u8; NUMBERS] = by_number(ARM64, true);
/// The number of `sched_yield`.
pub const SCHED_YIELD: i64 = if ARM64 { 124 } else { 24 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_stand_in_the_order_of_their_numbers() {
        for (number, name) in [
            (CAUSE_FUTEX, "futex"),
            (CAUSE_IO, "io"),
            (CAUSE_FAULT, "fault"),
            (CAUSE_SLEEP, "sleep"),
            (CAUSE_NETWORK, "network"),
            (CAUSE_OTHER, "other"),
        ] {
            assert_eq!(CAUSES[number as usize], name);
        }
    }

    #[test]
    fn every_label_but_other_has_a_number_on_both_architectures() {
        for (i, name) in CALLS.iter().enumerate().take(CALLS.len() - 1) {
            assert!(by_number(false, false).contains(&(i as u8)), "{name} on x86-64");
            assert!(by_number(true, false).contains(&(i as u8)), "{name} on arm64");
        }
    }
}
