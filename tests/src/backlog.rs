//! The machine's own queues: what it drops before anybody's program saw it is no test's business.
//!
//! A veth hands its packets to a queue of the receiving CPU. On two busy cores a thousand places, the default, are
//! full before the kernel's thread gets its turn.

use std::fs;
use std::sync::Once;

const LENGTH: &str = "/proc/sys/net/core/netdev_max_backlog";

/// Places wanted.
const PLACES: u64 = 20_000;

/// Makes the queues long enough, once. A machine that does not let us is used as it is.
pub(crate) fn lengthen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let places = fs::read_to_string(LENGTH)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        if places.is_some_and(|places| places < PLACES) {
            let _ = fs::write(LENGTH, PLACES.to_string());
        }
    });
}

/// Packets dropped so far because a queue was full, over all CPUs.
pub fn dropped() -> u64 {
    // Second column, hexadecimal; a line for each CPU.
    let text = fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    text.lines()
        .filter_map(|line| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok())
        .sum()
}
