//! How far a flow's conversation is, and how long it may rest there.

use crate::abi::flow::{CLIENT_CLOSED, CLOSED, ENDPOINT_CLOSED, ESTABLISHED, NEW};
use crate::abi::settings::Settings;
use crate::abi::{TCP, UDP};
use crate::volatile::read;

/// Who sent a packet of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speaker {
    Client,
    Endpoint,
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A SYN that asks for a new connection. ECN bits do not matter (RFC 3168).
#[inline(always)]
pub const fn is_clean_syn(flags: u8) -> bool {
    flags & (FIN | SYN | RST | ACK) == SYN
}

/// State after a packet.
#[inline(always)]
pub const fn next(state: u8, protocol: u8, flags: u8, speaker: Speaker) -> u8 {
    if protocol != TCP {
        return match speaker {
            Speaker::Client => state,
            Speaker::Endpoint if state == NEW => ESTABLISHED,
            Speaker::Endpoint => state,
        };
    }
    if flags & RST != 0 {
        return CLOSED;
    }
    if flags & FIN != 0 {
        return match (state, speaker) {
            (CLOSED, _) => CLOSED,
            (ENDPOINT_CLOSED, Speaker::Client) | (CLIENT_CLOSED, Speaker::Endpoint) => CLOSED,
            (ENDPOINT_CLOSED, Speaker::Endpoint) => ENDPOINT_CLOSED,
            (_, Speaker::Client) => CLIENT_CLOSED,
            (_, Speaker::Endpoint) => ENDPOINT_CLOSED,
        };
    }
    match speaker {
        Speaker::Endpoint if state == NEW => ESTABLISHED,
        _ => state,
    }
}

/// Seconds a flow may rest in a state. All values are read before one is chosen, see [`read`].
#[inline(always)]
pub fn timeout(settings: &Settings, protocol: u8, state: u8) -> u32 {
    let new = read(&settings.timeout_new);
    let udp = read(&settings.timeout_udp);
    let tcp = read(&settings.timeout_tcp);
    let closing = read(&settings.timeout_closing);
    let closed = read(&settings.timeout_closed);
    match (state, protocol) {
        (NEW, _) => new,
        (ESTABLISHED, UDP) => udp,
        (ESTABLISHED, _) => tcp,
        (CLIENT_CLOSED | ENDPOINT_CLOSED, _) => closing,
        _ => closed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tcp_conversation_opens_and_closes() {
        let steps = [
            (SYN, Speaker::Client, NEW),
            (SYN | ACK, Speaker::Endpoint, ESTABLISHED),
            (ACK, Speaker::Client, ESTABLISHED),
            (FIN | ACK, Speaker::Endpoint, ENDPOINT_CLOSED),
            (FIN | ACK, Speaker::Endpoint, ENDPOINT_CLOSED),
            (ACK, Speaker::Client, ENDPOINT_CLOSED),
            (FIN | ACK, Speaker::Client, CLOSED),
            (ACK, Speaker::Endpoint, CLOSED),
        ];
        let mut state = NEW;
        for (flags, speaker, expected) in steps {
            state = next(state, TCP, flags, speaker);
            assert_eq!(state, expected, "after {flags:#x} of {speaker:?}");
        }
    }

    #[test]
    fn a_reset_closes_from_any_state() {
        for state in [NEW, ESTABLISHED, CLIENT_CLOSED, ENDPOINT_CLOSED, CLOSED] {
            assert_eq!(next(state, TCP, RST, Speaker::Client), CLOSED);
        }
    }

    #[test]
    fn udp_is_established_by_its_first_reply_and_never_closes() {
        assert_eq!(next(NEW, UDP, 0xff, Speaker::Client), NEW);
        assert_eq!(next(NEW, UDP, 0, Speaker::Endpoint), ESTABLISHED);
        assert_eq!(next(ESTABLISHED, UDP, RST, Speaker::Client), ESTABLISHED);
    }

    #[test]
    fn only_a_lone_syn_is_clean() {
        for flags in 0..=255u8 {
            let lone = flags & SYN != 0 && flags & (FIN | RST | ACK) == 0;
            assert_eq!(is_clean_syn(flags), lone, "{flags:#x}");
        }
    }
}
