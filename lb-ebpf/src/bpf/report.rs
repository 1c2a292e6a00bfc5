//! Counters.

use crate::maps::COUNTERS;

/// Counts one occurrence; see [`lb_ebpf::abi::counter`].
#[inline(always)]
pub(crate) fn count(counter: u32) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: the slot is this CPU's own, and programs are not preempted by others on this CPU that
        // write the same slot half-way: a lost count is the worst that can happen.
        unsafe { *slot += 1 };
    }
}
