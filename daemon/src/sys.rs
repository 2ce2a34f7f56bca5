//! The few commands of bpf(2) that aya has no call for. All unsafe code of the daemon is here.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_prog_info};

/// Sets the task storage of the process behind `pidfd` (Linux 5.11,
/// `kernel/bpf/bpf_task_storage.c`, `bpf_pid_task_storage_update_elem`).
///
/// # Errors
/// `ESRCH` when the process has ended; else as bpf(2).
pub fn task_storage_set<T: bytemuck::NoUninit>(
    map: BorrowedFd<'_>,
    pidfd: BorrowedFd<'_>,
    value: &T,
) -> io::Result<()> {
    let key = pidfd.as_raw_fd();
    let mut attr = element(map, &key);
    // SAFETY: writing a union's plain member.
    let elem = unsafe { &mut attr.__bindgen_anon_2 };
    elem.__bindgen_anon_1.value = std::ptr::from_ref(value) as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr)
}

/// Forgets the task storage of the process behind `pidfd`. That there was none is no error.
///
/// # Errors
/// `ESRCH` when the process has ended; else as bpf(2).
pub fn task_storage_clear(map: BorrowedFd<'_>, pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let key = pidfd.as_raw_fd();
    let mut attr = element(map, &key);
    match bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// Runs of a program that the kernel skipped because it was already running on that CPU
/// (`recursion_misses`, Linux 5.12).
///
/// # Errors
/// As bpf(2).
pub fn recursion_misses(program: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: all zeros is a value of this plain struct.
    let mut info: bpf_prog_info = unsafe { mem::zeroed() };
    // SAFETY: all zeros is a value of this plain union.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.info.bpf_fd = program.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_prog_info>() as u32;
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info.recursion_misses)
}

/// Returns freed memory to the kernel; glibc would keep it for later.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn element(map: BorrowedFd<'_>, key: &i32) -> bpf_attr {
    // SAFETY: all zeros is a value of this plain union.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: writing a union's plain member.
    let elem = unsafe { &mut attr.__bindgen_anon_2 };
    elem.map_fd = map.as_raw_fd() as u32;
    elem.key = std::ptr::from_ref(key) as u64;
    attr
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<()> {
    // SAFETY: `attr` is a whole bpf_attr; what it points to outlives the call, because the callers
    // hold it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, std::ptr::from_mut(attr), size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
