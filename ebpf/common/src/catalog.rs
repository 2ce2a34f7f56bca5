//! The catalog: every latency that tickscope measures, and every program that measures it.
//!
//! To add a probe: one entry in [`PROBES`], its programs in [`HOOKS`], one file
//! `ebpf/probes/src/<name>.rs`.

use crate::call::{CALLS, CAUSES};

/// One latency that is measured.
#[derive(Debug)]
pub struct Probe {
    /// The one name: file, configuration key, status row, and `tickscope_<name>_seconds`.
    pub name: &'static str,
    /// What is measured, from which event to which, in one sentence.
    pub measures: &'static str,
    /// What it cannot see, in one sentence.
    pub blind: &'static str,
    /// Programs it needs, by [`Hook::program`].
    pub hooks: &'static [&'static str],
    /// The one label beside `target`, if any.
    pub label: Option<Label>,
    /// Kernel fields it reads beyond [`IDENTITY_FIELDS`], by [`Field::path`].
    pub fields: &'static [&'static str],
    /// Oldest kernel it runs on.
    pub since: &'static str,
    /// Whether an empty configuration measures it.
    pub default: bool,
}

/// A label with a closed set of values.
#[derive(Debug)]
pub struct Label {
    /// Name of the label in metrics and JSON.
    pub name: &'static str,
    /// Its values; a row of the histogram map each.
    pub values: &'static [&'static str],
}

impl Probe {
    /// How many histograms one target needs.
    pub const fn rows(&self) -> usize {
        match &self.label {
            Some(label) => label.values.len(),
            None => 1,
        }
    }
}

/// Index of `runqueue` in [`PROBES`].
pub const RUNQUEUE: usize = 0;
/// Index of `preempted` in [`PROBES`].
pub const PREEMPTED: usize = 1;
/// Index of `offcpu` in [`PROBES`].
pub const OFFCPU: usize = 2;
/// Index of `interrupt` in [`PROBES`].
pub const INTERRUPT: usize = 3;
/// Index of `syscall` in [`PROBES`].
pub const SYSCALL: usize = 4;
/// Index of `page_fault` in [`PROBES`].
pub const PAGE_FAULT: usize = 5;

/// Values of the label `cause` of `interrupt`, in order.
pub const INTERRUPTS: &[&str] = &["hardirq", "softirq", "softirq_syscall"];
/// Values of the label `kind` of `page_fault`, in order.
pub const FAULTS: &[&str] = &["minor", "major"];

/// All probes, most important first: when the budget is exceeded they are shed from the end.
pub const PROBES: &[Probe] = &[
    Probe {
        name: "runqueue",
        measures: "time from being woken (sched_waking, sched_wakeup_new) to running (sched_switch)",
        blind: "a wake-up of a thread that has not yet left its CPU causes no switch and no wait",
        hooks: &["sched_waking", "sched_wakeup_new", "sched_switch"],
        label: None,
        fields: &[],
        since: "5.15",
        default: true,
    },
    Probe {
        name: "preempted",
        measures: "time from losing the CPU while runnable (sched_switch) to running again (sched_switch)",
        blind: "sched_yield is voluntary and left out",
        hooks: &["sched_switch"],
        label: None,
        fields: &["pt_regs.orig_ax"],
        since: "5.15",
        default: true,
    },
    Probe {
        name: "offcpu",
        measures: "time from blocking (sched_switch) to being woken (sched_waking), by what it blocked on",
        blind: "read and write on sockets and pipes count as other; they look alike from here",
        hooks: &["sched_waking", "sched_switch"],
        label: Some(Label { name: "cause", values: CAUSES }),
        fields: &["pt_regs.orig_ax", "task_struct.in_iowait"],
        since: "5.15",
        default: true,
    },
    Probe {
        name: "interrupt",
        measures: "CPU time that a hard interrupt or softirq took from the running thread (entry to exit)",
        blind: "NMI and SMI; interrupt vectors other than device, timer, reschedule, function call and irq work",
        hooks: &["irq_entry", "irq_exit", "softirq_entry", "softirq_exit"],
        label: Some(Label { name: "cause", values: INTERRUPTS }),
        fields: &["pt_regs.orig_ax"],
        since: "5.15",
        default: true,
    },
    Probe {
        name: "syscall",
        measures: "time from system call entry (sys_enter) to exit (sys_exit), by call",
        blind: "32-bit compatibility calls are labelled by their 64-bit number; exit never returns",
        hooks: &["sys_enter", "sys_exit"],
        label: Some(Label { name: "call", values: CALLS }),
        fields: &[],
        since: "5.15",
        default: false,
    },
    Probe {
        name: "page_fault",
        measures: "time from a page fault (page_fault_user, page_fault_kernel) to its being served (mm_account_fault)",
        blind: "faults that end in a signal or are served by get_user_pages; CPUs that come online later",
        hooks: &["page_fault_user", "page_fault_kernel", "fault_minor", "fault_major"],
        label: Some(Label { name: "kind", values: FAULTS }),
        fields: &[],
        since: "5.15",
        default: false,
    },
];

/// One kernel program and where it attaches.
#[derive(Debug)]
pub struct Hook {
    /// Name of the program in the object.
    pub program: &'static str,
    /// Its attach point.
    pub attach: Attach,
}

/// Where a program attaches.
#[derive(Debug)]
pub enum Attach {
    /// A BTF tracepoint (typed arguments).
    Btf(&'static str),
    /// One program on several raw tracepoints; those that a kernel lacks are left out and named.
    Raw(&'static [&'static str]),
    /// A perf software event (`PERF_COUNT_SW_*`), every occurrence, on every CPU.
    Software(Software),
}

/// The perf software events in use.
#[derive(Clone, Copy, Debug)]
pub enum Software {
    /// `PERF_COUNT_SW_PAGE_FAULTS_MIN`
    PageFaultsMinor,
    /// `PERF_COUNT_SW_PAGE_FAULTS_MAJ`
    PageFaultsMajor,
}

/// All programs of the object.
pub const HOOKS: &[Hook] = &[
    Hook { program: "sched_switch", attach: Attach::Btf("sched_switch") },
    Hook { program: "sched_waking", attach: Attach::Btf("sched_waking") },
    Hook { program: "sched_wakeup_new", attach: Attach::Btf("sched_wakeup_new") },
    Hook { program: "task_fork", attach: Attach::Btf("sched_process_fork") },
    Hook { program: "task_exec", attach: Attach::Btf("sched_process_exec") },
    Hook { program: "task_exit", attach: Attach::Btf("sched_process_exit") },
    Hook { program: "irq_entry", attach: Attach::Raw(IRQ_ENTRY) },
    Hook { program: "irq_exit", attach: Attach::Raw(IRQ_EXIT) },
    Hook { program: "softirq_entry", attach: Attach::Btf("softirq_entry") },
    Hook { program: "softirq_exit", attach: Attach::Btf("softirq_exit") },
    Hook { program: "sys_enter", attach: Attach::Btf("sys_enter") },
    Hook { program: "sys_exit", attach: Attach::Btf("sys_exit") },
    Hook { program: "page_fault_user", attach: Attach::Btf("page_fault_user") },
    Hook { program: "page_fault_kernel", attach: Attach::Btf("page_fault_kernel") },
    Hook { program: "fault_minor", attach: Attach::Software(Software::PageFaultsMinor) },
    Hook { program: "fault_major", attach: Attach::Software(Software::PageFaultsMajor) },
];

/// Programs that say which task belongs to which target; without them nothing is measured.
pub const IDENTITY_HOOKS: &[&str] = &["sched_switch", "task_fork", "task_exec", "task_exit"];

const IRQ_ENTRY: &[&str] = &[
    "irq_handler_entry",
    "local_timer_entry",
    "reschedule_entry",
    "call_function_entry",
    "call_function_single_entry",
    "irq_work_entry",
];
const IRQ_EXIT: &[&str] = &[
    "irq_handler_exit",
    "local_timer_exit",
    "reschedule_exit",
    "call_function_exit",
    "call_function_single_exit",
    "irq_work_exit",
];

/// A kernel field whose offset the loader resolves from BTF.
#[derive(Debug)]
pub struct Field {
    /// `struct.member`; members of anonymous structs and unions count as the outer struct's.
    pub path: &'static str,
    /// Global of the object that receives the byte offset.
    pub offset: &'static str,
    /// Global that receives the mask inside that byte, for a one-bit field.
    pub mask: Option<&'static str>,
}

/// All kernel fields that programs read.
pub const FIELDS: &[Field] = &[
    Field { path: "task_struct.pid", offset: "TASK_PID", mask: None },
    Field { path: "task_struct.tgid", offset: "TASK_TGID", mask: None },
    Field { path: "task_struct.comm", offset: "TASK_COMM", mask: None },
    Field { path: "task_struct.group_leader", offset: "TASK_GROUP_LEADER", mask: None },
    Field { path: "task_struct.__state", offset: "TASK_STATE", mask: None },
    Field { path: "task_struct.in_iowait", offset: "TASK_IN_IOWAIT", mask: Some("TASK_IN_IOWAIT_MASK") },
    Field { path: "pt_regs.orig_ax", offset: "REGS_SYSCALL", mask: None },
];

/// Fields that telling targets apart needs.
pub const IDENTITY_FIELDS: &[&str] = &[
    "task_struct.pid",
    "task_struct.tgid",
    "task_struct.comm",
    "task_struct.group_leader",
    "task_struct.__state",
];

const _: () = {
    assert!(PROBES.len() <= crate::layout::MAX_PROBES);
    assert!(HOOKS.len() <= crate::layout::MAX_HOOKS);
};

/// The catalog entry called `name`, and its index.
pub fn probe(name: &str) -> Option<(usize, &'static Probe)> {
    PROBES.iter().enumerate().find(|(_, probe)| probe.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_name_their_entries() {
        for (index, name) in [
            (RUNQUEUE, "runqueue"),
            (PREEMPTED, "preempted"),
            (OFFCPU, "offcpu"),
            (INTERRUPT, "interrupt"),
            (SYSCALL, "syscall"),
            (PAGE_FAULT, "page_fault"),
        ] {
            assert_eq!(PROBES[index].name, name);
        }
    }

    #[test]
    fn every_reference_resolves() {
        for probe in PROBES {
            for hook in probe.hooks {
                assert!(HOOKS.iter().any(|h| h.program == *hook), "{}: {hook}", probe.name);
            }
            for field in probe.fields {
                assert!(FIELDS.iter().any(|f| f.path == *field), "{}: {field}", probe.name);
            }
        }
        for path in IDENTITY_FIELDS {
            assert!(FIELDS.iter().any(|f| f.path == *path), "{path}");
        }
    }
}
