//! The first look at a packet. Most are no business of ours, and a few words at known places tell so: then the program
//! ends, having touched little code and little memory, which in live traffic are what costs.
//!
//! Only for packets whose headers are plain and whole; all others are looked at in full. What is let go here would be
//! let go there.

use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::flow::OUTSIDE;
use lb_ebpf::abi::target::Target;
use lb_ebpf::abi::{TCP, UDP};
use lb_ebpf::tcp_state::is_clean_syn;

use crate::header::{ICMPV6, Ipv4, Ipv6, NETWORK, Tcp, Wire};
use crate::lookup::{may_be_known, settings};
use crate::masquerade::pooled;
use crate::packet::Packet as _;
use crate::service_cidr::ServiceCidrs;
use crate::skb::Skb;
use crate::{outbound, target};

/// What the first look sees.
pub(crate) struct Glance<F: Family> {
    source: F::Addr,
    destination: F::Addr,
    protocol: u8,
    fragment: bool,
}

/// Families whose plain headers can be told at a glance.
pub(crate) trait Door: ServiceCidrs + Wire {
    /// `None`: the packet wants a closer look.
    fn glance<const LINK: u32>(skb: &Skb) -> Option<Glance<Self>>;
}

impl Door for V4 {
    #[inline(always)]
    fn glance<const LINK: u32>(skb: &Skb) -> Option<Glance<V4>> {
        let header = skb.peek_at::<Ipv4, LINK>()?;
        let length = u32::from(u16::from_be(header.total_length));
        if header.version_ihl != 0x45 || length < 20 || LINK + length > skb.length() {
            return None;
        }
        Some(Glance {
            source: header.source,
            destination: header.destination,
            protocol: header.protocol,
            fragment: header.fragment & 0x3fff_u16.to_be() != 0,
        })
    }
}

impl Door for V6 {
    #[inline(always)]
    fn glance<const LINK: u32>(skb: &Skb) -> Option<Glance<V6>> {
        let header = skb.peek_at::<Ipv6, LINK>()?;
        let length = u32::from(u16::from_be(header.payload_length));
        let plain = matches!(header.next_header, TCP | UDP | ICMPV6);
        if header.version_class_label & 0xf000_0000_u32.to_be() != 0x6000_0000_u32.to_be()
            || !plain
            || length == 0
            || LINK + 40 + length > skb.length()
        {
            return None;
        }
        Some(Glance {
            source: header.source,
            destination: header.destination,
            protocol: header.next_header,
            fragment: false,
        })
    }
}

/// Whether a packet that comes in is certainly none of ours: nobody's address is its destination, and no flow can be in
/// its way there. Out of line for the stack of what follows.
#[inline(never)]
pub(crate) fn lets_in<F: Door, const LINK: u32>(skb: Skb) -> bool {
    let Some(seen) = F::glance::<LINK>(&skb) else {
        return false;
    };
    let target = target::at::<F>(&seen.destination);
    if target.flows != 0 && may_meet::<F, LINK>(&skb, &seen, target) {
        return false;
    }
    belongs_to_nobody::<F>(&seen.destination)
}

/// Whether a packet to where flows lead may have to do with one: it is of a flow without a service itself, or an error
/// about one, which any router may send; or it opens a conversation, and its sender has flows.
#[inline(always)]
fn may_meet<F: Door, const LINK: u32>(skb: &Skb, seen: &Glance<F>, target: Target) -> bool {
    if target.direct != 0 || seen.fragment {
        return true;
    }
    target::is_client::<F>(&seen.source)
        && !(LINK == NETWORK && seen.protocol == TCP && goes_on::<F>(skb))
}

/// Whether a TCP segment with a plain header in front asks for no new connection.
#[inline(always)]
fn goes_on<F: Door>(skb: &Skb) -> bool {
    F::plain_transport::<Tcp>(skb).is_some_and(|tcp| !is_clean_syn(tcp.flags))
}

/// Whether a packet that goes out is certainly none of ours: it comes from where no flow leads to, or goes to where none
/// came from, and so is no answer, and it goes where none leads to, or not from a port of our pool, and so wants no other source.
#[inline(never)]
pub(crate) fn lets_out<F: Door, const SCOPE: u8, const LINK: u32>(skb: Skb) -> bool {
    let Some(seen) = F::glance::<LINK>(&skb) else {
        return false;
    };
    if (seen.protocol != TCP && seen.protocol != UDP) || seen.fragment {
        return false;
    }
    if target::at::<F>(&seen.source).flows != 0 && target::is_client::<F>(&seen.destination) {
        return false;
    }
    if target::at::<F>(&seen.destination).flows != 0 && may_be_masked::<F, LINK>(&skb) {
        return false;
    }
    if seen.protocol == UDP && may_leave_from_node_port::<F, LINK>(&skb) {
        return false;
    }
    SCOPE != OUTSIDE || belongs_to_nobody::<F>(&seen.destination)
}

/// Whether a packet with a plain header may have a port of our pool.
#[inline(always)]
fn may_be_masked<F: Door, const LINK: u32>(skb: &Skb) -> bool {
    if LINK != NETWORK {
        return true;
    }
    match (F::plain_transport::<[u16; 2]>(skb), settings()) {
        (Some([source, _]), Some(settings)) => pooled(settings, u16::from_be(source)),
        _ => true,
    }
}

/// Whether a datagram with a plain header may have a NodePort for its source.
#[inline(always)]
fn may_leave_from_node_port<F: Door, const LINK: u32>(skb: &Skb) -> bool {
    let ports = if LINK == NETWORK {
        F::plain_transport::<[u16; 2]>(skb)
    } else {
        skb.load(LINK + F::HEADER)
    };
    ports.is_none_or(|[source, _]| outbound::may_be_node_port(u16::from_be(source)))
}

/// Whether an address is no service's, and none that a service could have.
#[inline(always)]
fn belongs_to_nobody<F: Door>(address: &F::Addr) -> bool {
    !may_be_known::<F>(address)
        && settings().is_some_and(|settings| !F::in_service_cidr(settings, F::read(address)))
}
