//! The kernel as a source of measurements: reads maps and ring, keeps processes and targets
//! together.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tickscope_common::catalog::{HOOKS, PROBES};
use tickscope_common::histogram::{CELLS, SLOTS};
use tickscope_common::layout::{
    Account, Comm, Control, Cpu, KIND_EXEC, KIND_EXIT, KIND_FORK, KIND_OUTLIER, Lifecycle, MAX_PROBES,
    NO_TARGET, Outlier, Process, REASONS, Row, Work,
};
use tickscope_core::{
    Accounting, Cost, Culprit, Histogram, Lost, Measurements, Outlier as OutlierReading, ProbeReading,
    ProbeState, RowReading, TargetReading,
};
use tracing::{debug, warn};

use crate::config::{Config, OutlierAbove};
use crate::exit::Exit;
use crate::loader::{self, LoadError, Loaded, ProgramInfo};
use crate::offset::{Facts as KernelFacts, OffsetError};
use crate::sys;
use crate::target::{self, Targets};

/// Outlier records kept between two readings; the rest is counted as lost.
const OUTLIERS: usize = 4096;
/// Records taken from the ring in one go, so that a flood cannot hold the reader.
const DRAIN: usize = 65_536;
/// How often `/proc` is compared with what is known.
const RESCAN: Duration = Duration::from_secs(10);

/// Why the kernel cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The kernel does not describe itself.
    #[error("cannot learn the kernel's layout")]
    Btf(#[from] OffsetError),
    /// The programs do not load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map cannot be written.
    #[error("cannot write a kernel map")]
    Map(#[from] aya::maps::MapError),
    /// `/proc` cannot be read.
    #[error("cannot list the processes of this host")]
    Proc(#[source] io::Error),
}

impl SourceError {
    /// The exit code that it means.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Load(LoadError::NoPrivilege { .. }) => Exit::NoPrivilege,
            Self::Load(LoadError::TooMuchMemory { .. }) => Exit::Config,
            _ => Exit::Unavailable,
        }
    }
}

/// What does not change while a source runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Facts {
    /// Kernel release.
    pub kernel: String,
    /// Hash of the kernel object.
    pub object_sha256: &'static str,
    /// Kernel memory of all maps, bytes.
    pub maps_bytes: u64,
    /// Loaded programs.
    pub programs: Vec<ProgramInfo>,
    /// From the start to counting, seconds.
    pub started_in_seconds: f64,
}

/// Running probes, and what was read of them last.
pub struct Source {
    loaded: Loaded,
    targets: Targets,
    /// Whether a limit is about memory or descriptors of processes.
    asks_processes: bool,
    control: Control,
    facts: Facts,
    last: Last,
    outliers: VecDeque<OutlierReading>,
    outliers_lost: u64,
    scanned: Instant,
}

/// What the latest reading saw, to take differences from.
struct Last {
    at: Instant,
    rows: Vec<LastRow>,
    accounts: [Account; MAX_PROBES],
    work: Vec<Work>,
    lost_rate: u64,
    lost_full: u64,
    misses: u64,
    cpu_ns: u64,
}

#[derive(Clone)]
struct LastRow {
    /// Sum over CPUs, modulo 2^32 like its parts.
    counts: Box<[u32; CELLS]>,
    sum_ns: u64,
}

impl Source {
    /// Loads and attaches what the configuration asks for, and begins to count.
    ///
    /// # Errors
    /// When nothing can be measured; a single probe that cannot run is a state, not an error.
    pub fn start(config: &Config) -> Result<Self, SourceError> {
        let began = Instant::now();
        let kernel = KernelFacts::of_running_kernel()?;
        let targets = Targets::new(&config.target);
        let mut loaded = Loaded::new(config, &kernel, targets.by_name_alone())?;

        let mut control = Control { active: 0, epoch: 1, outlier_above_ns: [u64::MAX; MAX_PROBES] };
        for (index, state) in loaded.states.iter().enumerate() {
            if state.runs() {
                control.active |= 1 << index;
            }
            control.outlier_above_ns[index] = match config.probes.outlier_above(index) {
                OutlierAbove::Above(limit) => limit.as_nanos() as u64,
                OutlierAbove::Auto | OutlierAbove::Never => u64::MAX,
            };
        }
        loaded.maps.control.set(0, &control, 0)?;
        // Names come last: from here on a new process can be a target's, and everything counts.
        for (index, target) in config.target.iter().enumerate() {
            if let Some(comm) = target::name_rule(&target.matching) {
                loaded.maps.comms.set(index as u32, &Comm { comm }, 0)?;
            }
        }

        let facts = Facts {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            object_sha256: loader::OBJECT_SHA256,
            maps_bytes: loaded.rows.memory(loader::possible_cpus()).0,
            programs: loaded.programs().infos(),
            started_in_seconds: 0.0,
        };
        let zero = LastRow { counts: Box::new([0; CELLS]), sum_ns: 0 };
        let last = Last {
            at: Instant::now(),
            rows: vec![zero; loaded.rows.keys.len()],
            accounts: [Account::default(); MAX_PROBES],
            work: vec![Work::default(); HOOKS.len()],
            lost_rate: 0,
            lost_full: 0,
            misses: 0,
            cpu_ns: process_cpu_ns(),
        };
        let mut source = Self {
            loaded,
            targets,
            asks_processes: config.limit.iter().any(crate::config::Limit::is_of_processes),
            control,
            facts,
            last,
            outliers: VecDeque::new(),
            outliers_lost: 0,
            scanned: Instant::now(),
        };
        source.scan().map_err(SourceError::Proc)?;
        source.forget();
        source.facts.started_in_seconds = began.elapsed().as_secs_f64();
        Ok(source)
    }

    /// What does not change while it runs.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Probes whose programs run or could, most important first.
    pub fn running(&self) -> impl Iterator<Item = usize> {
        (0..PROBES.len()).filter(|probe| self.loaded.states[*probe].runs())
    }

    /// Takes what the ring holds. To be called every few milliseconds.
    pub fn drain(&mut self) {
        for _ in 0..DRAIN {
            let Some(item) = self.loaded.maps.ring.next() else { break };
            let record = Record::decode(&item);
            drop(item);
            match record {
                Some(Record::Outlier(outlier)) => self.keep(&outlier),
                Some(Record::Lifecycle(lifecycle)) => self.follow(&lifecycle),
                None => self.outliers_lost += 1,
            }
        }
    }

    /// Everything since the previous reading.
    pub fn read(&mut self) -> Measurements {
        self.drain();
        if self.scanned.elapsed() >= RESCAN
            && let Err(error) = self.scan()
        {
            warn!(%error, "cannot compare processes with targets");
        }
        let period = self.control.epoch;
        self.control.epoch += 1;
        self.write_control();

        let now = Instant::now();
        let elapsed_ns = now.duration_since(self.last.at).as_nanos() as u64;
        self.last.at = now;
        let rows = (0..self.loaded.rows.keys.len()).filter_map(|row| self.read_row(row, period)).collect();
        let (probes, lost) = self.read_counters();
        Measurements {
            elapsed_ns,
            rows,
            probes,
            targets: self.read_targets(),
            outliers: self.outliers.drain(..).collect(),
            lost,
            cost: self.read_cost(),
        }
    }

    /// Turns a running probe's recording on or off, and its programs with it when no other needs
    /// them. A probe that is not running stays as it is.
    pub fn set_active(&mut self, probe: usize, active: bool) {
        if !self.loaded.states[probe].runs() {
            return;
        }
        if active {
            self.control.active |= 1 << probe;
        } else {
            self.control.active &= !(1 << probe);
        }
        let mask = self.control.active;
        if let Err(error) = self.loaded.programs().follow(|probe| mask & 1 << probe != 0) {
            warn!(probe = PROBES[probe].name, %error, "cannot attach or detach its programs");
        }
        self.write_control();
    }

    /// From which length on an observation of a probe is sent as an outlier; `u64::MAX`: never.
    pub fn set_outlier_above(&mut self, probe: usize, ns: u64) {
        if self.control.outlier_above_ns[probe] == ns {
            return;
        }
        self.control.outlier_above_ns[probe] = ns;
        self.write_control();
    }

    fn write_control(&mut self) {
        if let Err(error) = self.loaded.maps.control.set(0, &self.control, 0) {
            warn!(%error, "cannot write the control map");
        }
    }

    /// Makes every CPU forget whose task it runs.
    fn forget(&mut self) {
        if let Err(error) = self.loaded.maps.tagged.set(0, &clock_ns(ClockId::Monotonic), 0) {
            warn!(%error, "cannot tell the programs that a process is a target's");
        }
    }

    fn keep(&mut self, record: &Outlier) {
        if self.outliers.len() >= OUTLIERS {
            self.outliers_lost += 1;
            return;
        }
        let culprit = (record.culprit_comm[0] != 0)
            .then(|| Culprit { comm: name(&record.culprit_comm), tgid: record.culprit_tgid });
        self.outliers.push_back(OutlierReading {
            probe: record.probe as usize,
            target: record.target as usize,
            label: record.label as usize,
            cpu: record.cpu,
            tgid: record.tgid,
            tid: record.tid,
            comm: name(&record.comm),
            end_ns: record.end_ns,
            duration_ns: record.duration_ns,
            culprit,
        });
    }

    /// A process forked, executed or ended.
    fn follow(&mut self, record: &Lifecycle) {
        let tgid = record.tgid;
        match record.kind {
            KIND_FORK => self.targets.insert(tgid, record.target as usize),
            KIND_EXIT => self.targets.remove(tgid),
            KIND_EXEC if self.targets.by_name_alone() => {
                if record.target == NO_TARGET {
                    self.targets.remove(tgid);
                } else {
                    self.targets.insert(tgid, record.target as usize);
                }
            }
            KIND_EXEC => self.decide(tgid),
            _ => {}
        }
    }

    /// Compares all processes with the targets: at the start, and now and then, because a process
    /// can be renamed or moved to another control group without an exec.
    fn scan(&mut self) -> io::Result<()> {
        self.scanned = Instant::now();
        let all = target::all()?;
        for tgid in &all {
            if self.targets.target_of(*tgid).is_none() && self.targets.find(*tgid).is_some() {
                self.decide(*tgid);
            }
        }
        let gone: Vec<u32> =
            self.targets.processes().into_iter().filter(|tgid| !all.contains(tgid)).collect();
        for tgid in gone {
            self.targets.remove(tgid);
        }
        Ok(())
    }

    /// Asks the rules about one process and tells the kernel side.
    ///
    /// The pidfd is opened before the rules are asked, so that a pid that is reused in between is
    /// never marked: writing through the old one then fails.
    fn decide(&mut self, tgid: u32) {
        let Some(pid) = i32::try_from(tgid).ok().and_then(Pid::from_raw) else { return };
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
            return self.targets.remove(tgid);
        };
        let map = self.loaded.maps.process.fd().as_fd();
        let result = match self.targets.find(tgid) {
            Some(target) => {
                let alone = u32::from(!target::inherits(&self.targets.rules()[target].matching));
                let process = Process { target: target as u32, alone };
                sys::task_storage_set(map, pidfd.as_fd(), &process)
                    .map(|()| self.targets.insert(tgid, target))
            }
            None => sys::task_storage_clear(map, pidfd.as_fd()).map(|()| self.targets.remove(tgid)),
        };
        self.forget();
        if let Err(error) = result {
            debug!(tgid, %error, "a process ended before it was marked");
            self.targets.remove(tgid);
        }
    }

    fn read_row(&mut self, row: usize, period: u64) -> Option<RowReading> {
        let values = match self.loaded.maps.rows.get(&(row as u32), 0) {
            Ok(values) => values,
            Err(error) => {
                warn!(row, %error, "cannot read a histogram");
                return None;
            }
        };
        let mut counts = Box::new([0u32; CELLS]);
        let mut sum_ns = 0u64;
        let mut max_ns = 0;
        for Row { counts: on_cpu, sum_ns: sum_on_cpu, max } in values.iter() {
            for (count, on_cpu) in counts.iter_mut().zip(on_cpu) {
                *count = count.wrapping_add(*on_cpu);
            }
            sum_ns = sum_ns.wrapping_add(*sum_on_cpu);
            let max = max[(period & 1) as usize];
            if max.epoch == period {
                max_ns = max_ns.max(max.ns);
            }
        }
        let last = &mut self.last.rows[row];
        let cells = (0..SLOTS)
            .map(|slot| (slot as u16, u64::from(counts[slot].wrapping_sub(last.counts[slot]))))
            .filter(|(_, count)| *count > 0)
            .collect();
        let histogram = Histogram::from_cells(cells, sum_ns.wrapping_sub(last.sum_ns), max_ns);
        *last = LastRow { counts, sum_ns };
        let (probe, target, label) = self.loaded.rows.keys[row];
        Some(RowReading { probe, target, label, histogram })
    }

    fn read_counters(&mut self) -> (Vec<ProbeReading>, Vec<Lost>) {
        let mut accounts = [Account::default(); MAX_PROBES];
        let mut work = vec![Work::default(); HOOKS.len()];
        let (mut lost_rate, mut lost_full) = (0, 0);
        match self.loaded.maps.cpus.get(&0, 0) {
            Ok(values) => {
                for cpu in values.iter() {
                    add(cpu, &mut accounts, &mut work);
                    lost_rate += cpu.lost_rate;
                    lost_full += cpu.lost_full;
                }
            }
            Err(error) => {
                warn!(%error, "cannot read the counters");
                accounts = self.last.accounts;
                work.clone_from(&self.last.work);
                (lost_rate, lost_full) = (self.last.lost_rate, self.last.lost_full);
            }
        }
        let misses = self.loaded.programs().recursion_misses();
        let lost =
            |source: &str, reason: &str, count| Lost { source: source.into(), reason: reason.into(), count };
        let losses = vec![
            lost("ring", "full", lost_full - self.last.lost_full),
            lost("ring", "rate", lost_rate - self.last.lost_rate),
            lost("ring", "reader", std::mem::take(&mut self.outliers_lost)),
            lost("program", "recursion", misses.saturating_sub(self.last.misses)),
        ];
        let probes = (0..PROBES.len()).map(|probe| self.probe_reading(probe, &accounts, &work)).collect();
        self.last.accounts = accounts;
        self.last.work = work;
        self.last.lost_rate = lost_rate;
        self.last.lost_full = lost_full;
        self.last.misses = misses;
        (probes, losses)
    }

    fn probe_reading(&self, probe: usize, accounts: &[Account], work: &[Work]) -> ProbeReading {
        let loader::State { state, reason } = &self.loaded.states[probe];
        let shed = self.loaded.states[probe].runs() && self.control.active & 1 << probe == 0;
        let (now, before) = (&accounts[probe], &self.last.accounts[probe]);
        let mut reading = ProbeReading {
            state: if shed { ProbeState::Disabled } else { *state },
            reason: if shed { "shed: over budget".into() } else { reason.clone() },
            accounting: Accounting {
                seen: now.seen - before.seen,
                filtered: now.filtered - before.filtered,
                discarded: (0..REASONS.len()).map(|r| now.discarded[r] - before.discarded[r]).collect(),
            },
            runs: 0,
            timed: 0,
            timed_ns: 0,
        };
        for (hook, (now, before)) in work.iter().zip(&self.last.work).enumerate() {
            if self.first_user(hook) == Some(probe) {
                reading.runs += now.runs - before.runs;
                reading.timed += now.timed - before.timed;
                reading.timed_ns += now.timed_ns - before.timed_ns;
            }
        }
        reading
    }

    /// The first running probe that needs a program; the first of all when it is everybody's.
    fn first_user(&self, hook: usize) -> Option<usize> {
        let program = HOOKS[hook].program;
        let runs = |probe: &usize| self.loaded.states[*probe].runs();
        (0..PROBES.len())
            .filter(runs)
            .find(|probe| PROBES[*probe].hooks.contains(&program))
            .or_else(|| (0..PROBES.len()).find(runs))
    }

    fn read_targets(&mut self) -> Vec<TargetReading> {
        let counts = self.targets.take_counts();
        self.targets
            .rules()
            .iter()
            .zip(counts)
            .enumerate()
            .map(|(index, (rule, counts))| TargetReading {
                name: rule.name.clone(),
                processes: self.targets.count(index),
                started: counts.started,
                exited: counts.exited,
                resident_bytes: self
                    .asks_processes
                    .then(|| self.targets.sum(index, target::resident_bytes))
                    .flatten(),
                descriptors: self
                    .asks_processes
                    .then(|| self.targets.sum(index, target::descriptors))
                    .flatten(),
            })
            .collect()
    }

    fn read_cost(&mut self) -> Cost {
        let cpu_ns = process_cpu_ns();
        let daemon_cpu_ns = cpu_ns - self.last.cpu_ns;
        self.last.cpu_ns = cpu_ns;
        Cost { daemon_cpu_ns, rss_bytes: rss_bytes(), maps_bytes: self.facts.maps_bytes }
    }
}

fn add(cpu: &Cpu, accounts: &mut [Account], work: &mut [Work]) {
    for (total, on_cpu) in accounts.iter_mut().zip(&cpu.account) {
        total.seen += on_cpu.seen;
        total.filtered += on_cpu.filtered;
        for (total, on_cpu) in total.discarded.iter_mut().zip(&on_cpu.discarded) {
            *total += on_cpu;
        }
    }
    for (total, on_cpu) in work.iter_mut().zip(&cpu.work) {
        total.runs += on_cpu.runs;
        total.timed += on_cpu.timed;
        total.timed_ns += on_cpu.timed_ns;
    }
}

/// One record of the ring.
enum Record {
    Outlier(Outlier),
    Lifecycle(Lifecycle),
}

impl Record {
    /// `None`: not a record of ours, or one of another length.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let kind = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
        match kind {
            KIND_OUTLIER => {
                let record: Outlier = bytemuck::try_pod_read_unaligned(bytes).ok()?;
                let known = (record.probe as usize) < PROBES.len()
                    && (record.label as usize) < PROBES[record.probe as usize].rows();
                known.then_some(Self::Outlier(record))
            }
            KIND_FORK | KIND_EXEC | KIND_EXIT => {
                bytemuck::try_pod_read_unaligned(bytes).ok().map(Self::Lifecycle)
            }
            _ => None,
        }
    }
}

fn name(comm: &[u8; 16]) -> String {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end]).into_owned()
}

fn process_cpu_ns() -> u64 {
    clock_ns(ClockId::ProcessCPUTime)
}

fn clock_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn rss_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split(' ').nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
