//! Small worlds in which much can meet: few addresses, few ports, every kind of Service.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::random::Random;
use crate::oracle::packet::flows::Side;
use crate::oracle::packet::tables::{Endpoint, Frontend, Kind, Prefix, Rules, Service, Tables};
use crate::oracle::packet::wire::{TCP, UDP};

fn address(v4: bool, four: [u8; 4]) -> IpAddr {
    if v4 {
        return Ipv4Addr::from(four).into();
    }
    let [a, b, c, d] = four.map(u16::from);
    Ipv6Addr::new(0xfd00, a, b, c, 0, 0, 0, d).into()
}

/// A pod here, a pod elsewhere, a host-network pod here, one elsewhere.
fn endpoint_address(v4: bool, place: usize, last: u8) -> IpAddr {
    match place {
        0 => address(v4, [10, 244, 1, last]),
        1 => address(v4, [10, 244, 2, last]),
        2 => node(v4),
        _ => address(v4, [192, 0, 2, 20 + last]),
    }
}

fn node(v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::new(192, 0, 2, 10).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10).into()
    }
}

fn prefix(v4: bool, four: [u8; 4], length: u8) -> Prefix {
    let length = if v4 { length } else { length * 2 + 16 };
    let length = if v4 { length } else { length.min(128) };
    Prefix {
        address: address(v4, four),
        length,
    }
}

pub(crate) fn tables(random: &mut Random) -> Tables {
    let mut tables = Tables {
        settings: rules(random),
        uplink: [Some(node(true)), Some(node(false))],
        ..Tables::default()
    };
    for v4 in [true, false] {
        tables.node_ports_on.insert(node(v4));
        tables.node_only.insert(address(v4, [192, 0, 2, 11]));
        if random.once_in(2) {
            tables
                .tombstones
                .insert((endpoint_address(v4, 1, 1 + random.below(4) as u8), 8080));
        }
        if random.once_in(3) {
            tables.lingering.insert(address(v4, [10, 96, 0, 77]));
        }
    }
    for id in 1..=3 + random.below(3) as u32 {
        let service = service(random, id);
        tables.services.push(service);
    }
    // An endpoint that serves again has no tombstone.
    let serving: BTreeSet<(IpAddr, u16)> = tables
        .services
        .iter()
        .flat_map(|s| &s.endpoints)
        .map(|e| (e.address, e.port))
        .collect();
    tables.tombstones.retain(|t| !serving.contains(t));
    tables
}

fn rules(random: &mut Random) -> Rules {
    let mut rules = Rules {
        masquerade_all: random.once_in(6),
        snat_local: random.once_in(4),
        pods_by_address: random.once_in(3),
        ports: (20_000, 20_000 + random.pick(&[63, 255, 4095])),
        ..Rules::default()
    };
    for v4 in [true, false] {
        if !random.once_in(4) {
            rules.service_cidrs.push(prefix(v4, [10, 96, 0, 0], 16));
        }
        if !random.once_in(3) {
            rules.pod_cidrs.push(prefix(v4, [10, 244, 0, 0], 16));
        }
    }
    rules
}

fn service(random: &mut Random, id: u32) -> Service {
    let v4 = !random.once_in(3);
    let protocol = random.pick(&[TCP, UDP]);
    let byte = id as u8;
    let mut frontends = vec![Frontend {
        kind: Kind::ClusterIp,
        address: Some(address(v4, [10, 96, 0, byte.div_ceil(2)])),
        port: 80 + id as u16,
    }];
    let more = [
        (Kind::NodePort, None, 30_000 + id as u16),
        (Kind::ExternalIp, Some(address(v4, [203, 0, 113, byte])), 80),
        (
            Kind::LoadBalancer,
            Some(address(v4, [203, 0, 113, 100 + byte])),
            80,
        ),
    ];
    for (kind, address, port) in more {
        if !random.once_in(3) {
            frontends.push(Frontend {
                kind,
                address,
                port,
            });
        }
    }
    let mut endpoints: Vec<Endpoint> = Vec::new();
    let external_local = random.once_in(2);
    let internal_local = random.once_in(3);
    for index in 0..random.pick(&[0, 1, 1, 2, 3, 4]) {
        let place = random.pick(&[0, 0, 0, 1, 1, 1, 2, 3]);
        let address = endpoint_address(v4, place, 1 + random.below(4) as u8);
        let port = random.pick(&[8080, 8080, 8080, 80, 9090]);
        if endpoints
            .iter()
            .any(|e| (e.address, e.port) == (address, port))
        {
            continue;
        }
        let local = place == 0 || place == 2;
        endpoints.push(Endpoint {
            id: id * 16 + index,
            address,
            port,
            local,
            host: place == 2,
            in_cluster: !random.once_in(6),
            in_local: local && !random.once_in(6),
            serving: true,
            generation: 1 + random.below(3) as u32,
        });
    }
    let mut ranges = Vec::new();
    if random.once_in(3) {
        ranges.push(prefix(v4, [198, 51, 100, 0], 24));
        if random.once_in(2) {
            ranges.push(prefix(v4, [10, 244, 1, 0], 24));
        }
    }
    Service {
        id,
        protocol,
        v4,
        frontends,
        endpoints,
        affinity: random.pick(&[0, 0, 31, 59]),
        ranges,
        internal_local,
        external_local,
    }
}

/// Somebody who asks: a pod, an endpoint itself, an outside host, this node, or nonsense.
pub(crate) fn client(random: &mut Random, tables: &Tables, side: Side, v4: bool) -> IpAddr {
    let last = 1 + random.below(4) as u8;
    match (random.below(24), side) {
        (0, _) => address(v4, [192, 0, 2, 11]),
        (1, _) => node(v4),
        (2, _) if v4 => random
            .pick(&[
                [127, 0, 0, 1],
                [0, 0, 0, 0],
                [224, 0, 0, 5],
                [255, 255, 255, 255],
            ])
            .into(),
        (2, _) => random
            .pick(&["::1", "::", "ff02::1", "fe80::1"])
            .parse()
            .expect("an address"),
        (3, _) => {
            let all: Vec<IpAddr> = tables.addresses().into_iter().collect();
            let same: Vec<IpAddr> = all.into_iter().filter(|a| a.is_ipv4() == v4).collect();
            random.pick(&same)
        }
        (4..=7, Side::Outside) => address(v4, [10, 244, 2, last]),
        (_, Side::Pod) => address(v4, [10, 244, 1, last]),
        (_, Side::Outside) => address(v4, [198, 51, 100, last]),
    }
}

pub(crate) fn client_port(random: &mut Random) -> u16 {
    match random.below(24) {
        0 => random.pick(&[0, 65_535, 20_001, 53, 8080]),
        n => 40_000 + (n % 3) as u16,
    }
}

/// Something to dial, and the protocol it has.
pub(crate) fn destination(random: &mut Random, tables: &Tables, v4: bool) -> (IpAddr, u16, u8) {
    let protocol = random.pick(&[TCP, UDP]);
    match random.below(24) {
        0 => return (address(v4, [10, 96, 3, 3]), 80, protocol),
        1 => return (address(v4, [10, 96, 0, 77]), 80, protocol),
        2 => return (address(v4, [198, 51, 100, 9]), 80, protocol),
        3 => {
            if let Some((address, port)) = tables.tombstones.iter().next()
                && address.is_ipv4() == v4
            {
                return (*address, *port, UDP);
            }
        }
        4 => {
            return (
                address(v4, [10, 244, 1, 1 + random.below(4) as u8]),
                8080,
                protocol,
            );
        }
        5..=7 => {
            // An endpoint itself, past the Service.
            let same = tables.services.iter().filter(|s| s.v4 == v4);
            let all: Vec<_> = same
                .flat_map(|s| s.endpoints.iter().map(|e| (e.address, e.port, s.protocol)))
                .collect();
            if !all.is_empty() {
                return random.pick(&all);
            }
        }
        _ => {}
    }
    let services: Vec<&Service> = tables
        .services
        .iter()
        .filter(|s| s.v4 == v4 && !s.frontends.is_empty())
        .collect();
    if services.is_empty() {
        return (node(v4), 30_001, protocol);
    }
    let service = services[random.below(services.len())];
    let frontend = random.pick(&service.frontends);
    let address = frontend.address.unwrap_or_else(|| {
        if random.once_in(6) {
            address(v4, [192, 0, 2, 11])
        } else {
            node(v4)
        }
    });
    let port = if random.once_in(8) {
        random.pick(&[0, 81, 443, 65_535])
    } else {
        frontend.port
    };
    (address, port, service.protocol)
}
