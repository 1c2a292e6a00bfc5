//! Deviations of the programs that are known and not yet mended. The fuzzer leaves such frames out, so that it finds
//! new ones; `fixtures/fuzz/known` keeps an example of each. An entry goes when its bug does.

use crate::oracle::packet::wire::{Frame, Unreadable};
use crate::oracle::packet::{Hook, is_martian};

/// The known deviation that a frame would meet.
pub fn deviation(hook: Hook, bytes: &[u8]) -> Option<&'static str> {
    match Frame::read(bytes) {
        Ok(frame) if hook.is_ingress() && is_martian(&frame.packet) => {
            Some("packets from loopback, multicast and unspecified addresses are translated or answered")
        }
        Ok(frame) if hook.is_ingress() && ends_early(&frame) => {
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

/// The packet ends before its transport header does, but the frame goes on.
fn ends_early(frame: &Frame) -> bool {
    let mut longer = frame.clone();
    longer.packet.load.extend(&frame.trailer);
    !frame.packet.has_sound_transport() && longer.packet.load.len() >= 8 && !frame.trailer.is_empty()
}
