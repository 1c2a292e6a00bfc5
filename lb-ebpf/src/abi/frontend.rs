//! Frontends: what clients dial.

use super::family::Family;

/// Address, port and protocol that clients dial. A NodePort is filed once under the unspecified address.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FrontendKey<F: Family> {
    /// Dialled address, or the unspecified one for a NodePort.
    pub address: F::Addr,
    /// Dialled port, host order.
    pub port: u16,
    /// [`super::TCP`], [`super::UDP`] or [`super::SCTP`].
    pub protocol: u8,
    /// Zero.
    pub zero: u8,
}

/// Where a frontend leads. Replaced as a whole: a reader sees the old one or the new one.
///
/// A hash element may be reused for another key while a reader holds it, so readers copy it out and keep
/// the copy only if `generation == generation_end` and `check` fits the key.
///
/// The block holds each endpoint once, ordered so that both sets are ranges:
/// `[ local only | local and cluster | cluster only ]`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Frontend {
    /// Number of this write; differs between any two writes of one agent run.
    pub generation: u32,
    /// Service port id: index into `service_names`, part of affinity keys.
    pub service: u32,
    /// Record index of the block's first endpoint: segment × 4096 + offset.
    pub block: u32,
    /// The local set is records `0 .. local_count` of the block.
    pub local_count: u32,
    /// The cluster set is records `cluster_first .. cluster_first + cluster_count`.
    pub cluster_first: u32,
    /// See `cluster_first`.
    pub cluster_count: u32,
    /// Session affinity `ClientIP`: seconds after the last new connection; 0 = none.
    pub affinity_seconds: u32,
    /// Bits of this module.
    pub flags: u32,
    /// [`key_check`] of the key this was written for.
    pub check: u32,
    /// Equals `generation`.
    pub generation_end: u32,
}

/// Mask of the kind in [`Frontend::flags`].
pub const KIND: u32 = 7;
/// Kind: the Service's ClusterIP.
pub const CLUSTER_IP: u32 = 1;
/// Kind: a NodePort.
pub const NODE_PORT: u32 = 2;
/// Kind: one of `spec.externalIPs`.
pub const EXTERNAL_IP: u32 = 3;
/// Kind: a load-balancer ingress address.
pub const LOAD_BALANCER: u32 = 4;
/// The traffic policy that governs this frontend (internal for a ClusterIP, external for the others) is
/// Local: the local set counts.
pub const LOCAL_POLICY: u32 = 8;
/// Some usable endpoint exists somewhere. With an empty set this is DROP, without it REJECT (spec §2).
pub const HAS_ENDPOINTS: u32 = 16;
/// `loadBalancerSourceRanges` apply: the source must be in `source_ranges` under this service port.
pub const SOURCE_RANGES: u32 = 32;
/// Source ranges allow this node's own addresses; decided by the agent for sockets of the host.
pub const NODE_ALLOWED: u32 = 64;

/// Ties a [`Frontend`] to its key; see there.
#[inline(always)]
pub fn key_check<F: Family>(key: &FrontendKey<F>) -> u32 {
    F::fold(key.address).wrapping_mul(0x9e37_79b1) ^ ((key.port as u32) << 8 | key.protocol as u32)
}

crate::assert_layout!(FrontendKey<super::family::V4> = 8, FrontendKey<super::family::V6> = 20, Frontend = 40);
