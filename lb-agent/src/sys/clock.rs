//! The tables' clock.

use std::time::Duration;

/// `CLOCK_MONOTONIC`, as `bpf_ktime_get_ns` reads it.
pub fn monotonic() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid place for the answer.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    assert_eq!(answer, 0, "every Linux has CLOCK_MONOTONIC");
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// The same in the whole seconds that the tables hold.
pub fn seconds() -> u32 {
    lb_ebpf::clock::seconds(monotonic().as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    #[test]
    fn seconds_are_those_of_the_monotonic_clock() {
        let before = super::monotonic().as_secs();
        let seconds = u64::from(super::seconds());
        assert!(
            seconds.abs_diff(before) <= 1 + before / 1_000_000,
            "{seconds} at {before}"
        );
    }
}
