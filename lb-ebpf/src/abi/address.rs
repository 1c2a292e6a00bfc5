//! What an address means to us, in one lookup.
//!
//! An address that is absent here is no business of ours. The packet programs of tc mostly know that beforehand, from the
//! [filter](super::address_filter); sockets and XDP ask here at once.

/// Uses of one address. The key is the address itself.
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
/// A loopback address on which this node's own processes, and nobody else, reach NodePorts.
pub const LOOPBACK: u32 = 64;

crate::assert_layout!(AddressUse = 4, Address4 = 4, Address6 = 16);

/// An IPv4 address, network order. A type of its own as its alignment lets the programs move it in one
/// piece, and `bpftool` still prints octets.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Address4 {
    /// The octets as written.
    pub octets: [u8; 4],
}

/// An IPv6 address, network order; see [`Address4`]. Where a table serves both families, IPv4 is
/// `::ffff:a.b.c.d`.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Address6 {
    /// The octets as written.
    pub octets: [u8; 16],
}

impl Address4 {
    /// The address as one word in memory order.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        u32::from_ne_bytes(self.octets)
    }

    /// The inverse of [`Self::word`].
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self {
            octets: word.to_ne_bytes(),
        }
    }
}

impl Address6 {
    /// The address as four words in memory order.
    #[inline(always)]
    #[allow(clippy::disallowed_methods, reason = "see below")]
    pub const fn words(self) -> [u32; 4] {
        // SAFETY: both are 16 bytes in which every pattern is valid. In one piece, as a compiler for the BPF
        // target would put the words together byte by byte.
        unsafe { core::mem::transmute::<Self, [u32; 4]>(self) }
    }

    /// The inverse of [`Self::words`].
    #[inline(always)]
    #[allow(clippy::disallowed_methods, reason = "see below")]
    pub const fn from_words(words: [u32; 4]) -> Self {
        // SAFETY: as in `words`.
        unsafe { core::mem::transmute::<[u32; 4], Self>(words) }
    }
}

impl From<core::net::Ipv4Addr> for Address4 {
    fn from(address: core::net::Ipv4Addr) -> Self {
        Self {
            octets: address.octets(),
        }
    }
}

impl From<core::net::Ipv6Addr> for Address6 {
    fn from(address: core::net::Ipv6Addr) -> Self {
        Self {
            octets: address.octets(),
        }
    }
}

impl From<core::net::IpAddr> for Address6 {
    fn from(address: core::net::IpAddr) -> Self {
        match address {
            core::net::IpAddr::V4(address) => address.to_ipv6_mapped().into(),
            core::net::IpAddr::V6(address) => address.into(),
        }
    }
}

impl From<Address4> for core::net::IpAddr {
    fn from(address: Address4) -> Self {
        core::net::Ipv4Addr::from(address.octets).into()
    }
}

impl From<Address6> for core::net::IpAddr {
    /// IPv4-mapped addresses become IPv4 again.
    fn from(address: Address6) -> Self {
        core::net::Ipv6Addr::from(address.octets).to_canonical()
    }
}
