//! The flow table: which translation the packets of a conversation get.
//!
//! The record lives under the forward key; the reply key leads to the forward key. A reply entry without its
//! record is no flow. See `docs/maps.md` for life and size.

use core::ptr::{NonNull, copy_nonoverlapping, read_volatile, write_volatile};
use lb_ebpf::abi::family::{V4, V6};
use lb_ebpf::abi::flow::{
    ANSWERED, DIRECT, ESTABLISHED, Flow, FlowKey, MASQUERADE, MASQUERADED, NEW, OWN_ADDRESS, RESET,
    RESET_DENIED, key_check,
};
use lb_ebpf::abi::settings::Settings;
use lb_ebpf::abi::{TCP, UDP, counter};
use lb_ebpf::flow_keys::{names, write_reply_key, write_returning_key};
use lb_ebpf::tcp_state::{Speaker, is_clean_syn, is_sign_of_life, next, timeout};

use crate::lookup::{endpoint_serves, still_means};
use crate::maps::Tables;
use crate::recall::{Entry, forget_answers};
use crate::report::count;
use crate::shard::{self, slot};
use crate::work::Work;

/// Where a record lies in its table.
#[derive(Clone, Copy)]
pub(crate) struct Place<F: Tables>(*mut Flow<F>);

/// Whether `reply` is one of the flow's further keys. The entry that led here may have been reused.
#[inline(always)]
pub(crate) fn answers<F: Tables>(reply: &FlowKey<F>, flow: &Flow<F>, key: &FlowKey<F>) -> bool {
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
pub(crate) fn reply_entry<F: Tables>(reply: &FlowKey<F>) -> Option<Entry<F>> {
    let check = key_check(reply);
    let at = shard::find(F::replies(), slot(check), reply)?;
    NonNull::new(at).map(|at| Entry { at, check })
}

/// Writes `key` as the other side's packets have it.
#[inline(always)]
pub(crate) fn write_turned<F: Tables>(out: &mut FlowKey<F>, key: &FlowKey<F>) {
    let (source, destination) = (F::read(&key.source), F::read(&key.destination));
    out.source = destination;
    out.destination = source;
    out.source_port = key.destination_port;
    out.destination_port = key.source_port;
    out.protocol = key.protocol;
    out.scope = key.scope;
    out.noted = 0;
}

/// Removes an entry of the reply table if it names `key`.
#[inline(always)]
pub(crate) fn release<F: Tables>(reply: &FlowKey<F>, key: &FlowKey<F>) {
    let slot = slot(key_check(reply));
    if let Some(entry) = shard::find(F::replies(), slot, reply) {
        // SAFETY: an element of the table; if it changed hands just now the comparison fails.
        if names(unsafe { &*entry }, key) {
            shard::remove(F::replies(), slot, reply);
        }
    }
}

/// Whether the flow's reply entries are there; they lose their marks then. `reply` is overwritten.
#[inline(never)]
fn leads_back<F: Tables>(key: &FlowKey<F>, flow: &Flow<F>, reply: &mut FlowKey<F>) -> bool {
    write_reply_key(reply, flow, key);
    if !is_led_to(reply, key) {
        return false;
    }
    if flow.flags & MASQUERADE == 0 {
        return true;
    }
    write_returning_key(reply, flow, key);
    is_led_to(reply, key)
}

/// Whether the entry under `reply` names `key`; it loses its mark then.
#[inline(always)]
fn is_led_to<F: Tables>(reply: &FlowKey<F>, key: &FlowKey<F>) -> bool {
    let Some(entry) = reply_entry(reply) else {
        return false;
    };
    // SAFETY: an element of the table; one that changes hands just now fails the comparison.
    let named = names(unsafe { entry.at.as_ref() }, key);
    if named {
        entry.clear();
    }
    named
}

/// Removes the reply entries of a flow. `reply` is overwritten.
#[inline(never)]
pub(crate) fn release_replies<F: Tables>(key: &FlowKey<F>, flow: &Flow<F>, reply: &mut FlowKey<F>) {
    write_reply_key(reply, flow, key);
    release(reply, key);
    if flow.flags & MASQUERADE != 0 {
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
pub(crate) fn remove<F: Tables>(key: &FlowKey<F>, flow: &Flow<F>, reply: &mut FlowKey<F>) {
    shard::remove(F::flows(), slot(key_check(key)), key);
    release_replies(key, flow, reply);
}

/// Removes the flow at hand, which a reply's key led to. Out of line for the caller's stack.
#[inline(never)]
pub(crate) fn end<F: Tables>(work: &mut Work<F>) {
    remove(&work.forward, &work.flow, &mut work.reply);
}

impl<F: Tables> Place<F> {
    /// Makes the record that of another connection between the same ends.
    #[inline(always)]
    fn renew(&self, flow: &Flow<F>) {
        // SAFETY: an element of the table. Who reads it meanwhile translates by what both connections have in common.
        unsafe {
            write_volatile(&raw mut (*self.0).service, flow.service);
            write_volatile(&raw mut (*self.0).endpoint, flow.endpoint);
            write_volatile(
                &raw mut (*self.0).endpoint_generation,
                flow.endpoint_generation,
            );
            write_volatile(&raw mut (*self.0).last_seen, flow.last_seen);
            write_volatile(&raw mut (*self.0).created, flow.created);
            write_volatile(&raw mut (*self.0).state, flow.state);
        }
    }

    /// Gives the record another source port.
    #[inline(always)]
    pub(crate) fn set_source_port(&self, port: u16) {
        // SAFETY: as in `touch`: on a record that was reused, its reply keys do not fit any more, and it ends.
        unsafe { write_volatile(&raw mut (*self.0).new_source_port, port) };
    }

    /// Notes a packet: its time, at most once a second, and what its flags say. `flow` is the copy. The state is read once
    /// more: another CPU may have seen the connection end meanwhile, and a flow that ended must not live on. Gives the state
    /// before and after.
    #[inline(always)]
    pub(crate) fn touch(
        &self,
        flow: &Flow<F>,
        protocol: u8,
        flags: u8,
        speaker: Speaker,
        now: u32,
    ) -> (u8, u8) {
        // SAFETY: the element may have been reused for another flow; then that one lives a little longer or
        // shorter, which its own next packet puts right.
        unsafe {
            let former = read_volatile(&raw const (*self.0).state);
            let state = next(former, protocol, flags, speaker);
            if state != former {
                write_volatile(&raw mut (*self.0).state, state);
            }
            if flow.last_seen != now && is_sign_of_life(flow.state, protocol, flags) {
                write_volatile(&raw mut (*self.0).last_seen, now);
            }
            (former, state)
        }
    }
}

/// Whether a flow has been silent for longer than it may.
#[inline(always)]
pub(crate) fn has_expired<F: Tables>(
    flow: &Flow<F>,
    settings: &Settings,
    protocol: u8,
    now: u32,
) -> bool {
    let age = flow.last_seen.saturating_sub(flow.created);
    now.saturating_sub(flow.last_seen) > timeout(settings, protocol, flow.state, age)
}

/// Whether the flow's endpoint is still one. Where no service is involved nobody can say otherwise.
#[inline(always)]
fn serves<F: Tables>(flow: &Flow<F>) -> bool {
    flow.flags & DIRECT != 0 || endpoint_serves(flow.endpoint, flow.endpoint_generation)
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
    if has_expired(flow, settings, protocol, now) {
        return false;
    }
    match protocol {
        // A new connection on the ports of one that is closing, or a SYN repeated towards an endpoint that is
        // gone meanwhile.
        TCP if is_clean_syn(flags) => match flow.state {
            NEW => serves(flow),
            state => state == ANSWERED || state == ESTABLISHED,
        },
        // UDP follows its service (spec E13), TCP stays (E12).
        UDP => serves(flow),
        _ => true,
    }
}

/// Whether flows of this kind always get a port of our pool. A process may dial its node's server directly from the same
/// port: only another port tells the two connections apart.
#[inline(always)]
pub(crate) fn has_pooled_port(flags: u8) -> bool {
    flags & (MASQUERADE | DIRECT | OWN_ADDRESS) != 0
}

/// For [`Work::has_moved`]. Like its sister a function that the verifier looks at once, not wherever it is called.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn has_moved4() -> u32 {
    V4::work().is_some_and(|work| means_another(work)).into()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn has_moved6() -> u32 {
    V6::work().is_some_and(|work| means_another(work)).into()
}

/// Whether what the packet at hand was sent to is not the flow's service port any more.
#[inline(always)]
fn means_another<F: Tables>(work: &Work<F>) -> bool {
    let (key, service) = (&work.key, work.flow.service);
    !still_means::<F>(work.uses, &key.destination, key.destination_port, service)
}

/// Seconds by which the clocks of two processors can differ, and more.
const SWEEP_MAY_COME: u32 = 2;

impl<F: Tables> Work<F> {
    /// Gives the new flow at hand the record of the one that ended before, if both have the same ends: nothing is entered
    /// then, and nothing removed. Else that record is removed.
    #[inline(always)]
    pub(crate) fn succeed(&mut self) -> bool {
        let Some(place) = find(&self.key, &mut self.other) else {
            return false;
        };
        let (flow, other) = (&mut self.flow, &self.other);
        // A port of our pool only where the new flow would get one, too.
        let port = has_pooled_port(flow.flags) || flow.new_source_port == other.new_source_port;
        if port
            && flow.flags == other.flags
            && flow.new_source == other.new_source
            && flow.new_destination == other.new_destination
            && flow.new_destination_port == other.new_destination_port
        {
            flow.new_source_port = other.new_source_port;
            if leads_back(&self.key, flow, &mut self.reply) {
                place.renew(flow);
                return true;
            }
        }
        remove(&self.key, &self.other, &mut self.reply);
        false
    }

    /// Removes the record of the connection that ended, if the packet at hand came upon one and is not translated: the
    /// record would take what follows for its own.
    #[inline(always)]
    pub(crate) fn forget_ended(&mut self) {
        if self.ended && find(&self.key, &mut self.other).is_some() {
            remove(&self.key, &self.other, &mut self.reply);
        }
    }

    /// The packet's key in `scope`.
    #[inline(always)]
    pub(crate) fn set_key(&mut self, scope: u8) {
        self.key.source = self.network.source;
        self.key.destination = self.network.destination;
        self.key.source_port = self.transport.source_port;
        self.key.destination_port = self.transport.destination_port;
        self.key.protocol = self.network.protocol;
        self.key.scope = scope;
        self.key.noted = 0;
    }

    /// Whether the packet at hand, under `key`, is its client's next one in a flow that stands; then `flow` is the
    /// record. A flow that does not stand any more is removed; the record of a connection that ended stays for its
    /// successor, see [`Work::succeed`].
    #[inline(always)]
    pub(crate) fn goes_on(&mut self, settings: &Settings, flags: u8, now: u32) -> bool {
        let protocol = self.key.protocol;
        self.ended = false;
        let Some(place) = find(&self.key, &mut self.flow) else {
            return false;
        };
        if lives(&self.flow, settings, protocol, flags, now) && !self.has_moved(now) {
            let states = place.touch(&self.flow, protocol, flags, Speaker::Client, now);
            // What the endpoint sends next says whether the connection stands.
            if states.0 != states.1 && matches!(states.1, RESET | RESET_DENIED) {
                forget_answers::<F>();
            }
            return true;
        }
        if protocol == UDP {
            count(counter::FLOW_MOVED);
        }
        // Not what the sweep may be about to take away.
        if protocol == TCP && !has_expired(&self.flow, settings, protocol, now + SWEEP_MAY_COME) {
            self.ended = true;
            return false;
        }
        remove(&self.key, &self.flow, &mut self.reply);
        false
    }

    /// Whether what the client of the UDP flow at hand dials has become another service port's, or nobody's. It is looked at
    /// once a second.
    #[inline(always)]
    fn has_moved(&self, now: u32) -> bool {
        let (key, flow) = (&self.key, &self.flow);
        if key.protocol != UDP || flow.last_seen == now || flow.flags & DIRECT != 0 {
            return false;
        }
        let moved = if F::VERSION == 4 {
            has_moved4()
        } else {
            has_moved6()
        };
        moved != 0
    }

    /// The flow whose replies have `reply`: its forward key and record.
    #[inline(always)]
    pub(crate) fn find_reply(&mut self) -> Option<Place<F>> {
        let entry = reply_entry(&self.reply)?;
        self.follow(entry)
    }

    /// The flow that the entry under `reply` leads to.
    #[inline(always)]
    pub(crate) fn follow(&mut self, entry: Entry<F>) -> Option<Place<F>> {
        // SAFETY: an element of the table; whether the copy is whole shows in the record it leads to.
        unsafe { copy_nonoverlapping(entry.at.as_ptr(), &raw mut self.forward, 1) };
        self.forward.noted = 0;
        let place = find(&self.forward, &mut self.flow)?;
        answers(&self.reply, &self.flow, &self.forward).then_some(place)
    }
}
