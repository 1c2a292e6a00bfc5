//! UDP conversations from a port that is a NodePort, too; see [`lb_ebpf::abi::outbound`].
//!
//! A TCP segment that opens a connection says so. A datagram does not: only who has seen the question leave can tell an
//! answer from a new client's packet.

use core::ptr::{read_volatile, write_volatile};
use lb_ebpf::abi::UDP;
use lb_ebpf::abi::address::NODE;
use lb_ebpf::abi::frontend::FrontendKey;
use lb_ebpf::abi::outbound::{Outbound, OutboundKey, port_place};
use lb_ebpf::abi::settings::Settings;

use crate::flow::{find, write_turned};
use crate::lookup::{address_use, frontend, now};
use crate::maps::{OUTBOUND, Tables, UDP_NODE_PORTS};
use crate::work::Work;

/// Whether a UDP port may be a NodePort: false is certain.
#[inline(always)]
pub(crate) fn may_be_node_port(port: u16) -> bool {
    let (word, bit) = port_place(port);
    match UDP_NODE_PORTS.get_ptr(word) {
        // SAFETY: an element of an array.
        Some(bits) => unsafe { read_volatile(bits) & bit != 0 },
        None => false,
    }
}

/// Notes that the datagram at hand leaves from a NodePort's port, unless it is an answer to a client of ours.
#[inline(never)]
pub(crate) fn note<F: Tables, const SCOPE: u8>(work: &mut Work<F>) {
    let port = work.transport.source_port;
    if address_use::<F>(&work.network.source) & NODE == 0 {
        return;
    }
    let node_port = FrontendKey::<F> {
        address: F::UNSPECIFIED,
        port,
        protocol: UDP,
        zero: 0,
    };
    if frontend(&node_port).is_none() {
        return;
    }
    work.set_key(SCOPE);
    write_turned(&mut work.forward, &work.key);
    if find(&work.forward, &mut work.flow).is_some() {
        return;
    }
    let key = OutboundKey {
        remote: F::wide(work.network.destination),
        own: F::wide(work.network.source),
        remote_port: work.transport.destination_port,
        own_port: port,
    };
    let now = now();
    match OUTBOUND.get_ptr_mut(key) {
        // SAFETY: an element of the table; reused for another, that one lives a little longer.
        Some(known) => unsafe {
            if read_volatile(&raw const (*known).last_seen) != now {
                write_volatile(&raw mut (*known).last_seen, now);
            }
        },
        None => {
            // A full table gives up the conversation that was silent for longest.
            let _ = OUTBOUND.insert(key, Outbound { last_seen: now }, 0);
        }
    }
}

/// Whether the datagram at hand, which is addressed to a NodePort, belongs to such a conversation.
#[inline(never)]
pub(crate) fn returns<F: Tables>(settings: &Settings, work: &Work<F>) -> bool {
    let key = OutboundKey {
        remote: F::wide(work.network.source),
        own: F::wide(work.network.destination),
        remote_port: work.transport.source_port,
        own_port: work.transport.destination_port,
    };
    match OUTBOUND.get_ptr(key) {
        // SAFETY: an element of the table; reused just now, this datagram may be taken for a client's.
        Some(known) => unsafe {
            now().saturating_sub(read_volatile(&raw const (*known).last_seen))
                <= settings.timeout_udp
        },
        None => false,
    }
}
