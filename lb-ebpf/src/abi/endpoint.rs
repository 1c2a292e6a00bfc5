//! Endpoints: what answers behind a frontend.

use super::family::Family;

/// One endpoint of a block. Never changed while a published frontend can reach it.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Endpoint<F: Family> {
    /// Address.
    pub address: F::Addr,
    /// Port, host order.
    pub port: u16,
    /// Bits of this module.
    pub flags: u16,
    /// Endpoint id: index into `endpoint_state`.
    pub id: u32,
    /// Service port id; equals the frontend's.
    pub service: u32,
}

/// The endpoint is on this node: its slice says so (spec B8), or its address is one of this node's.
pub const LOCAL: u16 = 1;
/// The endpoint's address is one of this node's own (a host-network pod of this node).
pub const HOST: u16 = 2;

/// Life of an endpoint id, which names one address and port within one service port.
///
/// Whoever remembered `(id, generation)` (a UDP flow, a UDP socket, an affinity record) finds out here in
/// one array access whether that endpoint still serves.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EndpointState {
    /// Raised when the endpoint stops serving, and before the id names another endpoint.
    pub generation: u32,
    /// Bits of this module.
    pub flags: u32,
}

/// In the cluster set: affinity may return to it where the cluster set is used.
pub const IN_CLUSTER: u32 = 1;
/// In the local set.
pub const IN_LOCAL: u32 = 2;
/// Serving (spec B7): UDP flows stay on it, whatever set it is in.
pub const SERVING: u32 = 4;

crate::assert_layout!(Endpoint<super::family::V4> = 16, Endpoint<super::family::V6> = 28, EndpointState = 8);
