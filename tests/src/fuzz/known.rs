//! Deviations of the programs that are known and not yet mended. The fuzzer leaves such frames out, so that it finds
//! new ones; `fixtures/fuzz/known` keeps an example of each. An entry goes when its bug does.

use crate::oracle::packet::wire::{Frame, ICMP, ICMP6, Packet, UDP, Unreadable};

/// The known deviation that a frame would meet.
pub(crate) fn deviation(bytes: &[u8]) -> Option<&'static str> {
    match Frame::read(bytes) {
        Ok(frame) if has_untrue_length(&frame) => {
            Some("datagrams whose length field is untrue are translated")
        }
        Ok(frame) if quotes_short(&frame) => Some("quoted packets are read behind their end"),
        Ok(frame) if ends_early(&frame) => {
            Some("transport headers are read behind the end of their packet")
        }
        Err(Unreadable::Malformed) if is_cut(bytes) => {
            Some("packets longer than their frame are translated or answered")
        }
        _ => None,
    }
}

/// The packet would be readable if the frame were longer, or its length field greater.
fn is_cut(bytes: &[u8]) -> bool {
    let mut longer = [bytes, &[0; 65_536]].concat();
    if longer[12..14] == [0x86, 0xdd] {
        longer[18..20].fill(0xff);
    }
    Frame::read(&longer).is_ok()
}

/// An ICMP error quotes a packet whose length field ends it before its ports, which are there all the same.
fn quotes_short(frame: &Frame) -> bool {
    let packet = &frame.packet;
    let version = if packet.is_v4() { 4 } else { 6 };
    let icmp = matches!(packet.protocol, ICMP | ICMP6) && packet.is_first();
    let quoted = packet.load.get(8..).filter(|_| icmp);
    quoted.is_some_and(|bytes| {
        Packet::read(bytes, version, false).map_or(true, |(quoted, length)| {
            quoted.ports().is_none() && length < bytes.len()
        })
    })
}

/// UDP says that it is longer than its packet, or shorter than its header.
fn has_untrue_length(frame: &Frame) -> bool {
    let packet = &frame.packet;
    packet.protocol == UDP && packet.load.len() >= 8 && !packet.has_sound_transport()
}

/// The packet ends before its transport header does, but the frame goes on.
fn ends_early(frame: &Frame) -> bool {
    if frame.trailer.is_empty() {
        return false;
    }
    let quotes = matches!(frame.packet.protocol, ICMP | ICMP6);
    quotes || !frame.packet.has_sound_transport()
}
