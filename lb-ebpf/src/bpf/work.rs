//! What a packet program works on. It lies in a per-CPU table, as two IPv6 keys and a record fill half of the
//! 512 bytes of stack a program has.
//!
//! Only tc and XDP programs use it: they run with bottom halves off and do not nest. What a program asks the
//! kernel to do with a packet is done after it has ended.

use aya_ebpf::bindings::bpf_fib_lookup as FibLookup;
use lb_ebpf::abi::endpoint::Endpoint;
use lb_ebpf::abi::family::Family;
use lb_ebpf::abi::flow::{Flow, FlowKey, Newcomer};

use crate::header::{Network, Transport};
use crate::route_cache::{Question, WAYS};

/// Working memory of one packet.
#[repr(C)]
pub(crate) struct Work<F: Family> {
    pub(crate) network: Network<F>,
    pub(crate) transport: Transport,
    /// Uses of the destination address.
    pub(crate) uses: u32,
    /// Endpoint chosen for a new flow, and its generation.
    pub(crate) endpoint: Endpoint<F>,
    pub(crate) generation: u32,
    /// Whether the new flow's client is this node itself.
    pub(crate) own: bool,
    /// Whether it dialled an address of its own.
    pub(crate) own_address: bool,
    /// Whether the new flow's client speaks to the endpoint itself, no service in between.
    pub(crate) direct: bool,
    /// Whether the new flow is to be masqueraded.
    pub(crate) masquerade: bool,
    /// Whether the packet's key has a record already, of a connection that ended.
    pub(crate) ended: bool,
    /// From whom the new flow may take its port, see `opening`.
    pub(crate) grip: u8,
    /// The second, its low half, in which this processor last ended an unproven flow to make room.
    pub(crate) displaced: u16,
    /// The device that XDP met last, and its link-layer address.
    pub(crate) mac_device: u32,
    pub(crate) mac: [u16; 3],
    /// Address of this node that a new flow is to be masqueraded with.
    pub(crate) masquerade_address: F::Addr,
    /// The packet's own key.
    pub(crate) key: FlowKey<F>,
    /// The reply key in question.
    pub(crate) reply: FlowKey<F>,
    /// The forward key that a reply entry names.
    pub(crate) forward: FlowKey<F>,
    /// The record in force.
    pub(crate) flow: Flow<F>,
    /// Another flow's record, in our way.
    pub(crate) other: Flow<F>,
    /// A flow on its way into its shard's queue, or out of it.
    pub(crate) newcomer: Newcomer<F>,
}

/// Whom a packet is handed to on its device: `struct bpf_redir_neigh`.
#[repr(C)]
pub(crate) struct NextHop {
    pub(crate) family: u32,
    pub(crate) address: [u32; 4],
}

/// The way out of a packet: the route that was looked up, and what the kernel needs to take it.
#[repr(C)]
pub(crate) struct Way<F: Family> {
    pub(crate) route: FibLookup,
    pub(crate) hop: NextHop,
    /// What the fast way asks for.
    pub(crate) asked: Question<F>,
    /// Hash of what was asked last in each place of the ways that are kept: here, as most questions need no more of them.
    pub(crate) last: [u32; WAYS],
    /// The last packet that went past the host's stack, as it left: egress of its device meets it next. A scope of 0
    /// says that there is none.
    pub(crate) sent: FlowKey<F>,
}
