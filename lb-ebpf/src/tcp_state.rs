//! How far a flow's conversation is, and how long it may rest there.

use crate::abi::flow::{
    ANSWERED, CLIENT_CLOSED, CLOSED, ENDPOINT_CLOSED, ESTABLISHED, NEW, RESET, RESET_DENIED,
    has_ended,
};
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
        return match (state, speaker) {
            (NEW, Speaker::Endpoint) => ANSWERED,
            (ANSWERED, Speaker::Client) => ESTABLISHED,
            _ => state,
        };
    }
    // Whoever has not shown yet that it gets answers ends nothing: what a made-up client opened stays unproven, and makes
    // room, whatever it sends.
    if flags & RST != 0 {
        return match (state, speaker) {
            (CLOSED, _) => CLOSED,
            (NEW | ANSWERED, Speaker::Client) => state,
            _ => RESET,
        };
    }
    if flags & FIN != 0 {
        return match (state, speaker) {
            (NEW, Speaker::Client) => NEW,
            (ANSWERED, Speaker::Client) if flags & ACK == 0 => ANSWERED,
            // Nothing follows a reset that counted: what made it is no witness for an orderly end.
            (RESET, _) => RESET,
            (CLOSED | RESET_DENIED, _) => CLOSED,
            (ENDPOINT_CLOSED, Speaker::Client) | (CLIENT_CLOSED, Speaker::Endpoint) => CLOSED,
            (ENDPOINT_CLOSED, Speaker::Endpoint) => ENDPOINT_CLOSED,
            (_, Speaker::Client) => CLIENT_CLOSED,
            (_, Speaker::Endpoint) => ENDPOINT_CLOSED,
        };
    }
    match (state, speaker) {
        (NEW, Speaker::Endpoint) => ANSWERED,
        // A SYN repeated says nothing; only who got the answer can acknowledge it.
        (ANSWERED, Speaker::Client) if flags & (SYN | ACK) == ACK => ESTABLISHED,
        // Who took a RST is silent, or answers with one. We do not follow sequence numbers, and so cannot know better.
        (RESET, Speaker::Client) if flags & (SYN | ACK) == ACK => RESET_DENIED,
        (RESET_DENIED, Speaker::Endpoint) if flags & (SYN | ACK) == ACK => ESTABLISHED,
        _ => state,
    }
}

/// Whether a packet with these flags keeps its flow, in this state before, from expiring: all but a RST to what is over.
#[inline(always)]
pub const fn is_sign_of_life(state: u8, protocol: u8, flags: u8) -> bool {
    protocol != TCP || flags & RST == 0 || !has_ended(state)
}

/// Whether an answer with these flags can change nothing but the time of a flow that is [`ESTABLISHED`], or that either side
/// has closed since: neither opens nor ends a connection.
#[inline(always)]
pub const fn is_of_no_account(protocol: u8, flags: u8) -> bool {
    protocol != TCP || flags & (FIN | SYN | RST) == 0
}

/// Seconds between a UDP conversation's first and last packet from which netfilter takes it for a lasting one: more
/// than two, counted in whole seconds.
const LASTING: u32 = 3;

/// Seconds a flow may rest in a state, its last packet having come `age` seconds after its first one. All values are
/// read before one is chosen, see [`read`].
#[inline(always)]
pub fn timeout(settings: &Settings, protocol: u8, state: u8, age: u32) -> u32 {
    let new = read(&settings.timeout_new);
    let udp = read(&settings.timeout_udp);
    let tcp = read(&settings.timeout_tcp);
    let closing = read(&settings.timeout_closing);
    let closed = read(&settings.timeout_closed);
    match (state, protocol) {
        // After a reset nobody waits for late segments.
        (NEW | ANSWERED | RESET | RESET_DENIED, _) => new,
        (ESTABLISHED, UDP) if age < LASTING => new,
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
            (SYN, Speaker::Client, NEW),
            (SYN | ACK, Speaker::Endpoint, ANSWERED),
            (SYN, Speaker::Client, ANSWERED),
            (SYN | ACK, Speaker::Endpoint, ANSWERED),
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
    fn a_reset_counts_in_any_state_until_both_sides_go_on() {
        for state in [
            ESTABLISHED,
            CLIENT_CLOSED,
            ENDPOINT_CLOSED,
            RESET,
            RESET_DENIED,
        ] {
            assert_eq!(next(state, TCP, RST, Speaker::Client), RESET);
            assert_eq!(next(state, TCP, RST, Speaker::Endpoint), RESET);
        }
        assert_eq!(next(CLOSED, TCP, RST, Speaker::Client), CLOSED);
        let steps = [
            (ACK, Speaker::Endpoint, RESET),
            (SYN | ACK, Speaker::Client, RESET),
            (ACK, Speaker::Client, RESET_DENIED),
            (ACK, Speaker::Client, RESET_DENIED),
            (RST, Speaker::Endpoint, RESET),
            (ACK, Speaker::Client, RESET_DENIED),
            (SYN | ACK, Speaker::Endpoint, RESET_DENIED),
            (ACK, Speaker::Endpoint, ESTABLISHED),
        ];
        let mut state = RESET;
        for (flags, speaker, expected) in steps {
            state = next(state, TCP, flags, speaker);
            assert_eq!(state, expected, "after {flags:#x} of {speaker:?}");
        }
        assert_eq!(next(RESET, TCP, FIN | ACK, Speaker::Client), RESET);
        assert_eq!(next(RESET_DENIED, TCP, FIN | ACK, Speaker::Client), CLOSED);
    }

    #[test]
    fn who_gets_no_answers_ends_nothing() {
        for flags in [FIN, RST, RST | ACK, FIN | RST] {
            for state in [NEW, ANSWERED] {
                assert_eq!(
                    next(state, TCP, flags, Speaker::Client),
                    state,
                    "{flags:#x}"
                );
            }
        }
        assert_eq!(next(NEW, TCP, FIN | ACK, Speaker::Client), NEW);
        assert_eq!(
            next(ANSWERED, TCP, FIN | ACK, Speaker::Client),
            CLIENT_CLOSED
        );
        // The endpoint does get what the client sends.
        assert_eq!(next(NEW, TCP, RST | ACK, Speaker::Endpoint), RESET);
        assert_eq!(
            next(ANSWERED, TCP, FIN | ACK, Speaker::Endpoint),
            ENDPOINT_CLOSED
        );
    }

    #[test]
    fn udp_is_established_when_the_client_goes_on_and_never_closes() {
        assert_eq!(next(NEW, UDP, 0xff, Speaker::Client), NEW);
        assert_eq!(next(NEW, UDP, 0, Speaker::Endpoint), ANSWERED);
        assert_eq!(next(ANSWERED, UDP, 0, Speaker::Endpoint), ANSWERED);
        assert_eq!(next(ANSWERED, UDP, 0, Speaker::Client), ESTABLISHED);
        assert_eq!(next(ESTABLISHED, UDP, RST, Speaker::Client), ESTABLISHED);
    }

    #[test]
    fn who_only_pretends_to_be_there_is_soon_forgotten() {
        let settings = Settings {
            timeout_new: 30,
            timeout_udp: 120,
            timeout_tcp: 86_400,
            ..Settings::default()
        };
        for protocol in [TCP, UDP] {
            assert_eq!(timeout(&settings, protocol, ANSWERED, 10), 30);
        }
        assert_eq!(timeout(&settings, TCP, ESTABLISHED, 0), 86_400);
        // As netfilter: a question and its answer are no lasting conversation yet.
        assert_eq!(timeout(&settings, UDP, ESTABLISHED, 2), 30);
        assert_eq!(timeout(&settings, UDP, ESTABLISHED, 3), 120);
    }

    #[test]
    fn only_a_lone_syn_is_clean() {
        for flags in 0..=255u8 {
            let lone = flags & SYN != 0 && flags & (FIN | RST | ACK) == 0;
            assert_eq!(is_clean_syn(flags), lone, "{flags:#x}");
        }
    }
}
