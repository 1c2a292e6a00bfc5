//! Which endpoint a new connection gets (spec E23, §1.F, verdicts of §2).

use aya_ebpf::helpers::bpf_get_prandom_u32;
use core::ptr::{copy_nonoverlapping, write_volatile};
use lb_ebpf::abi::address::Address6;
use lb_ebpf::abi::affinity::{self, Affinity, AffinityKey};
use lb_ebpf::abi::counter;
use lb_ebpf::abi::endpoint::{Endpoint, IN_CLUSTER, IN_LOCAL};
use lb_ebpf::abi::frontend::{Frontend, HAS_ENDPOINTS};
use lb_ebpf::abi::{SEGMENT_RECORDS, SEGMENT_SHIFT};
use lb_ebpf::volatile::read;

use crate::lookup::{endpoint_state, now};
use crate::maps::{AFFINITY, Tables};
use crate::report::count;

/// What becomes of a new connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// To the endpoint.
    Translate,
    /// Refuse it so that the client learns at once.
    Reject,
    /// Let it time out.
    Drop,
}

/// A verdict and, for [`Verdict::Translate`], the endpoint. Not an enum with contents: the compiler would
/// copy those uninitialised, which the verifier refuses.
pub(crate) struct Choice<F: Tables> {
    pub(crate) verdict: Verdict,
    pub(crate) endpoint: Endpoint<F>,
    /// Generation of the endpoint's id.
    pub(crate) generation: u32,
}

impl<F: Tables> Choice<F> {
    #[inline(always)]
    fn without_endpoint(verdict: Verdict) -> Self {
        Self {
            verdict,
            endpoint: Endpoint::default(),
            generation: 0,
        }
    }
}

/// Which set of endpoints counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    Cluster = affinity::CLUSTER as isize,
    Local = affinity::LOCAL as isize,
}

/// Chooses an endpoint of `set` for `client` (its address as 16 bytes, or its network namespace).
#[inline(always)]
pub(crate) fn choose<F: Tables>(frontend: &Frontend, set: Set, client: &Address6) -> Choice<F> {
    let (first, size) = match set {
        Set::Cluster => (frontend.cluster_first, frontend.cluster_count),
        Set::Local => (0, frontend.local_count),
    };
    if size == 0 {
        let none = if frontend.flags & HAS_ENDPOINTS == 0 {
            Verdict::Reject
        } else {
            Verdict::Drop
        };
        return Choice::without_endpoint(none);
    }
    if frontend.affinity_seconds != 0 {
        return remembered(frontend, set, client, first, size);
    }
    at_random(frontend, first, size)
}

/// Uniform choice: the high half of random × size, whose bias is below size / 2^32.
#[inline(always)]
fn at_random<F: Tables>(frontend: &Frontend, first: u32, size: u32) -> Choice<F> {
    // SAFETY: the helper has no preconditions.
    let random = u64::from(unsafe { bpf_get_prandom_u32() });
    let record = frontend.block + first + ((random * u64::from(size)) >> 32) as u32;
    let index = record & (SEGMENT_RECORDS - 1);
    match F::endpoints().get_value(record >> SEGMENT_SHIFT, &index) {
        Some(&endpoint) if endpoint.service == frontend.service => {
            let generation = endpoint_state(endpoint.id).generation;
            Choice {
                verdict: Verdict::Translate,
                endpoint,
                generation,
            }
        }
        _ => {
            count(counter::NO_ENDPOINT);
            Choice::without_endpoint(Verdict::Drop)
        }
    }
}

/// The client's last endpoint if that is still in the set, else a new one, remembered (spec F1, F3).
#[inline(always)]
fn remembered<F: Tables>(
    frontend: &Frontend,
    set: Set,
    client: &Address6,
    first: u32,
    size: u32,
) -> Choice<F> {
    let mut found = Affinity::default();
    let (service, seconds) = (frontend.service, frontend.affinity_seconds);
    let own = set as u32;
    if recall(&raw const *client, &raw mut found, service, own, seconds) != 0 {
        let endpoint = Endpoint {
            address: F::narrow(found.endpoint_address),
            port: found.endpoint_port,
            flags: found.endpoint_flags,
            id: found.endpoint,
            service: found.service,
        };
        return Choice {
            verdict: Verdict::Translate,
            endpoint,
            generation: found.endpoint_generation,
        };
    }
    let choice = at_random::<F>(frontend, first, size);
    if choice.verdict == Verdict::Translate {
        found = Affinity {
            endpoint_address: F::wide(choice.endpoint.address),
            endpoint_port: choice.endpoint.port,
            endpoint_flags: choice.endpoint.flags,
            endpoint: choice.endpoint.id,
            endpoint_generation: choice.generation,
            service,
            last_used: now(),
            timeout: seconds,
        };
        let key = AffinityKey {
            client: *client,
            service,
            set: own,
        };
        if AFFINITY.insert(key, found, 0).is_err() {
            count(counter::AFFINITY_FULL);
        }
    }
    choice
}

/// Copies the record of a client to `found`, and notes that it is here again; 1 if there is one, not older than `seconds`,
/// of an endpoint in `set`. An endpoint that is in both sets serves the client whatever it dials, so where the one has no
/// record of it, that of the other counts.
///
/// A function that is verified by itself, once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn recall(
    client: *const Address6,
    found: *mut Affinity,
    service: u32,
    set: u32,
    seconds: u32,
) -> u32 {
    if client.is_null() || found.is_null() {
        return 0;
    }
    // SAFETY: not null, and the verifier holds callers to as many readable bytes.
    let client = unsafe { *client };
    let mut key = AffinityKey {
        client,
        service,
        set,
    };
    let mut known = AFFINITY.get_ptr_mut(key);
    if known.is_none() {
        key.set = affinity::CLUSTER + affinity::LOCAL - set;
        known = AFFINITY.get_ptr_mut(key);
    }
    let Some(known) = known else {
        return 0;
    };
    // SAFETY: an element of the table, `service` tells whether it was reused for another key; and `found` is writable as
    // `client` is readable. Copied there at once, as stacks of callers and called add up.
    let found = unsafe {
        copy_nonoverlapping(known.cast_const(), found, 1);
        &*found
    };
    let now = now();
    // Read from where it is anyway, as a copy of it would lie beside.
    let service = read(&key.service);
    if now.saturating_sub(found.last_used) > seconds || found.service != service {
        return 0;
    }
    let member = if set == affinity::LOCAL {
        IN_LOCAL
    } else {
        IN_CLUSTER
    };
    let state = endpoint_state(found.endpoint);
    if state.generation != found.endpoint_generation || state.flags & member == 0 {
        return 0;
    }
    if found.last_used != now {
        // SAFETY: an element of the table; the worst a race can do is to lengthen another record's life.
        unsafe { write_volatile(&raw mut (*known).last_used, now) };
    }
    1
}
