//! How numbers are said.

/// `q` as people say it: p50, p99, p99.9.
pub fn percentile(q: f64) -> String {
    let percent = format!("{:.4}", q * 100.0);
    format!("p{}", percent.trim_end_matches('0').trim_end_matches('.'))
}

/// A length of time, in seconds, with three digits and its unit.
pub fn length(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-6 => (s * 1e9, "ns"),
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_as_people_say_them() {
        assert_eq!([0.5, 0.99, 0.999, 0.9999].map(percentile), ["p50", "p99", "p99.9", "p99.99"]);
    }

    #[test]
    fn lengths_have_three_digits() {
        for (seconds, text) in [
            (6e-8, "60.0 ns"),
            (1.234e-6, "1.23 µs"),
            (123.4e-6, "123 µs"),
            (0.0204, "20.4 ms"),
            (1.5, "1.50 s"),
        ] {
            assert_eq!(length(seconds), text);
        }
    }
}
