//! The gate in seeded worlds, a few runs each: what `examples/gate.rs` measures with many, held to
//! what cannot be luck. Seeds are fixed, so a run is the same everywhere.

mod world;

use tickscope_core::gate::Verdict;
use world::{HOST, Harm, IID, NASTY, Noise, Outcome, World};

const SEEDS: u64 = 6;

/// Blocks of a second and a minute of history, as in a replay file.
fn outcomes(noise: Noise, harm: Harm, labelled: bool) -> Vec<Outcome> {
    let world = World {
        block: 1.0,
        history: 100.0,
        labelled,
        hosts: if labelled { 4 } else { 1 },
        ..World::new(noise, harm, 1000.0)
    };
    (0..SEEDS).map(|seed| world.run(seed)).collect()
}

fn verdicts(outcomes: &[Outcome]) -> String {
    let of = |(seed, outcome): (usize, &Outcome)| {
        format!(
            "seed {seed}: {} after {} s, {}\n",
            outcome.report.verdict.name(),
            outcome.after,
            outcome.report.reason
        )
    };
    outcomes.iter().enumerate().map(of).collect()
}

#[test]
fn a_harmless_canary_is_never_rolled_back_and_mostly_promoted() {
    for labelled in [true, false] {
        for noise in [IID, HOST, NASTY] {
            let outcomes = outcomes(noise, Harm::None, labelled);
            assert!(!outcomes.iter().any(Outcome::failed), "{} {}", noise.name, verdicts(&outcomes));
            let passed = outcomes.iter().filter(|outcome| outcome.passed()).count() as u64;
            let wanted = if noise.name == "nasty" { 0 } else { SEEDS - 1 };
            assert!(passed >= wanted, "{} {}", noise.name, verdicts(&outcomes));
        }
    }
}

#[test]
fn harm_is_found_and_never_promoted() {
    for labelled in [true, false] {
        for harm in [Harm::Scale(0.25), Harm::Tail(0.25), Harm::Far(2.0), Harm::Errors(0.01)] {
            let outcomes = outcomes(HOST, harm, labelled);
            assert!(!outcomes.iter().any(Outcome::passed), "{harm:?} {}", verdicts(&outcomes));
            let failed = outcomes.iter().filter(|outcome| outcome.failed()).count() as u64;
            assert!(failed >= SEEDS - 1, "{harm:?} {}", verdicts(&outcomes));
        }
    }
}

#[test]
fn what_stalls_or_begins_late_is_not_promoted() {
    for labelled in [true, false] {
        for harm in [Harm::Stalls(20.0), Harm::LateTail(0.25, 150.0)] {
            let outcomes = outcomes(HOST, harm, labelled);
            assert!(!outcomes.iter().any(Outcome::passed), "{harm:?} {}", verdicts(&outcomes));
        }
    }
}

#[test]
fn a_sentence_says_what_decided() {
    let outcome = &outcomes(IID, Harm::Scale(0.25), true)[0];
    assert_eq!(outcome.report.verdict, Verdict::Fail);
    let reason = &outcome.report.reason;
    assert!(
        reason.starts_with("latency p") && reason.contains("tolerated") && reason.contains("µs"),
        "{reason}"
    );
}
