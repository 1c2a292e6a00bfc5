//! What socket hooks remember, in a slot or in storage that is given back with the socket.
//!
//! Addresses are 16 bytes, IPv4 as `::ffff:a.b.c.d`, so that one record serves an IPv6 socket that
//! speaks IPv4.

use super::address::Address6;

/// An endpoint and the service address the program dialled to get it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SocketPeer {
    /// Endpoint address.
    pub endpoint_address: Address6,
    /// Dialled address.
    pub service_address: Address6,
    /// Endpoint port, host order; 0 marks an unused record.
    pub endpoint_port: u16,
    /// Dialled port, host order.
    pub service_port: u16,
    /// Endpoint id.
    pub endpoint: u32,
    /// Endpoint generation at selection.
    pub endpoint_generation: u32,
    /// Service port id.
    pub service: u32,
}

/// Slots for what sockets remember: 1 MiB. Cookies are numbers in the order of sockets, so that sockets of one time have
/// slots of their own.
pub const SLOTS: u32 = 16_384;

/// A slot, found by the low bits of a socket's cookie.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SocketSlot {
    /// Cookie of the socket that holds it; 0 while none does.
    pub cookie: u64,
    /// Sockets that hold it, or are just trying to: only one of them has it.
    pub holders: u32,
    /// Zero.
    pub zero: u32,
    /// What it remembers.
    pub peer: SocketPeer,
}

/// Pairs an unconnected UDP socket keeps by itself; further ones go to `socket_more`.
pub const PAIRS: usize = 8;

/// The pairs of an unconnected UDP socket.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SocketPairs {
    /// Records; order of arrival, wrapping.
    pub pairs: [SocketPeer; PAIRS],
    /// Where the next one goes.
    pub next: u32,
    /// Zero.
    pub zero: u32,
}

/// Key of a pair that was pushed out of its socket's own records.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SocketMoreKey {
    /// Socket cookie.
    pub cookie: u64,
    /// Endpoint address.
    pub endpoint_address: Address6,
    /// Endpoint port, host order.
    pub endpoint_port: u16,
    /// Zero.
    pub zero: [u16; 3],
}

/// See [`SocketMoreKey`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SocketMore {
    /// Dialled address.
    pub service_address: Address6,
    /// Dialled port, host order.
    pub service_port: u16,
    /// Zero.
    pub zero: u16,
    /// When it was pushed out, seconds.
    pub created: u32,
}

/// A UDP endpoint that vanished: packets to it from pods are answered with port-unreachable, so that
/// connected sockets learn of it at their next send.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct TombstoneKey {
    /// Endpoint address.
    pub address: Address6,
    /// Endpoint port, host order.
    pub port: u16,
    /// [`super::UDP`].
    pub protocol: u8,
    /// Zero.
    pub zero: u8,
}

/// See [`TombstoneKey`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tombstone {
    /// When the endpoint vanished, seconds.
    pub since: u32,
}

crate::assert_layout!(
    SocketPeer = 48,
    SocketSlot = 64,
    SocketPairs = 48 * PAIRS + 8,
    SocketMoreKey = 32,
    SocketMore = 24,
    TombstoneKey = 20,
    Tombstone = 4,
);
