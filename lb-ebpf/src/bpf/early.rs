//! What clients outside send and endpoints elsewhere answer, served before the kernel makes a packet of the frame:
//! the fast way (`fast.rs`) of masqueraded flows, over the same tables.
//!
//! Everything is decided before the first byte is changed. What is not served here goes on untouched to the tc
//! programs, which then find the flow that was looked up or opened: endpoints of this node (their packets meet tc
//! as few large ones, and may carry checksums that only the kernel can finish), neighbours still unknown, devices
//! that XDP cannot send by, packets too large or at the end of their life, refusals, ICMP, fragments, IPv4
//! options, IPv6 extension headers, tags.

use lb_ebpf::abi::address::TOMBSTONE;
use lb_ebpf::abi::family::{V4, V6};
use lb_ebpf::abi::flow::{LOCAL_ENDPOINT, OUTSIDE, OWN_CLIENT};
use lb_ebpf::abi::{TCP, UDP};
use lb_ebpf::tcp_state::is_clean_syn;

use crate::answer::Answer;
use crate::fast::{self, Hop};
use crate::header::{IPV4, IPV6, Part, whole_transport};
use crate::ingress::{fast_to_endpoint, new_flow, open_flow, step};
use crate::lookup::{address_use, now, settings};
use crate::maps::{MACS, Tables};
use crate::masquerade::{find_answered, returns};
use crate::opening::Claim;
use crate::packet::Packet as _;
use crate::service_cidr::ServiceCidrs;
use crate::work::Work;
use crate::xdp::{REDIRECT, TX, Xdp};
use crate::{DROP, NEXT};

/// `XDP_DROP`.
const XDP_DROP: u32 = 1;
/// `XDP_PASS`: on to the kernel, where tc programs are next.
const XDP_PASS: u32 = 2;

/// Entry point.
#[inline(always)]
pub(crate) fn early(packet: Xdp<0>) -> u32 {
    let action = match packet.ethertype() {
        IPV4 => run::<V4>(packet),
        IPV6 => run::<V6>(packet),
        _ => NEXT,
    };
    match action {
        DROP => XDP_DROP,
        TX | REDIRECT => action as u32,
        _ => XDP_PASS,
    }
}

#[inline(always)]
fn run<F: Answer + Claim + Hop + ServiceCidrs>(packet: Xdp<0>) -> i32 {
    let mut action = known_flow::<F>(packet);
    if action == step::NEW_FLOW {
        action = new_flow::<F, OUTSIDE>();
        if action == step::OPEN {
            action = open_flow::<F>(packet);
        }
    }
    // One function for each protocol: the verifier wants to see each offset by itself.
    match (action, protocol::<F>()) {
        (step::TO_ENDPOINT, TCP) => fast_to_endpoint::<F>(packet.known_as::<TCP>()),
        (step::TO_ENDPOINT, UDP) => fast_to_endpoint::<F>(packet.known_as::<UDP>()),
        (step::BACK, TCP) => to_client::<F, TCP>(packet),
        (step::BACK, UDP) => to_client::<F, UDP>(packet),
        _ => action,
    }
}

#[inline(always)]
fn protocol<F: Hop>() -> u8 {
    F::work().map_or(0, |work| work.network.protocol)
}

/// Sends an endpoint's answer to its client.
#[inline(always)]
fn to_client<F: Hop, const PROTOCOL: u8>(packet: Xdp<0>) -> i32 {
    match F::work() {
        Some(work) => fast::to_client(packet.known_as::<PROTOCOL>(), work),
        None => NEXT,
    }
}

/// Whether the frame is addressed to the device that it came in on. A promiscuous device also takes others', and one that
/// mirrors traffic nothing else. The address that was the right one last is at hand.
#[inline(always)]
fn is_for_this_host<F: Tables>(packet: Xdp<0>, work: &mut Work<F>) -> bool {
    let Some(to) = packet.load::<[u16; 3]>(0) else {
        return false;
    };
    let device = packet.device();
    if work.mac == to && work.mac_device == device {
        return true;
    }
    let Some(own) = MACS.get_ptr(device) else {
        return false;
    };
    // SAFETY: an element of the table, which changes only with the device.
    let [a, b, c, d, e, f] = unsafe { (*own).octets };
    work.mac = [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes);
    work.mac_device = device;
    work.mac == to
}

/// Finds the packet's flow, if it has one.
#[inline(never)]
fn known_flow<F: Hop>(packet: Xdp<0>) -> i32 {
    let Some(network) = F::outer_network(&packet) else {
        return NEXT;
    };
    // Most frames are no business of ours and pay for this one miss.
    let uses = address_use::<F>(&network.destination);
    if uses == 0 {
        return NEXT;
    }
    if network.protocol != TCP && network.protocol != UDP
        || network.part != Part::Whole
        || network.transport != Xdp::<0>::headers(&network).1
        || network.end > packet.length()
        || F::is_martian(&network.source)
    {
        return NEXT;
    }
    let Some(transport) = whole_transport(&packet, &network) else {
        return NEXT;
    };
    let (Some(settings), Some(work)) = (settings(), F::work()) else {
        return NEXT;
    };
    if !is_for_this_host(packet, work) {
        return NEXT;
    }
    work.network = network;
    work.transport = transport;
    work.uses = uses;
    if returns(settings, uses, transport.destination_port) && find_answered(work, settings) {
        let other = work.forward.scope != OUTSIDE;
        if other || work.flow.flags & (LOCAL_ENDPOINT | OWN_CLIENT) != 0 {
            return NEXT;
        }
        return step::BACK;
    }
    work.set_key(OUTSIDE);
    if work.goes_on(settings, transport.flags, now()) {
        return step::TO_ENDPOINT;
    }
    if network.protocol == TCP && !is_clean_syn(transport.flags) || uses & TOMBSTONE != 0 {
        // Nothing to open, or perhaps something to refuse.
        return NEXT;
    }
    step::NEW_FLOW
}
