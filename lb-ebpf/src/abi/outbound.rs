//! UDP conversations that lead out from a port that is a NodePort, too: of this node's own sockets, or of whom a CNI
//! masquerades behind its address. What comes back is no client's, though it is addressed to the NodePort.

use super::address::Address6;

/// Who speaks with whom. Addresses are 16 bytes, ports are in host order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct OutboundKey {
    /// Somebody elsewhere.
    pub remote: Address6,
    /// This node's address.
    pub own: Address6,
    /// The other side's port.
    pub remote_port: u16,
    /// The port that is a NodePort.
    pub own_port: u16,
}

/// See [`OutboundKey`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outbound {
    /// When a packet last left, seconds. It lives as long after that as a UDP flow.
    pub last_seen: u32,
}

/// Words of 64 bits that have a bit for each port.
pub const PORT_WORDS: u32 = 1024;

/// The word of a port's bit, and the bit as a mask.
#[inline(always)]
pub const fn port_place(port: u16) -> (u32, u64) {
    (port as u32 >> 6, 1 << (port & 63))
}

crate::assert_layout!(OutboundKey = 36, Outbound = 4);
