//! ICMP errors about translated conversations: the packet they quote must be the one its sender knows (E16).

use lb_ebpf::abi::counter;

use super::flows::Flow;
use super::wire::{Frame, ICMP, ICMP6, Packet, Tuple, word};
use super::{Hook, Judgement, Met, NEXT, Oracle, Seen, is};

/// Destination unreachable, redirect, time exceeded, parameter problem; for ICMPv6 all below 128 and
/// redirect. Source quench is no more (RFC 6633). What does not tell its type counts as one, as for Linux, which answers
/// no such message.
pub(super) fn is_error(packet: &Packet) -> bool {
    if !packet.is_first() {
        return false;
    }
    let Some(&kind) = packet.load.first() else {
        return matches!(
            (packet.protocol, packet.is_v4()),
            (ICMP, true) | (ICMP6, false)
        );
    };
    match packet.protocol {
        ICMP => packet.is_v4() && matches!(kind, 3 | 5 | 11 | 12),
        ICMP6 => !packet.is_v4() && (kind < 128 || kind == 137),
        _ => false,
    }
}

fn is_redirect(packet: &Packet) -> bool {
    let kind = packet.load.first();
    kind == Some(if packet.is_v4() { &5 } else { &137 })
}

/// What to put where.
struct Change {
    /// Addresses and ports of the quoted packet.
    quoted: Tuple,
    /// Addresses of the error itself.
    source: std::net::IpAddr,
    destination: std::net::IpAddr,
}

impl Oracle {
    pub(super) fn judge_error(
        &mut self,
        hook: Hook,
        frame: &Frame,
        bytes: &[u8],
        seen: &Seen,
    ) -> Judgement {
        let met = Met {
            hook,
            frame,
            bytes,
            seen,
        };
        let whole = quotation(&frame.packet).filter(|_| {
            let assigned = frame
                .packet
                .load
                .first()
                .is_some_and(|kind| frame.packet.is_v4() || matches!(kind, 1..=4 | 137));
            assigned && frame.packet.piece.is_none()
        });
        let found = whole.and_then(|(at, length, quoted)| {
            // The Service, if it is told, must have sent what is quoted.
            let told = |t: &Tuple| !hook.is_ingress() || t.source == frame.packet.destination;
            let tuple = quoted.tuple().filter(told)?;
            let change = self.change(&met, quoted.protocol, tuple)?;
            Some((at..at + length, quoted, change))
        });
        let redirect = is_redirect(&frame.packet);
        let Some((at, quoted, change)) = found.filter(|_| !(redirect && hook.is_ingress())) else {
            return self.judge_foreign_error(&met);
        };
        if redirect {
            self.count(counter::REDIRECT_DROPPED);
            return met.is_dropped();
        }
        self.count(counter::ICMP_TRANSLATED);
        let mut new = frame.clone();
        new.packet.source = change.source;
        new.packet.destination = change.destination;
        // What is quoted may be cut anywhere, so its transport checksum is of no use and stays.
        let inner = quoted.readdressed(change.quoted).write();
        new.packet.load.splice(at, inner);
        // The quotation is a part of the error, so its checksum follows both.
        new.packet.settle_sum(&frame.packet);
        is(NEXT, &new.write(), seen)
    }

    /// An error about no conversation of ours.
    fn judge_foreign_error(&mut self, met: &Met<'_>) -> Judgement {
        let destination = met.frame.packet.destination;
        if met.hook.is_ingress() && self.tables.is_nobodys(destination) {
            self.count(counter::CIDR_DROPPED);
            return met.is_dropped();
        }
        if met.hook.is_ingress() && self.tables.uses(destination).cluster_ip {
            // No error answers an error (RFC 1122 §3.2.2, RFC 4443 §2.4).
            return met.is_dropped();
        }
        met.passes()
    }

    /// A complaint about an answer to a masqueraded conversation, on its way out: the endpoint knows this node alone.
    fn complaint(&self, met: &Met<'_>, protocol: u8, tuple: Tuple) -> Option<Change> {
        let packet = &met.frame.packet;
        if met.hook != Hook::OutEgress || is_redirect(packet) {
            return None;
        }
        let flow = self.flows.leaving(protocol, tuple.reversed())?;
        let node = flow.masquerade?;
        Some(Change {
            quoted: Tuple {
                destination: node,
                ..tuple
            },
            source: node,
            destination: packet.destination,
        })
    }

    /// Whose conversation the error is about, and what its receiver must see.
    fn change(&self, met: &Met<'_>, protocol: u8, tuple: Tuple) -> Option<Change> {
        let packet = &met.frame.packet;
        let side = met.hook.side();
        let (source, destination) = (packet.source, packet.destination);
        if met.hook.is_ingress() {
            // The client complains of a reply, which it saw coming from the Service.
            let key = (side, protocol, tuple.reversed());
            if let Some(flow) = self.flows.known(&key) {
                return Some(Change {
                    quoted: flow.sent.reversed(),
                    source,
                    destination: swap(destination, tuple.source, flow.sent.destination),
                });
            }
            // A router or the endpoint complains of what this node sent in the client's place.
            let flow = self.flows.returning(protocol, tuple.reversed())?;
            return Some(Change {
                quoted: flow.sent,
                source,
                destination: swap(destination, tuple.source, flow.sent.source),
            });
        }
        // Somebody complains of what the client sent; the client knows only the Service.
        let key = (side, protocol, tuple.reversed());
        let Some(flow): Option<&Flow> = self.flows.reply(&key) else {
            return self.complaint(met, protocol, tuple);
        };
        Some(Change {
            quoted: flow.asked(),
            source: swap(source, tuple.destination, flow.asked().destination),
            destination,
        })
    }
}

/// The address, or `new` if it is `old`.
fn swap(
    address: std::net::IpAddr,
    old: std::net::IpAddr,
    new: std::net::IpAddr,
) -> std::net::IpAddr {
    if address == old { new } else { address }
}

/// Where the quoted packet begins, its length, and the packet.
fn quotation(packet: &Packet) -> Option<(usize, usize, Packet)> {
    // ICMPv6 redirects carry two addresses first and the packet in an option (RFC 4861 §4.5).
    let at = if packet.protocol == ICMP6 && packet.load.first() == Some(&137) {
        redirected_header(&packet.load)?
    } else {
        8
    };
    let bytes = packet.load.get(at..)?;
    let version = if packet.is_v4() { 4 } else { 6 };
    let (quoted, length) = Packet::read(bytes, version, false).ok()?;
    Some((at, length, quoted))
}

fn redirected_header(load: &[u8]) -> Option<usize> {
    let mut at = 40;
    loop {
        let head = word(load, at)?;
        let (kind, length) = (head >> 8, usize::from(head & 0xff) * 8);
        if length == 0 {
            return None;
        }
        if kind == 4 {
            return Some(at + 8);
        }
        at += length;
    }
}
