//! The mark in a reply's entry: a moment ago an answer was noted in the flow's record, and the flow stood.

use crate::abi::TCP;
use crate::abi::family::Family;
use crate::abi::flow::{FlowKey, key_check};

/// Seconds that the mark of a TCP flow lasts at most, as a power of two: until the next number that it divides. Of a UDP
/// flow it lasts as long as the second: its time is no finer.
const TCP_LASTS: u32 = 3;

/// Whether flows of a protocol that may rest so many seconds are marked: nobody shall miss those that go unnoted.
#[inline(always)]
pub const fn bears_marks(protocol: u8, timeout: u32) -> bool {
    protocol != TCP || timeout >= 64 << TCP_LASTS
}

/// The mark of the entry that leads from the key with `reply_check` to `forward`, at the second `now`; never 0.
///
/// It ties the entry's halves together: one that is reused under a reader has another.
#[inline(always)]
pub fn mark<F: Family>(reply_check: u32, forward: &FlowKey<F>, now: u32) -> u16 {
    let period = if forward.protocol == TCP {
        now >> TCP_LASTS
    } else {
        now
    };
    let h = (key_check(forward) ^ period).wrapping_mul(0x9e37_79b1) ^ reply_check;
    (h >> 16) as u16 | 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::UDP;
    use crate::abi::address::Address4;
    use crate::abi::family::V4;
    use crate::abi::flow::POD;

    fn key(port: u16) -> FlowKey<V4> {
        let address = |last| Address4 {
            octets: [10, 0, 0, last],
        };
        FlowKey {
            source: address(1),
            destination: address(96),
            source_port: port,
            destination_port: 53,
            protocol: TCP,
            scope: POD,
            noted: 0,
        }
    }

    #[test]
    fn a_mark_is_of_its_time_its_flow_and_its_reply_alone() {
        let (forward, reply) = (key(4000), 0x1234_5678);
        for second in (0..800_000).step_by(8) {
            let own = mark(reply, &forward, second);
            assert_ne!(own, 0);
            assert_eq!(own, mark(reply, &forward, second + 7));
            for later in 8..=60 {
                assert_ne!(own, mark(reply, &forward, second + later), "at {second}");
            }
        }
        let alike = |other: u16, reply_check: u32| {
            let differing = (0..8000u32).step_by(8).filter(|&second| {
                mark(reply, &forward, second) != mark(reply_check, &key(other), second)
            });
            differing.count()
        };
        assert!(alike(4001, reply) > 990);
        assert!(alike(4000, reply ^ 0x8000_0000) > 990);
    }

    #[test]
    fn connections_that_may_soon_expire_have_none() {
        assert!(!bears_marks(TCP, 511));
        assert!(bears_marks(TCP, 512));
        assert!(bears_marks(UDP, 1));
    }

    #[test]
    fn that_of_a_datagram_lasts_as_long_as_the_second() {
        let forward = FlowKey {
            protocol: UDP,
            ..key(4000)
        };
        for second in 0..1000 {
            assert_ne!(mark(7, &forward, second), mark(7, &forward, second + 1));
        }
    }

    #[test]
    fn what_the_entry_says_of_itself_does_not_count() {
        let noted = FlowKey {
            noted: 77,
            ..key(4000)
        };
        assert_eq!(mark(5, &noted, 9), mark(5, &key(4000), 9));
    }
}
