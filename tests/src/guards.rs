//! What hosts check about packets besides routing them: distributions and administrators set these up in every
//! mixture, and services must work behind all of them.

use anyhow::Result;

use crate::netns::Namespace;

/// A host's checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Guards {
    /// Whether frames that a bridge switches pass the host's firewall; `None` leaves the kernel's default.
    pub bridge_firewall: Option<bool>,
    /// Whether sources must be reached by the device a packet came in on, and what conntrack calls invalid is
    /// dropped.
    pub strict: bool,
}

/// Drops what conntrack has not seen the beginning of, and in IPv6, for which there is no setting, sources that
/// are reached by another device.
const STRICT: &str = "
table inet guard {
    chain sources {
        type filter hook prerouting priority raw; policy accept;
        meta nfproto ipv6 icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
        meta nfproto ipv6 fib saddr . iif oif missing drop
    }
    chain input {
        type filter hook input priority filter; policy accept;
        iif lo accept
        ct state invalid drop
    }
    chain forward {
        type filter hook forward priority filter; policy accept;
        ct state invalid drop
    }
}
";

impl Guards {
    /// Strict checks, and bridges as they are.
    pub fn strict() -> Self {
        Self {
            strict: true,
            ..Self::default()
        }
    }

    /// Sets the checks up, before the host has devices.
    pub(crate) fn set(self, namespace: &Namespace) -> Result<()> {
        if let Some(on) = self.bridge_firewall {
            let value = if on { "1" } else { "0" };
            namespace.sysctl(&[
                ("bridge/bridge-nf-call-iptables", value),
                ("bridge/bridge-nf-call-ip6tables", value),
            ])?;
        }
        if self.strict {
            namespace.sysctl(&[
                ("ipv4/conf/all/rp_filter", "1"),
                ("ipv4/conf/default/rp_filter", "1"),
            ])?;
            namespace.nft(STRICT)?;
        }
        Ok(())
    }
}
