//! Every table of the programs. `docs/maps.md` has a row for each: owner, life, what happens when full.
//!
//! "Outer" tables hold inner maps that the agent creates: it can then replace a small hash by a bigger one,
//! or add a segment, with one write and while traffic flows. The inner type given here is the template the
//! verifier checks against; sizes of hashes may differ from it.

use aya_ebpf::bindings::bpf_timer;
use aya_ebpf::btf_maps::{
    Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, Queue, SkStorage,
};
use aya_ebpf::macros::btf_map;
use lb_ebpf::abi::address::{Address4, Address6, AddressUse};
use lb_ebpf::abi::address_filter::WORDS as FILTER_WORDS;
use lb_ebpf::abi::affinity::{Affinity, AffinityKey};
use lb_ebpf::abi::counter::COUNTERS as COUNTER_SLOTS;
use lb_ebpf::abi::device::{Device, Mac};
use lb_ebpf::abi::endpoint::{Endpoint, EndpointState};
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::flow::{Flow, FlowKey, Newcomer};
use lb_ebpf::abi::fragment::{Fragment, FragmentKey};
use lb_ebpf::abi::frontend::{Frontend, FrontendKey};
use lb_ebpf::abi::name::ServiceName;
use lb_ebpf::abi::outbound::{Outbound, OutboundKey, PORT_WORDS};
use lb_ebpf::abi::settings::Settings;
use lb_ebpf::abi::socket::{
    SLOTS, SocketMore, SocketMoreKey, SocketPairs, SocketPeer, SocketSlot, Tombstone, TombstoneKey,
};
use lb_ebpf::abi::source_range::{SourceRange, SourceRangePrefix};
use lb_ebpf::abi::target::{TARGETS as TARGET_SLOTS, Target};
use lb_ebpf::abi::{FLOW_SHARDS, SEGMENT_RECORDS, SEGMENTS};

use crate::route_cache::{CachedRoute, WAYS};
use crate::work::{Way, Work};

/// `BPF_F_NO_PREALLOC`: elements are allocated as they come, so an empty table costs its buckets only.
const GROW: usize = 1;

/// Entries of a hash that the agent replaces by a bigger one when it fills.
const START: usize = 1024;

/// Flows a shard starts with: with no agent there to let it grow, that is 32,768 flows of a family.
const SHARD_START: usize = 1024;

/// Reply entries a shard starts with: a masqueraded flow has two, and they fall into shards as they like. Empty, the
/// buckets of both families' flows and replies take 3 MiB.
const REPLIES_START: usize = 2 * SHARD_START;

/// Flows of a shard that may be unproven at a time, to start with.
const NEWCOMERS_START: usize = SHARD_START / 4;

/// Source ranges of all services. A trie allocates its nodes as they come, so the number costs nothing: it is where other
/// tables stop growing.
const RANGES: usize = 1 << 20;

/// Slots of a flow table: a current and a previous map for each shard.
const SHARD_SLOTS: usize = 2 * FLOW_SHARDS as usize;

type Growing<K, V> = ArrayOfMaps<HashMap<K, V, START, GROW>, 1>;
type Filter = Array<u64, { FILTER_WORDS as usize }>;
type Segments<V> = ArrayOfMaps<Array<V, { SEGMENT_RECORDS as usize }>, { SEGMENTS as usize }>;
/// The queue of one shard.
pub(crate) type Newcomers<F> = Queue<Newcomer<F>, NEWCOMERS_START>;
type NewcomerShards<F> = ArrayOfMaps<Newcomers<F>, { FLOW_SHARDS as usize }>;
pub(crate) type Shards<K, V, const START: usize> =
    ArrayOfMaps<HashMap<K, V, START, GROW>, SHARD_SLOTS>;
type FlowShards<F> = Shards<FlowKey<F>, Flow<F>, SHARD_START>;
type ReplyShards<F> = Shards<FlowKey<F>, FlowKey<F>, REPLIES_START>;

#[btf_map(name = "frontends4")]
pub(crate) static FRONTENDS4: Growing<FrontendKey<V4>, Frontend> = Growing::new();
#[btf_map(name = "frontends6")]
pub(crate) static FRONTENDS6: Growing<FrontendKey<V6>, Frontend> = Growing::new();
#[btf_map(name = "addresses4")]
pub(crate) static ADDRESSES4: Growing<Address4, AddressUse> = Growing::new();
#[btf_map(name = "addresses6")]
pub(crate) static ADDRESSES6: Growing<Address6, AddressUse> = Growing::new();
#[btf_map(name = "address_filter4")]
pub(crate) static ADDRESS_FILTER4: Filter = Filter::new();
#[btf_map(name = "address_filter6")]
pub(crate) static ADDRESS_FILTER6: Filter = Filter::new();
#[btf_map(name = "endpoints4")]
pub(crate) static ENDPOINTS4: Segments<Endpoint<V4>> = Segments::new();
#[btf_map(name = "endpoints6")]
pub(crate) static ENDPOINTS6: Segments<Endpoint<V6>> = Segments::new();
#[btf_map(name = "endpoint_state")]
pub(crate) static ENDPOINT_STATE: Segments<EndpointState> = Segments::new();
#[btf_map(name = "service_names")]
pub(crate) static SERVICE_NAMES: Growing<u32, ServiceName> = Growing::new();
#[btf_map(name = "tombstones")]
pub(crate) static TOMBSTONES: Growing<TombstoneKey, Tombstone> = Growing::new();

#[btf_map(name = "flows4")]
pub(crate) static FLOWS4: FlowShards<V4> = FlowShards::new();
#[btf_map(name = "flows6")]
pub(crate) static FLOWS6: FlowShards<V6> = FlowShards::new();
#[btf_map(name = "replies4")]
pub(crate) static REPLIES4: ReplyShards<V4> = ReplyShards::new();
#[btf_map(name = "replies6")]
pub(crate) static REPLIES6: ReplyShards<V6> = ReplyShards::new();
#[btf_map(name = "newcomers4")]
pub(crate) static NEWCOMERS4: NewcomerShards<V4> = NewcomerShards::new();
#[btf_map(name = "newcomers6")]
pub(crate) static NEWCOMERS6: NewcomerShards<V6> = NewcomerShards::new();
#[btf_map(name = "targets")]
pub(crate) static TARGETS: Array<Target, { TARGET_SLOTS as usize }> = Array::new();
#[btf_map(name = "clients")]
pub(crate) static CLIENTS: Array<u32, { TARGET_SLOTS as usize }> = Array::new();
#[btf_map(name = "fragment_ports")]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, Fragment, 4096> = LruHashMap::new();
#[btf_map(name = "outbound")]
pub(crate) static OUTBOUND: LruHashMap<OutboundKey, Outbound, 4096> = LruHashMap::new();
#[btf_map(name = "udp_node_ports")]
pub(crate) static UDP_NODE_PORTS: Array<u64, { PORT_WORDS as usize }> = Array::new();

#[btf_map(name = "affinity")]
pub(crate) static AFFINITY: HashMap<AffinityKey, Affinity, 65536, GROW> = HashMap::new();
#[btf_map(name = "source_ranges")]
pub(crate) static SOURCE_RANGES: LpmTrie<SourceRangePrefix, SourceRange, RANGES, GROW> =
    LpmTrie::new();
#[btf_map(name = "devices")]
pub(crate) static DEVICES: HashMap<u32, Device, 4096, GROW> = HashMap::new();
#[btf_map(name = "macs")]
pub(crate) static MACS: HashMap<u32, Mac, 4096, GROW> = HashMap::new();
#[btf_map(name = "settings")]
pub(crate) static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map(name = "counters")]
pub(crate) static COUNTERS: PerCpuArray<u64, { COUNTER_SLOTS as usize }> = PerCpuArray::new();

#[btf_map(name = "socket_slots")]
pub(crate) static SOCKET_SLOTS: Array<SocketSlot, { SLOTS as usize }> = Array::new();
#[btf_map(name = "socket_peer")]
pub(crate) static SOCKET_PEER: SkStorage<SocketPeer> = SkStorage::new();
#[btf_map(name = "socket_pairs")]
pub(crate) static SOCKET_PAIRS: SkStorage<SocketPairs> = SkStorage::new();
#[btf_map(name = "socket_more")]
pub(crate) static SOCKET_MORE: HashMap<SocketMoreKey, SocketMore, 16384, GROW> = HashMap::new();

/// The sweep's timer and where it goes on.
#[repr(C)]
pub(crate) struct Sweeper {
    pub(crate) timer: bpf_timer,
    /// Next shard.
    pub(crate) cursor: u32,
    /// Deletions left in this tick. Read from here as the verifier must not know its value: a loop counter
    /// that starts from a constant is unrolled round by round.
    pub(crate) budget: u32,
}

#[btf_map(name = "sweeper")]
pub(crate) static SWEEPER: Array<Sweeper, 1> = Array::new();

/// Room for the headers of a packet we answer.
#[repr(C)]
pub(crate) struct Scratch {
    pub(crate) bytes: [u8; 256],
}

#[btf_map(name = "scratch")]
pub(crate) static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

#[btf_map(name = "work4")]
static WORK4: PerCpuArray<Work<V4>, 1> = PerCpuArray::new();
#[btf_map(name = "work6")]
static WORK6: PerCpuArray<Work<V6>, 1> = PerCpuArray::new();
#[btf_map(name = "way4")]
static WAY4: PerCpuArray<Way<V4>, 1> = PerCpuArray::new();
#[btf_map(name = "way6")]
static WAY6: PerCpuArray<Way<V6>, 1> = PerCpuArray::new();
#[btf_map(name = "route_cache4")]
static ROUTE_CACHE4: PerCpuArray<CachedRoute<V4>, WAYS> = PerCpuArray::new();
#[btf_map(name = "route_cache6")]
static ROUTE_CACHE6: PerCpuArray<CachedRoute<V6>, WAYS> = PerCpuArray::new();

/// The tables of a family.
pub(crate) trait Tables: Family {
    fn frontends() -> &'static Growing<FrontendKey<Self>, Frontend>;
    fn addresses() -> &'static Growing<Self::Addr, AddressUse>;
    fn address_filter() -> &'static Filter;
    fn endpoints() -> &'static Segments<Endpoint<Self>>;
    fn flows() -> &'static FlowShards<Self>;
    fn replies() -> &'static ReplyShards<Self>;
    fn newcomers() -> &'static NewcomerShards<Self>;
    /// Working memory of the packet at hand.
    fn work() -> Option<&'static mut Work<Self>>;
    /// Its way out.
    fn way() -> Option<&'static mut Way<Self>>;
    /// One of the routes that were looked up last.
    fn route_cache(place: u32) -> Option<&'static mut CachedRoute<Self>>;
}

macro_rules! tables {
    ($family:ty, $frontends:ident, $addresses:ident, $filter:ident, $endpoints:ident, $flows:ident, $replies:ident, $newcomers:ident, $work:ident, $way:ident, $ways:ident) => {
        impl Tables for $family {
            #[inline(always)]
            fn frontends() -> &'static Growing<FrontendKey<Self>, Frontend> {
                &$frontends
            }
            #[inline(always)]
            fn addresses() -> &'static Growing<<Self as Family>::Addr, AddressUse> {
                &$addresses
            }
            #[inline(always)]
            fn address_filter() -> &'static Filter {
                &$filter
            }
            #[inline(always)]
            fn endpoints() -> &'static Segments<Endpoint<Self>> {
                &$endpoints
            }
            #[inline(always)]
            fn flows() -> &'static FlowShards<Self> {
                &$flows
            }
            #[inline(always)]
            fn replies() -> &'static ReplyShards<Self> {
                &$replies
            }
            #[inline(always)]
            fn newcomers() -> &'static NewcomerShards<Self> {
                &$newcomers
            }
            #[inline(always)]
            fn work() -> Option<&'static mut Work<Self>> {
                // SAFETY: this CPU's own, and used by programs that do not nest (see `work`).
                $work.get_ptr_mut(0).map(|work| unsafe { &mut *work })
            }
            #[inline(always)]
            fn way() -> Option<&'static mut Way<Self>> {
                // SAFETY: as above.
                $way.get_ptr_mut(0).map(|way| unsafe { &mut *way })
            }
            #[inline(always)]
            fn route_cache(place: u32) -> Option<&'static mut CachedRoute<Self>> {
                // SAFETY: as above.
                $ways.get_ptr_mut(place).map(|way| unsafe { &mut *way })
            }
        }
    };
}

tables!(
    V4,
    FRONTENDS4,
    ADDRESSES4,
    ADDRESS_FILTER4,
    ENDPOINTS4,
    FLOWS4,
    REPLIES4,
    NEWCOMERS4,
    WORK4,
    WAY4,
    ROUTE_CACHE4
);
tables!(
    V6,
    FRONTENDS6,
    ADDRESSES6,
    ADDRESS_FILTER6,
    ENDPOINTS6,
    FLOWS6,
    REPLIES6,
    NEWCOMERS6,
    WORK6,
    WAY6,
    ROUTE_CACHE6
);
