//! What processes of this node send to services and no socket hook has translated: with the hooks off, and from
//! sockets of the kernel itself, which run no hooks. It is met where it leaves by an uplink, as no other device
//! knows a way to a service.
//!
//! Towards a pod or another node it gets an address of this node and a source port from our pool, so that its
//! answers are known wherever they come in. Towards a server of this node it turns round, with the service's
//! address as its source, as between a pod and itself.

use lb_ebpf::abi::address::CLUSTER_IP;
use lb_ebpf::abi::flow::{HAIRPIN, OUTSIDE};
use lb_ebpf::abi::{TCP, UDP, counter};
use lb_ebpf::tcp_state::Speaker;

use crate::answer::{Answer, reject};
use crate::fast::{self, Hop};
use crate::forward::{back, to_endpoint};
use crate::header::transport;
use crate::ingress::{new_flow, open_flow, step};
use crate::lookup::{now, settings};
use crate::opening::Claim;
use crate::report::count;
use crate::service_cidr::ServiceCidrs;
use crate::skb::{IN, Skb};
use crate::{DROP, NEXT};

/// Where a packet of this node's own is met. Its flow's key has [`OUTSIDE`], which is where it would go.
pub(crate) const OWN: u8 = 4;

/// Takes a packet of this node's own to a service's address.
#[inline(always)]
pub(crate) fn leaves<F: Answer + Claim + Hop + ServiceCidrs>(skb: Skb) -> i32 {
    let mut action = known_flow::<F>(skb);
    if action == step::NEW_FLOW {
        action = new_flow::<F, OWN>();
        if action == step::OPEN {
            action = open_flow::<F>(skb);
        }
    }
    match action {
        step::TO_ENDPOINT => onwards::<F>(skb),
        step::BACK => back::<F, IN>(skb),
        step::REJECT => reject::<F, IN>(skb),
        NEXT => nobodys::<F>(),
        _ => action,
    }
}

/// Finds the packet's flow, if it has one. Its header and the use of its address are in `work` already.
#[inline(never)]
fn known_flow<F: Answer + Hop + ServiceCidrs>(skb: Skb) -> i32 {
    let (Some(settings), Some(work)) = (settings(), F::work()) else {
        return NEXT;
    };
    let network = work.network;
    if network.protocol != TCP && network.protocol != UDP {
        return NEXT;
    }
    let Some(transport) = transport(&skb, &network, OUTSIDE) else {
        return NEXT;
    };
    work.transport = transport;
    work.set_key(OUTSIDE);
    let now = now();
    work.reply = work.key;
    if let Some(place) = work.find_reply()
        && work.flow.flags & HAIRPIN != 0
    {
        place.touch(
            &work.flow,
            network.protocol,
            transport.flags,
            Speaker::Endpoint,
            now,
        );
        return step::BACK;
    }
    if work.goes_on(settings, transport.flags, now) {
        step::TO_ENDPOINT
    } else {
        step::NEW_FLOW
    }
}

/// Sends the packet to its endpoint.
#[inline(always)]
fn onwards<F: Hop>(skb: Skb) -> i32 {
    let Some(work) = F::work() else { return DROP };
    if work.flow.flags & HAIRPIN != 0 {
        return to_endpoint::<F, IN>(skb);
    }
    let action = fast::to_endpoint(skb, work);
    if action == fast::NO {
        // No route, or too large for it.
        count(counter::STRAY_DROPPED);
        return DROP;
    }
    action
}

/// No flow of ours: a ClusterIP is nobody else's either, so it must not leave.
#[inline(always)]
fn nobodys<F: ServiceCidrs>() -> i32 {
    match F::work() {
        Some(work) if work.uses & CLUSTER_IP == 0 => NEXT,
        _ => {
            count(counter::STRAY_DROPPED);
            DROP
        }
    }
}
