//! Flows whose client has not shown yet that it gets the answers: all that a flood of made-up clients can open.
//!
//! Each shard has a queue of the flows opened last. When it is full, the oldest of them that is still unproven ends:
//! a flood displaces itself and leaves the rest of the shard to those who talk. Nothing else ends a flow before its
//! time.
//!
//! Without a flood whoever comes out of the queue has long grown up, and to look at his record is to wait for memory that
//! is in no cache. So a processor looks at one in [`LOOKS_AT`], until it meets an unproven one.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::helpers::generated::{bpf_map_pop_elem, bpf_map_push_elem};
use lb_ebpf::abi::FLOW_SHARDS;
use lb_ebpf::abi::counter;
use lb_ebpf::abi::flow::{CLOSED, RESET, is_unproven};

use crate::flow::{find, remove};
use crate::lookup::settings;
use crate::maps::{Newcomers, Tables};
use crate::report::count;
use crate::work::Work;

/// Flows looked at to find one that can make room.
const LOOKS: u32 = 4;

/// Of so many flows that leave a queue without a flood one is looked at; a power of two.
const LOOKS_AT: u32 = 8;

/// Seconds that a processor looks at all of them after it has ended one.
const ALERT: u16 = 4;

/// `BPF_EXIST`: of a full queue the oldest leaves.
const PUSH_OUT: u64 = 2;

/// Enters the flow at hand, just opened, into its shard's queue.
#[inline(always)]
pub(crate) fn enrol<F: Tables>(work: &mut Work<F>, now: u32) {
    let Some(queue) = F::newcomers().get(work.flow.check & (FLOW_SHARDS - 1)) else {
        return;
    };
    // SAFETY: the helper has no preconditions.
    let chosen = unsafe { bpf_get_prandom_u32() } & (LOOKS_AT - 1) == 0;
    if !chosen && (now as u16).wrapping_sub(work.displaced) > ALERT {
        push(queue, work, PUSH_OUT);
        return;
    }
    if push(queue, work, 0) {
        return;
    }
    // Full. What comes out has grown up, has ended, or makes room.
    if displace_oldest::<F, false>(queue, work, now) {
        work.displaced = now as u16;
    }
    // Another processor may have taken the place.
    push(queue, work, PUSH_OUT);
}

/// Ends the oldest unproven flow in the shard of the flow at hand; whether there was one.
#[inline(never)]
pub(crate) fn make_room<F: Tables>(work: &mut Work<F>, now: u32) -> bool {
    let Some(queue) = F::newcomers().get(work.flow.check & (FLOW_SHARDS - 1)) else {
        return false;
    };
    for _ in 0..LOOKS {
        if displace_oldest::<F, true>(queue, work, now) {
            return true;
        }
    }
    false
}

#[inline(always)]
fn push<F: Tables>(queue: &Newcomers<F>, work: &mut Work<F>, flags: u64) -> bool {
    work.newcomer.key = work.key;
    work.newcomer.created = work.flow.created;
    // SAFETY: a queue of newcomers, and one of them.
    unsafe {
        bpf_map_push_elem(
            (&raw const *queue).cast_mut().cast(),
            (&raw const work.newcomer).cast(),
            flags,
        ) == 0
    }
}

/// Takes the oldest flow out of the queue, and ends it if it is unproven or, where every place counts, over; whether it
/// did.
#[inline(never)]
fn displace_oldest<F: Tables, const FULL: bool>(
    queue: &Newcomers<F>,
    work: &mut Work<F>,
    now: u32,
) -> bool {
    // SAFETY: a queue of newcomers, and room for one.
    let empty = unsafe {
        bpf_map_pop_elem(
            (&raw const *queue).cast_mut().cast(),
            (&raw mut work.newcomer).cast(),
        ) != 0
    };
    let Some(settings) = settings() else {
        return false;
    };
    if empty || now.saturating_sub(work.newcomer.created) > 2 * settings.timeout_new {
        // The sweep had time enough to find it.
        return false;
    }
    if find(&work.newcomer.key, &mut work.other).is_none()
        || work.other.created != work.newcomer.created
        || !(is_unproven(work.other.state) || FULL && matches!(work.other.state, CLOSED | RESET))
    {
        return false;
    }
    remove(&work.newcomer.key, &work.other, &mut work.reply);
    count(counter::FLOW_DISPLACED);
    true
}
