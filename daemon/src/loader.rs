//! From the catalog and the configuration to running programs.
//!
//! A probe that cannot run is left out with its reason and never stops the others: what the kernel
//! lacks is known from BTF before anything is loaded, and a program that fails all the same takes
//! only its probe with it.

use std::collections::HashMap;
use std::io;

use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use aya::programs::perf_event::{
    PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent,
};
use aya::programs::raw_trace_point::RawTracePointLinkId;
use aya::programs::tp_btf::BtfTracePointLinkId;
use aya::programs::{Program, ProgramError};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader};
use tickscope_common::catalog::{Attach, HOOKS, Hook, IDENTITY_HOOKS, PROBES, Software};
use tickscope_common::layout::{Comm, Control, Cpu, MAX_TARGETS, Row};
use tickscope_core::ProbeState;

use crate::config::Config;
use crate::offset::Facts;

/// The kernel object, built by `build.rs`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("TICKSCOPE_OBJECT"));
/// Its hash, to tell in logs and status which object ran.
pub const OBJECT_SHA256: &str = env!("TICKSCOPE_OBJECT_SHA256");

/// Bytes of the ring, as `ebpf/probes/src/map.rs` declares it.
const RING_BYTES: u64 = 256 * 1024;

/// Why nothing could be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel says no to this user.
    #[error("loading the kernel programs needs CAP_BPF and CAP_PERFMON: {facts}")]
    NoPrivilege {
        /// Capabilities and settings that decide it.
        facts: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The histograms would not fit into the budget.
    #[error(
        "the histograms need {need} bytes of kernel memory ({arithmetic}), and budget.memory allows {budget}: \
         watch fewer targets, turn probes off, or raise the budget"
    )]
    TooMuchMemory {
        /// Needed, bytes.
        need: u64,
        /// Allowed, bytes.
        budget: u64,
        /// How the need comes about.
        arithmetic: String,
    },
    /// The programs that tell targets apart cannot run, and so nothing can.
    #[error("this kernel cannot tell targets apart: {0}")]
    NoIdentity(String),
    /// Something else in the kernel or the object.
    #[error("cannot load the kernel programs")]
    Kernel(#[from] EbpfError),
    /// A map is not what it should be.
    #[error("cannot open a kernel map")]
    Map(#[from] aya::maps::MapError),
}

/// State of one probe, and why.
#[derive(Clone, Debug)]
pub struct State {
    /// Whether it measures.
    pub state: ProbeState,
    /// Why not, or what is missing.
    pub reason: String,
}

impl State {
    fn new(state: ProbeState, reason: impl Into<String>) -> Self {
        Self { state, reason: reason.into() }
    }

    /// Whether its programs are to run.
    pub fn runs(&self) -> bool {
        matches!(self.state, ProbeState::Healthy | ProbeState::Degraded)
    }
}

/// Which histograms there are: rows of one probe lie together, target by target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// `first[p]`: row of probe `p`, target 0, label 0.
    pub first: [u32; PROBES.len()],
    /// `keys[r]`: probe, target and label of row `r`.
    pub keys: Vec<(usize, usize, usize)>,
}

impl Rows {
    /// Rows for the probes that run, for so many targets.
    pub fn plan(runs: impl Fn(usize) -> bool, targets: usize) -> Self {
        let mut rows = Self { first: [0; PROBES.len()], keys: Vec::new() };
        for (probe, entry) in PROBES.iter().enumerate().filter(|(probe, _)| runs(*probe)) {
            rows.first[probe] = rows.keys.len() as u32;
            for target in 0..targets {
                rows.keys.extend((0..entry.rows()).map(|label| (probe, target, label)));
            }
        }
        rows
    }

    /// Kernel memory of all maps, and how it comes about.
    pub fn memory(&self, cpus: usize) -> (u64, String) {
        let rows = self.keys.len().max(1);
        let per_cpu = (rows * size_of::<Row>() + size_of::<Cpu>()) as u64;
        let fixed = RING_BYTES + (size_of::<Control>() + MAX_TARGETS * size_of::<Comm>()) as u64;
        let text = format!(
            "{rows} rows x {} + {} bytes, on {cpus} possible CPUs, + {fixed}",
            size_of::<Row>(),
            size_of::<Cpu>()
        );
        (per_cpu * cpus as u64 + fixed, text)
    }
}

/// What each probe can do here, before anything is loaded.
pub fn plan(config: &Config, facts: &Facts) -> Vec<State> {
    PROBES
        .iter()
        .enumerate()
        .map(|(index, probe)| {
            if !config.probes.enabled(index) {
                return State::new(ProbeState::Disabled, "turned off by the configuration");
            }
            if let Some(reason) = probe.fields.iter().find_map(|path| facts.missing_field(path)) {
                return State::new(ProbeState::Unsupported, reason);
            }
            let mut lacking = Vec::new();
            for program in probe.hooks {
                match &hook(program).1.attach {
                    Attach::Btf(name) => {
                        if let Some(reason) = facts.missing_tracepoint(name) {
                            return State::new(ProbeState::Unsupported, reason);
                        }
                    }
                    Attach::Raw(names) => {
                        let gone: Vec<_> =
                            names.iter().filter(|name| facts.missing_tracepoint(name).is_some()).collect();
                        if gone.len() == names.len() {
                            let reason = format!("the kernel has none of {}", names.join(", "));
                            return State::new(ProbeState::Unsupported, reason);
                        }
                        lacking.extend(gone);
                    }
                    Attach::Software(_) => {}
                }
            }
            if lacking.is_empty() {
                State::new(ProbeState::Healthy, "")
            } else {
                let names: Vec<&str> = lacking.into_iter().copied().collect();
                State::new(ProbeState::Degraded, format!("the kernel lacks {}", names.join(", ")))
            }
        })
        .collect()
}

fn hook(program: &str) -> (usize, &'static Hook) {
    HOOKS
        .iter()
        .enumerate()
        .find(|(_, hook)| hook.program == program)
        .expect("the catalog's test resolves every program")
}

/// Running programs and their maps.
pub struct Loaded {
    programs: Programs,
    /// What each probe does.
    pub states: Vec<State>,
    /// Which histograms there are.
    pub rows: Rows,
    /// The maps.
    pub maps: Maps,
}

/// The maps of one object.
pub struct Maps {
    /// Histograms.
    pub rows: PerCpuArray<MapData, Row>,
    /// Counters of every CPU.
    pub cpus: PerCpuArray<MapData, Cpu>,
    /// What the daemon tells the programs.
    pub control: Array<MapData, Control>,
    /// Names that make a process a target.
    pub comms: Array<MapData, Comm>,
    /// When a process last became or ceased to be a target's.
    pub tagged: Array<MapData, u64>,
    /// Outliers and lifecycle.
    pub ring: RingBuf<MapData>,
    /// Processes of targets.
    pub process: MapData,
}

impl Loaded {
    /// Loads and attaches everything that `states` says can run; what fails becomes `Failed` there.
    ///
    /// # Errors
    /// When nothing can be measured at all.
    pub fn new(config: &Config, facts: &Facts, by_name_alone: bool) -> Result<Self, LoadError> {
        if let Some(reason) = facts.missing_identity() {
            return Err(LoadError::NoIdentity(reason));
        }
        let btf = Btf::from_sys_fs().map_err(|error| LoadError::NoIdentity(error.to_string()))?;
        let mut states = plan(config, facts);
        // Each round either succeeds or takes one probe out, so this ends.
        loop {
            let rows = Rows::plan(|probe| states[probe].runs(), config.target.len());
            check_memory(&rows, config.budget.memory_bytes)?;
            let mut ebpf = create(&btf, facts, &states, &rows, by_name_alone)?;
            match Programs::start(&mut ebpf, &btf, &states) {
                Ok(links) => {
                    let maps = Maps::take(&mut ebpf)?;
                    let programs = Programs { ebpf, links };
                    // The kernel's BTF takes 15 MB while it is parsed, and nobody needs it again.
                    drop(btf);
                    crate::sys::give_back_memory();
                    return Ok(Self { programs, states, rows, maps });
                }
                Err(failure) => blame(failure, &mut states)?,
            }
        }
    }

    /// The programs.
    pub fn programs(&mut self) -> &mut Programs {
        &mut self.programs
    }
}

/// A program that could not be loaded or attached.
struct Failure {
    program: &'static str,
    error: ProgramError,
}

/// Takes the least important probe that needs the failed program out of the next round.
///
/// # Errors
/// When the program is one that everything needs, or the user may not load programs at all.
fn blame(failure: Failure, states: &mut [State]) -> Result<(), LoadError> {
    let Failure { program, error } = failure;
    let reason = format!("{program}: {}", last_words(&error));
    let guilty = PROBES
        .iter()
        .enumerate()
        .rfind(|(index, probe)| states[*index].runs() && probe.hooks.contains(&program));
    match guilty {
        Some((index, _)) => {
            states[index] = State::new(ProbeState::Failed, reason);
            Ok(())
        }
        None => Err(LoadError::NoIdentity(reason)),
    }
}

/// The kernel's verdict without the pages of verifier log before it.
fn last_words(error: &ProgramError) -> String {
    let text = error.to_string();
    let verdict = text.lines().rfind(|line| {
        !line.is_empty()
            && !line.starts_with("processed ")
            && !line.starts_with("verification time")
            && !line.starts_with("stack depth")
    });
    let first = text.lines().next().unwrap_or_default();
    let first: String = first.chars().take(160).collect();
    match verdict {
        Some(verdict) if !first.starts_with(verdict) => {
            format!("{first} … {}", verdict.chars().take(160).collect::<String>())
        }
        _ => first,
    }
}

fn check_memory(rows: &Rows, budget: u64) -> Result<(), LoadError> {
    let (need, arithmetic) = rows.memory(possible_cpus());
    if need > budget {
        return Err(LoadError::TooMuchMemory { need, budget, arithmetic });
    }
    Ok(())
}

/// CPUs that the kernel makes room for in per-CPU maps, online or not.
pub fn possible_cpus() -> usize {
    aya::util::nr_cpus().map_or(1, |cpus| cpus.get() as usize)
}

/// Creates the maps and sets the globals.
fn create(
    btf: &Btf,
    facts: &Facts,
    states: &[State],
    rows: &Rows,
    by_name_alone: bool,
) -> Result<Ebpf, LoadError> {
    let enabled =
        (0..PROBES.len()).filter(|probe| states[*probe].runs()).fold(0u32, |mask, probe| mask | 1 << probe);
    let mut globals = facts.globals();
    globals.push(("SWITCH_HAS_STATE", u32::from(facts.switch_has_state())));
    globals.push(("REPORT_EXEC", u32::from(!by_name_alone)));
    globals.push(("ENABLED", enabled));
    let mut loader = EbpfLoader::new();
    loader
        .btf(btf)
        .allow_unsupported_maps()
        .map_max_entries("ROWS", rows.keys.len().max(1) as u32)
        .override_global("FIRST_ROW", &rows.first[..], true);
    for (name, value) in &globals {
        loader.override_global(name, value, true);
    }
    loader.load(OBJECT).map_err(|error| match denied(&error) {
        Some(source) => LoadError::NoPrivilege { facts: crate::doctor::privilege_facts(), source },
        None => LoadError::Kernel(error),
    })
}

/// The operating system's refusal inside an error, if that is what it is.
fn denied(error: &EbpfError) -> Option<io::Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::PermissionDenied
        {
            return Some(io::Error::from_raw_os_error(io.raw_os_error().unwrap_or(libc::EPERM)));
        }
        cause = error.source();
    }
    None
}

impl Maps {
    fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let mut take = |name: &str| ebpf.take_map(name).expect("the object's test names every map");
        let aya::maps::Map::Unsupported(process) = take("PROCESS") else {
            unreachable!("aya has no type for task storage")
        };
        Ok(Self {
            rows: PerCpuArray::try_from(take("ROWS"))?,
            cpus: PerCpuArray::try_from(take("CPUS"))?,
            control: Array::try_from(take("CONTROL"))?,
            comms: Array::try_from(take("COMMS"))?,
            tagged: Array::try_from(take("TAGGED"))?,
            ring: RingBuf::try_from(take("RING"))?,
            process,
        })
    }
}

/// All programs of the object, and which are attached.
pub struct Programs {
    ebpf: Ebpf,
    links: HashMap<&'static str, Links>,
}

enum Links {
    Btf(BtfTracePointLinkId),
    Raw(Vec<RawTracePointLinkId>),
    Perf(Vec<PerfEventLinkId>),
}

/// One loaded program.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ProgramInfo {
    /// Name in the object.
    pub name: &'static str,
    /// Instructions that the verifier walked.
    pub verified_instructions: u32,
    /// Whether it is attached now.
    pub attached: bool,
}

impl Programs {
    fn start(ebpf: &mut Ebpf, btf: &Btf, states: &[State]) -> Result<HashMap<&'static str, Links>, Failure> {
        let wanted: Vec<_> = HOOKS.iter().filter(|hook| needed(hook, |probe| states[probe].runs())).collect();
        for hook in &wanted {
            load(ebpf, btf, hook).map_err(|error| Failure { program: hook.program, error })?;
        }
        let mut links = HashMap::new();
        for hook in &wanted {
            let link = attach(ebpf, hook).map_err(|error| Failure { program: hook.program, error })?;
            links.insert(hook.program, link);
        }
        Ok(links)
    }

    /// Attaches what `active` probes need, and detaches what none of them does. Those are among the
    /// probes that ran at the start, so every program is loaded.
    ///
    /// # Errors
    /// The first program that could not be attached or detached.
    pub fn follow(&mut self, active: impl Fn(usize) -> bool) -> Result<(), ProgramError> {
        for hook in HOOKS {
            let wanted = needed(hook, &active);
            match self.links.remove(hook.program) {
                Some(link) if !wanted => detach(&mut self.ebpf, hook, link)?,
                Some(link) => drop(self.links.insert(hook.program, link)),
                None if wanted => {
                    let link = attach(&mut self.ebpf, hook)?;
                    self.links.insert(hook.program, link);
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Every loaded program.
    pub fn infos(&self) -> Vec<ProgramInfo> {
        self.loaded_programs()
            .map(|(hook, program)| ProgramInfo {
                name: hook.program,
                verified_instructions: program
                    .info()
                    .ok()
                    .and_then(|info| info.verified_instruction_count())
                    .unwrap_or(0),
                attached: self.links.contains_key(hook.program),
            })
            .collect()
    }

    /// Runs that the kernel skipped, of all programs together.
    pub fn recursion_misses(&self) -> u64 {
        use std::os::fd::AsFd;
        self.loaded_programs()
            .filter_map(|(_, program)| program.fd().ok())
            .filter_map(|fd| crate::sys::recursion_misses(fd.as_fd()).ok())
            .sum()
    }

    fn loaded_programs(&self) -> impl Iterator<Item = (&'static Hook, &Program)> {
        HOOKS
            .iter()
            .filter_map(|hook| Some((hook, self.ebpf.program(hook.program)?)))
            .filter(|(_, program)| program.fd().is_ok())
    }
}

fn needed(hook: &Hook, active: impl Fn(usize) -> bool) -> bool {
    IDENTITY_HOOKS.contains(&hook.program)
        || PROBES
            .iter()
            .enumerate()
            .any(|(index, probe)| active(index) && probe.hooks.contains(&hook.program))
}

fn program<'a>(ebpf: &'a mut Ebpf, hook: &Hook) -> &'a mut Program {
    ebpf.program_mut(hook.program).expect("the object's test names every program")
}

fn load(ebpf: &mut Ebpf, btf: &Btf, hook: &Hook) -> Result<(), ProgramError> {
    match (program(ebpf, hook), &hook.attach) {
        (Program::BtfTracePoint(program), Attach::Btf(name)) => program.load(name, btf),
        (Program::RawTracePoint(program), Attach::Raw(_)) => program.load(),
        (Program::PerfEvent(program), Attach::Software(_)) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn attach(ebpf: &mut Ebpf, hook: &Hook) -> Result<Links, ProgramError> {
    match (program(ebpf, hook), &hook.attach) {
        (Program::BtfTracePoint(program), Attach::Btf(_)) => program.attach().map(Links::Btf),
        (Program::RawTracePoint(program), Attach::Raw(names)) => {
            // Those that the kernel lacks are named in the probe's state.
            let links: Vec<_> = names.iter().filter_map(|name| program.attach(name).ok()).collect();
            Ok(Links::Raw(links))
        }
        (Program::PerfEvent(program), Attach::Software(event)) => {
            let event = match event {
                Software::PageFaultsMinor => SoftwareEvent::PageFaultsMin,
                Software::PageFaultsMajor => SoftwareEvent::PageFaultsMaj,
            };
            let mut links = Vec::new();
            let online = aya::util::online_cpus().map_err(|(_, error)| ProgramError::IOError(error))?;
            for cpu in online {
                links.push(program.attach(
                    PerfEventConfig::Software(event),
                    PerfEventScope::AllProcessesOneCpu { cpu },
                    SamplePolicy::Period(1),
                    false,
                )?);
            }
            Ok(Links::Perf(links))
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn detach(ebpf: &mut Ebpf, hook: &Hook, links: Links) -> Result<(), ProgramError> {
    match (program(ebpf, hook), links) {
        (Program::BtfTracePoint(program), Links::Btf(link)) => program.detach(link),
        (Program::RawTracePoint(program), Links::Raw(links)) => {
            links.into_iter().try_for_each(|link| program.detach(link))
        }
        (Program::PerfEvent(program), Links::Perf(links)) => {
            links.into_iter().try_for_each(|link| program.detach(link))
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_probe_lie_together() {
        let rows = Rows::plan(|_| true, 2);
        let per_target: usize = PROBES.iter().map(tickscope_common::catalog::Probe::rows).sum();
        assert_eq!(rows.keys.len(), 2 * per_target);
        for (row, (probe, target, label)) in rows.keys.iter().enumerate() {
            let expected = rows.first[*probe] as usize + target * PROBES[*probe].rows() + label;
            assert_eq!(row, expected);
        }
    }

    #[test]
    fn memory_of_the_default_stays_within_the_promise() {
        // DESIGN 8: 4 MiB + 80 KiB for each CPU, with all probes on one target.
        let (need, arithmetic) = Rows::plan(|_| true, 1).memory(128);
        assert!(need <= 4 * 1024 * 1024 + 128 * 80 * 1024, "{need}: {arithmetic}");
    }
}
