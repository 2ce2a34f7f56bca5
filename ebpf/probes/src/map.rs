//! Maps, and the read-only globals that the loader sets.

use core::ptr;

use aya_ebpf::bindings::task_struct;
use aya_ebpf::helpers::generated::{bpf_task_storage_delete, bpf_task_storage_get};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, PerCpuArray, RingBuf};
use tickscope_common::catalog::PROBES;
use tickscope_common::layout::{Comm, Control, Cpu, MAX_TARGETS, Process, Row};

use crate::task::Thread;

/// Histograms; the loader sets the number of elements.
#[map]
pub static ROWS: PerCpuArray<Row> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static CPUS: PerCpuArray<Cpu> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, 0);
#[map]
pub static COMMS: Array<Comm> = Array::with_max_entries(MAX_TARGETS as u32, 0);
/// When a process last became or ceased to be a target's other than by fork, `CLOCK_MONOTONIC` ns.
/// Any new value makes every CPU forget whose task it runs.
#[map]
pub static TAGGED: Array<u64> = Array::with_max_entries(1, 0);
/// Outliers and lifecycle only; drained every few milliseconds, without wake-ups.
#[map]
pub static RING: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);
/// By group leader: the process is a target's. The daemon writes it through a pidfd.
#[btf_map]
pub static PROCESS: TaskStorage<Process> = TaskStorage::new();
/// By thread: what is under way.
#[btf_map]
pub static THREAD: TaskStorage<Thread> = TaskStorage::new();

/// A read-only global that the loader sets. Read with [`read`], or the compiler folds the zero.
macro_rules! globals {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $value:expr;)*) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub static $name: $type = $value;)*
    };
}

globals! {
    TASK_PID: u32 = 0;
    TASK_TGID: u32 = 0;
    TASK_COMM: u32 = 0;
    TASK_GROUP_LEADER: u32 = 0;
    TASK_STATE: u32 = 0;
    TASK_IN_IOWAIT: u32 = 0;
    TASK_IN_IOWAIT_MASK: u32 = 0;
    REGS_SYSCALL: u32 = 0;
    /// 1: `sched_switch` has the previous task's state as its fourth argument (Linux 6.1).
    SWITCH_HAS_STATE: u32 = 0;
    /// 1: every exec is reported, because some targets are matched by what only the daemon can see.
    REPORT_EXEC: u32 = 0;
    /// Bit `p`: probe `p` is compiled in. What is not is dead code to the verifier.
    ENABLED: u32 = 0;
    /// `FIRST_ROW[p]`: row of probe `p`, target 0, label 0.
    FIRST_ROW: [u32; PROBES.len()] = [0; PROBES.len()];
}

/// The value that the loader gave a global.
#[inline(always)]
pub fn read<T: Copy>(global: &'static T) -> T {
    // SAFETY: a reference is valid to read.
    unsafe { ptr::read_volatile(global) }
}

/// `BPF_MAP_TYPE_TASK_STORAGE` (Linux 5.11), which aya has no type for: a BTF map definition is a
/// struct of pointers whose *types* carry the numbers.
#[repr(C)]
pub struct TaskStorage<T> {
    r#type: *const [i32; 29],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; 1],
}

// SAFETY: nothing is ever read through it; its address is the map.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    #[inline(always)]
    fn address(&self) -> *mut core::ffi::c_void {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// The task's value, if it has one.
    #[inline(always)]
    pub fn get(&self, task: *const task_struct) -> Option<&'static mut T> {
        // SAFETY: the verifier has checked map and task; the helper returns null or the value.
        unsafe {
            bpf_task_storage_get(self.address(), task.cast_mut(), ptr::null_mut(), 0).cast::<T>().as_mut()
        }
    }

    /// The task's value, made of zeros if it has none. `None`: no memory.
    #[inline(always)]
    pub fn get_or_create(&self, task: *const task_struct) -> Option<&'static mut T> {
        // SAFETY: as above; 1 is BPF_LOCAL_STORAGE_GET_F_CREATE.
        unsafe {
            bpf_task_storage_get(self.address(), task.cast_mut(), ptr::null_mut(), 1).cast::<T>().as_mut()
        }
    }

    /// Forgets the task's value.
    #[inline(always)]
    pub fn delete(&self, task: *const task_struct) {
        // SAFETY: as above. That there was none is no error.
        unsafe { bpf_task_storage_delete(self.address(), task.cast_mut()) };
    }
}
