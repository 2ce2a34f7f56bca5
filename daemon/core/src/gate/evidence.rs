//! Evidence: products of bets that a harmless canary wins no more than it stakes.
//!
//! Each is an e-process: its expectation under the null is at most 1 at every moment, so the
//! probability that it ever exceeds 1/alpha is at most alpha (Ville's inequality), however often it
//! is looked at. Everything is kept as logarithms.

use super::constant::{
    BETS, EPISODE_RATIOS, ERROR_BLOCK_MAX, ERROR_FACTORS, ERROR_FLOOR, ERROR_MARGIN, PASS_BLOCK_MAX,
    PASS_RATIOS, RESTART_SECONDS, RESTARTS, Z_MAX,
};

/// Logarithm of the mean of exponentials.
pub fn log_mean_exp(values: &[f64]) -> f64 {
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return max;
    }
    let sum: f64 = values.iter().map(|value| (value - max).exp()).sum();
    max + (sum / values.len() as f64).ln()
}

/// Logarithm of a weighted sum of exponentials.
pub fn log_sum_exp(weighted: &[(f64, f64)]) -> f64 {
    let max = weighted.iter().map(|(_, value)| *value).fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return max;
    }
    max + weighted.iter().map(|(weight, value)| weight * (value - max).exp()).sum::<f64>().ln()
}

/// Bounded betting on a score whose mean is at most 0 without harm: log wealth grows by
/// ln(1 + tanh(lambda z)) (Waudby-Smith & Ramdas 2024, betting with bounded outcomes).
///
/// `[0]` runs from the start; `[k]` begins 30k s later, so that an effect that begins late need not
/// first pay back what the quiet start lost. Fixed weights keep it an e-process.
#[derive(Clone, Debug)]
pub struct Betting {
    logs: [[f64; BETS.len()]; RESTARTS + 1],
}

impl Betting {
    /// No evidence either way.
    pub fn new() -> Self {
        Self { logs: [[0.0; BETS.len()]; RESTARTS + 1] }
    }

    /// One score, `since` seconds after the start; `long_run` >= 1 says by how much scores hang
    /// together.
    pub fn add(&mut self, z: f64, long_run: f64, since: f64) {
        let z = z.clamp(-Z_MAX, Z_MAX);
        for (k, logs) in self.logs.iter_mut().enumerate() {
            // A bound of time that is a sum of tenths must not depend on its rounding.
            if since + 1e-6 < k as f64 * RESTART_SECONDS {
                break;
            }
            for (log, bet) in logs.iter_mut().zip(BETS) {
                *log += (bet * z).tanh().ln_1p() / long_run;
            }
        }
    }

    /// Logarithm of the mean over bets of the martingale that began at restart `k`.
    pub fn log(&self, k: usize) -> f64 {
        log_mean_exp(&self.logs[k])
    }

    /// Half from the start, half from all restarts.
    pub fn log_total(&self) -> f64 {
        let half = 0.5 / RESTARTS as f64;
        let all = (0..=RESTARTS).map(|k| (if k == 0 { 0.5 } else { half }, self.log(k)));
        log_sum_exp(&all.collect::<Vec<_>>())
    }
}

/// Rare stalls, which do not move the mean of a block: bets that the canary has them more often
/// than an upper bound of the baseline's rate. The bound is plugged in, so this part is heuristic.
#[derive(Clone, Debug)]
pub struct Episodes {
    logs: [f64; EPISODE_RATIOS.len()],
    /// Of the baseline: episodes and the time they were counted over.
    count: f64,
    seconds: f64,
    /// Of the canary alone, and the time.
    hits: u64,
    canary_seconds: f64,
    canary_was_bad: bool,
    baseline_was_bad: bool,
}

impl Episodes {
    /// Nothing seen.
    pub fn new() -> Self {
        Self {
            logs: [0.0; EPISODE_RATIOS.len()],
            count: 0.0,
            seconds: 0.0,
            hits: 0,
            canary_seconds: 0.0,
            canary_was_bad: false,
            baseline_was_bad: false,
        }
    }

    /// A block of the baseline alone: `bad` of its instances of `seconds` each.
    pub fn history(&mut self, bad: usize, instances: usize, seconds: f64) {
        self.count += if self.baseline_was_bad { 0.0 } else { bad as f64 };
        self.baseline_was_bad = bad > 0;
        self.seconds += instances as f64 * seconds;
    }

    /// A block with both arms. `canaries`: instances of the canary.
    pub fn add(&mut self, bad: usize, canary_bad: bool, instances: usize, canaries: usize, seconds: f64) {
        if self.seconds > 0.0 {
            let bound = (self.count + 2.0 * self.count.sqrt() + 3.0) / self.seconds;
            let hit = canary_bad && bad == 0 && !self.canary_was_bad;
            self.hits += u64::from(hit);
            for (log, ratio) in self.logs.iter_mut().zip(EPISODE_RATIOS) {
                *log +=
                    f64::from(u8::from(hit)) * ratio.ln() - (ratio - 1.0) * bound * seconds * canaries as f64;
            }
        }
        self.canary_seconds += canaries as f64 * seconds;
        if !canary_bad {
            self.count += if self.baseline_was_bad { 0.0 } else { bad as f64 };
        }
        (self.canary_was_bad, self.baseline_was_bad) = (canary_bad, bad > 0);
        self.seconds += instances as f64 * seconds;
    }

    /// Logarithm of the mean over ratios.
    pub fn log(&self) -> f64 {
        log_mean_exp(&self.logs)
    }

    /// Probability that the canary has as many episodes as it has, or more, if it is like the
    /// baseline: of all episodes each falls to it by its share of the time. `processes`: how many
    /// the baseline may be, beyond those told apart.
    pub fn chance(&self, processes: f64) -> f64 {
        let share = self.canary_seconds / (self.canary_seconds + processes * self.seconds);
        binomial_tail(self.hits, self.hits + self.count as u64, share)
    }

    /// How often the canary alone was bad.
    pub fn hits(&self) -> u64 {
        self.hits
    }
}

/// Probability of `k` or more of `n`.
fn binomial_tail(k: u64, n: u64, p: f64) -> f64 {
    if k == 0 || p >= 1.0 {
        return 1.0;
    }
    // ln of n choose 0, then of each term from the one before.
    let (mut log, mut tail) = (n as f64 * (-p).ln_1p(), 0.0);
    for i in 0..=n {
        if i >= k {
            tail += log.exp();
        }
        log += ((n - i) as f64 / (i + 1) as f64 * p / (1.0 - p)).ln();
    }
    tail.min(1.0)
}

/// For a certificate: likelihood ratio of the canary's counts, given both, against the null that
/// it is at the margin or beyond. Tempered by the noise.
#[derive(Clone, Debug)]
pub struct Certificate {
    logs: [f64; PASS_RATIOS.len()],
}

impl Certificate {
    /// Nothing certified.
    pub fn new() -> Self {
        Self { logs: [0.0; PASS_RATIOS.len()] }
    }

    /// A block: `baseline` above the threshold, `canary` above threshold and margin, the canary's
    /// share `r` of the observations.
    pub fn add(&mut self, baseline: f64, canary: f64, r: f64, tau: f64) {
        for (log, ratio) in self.logs.iter_mut().zip(PASS_RATIOS) {
            *log += Self::increment(baseline, canary, r, tau, ratio);
        }
    }

    fn increment(baseline: f64, canary: f64, r: f64, tau: f64, ratio: f64) -> f64 {
        let g = 1.0 / ratio;
        let log = canary * g.ln() - (baseline + canary) * ((g - 1.0) * r).ln_1p();
        (log / tau).min(PASS_BLOCK_MAX)
    }

    /// Logarithm of the mean over ratios.
    pub fn log(&self) -> f64 {
        log_mean_exp(&self.logs)
    }
}

/// Error rates, for fail: the canary's share of the errors is too large, and its rate is more than
/// the floor. Both nulls must fall.
#[derive(Clone, Debug)]
pub struct ErrorHarm {
    ratio: [f64; ERROR_FACTORS.len()],
    absolute: [f64; ERROR_FACTORS.len()],
}

/// `(all, bad)` of one block.
pub type Errors = (f64, f64);

impl ErrorHarm {
    /// No evidence.
    pub fn new() -> Self {
        Self { ratio: [0.0; ERROR_FACTORS.len()], absolute: [0.0; ERROR_FACTORS.len()] }
    }

    /// A block with both arms.
    pub fn add(&mut self, baseline: Errors, canary: Errors) {
        for (j, factor) in ERROR_FACTORS.into_iter().enumerate() {
            self.ratio[j] += ratio(baseline, canary, 1.0 + ERROR_MARGIN, factor).min(ERROR_BLOCK_MAX);
            let absolute = canary.1 * factor.ln() - (factor - 1.0) * ERROR_FLOOR * canary.0;
            self.absolute[j] += absolute.min(ERROR_BLOCK_MAX);
        }
    }

    /// Logarithm of the evidence: the smaller of both.
    pub fn log(&self) -> f64 {
        log_mean_exp(&self.ratio).min(log_mean_exp(&self.absolute))
    }
}

/// Error rates, for a certificate: either null may fall.
#[derive(Clone, Debug)]
pub struct ErrorCertificate {
    ratio: [f64; ERROR_FACTORS.len()],
    absolute: [f64; ERROR_FACTORS.len()],
}

impl ErrorCertificate {
    /// Nothing certified.
    pub fn new() -> Self {
        Self { ratio: [0.0; ERROR_FACTORS.len()], absolute: [0.0; ERROR_FACTORS.len()] }
    }

    /// A block with both arms, against `times` the baseline's rate or `floor` of all.
    pub fn add(&mut self, baseline: Errors, canary: Errors, times: f64, floor: f64) {
        for (j, factor) in ERROR_FACTORS.into_iter().enumerate() {
            self.ratio[j] += ratio(baseline, canary, times, 1.0 / factor);
            self.absolute[j] -= canary.1 * factor.ln() - (1.0 - 1.0 / factor) * floor * canary.0;
        }
    }

    /// Logarithm of the mean of both.
    pub fn log(&self) -> f64 {
        log_sum_exp(&[(0.5, log_mean_exp(&self.ratio)), (0.5, log_mean_exp(&self.absolute))])
    }
}

/// Log likelihood ratio of the canary's share of the errors: its odds are `times` those of the
/// observations, or `factor` times that.
fn ratio(baseline: Errors, canary: Errors, times: f64, factor: f64) -> f64 {
    let odds = canary.0 / baseline.0 * times;
    let (t0, t1) = (odds / (1.0 + odds), odds * factor / (1.0 + odds * factor));
    canary.1 * (t1 / t0).ln() + baseline.1 * ((1.0 - t1) / (1.0 - t0)).ln()
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these values are exact")]
mod tests {
    use super::*;

    fn close(value: f64, wanted: f64) {
        assert!((value - wanted).abs() <= 6e-7 * wanted.abs().max(1.0), "{value}, not {wanted}");
    }

    fn after(n: usize, z: f64) -> Betting {
        let mut betting = Betting::new();
        (0..n).for_each(|_| betting.add(z, 1.0, 0.0));
        betting
    }

    #[test]
    fn increments() {
        for (z, wanted) in [
            (0.0, [0.0, 0.0, 0.0, 0.0]),
            (1.0, [0.138_792, 0.289_961, 0.509_246, 0.674_997]),
            (3.0, [0.351_993, 0.577_628, 0.684_951, 0.693_141]),
            (-3.0, [-0.548_007, -1.522_372, -4.115_049, -11.306_859]),
        ] {
            for (log, wanted) in after(1, z).logs[0].into_iter().zip(wanted) {
                close(log, wanted);
            }
            assert_eq!(after(1, z).logs[1], [0.0; 4], "the first restart begins after 30 s");
        }
    }

    #[test]
    fn evidence_after_many() {
        for (n, z, wanted) in [
            (10, 3.0, 6.364_619),
            (14, 3.0, 9.058_929),
            (20, 1.0, 12.149_797),
            (100, 0.5, 55.235_623),
            (100, -0.5, -9.167_268),
        ] {
            close(after(n, z).log(0), wanted);
        }
    }

    #[test]
    fn restarts_cost_no_more_than_half() {
        for (n, z) in [(20, 2.0), (50, -1.0), (3, 0.1)] {
            let betting = after(n, z);
            assert!(betting.log_total() >= betting.log(0) - std::f64::consts::LN_2);
        }
    }

    #[test]
    fn certificates() {
        let of = |baseline, canary| {
            let mut certificate = Certificate::new();
            certificate.add(baseline, canary, 0.2, 1.0);
            certificate.logs
        };
        let wanted = [0.186_674, 0.349_16, 0.613_962, 0.7, 0.7, 0.7, 0.381_88, -1.740_473];
        for (log, wanted) in of(40.0, 5.0).into_iter().zip(wanted) {
            close(log, wanted);
        }
        close(of(40.0, 10.0)[0], -0.009_429);
        close(of(40.0, 10.0)[7], -11.175_821);
        assert_eq!(of(0.0, 0.0), [0.0; 8]);
    }

    #[test]
    fn errors() {
        let mut harm = ErrorHarm::new();
        harm.add((4000.0, 4.0), (1000.0, 1.0));
        let ratio = [-0.156_925, -0.374_723, -0.848_712, -1.735_81, -3.423_076, -6.936_129];
        let absolute = [0.355_465, 0.593_147, 0.898_612, 1.209_438, 1.402_585, 0.501_197];
        for j in 0..6 {
            close(harm.ratio[j], ratio[j]);
            close(harm.absolute[j], absolute[j]);
        }
        let mut harm = ErrorHarm::new();
        for block in 1..=4 {
            harm.add((4000.0, 4.0), (1000.0, 10.0));
            close(harm.log(), 2.0 * f64::from(block));
        }
    }

    #[test]
    fn one_stall_after_five_quiet_minutes() {
        let mut episodes = Episodes::new();
        for _ in 0..300 {
            episodes.history(0, 1, 1.0);
        }
        for second in 0..5 {
            episodes.add(0, second == 0, 1, 1, 1.0);
        }
        let wanted = [0.643_477, 1.237_284, 1.731_752, 2.027_539, 1.925_967, 1.029_675];
        for (log, wanted) in episodes.logs.into_iter().zip(wanted) {
            close(log, wanted);
        }
        close(episodes.log(), 1.549_588);
        assert_eq!(episodes.hits(), 1);
        close(episodes.chance(1.0), 5.0 / 310.0);
        close(binomial_tail(3, 8, 0.25), 0.321_457);
        assert_eq!((binomial_tail(0, 0, 0.5), binomial_tail(2, 1, 0.5)), (1.0, 0.0));
    }

    #[test]
    fn a_stall_that_both_have_or_that_lasts_is_not_counted_again() {
        let mut episodes = Episodes::new();
        episodes.history(0, 1, 100.0);
        episodes.add(1, true, 1, 1, 1.0);
        episodes.add(0, true, 1, 1, 1.0);
        assert_eq!(episodes.hits(), 0, "shared, then the same one going on");
        episodes.add(0, false, 1, 1, 1.0);
        episodes.add(0, true, 1, 1, 1.0);
        episodes.add(0, true, 1, 1, 1.0);
        assert_eq!(episodes.hits(), 1);
    }
}
