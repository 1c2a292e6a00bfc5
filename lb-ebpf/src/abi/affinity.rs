//! Session affinity `ClientIP` (spec §1.F), shared by socket hooks and packet path.

use super::address::Address6;

/// Client and service port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct AffinityKey {
    /// Client address as 16 bytes (IPv4 as `::ffff:a.b.c.d`); a socket without a source address yet is
    /// filed under its network namespace, see [`netns_client`].
    pub client: Address6,
    /// Service port id.
    pub service: u32,
    /// Of which set of endpoints the client was given one: [`CLUSTER`] or [`LOCAL`]. Who dials a Service by addresses of
    /// different policies has an endpoint in each, as with kube-proxy, where each endpoint knows its clients.
    pub set: u32,
}

/// All endpoints.
pub const CLUSTER: u32 = 0;
/// Those of this node.
pub const LOCAL: u32 = 1;

/// The endpoint this client got last.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Affinity {
    /// Endpoint address as 16 bytes.
    pub endpoint_address: Address6,
    /// Endpoint port, host order.
    pub endpoint_port: u16,
    /// The endpoint's flags, see [`super::endpoint`].
    pub endpoint_flags: u16,
    /// Endpoint id.
    pub endpoint: u32,
    /// Its generation; another one means the endpoint is gone.
    pub endpoint_generation: u32,
    /// Service port id; equals the key's, as an element may be reused under a reader.
    pub service: u32,
    /// Last new connection, seconds.
    pub last_used: u32,
    /// Timeout in force then, for the sweep; whoever looks a client up goes by the frontend's.
    pub timeout: u32,
}

/// Client id of a network namespace: the discard prefix `100::/64` (RFC 6666), which no client has as its
/// address, and the namespace cookie.
#[inline(always)]
pub fn netns_client(cookie: u64) -> Address6 {
    Address6::from_words([
        0x0100_0000_u32.to_be(),
        0,
        (cookie >> 32) as u32,
        cookie as u32,
    ])
}

crate::assert_layout!(AffinityKey = 24, Affinity = 40);
