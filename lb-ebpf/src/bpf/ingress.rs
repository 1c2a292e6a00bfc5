//! What clients send: pods, met on ingress of the host side of their veths, and others, met on ingress of an
//! uplink. The scope of a packet says which.
//!
//! Packet → is the address ours? → flow → frontend → endpoint → new flow → rewrite → onwards.

use lb_ebpf::abi::address::{CLUSTER_IP, EXTERNAL, LOOPBACK, NODE, NODE_LOCAL, TOMBSTONE};
use lb_ebpf::abi::endpoint::{HOST, LOCAL};
use lb_ebpf::abi::family::{V4, V6};
use lb_ebpf::abi::flow::{HAIRPIN, LOCAL_ENDPOINT, MASQUERADE, OUTSIDE, POD};
use lb_ebpf::abi::frontend::{KIND, LOCAL_POLICY, NODE_PORT, SOURCE_RANGES};
use lb_ebpf::abi::settings::{PODS_BY_ADDRESS, Settings};
use lb_ebpf::abi::socket::TombstoneKey;
use lb_ebpf::abi::{TCP, UDP, counter, frontend};
use lb_ebpf::tcp_state::{Speaker, is_clean_syn};

use crate::answer::{Answer, reject};
use crate::direct;
use crate::door;
use crate::fast::{self, Hop};
use crate::forward::{back, to_endpoint};
use crate::header::{IPV4, IPV6, Network, packet_at, transport};
use crate::lookup::{address_use, dialled_frontend, now, settings};
use crate::maps::{TOMBSTONES, Tables};
use crate::masquerade::{self, Origin, returns};
use crate::opening::{Claim, Opening};
use crate::outbound;
use crate::own::{OWN, OWN_LOOPBACK};
use crate::packet::Packet;
use crate::report::count;
use crate::select::{Set, Verdict, choose};
use crate::service_cidr::ServiceCidrs;
use crate::skb::{OUT, Skb};
use crate::source_range::admitted;
use crate::target;
use crate::work::Work;
use crate::{DROP, NEXT};
use crate::{icmp_error, icmp_forward};

/// Steps that a function asks its caller to take, so that their stacks do not add up. Far from any action's
/// number.
pub(crate) mod step {
    pub(crate) const NEW_FLOW: i32 = 100;
    pub(crate) const TO_ENDPOINT: i32 = 101;
    pub(crate) const REJECT: i32 = 102;
    pub(crate) const OPEN: i32 = 103;
    pub(crate) const OTHER_PROTOCOL: i32 = 104;
    pub(crate) const BACK: i32 = 105;
    pub(crate) const DIRECT: i32 = 106;
}

/// Entry point. `LINK` is the length of the device's link-layer header.
#[inline(always)]
pub(crate) fn ingress<const SCOPE: u8, const LINK: u32>(skb: &Skb) -> i32 {
    match skb.ethertype() {
        IPV4 if !door::lets_in::<V4, LINK>(*skb) => run::<V4, SCOPE, LINK>(*skb),
        IPV6 if !door::lets_in::<V6, LINK>(*skb) => run::<V6, SCOPE, LINK>(*skb),
        _ => NEXT,
    }
}

#[inline(always)]
fn run<F: Answer + Claim + Hop + ServiceCidrs, const SCOPE: u8, const LINK: u32>(skb: Skb) -> i32 {
    // A bridge's port does bring frames that the host is to see, for the bridge's own address.
    if SCOPE == OUTSIDE && LINK != 0 && !skb.is_for_this_host() {
        return NEXT;
    }
    let mut action = known_flow::<F, SCOPE, LINK>(skb);
    if action == step::NEW_FLOW {
        action = new_flow::<F, SCOPE>();
        if action == NEXT {
            F::forget_ended();
        }
    }
    if action == step::DIRECT {
        action = direct::passes::<F, SCOPE>(skb);
        if action == NEXT {
            F::forget_ended();
        }
    }
    if action == step::OTHER_PROTOCOL {
        action = other_protocol::<F, SCOPE>(skb);
    }
    if action == step::OPEN {
        action = open_flow::<F>(skb);
    }
    match action {
        step::TO_ENDPOINT => {
            if SCOPE == OUTSIDE {
                let action = fast_to_endpoint::<F>(skb);
                if action != fast::NO {
                    return action;
                }
            }
            to_endpoint::<F, OUT>(skb)
        }
        step::BACK => back::<F, OUT>(skb),
        step::REJECT => reject::<F, OUT>(skb),
        _ => action,
    }
}

/// The fast way, for masqueraded flows to other nodes.
#[inline(always)]
pub(crate) fn fast_to_endpoint<F: Hop>(skb: impl Packet) -> i32 {
    match F::work() {
        Some(work) if work.flow.flags & (MASQUERADE | LOCAL_ENDPOINT) == MASQUERADE => {
            fast::to_endpoint(skb, work)
        }
        _ => fast::NO,
    }
}

/// Finds out what the packet is, and its flow if it has one.
#[inline(never)]
fn known_flow<F: Answer + Hop + ServiceCidrs, const SCOPE: u8, const LINK: u32>(skb: Skb) -> i32 {
    let Some(network) = packet_at::<F>(&skb, LINK) else {
        count(counter::MALFORMED);
        return NEXT;
    };
    let uses = address_use::<F>(&network.destination);
    let Some(settings) = settings() else {
        return NEXT;
    };
    if uses == 0 && target::at::<F>(&network.destination).flows == 0 {
        return unknown_address::<F>(settings, &network);
    }
    let Some(work) = F::work() else { return NEXT };
    work.network = network;
    work.uses = uses;
    let network = &work.network;
    if uses != 0 && F::is_martian(&network.source) {
        count(counter::MALFORMED);
        return NEXT;
    }
    if uses & !TOMBSTONE == 0 {
        return step::DIRECT;
    }
    if network.protocol != TCP && network.protocol != UDP {
        return step::OTHER_PROTOCOL;
    }
    let Some(transport) = transport(&skb, network, SCOPE) else {
        return NEXT;
    };
    work.transport = transport;
    if returns(settings, uses, transport.destination_port) {
        let action = masquerade::answered::<F, SCOPE>(skb, settings, work);
        if action != masquerade::NOT_OURS {
            return action;
        }
    }
    work.set_key(SCOPE);
    if work.goes_on(settings, transport.flags, now()) {
        return step::TO_ENDPOINT;
    }
    step::NEW_FLOW
}

/// The first packet of a flow.
#[inline(never)]
pub(crate) fn new_flow<F: ServiceCidrs, const SCOPE: u8>() -> i32 {
    let (Some(settings), Some(work)) = (settings(), F::work()) else {
        return NEXT;
    };
    let mut uses = work.uses;
    // A loopback address counts for this node's own packets alone.
    let on_loopback = SCOPE == OWN_LOOPBACK && uses & LOOPBACK != 0;
    if on_loopback {
        uses |= NODE;
    }
    let own = SCOPE == OWN || SCOPE == OWN_LOOPBACK;
    let (protocol, flags) = (work.network.protocol, work.transport.flags);
    if SCOPE == POD && target::at::<F>(&work.network.source).flows != 0 {
        // What a pod answers to itself also comes in here (see `forward`), from where a flow leads to.
        work.reply = work.key;
        if let Some(place) = work.find_reply()
            && work.flow.flags & HAIRPIN != 0
        {
            place.touch(&work.flow, protocol, flags, Speaker::Endpoint, now());
            return step::BACK;
        }
    }
    if !work.transport.present {
        return NEXT;
    }
    let dialled = work.network.destination;
    let found = if uses & (CLUSTER_IP | EXTERNAL | NODE) == 0 {
        None
    } else {
        dialled_frontend::<F>(uses, dialled, work.transport.destination_port, protocol)
    };
    let Some(found) = found else {
        return no_frontend::<F, SCOPE>(work, uses, settings);
    };
    // A segment of a connection we never saw open belongs to somebody else, such as the proxy that ran here
    // before us.
    if protocol == TCP && !is_clean_syn(flags) {
        return NEXT;
    }
    let kind = found.flags & KIND;
    if !own && protocol == UDP && kind == NODE_PORT && outbound::returns(settings, work) {
        return NEXT;
    }
    if found.flags & SOURCE_RANGES != 0 && !admitted::<F>(found.service, work.network.source) {
        count(counter::SOURCE_RANGE_DROPPED);
        return DROP;
    }
    let internal = kind == frontend::CLUSTER_IP;
    let local_policy = found.flags & LOCAL_POLICY != 0;
    let origin = origin::<F, SCOPE>(settings, work.network.source);
    // The external policy binds neither local pods nor the node itself (spec D13, D14), but on loopback (G9).
    let free = origin == Origin::LocalPod || own && !on_loopback;
    let set = if local_policy && (internal || !free) {
        Set::Local
    } else {
        Set::Cluster
    };
    let choice = choose::<F>(&found, set, &F::wide(work.network.source));
    match choice.verdict {
        Verdict::Reject => return step::REJECT,
        // There nobody listens, then.
        Verdict::Drop if on_loopback => return step::REJECT,
        Verdict::Drop => {
            count(counter::PACKET_DROPPED);
            return DROP;
        }
        Verdict::Translate => {}
    }
    work.own = own;
    work.own_address = SCOPE == OWN_LOOPBACK;
    work.direct = false;
    work.masquerade = if own {
        choice.endpoint.flags & (HOST | LOCAL) != HOST | LOCAL
    } else {
        // Who gets itself for an endpoint would take what it sent for forged (spec D12); a pod of this node is dealt with
        // where the flow is opened.
        let itself = SCOPE == OUTSIDE && choice.endpoint.address == work.network.source;
        let origin = if itself { Origin::Other } else { origin };
        masquerade::wanted(
            settings,
            internal || itself,
            local_policy,
            origin,
            choice.endpoint.flags,
        )
    };
    work.endpoint = choice.endpoint;
    work.generation = choice.generation;
    step::OPEN
}

/// Whose a packet is.
#[inline(always)]
fn origin<F: ServiceCidrs, const SCOPE: u8>(settings: &Settings, source: F::Addr) -> Origin {
    if settings.flags & PODS_BY_ADDRESS == 0 {
        return if SCOPE == POD {
            Origin::LocalPod
        } else {
            Origin::Other
        };
    }
    match F::in_pod_cidr(settings, source) {
        Some(true) => Origin::LocalPod,
        Some(false) => Origin::Other,
        None => Origin::Unknown,
    }
}

/// Enters the new flow.
#[inline(never)]
pub(crate) fn open_flow<F: Answer + Claim>(skb: impl Packet) -> i32 {
    let Some(work) = F::work() else {
        return NEXT;
    };
    if work.masquerade && !masquerade::choose_address(skb, work) {
        count(counter::NO_SOURCE_ADDRESS);
        return DROP;
    }
    if work.open(now()) != Opening::Done {
        if work.direct {
            // No service's: it goes on as if we were not there.
            return NEXT;
        }
        count(counter::FLOW_TABLE_FULL);
        return DROP;
    }
    step::TO_ENDPOINT
}

/// A service's address, but no service port there; or an address with another past.
#[inline(always)]
fn no_frontend<F: ServiceCidrs, const SCOPE: u8>(
    work: &Work<F>,
    uses: u32,
    settings: &Settings,
) -> i32 {
    if uses & CLUSTER_IP != 0 {
        return step::REJECT;
    }
    let network = &work.network;
    if has_left::<F, SCOPE>(work, uses) {
        return step::REJECT;
    }
    if uses & (EXTERNAL | NODE) != 0 {
        return NEXT;
    }
    unknown_address::<F>(settings, network)
}

/// Whether a pod's datagram goes to where an endpoint was that has left every Service. Only pods have sockets that the
/// hooks connected there and nobody can tell.
#[inline(always)]
pub(crate) fn has_left<F: Tables, const SCOPE: u8>(work: &Work<F>, uses: u32) -> bool {
    SCOPE == POD && uses & TOMBSTONE != 0 && work.network.protocol == UDP && has_tombstone(work)
}

#[inline(never)]
fn has_tombstone<F: Tables>(work: &Work<F>) -> bool {
    let key = TombstoneKey {
        address: F::wide(work.network.destination),
        port: work.transport.destination_port,
        protocol: UDP,
        zero: 0,
    };
    // Not in its first second: a datagram may have been sent before.
    let found = TOMBSTONES.get(0).and_then(|table| table.get_ptr(key));
    let lapsed = found.is_some_and(|found| {
        // SAFETY: an element of the table; reused, it tells another's time, seconds off at worst.
        let since = unsafe { core::ptr::read_volatile(&raw const (*found).since) };
        now().saturating_sub(since) > 1
    });
    if lapsed {
        count(counter::TOMBSTONE_REJECTED);
    }
    lapsed
}

/// Not TCP or UDP.
#[inline(always)]
fn other_protocol<F: Answer + Hop + ServiceCidrs, const SCOPE: u8>(skb: Skb) -> i32 {
    let Some(work) = F::work() else {
        return NEXT;
    };
    if work.network.protocol == F::ICMP {
        if SCOPE == OUTSIDE {
            let action = icmp_forward::forward::<F>(skb);
            if action != fast::NO {
                return action;
            }
        }
        let action = icmp_error::from_client::<F, SCOPE>(skb, work);
        if action != icmp_error::NOT_OURS {
            return action;
        }
        // An error about an error would go on for ever (RFC 1122 §3.2.2, RFC 4443 §2.4).
        if work.uses & CLUSTER_IP != 0 && icmp_error::is_error(&skb, &work.network) {
            return DROP;
        }
    }
    if work.uses & CLUSTER_IP == 0 {
        if work.uses & (EXTERNAL | NODE | NODE_LOCAL) != 0 {
            return NEXT;
        }
        return match settings() {
            Some(settings) => unknown_address::<F>(settings, &work.network),
            None => NEXT,
        };
    }
    // Echo and the rest are refused, as nftables does (spec E18, D4).
    step::REJECT
}

/// An address that no service has now: dropped if it is one of the service CIDRs' (spec D5).
#[inline(always)]
pub(crate) fn unknown_address<F: ServiceCidrs>(settings: &Settings, network: &Network<F>) -> i32 {
    if F::in_service_cidr(settings, network.destination) {
        count(counter::CIDR_DROPPED);
        return DROP;
    }
    NEXT
}
