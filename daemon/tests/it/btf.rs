//! Offsets come out right from real kernels' BTF, and no input makes the reader panic or run on.

use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;

use proptest::prelude::*;
use tickscope::btf::{Btf, BtfError, MAX_BYTES};
use tickscope::config::Config;
use tickscope::loader::plan;
use tickscope::offset::{Facts, KERNEL_BTF, Offset};
use tickscope_common::catalog::PROBES;
use tickscope_core::ProbeState;

/// Ubuntu's 5.15.0-97-generic, a real kernel.
fn old_kernel() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let packed = include_bytes!("../data/5.15.0-97-generic.btf.xz");
        let mut bytes = Vec::new();
        xz2::read::XzDecoder::new(&packed[..]).read_to_end(&mut bytes).expect("the file is whole");
        bytes
    })
}

#[test]
fn offsets_of_5_15_are_those_that_pahole_prints() {
    let facts = Facts::new(&Btf::parse(old_kernel()).unwrap());
    // `pahole -C task_struct -F btf 5.15.0-97-generic.btf`
    for (path, bytes, mask) in [
        ("task_struct.pid", 2496, 0),
        ("task_struct.tgid", 2500, 0),
        ("task_struct.comm", 3000, 0),
        ("task_struct.group_leader", 2560, 0),
        ("task_struct.__state", 24, 0),
        ("task_struct.in_iowait", 2424, 1 << 2),
        ("pt_regs.orig_ax", 120, 0),
    ] {
        assert_eq!(facts.field(path), Ok(Offset { bytes, mask }), "{path}");
    }
    assert_eq!(facts.tracepoint("sched_switch"), Ok(3));
    assert!(!facts.switch_has_state(), "the state became an argument in 6.1");
    assert_eq!(facts.tracepoint("sched_waking"), Ok(1));
}

#[test]
fn every_probe_can_run_on_5_15() {
    let facts = Facts::new(&Btf::parse(old_kernel()).unwrap());
    let mut config = Config::default();
    config.probes.enable_all();
    for (probe, state) in PROBES.iter().zip(plan(&config, &facts)) {
        assert_eq!(state.state, ProbeState::Healthy, "{}: {}", probe.name, state.reason);
    }
    assert_eq!(facts.missing_identity(), None);
}

#[test]
fn members_of_anonymous_structs_and_unions_count_as_their_parents() {
    let btf = Btf::parse(old_kernel()).unwrap();
    // `sk_buff` begins with a union of unnamed structs; `sock_common` is unions throughout.
    let bytes = |of: &str, member: &str| btf.member(of, member).unwrap().bit_offset / 8;
    assert_eq!(bytes("sk_buff", "next"), 0);
    assert_eq!(bytes("sk_buff", "dev"), 16);
    assert_eq!(bytes("sk_buff", "sk"), 24);
    assert_eq!(bytes("sock_common", "skc_daddr"), 0);
    assert_eq!(bytes("sock_common", "skc_rcv_saddr"), 4);
    assert_eq!(bytes("sock_common", "skc_dport"), 12);
    assert_eq!(bytes("sock_common", "skc_num"), 14);
    assert_eq!(bytes("sock_common", "skc_family"), 16);
}

#[test]
fn the_running_kernel_has_what_telling_targets_apart_needs() {
    if !Path::new(KERNEL_BTF).exists() {
        assert!(std::env::var_os("CI").is_none(), "{KERNEL_BTF} must exist in CI");
        eprintln!("SKIPPED: {KERNEL_BTF} does not exist");
        return;
    }
    assert_eq!(Facts::of_running_kernel().unwrap().missing_identity(), None);
}

#[test]
fn what_is_missing_is_named() {
    let btf = Btf::parse(old_kernel()).unwrap();
    let no_struct = btf.member("no_such_struct", "x").unwrap_err();
    assert_eq!(no_struct.to_string(), "the kernel has no struct no_such_struct");
    let no_member = btf.member("task_struct", "mood").unwrap_err();
    assert_eq!(no_member.to_string(), "struct task_struct has no member mood");
    let no_tracepoint = btf.tracepoint_arguments("lunch").unwrap_err();
    assert_eq!(no_tracepoint.to_string(), "the kernel has no tracepoint lunch");
}

/// BTF written by hand: types as 32-bit words, and strings.
fn written(types: &[u32], strings: &str) -> Vec<u8> {
    let len = 4 * types.len() as u32;
    let mut data = vec![0x9f, 0xeb, 1, 0];
    for word in [24, 0, len, len, strings.len() as u32].iter().chain(types) {
        data.extend_from_slice(&word.to_ne_bytes());
    }
    data.extend_from_slice(strings.as_bytes());
    data
}

const STRUCT: u32 = 4 << 24;
const TYPEDEF: u32 = 8 << 24;

#[test]
fn a_struct_inside_itself_is_followed_to_a_limit() {
    // struct s { struct s; struct s; } with unnamed members: nesting that doubles without end.
    let itself = [1, STRUCT | 2, 8, 0, 1, 0, 0, 1, 0];
    let btf = Btf::parse(&written(&itself, "\0s\0")).unwrap();
    assert_eq!(btf.member("s", "x"), Err(BtfError::NoMember("s".into(), "x".into())));
    // typedef b a; typedef a b; as a tracepoint.
    let cycle = [1, TYPEDEF, 2, 1, TYPEDEF, 1];
    let btf = Btf::parse(&written(&cycle, "\0btf_trace_t\0")).unwrap();
    assert_eq!(btf.tracepoint_arguments("t"), Err(BtfError::NoTracepoint("t".into())));
}

#[test]
fn offsets_that_overflow_are_refused() {
    // struct s { struct { int x; } at u32::MAX bits; }, x at bit 8.
    let types = [1, STRUCT | 1, 8, 0, 2, u32::MAX, 0, STRUCT | 1, 8, 3, 0, 8];
    let btf = Btf::parse(&written(&types, "\0s\0x\0")).unwrap();
    assert!(btf.member("s", "x").is_err());
}

#[test]
fn what_is_not_btf_is_an_error() {
    let parse = |data: &[u8]| Btf::parse(data).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(parse(b"").contains("shorter than its header"));
    assert!(parse(b"\x7fELF\x02\x01\x01").contains("magic 0x457f"));
    assert!(parse(&old_kernel()[..1000]).contains("a section lies outside"));
    assert!(parse(&vec![0; MAX_BYTES + 1]).contains("more than"));
    // Sections that would overflow, and a type whose members go on after the end.
    let mut huge = written(&[1, STRUCT | 0xffff, 8], "\0s\0");
    assert!(parse(&huge).contains("a type ends early"));
    huge[8..12].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert!(parse(&huge).contains("a section lies outside"));
    assert!(parse(&written(&[1, 31 << 24, 8], "\0s\0")).contains("unknown kind"));
}

/// Asks everything that the loader would.
fn ask(data: &[u8]) {
    if let Ok(btf) = Btf::parse(data) {
        let _ = Facts::new(&btf).globals();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut data = written(&[], "");
        data.truncate(4);
        data.extend(body);
        ask(&data);
    }

    #[test]
    fn no_types_make_it_panic(types in prop::collection::vec(word(), 0..60)) {
        ask(&written(&types, "\0task_struct\0pid\0btf_trace_sched_switch\0"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn a_damaged_kernel_is_an_answer_or_an_error(hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u32>()), 1..50)) {
        let mut data = old_kernel().to_vec();
        for (place, word) in hits {
            let at = place.index(data.len() - 4);
            data[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        ask(&data);
    }
}

/// Words that look like type ids, kinds with a length, and string offsets.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![
        0..8u32,
        (0..20u32, 0..6u32).prop_map(|(kind, len)| kind << 24 | len),
        Just(1),
        Just(13),
        Just(17),
        any::<u32>()
    ]
}
