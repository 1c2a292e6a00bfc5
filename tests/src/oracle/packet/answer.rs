//! Packets we answer ourselves: TCP with a reset (RFC 9293 §3.5.2), all else with port-unreachable (RFC 792, 4443).
//!
//! How much of the packet an ICMP error quotes, its time to live and its identification are left to the programs.

use super::wire::{ACK, FIN, Frame, ICMP, ICMP6, Packet, RST, SYN, TCP, word};

/// Checks that `answer` is what refuses `frame`.
pub fn check(frame: &Frame, answer: &[u8]) -> Result<(), String> {
    let got = Frame::read(answer).map_err(|why| format!("the answer is unreadable: {why:?}"))?;
    let turned = frame.turned();
    let wants = |what: &str, holds: bool| {
        if holds {
            Ok(())
        } else {
            Err(format!("the answer's {what} is wrong"))
        }
    };
    wants("link-layer header", got.link == turned.link)?;
    wants("length", got.trailer.is_empty())?;
    wants("source", got.packet.source == frame.packet.destination)?;
    wants("destination", got.packet.destination == frame.packet.source)?;
    wants("fragmentation", got.packet.piece.is_none())?;
    let mut right = got.packet.clone();
    right.seal();
    wants("checksum", right == got.packet)?;
    let plain = if frame.packet.is_v4() { 20 } else { 40 };
    wants("header length", got.packet.head.len() == plain)?;
    let hops = got.packet.head[if frame.packet.is_v4() { 8 } else { 7 }];
    wants("time to live", hops >= 64)?;
    if frame.packet.protocol == TCP {
        wants("protocol", got.packet.protocol == TCP)?;
        wants(
            "reset",
            got.packet.load == reset(&frame.packet, &got.packet),
        )
    } else {
        unreachable_of(frame, &got.packet, wants)
    }
}

/// The reset that answers a segment, with `like`'s checksum.
fn reset(packet: &Packet, like: &Packet) -> Vec<u8> {
    let load = &packet.load;
    let flags = load[13];
    let header = usize::from(load[12] >> 4) * 4;
    let long = |at: usize| {
        u32::from(word(load, at).unwrap_or(0)) << 16 | u32::from(word(load, at + 2).unwrap_or(0))
    };
    let (sequence, acknowledges, answer_flags) = if flags & ACK != 0 {
        (long(8), 0, RST)
    } else {
        let length = load.len().saturating_sub(header) as u32
            + u32::from(flags & SYN != 0)
            + u32::from(flags & FIN != 0);
        (0, long(4).wrapping_add(length), RST | ACK)
    };
    let sum = like.sum_field().unwrap_or(0);
    [
        &load[2..4],
        &load[..2],
        &sequence.to_be_bytes(),
        &u32::to_be_bytes(acknowledges),
        &[5 << 4, answer_flags, 0, 0],
        &sum.to_be_bytes(),
        &[0, 0],
    ]
    .concat()
}

fn unreachable_of(
    frame: &Frame,
    answer: &Packet,
    wants: impl Fn(&str, bool) -> Result<(), String>,
) -> Result<(), String> {
    let (protocol, kind, code) = if answer.is_v4() {
        (ICMP, 3, 3)
    } else {
        (ICMP6, 1, 4)
    };
    wants("protocol", answer.protocol == protocol)?;
    let load = &answer.load;
    wants("type", load.starts_with(&[kind, code]))?;
    wants("unused word", load.get(4..8) == Some(&[0; 4]))?;
    let original = [&frame.packet.head[..], &frame.packet.load].concat();
    let quoted = load.get(8..).unwrap_or_default();
    // RFC 792: the header and eight bytes. Of a packet that has less, whole words will do.
    let least = (frame.packet.head.len() + 8).min(original.len() & !3);
    wants(
        "quotation",
        quoted.len() >= least && original.starts_with(quoted),
    )
}
