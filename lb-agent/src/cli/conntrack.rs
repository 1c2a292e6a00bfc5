//! kube-proxy's flags for netfilter's settings.

use clap::Args;

use crate::config::{Conntrack, Timeout};

/// Flags of `beeline agent` that say what netfilter is set to. Durations are written like 1h30m.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct ConntrackArgs {
    /// Connections netfilter has room for, per core; 0 leaves its table alone
    #[arg(long, value_name = "NUMBER", default_value_t = Conntrack::default().max_per_core)]
    conntrack_max_per_core: u32,
    /// Connections netfilter has room for at least, unless --conntrack-max-per-core is 0
    #[arg(long, value_name = "NUMBER", default_value_t = Conntrack::default().min)]
    conntrack_min: u32,
    /// How long an idle TCP connection is remembered; 0 leaves netfilter's value alone
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    conntrack_tcp_timeout_established: Timeout,
    /// How long a TCP connection that one side has closed is remembered; 0 leaves netfilter's value alone
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    conntrack_tcp_timeout_close_wait: Timeout,
    /// Have netfilter take TCP segments outside the window for valid
    #[arg(long)]
    conntrack_tcp_be_liberal: bool,
    /// How long a UDP packet without an answer is remembered; 0 leaves netfilter's value alone
    #[arg(long, value_name = "DURATION", default_value = "0")]
    conntrack_udp_timeout: Timeout,
    /// How long an idle UDP conversation is remembered; 0 leaves netfilter's value alone
    #[arg(long, value_name = "DURATION", default_value = "0")]
    conntrack_udp_timeout_stream: Timeout,
}

impl From<&ConntrackArgs> for Conntrack {
    fn from(flags: &ConntrackArgs) -> Self {
        Self {
            max_per_core: flags.conntrack_max_per_core,
            min: flags.conntrack_min,
            tcp_established: flags.conntrack_tcp_timeout_established,
            tcp_close_wait: flags.conntrack_tcp_timeout_close_wait,
            tcp_be_liberal: flags.conntrack_tcp_be_liberal,
            udp: flags.conntrack_udp_timeout,
            udp_stream: flags.conntrack_udp_timeout_stream,
        }
    }
}
