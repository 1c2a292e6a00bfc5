//! The fast way: a packet of a masqueraded flow goes straight to the next hop, past the host's stack.
//!
//! Only where nothing is left for the stack to do: there is a route that an ordinary device serves, the packet
//! fits it, and its TTL allows a hop. Everything else (fragmentation, ICMP errors of our own, tunnels that want metadata)
//! takes the stack's way, with the same flow, and fragments together. So does all where the operator says so
//! (`--forwarding=stack`), as netfilter's forward hook and IPsec policies see nothing of what goes here.

use core::mem::zeroed;
use lb_ebpf::abi::flow::{OUTSIDE, OWN_CLIENT};
use lb_ebpf::abi::settings::STACK_FORWARDS;

use crate::DROP;
use crate::forward::Route;
use crate::header::{Network, Part, Wire, lead_to_stack};
use crate::icmp_error::Quoted;
use crate::lookup::settings;
use crate::packet::{FOUND, Packet};
use crate::rewrite::{Rewrite, rewrite_and_hop};
use crate::route_cache::{keep, recall};
use crate::skb::Skb;
use crate::work::Work;

/// The packet takes the stack's way.
pub(crate) const NO: i32 = i32::MIN;

/// Finds the way towards `destination`, and the manner of leaving; 0 if the packet is one for the stack.
///
/// [`recall`] works on the same [`crate::work::Way`], which the compiler cannot see: no reference to it outlives the call.
#[inline(always)]
fn way_out<F: Hop, P: Packet>(skb: &P, work: &Work<F>, destination: &F::Addr) -> i32 {
    // A packet without a hop left is for the stack, which tells its sender.
    if work.network.hops <= 1 {
        return 0;
    }
    if work.network.part == Part::Later && work.transport.stack_way != 0 {
        return 0;
    }
    // As the stack would ask: for a packet whose source is not replaced yet. What the node itself sends has none before
    // there is a route; its loopback address would find no way out.
    let Some(way) = F::way() else { return 0 };
    way.asked.source = if work.flow.flags & OWN_CLIENT != 0 {
        F::UNSPECIFIED
    } else {
        F::read(&work.network.source)
    };
    way.asked.destination = F::read(destination);
    way.asked.device = skb.device();
    way.asked.length = skb.datagram(&work.network);
    way.asked.early = (!P::PASSES_EGRESS).into();
    let manner = recall::<F>();
    if manner != 0 {
        return manner;
    }
    let Some(way) = F::way() else { return 0 };
    let route = &mut way.route;
    // SAFETY: all fields may be zero.
    *route = unsafe { zeroed() };
    F::fill(
        route,
        F::read(&way.asked.source),
        F::read(&way.asked.destination),
    );
    route.ifindex = skb.device();
    // So that the lookup minds the route's own MTU. A packet of more than this fits no device but as many small ones.
    route.__bindgen_anon_1.tot_len = way.asked.length.min(u32::from(u16::MAX)) as u16;
    let answer = skb.route(route, 0);
    let manner = skb.way(answer, route);
    if manner == 0 || !skb.fits(answer, route, P::headers(&work.network).0) {
        return 0;
    }
    if answer == FOUND {
        return keep::<F>(manner);
    }
    manner
}

/// Sends a client's packet to its endpoint, or says [`NO`] with the packet untouched.
#[inline(never)]
pub(crate) fn to_endpoint<F: Hop>(skb: impl Packet, work: &Work<F>) -> i32 {
    let flow = &work.flow;
    translate(
        skb,
        work,
        (&flow.new_source, flow.new_source_port),
        (&flow.new_destination, flow.new_destination_port),
    )
}

/// Sends an endpoint's answer to its client, or says [`NO`] with the packet untouched.
#[inline(never)]
pub(crate) fn to_client<F: Hop>(skb: impl Packet, work: &Work<F>) -> i32 {
    let asked = &work.forward;
    translate(
        skb,
        work,
        (&asked.destination, asked.destination_port),
        (&asked.source, asked.source_port),
    )
}

/// The manner in which an ICMP message can go straight to `destination`; 0 if it is one for the stack.
#[inline(never)]
pub(crate) fn way_of_message<F: Hop>(skb: Skb, work: &Work<F>, destination: &F::Addr) -> i32 {
    way_out(&skb, work, destination)
}

/// Takes a hop off an ICMP message that is translated already, and sends it.
#[inline(never)]
pub(crate) fn carry<F: Hop + Quoted>(skb: Skb, work: &Work<F>, manner: i32) -> i32 {
    let Some(way) = F::way() else { return DROP };
    let network = &work.network;
    if !F::take_hop(&skb, network) || !skb.give_link_header(network.offset) {
        return DROP;
    }
    // On egress there is nothing to tell it by, and nothing that anybody would do to it.
    way.sent.scope = 0;
    skb.leave(way, manner)
}

/// Gives a packet these ends and a hop, and sends it.
#[inline(always)]
fn translate<F: Hop, P: Packet>(
    skb: P,
    work: &Work<F>,
    source: (&F::Addr, u16),
    destination: (&F::Addr, u16),
) -> i32 {
    let Some(settings) = settings() else {
        return NO;
    };
    // What the node sends itself has passed its stack.
    if settings.flags & STACK_FORWARDS != 0 && work.flow.flags & OWN_CLIENT == 0 {
        return NO;
    }
    let manner = way_out(&skb, work, destination.0);
    if manner == 0 {
        if work.network.part == Part::First {
            lead_to_stack(&work.network, OUTSIDE);
        }
        return NO;
    }
    let Some(way) = F::way() else { return NO };
    let done = rewrite_and_hop(&skb, work, source, destination);
    if !done || !skb.give_link_header(P::headers(&work.network).0) {
        return DROP;
    }
    // The ports of a fragment are not to be seen in it.
    if P::PASSES_EGRESS && work.network.part == Part::Whole {
        let sent = &mut way.sent;
        sent.source = F::read(source.0);
        sent.destination = F::read(destination.0);
        sent.source_port = source.1;
        sent.destination_port = destination.1;
        sent.protocol = work.network.protocol;
        sent.scope = OUTSIDE;
    }
    skb.leave(way, manner)
}

/// Whether a packet that leaves is the one that was just sent the fast way: nothing is to be done to it any more. Only
/// asked once, as what waits for its neighbour's answer comes later or never.
#[inline(always)]
pub(crate) fn was_sent<F: Wire>(skb: &Skb, network: &Network<F>) -> bool {
    let Some(way) = F::way() else { return false };
    let sent = &mut way.sent;
    if sent.scope == 0 {
        return false;
    }
    sent.scope = 0;
    if sent.source != network.source
        || sent.destination != network.destination
        || sent.protocol != network.protocol
        || network.part != Part::Whole
    {
        return false;
    }
    match skb.load::<[u16; 2]>(network.transport) {
        Some([source, destination]) => {
            u16::from_be(source) == sent.source_port
                && u16::from_be(destination) == sent.destination_port
        }
        None => false,
    }
}

/// Families that can take the fast way.
pub(crate) trait Hop: Rewrite + Route {}

impl<F: Rewrite + Route> Hop for F {}
