//! Which task is whose: processes of targets, and the state of their threads.
//!
//! A process is known by its group leader's task storage: one lookup tells an untargeted task. The
//! daemon puts it there for processes that already run (through a pidfd); children inherit it at
//! fork; exec checks the names of targets at once, and asks the daemon about the rest.

use aya_ebpf::bindings::task_struct;
use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use tickscope_common::layout::{
    Cpu, KIND_EXEC, KIND_EXIT, KIND_FORK, Lifecycle, MAX_TARGETS, NO_STATE, NO_TARGET,
};

use crate::map::{
    COMMS, PROCESS, REGS_SYSCALL, REPORT_EXEC, TAGGED, TASK_COMM, TASK_GROUP_LEADER, TASK_IN_IOWAIT,
    TASK_IN_IOWAIT_MASK, TASK_PID, TASK_STATE, TASK_TGID, THREAD, read,
};
use crate::measure::{discard, hook, now, run, send};

/// What is under way in one thread of a target. All zero: nothing.
#[repr(C)]
pub struct Thread {
    /// Woken and not yet running since, ns; 0: not.
    pub waking_ns: u64,
    /// Off the CPU since, ns; 0: on it, or not seen leaving.
    pub out_ns: u64,
    /// How it left, `sched::OUT_*`.
    pub out: u64,
    /// In a system call since, ns; 0: not.
    pub call_ns: u64,
    /// Its number.
    pub call: u64,
    /// In a page fault since, ns; 0: not.
    pub fault_ns: u64,
    /// Under a hard interrupt since, ns; 0: not.
    pub irq_ns: u64,
    /// Under a softirq since, ns; 0: not.
    pub softirq_ns: u64,
    /// Hard interrupt time inside that softirq, ns.
    pub softirq_stolen_ns: u64,
    /// Its label, index into `INTERRUPTS`.
    pub softirq_cause: u64,
}

/// A field of a kernel struct at an offset that the loader resolved.
///
/// The verifier knows struct and offset and allows the load only if a field of that size is there.
#[inline(always)]
fn field<T: Copy, S>(base: *const S, offset: &'static u32) -> T {
    // SAFETY: checked by the verifier, which turns a faulting load into a zero.
    unsafe { *base.cast::<u8>().add(read(offset) as usize).cast::<T>() }
}

#[inline(always)]
pub fn pid(task: *const task_struct) -> u32 {
    field(task, &TASK_PID)
}

#[inline(always)]
pub fn tgid(task: *const task_struct) -> u32 {
    field(task, &TASK_TGID)
}

/// `__state` of a task: 0 is runnable. For kernels whose `sched_switch` does not say it.
#[inline(always)]
pub fn state(task: *const task_struct) -> u32 {
    field(task, &TASK_STATE)
}

#[inline(always)]
pub fn in_iowait(task: *const task_struct) -> bool {
    field::<u8, _>(task, &TASK_IN_IOWAIT) & read(&TASK_IN_IOWAIT_MASK) as u8 != 0
}

/// Name of a thread. The verifier allows one byte of an array at a time.
#[inline(always)]
pub fn comm(task: *const task_struct) -> [u8; 16] {
    let mut comm = [0; 16];
    let base = task.cast::<u8>().wrapping_add(read(&TASK_COMM) as usize);
    let mut i = 0;
    while i < 16 {
        // SAFETY: as in `field`. Volatile, or sixteen loads become two that the verifier refuses.
        comm[i] = unsafe { core::ptr::read_volatile(base.add(i)) };
        i += 1;
    }
    comm
}

/// The system call that a task is in; `None` when it came into the kernel by an interrupt or fault
/// (the entry code then stores -1, `arch/x86/entry/entry_64.S`, `idtentry_body`).
#[inline(always)]
pub fn syscall_nr(task: *const task_struct) -> Option<u64> {
    // SAFETY: the verifier has checked the task; the helper returns the task's own registers.
    let regs = unsafe { bpf_task_pt_regs(task.cast_mut()) } as *const u8;
    let nr: u64 = field(regs, &REGS_SYSCALL);
    ((nr as i64) >= 0).then_some(nr)
}

/// The task that runs now.
#[inline(always)]
pub fn current() -> *const task_struct {
    // SAFETY: no arguments; never null.
    unsafe { bpf_get_current_task_btf() }
}

#[inline(always)]
fn leader(task: *const task_struct) -> *const task_struct {
    field(task, &TASK_GROUP_LEADER)
}

/// Index of the target that any task belongs to: one look-up (about 30 ns).
#[inline(always)]
pub fn target(task: *const task_struct) -> Option<u32> {
    PROCESS.get(leader(task)).map(|process| process.target)
}

/// Index of the target that the running task belongs to: three loads and two comparisons.
#[inline(always)]
pub fn running_target(cpu: &mut Cpu) -> Option<u32> {
    let task = current();
    if cpu.known.task == task as u64 && cpu.known.tagged == tagged() {
        (cpu.known.target as u32).checked_sub(1)
    } else {
        now_running(cpu, task)
    }
}

/// Looks up whose task runs on this CPU, and remembers it.
///
/// An interrupt in between may do the same for the same task; the address is written last.
#[inline(always)]
pub fn now_running(cpu: &mut Cpu, task: *const task_struct) -> Option<u32> {
    let tagged = tagged();
    let target = target(task);
    let known = target.map_or(0, |target| u64::from(target) + 1);
    // SAFETY: a reference is valid to write.
    unsafe { core::ptr::write_volatile(&raw mut cpu.known.task, 0) };
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&raw mut cpu.known.target, known) };
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&raw mut cpu.known.tagged, tagged) };
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&raw mut cpu.known.task, task as u64) };
    target
}

#[inline(always)]
fn tagged() -> u64 {
    TAGGED.get(0).copied().unwrap_or(0)
}

/// Makes every CPU forget whose task it runs.
#[inline(always)]
fn forget() {
    if let Some(tagged) = TAGGED.get_ptr_mut(0) {
        // SAFETY: a whole word of the map; any new value will do.
        unsafe { core::ptr::write_volatile(tagged, now()) };
    }
}

/// State of a thread of a target; made on first use. Without memory for it, `PROBE` counts that.
#[inline(always)]
pub fn thread<const PROBE: usize>(cpu: &mut Cpu, task: *const task_struct) -> Option<&'static mut Thread> {
    let thread = THREAD.get_or_create(task);
    if thread.is_none() {
        discard::<PROBE, NO_STATE>(cpu);
    }
    thread
}

#[inline(always)]
fn lifecycle(kind: u32, task: *const task_struct, parent_tgid: u32, target: u32) -> Lifecycle {
    Lifecycle { kind, target, tgid: tgid(task), parent_tgid, ns: now(), comm: comm(task) }
}

#[btf_tracepoint(function = "sched_process_fork")]
pub fn task_fork(ctx: BtfTracePointContext) -> i32 {
    run::<{ hook("task_fork") }>(|cpu| fork(cpu, ctx.arg(0), ctx.arg(1)))
}

#[inline(always)]
fn fork(cpu: &mut Cpu, parent: *const task_struct, child: *const task_struct) {
    // A new thread is found through its leader.
    if pid(child) != tgid(child) {
        return;
    }
    let Some(process) = PROCESS.get(leader(parent)) else {
        return;
    };
    if process.alone != 0 {
        return;
    }
    let target = process.target;
    if let Some(process) = PROCESS.get_or_create(child) {
        process.target = target;
        send(cpu, lifecycle(KIND_FORK, child, tgid(parent), target));
    }
}

#[btf_tracepoint(function = "sched_process_exec")]
pub fn task_exec(ctx: BtfTracePointContext) -> i32 {
    run::<{ hook("task_exec") }>(|cpu| exec(cpu, ctx.arg(0)))
}

/// `task` is the group leader here: exec ends all other threads first.
#[inline(always)]
fn exec(cpu: &mut Cpu, task: *const task_struct) {
    let target = target_named(&comm(task));
    let was = PROCESS.get(task).is_some();
    if target != NO_TARGET {
        if let Some(process) = PROCESS.get_or_create(task) {
            process.target = target;
            process.alone = 0;
        }
    } else if was {
        PROCESS.delete(task);
    }
    if was || target != NO_TARGET {
        forget();
    }
    if was || target != NO_TARGET || read(&REPORT_EXEC) != 0 {
        send(cpu, lifecycle(KIND_EXEC, task, 0, target));
    }
}

#[inline(always)]
fn target_named(comm: &[u8; 16]) -> u32 {
    let mut target = 0;
    while target < MAX_TARGETS as u32 {
        if let Some(rule) = COMMS.get(target)
            && rule.comm[0] != 0
            && u128::from_ne_bytes(rule.comm) == u128::from_ne_bytes(*comm)
        {
            return target;
        }
        target += 1;
    }
    NO_TARGET
}

#[btf_tracepoint(function = "sched_process_exit")]
pub fn task_exit(ctx: BtfTracePointContext) -> i32 {
    run::<{ hook("task_exit") }>(|cpu| exit(cpu, ctx.arg(0)))
}

#[inline(always)]
fn exit(cpu: &mut Cpu, task: *const task_struct) {
    if pid(task) == tgid(task)
        && let Some(process) = PROCESS.get(task)
    {
        let target = process.target;
        send(cpu, lifecycle(KIND_EXIT, task, 0, target));
    }
}
