//! From a described packet to its bytes, the slow and obvious way (RFC 791, 768, 9293, 792, 8200, 4443).

use std::net::IpAddr;

use super::{Body, Checksum, Packet, Udp};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The Internet checksum of some bytes (RFC 1071): the complement of their sum as a number modulo 65535.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut words: Vec<u64> = Vec::new();
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        words.push(u64::from(pair[0]) * 256 + u64::from(low));
    }
    let total: u64 = words.iter().sum();
    let sum = match total % 65_535 {
        // Ones' complement has two zeros; only a sum of nothing but zeros is the positive one.
        0 if total != 0 => 65_535,
        remainder => remainder,
    };
    65_535 - sum as u16
}

pub(super) fn frame(packet: &Packet) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(packet.macs.1);
    bytes.extend(packet.macs.0);
    for (kind, id) in &packet.tags {
        bytes.extend(kind.to_be_bytes());
        bytes.extend(id.to_be_bytes());
    }
    let payload = transport(packet);
    if packet.source.is_ipv4() {
        bytes.extend([0x08, 0x00]);
        bytes.extend(ipv4(packet, payload.len()));
    } else {
        bytes.extend([0x86, 0xdd]);
        bytes.extend(ipv6(packet, payload.len()));
    }
    bytes.extend(payload);
    bytes
}

pub(super) fn fragments(packet: &Packet, size: usize) -> Vec<Packet> {
    assert!(
        size.is_multiple_of(8) && size > 0,
        "fragments end at multiples of 8"
    );
    let whole = transport(packet);
    let count = whole.len().div_ceil(size);
    let piece = |(number, bytes): (usize, &[u8])| Packet {
        dont_fragment: false,
        fragment: Some(((number * size) as u16, number + 1 < count)),
        body: Body::Bytes(protocol(&packet.body, packet.source), bytes.to_vec()),
        ..packet.clone()
    };
    whole.chunks(size).enumerate().map(piece).collect()
}

/// What the transport checksum field of a packet says.
pub(super) fn transport_checksum(packet: &Packet) -> u16 {
    let at = match packet.body {
        Body::Tcp(_) => 16,
        Body::Udp(_) => 6,
        Body::Icmp(_) => 2,
        Body::Bytes(..) => panic!("no transport header: {packet:?}"),
    };
    let bytes = transport(packet);
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn protocol(body: &Body, address: IpAddr) -> u8 {
    match body {
        Body::Tcp(_) => TCP,
        Body::Udp(_) => UDP,
        Body::Icmp(_) if address.is_ipv4() => 1,
        Body::Icmp(_) => 58,
        Body::Bytes(protocol, _) => *protocol,
    }
}

fn ipv4(packet: &Packet, payload: usize) -> Vec<u8> {
    let length = 20 + packet.options.len();
    let (offset, more) = packet.fragment.unwrap_or((0, false));
    let flags = (u16::from(packet.dont_fragment) << 14) | (u16::from(more) << 13);
    let mut header = vec![0x40 | (length / 4) as u8, 0];
    header.extend(((length + payload) as u16).to_be_bytes());
    header.extend((packet.identification as u16).to_be_bytes());
    header.extend((flags | (offset / 8)).to_be_bytes());
    header.extend([packet.ttl, protocol(&packet.body, packet.source), 0, 0]);
    header.extend(octets(packet.source));
    header.extend(octets(packet.destination));
    header.extend(&packet.options);
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    header
}

fn ipv6(packet: &Packet, payload: usize) -> Vec<u8> {
    let mut chain = packet.extensions.clone();
    if let Some((offset, more)) = packet.fragment {
        let mut fragment = vec![0, 0];
        fragment.extend((offset | u16::from(more)).to_be_bytes());
        fragment.extend(packet.identification.to_be_bytes());
        chain.push((44, fragment));
    }
    let mut kinds: Vec<u8> = chain.iter().map(|(kind, _)| *kind).collect();
    kinds.push(protocol(&packet.body, packet.source));
    let mut extensions = Vec::new();
    for (number, (kind, bytes)) in chain.iter().enumerate() {
        let mut bytes = bytes.clone();
        bytes[0] = kinds[number + 1];
        match kind {
            // The fragment header has no length.
            44 => {}
            // The authentication header counts words, minus two (RFC 4302).
            51 => bytes[1] = (bytes.len() / 4 - 2) as u8,
            _ => bytes[1] = (bytes.len() / 8 - 1) as u8,
        }
        extensions.extend(bytes);
    }
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(((extensions.len() + payload) as u16).to_be_bytes());
    header.extend([kinds[0], packet.ttl]);
    header.extend(octets(packet.source));
    header.extend(octets(packet.destination));
    header.extend(extensions);
    header
}

fn transport(packet: &Packet) -> Vec<u8> {
    let (mut bytes, at, field) = match &packet.body {
        Body::Tcp(tcp) => (tcp_segment(tcp), 16, tcp.checksum),
        Body::Udp(udp) => (udp_datagram(udp), 6, udp.checksum),
        Body::Icmp(icmp) => {
            let mut bytes = vec![icmp.kind, icmp.code, 0, 0];
            bytes.extend(icmp.rest);
            bytes.extend(&icmp.data);
            (bytes, 2, Checksum::Right)
        }
        Body::Bytes(_, bytes) => return bytes.clone(),
    };
    let right = right_checksum(packet, &bytes);
    let value = match field {
        Checksum::Right => right,
        Checksum::Wrong(by) => right ^ by,
        Checksum::Zero => 0,
        Checksum::Fixed(value) => value,
    };
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    bytes
}

fn tcp_segment(tcp: &super::Tcp) -> Vec<u8> {
    assert!(
        tcp.options.len().is_multiple_of(4),
        "TCP options come in words"
    );
    let words = (5 + tcp.options.len() / 4) as u16;
    let mut bytes = Vec::new();
    bytes.extend(tcp.ports.0.to_be_bytes());
    bytes.extend(tcp.ports.1.to_be_bytes());
    bytes.extend(tcp.sequence.to_be_bytes());
    bytes.extend(tcp.acknowledgement.to_be_bytes());
    bytes.extend(((words << 12) | tcp.flags).to_be_bytes());
    bytes.extend(tcp.window.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(&tcp.options);
    bytes.extend(&tcp.data);
    bytes
}

fn udp_datagram(udp: &Udp) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(udp.ports.0.to_be_bytes());
    bytes.extend(udp.ports.1.to_be_bytes());
    bytes.extend((8 + udp.data.len() as u16).to_be_bytes());
    bytes.extend([0; 2]);
    bytes.extend(&udp.data);
    bytes
}

/// Of a transport header whose checksum field is zero.
fn right_checksum(packet: &Packet, bytes: &[u8]) -> u16 {
    let protocol = protocol(&packet.body, packet.source);
    let mut covered = Vec::new();
    if protocol != 1 {
        covered.extend(octets(packet.source));
        covered.extend(octets(packet.destination));
        covered.extend((bytes.len() as u32).to_be_bytes());
        covered.extend([0, 0, 0, protocol]);
    }
    covered.extend(bytes);
    match checksum(&covered) {
        // Zero would mean "none" (RFC 768).
        0 if protocol == UDP => 0xffff,
        sum => sum,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Frame as _, tcp, udp};
    use super::*;

    #[test]
    fn a_known_header_has_its_known_checksum() {
        let header = [
            0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0,
            0xc7,
        ];
        assert_eq!(checksum(&header), 0xb861);
    }

    #[test]
    fn a_segment_is_laid_out_as_the_rfc_says() {
        let segment = tcp(
            "10.0.0.1:4660".parse().unwrap(),
            "10.0.0.2:80".parse().unwrap(),
        )
        .syn();
        let bytes = segment.frame();
        assert_eq!(bytes.len(), 14 + 20 + 28);
        assert_eq!(bytes[12..16], [8, 0, 0x45, 0]);
        assert_eq!(bytes[34..38], [0x12, 0x34, 0, 80]);
        assert_eq!(bytes[46..48], [0x70, 2], "28 bytes, SYN");
    }

    #[test]
    fn fragments_put_together_are_the_datagram() {
        let whole = udp(
            "[fd00::1]:5".parse().unwrap(),
            "[fd00::2]:6".parse().unwrap(),
        )
        .carrying(&[7; 100]);
        let pieces = whole.fragments(40);
        assert_eq!(pieces.len(), 3);
        let together: Vec<u8> = pieces.iter().flat_map(transport).collect();
        assert_eq!(together, transport(&whole));
    }
}
