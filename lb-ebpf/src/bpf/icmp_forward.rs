//! ICMP errors about packets of flows that go the fast way. The host's stack has met none of those packets, so where it
//! tracks connections it calls such an error invalid, which many firewalls drop. The error goes as the packets do: wholly
//! translated, straight to the next hop.

use lb_ebpf::abi::counter;
use lb_ebpf::abi::flow::{LOCAL_ENDPOINT, MASQUERADE, MASQUERADED, OUTSIDE, OWN_CLIENT};
use lb_ebpf::abi::settings::STACK_FORWARDS;

use crate::DROP;
use crate::fast::{self, Hop, NO};
use crate::flow::find;
use crate::icmp_error::{Message, Quote, Quoted, quote, quoted_end, reversed};
use crate::lookup::settings;
use crate::report::count;
use crate::rewrite::End;
use crate::skb::Skb;
use crate::work::Work;

/// For whom an error is: neither, who sent the request that it is about, or who sent the answer.
const NOBODY: u32 = 0;
const CLIENT: u32 = 1;
const ENDPOINT: u32 = 2;

/// Sends the message at hand on, or says [`NO`] with the message untouched. In steps, so that stacks do not add up.
#[inline(always)]
pub(crate) fn forward<F: Quoted + Hop>(skb: Skb) -> i32 {
    let whom = recognise::<F>(skb);
    let Some(work) = F::work() else { return NO };
    if whom == NOBODY {
        return NO;
    }
    let manner = fast::way_of_message(skb, work, &work.reply.source);
    if manner == 0 {
        return NO;
    }
    if !translate::<F>(skb, whom) {
        return DROP;
    }
    count(counter::ICMP_TRANSLATED);
    fast::carry(skb, work, manner)
}

/// Finds the flow that an error is about, and puts down where its receiver is as the source of `reply`.
#[inline(never)]
fn recognise<F: Quoted>(skb: Skb) -> u32 {
    let (Some(settings), Some(work)) = (settings(), F::work()) else {
        return NOBODY;
    };
    if settings.flags & STACK_FORWARDS != 0 {
        return NOBODY;
    }
    let Some((Message::Error, quote)) = quote(&skb, &work.network) else {
        return NOBODY;
    };
    // As for netfilter, an error that goes elsewhere than to who sent the packet is about nothing.
    if work.network.destination != quote.network.source {
        return NOBODY;
    }
    reversed(&mut work.reply, &quote, MASQUERADED);
    if work.find_reply().is_some() {
        if work.forward.scope != OUTSIDE || !goes_the_fast_way(work) {
            return NOBODY;
        }
        work.reply.source = work.forward.source;
        return CLIENT;
    }
    reversed(&mut work.key, &quote, OUTSIDE);
    if find(&work.key, &mut work.flow).is_none() || !goes_the_fast_way(work) {
        return NOBODY;
    }
    work.reply.source = work.flow.new_destination;
    ENDPOINT
}

#[inline(always)]
fn goes_the_fast_way<F: Quoted>(work: &Work<F>) -> bool {
    work.flow.flags & (MASQUERADE | LOCAL_ENDPOINT | OWN_CLIENT) == MASQUERADE
}

/// Makes the error one about what its receiver sent, from whom it knows.
#[inline(never)]
fn translate<F: Quoted>(skb: Skb, whom: u32) -> bool {
    let Some(work) = F::work() else { return false };
    let Some((_, quote)) = quote(&skb, &work.network) else {
        return false;
    };
    if whom == CLIENT {
        let asked = &work.forward;
        let from_endpoint = work.network.source == quote.network.destination;
        quotes(
            &skb,
            &quote,
            (asked.source, asked.source_port),
            (asked.destination, asked.destination_port),
        ) && outer(&skb, work, &quote, End::Destination, asked.source)
            && (!from_endpoint || outer(&skb, work, &quote, End::Source, asked.destination))
    } else {
        let flow = &work.flow;
        // The endpoint knows this node alone.
        let node = F::read(&flow.new_source);
        quotes(
            &skb,
            &quote,
            (flow.new_destination, flow.new_destination_port),
            (node, flow.new_source_port),
        ) && outer(&skb, work, &quote, End::Destination, flow.new_destination)
            && outer(&skb, work, &quote, End::Source, node)
    }
}

/// Gives the quoted packet these ends.
#[inline(always)]
fn quotes<F: Quoted>(
    skb: &Skb,
    about: &Quote<F>,
    source: (F::Addr, u16),
    destination: (F::Addr, u16),
) -> bool {
    quoted_end(skb, about, End::Source, source.0, source.1)
        && quoted_end(skb, about, End::Destination, destination.0, destination.1)
}

#[inline(always)]
fn outer<F: Quoted>(skb: &Skb, work: &Work<F>, about: &Quote<F>, end: End, new: F::Addr) -> bool {
    F::outer(skb, &work.network, end, new, about.checksum)
}
