//! The fast way: a packet of a masqueraded flow goes straight to the next hop, past the host's stack.
//!
//! Only where nothing is left for the stack to do: there is a route that an ordinary device serves, the packet
//! fits it, and its TTL allows a hop. Everything else (fragmentation, ICMP errors, tunnels that want metadata)
//! takes the stack's way, with the same flow.

use aya_ebpf::bindings::bpf_fib_lookup as FibLookup;
use core::mem::zeroed;

use crate::DROP;
use crate::forward::Route;
use crate::packet::Packet;
use crate::rewrite::{Rewrite, rewrite_and_hop};
use crate::work::Work;

/// The packet takes the stack's way.
pub(crate) const NO: i32 = i32::MIN;

/// Finds the way towards `destination`; 0 if the packet is one for the stack.
#[inline(always)]
fn way_out<F: Hop>(
    skb: &impl Packet,
    work: &Work<F>,
    destination: F::Addr,
    route: &mut FibLookup,
) -> i32 {
    F::fill(route, F::UNSPECIFIED, destination);
    route.ifindex = skb.device();
    let answer = skb.route(route, 0);
    let way = skb.way(answer, route);
    // A packet without a hop left is for the stack, which tells its sender.
    if way != 0 && work.network.hops > 1 && skb.fits(route.ifindex) {
        way
    } else {
        0
    }
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

/// Gives a packet these ends and a hop, and sends it.
#[inline(always)]
fn translate<F: Hop, P: Packet>(
    skb: P,
    work: &Work<F>,
    source: (&F::Addr, u16),
    destination: (&F::Addr, u16),
) -> i32 {
    // SAFETY: all fields may be zero.
    let mut route: FibLookup = unsafe { zeroed() };
    let way = way_out(&skb, work, F::read(destination.0), &mut route);
    if way == 0 {
        return NO;
    }
    let done = rewrite_and_hop(&skb, work, source, destination);
    if done && skb.give_link_header(P::headers(&work.network).0) {
        skb.leave(&route, way)
    } else {
        DROP
    }
}

/// Families that can take the fast way.
pub(crate) trait Hop: Rewrite + Route {}

impl<F: Rewrite + Route> Hop for F {}
