//! Changing addresses and ports of a packet, and the checksums that cover them.
//!
//! Always through the packet's own methods. For tc they are the kernel's checksum helpers: only those know about
//! a checksum that the sender left to the device (`CHECKSUM_PARTIAL`), which direct writes would spoil unseen.

use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::{TCP, UDP};
use lb_ebpf::volatile::read;

use crate::header::{Network, Transport, Wire};
use crate::packet::{PSEUDO, Packet, ZERO_IS_NONE};
use crate::work::Work;

/// Which end of a packet is changed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

/// Where a packet's transport checksum is, and how it counts. Not an `Option` of a pair: the compiler would
/// copy the pair uninitialised, which the verifier refuses.
#[derive(Clone, Copy)]
pub(crate) struct Checksum {
    /// Offset in the packet; 0 if there is none.
    pub(crate) offset: u32,
    /// Flags of the checksum helper.
    pub(crate) flags: u64,
}

impl Checksum {
    pub(crate) const NONE: Self = Self {
        offset: 0,
        flags: 0,
    };
}

/// Rewrites on the wire.
pub(crate) trait Rewrite: Wire {
    /// Replaces the address of one end; `checksum` is the offset of the transport checksum, if the packet
    /// has one, and `flags` how it counts.
    fn address(
        skb: &impl Packet,
        network: u32,
        end: End,
        old: Self::Addr,
        new: Self::Addr,
        checksum: Checksum,
    ) -> bool;
}

impl Rewrite for V4 {
    #[inline(always)]
    fn address(
        skb: &impl Packet,
        network: u32,
        end: End,
        old: <V4 as Family>::Addr,
        new: <V4 as Family>::Addr,
        checksum: Checksum,
    ) -> bool {
        if checksum.offset != 0
            && !skb.replace_l4(
                checksum.offset,
                old.word(),
                new.word(),
                4,
                checksum.flags | PSEUDO,
            )
        {
            return false;
        }
        let at = if end == End::Source { 12 } else { 16 };
        skb.replace_l3(network + 10, old.word(), new.word()) && skb.store(network + at, &new)
    }
}

impl Rewrite for V6 {
    #[inline(always)]
    fn address(
        skb: &impl Packet,
        network: u32,
        end: End,
        old: <V6 as Family>::Addr,
        new: <V6 as Family>::Addr,
        checksum: Checksum,
    ) -> bool {
        if checksum.offset != 0
            && !skb.replace_l4_address6(checksum.offset, old.words(), new.words(), checksum.flags)
        {
            return false;
        }
        let at = if end == End::Source { 8 } else { 24 };
        skb.store(network + at, &new)
    }
}

/// Replaces address and port of one end. False: the packet is spoilt and must not go on.
#[inline(always)]
pub(crate) fn rewrite<F: Rewrite, P: Packet>(
    skb: &P,
    network: &Network<F>,
    transport: &Transport,
    end: End,
    address: F::Addr,
    port: u16,
) -> bool {
    // Values first, then the choice; see `tcp_state::timeout`.
    let (source, destination) = (F::read(&network.source), F::read(&network.destination));
    let (source_port, destination_port) = (
        read(&transport.source_port),
        read(&transport.destination_port),
    );
    let (network_at, transport_at) = P::headers(network);
    let (old_address, old_port, port_at) = match end {
        End::Source => (source, source_port, transport_at),
        End::Destination => (destination, destination_port, transport_at + 2),
    };
    let checksum = match P::carried(network, transport) {
        (true, TCP) => Checksum {
            offset: transport_at + 16,
            flags: 0,
        },
        (true, UDP) => Checksum {
            offset: transport_at + 6,
            flags: ZERO_IS_NONE,
        },
        _ => Checksum::NONE,
    };
    if old_address != address && !F::address(skb, network_at, end, old_address, address, checksum) {
        return false;
    }
    // A later fragment has no ports.
    if old_port == port || checksum.offset == 0 {
        return true;
    }
    let (old, new) = (old_port.to_be(), port.to_be());
    skb.replace_l4(checksum.offset, old.into(), new.into(), 2, checksum.flags)
        && skb.store(port_at, &new)
}

/// Gives the packet at hand both ends anew.
#[inline(always)]
pub(crate) fn rewrite_both<F: Rewrite>(
    skb: &impl Packet,
    work: &Work<F>,
    source: (&F::Addr, u16),
    destination: (&F::Addr, u16),
) -> bool {
    let (network, transport) = (&work.network, &work.transport);
    rewrite(
        skb,
        network,
        transport,
        End::Destination,
        *destination.0,
        destination.1,
    ) && rewrite(skb, network, transport, End::Source, *source.0, source.1)
}

/// Makes an endpoint's answer the service's answer to the client of the flow at hand.
#[inline(always)]
pub(crate) fn rewrite_answer<F: Rewrite>(skb: &impl Packet, work: &Work<F>) -> bool {
    let asked = &work.forward;
    rewrite_both(
        skb,
        work,
        (&asked.destination, asked.destination_port),
        (&asked.source, asked.source_port),
    )
}
