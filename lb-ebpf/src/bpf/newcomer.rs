//! Flows whose client has not shown yet that it gets the answers: all that a flood of made-up clients can open.
//!
//! Each shard has a queue of the flows opened last. When it is full, the oldest of them that is still unproven ends:
//! a flood displaces itself and leaves the rest of the shard to those who talk. Nothing else ends a flow before its
//! time.

use aya_ebpf::helpers::generated::{bpf_map_pop_elem, bpf_map_push_elem};
use lb_ebpf::abi::FLOW_SHARDS;
use lb_ebpf::abi::counter;
use lb_ebpf::abi::flow::is_unproven;

use crate::flow::{find, remove};
use crate::lookup::settings;
use crate::maps::{Newcomers, Tables};
use crate::report::count;
use crate::work::Work;

/// Flows looked at to find one that can make room.
const LOOKS: u32 = 4;

/// Enters the flow at hand, just opened, into its shard's queue.
#[inline(always)]
pub(crate) fn enrol<F: Tables>(work: &mut Work<F>, now: u32) {
    let Some(queue) = F::newcomers().get(work.flow.check & (FLOW_SHARDS - 1)) else {
        return;
    };
    if push(queue, work) {
        return;
    }
    // Full. What comes out has grown up, has ended, or makes room.
    displace_oldest(queue, work, now);
    push(queue, work);
}

/// Ends the oldest unproven flow in the shard of the flow at hand; whether there was one.
#[inline(never)]
pub(crate) fn make_room<F: Tables>(work: &mut Work<F>, now: u32) -> bool {
    let Some(queue) = F::newcomers().get(work.flow.check & (FLOW_SHARDS - 1)) else {
        return false;
    };
    for _ in 0..LOOKS {
        if displace_oldest(queue, work, now) {
            return true;
        }
    }
    false
}

#[inline(always)]
fn push<F: Tables>(queue: &Newcomers<F>, work: &mut Work<F>) -> bool {
    work.newcomer.key = work.key;
    work.newcomer.created = work.flow.created;
    // SAFETY: a queue of newcomers, and one of them.
    unsafe {
        bpf_map_push_elem(
            (&raw const *queue).cast_mut().cast(),
            (&raw const work.newcomer).cast(),
            0,
        ) == 0
    }
}

/// Takes the oldest flow out of the queue, and ends it if it is unproven; whether it did.
#[inline(never)]
fn displace_oldest<F: Tables>(queue: &Newcomers<F>, work: &mut Work<F>, now: u32) -> bool {
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
        || !is_unproven(work.other.state)
    {
        return false;
    }
    remove(&work.newcomer.key, &work.other, &mut work.reply);
    count(counter::FLOW_DISPLACED);
    true
}
