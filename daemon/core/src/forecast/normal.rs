//! The standard normal distribution.

/// Probability not to be above `z`: Abramowitz and Stegun 1964, 7.1.26, whose error is below
/// 1.5e-7, at a third of the cost of an exact erf.
pub fn cdf(z: f64) -> f64 {
    let x = z.abs() * std::f64::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let poly = t
        * (0.254_829_592
            + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let tail = 0.5 * poly * (-x * x).exp();
    if z < 0.0 { tail } else { 1.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::cdf;

    #[test]
    fn values_of_the_table() {
        for (z, p) in
            [(0.0, 0.5), (1.0, 0.841_344_746), (-1.959_964, 0.025), (3.0, 0.998_650_102), (-40.0, 0.0)]
        {
            assert!((cdf(z) - p).abs() < 2e-7, "{z}");
        }
        assert_eq!((cdf(f64::INFINITY), cdf(f64::NEG_INFINITY)), (1.0, 0.0));
    }
}
