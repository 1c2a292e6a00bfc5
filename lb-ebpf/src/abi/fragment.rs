//! Fragments: only the first one has ports, so it teaches the others.

use super::address::Address6;

/// What the fragments of one packet share (RFC 791, RFC 8200 §4.5).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FragmentKey {
    /// Source address as 16 bytes.
    pub source: Address6,
    /// Destination address as 16 bytes.
    pub destination: Address6,
    /// Identification field, host order.
    pub identification: u32,
    /// Protocol of the whole packet.
    pub protocol: u8,
    /// As in flow keys.
    pub scope: u8,
    /// Zero.
    pub zero: u16,
}

/// Ports of the first fragment.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fragment {
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
    /// When the first fragment passed, seconds. With [`STACK_WAY`] if that took the stack's way.
    pub seen: u32,
}

/// The first fragment went to the host's stack, so the others follow: a host that tracks connections puts fragments together
/// and must get all of them or none. A bit of [`Fragment::seen`].
pub const STACK_WAY: u32 = 1 << 31;

/// Seconds a fragment record lives, as long as netfilter and the stack keep fragments (`ipfrag_time`).
pub const LIFETIME: u32 = 30;

crate::assert_layout!(FragmentKey = 40, Fragment = 8);
