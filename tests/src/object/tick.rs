//! The clock that tells how old a known way is.

use std::thread;
use std::time::Duration;

/// Waits for a tick of the coarse clock: so long the programs may take the way that they took just before.
pub fn let_a_tick_pass() {
    let before = coarse_clock();
    while coarse_clock() == before {
        thread::sleep(Duration::from_millis(1));
    }
}

/// The clock that a known way's age is told by: it stands still between two ticks.
pub fn coarse_clock() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid place for the answer.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut now) };
    assert_eq!(answer, 0, "every Linux has CLOCK_MONOTONIC_COARSE");
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
