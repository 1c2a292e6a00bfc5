//! Frames taken apart and put together: Ethernet, IPv4 with options, IPv6 with extension headers, TCP,
//! UDP, ICMP and ICMPv6.
//!
//! Whatever is not an address, a port or a checksum is kept as bytes, so that writing a frame that was read gives
//! the very same bytes. Rules of what counts as malformed: RFC 791, 8200, 9293, 768 and the robustness matrix.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::sum;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMP6: u8 = 58;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// Addresses and ports of a packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Tuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
}

impl Tuple {
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// A frame that carries a whole IP header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Link-layer header.
    pub link: Vec<u8>,
    pub packet: Packet,
    /// What the link layer added behind the IP packet.
    pub trailer: Vec<u8>,
}

/// An IP packet, or its beginning inside an ICMP error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// IP header with options or extension headers, as read.
    pub head: Vec<u8>,
    /// What follows the headers.
    pub protocol: u8,
    pub piece: Option<Piece>,
    /// A routing header names further stops, so the destination is not the last one.
    pub waypoint: bool,
    pub load: Vec<u8>,
}

/// What an IP header says of a fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    pub identification: u32,
    /// In units of eight bytes.
    pub offset: u16,
    pub more: bool,
}

/// Why a frame cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreadable {
    /// It carries something else than IP.
    Foreign,
    /// Its headers contradict themselves or end early.
    Malformed,
}

/// Extension headers a packet may have before it counts as malformed.
pub const MOST_EXTENSIONS: usize = 8;

impl Frame {
    pub fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        // A tag in a frame is a VLAN's whose device will meet the packet without it.
        let kind = word(bytes, 12).ok_or(Unreadable::Foreign)?;
        let at = 14;
        let version = match kind {
            0x0800 => 4,
            0x86dd => 6,
            _ => return Err(Unreadable::Foreign),
        };
        let (link, rest) = bytes.split_at_checked(at).ok_or(Unreadable::Malformed)?;
        let (packet, length) = Packet::read(rest, version, true)?;
        Ok(Self {
            link: link.to_vec(),
            packet,
            trailer: rest[length..].to_vec(),
        })
    }

    pub fn write(&self) -> Vec<u8> {
        [&self.link[..], &self.packet.write(), &self.trailer].concat()
    }

    /// The same frame in the other direction of the link.
    pub fn turned(&self) -> Self {
        let mut frame = self.clone();
        frame.link[..6].copy_from_slice(&self.link[6..12]);
        frame.link[6..12].copy_from_slice(&self.link[..6]);
        frame
    }
}

impl Packet {
    /// Reads a packet and tells its length. A `whole` one has all the bytes its header promises.
    pub fn read(bytes: &[u8], version: u8, whole: bool) -> Result<(Self, usize), Unreadable> {
        if bytes.first().ok_or(Unreadable::Malformed)? >> 4 != version {
            return Err(Unreadable::Malformed);
        }
        let packet = if version == 4 {
            Self::read4(bytes, whole)
        } else {
            Self::read6(bytes, whole)
        };
        packet.ok_or(Unreadable::Malformed)
    }

    fn read4(bytes: &[u8], whole: bool) -> Option<(Self, usize)> {
        let header = usize::from(bytes[0] & 15) * 4;
        let promised = usize::from(word(bytes, 2)?);
        if header < 20 || promised < header || (whole && promised > bytes.len()) {
            return None;
        }
        let length = promised.min(bytes.len());
        let head = bytes.get(..header)?.to_vec();
        let (id, place) = (word(bytes, 4)?, word(bytes, 6)?);
        let (offset, more) = (place & 0x1fff, place & 0x2000 != 0);
        let address = |at: usize| -> IpAddr {
            Ipv4Addr::new(head[at], head[at + 1], head[at + 2], head[at + 3]).into()
        };
        let packet = Self {
            source: address(12),
            destination: address(16),
            protocol: head[9],
            piece: (offset > 0 || more).then_some(Piece {
                identification: id.into(),
                offset,
                more,
            }),
            waypoint: false,
            load: bytes[header..length].to_vec(),
            head,
        };
        Some((packet, length))
    }

    fn read6(bytes: &[u8], whole: bool) -> Option<(Self, usize)> {
        let promised = 40 + usize::from(word(bytes, 4)?);
        if bytes.len() < 40 || (whole && promised > bytes.len()) {
            return None;
        }
        let length = promised.min(bytes.len());
        let address = |at: usize| -> IpAddr {
            let octets: [u8; 16] = bytes[at..at + 16].try_into().expect("16 bytes");
            Ipv6Addr::from(octets).into()
        };
        let mut chain = Chain {
            protocol: bytes[6],
            at: 40,
            ..Chain::default()
        };
        while chain.step(&bytes[..length])? {}
        let packet = Self {
            source: address(8),
            destination: address(24),
            head: bytes[..chain.at].to_vec(),
            protocol: chain.protocol,
            piece: chain.piece,
            waypoint: chain.waypoint,
            load: bytes[chain.at..length].to_vec(),
        };
        Some((packet, length))
    }

    pub fn write(&self) -> Vec<u8> {
        let mut head = self.head.clone();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let before = head_sum(&head);
                head[12..16].copy_from_slice(&source.octets());
                head[16..20].copy_from_slice(&destination.octets());
                let field = word(&head, 10).expect("20 bytes");
                let field = sum::carry(field, before, head_sum(&head));
                head[10..12].copy_from_slice(&field.to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                head[8..24].copy_from_slice(&source.octets());
                head[24..40].copy_from_slice(&destination.octets());
            }
            _ => unreachable!("one packet has one family"),
        }
        [&head[..], &self.load].concat()
    }

    /// The transport header is here rather than in an earlier fragment.
    pub fn is_first(&self) -> bool {
        self.piece.is_none_or(|piece| piece.offset == 0)
    }

    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// TCP's or UDP's ports, if at least they are there.
    pub fn ports(&self) -> Option<(u16, u16)> {
        if !self.is_first() || !matches!(self.protocol, TCP | UDP) {
            return None;
        }
        Some((word(&self.load, 0)?, word(&self.load, 2)?))
    }

    pub fn tuple(&self) -> Option<Tuple> {
        self.ports()
            .map(|(source_port, destination_port)| self.tuple_with(source_port, destination_port))
    }

    /// Addresses from here, ports from elsewhere.
    pub fn tuple_with(&self, source_port: u16, destination_port: u16) -> Tuple {
        Tuple {
            source: self.source,
            destination: self.destination,
            source_port,
            destination_port,
        }
    }

    /// The transport header is whole and fits its packet.
    pub fn has_sound_transport(&self) -> bool {
        match self.protocol {
            // Options are the ends' affair.
            TCP => self.load.len() >= 20,
            UDP => {
                let length = word(&self.load, 4).map_or(0, usize::from);
                // An atomic fragment is a whole packet (RFC 6946).
                let part = self
                    .piece
                    .is_some_and(|piece| piece.more || piece.offset > 0);
                let fits = part || length <= self.load.len();
                self.load.len() >= 8 && length >= 8 && fits
            }
            _ => true,
        }
    }

    /// TCP's flags byte.
    pub fn flags(&self) -> Option<u8> {
        (self.protocol == TCP && self.is_first())
            .then(|| self.load.get(13).copied())
            .flatten()
    }

    /// Offset of the transport checksum in the load.
    fn sum_offset(&self) -> Option<usize> {
        let offset = match self.protocol {
            TCP => 16,
            UDP => 6,
            ICMP | ICMP6 => 2,
            _ => return None,
        };
        (self.is_first() && self.load.len() >= offset + 2).then_some(offset)
    }

    /// The transport checksum in the packet.
    pub fn sum_field(&self) -> Option<u16> {
        self.sum_offset().and_then(|at| word(&self.load, at))
    }

    /// What the transport checksum ought to be, over what is here of the load.
    pub fn right_sum(&self) -> Option<u16> {
        let at = self.sum_offset()?;
        let mut load = self.load.clone();
        load[at..at + 2].fill(0);
        Some(sum::of(&[&self.pseudo_header(), &load]))
    }

    /// Writes the right transport checksum, and for IPv4 the right header checksum.
    pub fn seal(&mut self) {
        if self.is_v4() {
            let right = head_sum(&self.head);
            self.head[10..12].copy_from_slice(&right.to_be_bytes());
        }
        if let (Some(at), Some(right)) = (self.sum_offset(), self.right_sum()) {
            let right = if self.protocol == UDP && right == 0 {
                0xffff
            } else {
                right
            };
            self.load[at..at + 2].copy_from_slice(&right.to_be_bytes());
        }
    }

    /// The packet with other addresses and, if this one has them, ports. Checksums follow.
    pub fn translated(&self, to: Tuple) -> Self {
        let mut new = self.readdressed(to);
        new.settle_sum(self);
        new
    }

    /// The same with the transport's checksum left as it is.
    pub fn readdressed(&self, to: Tuple) -> Self {
        let mut new = self.clone();
        new.source = to.source;
        new.destination = to.destination;
        if self.ports().is_some() {
            new.load[..2].copy_from_slice(&to.source_port.to_be_bytes());
            new.load[2..4].copy_from_slice(&to.destination_port.to_be_bytes());
        }
        new
    }

    /// Brings the transport checksum from what it was in `old` to what it is to be here.
    pub fn settle_sum(&mut self, old: &Self) {
        let (Some(at), Some(field), Some(before)) =
            (self.sum_offset(), old.sum_field(), old.right_sum())
        else {
            return;
        };
        // RFC 768: zero says that there is none.
        if self.protocol == UDP && field == 0 {
            return;
        }
        self.load[at..at + 2].fill(0);
        let after = self.right_sum().expect("it has a place");
        let mut new = sum::carry(field, before, after);
        if self.protocol == UDP && new == 0 {
            new = 0xffff;
        }
        self.load[at..at + 2].copy_from_slice(&new.to_be_bytes());
    }

    fn pseudo_header(&self) -> Vec<u8> {
        let length = self.load.len() as u32;
        match (self.source, self.destination) {
            (IpAddr::V4(_), _) if self.protocol == ICMP => Vec::new(),
            (IpAddr::V4(source), IpAddr::V4(destination)) => [
                &source.octets()[..],
                &destination.octets(),
                &[0, self.protocol],
                &(length as u16).to_be_bytes(),
            ]
            .concat(),
            (IpAddr::V6(source), IpAddr::V6(destination)) => [
                &source.octets()[..],
                &destination.octets(),
                &length.to_be_bytes(),
                &[0, 0, 0, self.protocol],
            ]
            .concat(),
            _ => unreachable!("one packet has one family"),
        }
    }
}

/// A walk along extension headers.
#[derive(Default)]
struct Chain {
    protocol: u8,
    at: usize,
    seen: usize,
    piece: Option<Piece>,
    waypoint: bool,
}

impl Chain {
    /// Passes one header; `Some(false)` at the end of the chain, `None` where it breaks off.
    fn step(&mut self, bytes: &[u8]) -> Option<bool> {
        // Behind a later fragment's header there is no header, only its share of the load.
        if self.piece.is_some_and(|piece| piece.offset > 0) {
            return Some(false);
        }
        let length = match self.protocol {
            // Hop-by-hop, routing, destination options (RFC 8200), then the fragment and authentication headers.
            0 | 43 | 60 => (usize::from(*bytes.get(self.at + 1)?) + 1) * 8,
            44 => 8,
            51 => (usize::from(*bytes.get(self.at + 1)?) + 2) * 4,
            _ => return Some(false),
        };
        let header = bytes.get(self.at..self.at + length)?;
        self.seen += 1;
        if self.seen > MOST_EXTENSIONS {
            return None;
        }
        match self.protocol {
            43 => self.waypoint |= *header.get(3)? > 0,
            44 => {
                let place = word(header, 2)?;
                let id = u32::from(word(header, 4)?) << 16 | u32::from(word(header, 6)?);
                self.piece = Some(Piece {
                    identification: id,
                    offset: place >> 3,
                    more: place & 1 != 0,
                });
            }
            _ => {}
        }
        self.protocol = header[0];
        self.at += length;
        Some(true)
    }
}

fn head_sum(head: &[u8]) -> u16 {
    let mut head = head.to_vec();
    head[10..12].fill(0);
    sum::of(&[&head])
}

/// A big-endian 16-bit word.
pub fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}
