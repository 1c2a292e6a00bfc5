//! A packet of a known flow on its way.

use aya_ebpf::bindings::bpf_fib_lookup as FibLookup;
use core::mem::zeroed;
use core::ptr::read_volatile;
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::flow::{HAIRPIN, LOCAL_ENDPOINT, MASQUERADE};

use crate::maps::{DEVICES, Tables};
use crate::packet::Packet as _;
use crate::rewrite::{Rewrite, rewrite_answer, rewrite_both};
use crate::skb::Skb;
use crate::{DROP, NEXT};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Sends a client's packet on to its endpoint, by the flow at hand.
#[inline(never)]
pub(crate) fn to_endpoint<F: Rewrite + Route, const WAY: u64>(skb: Skb) -> i32 {
    let Some(work) = F::work() else { return DROP };
    let (network, flow) = (&work.network, &work.flow);
    let (client, new) = (F::read(&network.source), F::read(&flow.new_source));
    let source = if flow.flags & MASQUERADE != 0 {
        client
    } else {
        new
    };
    if !rewrite_both(
        &skb,
        work,
        (&source, flow.new_source_port),
        (&flow.new_destination, flow.new_destination_port),
    ) {
        return DROP;
    }
    if flow.flags & HAIRPIN != 0 {
        return turn_around::<WAY>(&skb, work.network.offset);
    }
    // A masqueraded flow is routed in both directions: its answers are addressed to the host.
    if flow.flags & (LOCAL_ENDPOINT | MASQUERADE) == LOCAL_ENDPOINT {
        switch_to_endpoint::<F>(&skb, network.source, flow.new_destination);
    }
    NEXT
}

/// Gives a client its answer to itself. As it sees the service's address as its peer, the answer is addressed
/// there and comes to ingress like any packet of a client.
///
/// Out of line for the stack of what else the caller calls.
#[inline(never)]
pub(crate) fn back<F: Rewrite, const WAY: u64>(skb: Skb) -> i32 {
    let Some(work) = F::work() else { return DROP };
    if !rewrite_answer(&skb, work) {
        return DROP;
    }
    turn_around::<WAY>(&skb, work.network.offset)
}

/// Back to whoever sent the packet.
#[inline(always)]
pub(crate) fn turn_around<const WAY: u64>(skb: &Skb, network: u32) -> i32 {
    if network == 0 {
        // No link-layer header to address.
        return skb.send_back::<WAY>();
    }
    let Some(macs) = skb.load::<[u8; 12]>(0) else {
        return DROP;
    };
    let swapped = [
        macs[6], macs[7], macs[8], macs[9], macs[10], macs[11], macs[0], macs[1], macs[2], macs[3],
        macs[4], macs[5],
    ];
    if !skb.store(0, &swapped) {
        return DROP;
    }
    skb.send_back::<WAY>()
}

/// On a bridge, addresses the frame to an endpoint on the same bridge.
///
/// The pod sent it to its gateway, so it would be routed while the answer is switched: a firewall that tracks
/// connections would see half of it. With the neighbour unknown this one packet is routed.
#[inline(always)]
fn switch_to_endpoint<F: Route>(skb: &Skb, source: F::Addr, destination: F::Addr) {
    let Some(device) = DEVICES.get_ptr(skb.device()) else {
        return;
    };
    // SAFETY: an element of the table, which changes only with the device.
    let bridge = unsafe { read_volatile(&raw const (*device).bridge) };
    if bridge == 0 {
        return;
    }
    let Some(way) = F::way() else { return };
    let route = &mut way.route;
    // SAFETY: all fields may be zero.
    *route = unsafe { zeroed() };
    F::fill(route, source, destination);
    route.ifindex = bridge;
    if skb.route(route, 0) == 0 && route.ifindex == bridge {
        skb.store(0, &route.dmac);
    }
}

/// Addresses of a route lookup.
pub(crate) trait Route: Tables {
    fn fill(route: &mut FibLookup, source: Self::Addr, destination: Self::Addr);
}

impl Route for V4 {
    #[inline(always)]
    fn fill(
        route: &mut FibLookup,
        source: <V4 as Family>::Addr,
        destination: <V4 as Family>::Addr,
    ) {
        route.family = AF_INET;
        route.__bindgen_anon_3.ipv4_src = source.word();
        route.__bindgen_anon_4.ipv4_dst = destination.word();
    }
}

impl Route for V6 {
    #[inline(always)]
    fn fill(
        route: &mut FibLookup,
        source: <V6 as Family>::Addr,
        destination: <V6 as Family>::Addr,
    ) {
        route.family = AF_INET6;
        route.__bindgen_anon_3.ipv6_src = source.words();
        route.__bindgen_anon_4.ipv6_dst = destination.words();
    }
}
