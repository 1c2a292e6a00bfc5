//! What the agent tells the programs, changeable while they run.

use super::address::{Address4, Address6};

/// An address prefix as value and mask; a mask of zeros marks an unused slot.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Prefix4 {
    /// Network address.
    pub address: Address4,
    /// Mask.
    pub mask: Address4,
}

/// See [`Prefix4`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Prefix6 {
    /// Network address.
    pub address: Address6,
    /// Mask.
    pub mask: Address6,
}

/// Prefixes of one kind per family.
pub const PREFIXES: usize = 4;

/// The one record of the table `settings`.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// Cookie of the host's network namespace, as `SO_NETNS_COOKIE` tells it.
    pub host_netns: u64,
    /// Bits of this module.
    pub flags: u32,
    /// Seconds a flow lives after its last packet while only one side has spoken.
    pub timeout_new: u32,
    /// Seconds, UDP, both sides have spoken.
    pub timeout_udp: u32,
    /// Seconds, TCP, established.
    pub timeout_tcp: u32,
    /// Seconds, TCP, one side closed.
    pub timeout_closing: u32,
    /// Seconds, TCP, both sides closed or reset.
    pub timeout_closed: u32,
    /// First source port we may use when a flow's own is taken, host order.
    pub nat_port_first: u16,
    /// Last such port.
    pub nat_port_last: u16,
    /// Zero.
    pub zero: u32,
    /// Service CIDRs: a free address in one of them is dropped (spec D5).
    pub service_cidrs4: [Prefix4; PREFIXES],
    /// See `service_cidrs4`.
    pub service_cidrs6: [Prefix6; PREFIXES],
    /// Local-pod detection by source address (spec E6, E7).
    pub pod_cidrs4: [Prefix4; PREFIXES],
    /// See `pod_cidrs4`.
    pub pod_cidrs6: [Prefix6; PREFIXES],
}

/// Socket hooks serve sockets of every network namespace; without it only the host's.
pub const SOCKETS_ALL: u32 = 1;
/// Socket hooks serve sockets of the host's network namespace.
pub const SOCKETS_HOST: u32 = 2;
/// `getpeername` on a connected TCP socket tells the service's address.
pub const TCP_PEER_SERVICE: u32 = 4;
/// `--masquerade-all` (spec E5).
pub const MASQUERADE_ALL: u32 = 8;
/// `--snat-local=kube-proxy`: masquerade also towards endpoints of this node.
pub const SNAT_LOCAL: u32 = 16;
/// Local pods are told by source address (`pod_cidrs4`, `pod_cidrs6`) instead of by device; a family without a
/// prefix has none (spec E6, E7, E10).
pub const PODS_BY_ADDRESS: u32 = 32;
/// `--forwarding=stack`: masqueraded flows never take the fast way.
pub const STACK_FORWARDS: u32 = 64;

crate::assert_layout!(Prefix4 = 8, Prefix6 = 32, Settings = 360);
