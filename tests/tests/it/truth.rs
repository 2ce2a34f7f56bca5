//! Counts are exact and times agree with somebody else's clock.

use crate::harness::{Watch, privileged};
use crate::load::{self, Load, local_timer_interrupts};

const SCHED: &[&str] = &["runqueue", "preempted", "offcpu"];

fn number(answer: &serde_json::Value, key: &str) -> u64 {
    answer[key].as_u64().expect("tickscope-load prints it")
}

/// `a` is within `share` of `b`, and within `ns` besides.
fn assert_near(a: u64, b: u64, share: f64, ns: u64, what: &str) {
    let allowed = (b as f64 * share) as u64 + ns;
    assert!(a.abs_diff(b) <= allowed, "{what}: {a} against {b}, allowed {allowed}");
}

#[test]
fn every_call_of_a_system_call_is_counted_and_timed() {
    if !privileged() {
        return;
    }
    let mut load = Load::start("sleep 500 1000");
    let mut watch = Watch::start(&load.rule(), &["syscall"]);
    let answer = load.once();
    watch.read();
    let naps = watch.histogram("syscall", "nanosleep");
    assert_eq!(naps.count(), 500);
    // The process' own clock stands just outside the call: it reads a little more, never less.
    let own = number(&answer, "sum_ns");
    assert!(naps.sum_ns <= own, "{} <= {own}", naps.sum_ns);
    assert_near(naps.sum_ns, own, 0.05, 500 * 5_000, "time in nanosleep");
    watch.assert_accounted();
}

#[test]
fn cheap_calls_in_a_loop_are_all_counted() {
    if !privileged() {
        return;
    }
    let mut load = Load::start("yield 200000");
    let mut watch = Watch::start(&load.rule(), &["syscall", "preempted"]);
    load.once();
    watch.read();
    assert_eq!(watch.histogram("syscall", "sched_yield").count(), 200_000);
    watch.assert_accounted();
}

#[test]
fn every_block_is_one_wait_on_the_run_queue() {
    if !privileged() {
        return;
    }
    let mut load = Load::start("sleep 2000 100 --cpu 1 --compete");
    let mut watch = Watch::start(&load.rule(), SCHED);
    // The workers are threads that end; what remains are the waits of those that live. So count
    // the whole process through its own accounts: each nap blocks once.
    load.once();
    watch.read();
    assert_naps(&watch, 2000);
    let waits = watch.histogram("runqueue", "");
    assert!(waits.count() >= 2000, "{}", waits.count());
    watch.assert_accounted();
}

#[test]
fn switches_are_what_the_kernel_counts_itself() {
    if !privileged() {
        return;
    }
    // Between two rests the only living thread is the main one, blocked in read.
    let mut load = Load::start("exec 50");
    let mut watch = Watch::start(&load.rule(), SCHED);
    let before = load.kernel();
    for _ in 0..3 {
        load.once();
    }
    watch.read();
    let after = load.kernel();
    // Blocked at both ends: as many ends of blocking as beginnings.
    watch.assert_waits(after.voluntary - before.voluntary);
    assert_eq!(watch.seen("preempted"), after.involuntary - before.involuntary);
    let waited = watch.histogram("runqueue", "").sum_ns + watch.histogram("preempted", "").sum_ns;
    assert_near(waited, after.waited_ns - before.waited_ns, 0.1, 3_000_000, "time on the run queue");
    watch.assert_accounted();
}

#[test]
fn forced_preemptions_are_counted_and_their_time_is_the_others() {
    if !privileged() {
        return;
    }
    let mut load = Load::start("compete 1 300");
    let mut watch = Watch::start(&load.rule(), SCHED);
    let answer = load.once();
    watch.read();
    let preempted = watch.histogram("preempted", "");
    assert!(preempted.count() >= 20, "{}", preempted.count());
    // Two threads share one CPU: each waits as long as it computes, and longer if others want it too.
    let waited = preempted.sum_ns + watch.histogram("runqueue", "").sum_ns;
    assert_near(waited, number(&answer, "off_cpu_ns"), 0.1, 50_000_000, "time without the CPU");
    watch.assert_accounted();
}

#[test]
fn yielding_is_not_being_preempted() {
    if !privileged() {
        return;
    }
    let mut load = Load::start("yield 20000");
    let mut watch = Watch::start(&load.rule(), SCHED);
    let before = load.kernel();
    load.once();
    watch.read();
    let after = load.kernel();
    assert_eq!(watch.seen("preempted"), after.involuntary - before.involuntary);
    // Whatever was a yield is left out on purpose; the kernel does not tell how many of the calls
    // found somebody else to run.
    assert!(watch.filtered("preempted") <= 20_000);
    watch.assert_accounted();
}

#[test]
fn every_page_fault_is_counted() {
    if !privileged() {
        return;
    }
    let mut load = Load::start("touch 20000");
    let mut watch = Watch::start(&load.rule(), &["page_fault"]);
    let before = load.kernel();
    load.once();
    watch.read();
    let after = load.kernel();
    assert!(after.minor - before.minor >= 20_000, "{} new pages", after.minor - before.minor);
    assert_eq!(watch.histogram("page_fault", "minor").count(), after.minor - before.minor);
    assert_eq!(watch.histogram("page_fault", "major").count(), after.major - before.major);
    watch.assert_accounted();
}

#[test]
fn timer_interrupts_of_a_computing_thread_are_counted() {
    if !privileged() {
        return;
    }
    let mut load = Load::start("spin 1 1000");
    let mut watch = Watch::start(&load.rule(), &["interrupt"]);
    let before = local_timer_interrupts(1);
    let answer = load.once();
    watch.read();
    let interrupts = local_timer_interrupts(1) - before;
    let hard = watch.histogram("interrupt", "hardirq");
    // Those that came while the thread had the CPU, as far as they are spread evenly; and other
    // vectors besides the timer.
    let elapsed = number(&answer, "elapsed_ns");
    let on_cpu = elapsed - number(&answer, "off_cpu_ns");
    let mine = (u128::from(interrupts) * u128::from(on_cpu) / u128::from(elapsed)) as u64;
    assert!(hard.count() * 2 + 60 >= mine, "{} of {mine}, {interrupts} in all", hard.count());
    assert!(hard.sum_ns < 500_000_000, "less than half of the time: {}", hard.sum_ns);
    watch.assert_accounted();
}

#[test]
fn thirty_thousand_short_lived_threads_leave_nothing_unaccounted() {
    if !privileged() {
        return;
    }
    let mut load = Load::start("threads 30000");
    let mut watch = Watch::start(&load.rule(), SCHED);
    load.once();
    watch.read();
    assert!(watch.seen("runqueue") >= 30_000, "{}", watch.seen("runqueue"));
    assert_eq!(watch.discarded("runqueue", "no_state"), 0);
    assert_eq!(watch.latest.targets[0].processes, 1);
    watch.assert_accounted();
}

#[test]
fn attached_in_mid_flow_nothing_is_shifted() {
    if !privileged() {
        return;
    }
    let mut load = Load::start("sleep 3000 1000");
    let pid = load.pid();
    let worker = std::thread::spawn(move || {
        let answer = load.once();
        (load, answer)
    });
    std::thread::sleep(std::time::Duration::from_millis(300));
    let mut watch = Watch::start(&format!("pid = {pid}"), &["syscall", "runqueue", "offcpu"]);
    let _ended = worker.join().expect("the load ends");
    watch.read();
    let naps = watch.histogram("syscall", "nanosleep");
    assert!((1000..3000).contains(&naps.count()), "{}", naps.count());
    // The first return of each thread inside a call has no start; no nap is mixed with another.
    assert!(watch.discarded("syscall", "no_start") <= 3);
    assert!(naps.max_ns < 100_000_000, "{}", naps.max_ns);
    let blocked = watch.histogram("offcpu", "sleep");
    assert!(blocked.count().abs_diff(naps.count()) <= 2 + naps.count() / 100);
    watch.assert_accounted();
}

#[test]
fn processes_that_start_later_are_found_by_name_and_followed_through_exec() {
    if !privileged() {
        return;
    }
    let mut watch = Watch::start("comm = \"tickscope-load\"", SCHED);
    assert_eq!(watch.latest.targets[0].processes, 0, "a target that matches nothing is a state");
    let mut load = Load::start("exec 20");
    load.once();
    watch.read();
    let target = &watch.latest.targets[0];
    // The load itself, and 20 children that inherited it until they became `true`.
    assert_eq!((target.processes, target.started, target.exited), (1, 21, 20));
    drop(load);
    watch.read();
    assert_eq!(watch.latest.targets[0].processes, 0);
    // Again: a restart of the target needs no restart of the daemon.
    let before = watch.seen("runqueue");
    let mut load = Load::start("sleep 100 1000");
    load.once();
    watch.read();
    assert_eq!(watch.latest.targets[0].processes, 1);
    assert!(watch.seen("runqueue") >= before + 100);
    watch.assert_accounted();
}

#[test]
fn a_process_can_be_found_by_its_executable() {
    if !privileged() {
        return;
    }
    let exe = load::program();
    let mut watch = Watch::start(&format!("exe = \"{exe}\""), SCHED);
    let mut load = Load::start("sleep 1000 1000");
    // The kernel asks the daemon about an exec; it answers when it next reads the ring.
    watch.source().drain();
    load.once();
    watch.read();
    assert_eq!(watch.latest.targets[0].processes, 1);
    assert_naps(&watch, 1000);
    watch.assert_accounted();
}

/// A control group that is removed when dropped.
struct Group {
    mount: std::path::PathBuf,
    path: String,
}

impl Group {
    /// One in every kind of hierarchy that this host has mounted: version 2, and one of version 1.
    fn of_each_version() -> Vec<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
        let mount = |kind: &str, option: &str| {
            mounts.lines().find_map(|line| {
                let mut fields = line.split(' ').skip(1);
                let (at, of, options) = (fields.next()?, fields.next()?, fields.next()?);
                (of == kind && options.split(',').any(|found| found == option)).then(|| at.into())
            })
        };
        let groups: Vec<Self> =
            [mount("cgroup2", "rw"), mount("cgroup", "pids")].into_iter().flatten().map(Self::new).collect();
        assert!(!groups.is_empty(), "no control groups are mounted");
        groups
    }

    fn new(mount: std::path::PathBuf) -> Self {
        let path = format!("/tickscope-test-{}/engine.service", std::process::id());
        let group = Self { mount, path };
        std::fs::create_dir_all(group.directory()).expect("root can make control groups");
        group
    }

    fn directory(&self) -> std::path::PathBuf {
        self.mount.join(self.path.trim_start_matches('/'))
    }

    fn take(&self, pid: u32) {
        std::fs::write(self.directory().join("cgroup.procs"), pid.to_string()).expect("it can be moved");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let directory = self.directory();
        // A process that was killed leaves its group a moment later.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while std::fs::remove_dir(&directory).is_err() && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        drop(directory.parent().map(std::fs::remove_dir));
    }
}

#[test]
fn a_process_can_be_found_by_its_control_group_of_either_version_and_by_its_unit() {
    if !privileged() {
        return;
    }
    for group in Group::of_each_version() {
        let above = group.path.trim_end_matches("/engine.service");
        for rule in [format!("cgroup = \"{above}\""), "unit = \"engine.service\"".to_owned()] {
            let mut load = Load::start("exec 20");
            group.take(load.pid());
            let mut watch = Watch::start(&rule, SCHED);
            assert_eq!(watch.latest.targets[0].processes, 1, "{rule} in {}", group.mount.display());
            load.once();
            watch.read();
            // Its children are in the group too, before and after they exec.
            let target = &watch.latest.targets[0];
            assert_eq!((target.processes, target.started, target.exited), (1, 20, 20), "{rule}");
            assert!(watch.seen("runqueue") >= 20, "{rule}");
            watch.assert_accounted();
        }
    }
}

/// So many naps blocked. A timer that fires before the thread has left its CPU (a stall of the
/// virtual machine is enough) means that this nap did not; that is rare.
fn assert_naps(watch: &Watch, naps: u64) {
    let blocked = watch.histogram("offcpu", "sleep").count() + watch.discarded("offcpu", "negative");
    assert!((naps - naps / 100..=naps).contains(&blocked), "{blocked} of {naps}");
}

#[test]
fn others_are_not_counted() {
    if !privileged() {
        return;
    }
    let mut load = Load::start("sleep 200 1000");
    let mut watch = Watch::start("comm = \"nobody-has-this\"", &["runqueue", "syscall", "page_fault"]);
    load.once();
    watch.read();
    for probe in ["runqueue", "syscall", "page_fault"] {
        assert_eq!(watch.seen(probe), 0, "{probe}");
    }
    assert!(watch.latest.probes[0].runs > 0, "the programs did run");
}

#[test]
fn two_at_once_count_the_same() {
    if !privileged() {
        return;
    }
    let mut load = Load::start("sleep 500 1000");
    let mut one = Watch::start(&load.rule(), &["syscall", "runqueue"]);
    let mut other = Watch::beside(&load.rule(), &["syscall", "runqueue"]);
    load.once();
    one.read();
    other.read();
    for watch in [&one, &other] {
        assert_eq!(watch.histogram("syscall", "nanosleep").count(), 500);
        watch.assert_accounted();
    }
}

#[test]
fn a_probe_that_is_shed_counts_what_it_leaves_out_and_comes_back() {
    if !privileged() {
        return;
    }
    let mut load = Load::start("sleep 200 1000");
    let mut watch = Watch::start(&load.rule(), &["runqueue", "syscall"]);
    let syscall = tickscope_common::catalog::SYSCALL;
    watch.source().set_active(syscall, false);
    load.once();
    watch.read();
    assert_eq!(watch.histogram("syscall", "").count(), 0);
    assert_eq!(watch.latest.probes[syscall].state, tickscope_core::ProbeState::Disabled);
    assert!(watch.seen("runqueue") >= 200, "the other one goes on");
    watch.source().set_active(syscall, true);
    load.once();
    watch.read();
    assert_eq!(watch.histogram("syscall", "nanosleep").count(), 200);
    watch.assert_accounted();
}

#[test]
fn outliers_name_thread_and_culprit() {
    if !privileged() {
        return;
    }
    let mut load = Load::start("compete 1 300");
    let mut watch = Watch::start(&load.rule(), SCHED);
    watch.source().set_outlier_above(tickscope_common::catalog::PREEMPTED, 100_000);
    load.once();
    watch.read();
    let mine = load.pid();
    let outliers = &watch.latest.outliers;
    assert!(!outliers.is_empty());
    for outlier in outliers {
        assert!(outlier.duration_ns > 100_000);
        assert_eq!(outlier.tgid, mine);
    }
    // The two threads keep the CPU from each other, however many others want it too.
    let culprits: Vec<_> = outliers.iter().map(|outlier| outlier.culprit.as_ref()).collect();
    assert!(culprits.iter().all(|culprit| culprit.is_some_and(|culprit| !culprit.comm.is_empty())));
    assert!(culprits.iter().flatten().any(|culprit| culprit.tgid == mine));
}
