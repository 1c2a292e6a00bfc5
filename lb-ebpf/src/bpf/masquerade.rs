//! Flows whose packets reach the endpoint from an address of this node, so that its answers come back here
//! (spec §1.E.1).
//!
//! Where such a flow is met its destination is replaced and its source *port*, by one from our own pool. The
//! source address follows on egress of the device the packet leaves by, after the host has routed, fragmented
//! and filtered it. Answers get the client's address back on ingress, and the service's where the flow was met.

use aya_ebpf::bindings::bpf_fib_lookup as FibLookup;
use core::mem::zeroed;
use lb_ebpf::abi::address::{Address4, Address6, NODE, NODE_LOCAL};
use lb_ebpf::abi::device::UPLINK;
use lb_ebpf::abi::endpoint::{HOST, LOCAL};
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::flow::{
    LOCAL_ENDPOINT, MASQUERADE, MASQUERADED, OUTSIDE, OWN_ADDRESS, OWN_CLIENT, POD,
};
use lb_ebpf::abi::settings::{MASQUERADE_ALL, SNAT_LOCAL, Settings};
use lb_ebpf::tcp_state::Speaker;

use crate::fast::{self, Hop};
use crate::flow::{reply_entry, write_turned};
use crate::forward::Route;
use crate::lookup::now;
use crate::maps::{DEVICES, Tables};
use crate::packet::{FOUND, NO_NEIGHBOUR, Packet, TOO_BIG};
use crate::rewrite::{Rewrite, rewrite_answer, rewrite_both};
use crate::skb::Skb;
use crate::work::Work;
use crate::{DROP, NEXT};

/// `BPF_FIB_LOOKUP_SRC` (Linux 6.7): also choose a source address.
const WITH_SOURCE: u32 = 1 << 4;

/// Whose a new flow is (spec E6-E10).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    LocalPod,
    Other,
    /// Nothing tells local pods from others in this family: traffic to ClusterIPs is not masqueraded then.
    Unknown,
}

/// Whether a new flow is masqueraded.
///
/// Towards an endpoint of this node the client's address is kept, unless `--snat-local=kube-proxy` asks for what
/// kube-proxy does. A host-network endpoint of this node is never reached masqueraded (spec §8, B16): its
/// packets are delivered, not forwarded.
#[inline(always)]
pub(crate) fn wanted(
    settings: &Settings,
    internal: bool,
    local_policy: bool,
    origin: Origin,
    endpoint_flags: u16,
) -> bool {
    if endpoint_flags & LOCAL != 0
        && (endpoint_flags & HOST != 0 || settings.flags & SNAT_LOCAL == 0)
    {
        return false;
    }
    if internal {
        origin == Origin::Other || settings.flags & MASQUERADE_ALL != 0
    } else {
        !local_policy
    }
}

/// Whether a port lies in our pool.
#[inline(always)]
pub(crate) fn pooled(settings: &Settings, port: u16) -> bool {
    port >= settings.nat_port_first
        && port <= settings.nat_port_last
        && settings.nat_port_first != 0
}

/// Whether a packet may be an answer to a masqueraded flow.
#[inline(always)]
pub(crate) fn returns(settings: &Settings, uses: u32, destination_port: u16) -> bool {
    uses & (NODE | NODE_LOCAL) != 0 && pooled(settings, destination_port)
}

/// No verdict: the packet is no answer to a masqueraded flow.
pub(crate) const NOT_OURS: i32 = i32::MIN;

/// Finds the masqueraded flow that the packet at hand answers, and notes the answer there; false if there is none. Of the
/// record only the flags are sure to be at hand then.
#[inline(always)]
pub(crate) fn find_answered<F: Tables>(work: &mut Work<F>, settings: &Settings) -> bool {
    work.set_key(MASQUERADED);
    work.reply = work.key;
    let Some(entry) = reply_entry(&work.reply) else {
        return false;
    };
    let now = now();
    if work.recalls(&entry, now) {
        work.flow.flags = MASQUERADE;
        return true;
    }
    let Some(place) = work.follow(entry) else {
        return false;
    };
    let (_, state) = place.touch(
        &work.flow,
        work.key.protocol,
        work.transport.flags,
        Speaker::Endpoint,
        now,
    );
    entry.mark(work, settings, state, now);
    true
}

/// Gives an answer to a masqueraded flow its client's address back; the host then routes it there, or it goes the
/// fast way.
#[inline(always)]
pub(crate) fn answered<F: Hop, const SCOPE: u8>(
    skb: Skb,
    settings: &Settings,
    work: &mut Work<F>,
) -> i32 {
    if !find_answered(work, settings) {
        return NOT_OURS;
    }
    if work.flow.flags & OWN_CLIENT != 0 {
        if !rewrite_answer(&skb, work) {
            return DROP;
        }
        let local = work.flow.flags & LOCAL_ENDPOINT != 0;
        let hand_over = match SCOPE {
            POD => local,
            _ => work.flow.flags & OWN_ADDRESS != 0 || !expected(skb, work),
        };
        return if hand_over {
            skb.hand_over(work.network.offset)
        } else {
            NEXT
        };
    }
    // What a pod sends in an endpoint's name is for the stack to judge, which knows where that one's packets come from.
    if SCOPE == OUTSIDE && work.forward.scope == OUTSIDE && work.flow.flags & LOCAL_ENDPOINT == 0 {
        let action = fast::to_client(skb, work);
        if action != fast::NO {
            return action;
        }
    }
    let ports = (work.transport.source_port, work.transport.destination_port);
    let done = rewrite_both(
        &skb,
        work,
        (&work.network.source, ports.0),
        (&work.forward.source, ports.1),
    );
    if done { NEXT } else { DROP }
}

/// Whether a host which checks sources (`rp_filter`) expects the service's address, the source of the answer at hand, from
/// the device where the answer came in: tunnels and second uplinks bring those of endpoints, but do not lead to services.
#[inline(always)]
fn expected<F: Hop>(skb: Skb, work: &Work<F>) -> bool {
    let Some(way) = F::way() else { return false };
    let route = &mut way.route;
    // SAFETY: all fields may be zero.
    *route = unsafe { zeroed() };
    F::fill(route, F::UNSPECIFIED, F::read(&work.forward.destination));
    route.ifindex = skb.device();
    let answer = skb.route(route, 0);
    (answer == FOUND || answer == NO_NEIGHBOUR || answer == TOO_BIG)
        && route.ifindex == skb.device()
}

/// Puts this node's address into a packet of a masqueraded flow that leaves. `None`: the packet is something
/// else.
#[inline(always)]
pub(crate) fn mask_source<F: Rewrite>(
    skb: &Skb,
    settings: &Settings,
    work: &mut Work<F>,
) -> Option<i32> {
    if !pooled(settings, work.transport.source_port) {
        return None;
    }
    // The packet as an answer would be, where its flow was met.
    work.set_key(OUTSIDE);
    write_turned(&mut work.reply, &work.key);
    if work.find_reply().is_none() {
        work.reply.scope = POD;
        work.find_reply()?;
    }
    if work.flow.flags & MASQUERADE == 0 {
        return None;
    }
    let ports = (work.transport.source_port, work.transport.destination_port);
    let done = rewrite_both(
        skb,
        work,
        (&work.flow.new_source, ports.0),
        (&work.network.destination, ports.1),
    );
    Some(if done { NEXT } else { DROP })
}

/// Chooses the address that the new flow is masqueraded with: the one the host would use towards the endpoint
/// (spec E2), else that of the device the packet came in on.
#[inline(never)]
pub(crate) fn choose_address<F: NodeAddress>(skb: impl Packet, work: &mut Work<F>) -> bool {
    let Some(way) = F::way() else { return false };
    let route = &mut way.route;
    // SAFETY: all fields may be zero.
    *route = unsafe { zeroed() };
    F::fill(route, F::UNSPECIFIED, work.endpoint.address);
    route.ifindex = skb.device();
    let mut result = skb.route(route, WITH_SOURCE);
    let tells_source = result >= 0;
    if !tells_source {
        // The flag is unknown to kernels before 6.7.
        F::fill(route, F::UNSPECIFIED, work.endpoint.address);
        route.ifindex = skb.device();
        result = skb.route(route, 0);
    }
    let mut found = F::UNSPECIFIED;
    if result == FOUND || result == NO_NEIGHBOUR || result == TOO_BIG {
        found = if tells_source {
            F::source(route)
        } else {
            F::of_device(route.ifindex)
        };
        if !is_uplink(route.ifindex) {
            // A pod of this node whose slice names no node: its packets are for the stack, and for what filters there.
            work.endpoint.flags |= LOCAL;
        }
    }
    if found == F::UNSPECIFIED {
        found = F::of_device(skb.device());
    }
    work.masquerade_address = found;
    found != F::UNSPECIFIED
}

#[inline(always)]
fn is_uplink(device: u32) -> bool {
    match DEVICES.get_ptr(device) {
        // SAFETY: an element of the table, which changes only with the device.
        Some(device) => unsafe { (*device).role == UPLINK },
        None => false,
    }
}

/// Addresses of devices.
pub(crate) trait NodeAddress: Route {
    /// The address that flows leaving by a device are masqueraded with.
    fn of_device(device: u32) -> Self::Addr;
    /// The source address that a route lookup came up with.
    fn source(route: &FibLookup) -> Self::Addr;
}

impl NodeAddress for V4 {
    #[inline(always)]
    fn of_device(device: u32) -> <V4 as Family>::Addr {
        match DEVICES.get_ptr(device) {
            // SAFETY: an element of the table, which changes only with the device.
            Some(device) => V4::read(unsafe { &(*device).address4 }),
            None => V4::UNSPECIFIED,
        }
    }

    #[inline(always)]
    fn source(route: &FibLookup) -> <V4 as Family>::Addr {
        // SAFETY: the field of this family, filled in by the lookup.
        Address4::from_word(unsafe { route.__bindgen_anon_3.ipv4_src })
    }
}

impl NodeAddress for V6 {
    #[inline(always)]
    fn of_device(device: u32) -> <V6 as Family>::Addr {
        match DEVICES.get_ptr(device) {
            // SAFETY: as above.
            Some(device) => V6::read(unsafe { &(*device).address6 }),
            None => V6::UNSPECIFIED,
        }
    }

    #[inline(always)]
    fn source(route: &FibLookup) -> <V6 as Family>::Addr {
        // SAFETY: the field of this family, filled in by the lookup.
        Address6::from_words(unsafe { route.__bindgen_anon_3.ipv6_src })
    }
}
