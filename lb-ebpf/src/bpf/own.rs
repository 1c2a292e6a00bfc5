//! What processes of this node send to services and no socket hook has translated: with the hooks off, and from
//! sockets of the kernel itself, which run no hooks. It is met where it leaves by an uplink, as no other device
//! knows a way to a service, or where it passes the loopback device to an address of this node.
//!
//! Towards a pod or another node it gets an address of this node and a source port from our pool, so that its
//! answers are known wherever they come in. Towards a server of this node it turns round on an uplink, with the
//! service's address as its source, as between a pod and itself; on the loopback device it goes on as what it is.

use lb_ebpf::abi::address::{CLUSTER_IP, EXTERNAL, LOOPBACK, NODE, NODE_LOCAL};
use lb_ebpf::abi::family::{V4, V6};
use lb_ebpf::abi::flow::{HAIRPIN, OUTSIDE};
use lb_ebpf::abi::{TCP, UDP, counter};
use lb_ebpf::tcp_state::Speaker;

use crate::answer::{Answer, reject};
use crate::fast::{self, Hop};
use crate::forward::{back, to_endpoint};
use crate::header::{IPV4, IPV6, packet, transport};
use crate::icmp_error;
use crate::ingress::{new_flow, open_flow, step};
use crate::lookup::{address_use, now, settings};
use crate::opening::Claim;
use crate::report::count;
use crate::service_cidr::{ServiceCidrs, must_stay};
use crate::skb::{IN, STAY, Skb};
use crate::{DROP, NEXT};

/// Where a packet of this node's own is met: on an uplink. Its flow's key has [`OUTSIDE`], which is where it would
/// go.
pub(crate) const OWN: u8 = 4;
/// Likewise, on the loopback device; its flow's key is as above.
pub(crate) const OWN_LOOPBACK: u8 = 5;

/// Entry point: a packet on egress of the loopback device.
#[inline(always)]
pub(crate) fn passes_loopback(skb: &Skb) -> i32 {
    // What we hand over came in by another device.
    if !skb.is_own() {
        return NEXT;
    }
    match skb.ethertype() {
        IPV4 => to_own_address::<V4>(*skb),
        IPV6 => to_own_address::<V6>(*skb),
        _ => NEXT,
    }
}

#[inline(always)]
fn to_own_address<F: Answer + Claim + Hop + ServiceCidrs>(skb: Skb) -> i32 {
    match met::<F>(skb) {
        step::OTHER_PROTOCOL => {
            let Some(work) = F::work() else { return NEXT };
            let action = icmp_error::to_client::<F, OUTSIDE>(skb, work);
            if action == icmp_error::NOT_OURS {
                NEXT
            } else {
                action
            }
        }
        step::NEW_FLOW => leaves::<F, OWN_LOOPBACK>(skb),
        action => action,
    }
}

/// What a packet on the loopback device is: an ICMP message, what may belong to a flow, or no business of ours. Out of
/// line for the stack of what comes behind.
#[inline(never)]
fn met<F: Answer + Claim>(skb: Skb) -> i32 {
    let Some(network) = packet::<F>(&skb) else {
        return NEXT;
    };
    let uses = address_use::<F>(&network.destination);
    if uses & (CLUSTER_IP | EXTERNAL | NODE | NODE_LOCAL | LOOPBACK) == 0 {
        return NEXT;
    }
    let Some(work) = F::work() else { return NEXT };
    work.network = network;
    work.uses = uses;
    if network.protocol == F::ICMP {
        step::OTHER_PROTOCOL
    } else {
        step::NEW_FLOW
    }
}

/// Takes a packet of this node's own to a service's address. Its header and the use of that address are in `work`
/// already.
#[inline(always)]
pub(crate) fn leaves<F: Answer + Claim + Hop + ServiceCidrs, const WHERE: u8>(skb: Skb) -> i32 {
    let mut action = known_flow::<F>(skb);
    if action == step::NEW_FLOW {
        action = new_flow::<F, WHERE>();
        if action == step::OPEN {
            action = open_flow::<F>(skb);
        } else if action == NEXT {
            F::forget_ended();
        }
    }
    match action {
        step::TO_ENDPOINT => onwards::<F, WHERE>(skb),
        step::BACK if WHERE == OWN_LOOPBACK => back::<F, STAY>(skb),
        step::BACK => back::<F, IN>(skb),
        step::REJECT if WHERE == OWN_LOOPBACK => reject::<F, STAY>(skb),
        step::REJECT => reject::<F, IN>(skb),
        NEXT if WHERE == OWN => nobodys::<F>(),
        _ => action,
    }
}

/// Finds the packet's flow, if it has one.
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
fn onwards<F: Hop, const WHERE: u8>(skb: Skb) -> i32 {
    let Some(work) = F::work() else { return DROP };
    if work.flow.flags & HAIRPIN != 0 {
        return if WHERE == OWN_LOOPBACK {
            to_endpoint::<F, STAY>(skb)
        } else {
            to_endpoint::<F, IN>(skb)
        };
    }
    let action = fast::to_endpoint(skb, work);
    if action == fast::NO {
        // No route, or too large for it.
        count(counter::STRAY_DROPPED);
        return DROP;
    }
    action
}

/// No flow of ours: a ClusterIP is nobody else's either, so it must not leave. Nor must what is no TCP or UDP towards an
/// address that was one until a moment ago.
#[inline(always)]
fn nobodys<F: ServiceCidrs>() -> i32 {
    let (Some(settings), Some(work)) = (settings(), F::work()) else {
        return DROP;
    };
    if !must_stay::<F>(settings, work.uses, work.network.destination) {
        return NEXT;
    }
    count(counter::STRAY_DROPPED);
    DROP
}
