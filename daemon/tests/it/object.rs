//! The kernel object and the catalog say the same.

use std::collections::BTreeSet;

use aya_obj::{Object, ProgramSection};
use tickscope::loader::OBJECT;
use tickscope_common::catalog::{Attach, FIELDS, HOOKS, PROBES};
use tickscope_common::layout::{Control, Cpu, Row};

fn object() -> Object {
    Object::parse(OBJECT).expect("the embedded object is whole")
}

#[test]
fn programs_are_those_of_the_catalog() {
    let object = object();
    let programs: BTreeSet<&str> = object.programs.keys().map(String::as_str).collect();
    let catalog: BTreeSet<&str> = HOOKS.iter().map(|hook| hook.program).collect();
    assert_eq!(programs, catalog);
}

#[test]
fn programs_are_of_the_kind_that_their_attach_point_needs() {
    let object = object();
    for hook in HOOKS {
        let section = &object.programs[hook.program].section;
        let fits = match hook.attach {
            Attach::Btf(_) => matches!(section, ProgramSection::BtfTracePoint),
            Attach::Raw(_) => matches!(section, ProgramSection::RawTracePoint),
            Attach::Software(_) => matches!(section, ProgramSection::PerfEvent),
        };
        assert!(fits, "{}: {section:?}", hook.program);
    }
}

#[test]
fn maps_have_the_records_of_the_contract() {
    let object = object();
    let names: BTreeSet<&str> =
        object.maps.keys().map(String::as_str).filter(|name| !name.starts_with('.')).collect();
    let expected = ["ROWS", "CPUS", "CONTROL", "COMMS", "TAGGED", "RING", "PROCESS", "THREAD"];
    assert_eq!(names, BTreeSet::from(expected));
    for (map, size) in
        [("ROWS", size_of::<Row>()), ("CPUS", size_of::<Cpu>()), ("CONTROL", size_of::<Control>())]
    {
        assert_eq!(object.maps[map].value_size() as usize, size, "{map}");
    }
}

#[test]
fn every_global_that_the_loader_sets_exists() {
    // Names of symbols stand in the object's string table, each with a zero before and behind it.
    let known = |name: &str| {
        let entry = [b"\0", name.as_bytes(), b"\0"].concat();
        OBJECT.windows(entry.len()).any(|window| window == entry)
    };
    for field in FIELDS {
        assert!(known(field.offset), "{}", field.offset);
        assert!(field.mask.is_none_or(known), "{:?}", field.mask);
    }
    for name in ["SWITCH_HAS_STATE", "REPORT_EXEC", "ENABLED", "FIRST_ROW"] {
        assert!(known(name), "{name}");
    }
    assert!(!known("NO_SUCH_GLOBAL"));
}

#[test]
fn every_program_serves_a_probe_or_tells_targets_apart() {
    for hook in HOOKS {
        let used = PROBES.iter().any(|probe| probe.hooks.contains(&hook.program));
        let identity = tickscope_common::catalog::IDENTITY_HOOKS.contains(&hook.program);
        assert!(used || identity, "{}", hook.program);
    }
}
