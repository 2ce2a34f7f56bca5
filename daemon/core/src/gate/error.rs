//! One error rate: from blocks of (total, bad) of both arms to evidence and a certificate.

use std::collections::VecDeque;

use super::constant::{
    ALPHA_PASS, BAND_RATE, ERROR_PASS_FLOOR, ERROR_PASS_RATIO, OPENING_BLOCKS, PASS_BLOCKS, PASS_COUNT,
    STAND_SECONDS,
};
use super::evidence::{ErrorCertificate, ErrorHarm, Errors};

/// One error rate.
pub struct Judge {
    seconds: f64,
    harm: ErrorHarm,
    certificate: ErrorCertificate,
    /// Blocks before the band is known: the certificate needs it.
    opening: Vec<(Errors, Errors)>,
    band: Option<usize>,
    blocks: u64,
    recent: VecDeque<(Errors, Errors)>,
    /// When it was certified.
    pub certified: Option<f64>,
    /// All of this step, `(total, bad)`.
    pub baseline: Errors,
    /// See `baseline`.
    pub canary: Errors,
}

impl Judge {
    /// For blocks of `seconds`.
    pub fn new(seconds: f64) -> Self {
        Self {
            seconds,
            harm: ErrorHarm::new(),
            certificate: ErrorCertificate::new(),
            opening: Vec::new(),
            band: None,
            blocks: 0,
            recent: VecDeque::new(),
            certified: None,
            baseline: (0.0, 0.0),
            canary: (0.0, 0.0),
        }
    }

    /// One block that ended at `t`, `(total, bad)` each. Says whether it had both arms.
    pub fn block(&mut self, baseline: Errors, canary: Errors, t: f64) -> bool {
        if baseline.0 <= 0.0 || canary.0 <= 0.0 {
            return false;
        }
        self.blocks += 1;
        for (sum, errors) in [(&mut self.baseline, baseline), (&mut self.canary, canary)] {
            sum.0 += errors.0;
            sum.1 += errors.1;
        }
        self.harm.add(baseline, canary);
        self.recent.push_back((baseline, canary));
        if self.recent.len() > (STAND_SECONDS / self.seconds).ceil().max(1.0) as usize {
            self.recent.pop_front();
        }
        if let Some(band) = self.band {
            self.certificate.add(baseline, canary, ERROR_PASS_RATIO[band], ERROR_PASS_FLOOR[band]);
        } else {
            self.opening.push((baseline, canary));
            self.open();
        }
        let enough = self.blocks >= PASS_BLOCKS && self.canary.0 >= PASS_COUNT as f64;
        if enough && self.certified.is_none() && self.certificate.log() >= -ALPHA_PASS.ln() {
            self.certified = Some(t);
        }
        true
    }

    fn open(&mut self) {
        if self.opening.len() < OPENING_BLOCKS {
            return;
        }
        let mut totals: Vec<f64> = self.opening.iter().map(|(_, canary)| canary.0).collect();
        totals.sort_unstable_by(f64::total_cmp);
        let rate = totals[totals.len() / 2] / self.seconds;
        let band = BAND_RATE.iter().filter(|limit| rate >= **limit).count();
        for (baseline, canary) in self.opening.drain(..) {
            self.certificate.add(baseline, canary, ERROR_PASS_RATIO[band], ERROR_PASS_FLOOR[band]);
        }
        self.band = Some(band);
    }

    /// Logarithm of the evidence of harm.
    pub fn log_evidence(&self) -> f64 {
        self.harm.log()
    }

    /// Whether the canary is within what the certificate says over the last minute, too.
    pub fn stands(&self) -> bool {
        let Some(band) = self.band else { return false };
        let mut sum = [0.0; 4];
        for (baseline, canary) in &self.recent {
            for (sum, part) in sum.iter_mut().zip([baseline.0, baseline.1, canary.0, canary.1]) {
                *sum += part;
            }
        }
        let rate = sum[3] / sum[2];
        rate <= ERROR_PASS_FLOOR[band] || rate <= ERROR_PASS_RATIO[band] * sum[1] / sum[0]
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these values are exact")]
mod tests {
    use super::*;

    #[test]
    fn an_arm_without_requests_is_missing() {
        let mut judge = Judge::new(1.0);
        assert!(!judge.block((0.0, 0.0), (100.0, 100.0), 1.0));
        assert_eq!(judge.log_evidence(), 0.0);
    }

    #[test]
    fn a_certificate_stands_only_while_the_rate_is_low() {
        let mut judge = Judge::new(1.0);
        for t in 0..60 {
            judge.block((500.0, 0.0), (500.0, 0.0), f64::from(t));
        }
        assert_eq!(judge.certified, Some(29.0));
        assert!(judge.stands());
        for t in 60..120 {
            judge.block((500.0, 0.0), (500.0, 1.0), f64::from(t));
        }
        assert!(!judge.stands());
    }
}
