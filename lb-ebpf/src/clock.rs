//! The tables' clock: whole seconds of `CLOCK_MONOTONIC`.

/// Seconds for a monotonic time in nanoseconds, within a millionth of real seconds.
///
/// A multiplication instead of a 64-bit division, as this runs for every packet. User space uses the
/// same function on `CLOCK_MONOTONIC`, so both sides agree to the tick.
#[inline(always)]
pub const fn seconds(monotonic_ns: u64) -> u32 {
    // 2^26 ns per unit, 2^26 / 10^9 * 2^32 = 288 230 376.15 per unit.
    (((monotonic_ns >> 26) * 288_230_376) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn seconds_follow_nanoseconds_for_ten_years() {
        for s in [1u64, 2, 59, 3_600, 86_400, 31_536_000, 315_360_000] {
            let got = u64::from(seconds(s * 1_000_000_000 + 500_000_000));
            assert!(got.abs_diff(s) <= 1 + s / 1_000_000, "{s} s became {got}");
        }
    }
}
