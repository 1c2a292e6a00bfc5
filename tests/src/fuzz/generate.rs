//! Scripts out of a seed: a small world, and conversations in it that cross each other.

use std::net::IpAddr;

use super::frames::{self, Shape};
use super::random::Random;
use super::script::{Change, Complaint, Edit, From, Script, Speech, Step};
use super::world;
use crate::oracle::packet::Hook;
use crate::oracle::packet::flows::Side;
use crate::oracle::packet::tables::Tables;
use crate::oracle::packet::wire::{ACK, FIN, ICMP, ICMP6, RST, SYN, TCP, UDP};

/// Steps of a script.
const STEPS: usize = 96;

/// A conversation under way.
struct Talk {
    side: Side,
    v4: bool,
    /// Client's packets at the ingress of their side.
    asked: Vec<usize>,
    /// Those on their way out.
    left: Vec<usize>,
    /// What the endpoint said, as it met us first.
    answered: Vec<usize>,
    /// What the client got.
    told: Vec<usize>,
}

pub fn script(seed: u64) -> Script {
    let mut random = Random::new(seed);
    let tables = world::tables(&mut random);
    let mut steps = Vec::new();
    let mut talks: Vec<Talk> = Vec::new();
    while steps.len() < STEPS {
        if random.once_in(60) {
            steps.push(Step::Wait(random.pick(&[7, 7, 42, 84, 210])));
        } else if random.once_in(50) {
            steps.push(Step::Change(change(&mut random, &tables)));
        } else if random.once_in(20) {
            ask_strangers(&mut random, &tables, &mut steps);
        } else if talks.is_empty() || random.once_in(3) {
            open(&mut random, &tables, &mut steps, &mut talks);
        } else {
            let talk = random.below(talks.len());
            proceed(&mut random, &mut talks[talk], &mut steps);
        }
    }
    Script {
        tables,
        // Nothing else depends on it, so that a seed fails or passes by both ways.
        xdp: seed.is_multiple_of(3),
        steps,
    }
}

fn change(random: &mut Random, tables: &Tables) -> Change {
    let service = random.below(tables.services.len());
    let endpoints = tables.services[service].endpoints.len().max(1);
    let endpoint = random.below(endpoints);
    match random.below(10) {
        0..=3 => Change::EndpointGone(service, endpoint),
        4..=5 => Change::EndpointLeaves(service, endpoint),
        6..=8 => Change::EndpointBack(service, endpoint),
        _ => Change::ServiceGone(service),
    }
}

fn open(random: &mut Random, tables: &Tables, steps: &mut Vec<Step>, talks: &mut Vec<Talk>) {
    let side = random.pick(&[Side::Pod, Side::Outside]);
    let v4 = !random.once_in(3);
    let (destination, port, usual) = world::destination(random, tables, v4);
    let source = world::client(random, tables, side, v4);
    let protocol = match random.below(20) {
        0 => random.pick(&[if v4 { ICMP } else { ICMP6 }, 47, 132, 50]),
        1 => {
            if usual == TCP {
                UDP
            } else {
                TCP
            }
        }
        _ => usual,
    };
    let ports = (world::client_port(random), port);
    let shape = shape(random, v4);
    let load = match protocol {
        TCP | UDP => frames::transport(protocol, ports, &opening(random)),
        _ => echo(random, v4),
    };
    let fragments = shape.piece.is_some();
    let frame = |random: &mut Random, load: Vec<u8>, shape: &Shape| {
        let packet = frames::packet((source, destination), protocol, load, shape);
        let edits = edits(random, packet.len() + 14);
        (frames::incoming(side, packet, &shape.tags), edits)
    };
    let hook = ingress(side);
    let (bytes, changes) = frame(random, load, &shape);
    talks.push(Talk {
        side,
        v4,
        asked: vec![steps.len()],
        left: Vec::new(),
        answered: Vec::new(),
        told: Vec::new(),
    });
    steps.push(Step::Frame {
        hook,
        from: From::Bytes(bytes),
        edits: changes,
    });
    if fragments {
        // The rest of the packet, or some other packet's.
        let (id, _, _) = shape.piece.unwrap_or_default();
        let id = if random.once_in(8) { id ^ 1 } else { id };
        let later = Shape {
            piece: Some((id, 1 + random.below(200) as u16, random.once_in(2))),
            ..shape
        };
        let units = 1 + random.below(4);
        let load = random.bytes(8 * units);
        let (bytes, edits) = frame(random, load, &later);
        steps.push(Step::Frame {
            hook,
            from: From::Bytes(bytes),
            edits,
        });
    }
}

/// Datagrams that leave from this node's address and a NodePort, mostly, and what comes back to such.
fn ask_strangers(random: &mut Random, tables: &Tables, steps: &mut Vec<Step>) {
    let nodes: Vec<IpAddr> = tables.node_ports_on.iter().copied().collect();
    if nodes.is_empty() {
        return;
    }
    let node = random.pick(&nodes);
    let v4 = node.is_ipv4();
    let same = tables.services.iter().filter(|service| service.v4 == v4);
    let ports: Vec<u16> = same
        .flat_map(|service| &service.frontends)
        .filter(|frontend| frontend.address.is_none())
        .map(|frontend| frontend.port)
        .collect();
    let port = if ports.is_empty() || random.once_in(8) {
        world::client_port(random)
    } else {
        random.pick(&ports)
    };
    let stranger = world::client(random, tables, Side::Outside, v4);
    let stranger_port = world::client_port(random);
    for _ in 0..1 + random.below(3) {
        let back = random.once_in(2);
        let shape = shape(random, v4);
        let (ends, ports, hook) = if back {
            ((stranger, node), (stranger_port, port), Hook::OutIngress)
        } else {
            ((node, stranger), (port, stranger_port), Hook::OutEgress)
        };
        let load = frames::transport(UDP, ports, &speech(random, 0));
        let packet = frames::packet(ends, UDP, load, &shape);
        let edits = edits(random, packet.len() + 14);
        steps.push(Step::Frame {
            hook,
            from: From::Bytes(frames::incoming(Side::Outside, packet, &shape.tags)),
            edits,
        });
    }
}

fn opening(random: &mut Random) -> Speech {
    let flags = match random.below(12) {
        0 => random.number() as u8,
        1 => ACK,
        2 => SYN | random.pick(&[8, 32, 64, 128, 192]),
        _ => SYN,
    };
    speech(random, flags)
}

fn speech(random: &mut Random, flags: u8) -> Speech {
    let length = random.pick(&[0, 0, 1, 2, 3, 8, 17, 64, 333, 1400]);
    Speech {
        flags,
        data: random.bytes(length),
    }
}

fn echo(random: &mut Random, v4: bool) -> Vec<u8> {
    let kind = match (random.below(4), v4) {
        (0, _) => random.number() as u8,
        (1, true) => 0,
        (1, false) => 129,
        (_, true) => 8,
        (_, false) => 128,
    };
    let length = random.below(48);
    [&[kind, 0, 0, 0, 0, 1, 0, 1][..], &random.bytes(length)].concat()
}

fn shape(random: &mut Random, v4: bool) -> Shape {
    let mut shape = Shape {
        hops: random.pick(&[64, 64, 64, 255, 1, 0, 2]),
        dont_fragment: random.once_in(2),
        ..Shape::default()
    };
    if random.once_in(8) {
        if v4 {
            shape.options = frames::some_options(random);
        } else {
            shape.extensions = frames::some_extensions(random);
        }
    }
    if random.once_in(8) {
        let id = random.pick(&[1, 2, 0xffff]);
        // Rarely a whole packet that says it is a fragment (RFC 6946).
        shape.piece = Some((id, 0, !random.once_in(6)));
    }
    shape
}

fn edits(random: &mut Random, length: usize) -> Vec<Edit> {
    let mut edits = Vec::new();
    if random.once_in(10) {
        for _ in 0..=random.below(3) {
            let at = 12 + random.below(60);
            edits.push(Edit::Flip(at, 1 << random.below(8)));
        }
        if random.once_in(2) {
            edits.push(Edit::Seal);
        }
    }
    if random.once_in(64) {
        // To another host, or to all.
        edits.push(Edit::Flip(random.below(6), 1 << random.below(8)));
    }
    if random.once_in(16) {
        edits.push(Edit::Cut(random.below(length) + 1));
    }
    edits
}

fn ingress(side: Side) -> Hook {
    match side {
        Side::Pod => Hook::PodIngress,
        Side::Outside => Hook::OutIngress,
    }
}

fn egress(side: Side) -> Hook {
    match side {
        Side::Pod => Hook::PodEgress,
        Side::Outside => Hook::OutEgress,
    }
}

/// One more packet of a conversation.
fn proceed(random: &mut Random, talk: &mut Talk, steps: &mut Vec<Step>) {
    let flags = random.pick(&[
        ACK,
        ACK,
        ACK | 8,
        SYN | ACK,
        FIN | ACK,
        RST,
        RST | ACK,
        SYN,
        0,
    ]);
    let step = steps.len();
    let asked = random.pick(&talk.asked);
    let (hook, from) = match random.below(12) {
        0 | 1 => {
            talk.asked.push(step);
            let speech = speech(random, flags);
            (ingress(talk.side), From::Again(asked, speech))
        }
        2 => {
            talk.left.push(step);
            (Hook::OutEgress, From::Onward(asked))
        }
        3..=5 => {
            talk.told.push(step);
            let speech = speech(random, flags);
            (egress(talk.side), From::Reply(asked, speech))
        }
        6 if !talk.left.is_empty() => {
            let left = random.pick(&talk.left);
            talk.answered.push(step);
            let speech = speech(random, flags);
            (Hook::OutIngress, From::Reply(left, speech))
        }
        7 if !talk.answered.is_empty() => {
            let answered = random.pick(&talk.answered);
            talk.told.push(step);
            (egress(talk.side), From::Onward(answered))
        }
        8 => {
            let told = random.pick(if talk.told.is_empty() {
                &talk.asked
            } else {
                &talk.told
            });
            // The client complains of what it got, or the pod itself of what it asked itself.
            (
                ingress(talk.side),
                From::Complaint(told, complaint(random, talk.v4)),
            )
        }
        9 => (
            egress(talk.side),
            From::Complaint(asked, complaint(random, talk.v4)),
        ),
        10 if !talk.left.is_empty() => {
            let left = random.pick(&talk.left);
            talk.answered.push(step);
            (
                Hook::OutIngress,
                From::Complaint(left, complaint(random, talk.v4)),
            )
        }
        10 => {
            let speech = speech(random, flags);
            (ingress(talk.side), From::Reply(asked, speech))
        }
        _ => (egress(talk.side), From::Onward(asked)),
    };
    let edits = edits(random, 80);
    steps.push(Step::Frame { hook, from, edits });
}

fn complaint(random: &mut Random, v4: bool) -> Complaint {
    let kinds: &[u8] = if v4 {
        &[3, 3, 3, 11, 12, 5, 4, 8]
    } else {
        &[1, 1, 2, 3, 4, 137, 128]
    };
    Complaint {
        kind: random.pick(kinds),
        code: random.pick(&[0, 1, 3, 4]),
        by_router: random.once_in(2),
        quoted: random.pick(&[20, 27, 28, 36, 40, 47, 48, 56, 60, 80, 128, 548, 1232]),
    }
}
