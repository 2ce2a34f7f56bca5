//! The operating characteristics that are promised, on the benchmark's traces: a short version of
//! `examples/predict`, the same for everybody because its seed is fixed.

#[path = "../examples/predict/rival.rs"]
mod rival;
#[path = "../examples/predict/score.rs"]
mod score;
#[path = "../examples/predict/trace.rs"]
mod trace;

use score::Score;

const SEED: u64 = 1;

fn scores() -> Vec<(&'static str, Score)> {
    let (breaches, quiet) = (trace::breaches(SEED, 40), trace::quiet_days(SEED, 10));
    // Two recent windows of predict_linear are enough of a rival here.
    let contenders = rival::CONTENDERS.iter().take(5);
    contenders.map(|(name, make)| (*name, score::of(*make, breaches.iter().chain(&quiet)))).collect()
}

#[test]
fn breaches_are_foreseen_and_quiet_days_are_quiet() {
    let scores = scores();
    let [(_, plain), (_, ours), _, rivals @ ..] = &scores[..] else { panic!("contenders are missing") };
    let said = |score: &Score| {
        format!(
            "seed {SEED}: recall_60 {:.2}, recall_300 {:.2}, lead {:.0} s, {:.2} false a day, eta error {:.2}, coverage {:?}",
            score.recall(60.0),
            score.recall(300.0),
            score.lead(),
            score.false_a_day(),
            score.error(),
            score.coverage()
        )
    };
    let text = said(ours);
    assert!(ours.recall(60.0) >= 0.95 && ours.recall(300.0) >= 0.9, "{text}");
    assert!(ours.lead() >= 500.0, "{text}");
    assert!(ours.false_a_day() <= 0.5, "{text}");
    assert!(ours.error() <= 0.2, "{text}");
    let coverage = ours.coverage().unwrap_or(0.0);
    assert!((0.7..=0.88).contains(&coverage), "{text}");
    // About 1 us where it is optimised and alone.
    assert!(ours.cost_us() < 25.0, "{} us a point", ours.cost_us());
    assert!(plain.coverage().unwrap_or(0.0) < coverage, "the record widens: {}", said(plain));
    for (name, rival) in rivals {
        assert!(rival.recall(300.0) <= ours.recall(300.0), "{name}: {}", said(rival));
        assert!(rival.false_a_day() > 2.0 * ours.false_a_day(), "{name}: {}", said(rival));
    }
}

#[test]
fn traces_are_what_they_say() {
    for trace in trace::breaches(SEED, 16) {
        assert!(trace.breach().is_some_and(|at| at > 1200), "{}: {:?}", trace.kind, trace.breach());
    }
    for trace in trace::quiet_days(SEED, 10) {
        assert_eq!(trace.breach(), None, "{}", trace.kind);
    }
}
