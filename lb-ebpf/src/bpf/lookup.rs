//! From an address to a frontend, and from an endpoint id to its life.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use core::ptr::read_volatile;
use lb_ebpf::abi::address::{CLUSTER_IP, EXTERNAL, LOOPBACK, NODE};
use lb_ebpf::abi::address_filter;
use lb_ebpf::abi::counter;
use lb_ebpf::abi::endpoint::{EndpointState, IN_CLUSTER, IN_LOCAL, SERVING};
use lb_ebpf::abi::frontend::{Frontend, FrontendKey, key_check};
use lb_ebpf::abi::settings::Settings;
use lb_ebpf::abi::{SEGMENT_RECORDS, SEGMENT_SHIFT, UDP};
use lb_ebpf::clock;
use lb_ebpf::volatile::read;

use crate::maps::{ENDPOINT_STATE, SETTINGS, Tables};
use crate::report::count;

/// Reads of a frontend before we give up on a consistent one. Two in a row that are torn need two
/// replacements of one element within nanoseconds.
const READS: u32 = 3;

/// The agent's settings.
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// Seconds, as [`clock::seconds`] counts them. The coarse clock costs 4 ns, the precise one 27.
#[inline(always)]
pub(crate) fn now() -> u32 {
    // SAFETY: the helper has no preconditions.
    clock::seconds(unsafe { bpf_ktime_get_coarse_ns() })
}

/// Whether an address may be in the table of addresses: false is certain.
#[inline(always)]
pub(crate) fn may_be_known<F: Tables>(address: &F::Addr) -> bool {
    let (word, bit) = address_filter::place::<F>(F::read(address));
    match F::address_filter().get_ptr(word) {
        // SAFETY: an element of an array.
        Some(bits) => unsafe { read_volatile(bits) & bit != 0 },
        None => true,
    }
}

/// Uses of an address: 0 when it is no business of ours.
#[inline(always)]
pub(crate) fn address_use<F: Tables>(address: &F::Addr) -> u32 {
    let Some(table) = F::addresses().get(0) else {
        return 0;
    };
    match table.get_ptr(address) {
        // SAFETY: the pointer is to a live element; a stale value is as good as an earlier lookup.
        Some(value) => unsafe { read_volatile(&raw const (*value).flags) },
        None => 0,
    }
}

/// The frontend under `key`, copied out.
#[inline(always)]
pub(crate) fn frontend<F: Tables>(key: &FrontendKey<F>) -> Option<Frontend> {
    let check = key_check(key);
    for _ in 0..READS {
        let table = F::frontends().get(0)?;
        let found = table.get_ptr(key)?;
        // SAFETY: the pointer is to an element of the table, which may be freed and reused while we read:
        // writers fill it in ascending order, so equal generations at both ends and a fitting check prove
        // that the copy is one whole frontend of this key.
        let copy = unsafe {
            Frontend {
                generation: read_volatile(&raw const (*found).generation),
                service: read_volatile(&raw const (*found).service),
                block: read_volatile(&raw const (*found).block),
                local_count: read_volatile(&raw const (*found).local_count),
                cluster_first: read_volatile(&raw const (*found).cluster_first),
                cluster_count: read_volatile(&raw const (*found).cluster_count),
                affinity_seconds: read_volatile(&raw const (*found).affinity_seconds),
                flags: read_volatile(&raw const (*found).flags),
                check: read_volatile(&raw const (*found).check),
                generation_end: read_volatile(&raw const (*found).generation_end),
            }
        };
        if copy.generation == copy.generation_end && copy.check == check {
            return Some(copy);
        }
        count(counter::FRONTEND_RETRY);
    }
    None
}

/// The frontend of a dialled address with these uses; a NodePort is the last resort (spec D9).
#[inline(always)]
pub(crate) fn dialled_frontend<F: Tables>(
    uses: u32,
    address: F::Addr,
    port: u16,
    protocol: u8,
) -> Option<Frontend> {
    let mut key = FrontendKey::<F> {
        address,
        port,
        protocol,
        zero: 0,
    };
    if uses & (CLUSTER_IP | EXTERNAL) != 0
        && let Some(found) = frontend(&key)
    {
        return Some(found);
    }
    if uses & NODE == 0 {
        return None;
    }
    key.address = F::UNSPECIFIED;
    frontend(&key)
}

/// Whether a UDP port of an address with these uses is still that of the service port that somebody remembered.
#[inline(always)]
pub(crate) fn still_means<F: Tables>(
    uses: u32,
    address: &F::Addr,
    port: u16,
    service: u32,
) -> bool {
    // Who remembers something on a loopback address is this node itself.
    let uses = if uses & LOOPBACK != 0 {
        uses | NODE
    } else {
        uses
    };
    let Some(found) = dialled_frontend::<F>(uses, F::read(address), port, UDP) else {
        return false;
    };
    // From memory: else the compiler compares also what was not found, which the verifier refuses.
    read(&found.service) == service
}

/// Life of an endpoint id.
#[inline(always)]
pub(crate) fn endpoint_state(id: u32) -> EndpointState {
    let segment = id >> SEGMENT_SHIFT;
    let index = id & (SEGMENT_RECORDS - 1);
    match ENDPOINT_STATE.get_value(segment, &index) {
        // SAFETY: array elements stay; a value being changed reads as before or after.
        Some(state) => unsafe {
            EndpointState {
                generation: read_volatile(&raw const state.generation),
                flags: read_volatile(&raw const state.flags),
            }
        },
        None => EndpointState::default(),
    }
}

/// Whether the endpoint that somebody remembered as `(id, generation)` still serves, or is still chosen: one that is
/// published though it is not ready (`publishNotReadyAddresses`) never says that it serves.
///
/// The flags count too: who chose an endpoint in the moment of its removal may have read the generation
/// that already says "gone".
#[inline(always)]
pub(crate) fn endpoint_serves(id: u32, generation: u32) -> bool {
    let state = endpoint_state(id);
    state.generation == generation && state.flags & (SERVING | IN_CLUSTER | IN_LOCAL) != 0
}
