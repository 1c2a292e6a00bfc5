//! Layouts shared by the programs, the agent and the CLI.
//!
//! Every struct is `repr(C)`, has no padding, and any byte pattern is a valid value. A change of any
//! layout here needs a new [`ABI_VERSION`]: pins live in a directory that carries it, so tables of
//! another layout are never opened.

pub mod address;
pub mod address_filter;
pub mod affinity;
pub mod counter;
pub mod device;
pub mod endpoint;
pub mod family;
pub mod flow;
pub mod fragment;
pub mod frontend;
pub mod name;
pub mod outbound;
pub mod settings;
pub mod socket;
pub mod source_range;
pub mod target;

/// Number in the pin directory's name (`…/beeline/v3`).
pub const ABI_VERSION: u32 = 3;

/// IP protocol numbers that a frontend may carry.
pub const TCP: u8 = 6;
/// See [`TCP`].
pub const UDP: u8 = 17;
/// See [`TCP`].
pub const SCTP: u8 = 132;

/// Endpoint records per segment; a block of endpoints may lie in several.
pub const SEGMENT_RECORDS: u32 = 4096;
/// Low bits of a record index that select the record within its segment.
pub const SEGMENT_SHIFT: u32 = 12;
/// Segments a table can have: 4 Mi records.
pub const SEGMENTS: u32 = 1024;

/// Shards of the flow table. Each is a hash map of its own, so that a sweep of one shard is short and
/// a shard can grow alone.
pub const FLOW_SHARDS: u32 = 32;

/// Table names as `bpftool map show` prints them: at most 15 characters, all different.
///
/// An "outer" table holds inner maps: slot 0 alone for hash tables that grow by replacement, one slot a
/// segment for arrays, one a shard for flows.
pub mod table {
    /// Outer, one slot: `FrontendKey<V4>` → `Frontend`.
    pub const FRONTENDS4: &str = "frontends4";
    /// Outer, one slot: `FrontendKey<V6>` → `Frontend`.
    pub const FRONTENDS6: &str = "frontends6";
    /// Outer, one slot: IPv4 address → `AddressUse`.
    pub const ADDRESSES4: &str = "addresses4";
    /// Outer, one slot: IPv6 address → `AddressUse`.
    pub const ADDRESSES6: &str = "addresses6";
    /// Array of `u64`: bits of the hashes that addresses of `ADDRESSES4` have.
    pub const ADDRESS_FILTER4: &str = "address_filter4";
    /// The same of `ADDRESSES6`.
    pub const ADDRESS_FILTER6: &str = "address_filter6";
    /// Outer, a slot per segment: arrays of `Endpoint<V4>`.
    pub const ENDPOINTS4: &str = "endpoints4";
    /// Outer, a slot per segment: arrays of `Endpoint<V6>`.
    pub const ENDPOINTS6: &str = "endpoints6";
    /// Outer, a slot per segment: arrays of `EndpointState`, indexed by endpoint id.
    pub const ENDPOINT_STATE: &str = "endpoint_state";
    /// Outer, one slot: service port id → `ServiceName`.
    pub const NAMES: &str = "service_names";
    /// Outer, a slot per shard: `FlowKey<V4>` → `Flow<V4>`.
    pub const FLOWS4: &str = "flows4";
    /// Outer, a slot per shard: `FlowKey<V6>` → `Flow<V6>`.
    pub const FLOWS6: &str = "flows6";
    /// Outer, a slot per shard: reply `FlowKey<V4>` → forward `FlowKey<V4>`.
    pub const REPLIES4: &str = "replies4";
    /// Outer, a slot per shard: reply `FlowKey<V6>` → forward `FlowKey<V6>`.
    pub const REPLIES6: &str = "replies6";
    /// Outer, a slot per shard: queues of `Newcomer<V4>`.
    pub const NEWCOMERS4: &str = "newcomers4";
    /// Outer, a slot per shard: queues of `Newcomer<V6>`.
    pub const NEWCOMERS6: &str = "newcomers6";
    /// Array of `Target`, by a hash of the address.
    pub const TARGETS: &str = "targets";
    /// Array of `u32`, by a hash of the address: when a flow of its was last seen alive, seconds; 0: it has none.
    pub const CLIENTS: &str = "clients";
    /// Hash: `AffinityKey` → `Affinity`.
    pub const AFFINITY: &str = "affinity";
    /// Outer, one slot: `TombstoneKey` → `Tombstone`.
    pub const TOMBSTONES: &str = "tombstones";
    /// LPM trie: `SourceRangeKey` → `SourceRange`.
    pub const SOURCE_RANGES: &str = "source_ranges";
    /// Hash: interface index → `Device`.
    pub const DEVICES: &str = "devices";
    /// Hash: interface index → `Mac`, of Ethernet devices that are uplinks.
    pub const MACS: &str = "macs";
    /// Array of one `Settings`.
    pub const SETTINGS: &str = "settings";
    /// Per-CPU array of `u64`, indexed by `Counter`.
    pub const COUNTERS: &str = "counters";
    /// Array of `SocketSlot`, by a socket's cookie: what connected sockets remember.
    pub const SOCKET_SLOTS: &str = "socket_slots";
    /// Socket storage: `SocketPeer` of a connected socket that found no slot.
    pub const SOCKET_PEER: &str = "socket_peer";
    /// Socket storage: `SocketPairs` of an unconnected UDP socket.
    pub const SOCKET_PAIRS: &str = "socket_pairs";
    /// Hash: `SocketMoreKey` → `SocketMore`, the pairs that do not fit into `SocketPairs`.
    pub const SOCKET_MORE: &str = "socket_more";
    /// Hash: `FragmentKey` → `Fragment`.
    pub const FRAGMENTS: &str = "fragment_ports";
    /// LRU hash: `OutboundKey` → `Outbound`.
    pub const OUTBOUND: &str = "outbound";
    /// Array of `u64`: a bit for each port that is a UDP NodePort of either family.
    pub const UDP_NODE_PORTS: &str = "udp_node_ports";
    /// Array of one `Sweeper`: the timer that removes what expired.
    pub const SWEEPER: &str = "sweeper";
    /// Per-CPU array of one buffer: headers of packets we answer ourselves.
    pub const SCRATCH: &str = "scratch";
}

/// A table key or value: plain bytes that kernel and user space may copy to each other.
///
/// # Safety
/// The type is `repr(C)`, has no padding, and every byte pattern is a valid value of it.
pub unsafe trait Record: Copy + 'static {}

// SAFETY: integers and byte arrays have no padding and no invalid values.
unsafe impl Record for u32 {}
// SAFETY: as above.
unsafe impl Record for u64 {}
// SAFETY: as above.
unsafe impl<const N: usize> Record for [u8; N] {}

/// Declares table records: fails the build when `$ty` is not exactly `$size` bytes (no padding, no
/// accidental growth) and marks it as [`Record`].
#[macro_export]
macro_rules! assert_layout {
    ($($ty:ty = $size:expr),+ $(,)?) => {
        $(
            const _: () = assert!(core::mem::size_of::<$ty>() == $size);
            // SAFETY: `repr(C)` of integers and arrays of such, and the size check leaves no room for padding.
            unsafe impl $crate::abi::Record for $ty {}
        )+
    };
}
