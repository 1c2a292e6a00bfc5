//! Changing addresses and ports of a packet, and the checksums that cover them.
//!
//! Transport checksums always through the helpers, never by direct writes: only they know about a checksum that the
//! sender left to the device (`CHECKSUM_PARTIAL`), which direct writes would spoil unseen. The IPv4 header's own is
//! never left to a device.

use lb_ebpf::abi::address::{Address4, Address6};
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::checksum::{replaced, sum_words};

use crate::header::{Network, TCP_CHECKSUM, UDP_CHECKSUM, Wire};
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
    /// That of a header at `transport`, in which it is `within`.
    #[inline(always)]
    pub(crate) fn of(transport: u32, within: u8) -> Self {
        if within == 0 {
            return Self::NONE;
        }
        Self {
            offset: transport + u32::from(within),
            // Worked out instead of chosen, as a choice is another path to verify for all that follows.
            flags: u64::from(within & UDP_CHECKSUM & !TCP_CHECKSUM & 2) * (ZERO_IS_NONE / 2),
        }
    }

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

    /// Makes the transport checksum follow the addresses.
    fn sum_addresses(
        skb: &impl Packet,
        network: &Network<Self>,
        new: &Ends<Self>,
        checksum: Checksum,
    ) -> bool;

    /// Writes addresses, time to live and, where the packet has them, ports.
    fn put_ends<P: Packet>(
        skb: &P,
        network: &Network<Self>,
        new: &Ends<Self>,
        behind: Behind,
    ) -> bool;

    /// Gives the packet at hand other ends.
    fn rewrite<P: Packet>(skb: &P, work: &Work<Self>, new: &Ends<Self>) -> bool;
}

/// What is behind the network header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behind {
    Ports,
    /// Of a later fragment.
    Data,
}

/// The second half of an IPv4 header, and the ports behind it.
#[repr(C, align(4))]
#[derive(Clone, Copy)]
struct Tail4 {
    hops: u8,
    protocol: u8,
    checksum: u16,
    source: Address4,
    destination: Address4,
}

#[repr(C, align(4))]
#[derive(Clone, Copy)]
struct TailAndPorts4 {
    tail: Tail4,
    ports: Ports,
}

/// The addresses of an IPv6 header, and the ports behind them.
#[repr(C, align(4))]
#[derive(Clone, Copy)]
struct Tail6 {
    source: Address6,
    destination: Address6,
}

#[repr(C, align(4))]
#[derive(Clone, Copy)]
struct TailAndPorts6 {
    tail: Tail6,
    ports: Ports,
}

/// Offset of a tail in its header.
const TAIL: u32 = 8;

/// Time to live and protocol, as one half-word in memory order.
#[inline(always)]
pub(crate) fn hop_word(hops: u32, protocol: u8) -> u32 {
    u32::from(u16::from_ne_bytes([hops as u8, protocol]))
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

    #[inline(always)]
    fn sum_addresses(
        skb: &impl Packet,
        network: &Network<V4>,
        new: &Ends<V4>,
        checksum: Checksum,
    ) -> bool {
        let old = sum_words([network.source.word(), network.destination.word()]);
        let new = sum_words([new.source.word(), new.destination.word()]);
        skb.replace_l4(checksum.offset, old, new, 4, checksum.flags | PSEUDO)
    }

    #[inline(always)]
    fn put_ends<P: Packet>(skb: &P, network: &Network<V4>, new: &Ends<V4>, behind: Behind) -> bool {
        let (network_at, transport_at) = P::headers(network);
        let sum = |source: Address4, destination: Address4, hops: u32| {
            sum_words([
                source.word(),
                destination.word(),
                hop_word(hops, network.protocol),
            ])
        };
        let checksum = replaced(
            network.checksum,
            sum(network.source, network.destination, network.hops),
            sum(new.source, new.destination, new.hops),
        );
        let tail = Tail4 {
            hops: new.hops as u8,
            protocol: network.protocol,
            checksum,
            source: new.source,
            destination: new.destination,
        };
        let ports = new.ports;
        if behind == Behind::Ports && transport_at == network_at + 20 {
            return skb.store(network_at + TAIL, &TailAndPorts4 { tail, ports });
        }
        skb.store(network_at + TAIL, &tail)
            && (behind == Behind::Data || skb.store(transport_at, &ports))
    }

    #[inline(always)]
    fn rewrite<P: Packet>(skb: &P, work: &Work<V4>, new: &Ends<V4>) -> bool {
        rewrite_ends(skb, work, new)
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

    #[inline(always)]
    fn sum_addresses(
        skb: &impl Packet,
        network: &Network<V6>,
        new: &Ends<V6>,
        checksum: Checksum,
    ) -> bool {
        // Both addresses in the room of one: to the checksum they are a sum.
        let both = |one: Address6, other: Address6| {
            let ([a, b, c, d], [e, f, g, h]) = (one.words(), other.words());
            [
                sum_words([a, e]),
                sum_words([b, f]),
                sum_words([c, g]),
                sum_words([d, h]),
            ]
        };
        skb.replace_l4_address6(
            checksum.offset,
            both(network.source, network.destination),
            both(new.source, new.destination),
            checksum.flags,
        )
    }

    #[inline(always)]
    fn put_ends<P: Packet>(skb: &P, network: &Network<V6>, new: &Ends<V6>, behind: Behind) -> bool {
        let (network_at, transport_at) = P::headers(network);
        // No checksum makes up for this change.
        if new.hops != network.hops && !skb.store_summed(network_at + 7, &(new.hops as u8)) {
            return false;
        }
        let tail = Tail6 {
            source: new.source,
            destination: new.destination,
        };
        let ports = new.ports;
        if behind == Behind::Ports && transport_at == network_at + 40 {
            return skb.store(network_at + TAIL, &TailAndPorts6 { tail, ports });
        }
        skb.store(network_at + TAIL, &tail)
            && (behind == Behind::Data || skb.store(transport_at, &ports))
    }

    /// Out of line for the stack of its callers.
    #[inline(never)]
    fn rewrite<P: Packet>(skb: &P, work: &Work<V6>, new: &Ends<V6>) -> bool {
        rewrite_ends(skb, work, new)
    }
}

/// Both ports, as on the wire.
#[repr(C, align(4))]
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    source: u16,
    destination: u16,
}

impl Ports {
    #[inline(always)]
    fn new(source: u16, destination: u16) -> Self {
        Self {
            source: source.to_be(),
            destination: destination.to_be(),
        }
    }

    /// As one word in memory order.
    #[inline(always)]
    fn word(self) -> u32 {
        let ([a, b], [c, d]) = (self.source.to_ne_bytes(), self.destination.to_ne_bytes());
        u32::from_ne_bytes([a, b, c, d])
    }
}

/// What a packet is to have at its ends, and how many hops are left to it.
pub(crate) struct Ends<F: Family> {
    source: F::Addr,
    destination: F::Addr,
    ports: Ports,
    hops: u32,
}

/// Gives the packet at hand other ends. False: the packet is spoilt and must not go on.
///
/// Addresses, ports and the IPv4 header's checksum lie side by side in most packets and are written in one go: each
/// call of a helper costs more than what it does.
#[inline(always)]
fn rewrite_ends<F: Rewrite, P: Packet>(skb: &P, work: &Work<F>, new: &Ends<F>) -> bool {
    let (network, transport) = (&work.network, &work.transport);
    let checksum = P::checksum(network, transport);
    // A later fragment has neither ports nor a checksum.
    if checksum.offset == 0 {
        return F::put_ends(skb, network, new, Behind::Data);
    }
    let old = Ports::new(transport.source_port, transport.destination_port);
    F::sum_addresses(skb, network, new, checksum)
        && (old.word() == new.ports.word()
            || skb.replace_l4(
                checksum.offset,
                old.word(),
                new.ports.word(),
                4,
                checksum.flags,
            ))
        && F::put_ends(skb, network, new, Behind::Ports)
}

/// Gives the packet at hand both ends anew. False: the packet is spoilt and must not go on.
#[inline(always)]
pub(crate) fn rewrite_both<F: Rewrite>(
    skb: &impl Packet,
    work: &Work<F>,
    source: (&F::Addr, u16),
    destination: (&F::Addr, u16),
) -> bool {
    let new = Ends {
        source: F::read(source.0),
        destination: F::read(destination.0),
        ports: Ports::new(source.1, destination.1),
        hops: work.network.hops,
    };
    F::rewrite(skb, work, &new)
}

/// The same, and takes a hop off the packet's time to live.
#[inline(always)]
pub(crate) fn rewrite_and_hop<F: Rewrite>(
    skb: &impl Packet,
    work: &Work<F>,
    source: (&F::Addr, u16),
    destination: (&F::Addr, u16),
) -> bool {
    let new = Ends {
        source: F::read(source.0),
        destination: F::read(destination.0),
        ports: Ports::new(source.1, destination.1),
        hops: work.network.hops.wrapping_sub(1),
    };
    F::rewrite(skb, work, &new)
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
