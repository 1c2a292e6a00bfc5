//! What most sockets must remember lies in a slot of a common array, found by the socket's cookie: storage of the socket
//! itself costs two allocations, more than all the rest of a `connect()`. A slot belongs to one socket from the call that
//! takes it until the socket is released, which is a hook, too. Who finds its slot taken gets storage of its own.

use core::ptr::{read_volatile, write_volatile};
use lb_ebpf::abi::socket::{SLOTS, SocketPeer, SocketSlot};

use crate::atomic::add;
use crate::maps::SOCKET_SLOTS;

/// The slot of a socket's cookie, whosever it is.
#[inline(always)]
fn at(cookie: u64) -> Option<*mut SocketSlot> {
    SOCKET_SLOTS.get_ptr_mut(cookie as u32 & (SLOTS - 1))
}

/// What the socket's slot remembers, if it has one.
#[inline(always)]
pub(super) fn peer(cookie: u64) -> Option<*mut SocketPeer> {
    let slot = at(cookie)?;
    // SAFETY: an element of an array. No other socket has this cookie, and so none writes what is read next.
    unsafe { (read_volatile(&raw const (*slot).cookie) == cookie).then_some(&raw mut (*slot).peer) }
}

/// Writes to the socket's slot, taking it first if it is free; false if another socket has it.
#[inline(always)]
pub(super) fn keep(cookie: u64, peer: &SocketPeer) -> bool {
    let Some(slot) = at(cookie) else { return false };
    // SAFETY: an element of an array, written to by none but who holds it.
    unsafe {
        if read_volatile(&raw const (*slot).cookie) != cookie && !take(&raw mut (*slot).holders) {
            return false;
        }
        core::ptr::write(&raw mut (*slot).peer, *peer);
        write_volatile(&raw mut (*slot).cookie, cookie);
    }
    true
}

/// Lets the socket's slot go, if it has one.
#[inline(always)]
pub(super) fn free(cookie: u64) {
    let Some(slot) = at(cookie) else { return };
    // SAFETY: as in `keep`.
    unsafe {
        if read_volatile(&raw const (*slot).cookie) == cookie {
            write_volatile(&raw mut (*slot).cookie, 0);
            add(&raw mut (*slot).holders, -1);
        }
    }
}

/// Becomes the only holder. Of two that try at once at most one does: whoever looks second sees both.
#[inline(always)]
unsafe fn take(holders: *mut u32) -> bool {
    // SAFETY: a number in an element of an array, which all change by additions only.
    unsafe {
        if read_volatile(holders) != 0 {
            return false;
        }
        add(holders, 1);
        if read_volatile(holders) == 1 {
            return true;
        }
        add(holders, -1);
    }
    false
}
