//! What an address means to us, in one lookup: the first question every program asks.
//!
//! An address that is absent here is no business of ours, so traffic to it pays for one miss.

/// Uses of one address. The key is the address itself (`[u8; 4]` or `[u8; 16]`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AddressUse {
    /// Bits of this module.
    pub flags: u32,
}

/// A Service's ClusterIP: an undefined port on it is rejected (spec D4).
pub const CLUSTER_IP: u32 = 1;
/// An externalIP or load-balancer VIP: undefined ports on it are not ours (spec D6).
pub const EXTERNAL: u32 = 2;
/// An address of this node on which NodePorts are served.
pub const NODE: u32 = 4;
/// An endpoint that vanished; see [`super::socket::TombstoneKey`].
pub const TOMBSTONE: u32 = 8;
/// A Service was here and flows through it may still live: look them up, nothing else.
pub const LINGERING: u32 = 16;
/// An address of this node, whether or not NodePorts are served on it.
pub const NODE_LOCAL: u32 = 32;

crate::assert_layout!(AddressUse = 4);

/// An IPv6 address as four words in memory order.
#[inline(always)]
pub fn words(a: [u8; 16]) -> [u32; 4] {
    [
        u32::from_ne_bytes([a[0], a[1], a[2], a[3]]),
        u32::from_ne_bytes([a[4], a[5], a[6], a[7]]),
        u32::from_ne_bytes([a[8], a[9], a[10], a[11]]),
        u32::from_ne_bytes([a[12], a[13], a[14], a[15]]),
    ]
}

/// The inverse of [`words`].
#[inline(always)]
pub fn from_words(w: [u32; 4]) -> [u8; 16] {
    let [a, b, c, d] = [
        w[0].to_ne_bytes(),
        w[1].to_ne_bytes(),
        w[2].to_ne_bytes(),
        w[3].to_ne_bytes(),
    ];
    [
        a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2],
        d[3],
    ]
}
