//! How long flows may be silent: never longer than netfilter remembers them, as an endpoint's late answer would
//! then be a new flow to it and be masqueraded past us.

use std::fs;

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
    closed: 30,
};

impl Timeouts {
    /// The defaults, cut to netfilter's where it is present.
    pub(super) fn read() -> Self {
        Self::limited(|name| {
            let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
            fs::read_to_string(path).ok()?.trim().parse().ok()
        })
    }

    fn limited(netfilter: impl Fn(&str) -> Option<u32>) -> Self {
        let limit = |value: u32, name: &str| {
            netfilter(name)
                .map_or(value, |limit| value.min(limit))
                .max(1)
        };
        Self {
            new: limit(DEFAULT.new, "udp_timeout"),
            udp: limit(DEFAULT.udp, "udp_timeout_stream"),
            tcp: limit(DEFAULT.tcp, "tcp_timeout_established"),
            closing: DEFAULT.closing,
            closed: limit(DEFAULT.closed, "tcp_timeout_time_wait"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netfilter_shortens_and_never_lengthens() {
        assert_eq!(Timeouts::limited(|_| None), DEFAULT);
        let short = Timeouts::limited(|name| (name == "udp_timeout_stream").then_some(60));
        assert_eq!(short, Timeouts { udp: 60, ..DEFAULT });
        assert_eq!(Timeouts::limited(|_| Some(432_000)), DEFAULT);
        assert_eq!(
            Timeouts::limited(|_| Some(0)).tcp,
            1,
            "a zero would end every flow at once"
        );
    }
}
