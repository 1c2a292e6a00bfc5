//! What goes to clients: to a pod, met on egress of the host side of its veth, or out of an uplink. Answers of
//! endpoints become answers of the service again. What leaves by an uplink towards an endpoint may have to get
//! an address of this node.

use lb_ebpf::abi::address::{CLUSTER_IP, EXTERNAL, LINGERING};
use lb_ebpf::abi::family::{V4, V6};
use lb_ebpf::abi::flow::{DIRECT, HAIRPIN, MASQUERADE, NEW, OUTSIDE, has_ended};
use lb_ebpf::abi::{TCP, UDP, counter};
use lb_ebpf::tcp_state::Speaker;

use crate::answer::Answer;
use crate::fast::{Hop, was_sent};
use crate::flow::{end, reply_entry};
use crate::header::{ACK, FIN, IPV4, IPV6, Part, RST, SYN, Wire, packet_at, transport};
use crate::icmp_error::{self, Quoted};
use crate::lookup::{address_use, now, settings};
use crate::masquerade;
use crate::opening::Claim;
use crate::report::count;
use crate::rewrite::{Rewrite, rewrite_answer};
use crate::service_cidr::{ServiceCidrs, must_stay};
use crate::skb::Skb;
use crate::{DROP, NEXT, door, outbound, own, target};

/// The caller is to take the packet for one of this node's own, or for an ICMP message, so that stacks do not add up.
/// Far from any action's number.
const OWN_PACKET: i32 = 200;
const MESSAGE: i32 = 201;
/// The flow it seems to belong to is to make way.
const STEP_ASIDE: i32 = 202;
/// It may be one of a masqueraded flow that leaves.
const MASK: i32 = 203;

/// Entry point. `LINK` is the length of the device's link-layer header.
#[inline(always)]
pub(crate) fn egress<const SCOPE: u8, const LINK: u32>(skb: &Skb) -> i32 {
    match skb.ethertype() {
        IPV4 if !door::lets_out::<V4, SCOPE, LINK>(*skb) => run::<V4, SCOPE, LINK>(*skb),
        IPV6 if !door::lets_out::<V6, SCOPE, LINK>(*skb) => run::<V6, SCOPE, LINK>(*skb),
        _ => NEXT,
    }
}

#[inline(always)]
fn run<F: Answer + Claim + Hop + Quoted + ServiceCidrs, const SCOPE: u8, const LINK: u32>(
    skb: Skb,
) -> i32 {
    let action = answer::<F, SCOPE, LINK>(skb);
    if SCOPE == OUTSIDE && action == OWN_PACKET {
        return own::leaves::<F, { own::OWN }>(skb);
    }
    if action == MASK {
        return mask::<F>(skb);
    }
    if action == STEP_ASIDE {
        if let Some(work) = F::work() {
            work.step_aside();
        }
        return NEXT;
    }
    if action == MESSAGE {
        let Some(work) = F::work() else { return NEXT };
        let action = icmp_error::to_client::<F, SCOPE>(skb, work);
        if action != icmp_error::NOT_OURS {
            return action;
        }
        return icmp_error::about_answer(skb, work);
    }
    action
}

#[inline(never)]
fn answer<F: Claim + Rewrite + Quoted + ServiceCidrs, const SCOPE: u8, const LINK: u32>(
    skb: Skb,
) -> i32 {
    let Some(network) = packet_at::<F>(&skb, LINK) else {
        return NEXT;
    };
    let Some(settings) = settings() else {
        return NEXT;
    };
    // A packet of this node's own to a service's address; or, as a node's address may be an external one of a
    // service's too, an answer of its servers to that node.
    let mut own = false;
    if SCOPE == OUTSIDE {
        if was_sent(&skb, &network) {
            return NEXT;
        }
        let uses = address_use::<F>(&network.destination);
        own = uses & (CLUSTER_IP | EXTERNAL | LINGERING) != 0 && skb.is_own();
        if own {
            let Some(work) = F::work() else { return NEXT };
            work.network = network;
            work.uses = uses;
        } else if must_stay::<F>(settings, uses, network.destination) {
            count(counter::STRAY_DROPPED);
            return DROP;
        }
    }
    let no_answer = if own { OWN_PACKET } else { NEXT };
    if network.protocol != TCP && network.protocol != UDP {
        if own || network.protocol != <F as Wire>::ICMP {
            return no_answer;
        }
        let Some(work) = F::work() else { return NEXT };
        work.network = network;
        return MESSAGE;
    }
    // What has nothing to do with a flow need not be remembered for its later fragments.
    if network.part != Part::Whole
        && !own
        && target::at::<F>(&network.source).flows == 0
        && target::at::<F>(&network.destination).flows == 0
    {
        return NEXT;
    }
    let Some(transport) = transport(&skb, &network, SCOPE) else {
        return no_answer;
    };
    if network.protocol == UDP
        && network.part == Part::Whole
        && outbound::may_be_node_port(transport.source_port)
        && let Some(work) = F::work()
    {
        work.network = network;
        work.transport = transport;
        outbound::note::<F, SCOPE>(work);
    }
    // Most packets come from where no flow leads to and pay for this one look.
    let pooled = !own
        && masquerade::pooled(settings, transport.source_port)
        && target::at::<F>(&network.destination).flows != 0;
    if !pooled && target::at::<F>(&network.source).flows == 0 {
        return no_answer;
    }
    let Some(work) = F::work() else { return NEXT };
    work.network = network;
    work.transport = transport;
    // There and not on the stack, which is scarce.
    work.set_key(SCOPE);
    work.reply = work.key;
    let no_reply = if own {
        OWN_PACKET
    } else if pooled {
        MASK
    } else {
        NEXT
    };
    let Some(entry) = reply_entry(&work.reply) else {
        return no_reply;
    };
    let now = now();
    if work.recalls(&entry, now) {
        return if rewrite_answer(&skb, work) {
            NEXT
        } else {
            DROP
        };
    }
    let Some(place) = work.follow(entry) else {
        return no_reply;
    };
    if work.flow.flags & HAIRPIN != 0 {
        // Those answers come to ingress; this packet only looks like one. What a node answers itself does not.
        return no_answer;
    }
    if network.protocol == TCP
        && transport.flags & (FIN | SYN | RST | ACK) == SYN | ACK
        && has_ended(work.flow.state)
    {
        // The endpoint opens a new connection: the client dialled it directly, from the port of a flow that ended.
        end(work);
        return NEXT;
    }
    if network.protocol == TCP
        && transport.present
        && transport.flags & (SYN | RST) == 0
        && work.flow.state == NEW
        && work.flow.flags & (MASQUERADE | DIRECT) == 0
    {
        // The endpoint has not taken this connection, but is in the middle of another: the client's own, opened
        // directly, which we have not seen. Its answers are its own.
        return STEP_ASIDE;
    }
    let (_, state) = place.touch(
        &work.flow,
        network.protocol,
        transport.flags,
        Speaker::Endpoint,
        now,
    );
    entry.mark(work, settings, state, now);
    if rewrite_answer(&skb, work) {
        NEXT
    } else {
        DROP
    }
}

/// Puts this node's address into a packet of a masqueraded flow, if it is one.
#[inline(never)]
fn mask<F: Rewrite>(skb: Skb) -> i32 {
    let (Some(work), Some(settings)) = (F::work(), settings()) else {
        return NEXT;
    };
    masquerade::mask_source(&skb, settings, work).unwrap_or(NEXT)
}
