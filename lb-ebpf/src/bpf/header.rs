//! Parsing: network and transport headers of a packet.

use lb_ebpf::abi::address::{Address4, Address6};
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::fragment::{Fragment, FragmentKey, STACK_WAY};
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
    /// Where the packet says that it ends. Short frames go on, with padding.
    pub(crate) end: u32,
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
    /// Where in the header its checksum is; 0 without a header.
    pub(crate) checksum: u8,
    /// Of a later fragment: 1 if the first one went to the stack.
    pub(crate) stack_way: u8,
}

/// Where a header's checksum is.
pub(crate) const TCP_CHECKSUM: u8 = 16;
pub(crate) const UDP_CHECKSUM: u8 = 6;

/// Families as they are on the wire.
pub(crate) trait Wire: Tables {
    /// Protocol number of the family's ICMP.
    const ICMP: u8;
    /// Length of the network header without options or extension headers.
    const HEADER: u32;
    /// Whether an address can be the source of no packet that is to be answered: loopback, unspecified,
    /// multicast, broadcast and reserved ones (RFC 1122 §3.2.1.3, RFC 4291 §2.5, §2.7).
    fn is_martian(source: &Self::Addr) -> bool;
    /// Reads the network header at `offset`, of a packet or of the beginning of one that is quoted; `None` if it is broken
    /// or of a kind we leave alone.
    fn network(skb: &impl Packet, offset: u32) -> Option<Network<Self>>;
    /// Reads the packet's own network header.
    fn outer_network(skb: &impl Packet) -> Option<Network<Self>>;
    /// Reads what is behind a network header without options or extensions.
    fn plain_transport<T: Copy>(skb: &impl Packet) -> Option<T>;
}

/// Reads the network header of the packet in a frame, which must be there up to its end.
#[inline(always)]
pub(crate) fn packet<F: Wire>(skb: &impl Packet) -> Option<Network<F>> {
    packet_at(skb, NETWORK)
}

/// As [`packet`], behind a link-layer header of this length.
#[inline(always)]
pub(crate) fn packet_at<F: Wire>(skb: &impl Packet, link: u32) -> Option<Network<F>> {
    let network = if link == NETWORK {
        F::outer_network(skb)?
    } else {
        F::network(skb, link)?
    };
    (network.end <= skb.length()).then_some(network)
}

/// Where a packet ends whose header starts at `start` and says that `said` bytes follow. More than the header can say it
/// leaves open: no sender but a local one, whose frames are still to be cut, has such packets.
#[inline(always)]
fn end(skb: &impl Packet, start: u32, said: u16) -> u32 {
    if said == 0 && skb.is_segmented() {
        skb.length()
    } else {
        start + u32::from(said)
    }
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
    fn network(skb: &impl Packet, offset: u32) -> Option<Network<V4>> {
        understand4(skb, &skb.load(offset)?, offset)
    }

    #[inline(always)]
    fn outer_network(skb: &impl Packet) -> Option<Network<V4>> {
        understand4(skb, &skb.load_at::<Ipv4, NETWORK>()?, NETWORK)
    }

    #[inline(always)]
    fn plain_transport<T: Copy>(skb: &impl Packet) -> Option<T> {
        skb.load_at::<T, { NETWORK + V4::HEADER }>()
    }
}

#[inline(always)]
fn understand4(skb: &impl Packet, header: &Ipv4, offset: u32) -> Option<Network<V4>> {
    let length = u32::from(header.version_ihl & 15) * 4;
    let end = end(skb, offset, u16::from_be(header.total_length));
    if header.version_ihl >> 4 != 4 || length < 20 || end < offset + length {
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
        end,
        protocol: header.protocol,
        part,
        checksum: header.checksum,
        identification: u32::from(u16::from_be(header.identification)),
        hops: u32::from(header.ttl),
    })
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
    fn network(skb: &impl Packet, offset: u32) -> Option<Network<V6>> {
        understand6(skb, &skb.load(offset)?, offset)
    }

    #[inline(always)]
    fn outer_network(skb: &impl Packet) -> Option<Network<V6>> {
        understand6(skb, &skb.load_at::<Ipv6, NETWORK>()?, NETWORK)
    }

    #[inline(always)]
    fn plain_transport<T: Copy>(skb: &impl Packet) -> Option<T> {
        skb.load_at::<T, { NETWORK + V6::HEADER }>()
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
        end: end(skb, offset + 40, u16::from_be(header.payload_length)),
        protocol: header.next_header,
        part: Part::Whole,
        checksum: 0,
        identification: 0,
        hops: u32::from(header.hop_limit),
    };
    if matches!(found.protocol, TCP | UDP | ICMPV6) {
        return Some(found);
    }
    let led = skb.past_extensions(found.transport, found.protocol)?;
    if led.transport > found.end {
        return None;
    }
    found.transport = led.transport;
    found.protocol = led.protocol;
    found.part = led.part;
    found.identification = led.identification;
    Some(found)
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
        if found.is_none() {
            count(counter::FRAGMENT_UNKNOWN);
        }
        return found;
    }
    let Some(found) = whole_transport(skb, network) else {
        count(counter::MALFORMED);
        return None;
    };
    if network.part == Part::First {
        learn(network, &found, scope);
    }
    Some(found)
}

/// Reads a transport header, which must lie within its packet.
#[inline(always)]
pub(crate) fn whole_transport<F: Wire, P: Packet>(
    skb: &P,
    network: &Network<F>,
) -> Option<Transport> {
    let (_, at) = P::headers(network);
    match network.protocol {
        TCP => {
            if at + size_of::<WholeTcp>() as u32 > network.end {
                return None;
            }
            let header = load_transport::<F, WholeTcp>(skb, at)?.first;
            Some(Transport {
                source_port: u16::from_be(header.source_port),
                destination_port: u16::from_be(header.destination_port),
                flags: header.flags,
                present: true,
                checksum: TCP_CHECKSUM,
                stack_way: 0,
            })
        }
        UDP => {
            let header = load_transport::<F, Udp>(skb, at)?;
            let length = u32::from(u16::from_be(header.length));
            // Of a first fragment only the header has to be here.
            let needed = if network.part == Part::First {
                8
            } else {
                length
            };
            if length < 8 || at + needed > network.end {
                // A jumbogram's zero (RFC 2675) too: nobody load-balances those.
                return None;
            }
            Some(Transport {
                source_port: u16::from_be(header.source_port),
                destination_port: u16::from_be(header.destination_port),
                flags: 0,
                present: true,
                checksum: UDP_CHECKSUM,
                stack_way: 0,
            })
        }
        _ => None,
    }
}

#[inline(always)]
fn load_transport<F: Wire, T: Copy>(skb: &impl Packet, at: u32) -> Option<T> {
    if at == NETWORK + F::HEADER {
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

/// Notes the ports of a first fragment. Out of line for the callers' stacks.
#[inline(never)]
fn learn<F: Wire>(network: &Network<F>, found: &Transport, scope: u8) {
    let value = Fragment {
        source_port: found.source_port,
        destination_port: found.destination_port,
        seen: now(),
    };
    // A full table gives up the oldest entry, whose packet is through or lost by then.
    let _ = FRAGMENTS.insert(fragment_key(network, scope), value, 0);
}

#[inline(always)]
fn later_fragment<F: Wire>(network: &Network<F>, scope: u8) -> Option<Transport> {
    let ports = known_ports(network, scope);
    (ports & KNOWN != 0).then_some(Transport {
        source_port: (ports >> 16) as u16,
        destination_port: ports as u16,
        flags: 0,
        present: false,
        checksum: 0,
        stack_way: (ports >> 33) as u8 & 1,
    })
}

/// Tells that ports are known.
const KNOWN: u64 = 1 << 32;

/// Source and destination port of a later fragment's packet as one number, with [`KNOWN`] and behind that a bit for
/// [`STACK_WAY`]; else 0. Out of line for the callers' stacks.
#[inline(never)]
fn known_ports<F: Wire>(network: &Network<F>, scope: u8) -> u64 {
    let Some(known) = FRAGMENTS.get_ptr(fragment_key(network, scope)) else {
        return 0;
    };
    // SAFETY: an element of the table, read in one go.
    let known = unsafe { core::ptr::read_volatile(known) };
    let stack_way = u64::from(known.seen & STACK_WAY) << 2;
    KNOWN | stack_way | u64::from(known.source_port) << 16 | u64::from(known.destination_port)
}

/// Makes the later fragments of this first one follow it to the stack. Out of line for the callers' stacks.
#[inline(never)]
pub(crate) fn lead_to_stack<F: Wire>(network: &Network<F>, scope: u8) {
    if let Some(known) = FRAGMENTS.get_ptr_mut(fragment_key(network, scope)) {
        // SAFETY: an element of the table; reused this instant, it takes another packet's fragments the longer way.
        unsafe { (*known).seen |= STACK_WAY };
    }
}

/// Offset of the network header of a packet with a link-layer header.
pub(crate) const NETWORK: u32 = ETHERNET;
