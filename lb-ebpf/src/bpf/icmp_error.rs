//! ICMP errors about packets of translated flows: path MTU discovery and "nobody listens" work through a
//! service only if the quoted packet is the one its sender knows (spec E16).

use lb_ebpf::abi::address::Address4;
use lb_ebpf::abi::counter;
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::flow::{FlowKey, MASQUERADE, MASQUERADED, OUTSIDE, OWN_ADDRESS, OWN_CLIENT, POD};
use lb_ebpf::abi::{TCP, UDP};

use crate::flow::{find, write_turned};
use crate::header::{ICMPV6, Network, Part};
use crate::packet::{PSEUDO, Packet as _};
use crate::report::count;
use crate::rewrite::{Checksum, End, Rewrite, hop_word};
use crate::skb::Skb;
use crate::work::Work;
use crate::{DROP, NEXT};

/// No verdict: the message is none about our flows.
pub(crate) const NOT_OURS: i32 = i32::MIN;

/// What an ICMP message is to us.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// An error that quotes a packet.
    Error,
    /// "Send such packets there instead" (RFC 792, RFC 4861).
    Redirect,
    Other,
}

/// Families whose errors we translate.
pub(crate) trait Quoted: Rewrite {
    /// What a message type is, and how far behind the message's start the quote begins.
    fn message(kind: u8) -> (Message, u32);
    /// Replaces an address in the quote.
    fn quoted_address(
        skb: &Skb,
        quote: u32,
        end: End,
        old: Self::Addr,
        new: Self::Addr,
        checksum: u32,
    ) -> bool;
    /// Takes a hop off the message's time to live.
    fn take_hop(skb: &Skb, network: &Network<Self>) -> bool;
    /// Replaces the outer source.
    fn outer(skb: &Skb, network: &Network<Self>, end: End, new: Self::Addr, checksum: u32) -> bool;
}

impl Quoted for V4 {
    #[inline(always)]
    fn message(kind: u8) -> (Message, u32) {
        match kind {
            // Unreachable (with fragmentation needed), time exceeded, parameter problem.
            3 | 11 | 12 => (Message::Error, 8),
            5 => (Message::Redirect, 8),
            _ => (Message::Other, 0),
        }
    }

    #[inline(always)]
    fn quoted_address(
        skb: &Skb,
        quote: u32,
        end: End,
        old: Address4,
        new: Address4,
        _: u32,
    ) -> bool {
        // The quoted header's own checksum takes up the change, so the message's stays right.
        V4::address(skb, quote, end, old, new, Checksum::NONE)
    }

    #[inline(always)]
    fn take_hop(skb: &Skb, network: &Network<V4>) -> bool {
        let left = network.hops.wrapping_sub(1);
        let word = |hops| hop_word(hops, network.protocol);
        skb.replace_l3(network.offset + 10, word(network.hops), word(left))
            && skb.store(network.offset + 8, &(left as u8))
    }

    #[inline(always)]
    fn outer(skb: &Skb, network: &Network<V4>, end: End, new: Address4, _: u32) -> bool {
        let old = if end == End::Source {
            network.source
        } else {
            network.destination
        };
        V4::address(skb, network.offset, end, old, new, Checksum::NONE)
    }
}

impl Quoted for V6 {
    #[inline(always)]
    fn message(kind: u8) -> (Message, u32) {
        match kind {
            // Unreachable, packet too big, time exceeded, parameter problem.
            1..=4 => (Message::Error, 8),
            // Redirect: two addresses, then options; the quote is in one of them.
            137 => (Message::Redirect, 48),
            _ => (Message::Other, 0),
        }
    }

    #[inline(always)]
    fn quoted_address(
        skb: &Skb,
        quote: u32,
        end: End,
        old: <V6 as Family>::Addr,
        new: <V6 as Family>::Addr,
        checksum: u32,
    ) -> bool {
        let at = if end == End::Source { 8 } else { 24 };
        skb.replace_quoted6(checksum, old.words(), new.words()) && skb.store(quote + at, &new)
    }

    #[inline(always)]
    fn take_hop(skb: &Skb, network: &Network<V6>) -> bool {
        // No checksum makes up for this change.
        skb.store_summed(network.offset + 7, &(network.hops.wrapping_sub(1) as u8))
    }

    #[inline(always)]
    fn outer(
        skb: &Skb,
        network: &Network<V6>,
        end: End,
        new: <V6 as Family>::Addr,
        checksum: u32,
    ) -> bool {
        let old = if end == End::Source {
            network.source
        } else {
            network.destination
        };
        V6::address(
            skb,
            network.offset,
            end,
            old,
            new,
            Checksum {
                offset: checksum,
                flags: PSEUDO,
            },
        )
    }
}

/// The packet an error is about, and where it is quoted.
pub(crate) struct Quote<F: Family> {
    pub(crate) network: Network<F>,
    source_port: u16,
    destination_port: u16,
    /// Offset of the message's checksum.
    pub(crate) checksum: u32,
}

/// Reads the quote of an ICMP message, if it has one of a TCP or UDP packet.
#[inline(always)]
pub(crate) fn quote<F: Quoted>(skb: &Skb, network: &Network<F>) -> Option<(Message, Quote<F>)> {
    if network.part != Part::Whole {
        return None;
    }
    let kind: u8 = skb.load(network.transport)?;
    let (message, mut skip) = F::message(kind);
    if message == Message::Other {
        return None;
    }
    if message == Message::Redirect && F::VERSION == 6 {
        skip = redirected_header(skb, network.transport)?;
    }
    let inner = F::network(skb, network.transport + skip)?;
    if inner.part == Part::Later || (inner.protocol != TCP && inner.protocol != UDP) {
        return None;
    }
    // Behind the quoted packet's end, or the message's, nothing is its ports.
    let ports_end = inner.transport + 4;
    if ports_end > inner.end || ports_end > network.end {
        return None;
    }
    let [source_port, destination_port]: [u16; 2] = skb.load(inner.transport)?;
    let quote = Quote {
        network: inner,
        source_port: u16::from_be(source_port),
        destination_port: u16::from_be(destination_port),
        checksum: network.transport + 2,
    };
    Some((message, quote))
}

/// Whether an ICMP message must not be answered by an error. One that ends before its type never is.
#[inline(always)]
pub(crate) fn is_error<F: Quoted>(skb: &Skb, network: &Network<F>) -> bool {
    if network.transport >= network.end {
        return true;
    }
    match skb.load::<u8>(network.transport) {
        // All of ICMPv6's errors are below 128, also those yet to come (RFC 4443 §2.1).
        Some(kind) => F::message(kind).0 != Message::Other || F::ICMP == ICMPV6 && kind < 128,
        None => true,
    }
}

/// Where the packet begins in an IPv6 redirect: behind the target's link-layer address option if that comes
/// first (RFC 4861 §4.5, §4.6.3).
#[inline(always)]
fn redirected_header(skb: &Skb, message: u32) -> Option<u32> {
    let mut at = 40;
    for _ in 0..2 {
        let [kind, length]: [u8; 2] = skb.load(message + at)?;
        if kind == 4 {
            return Some(at + 8);
        }
        at += u32::from(length) * 8;
    }
    None
}

/// An ICMP message on its way to a client. The quoted packet is one the client sent, as the endpoint was to get it.
/// [`NOT_OURS`]: it is none of ours.
#[inline(never)]
pub(crate) fn to_client<F: Quoted, const SCOPE: u8>(skb: Skb, work: &mut Work<F>) -> i32 {
    let Some((message, quote)) = quote(&skb, &work.network) else {
        return NEXT;
    };
    reversed(&mut work.reply, &quote, SCOPE);
    if work.find_reply().is_none() {
        return NOT_OURS;
    }
    if message == Message::Redirect {
        // It would send all the service's traffic to one endpoint's neighbour.
        count(counter::REDIRECT_DROPPED);
        return DROP;
    }
    let to = &work.forward;
    let from_endpoint = work.network.source == quote.network.destination;
    let done = quoted_end(
        &skb,
        &quote,
        End::Destination,
        to.destination,
        to.destination_port,
    ) && quoted_end(&skb, &quote, End::Source, to.source, to.source_port)
        && (!from_endpoint
            || F::outer(
                &skb,
                &work.network,
                End::Source,
                to.destination,
                quote.checksum,
            ));
    if done {
        count(counter::ICMP_TRANSLATED);
        NEXT
    } else {
        DROP
    }
}

/// An ICMP error that a pod sends about an answer it got, addressed to the service: its endpoint must see what
/// it sent. [`NOT_OURS`]: not about a flow of ours.
#[inline(never)]
pub(crate) fn from_client<F: Quoted, const SCOPE: u8>(skb: Skb, work: &mut Work<F>) -> i32 {
    let Some((message, quote)) = quote(&skb, &work.network) else {
        return NOT_OURS;
    };
    // As for netfilter, an error that goes elsewhere than to who sent the packet is about nothing.
    if message != Message::Error || work.network.destination != quote.network.source {
        return NOT_OURS;
    }
    let action = about_masqueraded(&skb, work, &quote);
    if action != NOT_OURS {
        return action;
    }
    reversed(&mut work.key, &quote, SCOPE);
    if find(&work.key, &mut work.flow).is_none() {
        return NOT_OURS;
    }
    let flow = &work.flow;
    let (client, new) = (F::read(&work.key.source), F::read(&flow.new_source));
    let source = if flow.flags & MASQUERADE != 0 {
        client
    } else {
        new
    };
    let done = quoted_end(
        &skb,
        &quote,
        End::Source,
        flow.new_destination,
        flow.new_destination_port,
    ) && quoted_end(&skb, &quote, End::Destination, source, flow.new_source_port)
        && F::outer(
            &skb,
            &work.network,
            End::Destination,
            flow.new_destination,
            quote.checksum,
        );
    if !done {
        return DROP;
    }
    count(counter::ICMP_TRANSLATED);
    NEXT
}

/// An error about a packet that left masqueraded: it becomes one about the packet as the client's host routed
/// it, and goes on to the client. Egress there does the rest. To this node's own processes it is at once one about what
/// they sent.
#[inline(always)]
fn about_masqueraded<F: Quoted>(skb: &Skb, work: &mut Work<F>, quote: &Quote<F>) -> i32 {
    reversed(&mut work.reply, quote, MASQUERADED);
    if work.find_reply().is_none() {
        return NOT_OURS;
    }
    let client = work.forward.source;
    let own = work.flow.flags & OWN_CLIENT != 0;
    let asked = &work.forward;
    if own
        && !quoted_end(
            skb,
            quote,
            End::Destination,
            asked.destination,
            asked.destination_port,
        )
    {
        return DROP;
    }
    let port = if own {
        asked.source_port
    } else {
        quote.source_port
    };
    let done = quoted_end(skb, quote, End::Source, client, port)
        && F::outer(skb, &work.network, End::Destination, client, quote.checksum);
    if !done {
        return DROP;
    }
    count(counter::ICMP_TRANSLATED);
    if work.flow.flags & OWN_ADDRESS != 0 {
        return skb.hand_over(work.network.offset);
    }
    NEXT
}

/// An error about an answer to a masqueraded flow, on its way to the endpoint: [`from_client`] made it one about the
/// answer as the client's host routed it. The endpoint knows this node alone.
#[inline(never)]
pub(crate) fn about_answer<F: Quoted>(skb: Skb, work: &mut Work<F>) -> i32 {
    let Some((Message::Error, quote)) = quote(&skb, &work.network) else {
        return NEXT;
    };
    // The quoted packet's own key, where its flow was met.
    reversed(&mut work.key, &quote, OUTSIDE);
    write_turned(&mut work.reply, &work.key);
    if work.find_reply().is_none() {
        work.reply.scope = POD;
        if work.find_reply().is_none() {
            return NEXT;
        }
    }
    if work.flow.flags & MASQUERADE == 0 {
        return NEXT;
    }
    let node = F::read(&work.flow.new_source);
    let port = quote.destination_port;
    let done = quoted_end(&skb, &quote, End::Destination, node, port)
        && F::outer(&skb, &work.network, End::Source, node, quote.checksum);
    if !done {
        return DROP;
    }
    count(counter::ICMP_TRANSLATED);
    NEXT
}

/// The key of the quoted packet's opposite direction.
#[inline(always)]
pub(crate) fn reversed<F: Quoted>(key: &mut FlowKey<F>, quote: &Quote<F>, scope: u8) {
    key.source = quote.network.destination;
    key.destination = quote.network.source;
    key.source_port = quote.destination_port;
    key.destination_port = quote.source_port;
    key.protocol = quote.network.protocol;
    key.scope = scope;
    key.noted = 0;
}

/// Replaces address and port of one end of the quoted packet. Its transport checksum stays as it is: receivers
/// cannot check it, as the quote is cut short.
#[inline(always)]
pub(crate) fn quoted_end<F: Quoted>(
    skb: &Skb,
    quote: &Quote<F>,
    end: End,
    address: F::Addr,
    port: u16,
) -> bool {
    let inner = &quote.network;
    let (old, old_port, at) = match end {
        End::Source => (inner.source, quote.source_port, inner.transport),
        End::Destination => (
            inner.destination,
            quote.destination_port,
            inner.transport + 2,
        ),
    };
    if old != address && !F::quoted_address(skb, inner.offset, end, old, address, quote.checksum) {
        return false;
    }
    if old_port == port {
        return true;
    }
    let (old, new) = (old_port.to_be(), port.to_be());
    skb.replace_l4(quote.checksum, old.into(), new.into(), 2, 0) && skb.store(at, &new)
}
