//! Valid frames, and frames made of other frames.

use std::net::IpAddr;

use super::kernel::MACS;
use super::random::Random;
use super::script::{Complaint, Edit, Speech};
use crate::oracle::packet::flows::Side;
use crate::oracle::packet::wire::{Frame, ICMP, ICMP6, Packet, Tuple, UDP};

/// Hardware address of whatever is at the other end of a device.
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// What a frame has besides addresses and payload.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape {
    /// IPv4 options, a multiple of four bytes.
    pub(crate) options: Vec<u8>,
    /// IPv6 extension headers: type and the bytes behind the length byte.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    /// Identification, offset in units of eight bytes, and whether more follow.
    pub(crate) piece: Option<(u32, u16, bool)>,
    /// Tags between the addresses and the type.
    pub(crate) tags: Vec<u16>,
    pub(crate) dont_fragment: bool,
    pub(crate) hops: u8,
}

/// A frame that comes in over a side's device.
pub(crate) fn incoming(side: Side, packet: Vec<u8>, tags: &[u16]) -> Vec<u8> {
    let mut frame = [&MACS[side as usize][..], &PEER].concat();
    for tag in tags {
        frame.extend([0x81, 0x00]);
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(if packet[0] >> 4 == 4 {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    });
    [frame, packet].concat()
}

/// A frame as its sender hands it to a side's device.
pub(crate) fn delivered(side: Side, mut frame: Vec<u8>) -> Vec<u8> {
    if let Some((link, _)) = frame.split_first_chunk_mut::<12>() {
        link[..6].copy_from_slice(&MACS[side as usize]);
        link[6..].copy_from_slice(&PEER);
    }
    frame
}

/// A packet with right lengths and checksums.
pub(crate) fn packet(
    (source, destination): (IpAddr, IpAddr),
    protocol: u8,
    load: Vec<u8>,
    shape: &Shape,
) -> Vec<u8> {
    let (head, piece) = match (source, destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) => (head4(protocol, load.len(), shape), shape.piece),
        _ => (head6(protocol, load.len(), shape), shape.piece),
    };
    let mut packet = Packet {
        source,
        destination,
        head,
        protocol,
        piece: piece.map(
            |(identification, offset, more)| crate::oracle::packet::wire::Piece {
                identification,
                offset,
                more,
            },
        ),
        waypoint: false,
        load,
    };
    // Writing puts the addresses in; only then is the header's checksum right.
    packet.head = packet.write()[..packet.head.len()].to_vec();
    packet.seal();
    packet.write()
}

fn head4(protocol: u8, load: usize, shape: &Shape) -> Vec<u8> {
    let length = 20 + shape.options.len();
    let (id, offset, more) = shape.piece.unwrap_or((0x1234, 0, false));
    let place = offset | u16::from(more) << 13 | u16::from(shape.dont_fragment) << 14;
    [
        &[0x40 | (length / 4) as u8, 0][..],
        &((length + load) as u16).to_be_bytes(),
        &(id as u16).to_be_bytes(),
        &place.to_be_bytes(),
        &[shape.hops, protocol, 0, 0],
        &[0; 8],
        &shape.options,
    ]
    .concat()
}

fn head6(protocol: u8, load: usize, shape: &Shape) -> Vec<u8> {
    let mut chain: Vec<(u8, Vec<u8>)> = shape.extensions.clone();
    if let Some((id, offset, more)) = shape.piece {
        let place = offset << 3 | u16::from(more);
        chain.push((44, [&place.to_be_bytes()[..], &id.to_be_bytes()].concat()));
    }
    let mut rest = Vec::new();
    for (at, (kind, content)) in chain.iter().enumerate() {
        let next = chain.get(at + 1).map_or(protocol, |(kind, _)| *kind);
        let units = match kind {
            44 => 0,
            51 => ((content.len() + 2) / 4 - 2) as u8,
            _ => ((content.len() + 2) / 8 - 1) as u8,
        };
        rest.extend([next, units]);
        rest.extend(content);
    }
    let first = chain.first().map_or(protocol, |(kind, _)| *kind);
    [
        &[0x60, 0, 0, 0][..],
        &((rest.len() + load) as u16).to_be_bytes(),
        &[first, shape.hops],
        &[0; 32],
        &rest,
    ]
    .concat()
}

/// A TCP segment or UDP datagram, checksum still missing.
pub(crate) fn transport(protocol: u8, ports: (u16, u16), speech: &Speech) -> Vec<u8> {
    let (source, destination) = (ports.0.to_be_bytes(), ports.1.to_be_bytes());
    if protocol == UDP {
        let length = (8 + speech.data.len()) as u16;
        let sum = [0, 0];
        return [
            &source[..],
            &destination,
            &length.to_be_bytes(),
            &sum,
            &speech.data,
        ]
        .concat();
    }
    [
        &source[..],
        &destination,
        &[
            1,
            2,
            3,
            4,
            5,
            6,
            7,
            8,
            5 << 4,
            speech.flags,
            0x10,
            0,
            0,
            0,
            0,
            0,
        ],
        &speech.data,
    ]
    .concat()
}

/// What the receiver of a frame says back, coming in over the same link.
pub(crate) fn reply(frame: &[u8], speech: &Speech) -> Option<Vec<u8>> {
    let frame = Frame::read(frame).ok()?;
    let tuple = frame.packet.tuple()?;
    Some(speak(&frame.turned(), tuple.reversed(), speech))
}

/// What the sender of a frame says next.
pub(crate) fn again(frame: &[u8], speech: &Speech) -> Option<Vec<u8>> {
    let frame = Frame::read(frame).ok()?;
    let tuple = frame.packet.tuple()?;
    Some(speak(&frame, tuple, speech))
}

fn speak(frame: &Frame, tuple: Tuple, speech: &Speech) -> Vec<u8> {
    let protocol = frame.packet.protocol;
    let load = transport(
        protocol,
        (tuple.source_port, tuple.destination_port),
        speech,
    );
    let shape = Shape {
        hops: 61,
        ..Shape::default()
    };
    let packet = packet((tuple.source, tuple.destination), protocol, load, &shape);
    [&frame.link[..], &packet].concat()
}

/// An ICMP error about a frame.
pub(crate) fn complaint(frame: &[u8], complaint: &Complaint) -> Option<Vec<u8>> {
    let frame = Frame::read(frame).ok()?;
    let about = &frame.packet;
    let router: IpAddr = if about.is_v4() {
        [198, 18, 0, 1].into()
    } else {
        "2001:db8:18::1".parse().ok()?
    };
    let source = if complaint.by_router {
        router
    } else {
        about.destination
    };
    let quoted = about.write();
    let end = complaint.quoted.min(quoted.len());
    let mut load = vec![complaint.kind, complaint.code, 0, 0, 0, 0, 5, 0];
    if !about.is_v4() && complaint.kind == 137 {
        // Target and destination, then the redirected-header option, of whole units of eight bytes.
        load.extend([0; 32]);
        load.extend([4, (end / 8 + 1) as u8, 0, 0, 0, 0, 0, 0]);
        load.extend(&quoted[..end / 8 * 8]);
    } else {
        load.extend(&quoted[..end]);
    }
    let protocol = if about.is_v4() { ICMP } else { ICMP6 };
    let shape = Shape {
        hops: 63,
        ..Shape::default()
    };
    let packet = packet((source, about.source), protocol, load, &shape);
    Some([&frame.turned().link[..], &packet].concat())
}

/// Applies edits in order.
pub(crate) fn edited(mut frame: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        match *edit {
            Edit::Flip(at, bits) => {
                if let Some(byte) = frame.get_mut(at) {
                    *byte ^= bits;
                }
            }
            Edit::Cut(length) => frame.truncate(length),
            Edit::Seal => {
                if let Ok(mut whole) = Frame::read(&frame) {
                    whole.packet.seal();
                    frame = whole.write();
                }
            }
        }
    }
    frame
}

/// Options of RFC 791 in many lengths: NOP, record route, timestamp, loose and strict source route, router alert.
pub(crate) fn some_options(random: &mut Random) -> Vec<u8> {
    let kinds: [&[u8]; 6] = [
        &[1, 1, 1, 1],
        &[7, 7, 4, 0, 0, 0, 0, 0],
        &[68, 8, 5, 0, 0, 0, 0, 0],
        &[131, 7, 4, 192, 0, 2, 77, 0],
        &[137, 7, 4, 192, 0, 2, 77, 0],
        &[148, 4, 0, 0],
    ];
    let mut options = Vec::new();
    for _ in 0..=random.below(4) {
        options.extend_from_slice(random.pick(&kinds[..]));
    }
    options
}

/// Extension headers of RFC 8200 that any packet may have.
pub(crate) fn some_extensions(random: &mut Random) -> Vec<(u8, Vec<u8>)> {
    let mut chain = Vec::new();
    for _ in 0..=random.below(3) {
        chain.push(match random.below(5) {
            0 => (0, vec![1, 4, 0, 0, 0, 0]),
            1 => (60, vec![1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            2 => (43, vec![0, 0, 0, 0, 0, 0]),
            3 => (51, random.bytes(22)),
            _ => (60, vec![1, 4, 0, 0, 0, 0]),
        });
    }
    chain
}
