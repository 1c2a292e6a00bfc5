//! What goes to clients: to a pod, met on egress of the host side of its veth, or out of an uplink. Answers of
//! endpoints become answers of the service again. What leaves by an uplink towards an endpoint may have to get
//! an address of this node.

use lb_ebpf::abi::family::{V4, V6};
use lb_ebpf::abi::flow::HAIRPIN;
use lb_ebpf::abi::{TCP, UDP};
use lb_ebpf::tcp_state::Speaker;

use crate::header::{IPV4, IPV6, NETWORK, Wire, transport};
use crate::icmp_error::{self, Quoted};
use crate::lookup::{now, settings};
use crate::masquerade;
use crate::rewrite::{End, Rewrite, rewrite};
use crate::skb::Skb;
use crate::{DROP, NEXT};

/// Entry point.
#[inline(always)]
pub(crate) fn egress<const SCOPE: u8>(skb: &Skb) -> i32 {
    match skb.ethertype() {
        IPV4 => run::<V4, SCOPE>(*skb),
        IPV6 => run::<V6, SCOPE>(*skb),
        _ => NEXT,
    }
}

#[inline(never)]
fn run<F: Rewrite + Quoted, const SCOPE: u8>(skb: Skb) -> i32 {
    let Some(work) = F::work() else { return NEXT };
    let Some(network) = F::network(&skb, NETWORK) else {
        return NEXT;
    };
    work.network = network;
    if network.protocol != TCP && network.protocol != UDP {
        if network.protocol == <F as Wire>::ICMP {
            return icmp_error::to_client::<F, SCOPE>(skb, work);
        }
        return NEXT;
    }
    let Some(transport) = transport(&skb, &network, SCOPE) else {
        return NEXT;
    };
    work.transport = transport;
    work.set_key(SCOPE);
    work.reply = work.key;
    let Some(place) = work.find_reply() else {
        let Some(settings) = settings() else {
            return NEXT;
        };
        return masquerade::mask_source(&skb, settings, work).unwrap_or(NEXT);
    };
    if work.flow.flags & HAIRPIN != 0 {
        // Those answers come to ingress; this packet only looks like one.
        return NEXT;
    }
    place.touch(
        &work.flow,
        network.protocol,
        transport.flags,
        Speaker::Endpoint,
        now(),
    );
    let to = &work.forward;
    if rewrite(
        &skb,
        &network,
        &transport,
        End::Source,
        to.destination,
        to.destination_port,
    ) && rewrite(
        &skb,
        &network,
        &transport,
        End::Destination,
        to.source,
        to.source_port,
    ) {
        return NEXT;
    }
    DROP
}
