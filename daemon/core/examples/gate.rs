//! Operating characteristics of the gate in seeded worlds: how often a harmless canary is rolled
//! back, how often and how soon a harmful one is, how often a harmless one is promoted.
//!
//! `cargo run --release -p tickscope-core --example gate [RUNS] [FILTER]`; 40 runs a row by default.

#[path = "../tests/world/mod.rs"]
mod world;

use world::{HOST, Harm, IID, NASTY, World};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let runs: u64 = arguments.next().and_then(|runs| runs.parse().ok()).unwrap_or(40);
    let filter = arguments.next().unwrap_or_default();
    let harms = [
        Harm::None,
        Harm::Scale(0.25),
        Harm::Scale(0.10),
        Harm::Tail(0.25),
        Harm::Far(2.0),
        Harm::LateTail(0.25, 150.0),
        Harm::Stalls(20.0),
        Harm::Errors(0.001),
        Harm::Errors(0.01),
    ];
    println!(
        "{:<10} {:<6} {:>6} {:<22} {:>6} {:>9} {:>8} {:>9} {:>8}",
        "mode", "noise", "rate", "harm", "runs", "failed", "after", "passed", "after"
    );
    for (mode, labelled, hosts, block) in [
        ("labelled", true, 4, 0.2),
        ("one", false, 1, 0.2),
        ("replay", false, 4, 1.0),
        ("replay-1", false, 1, 1.0),
    ] {
        for noise in [IID, HOST, NASTY] {
            for rate in [100.0, 1000.0, 3000.0] {
                for harm in harms {
                    let row = format!("{mode:<10} {:<6} {rate:>6} {:<22}", noise.name, format!("{harm:?}"));
                    if !row.split_whitespace().collect::<Vec<_>>().join(" ").contains(&filter) {
                        continue;
                    }
                    let world = World { hosts, labelled, block, ..World::new(noise, harm, rate) };
                    println!("{row} {}", tabulate(&world, runs));
                }
            }
        }
    }
}

fn tabulate(world: &World, runs: u64) -> String {
    let outcomes: Vec<_> = (0..runs).map(|seed| world.run(seed)).collect();
    let of = |which: &dyn Fn(&world::Outcome) -> bool| {
        let mut times: Vec<f64> = outcomes.iter().filter(|o| which(o)).map(|o| o.after).collect();
        times.sort_by(f64::total_cmp);
        let share = 100.0 * times.len() as f64 / runs as f64;
        let median = times.get(times.len() / 2).map_or_else(|| "-".into(), |t| format!("{t:.0} s"));
        (share, median)
    };
    let (failed, failed_after) = of(&world::Outcome::failed);
    let (passed, passed_after) = of(&world::Outcome::passed);
    format!("{runs:>6} {failed:>7.1} % {failed_after:>8} {passed:>7.1} % {passed_after:>8}")
}
