//! How long flows may be silent: as netfilter is asked to remember them, and never longer than it does, as an
//! endpoint's late answer would then be a new flow to it and be masqueraded past us.

use std::fs;

use crate::config::Conntrack;

/// Seconds; see `lb_ebpf::abi::settings`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Timeouts {
    pub new: u32,
    pub udp: u32,
    pub tcp: u32,
    pub closing: u32,
    pub closed: u32,
}

/// What kube-proxy runs with: a day for TCP, an hour half-closed, netfilter's defaults otherwise.
const DEFAULT: Timeouts = Timeouts {
    new: 30,
    udp: 120,
    tcp: 86_400,
    closing: 3_600,
    // As long as Linux keeps a port in TIME_WAIT: an endpoint may refuse another client's connection from it.
    closed: 60,
};

impl Timeouts {
    /// What the configuration asks for, else the defaults; cut to netfilter's where it is present.
    pub(super) fn read(wanted: &Conntrack) -> Self {
        Self::limited(wanted, |name| {
            let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
            fs::read_to_string(path).ok()?.trim().parse().ok()
        })
    }

    fn limited(wanted: &Conntrack, netfilter: impl Fn(&str) -> Option<u32>) -> Self {
        let limit = |value: u32, name: &str| {
            netfilter(name)
                .map_or(value, |limit| value.min(limit))
                .max(1)
        };
        let udp = wanted.udp.0.unwrap_or(DEFAULT.new);
        let stream = wanted.udp_stream.0.unwrap_or(DEFAULT.udp);
        let tcp = wanted.tcp_established.0.unwrap_or(DEFAULT.tcp);
        Self {
            new: limit(udp, "udp_timeout"),
            udp: limit(stream, "udp_timeout_stream"),
            tcp: limit(tcp, "tcp_timeout_established"),
            // Not cut: netfilter's own default is a minute, which is too short for a half-closed connection on the
            // ways that pass netfilter by, and nothing is won on those that do not.
            closing: wanted.tcp_close_wait.0.unwrap_or(DEFAULT.closing),
            closed: limit(DEFAULT.closed, "tcp_timeout_time_wait"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Timeout;

    #[test]
    fn netfilter_shortens_and_never_lengthens() {
        let limited = |netfilter: fn(&str) -> Option<u32>| {
            Timeouts::limited(&Conntrack::default(), netfilter)
        };
        assert_eq!(limited(|_| None), DEFAULT);
        let short = limited(|name| (name == "udp_timeout_stream").then_some(60));
        assert_eq!(short, Timeouts { udp: 60, ..DEFAULT });
        assert_eq!(limited(|_| Some(432_000)), DEFAULT);
        assert_eq!(
            limited(|_| Some(0)).tcp,
            1,
            "a zero would end every flow at once"
        );
    }

    #[test]
    fn flows_follow_what_netfilter_was_asked_for() {
        let wanted = Conntrack {
            tcp_established: Timeout(Some(7200)),
            tcp_close_wait: Timeout(Some(50)),
            udp: Timeout(Some(10)),
            udp_stream: Timeout(Some(300)),
            ..Conntrack::default()
        };
        let expected = Timeouts {
            new: 10,
            udp: 300,
            tcp: 7200,
            closing: 50,
            closed: 60,
        };
        assert_eq!(Timeouts::limited(&wanted, |_| Some(7200)), expected);
        let refused = Timeouts::limited(&wanted, |name| {
            (name == "udp_timeout_stream").then_some(120)
        });
        assert_eq!(refused.udp, 120, "netfilter could not be changed");
    }
}
