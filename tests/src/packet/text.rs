//! A frame in words, and two frames as a difference, for the messages of failing tests.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::checksum;

/// One line a header, as far as the frame can be understood.
pub fn describe(frame: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    let Some((macs, rest)) = frame.split_at_checked(12) else {
        return vec![format!("{} bytes, no Ethernet header", frame.len())];
    };
    lines.push(format!(
        "ethernet {} → {}, {} bytes in all",
        mac(&macs[6..]),
        mac(&macs[..6]),
        frame.len()
    ));
    let mut rest = rest;
    loop {
        match rest {
            [0x81, 0x00, high, low, inner @ ..] | [0x88, 0xa8, high, low, inner @ ..] => {
                let id = u16::from_be_bytes([*high, *low]) & 0xfff;
                lines.push(format!("vlan {id} ({:02x}{:02x})", rest[0], rest[1]));
                rest = inner;
            }
            [0x08, 0x00, packet @ ..] | [0x86, 0xdd, packet @ ..] => {
                network(packet, "", &mut lines);
                return lines;
            }
            [high, low, ..] => {
                lines.push(format!("ethertype {high:02x}{low:02x}"));
                return lines;
            }
            _ => return lines,
        }
    }
}

/// What differs, in words and in bytes; `None` if nothing does.
pub fn difference(expected: &[u8], found: &[u8]) -> Option<String> {
    if expected == found {
        return None;
    }
    let mut text = String::new();
    let (wanted, got) = (describe(expected), describe(found));
    for number in 0..wanted.len().max(got.len()) {
        match (wanted.get(number), got.get(number)) {
            (Some(a), Some(b)) if a == b => text += &format!("    {a}\n"),
            (a, b) => {
                for (sign, line) in [('-', a), ('+', b)] {
                    if let Some(line) = line {
                        text += &format!("  {sign} {line}\n");
                    }
                }
            }
        }
    }
    let longest = expected.len().max(found.len());
    let byte = |of: &[u8], at: usize| of.get(at).map_or("--".into(), |byte| format!("{byte:02x}"));
    let offsets = (0..longest).filter(|&at| expected.get(at) != found.get(at));
    let bytes: Vec<String> = offsets
        .take(40)
        .map(|at| format!("{at}: {}→{}", byte(expected, at), byte(found, at)))
        .collect();
    text += &format!("  bytes {}\n", bytes.join(", "));
    Some(text)
}

/// Source and destination port of a TCP or UDP frame, whole or a first fragment, without tags.
pub fn ports(frame: &[u8]) -> (u16, u16) {
    let at = match frame.get(12..14) {
        Some([0x08, 0x00]) => 14 + usize::from(frame[14] & 15) * 4,
        Some([0x86, 0xdd]) => {
            let (mut next, mut at) = (frame[20], 14 + 40);
            while let Some(length) = extension_length(next, &frame[at..]) {
                next = frame[at];
                at += length;
            }
            at
        }
        _ => panic!("no plain IP frame: {:#?}", describe(frame)),
    };
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    (port(at), port(at + 2))
}

/// Bytes of an IPv6 extension header; `None` for what is none.
fn extension_length(kind: u8, header: &[u8]) -> Option<usize> {
    let units = usize::from(*header.get(1)?);
    match kind {
        44 => Some(8),
        51 => Some((units + 2) * 4),
        0 | 43 | 60 => Some((units + 1) * 8),
        _ => None,
    }
}

fn mac(bytes: &[u8]) -> String {
    let parts: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

fn network(packet: &[u8], indent: &str, lines: &mut Vec<String>) {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 20 => network4(packet, indent, lines),
        Some(6) if packet.len() >= 40 => network6(packet, indent, lines),
        _ => lines.push(format!("{indent}{} bytes, no IP header", packet.len())),
    }
}

fn network4(packet: &[u8], indent: &str, lines: &mut Vec<String>) {
    let address = |at: usize| Ipv4Addr::from([0, 1, 2, 3].map(|i| packet[at + i]));
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let header = usize::from(packet[0] & 15) * 4;
    let fragment = word(6);
    let mut line = format!(
        "{indent}ipv4 {} → {}, header {header}, length {}, id {:#x}, ttl {}, protocol {}",
        address(12),
        address(16),
        word(2),
        word(4),
        packet[8],
        packet[9]
    );
    if fragment & 0x4000 != 0 {
        line += ", don't fragment";
    }
    if fragment & 0x3fff != 0 {
        let more = if fragment & 0x2000 != 0 { ", more" } else { "" };
        line += &format!(", fragment at {}{more}", (fragment & 0x1fff) * 8);
    }
    let covered = packet.get(..header).unwrap_or(packet);
    line += judged(checksum(covered) == 0);
    lines.push(line);
    let Some(body) = packet.get(header..) else {
        return;
    };
    let mut pseudo = packet[12..20].to_vec();
    pseudo.extend((body.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, packet[9]]);
    let first = fragment & 0x1fff == 0;
    transport(packet[9], body, &pseudo, first, indent, lines);
}

fn network6(packet: &[u8], indent: &str, lines: &mut Vec<String>) {
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&packet[at..at + 16]);
        Ipv6Addr::from(octets)
    };
    lines.push(format!(
        "{indent}ipv6 {} → {}, payload {}, hop limit {}, next header {}",
        address(8),
        address(24),
        u16::from_be_bytes([packet[4], packet[5]]),
        packet[7],
        packet[6]
    ));
    let (mut next, mut body, mut first) = (packet[6], &packet[40..], true);
    while let Some(length) = extension_length(next, body).filter(|_| body.len() >= 8) {
        let mut line = format!("{indent}extension header {next}, {length} bytes");
        if next == 44 {
            let offset = u16::from_be_bytes([body[2], body[3]]);
            first = offset < 8;
            line += &format!(", fragment at {}, more {}", offset & !7, offset & 1);
        }
        lines.push(line);
        next = body[0];
        body = body.get(length..).unwrap_or(&[]);
    }
    let mut pseudo = packet[8..40].to_vec();
    pseudo.extend((body.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, next]);
    transport(next, body, &pseudo, first, indent, lines);
}

fn transport(
    protocol: u8,
    body: &[u8],
    pseudo: &[u8],
    first: bool,
    indent: &str,
    lines: &mut Vec<String>,
) {
    let word = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let long = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|i| body[at + i]));
    let right = checksum(&[pseudo, body].concat()) == 0;
    let data = match protocol {
        6 if first && body.len() >= 20 => {
            let header = usize::from(body[12] >> 4) * 4;
            lines.push(format!(
                "{indent}tcp {} → {}, flags {}, sequence {}, acknowledging {}, window {}, header {header}{}",
                word(0),
                word(2),
                flags(word(12) & 0x1ff),
                long(4),
                long(8),
                word(14),
                judged(right)
            ));
            header
        }
        17 if first && body.len() >= 8 => {
            let state = if word(6) == 0 {
                ", no checksum"
            } else {
                judged(right)
            };
            lines.push(format!(
                "{indent}udp {} → {}, length {}{state}",
                word(0),
                word(2),
                word(4)
            ));
            8
        }
        1 | 58 if first && body.len() >= 8 => {
            let right = if protocol == 1 {
                checksum(body) == 0
            } else {
                right
            };
            lines.push(format!(
                "{indent}icmp type {}, code {}, rest {:02x?}{}",
                body[0],
                body[1],
                &body[4..8],
                judged(right)
            ));
            let quotes = matches!((protocol, body[0]), (1, 3 | 5 | 11 | 12) | (58, 1..=4));
            if quotes {
                return network(&body[8..], &format!("{indent}  quoting "), lines);
            }
            8
        }
        _ => 0,
    };
    if let Some(data) = body.get(data..).filter(|data| !data.is_empty()) {
        lines.push(format!("{indent}{} bytes of data: {data:02x?}", data.len()));
    }
}

fn judged(right: bool) -> &'static str {
    if right {
        ", checksum right"
    } else {
        ", checksum WRONG"
    }
}

fn flags(bits: u16) -> String {
    let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR", "AE"];
    let set: Vec<&str> = names
        .iter()
        .enumerate()
        .filter(|(bit, _)| bits >> bit & 1 == 1)
        .map(|(_, name)| *name)
        .collect();
    set.join("+")
}

#[cfg(test)]
mod tests {
    use super::super::{Checksum, Frame as _, tcp, udp};
    use super::*;

    #[test]
    fn equal_frames_do_not_differ() {
        let frame = tcp("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap()).frame();
        assert_eq!(difference(&frame, &frame), None);
    }

    #[test]
    fn a_difference_names_header_and_field() {
        let packet = udp(
            "[fd00::1]:5".parse().unwrap(),
            "[fd00::2]:6".parse().unwrap(),
        );
        let spoilt = packet.clone().checksum(Checksum::Wrong(1)).frame();
        let text = difference(&packet.frame(), &spoilt).expect("they differ");
        assert!(
            text.contains("- udp 5 → 6, length 16, checksum right"),
            "{text}"
        );
        assert!(
            text.contains("+ udp 5 → 6, length 16, checksum WRONG"),
            "{text}"
        );
    }
}
