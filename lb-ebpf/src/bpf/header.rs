//! Parsing: network and transport headers of a packet.

use lb_ebpf::abi::address::{Address4, Address6};
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::fragment::{Fragment, FragmentKey};
use lb_ebpf::abi::{TCP, UDP, counter};

use crate::lookup::now;
use crate::maps::{FRAGMENTS, Tables};
use crate::packet::{ETHERNET, Packet};
use crate::report::count;

/// Ethertype of IPv4.
pub(crate) const IPV4: u16 = 0x0800;
/// Ethertype of IPv6.
pub(crate) const IPV6: u16 = 0x86dd;
/// Protocol number of ICMP.
pub(crate) const ICMP: u8 = 1;
/// Next-header number of ICMPv6.
pub(crate) const ICMPV6: u8 = 58;

/// TCP flag bits.
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// Extension headers we walk over before we give up (RFC 8200 allows more, nobody sends them).
const EXTENSIONS: usize = 6;

/// IPv4 header without options, as on the wire.
#[repr(C, align(4))]
#[derive(Clone, Copy)]
pub(crate) struct Ipv4 {
    pub(crate) version_ihl: u8,
    pub(crate) tos: u8,
    pub(crate) total_length: u16,
    pub(crate) identification: u16,
    pub(crate) fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    pub(crate) checksum: u16,
    pub(crate) source: Address4,
    pub(crate) destination: Address4,
}

/// IPv6 header, as on the wire.
#[repr(C, align(4))]
#[derive(Clone, Copy)]
pub(crate) struct Ipv6 {
    pub(crate) version_class_label: u32,
    pub(crate) payload_length: u16,
    pub(crate) next_header: u8,
    pub(crate) hop_limit: u8,
    pub(crate) source: Address6,
    pub(crate) destination: Address6,
}

/// First 16 bytes of a TCP header, as on the wire.
#[repr(C, align(4))]
#[derive(Clone, Copy)]
pub(crate) struct Tcp {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) data_offset: u8,
    pub(crate) flags: u8,
    pub(crate) window: u16,
}

/// A whole TCP header: the checksum behind its first part must be there before a flow is opened.
#[repr(C, align(4))]
#[derive(Clone, Copy)]
struct WholeTcp {
    first: Tcp,
    /// Checksum and urgent pointer.
    _rest: u32,
}

/// UDP header, as on the wire.
#[repr(C, align(4))]
#[derive(Clone, Copy)]
struct Udp {
    source_port: u16,
    destination_port: u16,
    length: u16,
    checksum: u16,
}

/// Where a packet is within its fragmented whole.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Part {
    Whole,
    First,
    Later,
}

/// What we need of a network header.
#[derive(Clone, Copy)]
pub(crate) struct Network<F: Family> {
    pub(crate) source: F::Addr,
    pub(crate) destination: F::Addr,
    /// Offset of the network header.
    pub(crate) offset: u32,
    /// Offset of the transport header (of the data, in a later fragment).
    pub(crate) transport: u32,
    pub(crate) protocol: u8,
    pub(crate) part: Part,
    /// The header's own checksum as on the wire; IPv6 has none.
    pub(crate) checksum: u16,
    pub(crate) identification: u32,
    /// Time to live. Wide, as copying padding is a read of uninitialised stack.
    pub(crate) hops: u32,
}

/// What we need of a transport header. Ports are in host order.
#[derive(Clone, Copy)]
pub(crate) struct Transport {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    /// TCP flags, else 0.
    pub(crate) flags: u8,
    /// Whether the packet has a transport header at all; later fragments have not.
    pub(crate) present: bool,
}

/// Families as they are on the wire.
pub(crate) trait Wire: Tables {
    /// Protocol number of the family's ICMP.
    const ICMP: u8;
    /// Whether an address can be the source of no packet that is to be answered: loopback, unspecified,
    /// multicast, broadcast and reserved ones (RFC 1122 §3.2.1.3, RFC 4291 §2.5, §2.7).
    fn is_martian(source: &Self::Addr) -> bool;
    /// Reads the network header at `offset`; `None` if it is broken or of a kind we leave alone.
    fn network(skb: &impl Packet, offset: u32) -> Option<Network<Self>>;
    /// Reads the packet's own network header.
    fn outer_network(skb: &impl Packet) -> Option<Network<Self>>;
    /// Reads what is behind a network header without options or extensions.
    fn plain_transport<T: Copy>(skb: &impl Packet) -> Option<T>;
    /// Where that is.
    const PLAIN_TRANSPORT: u32;
}

impl Wire for V4 {
    const ICMP: u8 = ICMP;

    #[inline(always)]
    fn is_martian(source: &Address4) -> bool {
        let first = source.octets[0];
        // As Linux: class E is like any other but for the broadcast address.
        first == 0 || first == 127 || first & 0xf0 == 224 || source.word() == u32::MAX
    }

    const PLAIN_TRANSPORT: u32 = NETWORK + 20;

    #[inline(always)]
    fn network(skb: &impl Packet, offset: u32) -> Option<Network<V4>> {
        understand4(&skb.load(offset)?, offset)
    }

    #[inline(always)]
    fn outer_network(skb: &impl Packet) -> Option<Network<V4>> {
        understand4(&skb.load_at::<Ipv4, NETWORK>()?, NETWORK)
    }

    #[inline(always)]
    fn plain_transport<T: Copy>(skb: &impl Packet) -> Option<T> {
        skb.load_at::<T, { V4::PLAIN_TRANSPORT }>()
    }
}

#[inline(always)]
fn understand4(header: &Ipv4, offset: u32) -> Option<Network<V4>> {
    let length = u32::from(header.version_ihl & 15) * 4;
    if header.version_ihl >> 4 != 4
        || length < 20
        || u32::from(u16::from_be(header.total_length)) < length
    {
        return None;
    }
    let fragment = u16::from_be(header.fragment);
    let part = match (fragment & 0x1fff, fragment & 0x2000) {
        (0, 0) => Part::Whole,
        (0, _) => Part::First,
        _ => Part::Later,
    };
    Some(Network {
        source: header.source,
        destination: header.destination,
        offset,
        transport: offset + length,
        protocol: header.protocol,
        part,
        checksum: header.checksum,
        identification: u32::from(u16::from_be(header.identification)),
        hops: u32::from(header.ttl),
    })
}

impl Wire for V6 {
    const ICMP: u8 = ICMPV6;

    #[inline(always)]
    fn is_martian(source: &Address6) -> bool {
        let [a, b, c, d] = source.words();
        source.octets[0] == 0xff || a | b | c == 0 && d & !1_u32.to_be() == 0
    }

    const PLAIN_TRANSPORT: u32 = NETWORK + 40;

    #[inline(always)]
    fn network(skb: &impl Packet, offset: u32) -> Option<Network<V6>> {
        understand6(skb, &skb.load(offset)?, offset)
    }

    #[inline(always)]
    fn outer_network(skb: &impl Packet) -> Option<Network<V6>> {
        understand6(skb, &skb.load_at::<Ipv6, NETWORK>()?, NETWORK)
    }

    #[inline(always)]
    fn plain_transport<T: Copy>(skb: &impl Packet) -> Option<T> {
        skb.load_at::<T, { V6::PLAIN_TRANSPORT }>()
    }
}

#[inline(always)]
fn understand6(skb: &impl Packet, header: &Ipv6, offset: u32) -> Option<Network<V6>> {
    if (u32::from_be(header.version_class_label) >> 28) != 6 {
        return None;
    }
    let mut found = Network {
        source: header.source,
        destination: header.destination,
        offset,
        transport: offset + 40,
        protocol: header.next_header,
        part: Part::Whole,
        checksum: 0,
        identification: 0,
        hops: u32::from(header.hop_limit),
    };
    if matches!(found.protocol, TCP | UDP | ICMPV6) {
        return Some(found);
    }
    for _ in 0..EXTENSIONS {
        match found.protocol {
            // Hop-by-hop, routing, destination options (RFC 8200 §4).
            0 | 43 | 60 => {
                let [next, length, _, segments_left]: [u8; 4] = skb.load(found.transport)?;
                if found.protocol == 43 && segments_left != 0 {
                    // The destination is only the next stop.
                    return None;
                }
                found.protocol = next;
                found.transport += (u32::from(length) + 1) * 8;
            }
            // Fragment header (RFC 8200 §4.5).
            44 => {
                let header: [u32; 2] = skb.load(found.transport)?;
                let [next, _, high, low] = header[0].to_ne_bytes();
                let offset_flags = u16::from_be_bytes([high, low]);
                found.protocol = next;
                found.transport += 8;
                found.identification = u32::from_be(header[1]);
                found.part = match (offset_flags >> 3, offset_flags & 1) {
                    (0, 0) => Part::Whole,
                    (0, _) => Part::First,
                    _ => Part::Later,
                };
                if found.part == Part::Later {
                    return Some(found);
                }
            }
            // Authentication header (RFC 4302): length in words, minus two.
            51 => {
                let [next, length]: [u8; 2] = skb.load(found.transport)?;
                found.protocol = next;
                found.transport += (u32::from(length) + 2) * 4;
            }
            _ => return Some(found),
        }
    }
    None
}

/// Reads the transport header of a TCP or UDP packet. A first fragment teaches the later ones their ports;
/// a later fragment whose first one was not seen is left to the stack.
#[inline(always)]
pub(crate) fn transport<F: Wire, P: Packet>(
    skb: &P,
    network: &Network<F>,
    scope: u8,
) -> Option<Transport> {
    if network.part == Part::Later {
        let found = later_fragment(network, scope);
        if found.is_none() && !P::SEEN_AGAIN {
            count(counter::FRAGMENT_UNKNOWN);
        }
        return found;
    }
    let (_, at) = P::headers(network);
    let found = match network.protocol {
        TCP => {
            let header = load_transport::<F, WholeTcp>(skb, at)?.first;
            Transport {
                source_port: u16::from_be(header.source_port),
                destination_port: u16::from_be(header.destination_port),
                flags: header.flags,
                present: true,
            }
        }
        UDP => {
            let header = load_transport::<F, Udp>(skb, at)?;
            if u16::from_be(header.length) < 8 {
                // A jumbogram's zero (RFC 2675) too: nobody load-balances those.
                return None;
            }
            Transport {
                source_port: u16::from_be(header.source_port),
                destination_port: u16::from_be(header.destination_port),
                flags: 0,
                present: true,
            }
        }
        _ => return None,
    };
    if network.part == Part::First {
        let value = Fragment {
            source_port: found.source_port,
            destination_port: found.destination_port,
            seen: now(),
        };
        // Full: the later fragments go untranslated to the stack, which drops them; the sweep makes room.
        let _ = FRAGMENTS.insert(fragment_key(network, scope), value, 0);
    }
    Some(found)
}

#[inline(always)]
fn load_transport<F: Wire, T: Copy>(skb: &impl Packet, at: u32) -> Option<T> {
    if at == F::PLAIN_TRANSPORT {
        F::plain_transport(skb)
    } else {
        skb.load(at)
    }
}

#[inline(always)]
fn fragment_key<F: Wire>(network: &Network<F>, scope: u8) -> FragmentKey {
    FragmentKey {
        source: F::wide(network.source),
        destination: F::wide(network.destination),
        identification: network.identification,
        protocol: network.protocol,
        scope,
        zero: 0,
    }
}

#[inline(always)]
fn later_fragment<F: Wire>(network: &Network<F>, scope: u8) -> Option<Transport> {
    let known = FRAGMENTS.get_ptr(fragment_key(network, scope))?;
    // SAFETY: an element of the table; both ports are read in one go.
    let ports = unsafe { core::ptr::read_volatile(known) };
    Some(Transport {
        source_port: ports.source_port,
        destination_port: ports.destination_port,
        flags: 0,
        present: false,
    })
}

/// Offset of the network header of a packet with a link-layer header.
pub(crate) const NETWORK: u32 = ETHERNET;
