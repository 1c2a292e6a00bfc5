//! What the packet programs must do with a frame, worked out slowly and plainly.
//!
//! An independent reading of the behaviour: service addresses and verdicts (spec D1-D22), masquerading (E1, §1.E.1),
//! stale UDP (E13), ICMP errors and fragments (E16, E17), affinity (§1.F), and the robustness matrix. It shares no
//! code with the programs: it parses into structures of its own ([`wire`]), computes every checksum over all bytes
//! ([`sum`]), and remembers flows in ordered maps ([`flows`]).
//!
//! Where the programs have a choice (which endpoint, which source port), the oracle accepts any allowed one and holds
//! them to it from then on.

pub mod answer;
mod direct;
mod egress;
pub mod flows;
mod icmp;
mod ingress;
mod outbound;
pub mod sum;
pub mod tables;
pub mod wire;

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_ebpf::abi::counter;
use serde::{Deserialize, Serialize};

use flows::{FlowKey, Flows, FragmentKey, Remembered, Side, State};
use tables::Tables;
use wire::{Frame, Packet, Piece, TCP, Tuple, UDP, Unreadable};

/// Continue as if we were not there (`TC_ACT_UNSPEC`).
pub const NEXT: i32 = -1;
/// Drop (`TC_ACT_SHOT`).
pub const DROP: i32 = 2;
/// Send out of the device it came in on (`TC_ACT_REDIRECT`).
pub const REDIRECT: i32 = 7;

/// A packet program.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Hook {
    PodIngress,
    PodEgress,
    OutIngress,
    OutEgress,
}

/// Link-layer address of the uplink.
pub const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

impl Hook {
    pub const ALL: [Hook; 4] = [
        Hook::PodIngress,
        Hook::PodEgress,
        Hook::OutIngress,
        Hook::OutEgress,
    ];

    /// The program's name in the object.
    pub fn program(self) -> &'static str {
        match self {
            Self::PodIngress => "pod_ingress",
            Self::PodEgress => "pod_egress",
            Self::OutIngress => "out_ingress",
            Self::OutEgress => "out_egress",
        }
    }

    pub fn side(self) -> Side {
        match self {
            Self::PodIngress | Self::PodEgress => Side::Pod,
            Self::OutIngress | Self::OutEgress => Side::Outside,
        }
    }

    pub fn is_ingress(self) -> bool {
        matches!(self, Self::PodIngress | Self::OutIngress)
    }
}

/// What a program did with a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub action: i32,
    pub frame: Vec<u8>,
}

/// A verdict of the oracle on what was seen.
pub type Judgement = Result<(), String>;

/// The oracle and its memory.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Oracle {
    pub tables: Tables,
    pub flows: Flows,
    pub fragments: BTreeMap<FragmentKey, (u16, u16, i64)>,
    /// Datagrams from NodePorts to strangers, by what an answer to them looks like, and when the last one left.
    pub outbound: BTreeMap<Tuple, i64>,
    /// By client, Service, and whether the choice was among local endpoints only.
    pub affinity: BTreeMap<(IpAddr, u32, bool), Remembered>,
    /// Seconds since the start of the test.
    pub now: i64,
    /// What the programs must have counted so far.
    pub counted: BTreeMap<u32, u64>,
}

/// Ports of a packet, read from it or remembered of its first fragment.
enum Ports {
    Known(Tuple),
    /// A fragment whose first one was not seen.
    Stranger,
    /// Nothing that has ports.
    None,
}

impl Oracle {
    /// A service's address, or one of a service CIDR that is nobody's now, is no address to leave the node with (D4, D5),
    /// also while flows through a service that was there may live.
    fn is_stray(&self, destination: std::net::IpAddr) -> bool {
        let uses = self.tables.uses(destination);
        let cidrs = &self.tables.settings.service_cidrs;
        let in_cidr = cidrs.iter().any(|prefix| prefix.holds(destination));
        uses.cluster_ip || in_cidr && !uses.external && !uses.node_local
    }

    /// Judges what `hook` did with `bytes`, and remembers what follows from it. `ours` are frames that a program sent
    /// back out of their device; they leave as they are.
    pub fn judge(&mut self, hook: Hook, ours: bool, bytes: &[u8], seen: &Seen) -> Judgement {
        if ours {
            return passes(bytes, seen);
        }
        if hook == Hook::OutIngress && !bytes.starts_with(&UPLINK_MAC) {
            // The stack takes no frame that is addressed to another host, whatever is in it.
            return passes(bytes, seen);
        }
        let frame = match Frame::read(bytes) {
            Ok(frame) => frame,
            Err(Unreadable::Foreign) => return passes(bytes, seen),
            // Nobody is there, so either will do.
            Err(Unreadable::Malformed)
                if hook.is_ingress() && seen.action == DROP && self.leads_nowhere(bytes) =>
            {
                self.count(counter::CIDR_DROPPED);
                return Ok(());
            }
            Err(Unreadable::Malformed) => {
                self.count(counter::MALFORMED);
                return passes(bytes, seen);
            }
        };
        // With stops to go its destination is not the one it is bound for.
        let stray = self.is_stray(frame.packet.destination) && !frame.packet.waypoint;
        if hook == Hook::OutEgress && stray {
            self.count(counter::STRAY_DROPPED);
            return is_dropped(seen);
        }
        if frame.packet.is_first() && !frame.packet.has_sound_transport() {
            // Whoever is no business of ours is not looked at that closely.
            let ours = self.tables.uses(frame.packet.destination) != tables::Use::default();
            if hook.is_ingress() && ours {
                self.count(counter::MALFORMED);
            }
            if hook.is_ingress() && self.tables.is_nobodys(frame.packet.destination) {
                if seen.action == DROP {
                    self.count(counter::CIDR_DROPPED);
                    return Ok(());
                }
                return passes(bytes, seen);
            }
            return passes(bytes, seen);
        }
        if frame.packet.waypoint {
            return passes(bytes, seen);
        }
        if hook.is_ingress() && is_martian(&frame.packet) {
            // What goes to nobody's address is dropped whoever sends it.
            let destination = frame.packet.destination;
            if self.tables.is_nobodys(destination) && !self.tables.uses(destination).lingering {
                self.count(counter::CIDR_DROPPED);
                if seen.action == DROP {
                    return Ok(());
                }
            }
            return passes(bytes, seen);
        }
        if icmp::is_error(&frame.packet) {
            return self.judge_error(hook, &frame, bytes, seen);
        }
        let tuple = match self.ports(hook, &frame.packet) {
            Ports::Known(tuple) => Some(tuple),
            Ports::None => None,
            Ports::Stranger => {
                let destination = frame.packet.destination;
                let unused = self.tables.uses(destination) == tables::Use::default();
                if hook.is_ingress() && unused {
                    if self.tables.is_nobodys(destination) {
                        self.count(counter::CIDR_DROPPED);
                        return is_dropped(seen);
                    }
                    return passes(bytes, seen);
                }
                self.count(counter::FRAGMENT_UNKNOWN);
                return passes(bytes, seen);
            }
        };
        let met = Met {
            hook,
            frame: &frame,
            bytes,
            seen,
        };
        let judgement = if hook.is_ingress() {
            self.judge_ingress(&met, tuple)
        } else {
            self.judge_egress(&met, tuple)
        };
        let ours = self.tables.uses(frame.packet.destination) != tables::Use::default();
        if ours || !hook.is_ingress() {
            self.learn(hook, &frame.packet);
        }
        judgement
    }

    /// Remembers the ports of a packet's first fragment.
    fn learn(&mut self, hook: Hook, packet: &Packet) {
        if let (Some(piece), Some(tuple)) = (packet.piece, packet.tuple())
            && piece.more
        {
            let key = fragment_key(hook, packet, piece);
            let ports = (tuple.source_port, tuple.destination_port, self.now);
            self.fragments.insert(key, ports);
        }
    }

    /// An IPv6 destination that is nobody's, whatever the extension headers.
    fn leads_nowhere(&self, bytes: &[u8]) -> bool {
        let Some(octets) = bytes
            .get(38..54)
            .filter(|_| bytes[12..15] == [0x86, 0xdd, 0x60])
        else {
            return false;
        };
        let octets: [u8; 16] = octets.try_into().expect("16 bytes");
        self.tables.is_nobodys(IpAddr::from(octets))
    }

    /// Another second, or many.
    pub fn wait(&mut self, seconds: i64) {
        self.now += seconds;
    }

    fn count(&mut self, number: u32) {
        *self.counted.entry(number).or_default() += 1;
    }

    /// Finds the ports of a packet, or those of its first fragment.
    fn ports(&self, hook: Hook, packet: &Packet) -> Ports {
        let piece = packet.piece.filter(|piece| piece.offset > 0);
        let Some(piece) = piece.filter(|_| matches!(packet.protocol, TCP | UDP)) else {
            return packet.tuple().map_or(Ports::None, Ports::Known);
        };
        match self.fragments.get(&fragment_key(hook, packet, piece)) {
            // Its age is the sweep's affair.
            Some(&(source, destination, _)) => Ports::Known(packet.tuple_with(source, destination)),
            _ => Ports::Stranger,
        }
    }

    /// A live flow that a packet belongs to in the client's direction. One that has expired ends here.
    fn forward(&mut self, key: &FlowKey) -> Option<flows::Flow> {
        let flow = self.flows.known(key)?.clone();
        // The counter does not tell a UDP flow whose endpoint is gone from one that was silent for too long.
        if flow.protocol() == UDP && (self.is_stale(&flow) || !flow.is_live(self.now)) {
            self.count(counter::FLOW_MOVED);
            self.flows.close(key);
            return None;
        }
        if flow.is_live(self.now) {
            return Some(flow);
        }
        self.flows.close(key);
        None
    }

    /// UDP follows its Service: the endpoint must still serve (spec E13.4).
    fn is_stale(&self, flow: &flows::Flow) -> bool {
        flow.protocol() == UDP && self.is_gone(flow)
    }

    /// The endpoint neither serves nor is chosen any more.
    fn is_gone(&self, flow: &flows::Flow) -> bool {
        if flow.direct {
            return false;
        }
        let endpoint = self.tables.endpoint(flow.endpoint);
        endpoint.is_none_or(|e| {
            let chosen = e.in_cluster || e.in_local;
            e.generation != flow.generation || !(e.serving || chosen)
        })
    }
}

fn fragment_key(hook: Hook, packet: &Packet, piece: Piece) -> FragmentKey {
    FragmentKey {
        side: hook.side(),
        source: packet.source,
        destination: packet.destination,
        identification: piece.identification,
        protocol: packet.protocol,
    }
}

/// A packet at a hook, and what was done with it.
struct Met<'a> {
    hook: Hook,
    frame: &'a Frame,
    bytes: &'a [u8],
    seen: &'a Seen,
}

impl Met<'_> {
    fn passes(&self) -> Judgement {
        passes(self.bytes, self.seen)
    }

    fn is_dropped(&self) -> Judgement {
        is_dropped(self.seen)
    }

    /// The packet continues under other addresses.
    fn continues_as(&self, to: Tuple) -> Judgement {
        let mut frame = self.frame.clone();
        frame.packet = frame.packet.translated(to);
        is(NEXT, &frame.write(), self.seen)
    }

    /// The packet goes back under other addresses.
    fn returns_as(&self, to: Tuple) -> Judgement {
        let mut frame = self.frame.turned();
        frame.packet = frame.packet.translated(to);
        is(REDIRECT, &frame.write(), self.seen)
    }
}

fn is_dropped(seen: &Seen) -> Judgement {
    if seen.action == DROP {
        return Ok(());
    }
    Err(format!(
        "must be dropped, but the action is {}",
        seen.action
    ))
}

fn passes(bytes: &[u8], seen: &Seen) -> Judgement {
    is(NEXT, bytes, seen)
}

/// Compares action and bytes; a checksum of zero equals its complement.
fn is(action: i32, bytes: &[u8], seen: &Seen) -> Judgement {
    if seen.action != action {
        return Err(format!(
            "the action must be {action}, but is {}",
            seen.action
        ));
    }
    if seen.frame == bytes || equal_sums(bytes, &seen.frame) {
        return Ok(());
    }
    Err(format!("must become {}", hex(bytes)))
}

/// Equal but for which zero a checksum shows.
fn equal_sums(wanted: &[u8], got: &[u8]) -> bool {
    let (Ok(a), Ok(mut b)) = (Frame::read(wanted), Frame::read(got)) else {
        return false;
    };
    if let (Some(x), Some(y)) = (a.packet.sum_field(), b.packet.sum_field())
        && sum::equal(x, y)
        && (a.packet.protocol != UDP || y != 0)
    {
        b.packet.load.clone_from(&a.packet.load);
        // All else must be equal byte by byte.
        let differing = wanted.iter().zip(got).filter(|(w, g)| w != g);
        return wanted.len() == got.len()
            && differing.count() <= 2
            && a.packet.load == b.packet.load;
    }
    if let (Some(x), Some(y)) = (
        wire::word(&a.packet.head, 10),
        wire::word(&b.packet.head, 10),
    ) && a.packet.is_v4()
        && sum::equal(x, y)
    {
        b.packet.head[10..12].copy_from_slice(&x.to_be_bytes());
        return a == b;
    }
    false
}

/// Loopback, multicast and unspecified addresses belong to no client and no Service.
pub fn is_martian(packet: &Packet) -> bool {
    let odd = |address: IpAddr| {
        // RFC 1122 §3.2.1.3 (a), (c); the rest of class E is as good as any other address to Linux.
        let special = matches!(address, IpAddr::V4(a) if a.is_broadcast() || a.octets()[0] == 0);
        address.is_loopback() || address.is_multicast() || address.is_unspecified() || special
    };
    odd(packet.source) || odd(packet.destination)
}

/// Bytes as fixtures write them.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The state of a flow that a packet just opened.
const OPENED: State = State::New;
