//! Opening flows: the keys of the replies are claimed first, then the record is entered, so that a record that is found
//! has its replies.
//!
//! A reply's key may belong to another flow: one client port, two services, one endpoint. Then this flow's packets get
//! another source port, from our own pool.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::helpers::generated::bpf_loop;
use core::ffi::c_void;
use core::ptr::copy_nonoverlapping;
use lb_ebpf::abi::family::{V4, V6};
use lb_ebpf::abi::flow::{
    DIRECT, HAIRPIN, LOCAL_ENDPOINT, MASQUERADE, MASQUERADED, NEW, OWN_ADDRESS, OWN_CLIENT, POD,
    RESET, has_ended, is_unproven, key_check,
};
use lb_ebpf::abi::settings::Settings;
use lb_ebpf::abi::{counter, endpoint};
use lb_ebpf::flow_keys::{write_reply_key, write_returning_key};
use lb_ebpf::volatile::read;

use crate::flow::{answers, find, has_expired, has_pooled_port, release, release_replies};
use crate::lookup::{now, settings};
use crate::maps::Tables;
use crate::recall::set_mark;
use crate::report::count;
use crate::shard::{self, slot};
use crate::work::Work;
use crate::{newcomer, target};

/// Ports looked at behind the first four: where nine in ten are taken for good one is found but for one time in a thousand, and
/// where all are, the packet waits some thirty microseconds for nothing.
const SEARCHED: u32 = 60;

/// How opening a flow, or claiming its keys, went.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Opening {
    Done,
    /// The reply key belongs to a live flow.
    Taken,
    Full,
}

impl Opening {
    /// From what a function that the verifier looks at by itself gives.
    #[inline(always)]
    fn from_number(number: u32) -> Self {
        match number {
            DONE => Self::Done,
            TAKEN => Self::Taken,
            _ => Self::Full,
        }
    }
}

const DONE: u32 = Opening::Done as u32;
const TAKEN: u32 = Opening::Taken as u32;

/// Families whose keys can be claimed. The functions behind this are global ones: the verifier looks at each once,
/// not wherever it is called.
pub(crate) trait Claim: Tables {
    /// Claims all reply keys of the flow at hand.
    fn claim_keys(port: u32, now: u32) -> Opening;
    /// Claims the one under `reply`.
    fn claim_key(now: u32) -> Opening;
    /// Gives the flow at hand the record of the one that ended before, see [`Work::succeed`].
    fn succeed() -> bool;
    /// Removes it, see [`Work::forget_ended`].
    fn forget_ended();
}

/// The flow keeps its client's port if that is free.
const CLIENTS_OWN: u32 = 0;
/// It gets one of our pool.
const POOLED: u32 = 1;

/// From whom a port may be taken whose flow has not expired: of our pool first only from who was reset a moment ago. An
/// endpoint that closed a connection itself refuses another client's from the same port for a minute (RFC 9293, TIME-WAIT).
const LENIENT: u8 = 0;
/// A client's own port: it knows when it may use it again. From whoever is over.
const OWN_PORT: u8 = 1;
/// None is left: also from whoever is unproven.
const PRESSED: u8 = 2;

/// Seconds without a packet after which nobody denies a reset any more.
const DENIED_WITHIN: u32 = 1;

impl Claim for V4 {
    #[inline(always)]
    fn claim_keys(port: u32, now: u32) -> Opening {
        Opening::from_number(claim_keys4(port, now))
    }

    #[inline(always)]
    fn claim_key(now: u32) -> Opening {
        Opening::from_number(claim_key4(now))
    }

    #[inline(always)]
    fn succeed() -> bool {
        succeed4() != 0
    }

    #[inline(always)]
    fn forget_ended() {
        forget_ended4();
    }
}

impl Claim for V6 {
    #[inline(always)]
    fn claim_keys(port: u32, now: u32) -> Opening {
        Opening::from_number(claim_keys6(port, now))
    }

    #[inline(always)]
    fn claim_key(now: u32) -> Opening {
        Opening::from_number(claim_key6(now))
    }

    #[inline(always)]
    fn succeed() -> bool {
        succeed6() != 0
    }

    #[inline(always)]
    fn forget_ended() {
        forget_ended6();
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn claim_keys4(port: u32, now: u32) -> u32 {
    claim_for::<V4>(port, now) as u32
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn claim_keys6(port: u32, now: u32) -> u32 {
    claim_for::<V6>(port, now) as u32
}

#[inline(always)]
fn claim_for<F: Claim>(port: u32, now: u32) -> Opening {
    match (settings(), F::work()) {
        (Some(settings), Some(work)) => work.claim_keys(port, settings, now),
        _ => Opening::Full,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn claim_key4(now: u32) -> u32 {
    claim_one::<V4>(now) as u32
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn claim_key6(now: u32) -> u32 {
    claim_one::<V6>(now) as u32
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn succeed4() -> u32 {
    V4::work().is_some_and(Work::succeed).into()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn forget_ended4() -> u32 {
    V4::work().map(Work::forget_ended).is_some().into()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn succeed6() -> u32 {
    V6::work().is_some_and(Work::succeed).into()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn forget_ended6() -> u32 {
    V6::work().map(Work::forget_ended).is_some().into()
}

#[inline(always)]
fn claim_one<F: Tables>(now: u32) -> Opening {
    match (settings(), F::work()) {
        (Some(settings), Some(work)) => work.claim(settings, now),
        _ => Opening::Full,
    }
}

impl<F: Claim> Work<F> {
    /// Opens a flow towards the chosen endpoint. On [`Opening::Done`], `flow` is the record in force, ours or another CPU's.
    #[inline(always)]
    pub(crate) fn open(&mut self, now: u32) -> Opening {
        self.fill(now);
        if self.ended && F::succeed() {
            self.note(now);
            return Opening::Done;
        }
        let port = if has_pooled_port(self.flow.flags) {
            POOLED
        } else {
            CLIENTS_OWN
        };
        match F::claim_keys(port, now) {
            Opening::Done => self.enter(now),
            other => other,
        }
    }

    /// Writes the record of the flow that is to be opened.
    #[inline(always)]
    fn fill(&mut self, now: u32) {
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
        flow.flags = if self.direct {
            DIRECT
        } else if hairpin {
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
    }

    /// Gives the flow that has `reply` another source port: its client speaks to the endpoint directly from its own.
    #[inline(never)]
    pub(crate) fn step_aside(&mut self) {
        let Some(place) = self.find_reply() else {
            return;
        };
        copy_key(&mut self.key, &self.forward);
        let former = self.transport.destination_port;
        if F::claim_keys(POOLED, now()) != Opening::Done {
            return;
        }
        // Chance may have hit the port that it has. What it claimed then is the very entry that is released below. Claiming
        // writes to this very memory, which the compiler cannot see.
        if read(&self.flow.new_source_port) == former {
            let again = F::claim_keys(POOLED, now());
            if again != Opening::Done || read(&self.flow.new_source_port) == former {
                return;
            }
        }
        place.set_source_port(self.flow.new_source_port);
        // The record leads to the new key now, so nothing finds it by the old one.
        self.flow.new_source_port = former;
        write_reply_key(&mut self.reply, &self.flow, &self.key);
        release(&self.reply, &self.key);
        count(counter::FLOW_STEPPED_ASIDE);
    }

    /// Enters the record under the packet's key, after its reply keys.
    #[inline(always)]
    fn enter(&mut self, now: u32) -> Opening {
        if self.insert() {
            self.note(now);
            return Opening::Done;
        }
        // Another CPU was first, or the table is full: our entries must go, unless they are also the other's.
        if find(&self.key, &mut self.other).is_none() {
            if newcomer::make_room(self, now) && self.insert() {
                self.note(now);
                return Opening::Done;
            }
            release_replies(&self.key, &self.flow, &mut self.reply);
            return Opening::Full;
        }
        if !answers(&self.reply, &self.other, &self.key) {
            release_replies(&self.key, &self.flow, &mut self.reply);
        }
        self.flow = self.other;
        Opening::Done
    }

    #[inline(always)]
    fn insert(&self) -> bool {
        shard::insert(F::flows(), slot(self.flow.check), &self.key, &self.flow)
    }

    /// Notes a flow that was opened.
    #[inline(always)]
    fn note(&mut self, now: u32) {
        count(counter::FLOW_CREATED);
        let flow = &self.flow;
        target::mark::<F>(&self.key.source, &flow.new_destination, flow.flags, now);
        newcomer::enrol(self, now);
    }
}

#[inline(always)]
fn copy_key<T: Copy>(to: &mut T, from: &T) {
    // SAFETY: both are references to records of one type, which do not overlap.
    unsafe { copy_nonoverlapping(&raw const *from, &raw mut *to, 1) };
}

/// A search for a port that is free, or as good as that.
#[repr(C)]
struct Search {
    /// The pool.
    first: u32,
    size: u32,
    now: u32,
    found: u32,
}

/// One try of a search, anywhere: whoever goes on from where others stopped searching finds what they left, in runs.
unsafe extern "C" fn try_port<F: Claim>(_number: u32, search: *mut Search) -> i64 {
    const GO_ON: i64 = 0;
    const STOP: i64 = 1;
    let Some(work) = F::work() else { return STOP };
    // SAFETY: the context that the search was started with.
    let search = unsafe { &mut *search };
    work.flow.new_source_port = (search.first as u16).wrapping_add(place(search.size) as u16);
    if work.claim_all(search.now) {
        search.found = 1;
        return STOP;
    }
    GO_ON
}

/// A place in a pool of this size, any of them as likely.
#[inline(always)]
fn place(size: u32) -> u32 {
    // SAFETY: the helper has no preconditions.
    let random = u64::from(unsafe { bpf_get_prandom_u32() });
    ((random * u64::from(size)) >> 32) as u32
}

impl<F: Claim> Work<F> {
    /// Claims every reply key of the flow at hand. Four ports of our pool are tried, and then as many as [`SEARCHED`], also
    /// where an unproven flow has them: a flood of made-up clients fills the pool towards an endpoint long before the table.
    #[inline(always)]
    fn claim_keys(&mut self, port: u32, settings: &Settings, now: u32) -> Opening {
        if port == CLIENTS_OWN {
            self.grip = OWN_PORT;
            write_reply_key(&mut self.reply, &self.flow, &self.key);
            match F::claim_key(now) {
                Opening::Taken => count(counter::REPLY_CONFLICT),
                other => return other,
            }
        }
        let first = settings.nat_port_first;
        let size = u32::from(settings.nat_port_last.wrapping_sub(first)) + 1;
        if first == 0 {
            return Opening::Full;
        }
        self.grip = LENIENT;
        // Written out: of a loop that stays one, LLVM spills the counter, and without CAP_PERFMON the verifier loses it.
        macro_rules! try_ports {
            ($($number:literal)+) => {
                $(
                    let _ = $number;
                    self.flow.new_source_port = first.wrapping_add(place(size) as u16);
                    if self.claim_all(now) {
                        return Opening::Done;
                    }
                )+
            };
        }
        try_ports!(1 2 3 4);
        self.grip = PRESSED;
        let mut search = Search {
            first: first.into(),
            size,
            now,
            found: 0,
        };
        let context = (&raw mut search).cast();
        // SAFETY: the callback is for this context.
        unsafe { bpf_loop(SEARCHED, try_port::<F> as *mut c_void, context, 0) };
        if read(&search.found) != 0 {
            Opening::Done
        } else {
            Opening::Full
        }
    }

    /// Claims every reply key of the flow, or none.
    #[inline(always)]
    fn claim_all(&mut self, now: u32) -> bool {
        write_reply_key(&mut self.reply, &self.flow, &self.key);
        if F::claim_key(now) != Opening::Done {
            return false;
        }
        if self.flow.flags & MASQUERADE == 0 {
            return true;
        }
        write_returning_key(&mut self.reply, &self.flow, &self.key);
        if F::claim_key(now) == Opening::Done {
            return true;
        }
        release_replies(&self.key, &self.flow, &mut self.reply);
        false
    }
}

impl<F: Tables> Work<F> {
    /// Enters `reply`. An entry held by a flow that is gone is taken over, and one by a flow that is over or unproven as far
    /// as `grip` says.
    #[inline(always)]
    fn claim(&mut self, settings: &Settings, now: u32) -> Opening {
        let slot_of_reply = slot(key_check(&self.reply));
        // Mostly nobody holds it. Two that come at once are told apart by the insertion.
        if shard::insert_unseen(F::replies(), slot_of_reply, &self.reply, &self.key) {
            return Opening::Done;
        }
        let Some(entry) = shard::find(F::replies(), slot_of_reply, &self.reply) else {
            return if shard::insert(F::replies(), slot_of_reply, &self.reply, &self.key) {
                Opening::Done
            } else {
                Opening::Full
            };
        };
        // SAFETY: an element of the table; a torn copy leads to no record or to one that does not fit.
        unsafe { copy_nonoverlapping(entry, &raw mut self.forward, 1) };
        self.forward.noted = 0;
        if self.forward == self.key {
            set_mark(entry, 0);
            return Opening::Done;
        }
        if find(&self.forward, &mut self.other).is_some()
            && answers(&self.reply, &self.other, &self.forward)
        {
            let (state, grip) = (self.other.state, self.grip);
            let free = if grip == LENIENT {
                state == RESET && now.saturating_sub(self.other.last_seen) > DENIED_WITHIN
            } else {
                has_ended(state)
            };
            if !free && !has_expired(&self.other, settings, self.key.protocol, now) {
                if grip != PRESSED || !is_unproven(state) {
                    return Opening::Taken;
                }
                count(counter::FLOW_DISPLACED);
            }
            shard::remove(F::flows(), slot(key_check(&self.forward)), &self.forward);
            if self.other.flags & MASQUERADE != 0 {
                // Nothing would ever find its other key. Here and not by a call, for the stack of what calls us.
                let key = &mut self.newcomer.key;
                if self.reply.scope == MASQUERADED {
                    write_reply_key(key, &self.other, &self.forward);
                } else {
                    write_returning_key(key, &self.other, &self.forward);
                }
                release(key, &self.forward);
            }
        }
        shard::remove(F::replies(), slot_of_reply, &self.reply);
        if shard::insert(F::replies(), slot_of_reply, &self.reply, &self.key) {
            Opening::Done
        } else {
            Opening::Full
        }
    }
}
