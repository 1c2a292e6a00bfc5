//! Packets written as prose: `tcp(client, vip).syn()` is a whole frame with right lengths and checksums.
//!
//! What a program should make of a packet is written the same way, from scratch: `request.clone().to(endpoint)`
//! has its checksums computed anew and slowly, so a frame that was translated by increments must equal it byte
//! for byte. [`text`] tells two frames apart in words. Nothing here is shared with the programs.

pub mod text;
mod wire;

use std::net::{IpAddr, SocketAddr};

pub use wire::checksum;

pub const FIN: u16 = 1;
pub const SYN: u16 = 2;
pub const RST: u16 = 4;
pub const PSH: u16 = 8;
pub const ACK: u16 = 16;

/// MAC address of whoever sends a packet.
pub const HERE: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// MAC address of whom it is sent to.
pub const THERE: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Anything that is a frame.
pub trait Frame {
    /// Its bytes, from the Ethernet header on.
    fn frame(&self) -> Vec<u8>;
}

impl Frame for Vec<u8> {
    fn frame(&self) -> Vec<u8> {
        self.clone()
    }
}

impl Frame for Packet {
    fn frame(&self) -> Vec<u8> {
        wire::frame(self)
    }
}

/// One IP packet in an Ethernet frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    pub macs: ([u8; 6], [u8; 6]),
    /// Ethertype and id of the VLAN tags in the frame, outermost first.
    pub tags: Vec<(u16, u16)>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ttl: u8,
    pub identification: u32,
    pub dont_fragment: bool,
    /// Offset in bytes, and whether more follow.
    pub fragment: Option<(u16, bool)>,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: kind and bytes. The first two bytes of each are filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub body: Body,
}

/// What an IP packet carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    Tcp(Tcp),
    Udp(Udp),
    Icmp(Icmp),
    /// A later fragment, or a protocol of which nothing is known here.
    Bytes(u8, Vec<u8>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tcp {
    pub ports: (u16, u16),
    pub sequence: u32,
    pub acknowledgement: u32,
    /// The nine flag bits.
    pub flags: u16,
    pub window: u16,
    pub options: Vec<u8>,
    pub data: Vec<u8>,
    pub checksum: Checksum,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Udp {
    pub ports: (u16, u16),
    pub data: Vec<u8>,
    pub checksum: Checksum,
}

/// An ICMP or ICMPv6 message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    /// The four bytes behind the checksum.
    pub rest: [u8; 4],
    /// What follows: data, or a quoted packet without its Ethernet header.
    pub data: Vec<u8>,
}

/// What the checksum field of a transport header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    Right,
    /// Off by this much, as a damaged packet's.
    Wrong(u16),
    /// UDP over IPv4: none.
    Zero,
    /// This, whatever the packet.
    Fixed(u16),
}

fn ip(source: IpAddr, destination: IpAddr, body: Body) -> Packet {
    assert_eq!(
        source.is_ipv4(),
        destination.is_ipv4(),
        "{source} and {destination} are of two families"
    );
    Packet {
        macs: (HERE, THERE),
        tags: Vec::new(),
        source,
        destination,
        ttl: 64,
        identification: 0x4242,
        dont_fragment: true,
        fragment: None,
        options: Vec::new(),
        extensions: Vec::new(),
        body,
    }
}

/// A TCP segment with ACK alone.
pub fn tcp(from: SocketAddr, to: SocketAddr) -> Packet {
    let tcp = Tcp {
        ports: (from.port(), to.port()),
        sequence: 1_000_000,
        acknowledgement: 2_000_000,
        flags: ACK,
        window: 64_240,
        options: Vec::new(),
        data: Vec::new(),
        checksum: Checksum::Right,
    };
    ip(from.ip(), to.ip(), Body::Tcp(tcp))
}

/// A UDP datagram with a few bytes of data.
pub fn udp(from: SocketAddr, to: SocketAddr) -> Packet {
    let udp = Udp {
        ports: (from.port(), to.port()),
        data: b"question".to_vec(),
        checksum: Checksum::Right,
    };
    ip(from.ip(), to.ip(), Body::Udp(udp))
}

/// An echo request.
pub fn echo(from: IpAddr, to: IpAddr) -> Packet {
    let kind = if from.is_ipv4() { 8 } else { 128 };
    icmp(from, to, kind, 0, [0, 7, 0, 1], b"ping".to_vec())
}

/// A packet of another protocol.
pub fn other(from: IpAddr, to: IpAddr, protocol: u8, bytes: &[u8]) -> Packet {
    ip(from, to, Body::Bytes(protocol, bytes.to_vec()))
}

/// An ICMP or ICMPv6 message.
pub fn icmp(from: IpAddr, to: IpAddr, kind: u8, code: u8, rest: [u8; 4], data: Vec<u8>) -> Packet {
    let message = Icmp {
        kind,
        code,
        rest,
        data,
    };
    let mut packet = ip(from, to, Body::Icmp(message));
    packet.dont_fragment = false;
    packet
}

/// "Nobody listens on that port", about a packet.
pub fn port_unreachable(from: IpAddr, about: &Packet) -> Packet {
    let (kind, code) = if from.is_ipv4() { (3, 3) } else { (1, 4) };
    icmp(from, about.source, kind, code, [0; 4], about.quoted())
}

/// "That packet is too large": fragmentation needed, or packet too big.
pub fn too_big(from: IpAddr, mtu: u16, about: &Packet) -> Packet {
    let [high, low] = mtu.to_be_bytes();
    let (kind, code) = if from.is_ipv4() { (3, 4) } else { (2, 0) };
    icmp(
        from,
        about.source,
        kind,
        code,
        [0, 0, high, low],
        about.quoted(),
    )
}

/// "That packet was on the way for too long."
pub fn time_exceeded(from: IpAddr, about: &Packet) -> Packet {
    let kind = if from.is_ipv4() { 11 } else { 3 };
    icmp(from, about.source, kind, 0, [0; 4], about.quoted())
}

/// "Send such packets to `target` instead." IPv6 carries the packet in an option (RFC 4861 §4.5, §4.6.3).
pub fn redirect(from: IpAddr, target: IpAddr, about: &Packet) -> Packet {
    match (target, about.destination) {
        (IpAddr::V4(target), _) => icmp(from, about.source, 5, 1, target.octets(), about.quoted()),
        (IpAddr::V6(target), IpAddr::V6(destination)) => {
            let mut quote = about.quoted();
            quote.resize(quote.len().next_multiple_of(8), 0);
            let mut data = [target.octets(), destination.octets()].concat();
            // The target's link-layer address, then the packet.
            data.extend([2, 1, 2, 0, 0, 0, 0, 9]);
            data.extend([4, (quote.len() / 8 + 1) as u8, 0, 0, 0, 0, 0, 0]);
            data.extend(quote);
            icmp(from, about.source, 137, 0, [0; 4], data)
        }
        _ => panic!("a redirect to {target} of the other family"),
    }
}

impl Packet {
    /// From another address and port.
    pub fn from(mut self, end: SocketAddr) -> Self {
        self.source = end.ip();
        if let Some(ports) = self.ports_mut() {
            ports.0 = end.port();
        }
        self
    }

    /// To another address and port.
    pub fn to(mut self, end: SocketAddr) -> Self {
        self.destination = end.ip();
        if let Some(ports) = self.ports_mut() {
            ports.1 = end.port();
        }
        self
    }

    /// From another address, the port as it is.
    pub fn from_address(mut self, address: IpAddr) -> Self {
        self.source = address;
        self
    }

    /// To another address, the port as it is.
    pub fn to_address(mut self, address: IpAddr) -> Self {
        self.destination = address;
        self
    }

    /// With both MAC addresses exchanged, as a packet that goes back where it came from.
    pub fn turned_back(mut self) -> Self {
        self.macs = (self.macs.1, self.macs.0);
        self
    }

    pub fn flags(mut self, flags: u16) -> Self {
        self.tcp_mut().flags = flags;
        self
    }

    /// The first segment of a connection.
    pub fn syn(mut self) -> Self {
        self.tcp_mut().acknowledgement = 0;
        self.flags(SYN).tcp_options(&[2, 4, 5, 180, 1, 3, 3, 7])
    }

    pub fn syn_ack(self) -> Self {
        self.flags(SYN | ACK).tcp_options(&[2, 4, 5, 180])
    }

    pub fn fin(self) -> Self {
        self.flags(FIN | ACK)
    }

    pub fn rst(self) -> Self {
        self.flags(RST)
    }

    pub fn sequence(mut self, sequence: u32, acknowledgement: u32) -> Self {
        let tcp = self.tcp_mut();
        (tcp.sequence, tcp.acknowledgement) = (sequence, acknowledgement);
        self
    }

    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        self.tcp_mut().options = options.to_vec();
        self
    }

    /// With these data.
    pub fn carrying(mut self, data: &[u8]) -> Self {
        match &mut self.body {
            Body::Tcp(tcp) => tcp.data = data.to_vec(),
            Body::Udp(udp) => udp.data = data.to_vec(),
            Body::Icmp(icmp) => icmp.data = data.to_vec(),
            Body::Bytes(_, bytes) => *bytes = data.to_vec(),
        }
        self
    }

    pub fn checksum(mut self, checksum: Checksum) -> Self {
        match &mut self.body {
            Body::Tcp(tcp) => tcp.checksum = checksum,
            Body::Udp(udp) => udp.checksum = checksum,
            Body::Icmp(_) | Body::Bytes(..) => panic!("no transport checksum in {self:?}"),
        }
        self
    }

    /// With the transport checksum that `other` has, right or not.
    pub fn with_checksum_of(self, other: &Packet) -> Self {
        let checksum = wire::transport_checksum(other);
        self.checksum(Checksum::Fixed(checksum))
    }

    /// With IPv4 options.
    pub fn options(mut self, options: &[u8]) -> Self {
        assert!(self.source.is_ipv4() && options.len().is_multiple_of(4));
        self.options = options.to_vec();
        self
    }

    /// With one more IPv6 extension header of `units` times eight bytes, filled with padding.
    pub fn extension(mut self, kind: u8, units: usize) -> Self {
        let mut bytes = vec![0; units * 8];
        if matches!(kind, 0 | 60) {
            // PadN over all that follows the two fixed bytes (RFC 8200 §4.2).
            bytes[2] = 1;
            bytes[3] = (units * 8 - 4) as u8;
        }
        self.extensions.push((kind, bytes));
        self
    }

    pub fn hop_by_hop(self) -> Self {
        self.extension(0, 1)
    }

    pub fn routing(self) -> Self {
        self.extension(43, 3)
    }

    pub fn destination_options(self) -> Self {
        self.extension(60, 2)
    }

    /// In a VLAN; called twice, the second tag is the inner one.
    pub fn vlan(mut self, id: u16) -> Self {
        self.tags.push((0x8100, id));
        self
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// The packet in pieces of `size` bytes each, which must be a multiple of eight.
    pub fn fragments(&self, size: usize) -> Vec<Packet> {
        wire::fragments(self, size)
    }

    /// The packet as an ICMP error quotes it here: from its IP header on, 128 bytes at most.
    pub fn quoted(&self) -> Vec<u8> {
        let mut bytes = self.clone().untagged().frame().split_off(14);
        bytes.truncate(128);
        bytes
    }

    /// For ICMP errors: with a quote cut to `length` bytes.
    pub fn quoting_only(mut self, length: usize) -> Self {
        match &mut self.body {
            Body::Icmp(icmp) => icmp.data.truncate(length),
            _ => panic!("no ICMP message: {self:?}"),
        }
        self
    }

    /// Source and destination port, if it has any.
    pub fn ports(&self) -> Option<(u16, u16)> {
        match &self.body {
            Body::Tcp(tcp) => Some(tcp.ports),
            Body::Udp(udp) => Some(udp.ports),
            Body::Icmp(_) | Body::Bytes(..) => None,
        }
    }

    pub fn is_tcp(&self) -> bool {
        matches!(self.body, Body::Tcp(_))
    }

    fn untagged(mut self) -> Self {
        self.tags.clear();
        self
    }

    fn tcp_mut(&mut self) -> &mut Tcp {
        match &mut self.body {
            Body::Tcp(tcp) => tcp,
            other => panic!("no TCP segment: {other:?}"),
        }
    }

    fn ports_mut(&mut self) -> Option<&mut (u16, u16)> {
        match &mut self.body {
            Body::Tcp(tcp) => Some(&mut tcp.ports),
            Body::Udp(udp) => Some(&mut udp.ports),
            Body::Icmp(_) | Body::Bytes(..) => None,
        }
    }
}
