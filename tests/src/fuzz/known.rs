//! Deviations of the programs that are known and not yet mended. The fuzzer leaves such frames out, so that it finds
//! new ones; `fixtures/fuzz/known` keeps an example of each. An entry goes when its bug does.

use crate::oracle::packet::wire::{Frame, ICMP, ICMP6, UDP, Unreadable};
use crate::oracle::packet::{Hook, is_martian};

/// The known deviation that a frame would meet.
pub fn deviation(hook: Hook, bytes: &[u8]) -> Option<&'static str> {
    match Frame::read(bytes) {
        Ok(frame) if hook.is_ingress() && is_martian(&frame.packet) => Some(
            "packets from loopback, multicast and unspecified addresses are translated or answered",
        ),
        Ok(frame) if has_untrue_length(&frame) => {
            Some("datagrams whose length field is untrue are translated")
        }
        Ok(frame) if ends_early(&frame) => {
            Some("transport headers are read behind the end of their packet")
        }
        Err(Unreadable::Malformed) if is_cut(bytes) => {
            Some("packets longer than their frame are translated or answered")
        }
        _ => None,
    }
}

/// The packet would be readable if the frame were longer.
fn is_cut(bytes: &[u8]) -> bool {
    Frame::read(&[bytes, &[0; 65_536]].concat()).is_ok()
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
