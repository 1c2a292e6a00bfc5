//! Removing what expired: a BPF timer (Linux 5.15) that walks one table a tick, so that tables stay true with
//! the agent dead. The pin of the table that holds the timer keeps it going.
//!
//! A tick may delete [`BUDGET`] elements. What is left does not wait for the next round, or connections that end
//! faster than that would fill the table: the same table's next tick comes soon.

use aya_ebpf::bindings::bpf_timer;
use aya_ebpf::helpers::generated::{
    bpf_for_each_map_elem, bpf_map_delete_elem, bpf_timer_init, bpf_timer_set_callback,
    bpf_timer_start,
};
use core::ffi::c_void;
use core::ptr::{addr_of_mut, read_volatile};
use lb_ebpf::abi::affinity::{Affinity, AffinityKey};
use lb_ebpf::abi::family::{V4, V6};
use lb_ebpf::abi::flow::{Flow, FlowKey, key_check};
use lb_ebpf::abi::fragment::{self, Fragment, FragmentKey};
use lb_ebpf::abi::settings::Settings;
use lb_ebpf::abi::socket::{SocketMore, SocketMoreKey};
use lb_ebpf::abi::target::{self as targets, Target};
use lb_ebpf::abi::{FLOW_SHARDS, counter};

use crate::atomic::add;
use crate::flow::{has_expired, release_replies};
use crate::lookup::{now, settings};
use crate::maps::{AFFINITY, CLIENTS, FRAGMENTS, SOCKET_MORE, SWEEPER, Sweeper, TARGETS, Tables};
use crate::report::count;
use crate::shard::slot;
use crate::target;

/// Time between ticks. With 64 flow shards a round takes 13 s, less than the shortest timeout.
const TICK_NS: u64 = 200_000_000;

/// Deletions a tick, about 1 ms.
const BUDGET: u32 = 500;

/// Time until the next tick of a table where more is to be deleted: a tenth of a processor at most.
const SOON_NS: u64 = 10_000_000;

/// Seconds after which a pair pushed out of its socket is forgotten.
const PAIR_LIFETIME: u32 = 300;

/// `CLOCK_MONOTONIC`.
const MONOTONIC: u64 = 1;

/// What a walk carries along.
#[repr(C)]
struct Walk {
    now: u32,
    /// Deletions left; counts down to zero from a value the verifier does not know.
    budget: u32,
}

const GO_ON: i64 = 0;
const STOP: i64 = 1;

/// Starts the timer, or points a running one to this program's code: the agent runs this once after loading.
#[inline(always)]
pub(crate) fn arm() -> i32 {
    let Some(sweeper) = SWEEPER.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: the timer lies in this table. A second `init` fails with EBUSY, which is how a running timer is
    // taken over by new code.
    unsafe {
        let timer = addr_of_mut!((*sweeper).timer);
        bpf_timer_init(timer, (&raw const SWEEPER).cast_mut().cast(), MONOTONIC);
        if bpf_timer_set_callback(timer, tick as *mut c_void) != 0 {
            return 2;
        }
        if bpf_timer_start(timer, TICK_NS, 0) != 0 {
            return 3;
        }
    }
    0
}

unsafe extern "C" fn tick(_table: *mut c_void, _key: *mut u32, sweeper: *mut Sweeper) -> i32 {
    // SAFETY: the kernel calls this with an element of `sweeper`.
    unsafe {
        let cursor = read_volatile(&raw const (*sweeper).cursor);
        let next = if cursor >= 2 * FLOW_SHARDS + 4 {
            0
        } else {
            cursor + 1
        };
        (*sweeper).budget = BUDGET;
        let mut walk = Walk {
            now: now(),
            budget: read_volatile(&raw const (*sweeper).budget),
        };
        if cursor < FLOW_SHARDS {
            both::<V4>(cursor, &mut walk);
        } else if cursor < 2 * FLOW_SHARDS {
            both::<V6>(cursor, &mut walk);
        } else if cursor == 2 * FLOW_SHARDS {
            affinities(&mut walk);
        } else if cursor == 2 * FLOW_SHARDS + 1 {
            fragments(&mut walk);
        } else if cursor == 2 * FLOW_SHARDS + 2 {
            targets(&mut walk);
        } else if cursor == 2 * FLOW_SHARDS + 3 {
            clients(&mut walk);
        } else {
            pairs(&mut walk);
        }
        let timer: *mut bpf_timer = addr_of_mut!((*sweeper).timer);
        if read_volatile(&raw const walk.budget) == 0 {
            bpf_timer_start(timer, SOON_NS, 0);
        } else {
            (*sweeper).cursor = next;
            bpf_timer_start(timer, TICK_NS, 0);
        }
    }
    0
}

/// Walks the current and the former map of a flow shard.
///
/// One function for each table, never inlined: joined together the walks end in one call of the helper, where
/// verifiers before Linux 6.10 want the table to be always the same ("tail_call abusing map_ptr").
#[inline(never)]
fn both<F: Tables>(shard: u32, walk: &mut Walk) -> i32 {
    // SAFETY: maps of flows, and the callback for their elements.
    unsafe {
        if let Some(current) = F::flows().get(slot(shard)) {
            each(
                (&raw const *current).cast(),
                flow::<F> as *const c_void,
                walk,
            );
        }
        if let Some(former) = F::flows().get(slot(shard) + 1) {
            each(
                (&raw const *former).cast(),
                flow::<F> as *const c_void,
                walk,
            );
        }
    }
    0
}

#[inline(never)]
fn affinities(walk: &mut Walk) -> i32 {
    // SAFETY: the callback is for this table's elements.
    unsafe {
        each(
            (&raw const AFFINITY).cast(),
            affinity as *const c_void,
            walk,
        );
    }
    0
}

#[inline(never)]
fn fragments(walk: &mut Walk) -> i32 {
    // SAFETY: the callback is for this table's elements.
    unsafe {
        each(
            (&raw const FRAGMENTS).cast(),
            fragment as *const c_void,
            walk,
        );
    }
    0
}

#[inline(never)]
fn targets(walk: &mut Walk) -> i32 {
    // SAFETY: the callback is for this table's elements.
    unsafe { each((&raw const TARGETS).cast(), forget as *const c_void, walk) };
    0
}

#[inline(never)]
fn clients(walk: &mut Walk) -> i32 {
    // SAFETY: the callback is for this table's elements.
    unsafe {
        each(
            (&raw const CLIENTS).cast(),
            forget_client as *const c_void,
            walk,
        );
    }
    0
}

#[inline(never)]
fn pairs(walk: &mut Walk) -> i32 {
    // SAFETY: the callback is for this table's elements.
    unsafe { each((&raw const SOCKET_MORE).cast(), pair as *const c_void, walk) };
    0
}

#[inline(always)]
unsafe fn each(table: *const c_void, callback: *const c_void, walk: &mut Walk) {
    let carried = (&raw mut *walk).cast();
    // SAFETY: callers pass a table and a callback for its elements.
    unsafe { bpf_for_each_map_elem(table.cast_mut(), callback.cast_mut(), carried, 0) };
}

/// Whether another deletion fits into the tick.
#[inline(always)]
unsafe fn spend(walk: *mut Walk) -> bool {
    // SAFETY: the walk of this tick.
    unsafe {
        if (*walk).budget == 0 {
            return false;
        }
        (*walk).budget -= 1;
        true
    }
}

unsafe extern "C" fn flow<F: Tables>(
    table: *mut c_void,
    key: *const FlowKey<F>,
    flow: *const Flow<F>,
    walk: *mut Walk,
) -> i64 {
    let Some(settings): Option<&Settings> = settings() else {
        return STOP;
    };
    // SAFETY: the kernel calls this with an element of a flow shard, and with our walk.
    unsafe {
        let now = (*walk).now;
        if !has_expired(&*flow, settings, (*key).protocol, now) {
            let (client, target) = (&(*key).source, &(*flow).new_destination);
            target::mark::<F>(client, target, (*flow).flags, now);
            return GO_ON;
        }
        if !spend(walk) {
            return STOP;
        }
        // The element is gone once deleted; its reply keys are worked out from a copy. Timers run in softirq,
        // as packet programs do, so the working memory is free.
        let Some(work) = F::work() else { return STOP };
        core::ptr::copy_nonoverlapping(key, &raw mut work.key, 1);
        core::ptr::copy_nonoverlapping(flow, &raw mut work.flow, 1);
        if work.flow.check != key_check(&work.key)
            || !has_expired(&work.flow, settings, work.key.protocol, now)
        {
            // Removed by its own packet just now, and already another flow's.
            return GO_ON;
        }
        bpf_map_delete_elem(table, (&raw const work.key).cast_mut().cast());
        release_replies(&work.key, &work.flow, &mut work.reply);
    }
    count(counter::FLOW_EXPIRED);
    GO_ON
}

unsafe extern "C" fn forget(
    _table: *mut c_void,
    _index: *const u32,
    target: *mut Target,
    walk: *mut Walk,
) -> i64 {
    // SAFETY: the kernel calls this with an element of `targets`, and with our walk.
    unsafe {
        let now = (*walk).now;
        forget_old(&raw mut (*target).flows, now);
        forget_old(&raw mut (*target).direct, now);
    }
    GO_ON
}

unsafe extern "C" fn forget_client(
    _table: *mut c_void,
    _index: *const u32,
    seen: *mut u32,
    walk: *mut Walk,
) -> i64 {
    // SAFETY: the kernel calls this with an element of `clients`, and with our walk.
    unsafe { forget_old(seen, (*walk).now) };
    GO_ON
}

/// Takes an old time off what is there: a flow that is opened this very moment leaves what is no time, but not nothing,
/// until its shard is swept.
#[inline(always)]
unsafe fn forget_old(seen: *mut u32, now: u32) {
    // SAFETY: a number of a target, which others only write and read in one piece.
    unsafe {
        let then = read_volatile(seen);
        if then != 0 && now.saturating_sub(then) > targets::LIFETIME {
            add(seen, -i64::from(then));
        }
    }
}

unsafe extern "C" fn affinity(
    _table: *mut c_void,
    key: *const AffinityKey,
    value: *const Affinity,
    walk: *mut Walk,
) -> i64 {
    // SAFETY: the kernel calls this with an element of `affinity`, and with our walk.
    unsafe {
        let resting = (*walk).now.saturating_sub((*value).last_used);
        if resting <= (*value).timeout {
            return GO_ON;
        }
        if !spend(walk) {
            return STOP;
        }
        let _ = AFFINITY.remove(&*key);
    }
    GO_ON
}

unsafe extern "C" fn fragment(
    _table: *mut c_void,
    key: *const FragmentKey,
    value: *const Fragment,
    walk: *mut Walk,
) -> i64 {
    // SAFETY: the kernel calls this with an element of `fragments`, and with our walk.
    unsafe {
        let age = (*walk)
            .now
            .saturating_sub((*value).seen & !fragment::STACK_WAY);
        if age <= fragment::LIFETIME {
            return GO_ON;
        }
        if !spend(walk) {
            return STOP;
        }
        let _ = FRAGMENTS.remove(&*key);
    }
    GO_ON
}

unsafe extern "C" fn pair(
    _table: *mut c_void,
    key: *const SocketMoreKey,
    value: *const SocketMore,
    walk: *mut Walk,
) -> i64 {
    // SAFETY: the kernel calls this with an element of `socket_more`, and with our walk.
    unsafe {
        let age = (*walk).now.saturating_sub((*value).created);
        if age <= PAIR_LIFETIME {
            return GO_ON;
        }
        if !spend(walk) {
            return STOP;
        }
        let _ = SOCKET_MORE.remove(&*key);
    }
    GO_ON
}
