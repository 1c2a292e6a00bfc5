//! Which addresses flows lead to and which they come from; see [`lb_ebpf::abi::target`].

use core::ptr::{read_volatile, write_volatile};
use lb_ebpf::abi::flow::DIRECT;
use lb_ebpf::abi::target::{Target, index};

use crate::maps::{CLIENTS, TARGETS, Tables};

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

/// Whether flows come from an address.
#[inline(always)]
pub(crate) fn is_client<F: Tables>(address: &F::Addr) -> bool {
    match CLIENTS.get_ptr(index::<F>(F::read(address))) {
        // SAFETY: an element of an array.
        Some(seen) => unsafe { read_volatile(seen) != 0 },
        None => true,
    }
}

/// Notes that a flow with these flags leads from a client to an address.
#[inline(always)]
pub(crate) fn mark<F: Tables>(client: &F::Addr, address: &F::Addr, flags: u8, now: u32) {
    if let Some(seen) = CLIENTS.get_ptr_mut(index::<F>(F::read(client))) {
        // SAFETY: as below.
        unsafe { note(seen, now) };
    }
    let Some(target) = TARGETS.get_ptr_mut(index::<F>(F::read(address))) else {
        return;
    };
    // SAFETY: an element of an array; whoever writes at the same time writes the same second.
    unsafe {
        note(&raw mut (*target).flows, now);
        if flags & DIRECT != 0 {
            write_volatile(&raw mut (*target).direct, now);
        }
    }
}

/// A write that changes nothing would take the line of memory away from other processors.
#[inline(always)]
unsafe fn note(seen: *mut u32, now: u32) {
    // SAFETY: the caller's element.
    unsafe {
        if read_volatile(seen) != now {
            write_volatile(seen, now);
        }
    }
}
