//! The one histogram scheme, from the kernel to Grafana: base-2 exponential, scale 4.
//!
//! Bounds stand at 2^(i/16) **seconds** and belong to the bucket below them, so bucket `i` holds
//! (2^(i/16), 2^((i+1)/16)]. That is OTLP's exponential histogram at scale 4 (data model,
//! "ExponentialHistogram"), and Prometheus' native histogram at schema 4 with its index one higher.
//! Nothing is re-bucketed on the way out, and histograms of CPUs, targets, nodes and minutes add up.
//!
//! The arithmetic is exact for every `u64` of nanoseconds and uses no floating point, which eBPF
//! does not have: with the top bit of the value shifted to bit 63, the sixteen bounds of every
//! octave are the same sixteen 64-bit numbers, because a factor of two is sixteen buckets.

/// Buckets per factor of two: 2^[`SCALE`].
pub const SCALE: u32 = 4;
/// OTLP index of the first fine bucket. Its lower bound is 2^-24 s, about 59.6 ns.
pub const FIRST_INDEX: i32 = -384;
/// Fine buckets: 31 octaves of 16, from 2^-24 s to 2^7 s = 128 s.
pub const FINE: usize = 496;
/// Cells of a histogram: below the range, the fine buckets, above the range.
pub const SLOTS: usize = FINE + 2;
/// Room for cells in the kernel's histograms: a power of two, so that a masked index is always inside.
pub const CELLS: usize = 512;
/// Cell of what is not above 2^-24 s: the zero bucket of OTLP and Prometheus.
pub const SLOT_ZERO: usize = 0;
/// Cell of what is above 128 s.
pub const SLOT_ABOVE: usize = SLOTS - 1;

/// `BOUND[j]`: the bounds inside one octave, floor(10^9 * 2^34 * 2^((j-14)/16)), ascending.
///
/// Entry 14 is the whole second (10^9 ns, exact); the last is a sentinel that nothing exceeds.
/// Padded to 32 so that an index masked with 31 is always inside.
const BOUND: [u64; 32] = {
    let mut bound = [u64::MAX; 32];
    let octave: [u64; 16] = [
        0x81ff_a7a9_549c_a6e3,
        0x87c1_1235_836d_16a3,
        0x8dc3_b896_0164_a7d9,
        0x940a_7e28_259f_b382,
        0x9a98_6705_4d51_2391,
        0xa170_9975_dfb0_6757,
        0xa896_5f74_bf06_5071,
        0xb00d_2843_e106_0dc2,
        0xb7d8_8a12_d0dd_9ea0,
        0xbffc_43b7_e604_a922,
        0xc87c_3e7d_03cd_bec3,
        0xd15c_9000_bf21_1c1f,
        0xdaa1_7c2c_d195_55db,
        0xe44f_7742_cb56_e3dd,
        0xee6b_2800_0000_0000,
        0xf8f9_69d9_b5ab_f948,
    ];
    let mut j = 0;
    while j < 16 {
        bound[j] = octave[j];
        j += 1;
    }
    bound
};

/// `BELOW[c]`: how many bounds lie below all mantissas whose seven bits after the leading one are
/// `c`. Bounds are 4.4 % apart and a cell is at most 0.8 % wide, so one comparison with the next
/// bound finishes the search.
const BELOW: [u8; 128] = {
    let mut below = [0u8; 128];
    let mut c = 0;
    while c < 128 {
        let first = (128 + c as u64) << 56;
        let mut j = 0;
        while BOUND[j] < first {
            j += 1;
        }
        below[c] = j as u8;
        c += 1;
    }
    below
};

/// The cell that counts `ns`: in `0..SLOTS`.
#[expect(clippy::inline_always, reason = "a call per event costs more than the arithmetic")]
#[inline(always)]
pub fn slot(ns: u64) -> u32 {
    let ns = ns | u64::from(ns == 0);
    let shift = ns.leading_zeros();
    let mantissa = ns << shift;
    let below = u32::from(BELOW[(mantissa >> 56) as usize & 127]);
    let below = below + u32::from(mantissa > BOUND[below as usize & 31]);
    // Octave e = 63 - shift starts at OTLP index 16e - 479; one more for the zero bucket.
    let slot = 16 * (63 - shift) as i32 + below as i32 - 479 - FIRST_INDEX + 1;
    if slot < 0 {
        SLOT_ZERO as u32
    } else if slot > SLOT_ABOVE as i32 {
        SLOT_ABOVE as u32
    } else {
        slot as u32
    }
}

const _: () = assert!(SLOTS <= CELLS && CELLS.is_power_of_two());

/// OTLP index of a fine cell: bucket (2^(i/16), 2^((i+1)/16)]. Prometheus' index is one higher.
/// `None` for the two cells at the ends.
pub fn otlp_index(slot: usize) -> Option<i32> {
    (slot > SLOT_ZERO && slot < SLOT_ABOVE).then(|| slot as i32 - 1 + FIRST_INDEX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, in f64: the cell of a value that is not within an f64 rounding of a bound.
    fn slot_by_logarithm(ns: u64) -> i64 {
        let position = (ns as f64 / 1e9).log2() * 16.0;
        let index = position.ceil() as i64 - 1;
        (index - i64::from(FIRST_INDEX) + 1).clamp(0, SLOT_ABOVE as i64)
    }

    fn upper_ns(index: i64) -> f64 {
        ((index + 1) as f64 / 16.0).exp2() * 1e9
    }

    #[test]
    fn every_bound_of_the_range_splits_exactly() {
        // 64 ns is inside bucket -383, 34 s inside bucket 81.
        let mut checked = 0;
        for index in -383..=81i64 {
            let bound = upper_ns(index);
            let cell = (index - i64::from(FIRST_INDEX) + 1) as u32;
            if (index + 1) % 16 == 0 && (index + 1) / 16 >= -9 {
                // A power of two of seconds that is a whole number of nanoseconds: inclusive.
                assert_eq!(slot(bound as u64), cell, "at bound {index}");
                assert_eq!(slot(bound as u64 + 1), cell + 1, "1 ns above bound {index}");
            } else {
                assert_eq!(slot(bound.floor() as u64), cell, "just below bound {index}");
                assert_eq!(slot(bound.floor() as u64 + 1), cell + 1, "just above bound {index}");
            }
            // One nanosecond below the last value of the bucket it is still the same bucket, from
            // where buckets are wider than two nanoseconds.
            if bound > 100.0 {
                assert_eq!(slot(bound.floor() as u64 - 1), cell, "1 ns below bound {index}");
            }
            checked += 1;
        }
        assert_eq!(checked, 465);
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!(slot(0), 0);
        assert_eq!(slot(59), 0);
        assert_eq!(slot(60), 1);
        assert_eq!(slot(128_000_000_000), SLOT_ABOVE as u32 - 1);
        assert_eq!(slot(128_000_000_001), SLOT_ABOVE as u32);
        assert_eq!(slot(u64::MAX), SLOT_ABOVE as u32);
        assert_eq!(otlp_index(SLOT_ZERO), None);
        assert_eq!(otlp_index(1), Some(FIRST_INDEX));
        assert_eq!(otlp_index(SLOT_ABOVE), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn agrees_with_the_logarithm(ns in 64u64..34_000_000_000) {
            let position = (ns as f64 / 1e9).log2() * 16.0;
            // Where f64 cannot tell the side of a bound, the test above decides.
            prop_assume!((position - position.round()).abs() > 1e-9);
            prop_assert_eq!(i64::from(slot(ns)), slot_by_logarithm(ns));
        }

        #[test]
        fn never_decreases(ns in any::<u64>(), more in any::<u32>()) {
            prop_assert!(slot(ns) <= slot(ns.saturating_add(u64::from(more))));
        }
    }
}
