//! The flow table: which translation the packets of a conversation get.
//!
//! The record lives under the forward key; the reply key leads to the forward key. A reply entry without its
//! record is no flow. See `docs/maps.md` for life and size.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use core::ptr::{copy_nonoverlapping, read_volatile, write_volatile};
use lb_ebpf::abi::endpoint;
use lb_ebpf::abi::flow::{
    CLIENT_CLOSED, CLOSED, Flow, FlowKey, HAIRPIN, LOCAL_ENDPOINT, MASQUERADE, MASQUERADED, NEW,
    OWN_ADDRESS, OWN_CLIENT, POD, key_check,
};
use lb_ebpf::abi::settings::Settings;
use lb_ebpf::abi::{TCP, UDP, counter};
use lb_ebpf::flow_keys::{write_leaving_key, write_reply_key, write_returning_key};
use lb_ebpf::tcp_state::{Speaker, is_clean_syn, next, timeout};

use crate::header::{Network, Transport};
use crate::lookup::endpoint_serves;
use crate::maps::Tables;
use crate::report::count;
use crate::shard::{self, slot};
use crate::work::Work;

/// Other source ports tried when the client's own is taken.
const PORT_TRIES: u32 = 8;

/// Distance between the tries: were they neighbours, taken ports would gather in runs.
const PORT_STRIDE: u32 = 1009;

/// Where a record lies in its table.
#[derive(Clone, Copy)]
pub(crate) struct Place<F: Tables>(*mut Flow<F>);

/// Why a flow could not be opened.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Opening {
    Done,
    /// The reply key belongs to a live flow.
    Taken,
    Full,
}

/// Whether `reply` is one of the flow's further keys. The entry that led here may have been reused.
#[inline(always)]
fn answers<F: Tables>(reply: &FlowKey<F>, flow: &Flow<F>, key: &FlowKey<F>) -> bool {
    if reply.scope == MASQUERADED
        && reply.source == key.source
        && reply.destination == flow.new_destination
    {
        // The packets as they leave.
        return reply.source_port == flow.new_source_port
            && reply.destination_port == flow.new_destination_port;
    }
    let masqueraded = flow.flags & MASQUERADE != 0;
    let (client, new) = (F::read(&key.source), F::read(&flow.new_source));
    let destination = if masqueraded && reply.scope != MASQUERADED {
        client
    } else {
        new
    };
    reply.source == flow.new_destination
        && reply.destination == destination
        && reply.source_port == flow.new_destination_port
        && reply.destination_port == flow.new_source_port
}

/// The entry under a reply's key.
#[inline(always)]
pub(crate) fn reply_entry<F: Tables>(reply: &FlowKey<F>) -> Option<*const FlowKey<F>> {
    shard::find(F::replies(), slot(key_check(reply)), reply).map(<*mut FlowKey<F>>::cast_const)
}

/// The key of a packet met in `scope`.
#[inline(always)]
pub(crate) fn key<F: Tables>(network: &Network<F>, transport: &Transport, scope: u8) -> FlowKey<F> {
    FlowKey {
        source: network.source,
        destination: network.destination,
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        protocol: network.protocol,
        scope,
        zero: 0,
    }
}

/// Removes an entry of the reply table if it names `key`.
#[inline(always)]
fn release<F: Tables>(reply: &FlowKey<F>, key: &FlowKey<F>) {
    let slot = slot(key_check(reply));
    if let Some(entry) = shard::find(F::replies(), slot, reply) {
        // SAFETY: an element of the table; if it changed hands just now the comparison fails.
        if unsafe { *entry == *key } {
            shard::remove(F::replies(), slot, reply);
        }
    }
}

/// Removes the reply entries of a flow. `reply` is overwritten.
#[inline(never)]
pub(crate) fn release_replies<F: Tables>(key: &FlowKey<F>, flow: &Flow<F>, reply: &mut FlowKey<F>) {
    write_reply_key(reply, flow, key);
    release(reply, key);
    if flow.flags & MASQUERADE != 0 {
        write_leaving_key(reply, flow, key);
        release(reply, key);
        write_returning_key(reply, flow, key);
        release(reply, key);
    }
}

/// Copies the record under `key`, live or not, to `out`.
#[inline(always)]
pub(crate) fn find<F: Tables>(key: &FlowKey<F>, out: &mut Flow<F>) -> Option<Place<F>> {
    let check = key_check(key);
    let at = shard::find(F::flows(), slot(check), key)?;
    // SAFETY: an element of the table; `check`, read last, tells whether it was reused meanwhile.
    let read = unsafe {
        copy_nonoverlapping(at.cast_const(), out, 1);
        read_volatile(&raw const (*at).check)
    };
    (read == check).then_some(Place(at))
}

/// Removes a flow: first the record, so that nobody finds half a flow, then the entries that name it. `reply`
/// is overwritten.
#[inline(always)]
fn remove<F: Tables>(key: &FlowKey<F>, flow: &Flow<F>, reply: &mut FlowKey<F>) {
    shard::remove(F::flows(), slot(key_check(key)), key);
    release_replies(key, flow, reply);
}

/// Removes the flow at hand and the reply entry that led to it. Out of line for the caller's stack.
#[inline(never)]
pub(crate) fn end<F: Tables>(work: &Work<F>) {
    shard::remove(F::flows(), slot(key_check(&work.forward)), &work.forward);
    shard::remove(F::replies(), slot(key_check(&work.reply)), &work.reply);
}

impl<F: Tables> Place<F> {
    /// Notes a packet: its time, at most once a second, and what its flags say. `flow` is the copy.
    #[inline(always)]
    pub(crate) fn touch(
        &self,
        flow: &Flow<F>,
        protocol: u8,
        flags: u8,
        speaker: Speaker,
        now: u32,
    ) {
        let state = next(flow.state, protocol, flags, speaker);
        // SAFETY: the element may have been reused for another flow; then that one lives a little longer or
        // shorter, which its own next packet puts right.
        unsafe {
            if state != flow.state {
                write_volatile(&raw mut (*self.0).state, state);
            }
            if flow.last_seen != now && flow.state != CLOSED {
                write_volatile(&raw mut (*self.0).last_seen, now);
            }
        }
    }
}

/// Whether a flow still stands, for a packet of its client.
#[inline(always)]
fn lives<F: Tables>(
    flow: &Flow<F>,
    settings: &Settings,
    protocol: u8,
    flags: u8,
    now: u32,
) -> bool {
    if now.saturating_sub(flow.last_seen) > timeout(settings, protocol, flow.state) {
        return false;
    }
    match protocol {
        // A new connection on the ports of one that is closing, or a SYN repeated towards an endpoint that is
        // gone meanwhile.
        TCP if is_clean_syn(flags) => {
            if flow.state == NEW {
                endpoint_serves(flow.endpoint, flow.endpoint_generation)
            } else {
                flow.state < CLIENT_CLOSED
            }
        }
        // UDP follows its service (spec E13), TCP stays (E12).
        UDP => endpoint_serves(flow.endpoint, flow.endpoint_generation),
        _ => true,
    }
}

impl<F: Tables> Work<F> {
    /// The packet's key in `scope`.
    #[inline(always)]
    pub(crate) fn set_key(&mut self, scope: u8) {
        self.key.source = self.network.source;
        self.key.destination = self.network.destination;
        self.key.source_port = self.transport.source_port;
        self.key.destination_port = self.transport.destination_port;
        self.key.protocol = self.network.protocol;
        self.key.scope = scope;
        self.key.zero = 0;
    }

    /// Whether the packet at hand, under `key`, is its client's next one in a flow that stands; then `flow` is the
    /// record. A flow that does not stand any more is removed.
    #[inline(always)]
    pub(crate) fn goes_on(&mut self, settings: &Settings, flags: u8, now: u32) -> bool {
        let protocol = self.key.protocol;
        let Some(place) = find(&self.key, &mut self.flow) else {
            return false;
        };
        if lives(&self.flow, settings, protocol, flags, now) {
            place.touch(&self.flow, protocol, flags, Speaker::Client, now);
            return true;
        }
        if protocol == UDP {
            count(counter::FLOW_MOVED);
        }
        remove(&self.key, &self.flow, &mut self.reply);
        false
    }

    /// The flow whose replies have `reply`: its forward key and record.
    #[inline(always)]
    pub(crate) fn find_reply(&mut self) -> Option<Place<F>> {
        let entry = reply_entry(&self.reply)?;
        self.follow(entry)
    }

    /// The flow that the entry under `reply` leads to.
    #[inline(always)]
    pub(crate) fn follow(&mut self, entry: *const FlowKey<F>) -> Option<Place<F>> {
        // SAFETY: an element of the table; whether the copy is whole shows in the record it leads to.
        unsafe { copy_nonoverlapping(entry, &raw mut self.forward, 1) };
        let place = find(&self.forward, &mut self.flow)?;
        answers(&self.reply, &self.flow, &self.forward).then_some(place)
    }

    /// Opens a flow for the packet's key towards the chosen endpoint. On [`Opening::Done`], `flow` is the record in force: ours, or that of another CPU that
    /// opened the same flow first.
    #[inline(always)]
    pub(crate) fn open(&mut self, settings: &Settings, now: u32) -> Opening {
        let (chosen, masquerade) = (&self.endpoint, self.masquerade);
        // What a node sends to itself takes the way of a pod's answer to itself.
        let hairpin = if self.own {
            !masquerade
        } else {
            chosen.address == self.key.source && self.key.scope == POD
        };
        let flow = &mut self.flow;
        let (dialled, client, own) = (
            F::read(&self.key.destination),
            F::read(&self.key.source),
            F::read(&self.masquerade_address),
        );
        flow.new_source = if hairpin && !self.own_address {
            dialled
        } else if masquerade {
            own
        } else {
            client
        };
        flow.new_destination = chosen.address;
        flow.new_source_port = self.key.source_port;
        flow.new_destination_port = chosen.port;
        flow.state = NEW;
        flow.flags = if hairpin {
            HAIRPIN
        } else if masquerade {
            MASQUERADE
        } else {
            0
        };
        if chosen.flags & endpoint::LOCAL != 0 {
            flow.flags |= LOCAL_ENDPOINT;
        }
        if self.own {
            flow.flags |= OWN_CLIENT;
        }
        if self.own_address {
            flow.flags |= OWN_ADDRESS;
        }
        flow.zero = 0;
        flow.service = chosen.service;
        flow.endpoint = chosen.id;
        flow.endpoint_generation = self.generation;
        flow.last_seen = now;
        flow.created = now;
        flow.check = key_check(&self.key);
        // A process may dial its node's server directly from the same port: only a port of our pool tells the two
        // connections apart.
        if flow.flags & (MASQUERADE | OWN_ADDRESS) == 0 {
            write_reply_key(&mut self.reply, &self.flow, &self.key);
            match self.claim(settings, now) {
                Opening::Done => return self.enter(),
                Opening::Full => return Opening::Full,
                Opening::Taken => count(counter::REPLY_CONFLICT),
            }
        }
        self.open_with_other_port(settings, now)
    }

    /// Looks for a source port from the pool, and opens the flow with it.
    #[inline(always)]
    fn open_with_other_port(&mut self, settings: &Settings, now: u32) -> Opening {
        let first = settings.nat_port_first;
        let size = u32::from(settings.nat_port_last.wrapping_sub(first)) + 1;
        if first == 0 {
            return Opening::Full;
        }
        // SAFETY: the helper has no preconditions.
        let random = u64::from(unsafe { bpf_get_prandom_u32() });
        let mut offset = ((random * u64::from(size)) >> 32) as u32;
        for _ in 0..PORT_TRIES {
            self.flow.new_source_port = first.wrapping_add(offset as u16);
            if self.claim_all(settings, now) {
                return self.enter();
            }
            offset = (offset + PORT_STRIDE) % size;
        }
        Opening::Full
    }

    /// Claims every reply key of the flow, or none.
    #[inline(always)]
    fn claim_all(&mut self, settings: &Settings, now: u32) -> bool {
        write_reply_key(&mut self.reply, &self.flow, &self.key);
        if self.claim(settings, now) != Opening::Done {
            return false;
        }
        if self.flow.flags & MASQUERADE == 0 {
            return true;
        }
        write_returning_key(&mut self.reply, &self.flow, &self.key);
        if self.claim(settings, now) == Opening::Done {
            write_leaving_key(&mut self.reply, &self.flow, &self.key);
            if self.claim(settings, now) == Opening::Done {
                return true;
            }
        }
        release_replies(&self.key, &self.flow, &mut self.reply);
        false
    }

    /// Enters `reply`. An entry held by a flow that is gone or closing is taken over.
    ///
    /// Out of line, as it is called from several places and is large.
    #[inline(never)]
    fn claim(&mut self, settings: &Settings, now: u32) -> Opening {
        let slot_of_reply = slot(key_check(&self.reply));
        let Some(entry) = shard::find(F::replies(), slot_of_reply, &self.reply) else {
            // Nobody holds it; two that come at once are told apart by the insertion.
            return if shard::insert(F::replies(), slot_of_reply, &self.reply, &self.key) {
                Opening::Done
            } else {
                Opening::Full
            };
        };
        // SAFETY: an element of the table; a torn copy leads to no record or to one that does not fit.
        unsafe { copy_nonoverlapping(entry, &raw mut self.forward, 1) };
        if self.forward == self.key {
            return Opening::Done;
        }
        if find(&self.forward, &mut self.other).is_some()
            && answers(&self.reply, &self.other, &self.forward)
        {
            let resting = now.saturating_sub(self.other.last_seen);
            if resting <= timeout(settings, self.key.protocol, self.other.state)
                && self.other.state < CLOSED
            {
                return Opening::Taken;
            }
            shard::remove(F::flows(), slot(key_check(&self.forward)), &self.forward);
        }
        shard::remove(F::replies(), slot_of_reply, &self.reply);
        if shard::insert(F::replies(), slot_of_reply, &self.reply, &self.key) {
            Opening::Done
        } else {
            Opening::Full
        }
    }

    /// Enters the record under the packet's key, after its reply keys.
    #[inline(always)]
    fn enter(&mut self) -> Opening {
        if shard::insert(F::flows(), slot(self.flow.check), &self.key, &self.flow) {
            count(counter::FLOW_CREATED);
            return Opening::Done;
        }
        // Another CPU was first, or the table is full: our entries must go, unless they are also the other's.
        if find(&self.key, &mut self.other).is_none() {
            release_replies(&self.key, &self.flow, &mut self.reply);
            return Opening::Full;
        }
        if !answers(&self.reply, &self.other, &self.key) {
            release_replies(&self.key, &self.flow, &mut self.reply);
        }
        self.flow = self.other;
        Opening::Done
    }
}
