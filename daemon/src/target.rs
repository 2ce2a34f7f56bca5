//! Which processes are whose: the rules of the configuration against `/proc`.
//!
//! The kernel side follows forks, execs and names by itself. Here is what it cannot see: processes
//! that ran before the daemon, executables, control groups, units.

use std::collections::HashMap;
use std::path::Path;
use std::{fs, io};

use crate::config::{Match, Target};

/// Processes of the configured targets.
pub struct Targets {
    rules: Vec<Target>,
    /// Process to index of its target.
    known: HashMap<u32, usize>,
    counts: Vec<Counts>,
}

/// Processes that came and went since the last reading.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    /// Began to match.
    pub started: u64,
    /// Ended, or no longer match.
    pub exited: u64,
}

impl Targets {
    /// No process known yet.
    pub fn new(rules: &[Target]) -> Self {
        Self { rules: rules.to_vec(), known: HashMap::new(), counts: vec![Counts::default(); rules.len()] }
    }

    /// The configured targets, in order.
    pub fn rules(&self) -> &[Target] {
        &self.rules
    }

    /// The first target whose rule the process fulfils. `None` also when it has just ended.
    pub fn find(&self, tgid: u32) -> Option<usize> {
        let target = self.rules.iter().position(|target| fulfils(&target.matching, tgid).unwrap_or(false))?;
        (!has_ended(tgid)).then_some(target)
    }

    /// Whether the kernel side can decide all rules at exec.
    pub fn by_name_alone(&self) -> bool {
        self.rules.iter().all(|target| name_rule(&target.matching).is_some())
    }

    /// The process is this target's now.
    pub fn insert(&mut self, tgid: u32, target: usize) {
        match self.known.insert(tgid, target) {
            Some(before) if before == target => {}
            before => {
                if let Some(before) = before {
                    self.counts[before].exited += 1;
                }
                self.counts[target].started += 1;
            }
        }
    }

    /// The process is no target's any more.
    pub fn remove(&mut self, tgid: u32) {
        if let Some(target) = self.known.remove(&tgid) {
            self.counts[target].exited += 1;
        }
    }

    /// The target of a known process.
    pub fn target_of(&self, tgid: u32) -> Option<usize> {
        self.known.get(&tgid).copied()
    }

    /// Processes that are known.
    pub fn processes(&self) -> Vec<u32> {
        self.known.keys().copied().collect()
    }

    /// A sum over the processes of a target; `None` without any, and where one cannot be read.
    pub fn sum(&self, target: usize, of: fn(u32) -> io::Result<u64>) -> Option<u64> {
        let processes = || self.known.iter().filter(|(_, known)| **known == target);
        processes().next()?;
        // One that has just ended has nothing any more.
        let value = |tgid: u32| match of(tgid) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(0),
            result => result.ok(),
        };
        processes().map(|(tgid, _)| value(*tgid)).sum()
    }

    /// How many processes a target has.
    pub fn count(&self, target: usize) -> usize {
        self.known.values().filter(|known| **known == target).count()
    }

    /// What came and went since the last call.
    pub fn take_counts(&mut self) -> Vec<Counts> {
        let fresh = vec![Counts::default(); self.counts.len()];
        std::mem::replace(&mut self.counts, fresh)
    }
}

/// The name that makes a process match, when the rule is nothing but a name.
pub fn name_rule(rule: &Match) -> Option<[u8; 16]> {
    let Match { comm: Some(comm), exe: None, pid: None, cgroup: None, unit: None } = rule else {
        return None;
    };
    let mut bytes = [0; 16];
    bytes[..comm.len()].copy_from_slice(comm.as_bytes());
    Some(bytes)
}

/// Whether a process may hand the match down to the children it forks.
pub fn inherits(rule: &Match) -> bool {
    rule.pid.is_none()
}

fn fulfils(rule: &Match, tgid: u32) -> io::Result<bool> {
    let process = Path::new("/proc").join(tgid.to_string());
    if let Some(pid) = rule.pid
        && pid != tgid
    {
        return Ok(false);
    }
    if let Some(comm) = &rule.comm {
        let found = fs::read(process.join("comm"))?;
        if found.strip_suffix(b"\n").unwrap_or(&found) != comm.as_bytes() {
            return Ok(false);
        }
    }
    if let Some(exe) = &rule.exe
        && fs::read_link(process.join("exe"))? != *exe
    {
        return Ok(false);
    }
    if rule.cgroup.is_some() || rule.unit.is_some() {
        let groups = fs::read_to_string(process.join("cgroup"))?;
        let inside = rule.cgroup.as_ref().is_none_or(|path| in_cgroup(&groups, path));
        let of_unit = rule.unit.as_ref().is_none_or(|unit| in_unit(&groups, unit));
        return Ok(inside && of_unit);
    }
    Ok(true)
}

/// Whether a process is no more than its exit code: it keeps its name until its parent asks for that.
fn has_ended(tgid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{tgid}/stat"));
    stat.map_or(true, |stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}

/// Paths in `/proc/PID/cgroup`, of every hierarchy: `0::/path` (v2), `N:controllers:/path` (v1).
fn paths(groups: &str) -> impl Iterator<Item = &str> {
    groups.lines().filter_map(|line| line.splitn(3, ':').nth(2))
}

fn in_cgroup(groups: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    paths(groups)
        .any(|path| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

fn in_unit(groups: &str, unit: &str) -> bool {
    paths(groups).any(|path| path.split('/').any(|part| part == unit))
}

/// Resident memory of a process, bytes.
///
/// # Errors
/// When it has ended.
pub fn resident_bytes(tgid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(Path::new("/proc").join(tgid.to_string()).join("statm"))?;
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let pages =
        pages.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "statm has no second number"))?;
    Ok(pages * rustix::param::page_size() as u64)
}

/// Open file descriptors of a process.
///
/// # Errors
/// When it has ended, or this process may not look.
pub fn descriptors(tgid: u32) -> io::Result<u64> {
    let path = Path::new("/proc").join(tgid.to_string()).join("fd");
    // Since Linux 6.2 the size of the directory is their number; before, it is 0.
    let size = fs::metadata(&path)?.len();
    if size > 0 { Ok(size) } else { Ok(fs::read_dir(path)?.count() as u64) }
}

/// All processes of the host.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn all() -> io::Result<Vec<u32>> {
    Ok(fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "0::/trading.slice/engine.service\n";
    const HYBRID: &str = "9:name=systemd:/trading.slice/engine.service\n4:memory:/pods/a:b\n0::/\n";

    #[test]
    fn control_groups_of_both_versions() {
        for groups in [V2, HYBRID] {
            assert!(in_cgroup(groups, "/trading.slice"));
            assert!(in_cgroup(groups, "/trading.slice/engine.service/"));
            assert!(!in_cgroup(groups, "/trading"));
            assert!(in_unit(groups, "engine.service"));
            assert!(!in_unit(groups, "engine"));
        }
        assert!(in_cgroup(HYBRID, "/pods/a:b"), "a path may hold colons");
        assert!(!in_cgroup("", "/trading.slice"));
    }

    #[test]
    fn this_process_fulfils_its_own_description() {
        let pid = std::process::id();
        let comm = fs::read_to_string("/proc/self/comm").unwrap().trim().to_owned();
        let exe = std::env::current_exe().unwrap();
        let rule = Match { comm: Some(comm), exe: Some(exe), pid: Some(pid), ..Match::default() };
        assert!(fulfils(&rule, pid).unwrap());
        assert!(!fulfils(&Match { pid: Some(1), ..rule.clone() }, pid).unwrap());
        assert!(!fulfils(&Match { comm: Some("other".into()), ..rule.clone() }, pid).unwrap());
        assert!(!fulfils(&Match { exe: Some("/bin/other".into()), ..rule.clone() }, pid).unwrap());
        assert!(fulfils(&rule, u32::MAX).is_ok_and(|fulfilled| !fulfilled));
    }

    #[test]
    fn memory_and_descriptors_of_this_process() {
        let pid = std::process::id();
        let (before, memory) = (descriptors(pid).unwrap(), resident_bytes(pid).unwrap());
        assert!(memory > 100 << 10, "{memory}");
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/proc/self/stat").unwrap()).collect();
        assert!(descriptors(pid).unwrap() >= before + 40, "other tests may close theirs");
        drop(files);
        assert!(resident_bytes(u32::MAX).is_err() && descriptors(u32::MAX).is_err());
    }

    #[test]
    fn a_process_that_has_ended_is_no_targets_though_its_parent_has_not_asked() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let matching = Match { pid: Some(pid), ..Match::default() };
        let targets = Targets::new(&[Target { name: "a".into(), matching }]);
        assert_eq!(targets.find(pid), Some(0));
        drop(child.stdin.take());
        // Waits for the end, and leaves the process to be waited for.
        let id = rustix::process::WaitId::Pid(rustix::process::Pid::from_child(&child));
        let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(id, options).unwrap().unwrap();
        assert!(Path::new("/proc").join(pid.to_string()).exists());
        assert_eq!(targets.find(pid), None);
        child.wait().unwrap();
    }

    #[test]
    fn processes_come_change_and_go() {
        let rule = |name: &str| Target {
            name: name.into(),
            matching: Match { comm: Some(name.into()), ..Match::default() },
        };
        let mut targets = Targets::new(&[rule("a"), rule("b")]);
        targets.insert(10, 0);
        targets.insert(10, 0);
        targets.insert(11, 0);
        targets.insert(11, 1);
        targets.remove(10);
        targets.remove(12);
        assert_eq!((targets.count(0), targets.count(1)), (0, 1));
        let counts = targets.take_counts();
        assert_eq!((counts[0].started, counts[0].exited), (2, 2));
        assert_eq!((counts[1].started, counts[1].exited), (1, 0));
        assert_eq!(targets.take_counts()[0].started, 0);
    }
}
