//! Parsing: network and transport headers of a packet.

use lb_ebpf::abi::address::{Address4, Address6};
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::fragment::{Fragment, FragmentKey};
use lb_ebpf::abi::{TCP, UDP, counter};

use crate::lookup::now;
use crate::maps::{FRAGMENTS, Tables};
use crate::packet::Packet;
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
    /// Zero: without it two bytes would be padding, and copying those is a read of uninitialised stack.
    #[expect(dead_code, reason = "it only fills what would be padding")]
    pub(crate) zero: u16,
    pub(crate) identification: u32,
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
    /// Length of the network header without options or extension headers.
    const HEADER: u32;
    /// Whether an address can be the source of no packet that is to be answered: loopback, unspecified,
    /// multicast, broadcast and reserved ones (RFC 1122 §3.2.1.3, RFC 4291 §2.5, §2.7).
    fn is_martian(source: &Self::Addr) -> bool;
    /// Reads the network header at `offset`; `None` if it is broken or of a kind we leave alone.
    fn network<P: Packet>(skb: &P, offset: u32) -> Option<Network<Self>>;
}

impl Wire for V4 {
    const ICMP: u8 = ICMP;
    const HEADER: u32 = 20;

    #[inline(always)]
    fn is_martian(source: &Address4) -> bool {
        let first = source.octets[0];
        // As Linux: class E is like any other but for the broadcast address.
        first == 0 || first == 127 || first & 0xf0 == 224 || source.word() == u32::MAX
    }

    #[inline(always)]
    fn network<P: Packet>(skb: &P, offset: u32) -> Option<Network<V4>> {
        let header: Ipv4 = skb.load(offset)?;
        let length = u32::from(header.version_ihl & 15) * 4;
        if header.version_ihl >> 4 != 4
            || length < 20
            || u32::from(u16::from_be(header.total_length)) < length
                && !(header.total_length == 0 && skb.is_to_be_cut())
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
            zero: 0,
            identification: u32::from(u16::from_be(header.identification)),
        })
    }
}

impl Wire for V6 {
    const ICMP: u8 = ICMPV6;
    const HEADER: u32 = 40;

    #[inline(always)]
    fn is_martian(source: &Address6) -> bool {
        let [a, b, c, d] = source.words();
        source.octets[0] == 0xff || a | b | c == 0 && d & !1_u32.to_be() == 0
    }

    #[inline(always)]
    fn network<P: Packet>(skb: &P, offset: u32) -> Option<Network<V6>> {
        let header: Ipv6 = skb.load(offset)?;
        if (u32::from_be(header.version_class_label) >> 28) != 6 {
            return None;
        }
        let mut walk = Walk {
            at: offset + Self::HEADER,
            identification: 0,
            protocol: header.next_header,
            part: Part::Whole,
            zero: 0,
        };
        if P::WALKS && !matches!(walk.protocol, TCP | UDP | ICMPV6) && !walk.on(*skb) {
            return None;
        }
        Some(Network {
            source: header.source,
            destination: header.destination,
            offset,
            transport: walk.at,
            protocol: walk.protocol,
            part: walk.part,
            zero: 0,
            identification: walk.identification,
        })
    }
}

/// Where a walk over IPv6 extension headers has come to.
struct Walk {
    at: u32,
    identification: u32,
    protocol: u8,
    part: Part,
    /// Zero: what would be padding.
    #[expect(dead_code, reason = "it only fills what would be padding")]
    zero: u16,
}

impl Walk {
    /// Walks to the transport header, or to a later fragment's data; false if there is no way.
    ///
    /// Six steps (RFC 8200 allows more, nobody sends them), written out: a loader without CAP_PERFMON has its
    /// loops followed beyond their end, as a CPU that mispredicts might go on, and this one would have no other
    /// ("sequence of 8193 jumps is too complex").
    #[inline(always)]
    fn on<P: Packet>(&mut self, skb: P) -> bool {
        let mut step = extension(skb, self);
        if step == WALK {
            step = extension(skb, self);
        }
        if step == WALK {
            step = extension(skb, self);
        }
        if step == WALK {
            step = extension(skb, self);
        }
        if step == WALK {
            step = extension(skb, self);
        }
        if step == WALK {
            step = extension(skb, self);
        }
        step == ARRIVED
    }
}

/// What a step led to: perhaps another extension header, an end, nothing we know.
const WALK: u32 = 0;
const ARRIVED: u32 = 1;
const LOST: u32 = 2;

/// Steps over an IPv6 extension header, if there is one where the walk has come to.
#[inline(never)]
fn extension<P: Packet>(skb: P, walk: &mut Walk) -> u32 {
    match walk.protocol {
        // Hop-by-hop, routing, destination options (RFC 8200 §4).
        0 | 43 | 60 => {
            let Some([next, length, _, segments_left]) = skb.load::<[u8; 4]>(walk.at) else {
                return LOST;
            };
            if walk.protocol == 43 && segments_left != 0 {
                // The destination is only the next stop.
                return LOST;
            }
            walk.protocol = next;
            walk.at += (u32::from(length) + 1) * 8;
            WALK
        }
        // Fragment header (RFC 8200 §4.5).
        44 => {
            let Some(header) = skb.load::<[u32; 2]>(walk.at) else {
                return LOST;
            };
            let [next, _, high, low] = header[0].to_ne_bytes();
            let offset_flags = u16::from_be_bytes([high, low]);
            walk.protocol = next;
            walk.at += 8;
            walk.identification = u32::from_be(header[1]);
            walk.part = match (offset_flags >> 3, offset_flags & 1) {
                (0, 0) => Part::Whole,
                (0, _) => Part::First,
                _ => Part::Later,
            };
            if walk.part == Part::Later {
                ARRIVED
            } else {
                WALK
            }
        }
        // Authentication header (RFC 4302): length in words, minus two.
        51 => {
            let Some([next, length]) = skb.load::<[u8; 2]>(walk.at) else {
                return LOST;
            };
            walk.protocol = next;
            walk.at += (u32::from(length) + 2) * 4;
            WALK
        }
        _ => ARRIVED,
    }
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
        return later_fragment(network, scope);
    }
    let (_, at) = P::headers(network);
    let found = match network.protocol {
        TCP => {
            let header = skb.load::<WholeTcp>(at)?.first;
            Transport {
                source_port: u16::from_be(header.source_port),
                destination_port: u16::from_be(header.destination_port),
                flags: header.flags,
                present: true,
            }
        }
        UDP => {
            let header: Udp = skb.load(at)?;
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
    let Some(known) = FRAGMENTS.get_ptr(fragment_key(network, scope)) else {
        count(counter::FRAGMENT_UNKNOWN);
        return None;
    };
    // SAFETY: an element of the table; both ports are read in one go.
    let ports = unsafe { core::ptr::read_volatile(known) };
    Some(Transport {
        source_port: ports.source_port,
        destination_port: ports.destination_port,
        flags: 0,
        present: false,
    })
}
