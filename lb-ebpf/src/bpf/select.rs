//! Which endpoint a new connection gets (spec E23, §1.F, verdicts of §2).

use aya_ebpf::helpers::bpf_get_prandom_u32;
use core::ptr::{read_volatile, write_volatile};
use lb_ebpf::abi::address::Address6;
use lb_ebpf::abi::affinity::{Affinity, AffinityKey};
use lb_ebpf::abi::counter;
use lb_ebpf::abi::endpoint::{Endpoint, IN_CLUSTER, IN_LOCAL};
use lb_ebpf::abi::frontend::{Frontend, HAS_ENDPOINTS};
use lb_ebpf::abi::{SEGMENT_RECORDS, SEGMENT_SHIFT};

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
    Cluster,
    Local,
}

/// Chooses an endpoint of `set` for `client` (its address as 16 bytes, or its network namespace).
#[inline(always)]
pub(crate) fn choose<F: Tables>(frontend: &Frontend, set: Set, client: &Address6) -> Choice<F> {
    let (first, size, member) = match set {
        Set::Cluster => (frontend.cluster_first, frontend.cluster_count, IN_CLUSTER),
        Set::Local => (0, frontend.local_count, IN_LOCAL),
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
        return remembered(frontend, client, first, size, member);
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

/// The client's last endpoint if that is still in the set, else a new one, remembered.
#[inline(always)]
fn remembered<F: Tables>(
    frontend: &Frontend,
    client: &Address6,
    first: u32,
    size: u32,
    member: u32,
) -> Choice<F> {
    let key = AffinityKey {
        client: *client,
        service: frontend.service,
        zero: 0,
    };
    let now = now();
    if let Some(known) = AFFINITY.get_ptr_mut(key) {
        // SAFETY: an element of the table; `service` tells whether it was reused for another key.
        let copy = unsafe { read_volatile(known) };
        let fresh = now.saturating_sub(copy.last_used) <= frontend.affinity_seconds;
        if fresh && copy.service == frontend.service {
            let state = endpoint_state(copy.endpoint);
            if state.generation == copy.endpoint_generation && state.flags & member != 0 {
                if copy.last_used != now {
                    // SAFETY: as above; the worst a race can do is to lengthen another record's life.
                    unsafe { write_volatile(&raw mut (*known).last_used, now) };
                }
                let endpoint = Endpoint {
                    address: F::narrow(copy.endpoint_address),
                    port: copy.endpoint_port,
                    flags: copy.endpoint_flags,
                    id: copy.endpoint,
                    service: copy.service,
                };
                return Choice {
                    verdict: Verdict::Translate,
                    endpoint,
                    generation: copy.endpoint_generation,
                };
            }
        }
    }
    let choice = at_random::<F>(frontend, first, size);
    if choice.verdict == Verdict::Translate {
        let record = Affinity {
            endpoint_address: F::wide(choice.endpoint.address),
            endpoint_port: choice.endpoint.port,
            endpoint_flags: choice.endpoint.flags,
            endpoint: choice.endpoint.id,
            endpoint_generation: choice.generation,
            service: frontend.service,
            last_used: now,
            timeout: frontend.affinity_seconds,
        };
        if AFFINITY.insert(key, record, 0).is_err() {
            count(counter::AFFINITY_FULL);
        }
    }
    choice
}
