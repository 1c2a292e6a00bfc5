//! Which addresses flows lead to; see [`lb_ebpf::abi::target`].

use core::ptr::{read_volatile, write_volatile};
use lb_ebpf::abi::flow::DIRECT;
use lb_ebpf::abi::target::{Target, index};

use crate::maps::{TARGETS, Tables};

/// What is known of an address.
#[inline(always)]
pub(crate) fn at<F: Tables>(address: &F::Addr) -> Target {
    match TARGETS.get_ptr(index::<F>(F::read(address))) {
        // SAFETY: an element of an array; each half is read in one piece.
        Some(target) => unsafe {
            Target {
                flows: read_volatile(&raw const (*target).flows),
                direct: read_volatile(&raw const (*target).direct),
            }
        },
        None => Target::default(),
    }
}

/// Notes that a flow with these flags leads to an address.
#[inline(always)]
pub(crate) fn mark<F: Tables>(address: &F::Addr, flags: u8, now: u32) {
    let Some(target) = TARGETS.get_ptr_mut(index::<F>(F::read(address))) else {
        return;
    };
    // SAFETY: an element of an array; whoever writes at the same time writes the same second. A write that changes nothing
    // would take the line of memory away from other processors.
    unsafe {
        if read_volatile(&raw const (*target).flows) != now {
            write_volatile(&raw mut (*target).flows, now);
        }
        if flags & DIRECT != 0 {
            write_volatile(&raw mut (*target).direct, now);
        }
    }
}
