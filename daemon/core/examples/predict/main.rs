//! How well breaches are foreseen, beside what others use, on the same seeded traces.
//!
//! `cargo run --release -p tickscope-core --example predict -- [--seed N] [--breaches N] [--days N]
//! [--kinds] [--format json]`
#![allow(clippy::print_stdout, reason = "it is a program")]

mod rival;
mod score;
mod trace;

use std::collections::BTreeMap;

use score::Score;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, or: u64| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(or)
    };
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    let (seed, breaches, days) = (number("--seed", 1), number("--breaches", 80), number("--days", 27));
    let traces = trace::breaches(seed, breaches as usize);
    let quiet = trace::quiet_days(seed, days as usize);
    let json = has("json");
    if !json {
        println!("seed {seed}, {breaches} breaches, {days} quiet days, 1 sample a second, horizon 1800 s");
        println!(
            "{:<34} {:>9} {:>10} {:>6} {:>9} {:>9} {:>8} {:>8}",
            "", "recall_60", "recall_300", "lead s", "false/day", "eta error", "coverage", "us/point"
        );
    }
    let only = number("--first", u64::MAX) as usize;
    for (name, make) in rival::CONTENDERS.iter().take(only) {
        let score = score::of(*make, traces.iter().chain(&quiet));
        if json {
            println!(
                "{{\"name\":{name:?},\"seed\":{seed},\"recall_60\":{:.4},\"recall_300\":{:.4},\"lead_s\":{},\"false_a_day\":{:.3},\"eta_error\":{:.4},\"coverage\":{},\"us_per_point\":{:.3}}}",
                score.recall(60.0),
                score.recall(300.0),
                score.lead(),
                score.false_a_day(),
                score.error(),
                score.coverage().map_or_else(|| "null".into(), |share| format!("{share:.4}")),
                score.cost_us()
            );
            continue;
        }
        println!(
            "{name:<34} {:>9.2} {:>10.2} {:>6.0} {:>9.2} {:>9.3} {:>8} {:>8.2}",
            score.recall(60.0),
            score.recall(300.0),
            score.lead(),
            score.false_a_day(),
            score.error(),
            score.coverage().map_or_else(|| "-".into(), |share| format!("{share:.2}")),
            score.cost_us()
        );
        if has("--kinds") {
            by_kind(&score);
        }
    }
}

fn by_kind(score: &Score) {
    let mut found: BTreeMap<&str, [u32; 4]> = BTreeMap::new();
    for ((kind, lead), (held, all)) in score.kinds.iter().zip(&score.leads).zip(&score.covered_each) {
        let sums = found.entry(kind).or_default();
        for (sum, add) in sums.iter_mut().zip([u32::from(*lead >= 300.0), 1, *held, *all]) {
            *sum += add;
        }
    }
    for (kind, [warned, all, held, intervals]) in found {
        println!(
            "    {kind:<30} {warned} of {all} warned of 300 s before, {held} of {intervals} intervals held"
        );
    }
    let mut false_warnings: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    for (kind, count) in &score.false_warnings {
        let of_kind = false_warnings.entry(kind).or_default();
        of_kind.0 += count;
        of_kind.1 += 1;
    }
    for (kind, (count, days)) in false_warnings {
        println!("    {kind:<30} {count} false warnings on {days} days");
    }
}
