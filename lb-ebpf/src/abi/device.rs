//! Devices our packet programs sit on. The key is the interface index (`u32`).

use super::address::{Address4, Address6};

/// What a program must know about the device a packet came in on.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Device {
    /// [`POD`], [`UPLINK`] or [`LOOPBACK`].
    pub role: u32,
    /// Interface index of the bridge this device is a port of, or 0.
    pub bridge: u32,
    /// Length of the link-layer header: 14, or 0 on devices without one (tun, WireGuard).
    pub header_length: u32,
    /// MTU in bytes.
    pub mtu: u32,
    /// Bits of this module.
    pub flags: u32,
    /// Address that flows leaving here are masqueraded with; unspecified if the device has none.
    pub address4: Address4,
    /// Likewise, IPv6.
    pub address6: Address6,
}

/// Host side of a pod's veth.
pub const POD: u32 = 1;
/// The way to other hosts.
pub const UPLINK: u32 = 2;
/// Where this node's packets to its own addresses pass.
pub const LOOPBACK: u32 = 3;

/// The device's driver sends back what its own XDP program tells it to. One that cannot drops it unseen.
pub const SENDS_BACK: u32 = 1;
/// The device sends what XDP redirects to it, from itself or another one. One that cannot drops it unseen.
pub const TRANSMITS: u32 = 2;

/// A device's own link-layer address: XDP also meets frames for others.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mac {
    /// As on the wire.
    pub octets: [u8; 6],
    /// Zero.
    pub zero: [u8; 2],
}

crate::assert_layout!(Device = 40, Mac = 8);
