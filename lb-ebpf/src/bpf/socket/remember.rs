//! What a socket must remember: which service it dialled for the endpoint it got.
//!
//! A connected socket has a slot, or storage of its own (see `slot`); pairs of an unconnected one live in such storage, and
//! what finds no room there goes to a common table.

use core::hint::black_box;
use core::ptr::{null_mut, read_volatile, write_volatile};
use lb_ebpf::abi::address::Address6;
use lb_ebpf::abi::counter;
use lb_ebpf::abi::endpoint::Endpoint;
use lb_ebpf::abi::socket::{PAIRS, SocketMore, SocketMoreKey, SocketPairs, SocketPeer};

use super::Dialled;
use super::call::Call;
use crate::lookup::now;
use crate::maps::{SOCKET_MORE, Tables};
use crate::report::count;

#[inline(always)]
pub(super) fn pair<F: Tables>(
    dialled: &Dialled<F>,
    endpoint: &Endpoint<F>,
    generation: u32,
) -> SocketPeer {
    SocketPeer {
        endpoint_address: F::wide(endpoint.address),
        service_address: F::wide(dialled.address),
        endpoint_port: endpoint.port,
        service_port: dialled.port,
        endpoint: endpoint.id,
        endpoint_generation: generation,
        service: endpoint.service,
    }
}

/// Keeps a pair with the socket, in place of the stale one if there is one; what it pushes out goes to the
/// common table.
#[inline(always)]
pub(super) fn remember(call: &Call, stale: *mut SocketPeer, pair: SocketPeer) {
    if !stale.is_null() {
        // SAFETY: a record in the storage of this socket.
        unsafe { core::ptr::write(stale, pair) };
        return;
    }
    let pairs = call.pairs(true);
    if pairs.is_null() {
        count(counter::SOCKET_PAIR_LOST);
        return;
    }
    // SAFETY: storage of this socket, for all accesses below; indexes are masked to its length.
    unsafe {
        // From memory, so that the verifier takes it for any number, and masked.
        let slot = read_volatile(&raw const (*pairs).next);
        write_volatile(&raw mut (*pairs).next, slot.wrapping_add(1));
        let slot = &raw mut (*pairs).pairs[(slot & (PAIRS as u32 - 1)) as usize];
        if (*slot).endpoint_port != 0 {
            let key = SocketMoreKey {
                cookie: call.cookie(),
                endpoint_address: (*slot).endpoint_address,
                endpoint_port: (*slot).endpoint_port,
                zero: [0; 3],
            };
            let value = SocketMore {
                service_address: (*slot).service_address,
                service_port: (*slot).service_port,
                zero: 0,
                created: now(),
            };
            if SOCKET_MORE.insert(key, value, 0).is_err() {
                count(counter::SOCKET_PAIR_LOST);
            }
        }
        core::ptr::write(slot, pair);
    }
}

/// The service behind the endpoint that a socket heard from or is connected to.
#[inline(always)]
pub(super) fn service_of<F: Tables>(call: &Call, address: F::Addr) -> Option<(F::Addr, u16)> {
    let port = call.port();
    let wide = F::wide(address);
    let peer = call.known_peer();
    if !peer.is_null() {
        // SAFETY: this socket's own.
        let known = unsafe { &*peer };
        if known.endpoint_port == port && difference(&known.endpoint_address, &wide) == 0 {
            return Some((F::narrow(known.service_address), known.service_port));
        }
    }
    None
}

/// As [`service_of`], and among the pairs of an unconnected socket.
#[inline(always)]
pub(super) fn sender<F: Tables>(call: &Call, address: F::Addr) -> Option<(F::Addr, u16)> {
    if let Some(found) = service_of::<F>(call, address) {
        return Some(found);
    }
    let pairs = call.pairs(false);
    if pairs.is_null() {
        return None;
    }
    let port = call.port();
    let wide = F::wide(address);
    // SAFETY: storage of this socket.
    unsafe {
        let known = find(pairs, |known| {
            u32::from(known.endpoint_port ^ port) | difference(&known.endpoint_address, &wide)
        });
        if !known.is_null() {
            return Some((F::narrow((*known).service_address), (*known).service_port));
        }
    }
    // SAFETY: storage of this socket.
    if unsafe { (*pairs).next } <= PAIRS as u32 {
        return None;
    }
    let key = SocketMoreKey {
        cookie: call.cookie(),
        endpoint_address: wide,
        endpoint_port: port,
        zero: [0; 3],
    };
    let more = SOCKET_MORE.get_ptr(key)?;
    // SAFETY: an element of the table; nobody deletes one whose socket still lives but the sweep, long after.
    unsafe { Some((F::narrow((*more).service_address), (*more).service_port)) }
}

/// The first record for which `difference` is 0, or null.
///
/// All but the first are told apart by arithmetic: each way out of a comparison would have the verifier
/// read all that follows once more.
///
/// # Safety
/// `pairs` points to the storage of a socket.
#[inline(always)]
pub(super) unsafe fn find(
    pairs: *mut SocketPairs,
    difference: impl Fn(&SocketPeer) -> u32,
) -> *mut SocketPeer {
    // SAFETY: as the caller promises.
    let pairs = unsafe { &mut (*pairs).pairs };
    // Most sockets have but one.
    if difference(&pairs[0]) == 0 {
        return &mut pairs[0];
    }
    let (mut found, mut index) = (0, 0);
    let [_, b, c, d, e, f, g, h] = &*pairs;
    let mut look = |place: u64, record| {
        // The highest bit of what is one less than nothing; the compiler would make a branch of it if it knew.
        let fits = black_box(u64::from(difference(record))).wrapping_sub(1) >> 63;
        index |= place * (fits & !found);
        found |= fits;
    };
    look(1, b);
    look(2, c);
    look(3, d);
    look(4, e);
    look(5, f);
    look(6, g);
    look(7, h);
    if found == 0 {
        return null_mut();
    }
    &mut pairs[black_box(index) as usize & (PAIRS - 1)]
}

/// 0 for equal addresses.
#[inline(always)]
pub(super) fn difference(a: &Address6, b: &Address6) -> u32 {
    let (a, b) = (a.words(), b.words());
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3])
}
