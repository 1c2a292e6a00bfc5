//! Answers we make ourselves: RST for TCP (RFC 9293 §3.10.7.1), port unreachable for the rest (RFC 1122,
//! RFC 4443).
//!
//! The answer is built in place of the packet. A sender that leaves checksums to the device marks its packet so
//! (`CHECKSUM_PARTIAL`), and the mark would stay on our answer and spoil it once a device obeys. Cutting away
//! the bytes where that checksum was to start makes the kernel drop the mark.

use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_skb_load_bytes};
use core::ptr::{null_mut, write_unaligned};
use lb_ebpf::abi::family::{V4, V6};
use lb_ebpf::abi::{TCP, counter};
use lb_ebpf::volatile::read;

use crate::DROP;
use crate::header::{ACK, FIN, ICMPV6, Ipv4, Ipv6, Network, Part, RST, SYN, Tcp, Wire};
use crate::icmp_error::Quoted;
use crate::maps::{SCRATCH, Scratch};
use crate::masquerade::NodeAddress;
use crate::packet::{ETHERNET, Packet as _};
use crate::report::count;
use crate::rewrite::Rewrite;
use crate::skb::Skb;

/// Bytes cut away behind the Ethernet header: more than any offset at which a transport header starts behind what we
/// quote.
const CUT: u32 = MOST_QUOTED;

/// Bytes of a packet that an answer can quote: a longer chain of extension headers is refused silently.
const MOST_QUOTED: u32 = 192;

const TTL: u8 = 64;
const E: usize = ETHERNET as usize;

/// Families in which we can answer.
pub(crate) trait Answer: Rewrite + NodeAddress + Quoted {
    /// Builds an RST with these numbers at the scratch buffer's start; gives the frame's length.
    fn reset(scratch: &mut Scratch, network: &Network<Self>, tcp: &Tcp) -> u32;
    /// Where the quote lies in the scratch buffer.
    const QUOTE_AT: usize;
    /// Builds a port-unreachable around a quote of `quoted` bytes; gives the frame's length.
    fn unreachable(scratch: &mut Scratch, network: &Network<Self>, quoted: u32) -> u32;
}

/// Refuses a packet so that its sender learns at once.
#[expect(
    clippy::manual_range_contains,
    reason = "of two plain comparisons every verifier learns both bounds"
)]
#[inline(never)]
pub(crate) fn reject<F: Answer, const WAY: u64>(skb: Skb) -> i32 {
    let Some(work) = F::work() else { return DROP };
    let (skb, network) = (&skb, &work.network);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return DROP;
    };
    // SAFETY: this CPU's own buffer, and programs of one hook do not nest.
    let scratch = unsafe { &mut *scratch };
    if network.part == Part::Later {
        return DROP;
    }
    let length = if network.protocol == TCP {
        let Some(tcp) = skb.load::<Tcp>(network.transport) else {
            return DROP;
        };
        if tcp.flags & RST != 0 {
            return DROP;
        }
        F::reset(scratch, network, &answer_numbers(network, &tcp))
    } else {
        // Headers and eight bytes, if so many are there. Sums are over words.
        let quoted = ((network.transport + 8).min(network.end) - network.offset) & !3;
        // Read anew, as the verifier must see the very value that is compared.
        let quoted = read(&quoted);
        // Nothing to quote; as a bound, since verifiers before Linux 6.8 learn nothing from `!= 0`.
        if quoted < 4 || quoted > MOST_QUOTED {
            return DROP;
        }
        // SAFETY: the buffer holds the quote at that place.
        let failed = unsafe {
            bpf_skb_load_bytes(
                skb.raw().cast(),
                network.offset,
                scratch.bytes.as_mut_ptr().add(F::QUOTE_AT).cast(),
                quoted,
            )
        };
        if failed != 0 {
            return DROP;
        }
        F::unreachable(scratch, network, quoted)
    };
    // Our answer goes the packet's way back: its MAC addresses, exchanged. A device without such strips them.
    if !skb.give_link_header(network.offset) {
        return DROP;
    }
    let Some(ethernet) = skb.load::<[u8; E]>(0) else {
        return DROP;
    };
    put(
        scratch,
        0,
        &[
            ethernet[6],
            ethernet[7],
            ethernet[8],
            ethernet[9],
            ethernet[10],
            ethernet[11],
            ethernet[0],
            ethernet[1],
            ethernet[2],
            ethernet[3],
            ethernet[4],
            ethernet[5],
            ethernet[12],
            ethernet[13],
        ],
    );
    if !skb.set_len(length + CUT)
        || !skb.remove_after_mac(CUT as i32)
        || !skb.store_bytes(0, &scratch.bytes, length)
    {
        return DROP;
    }
    count(counter::PACKET_REJECTED);
    skb.send_back::<WAY>()
}

/// The header of an RST that answers `tcp`.
#[inline(always)]
fn answer_numbers<F: Wire>(network: &Network<F>, tcp: &Tcp) -> Tcp {
    let mut answer = Tcp {
        source_port: tcp.destination_port,
        destination_port: tcp.source_port,
        sequence: 0,
        acknowledgement: 0,
        data_offset: 5 << 4,
        flags: RST,
        window: 0,
    };
    if tcp.flags & ACK != 0 {
        answer.sequence = tcp.acknowledgement;
    } else {
        let header = u32::from(tcp.data_offset >> 4) * 4;
        let data = network.end.saturating_sub(network.transport + header);
        let counted = data + u32::from(tcp.flags & SYN != 0) + u32::from(tcp.flags & FIN != 0);
        answer.acknowledgement = u32::from_be(tcp.sequence).wrapping_add(counted).to_be();
        answer.flags = RST | ACK;
    }
    answer
}

/// Writes a header into the buffer.
#[inline(always)]
fn put<T: Copy>(scratch: &mut Scratch, at: usize, value: &T) {
    if at + size_of::<T>() <= scratch.bytes.len() {
        // SAFETY: just checked.
        unsafe { write_unaligned(scratch.bytes.as_mut_ptr().add(at).cast(), *value) };
    }
}

/// Sums part of the buffer, on top of `seed`. `length` is a multiple of four.
#[inline(always)]
fn sum(scratch: &mut Scratch, at: usize, length: u32, seed: u32) -> u32 {
    // SAFETY: callers stay within the buffer, as the verifier checks.
    unsafe {
        bpf_csum_diff(
            null_mut(),
            0,
            scratch.bytes.as_mut_ptr().add(at).cast(),
            length,
            seed,
        ) as u32
    }
}

/// A sum in memory order as the checksum field's value.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Writes an IPv4 header from the packet's destination to its source.
#[inline(always)]
fn ipv4(scratch: &mut Scratch, network: &Network<V4>, protocol: u8, payload: u16) {
    let header = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_length: (20 + payload).to_be(),
        identification: 0,
        fragment: 0x4000_u16.to_be(),
        ttl: TTL,
        protocol,
        checksum: 0,
        source: network.destination,
        destination: network.source,
    };
    put(scratch, E, &header);
    let checksum = fold(sum(scratch, E, 20, 0));
    put(scratch, E + 10, &checksum);
}

/// Likewise, IPv6.
#[inline(always)]
fn ipv6(scratch: &mut Scratch, network: &Network<V6>, next_header: u8, payload: u16) {
    let header = Ipv6 {
        version_class_label: 0x6000_0000_u32.to_be(),
        payload_length: payload.to_be(),
        next_header,
        hop_limit: TTL,
        source: network.destination,
        destination: network.source,
    };
    put(scratch, E, &header);
}

/// The rest of a TCP header: checksum and urgent pointer.
#[inline(always)]
fn tcp_tail(scratch: &mut Scratch, at: usize, tcp: &Tcp) {
    put(scratch, at, tcp);
    put(scratch, at + 16, &0u32);
}

/// The pseudo header's length and protocol, as they add to a sum in memory order.
#[inline(always)]
fn pseudo(length: u16, protocol: u8) -> u32 {
    u32::from(length.to_be()) + u32::from(u16::from(protocol).to_be())
}

impl Answer for V4 {
    const QUOTE_AT: usize = E + 20 + 8;

    #[inline(always)]
    fn reset(scratch: &mut Scratch, network: &Network<V4>, tcp: &Tcp) -> u32 {
        ipv4(scratch, network, TCP, 20);
        tcp_tail(scratch, E + 20, tcp);
        // Both addresses and the TCP header lie side by side.
        let checksum = fold(sum(scratch, E + 12, 8 + 20, pseudo(20, TCP)));
        put(scratch, E + 20 + 16, &checksum);
        ETHERNET + 40
    }

    #[inline(always)]
    fn unreachable(scratch: &mut Scratch, network: &Network<V4>, quoted: u32) -> u32 {
        ipv4(scratch, network, <V4 as Wire>::ICMP, 8 + quoted as u16);
        put(scratch, E + 20, &[3u8, 3, 0, 0, 0, 0, 0, 0]);
        let checksum = fold(sum(scratch, E + 20, 8 + quoted, 0));
        put(scratch, E + 22, &checksum);
        ETHERNET + 20 + 8 + quoted
    }
}

impl Answer for V6 {
    const QUOTE_AT: usize = E + 40 + 8;

    #[inline(always)]
    fn reset(scratch: &mut Scratch, network: &Network<V6>, tcp: &Tcp) -> u32 {
        ipv6(scratch, network, TCP, 20);
        tcp_tail(scratch, E + 40, tcp);
        let checksum = fold(sum(scratch, E + 8, 32 + 20, pseudo(20, TCP)));
        put(scratch, E + 40 + 16, &checksum);
        ETHERNET + 60
    }

    #[inline(always)]
    fn unreachable(scratch: &mut Scratch, network: &Network<V6>, quoted: u32) -> u32 {
        let length = 8 + quoted as u16;
        ipv6(scratch, network, ICMPV6, length);
        put(scratch, E + 40, &[1u8, 4, 0, 0, 0, 0, 0, 0]);
        let checksum = fold(sum(scratch, E + 8, 40 + quoted, pseudo(length, ICMPV6)));
        put(scratch, E + 42, &checksum);
        ETHERNET + 40 + 8 + quoted
    }
}
