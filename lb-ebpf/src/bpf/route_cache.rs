//! The routes that busy flows take. The kernel's lookup takes longer than all else that is done to a packet of a known flow,
//! in IPv6 most of all, and the next packet of a busy flow asks the same.
//!
//! An answer counts for one tick of the coarse clock, at most 10 ms: a change of routes, neighbours or devices is heeded as
//! soon as that. It counts for packets no longer than the one that asked, as routes and devices have an MTU. It is kept
//! where nothing else was asked in its place since the last time, so that whoever asks once pays for next to nothing.

use aya_ebpf::bindings::bpf_fib_lookup as FibLookup;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use core::ptr::copy_nonoverlapping;
use lb_ebpf::abi::family::{Family, V4, V6};

use crate::maps::Tables;
use crate::work::Way;

/// Answers kept on a processor, as a power of two.
const KEPT: u32 = 6;

/// Room for them.
pub(crate) const WAYS: usize = 1 << KEPT;

/// What is asked for a packet.
#[repr(C)]
pub(crate) struct Question<F: Family> {
    /// The coarse clock.
    tick: u64,
    pub(crate) source: F::Addr,
    pub(crate) destination: F::Addr,
    /// Where the packet came in.
    pub(crate) device: u32,
    /// Bytes that the route must take in one piece, see [`crate::packet::Packet::datagram`].
    pub(crate) length: u32,
    /// Whether XDP asks, which sends packets in manners of its own.
    pub(crate) early: u32,
    hash: u32,
}

/// A route, and what was asked for it.
#[repr(C)]
pub(crate) struct CachedRoute<F: Family> {
    question: Question<F>,
    /// How packets leave, as [`crate::packet::Packet::way`] told.
    manner: i32,
    zero: u32,
    /// What the kernel told.
    route: FibLookup,
}

/// As [`known`] says of the way at hand; like its sisters a function that the verifier looks at once, not wherever it is
/// called.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn cached_route4() -> i32 {
    V4::way().map_or(0, known)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn cached_route6() -> i32 {
    V6::way().map_or(0, known)
}

/// Does what [`note`] does, and gives the manner back.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn cache_route4(manner: i32) -> i32 {
    if let Some(way) = V4::way() {
        note(way, manner);
    }
    manner
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn cache_route6(manner: i32) -> i32 {
    if let Some(way) = V6::way() {
        note(way, manner);
    }
    manner
}

/// The manner in which the packet at hand leaves, if the route that its [`Way`] asks for is known, which is written there;
/// else 0.
#[inline(always)]
pub(crate) fn recall<F: Tables>() -> i32 {
    if F::VERSION == 4 {
        cached_route4()
    } else {
        cached_route6()
    }
}

/// Keeps the route of the packet at hand that was just looked up after [`recall`] knew none. Gives its manner back.
#[inline(always)]
pub(crate) fn keep<F: Tables>(manner: i32) -> i32 {
    if F::VERSION == 4 {
        cache_route4(manner)
    } else {
        cache_route6(manner)
    }
}

/// The manner in which the packet that `way` asks for leaves, if its route is known, which is written there; else 0.
#[inline(always)]
fn known<F: Tables>(way: &mut Way<F>) -> i32 {
    let asked = &mut way.asked;
    let (source, destination) = (F::read(&asked.source), F::read(&asked.destination));
    let hash = F::fold(source).rotate_left(11) ^ F::fold(destination);
    asked.hash = hash.wrapping_mul(0x9e37_79b1);
    let place = asked.hash >> (u32::BITS - KEPT);
    // Mostly so where nothing is known, and cheaper to see than all else.
    if way.last[place as usize % WAYS] != asked.hash {
        return 0;
    }
    let Some(kept) = F::route_cache(place) else {
        return 0;
    };
    // SAFETY: the helper has no preconditions.
    asked.tick = unsafe { bpf_ktime_get_coarse_ns() };
    let known = &kept.question;
    if known.tick != asked.tick
        || known.device != asked.device
        || known.early != asked.early
        || known.source != asked.source
        || known.destination != asked.destination
        || asked.length > known.length
    {
        return 0;
    }
    copy(&mut way.route, &kept.route);
    kept.manner
}

/// Keeps the route that was just looked up after [`recall`] knew none, if the same was asked before.
#[inline(always)]
fn note<F: Tables>(way: &mut Way<F>, manner: i32) {
    let hash = way.asked.hash;
    let place = hash >> (u32::BITS - KEPT);
    let last = &mut way.last[place as usize % WAYS];
    if *last != hash {
        *last = hash;
        return;
    }
    let Some(kept) = F::route_cache(place) else {
        return;
    };
    copy(&mut kept.question, &way.asked);
    copy(&mut kept.route, &way.route);
    kept.manner = manner;
}

/// Copies a record in one go.
#[inline(always)]
fn copy<T>(to: &mut T, from: &T) {
    // SAFETY: both are references to plain records of one type, which do not overlap.
    unsafe { copy_nonoverlapping(&raw const *from, &raw mut *to, 1) };
}
