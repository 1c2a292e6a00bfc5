//! Inputs for the selection oracle: random ones, and smaller versions of one that failed.

use std::fmt;
use std::net::IpAddr;

use lb_agent::snapshot::{
    Family, Hints, Node, ObjectName, Protocol, Service, ServicePort, Slice, SliceEndpoint,
    SlicePort,
};

const OWN_NODE: &str = "node-a";
const OWN_ZONE: &str = "east";
const NAMESPACE: &str = "shop";
const SERVICE: &str = "web";

/// A Service, slices (some of them others') and the own node.
#[derive(Clone, PartialEq)]
pub struct Case {
    pub service: Service,
    pub slices: Vec<Slice>,
    pub node: Node,
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// True in `part` of `whole` cases.
    fn chance(&mut self, part: usize, whole: usize) -> bool {
        self.below(whole) < part
    }

    fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len())]
    }
}

impl Case {
    /// A random case. Addresses, ports and names come from small pools, so that they meet.
    pub fn random(random: &mut Random) -> Self {
        let service = random_service(random);
        // Whole cases lean to one kind of hints: a mode needs them on every ready endpoint.
        let hinting = random.below(6);
        let slices = (0..random.below(5))
            .map(|index| random_slice(random, index, hinting))
            .collect();
        let zone = [
            Some(OWN_ZONE),
            Some(OWN_ZONE),
            Some(OWN_ZONE),
            None,
            Some(""),
        ][random.below(5)];
        Self {
            service,
            slices,
            node: own_node(zone),
        }
    }

    /// One slice with one port.
    pub fn of(endpoints: Vec<SliceEndpoint>, zone: bool, policies: Policies) -> Self {
        let mut service = plain_service();
        service.internal_local = policies.internal_local;
        service.external_local = policies.external_local;
        service.ports[0].node_port = if policies.external { 30080 } else { 0 };
        let slice = Slice {
            name: object("web-0"),
            service: SERVICE.into(),
            family: Family::V4,
            ports: vec![SlicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 8080,
            }],
            endpoints,
            trigger_time: None,
        };
        Self {
            service,
            slices: vec![slice],
            node: own_node(zone.then_some(OWN_ZONE)),
        }
    }

    /// The smallest case found by leaving things out of this one for which `fails` still holds.
    pub fn shrink(self, fails: impl Fn(&Case) -> bool) -> Self {
        let mut smallest = self;
        while let Some(smaller) = smallest.smaller().into_iter().find(|case| fails(case)) {
            smallest = smaller;
        }
        smallest
    }

    /// Every case that has one thing less.
    fn smaller(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        let mut with = |change: &dyn Fn(&mut Case)| {
            let mut case = self.clone();
            change(&mut case);
            if case != *self {
                cases.push(case);
            }
        };
        for index in 0..self.slices.len() {
            with(&|case| drop(case.slices.remove(index)));
            for port in 0..self.slices[index].ports.len() {
                with(&|case| drop(case.slices[index].ports.remove(port)));
            }
            for endpoint in 0..self.slices[index].endpoints.len() {
                with(&|case| drop(case.slices[index].endpoints.remove(endpoint)));
                with(&|case| case.slices[index].endpoints[endpoint].hints = None);
                with(&|case| case.slices[index].endpoints[endpoint].node = None);
                with(&|case| case.slices[index].endpoints[endpoint].ready = true);
                with(&|case| case.slices[index].endpoints[endpoint].serving = true);
                with(&|case| case.slices[index].endpoints[endpoint].terminating = false);
            }
        }
        for index in 0..self.service.ports.len() {
            with(&|case| drop(case.service.ports.remove(index)));
            with(&|case| case.service.ports[index].node_port = 0);
        }
        with(&|case| case.service.cluster_ips.truncate(1));
        with(&|case| case.service.external_ips.clear());
        with(&|case| case.service.load_balancer_ips.clear());
        with(&|case| case.service.internal_local = false);
        with(&|case| case.service.external_local = false);
        with(&|case| case.node.zone = None);
        cases
    }
}

/// An endpoint as the tables of the rules name it: `r` ready, `ts` terminating and serving, `tn` terminating
/// and not serving, anything else not ready.
pub fn endpoint_in(state: &str, address: IpAddr, local: bool) -> SliceEndpoint {
    SliceEndpoint {
        address,
        ready: state == "r",
        serving: state == "r" || state == "ts",
        terminating: state == "ts" || state == "tn",
        node: Some(if local { OWN_NODE } else { "node-b" }.into()),
        hints: None,
    }
}

/// What a Service asks of [`Case::of`].
#[derive(Clone, Copy)]
pub struct Policies {
    pub internal_local: bool,
    pub external_local: bool,
    /// It has a NodePort.
    pub external: bool,
}

/// One endpoint of every kind: conditions, place and hints in all combinations.
pub fn every_endpoint(address: IpAddr) -> Vec<SliceEndpoint> {
    let hints: [Option<(&[&str], &[&str])>; 7] = [
        None,
        Some((&[], &[])),
        Some((&[OWN_ZONE], &[])),
        Some((&["west"], &[])),
        Some((&[], &[OWN_NODE])),
        Some((&["west"], &["node-b"])),
        Some((&[OWN_ZONE], &[OWN_NODE])),
    ];
    let mut endpoints = Vec::new();
    for conditions in 0..8 {
        for node in [OWN_NODE, "node-b"] {
            for hint in hints {
                endpoints.push(SliceEndpoint {
                    address,
                    ready: conditions & 1 != 0,
                    serving: conditions & 2 != 0,
                    terminating: conditions & 4 != 0,
                    node: Some(node.into()),
                    hints: hint.map(|(zones, nodes)| Box::new(hints_of(zones, nodes))),
                });
            }
        }
    }
    endpoints
}

fn random_service(random: &mut Random) -> Service {
    let mut service = plain_service();
    let v4: IpAddr = "10.96.0.10".parse().expect("an address");
    let v6: IpAddr = "fd96::10".parse().expect("an address");
    service.cluster_ips = match random.below(6) {
        0 => vec![v4],
        1 => vec![v6],
        2 => vec![v6, v4],
        _ => vec![v4, v6],
    };
    service.external_ips = some_of(random, &["203.0.113.1", "2001:db8:1::1"]);
    service.load_balancer_ips = some_of(random, &["198.51.100.1", "2001:db8:2::1"]);
    service.internal_local = random.chance(1, 2);
    service.external_local = random.chance(1, 2);
    // Names are unique within a Service; the API server sees to it.
    let pool = [
        ("http", Protocol::Tcp),
        ("dns", Protocol::Udp),
        ("dns-tcp", Protocol::Tcp),
        ("signal", Protocol::Sctp),
    ];
    service.ports = pool
        .iter()
        .zip([80, 53, 53, 132])
        .filter(|_| random.chance(1, 2))
        .map(|(&(name, protocol), port)| ServicePort {
            name: name.into(),
            protocol,
            port,
            node_port: 0,
        })
        .collect();
    if service.ports.is_empty() {
        // A single port may have no name.
        service.ports.push(ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 0,
        });
    }
    for (index, port) in service.ports.iter_mut().enumerate() {
        if random.chance(1, 3) {
            port.node_port = 30000 + index as u16;
        }
    }
    service
}

fn random_slice(random: &mut Random, index: usize, hinting: usize) -> Slice {
    let family = if random.chance(2, 3) {
        Family::V4
    } else {
        Family::V6
    };
    let mut ports: Vec<SlicePort> = Vec::new();
    for name in ["http", "dns", "dns-tcp", "signal", "", "other"] {
        if random.chance(1, 2) {
            let usual = match name {
                "dns" => Protocol::Udp,
                "signal" => Protocol::Sctp,
                _ => Protocol::Tcp,
            };
            let protocol = if random.chance(1, 8) {
                Protocol::Udp
            } else {
                usual
            };
            ports.push(SlicePort {
                name: name.into(),
                protocol,
                port: 8080 + random.below(2) as u16,
            });
        }
    }
    let endpoints = (0..random.below(7))
        .map(|_| random_endpoint(random, family, hinting))
        .collect();
    // Names in no order, as the API server makes them; sometimes another Service's or namespace's slice.
    let mut name = object(&format!("web-{}{index}", random.pick(&["x", "b", "q"])));
    if random.chance(1, 20) {
        name.namespace = "other".into();
    }
    let service = if random.chance(1, 20) {
        "other"
    } else {
        SERVICE
    };
    Slice {
        name,
        service: service.into(),
        family,
        ports,
        endpoints,
        trigger_time: None,
    }
}

fn random_endpoint(random: &mut Random, family: Family, hinting: usize) -> SliceEndpoint {
    let is_v4 = (family == Family::V4) != random.chance(1, 40);
    let host = 1 + random.below(6);
    let address = if is_v4 {
        format!("192.0.2.{host}")
    } else {
        format!("2001:db8::{host}")
    };
    let node = match random.below(6) {
        0 => None,
        // Compared as written: neither a prefix nor another case is ours.
        1 => Some(random.pick(&["node-", "NODE-A", "node-a2"])),
        2 | 3 => Some(OWN_NODE),
        _ => Some("node-b"),
    };
    // Usual conditions half of the time; else anything, also what no controller writes.
    let (ready, serving, terminating) = match random.below(8) {
        0..3 => (true, true, false),
        3 => (false, true, true),
        _ => (
            random.chance(1, 2),
            random.chance(1, 2),
            random.chance(1, 2),
        ),
    };
    SliceEndpoint {
        address: address.parse().expect("an address"),
        ready,
        serving,
        terminating,
        node: node.map(Into::into),
        hints: random_hints(random, hinting),
    }
}

fn random_hints(random: &mut Random, hinting: usize) -> Option<Box<Hints>> {
    let zones = [OWN_ZONE, "west", "north"];
    let nodes = [OWN_NODE, "node-b", "node-c"];
    let zone = zones[random.below(3)];
    let node = nodes[random.below(3)];
    let hints = match hinting {
        0 => return None,
        1 => hints_of(&[zone], &[]),
        2 => hints_of(&[zone], &[node]),
        3 => hints_of(&["west"], &[node]),
        4 => hints_of(
            &[zone, zones[random.below(3)]],
            &[node, nodes[random.below(3)]],
        ),
        _ => match random.below(4) {
            0 => return None,
            1 => Hints::default(),
            2 => hints_of(&[], &[node]),
            _ => hints_of(&[zone], &[]),
        },
    };
    // One endpoint without hints ends a mode; seldom enough to see modes at work.
    if random.chance(1, 25) {
        None
    } else {
        Some(Box::new(hints))
    }
}

fn plain_service() -> Service {
    Service {
        name: object(SERVICE),
        cluster_ips: vec!["10.96.0.10".parse().expect("an address")],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 0,
        }],
        external_local: false,
        internal_local: false,
        affinity_seconds: None,
        health_check_port: None,
    }
}

fn own_node(zone: Option<&str>) -> Node {
    Node {
        name: OWN_NODE.into(),
        zone: zone.map(Into::into),
        ..Node::default()
    }
}

fn object(name: &str) -> ObjectName {
    ObjectName {
        namespace: NAMESPACE.into(),
        name: name.into(),
    }
}

fn hints_of(zones: &[&str], nodes: &[&str]) -> Hints {
    let own = |names: &[&str]| names.iter().map(|&name| name.into()).collect();
    Hints {
        zones: own(zones),
        nodes: own(nodes),
    }
}

fn some_of(random: &mut Random, addresses: &[&str]) -> Vec<IpAddr> {
    let some = addresses.iter().filter(|_| random.chance(1, 4));
    some.map(|address| address.parse().expect("an address"))
        .collect()
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "node: {:?}\nservice: {:?}",
            self.node, self.service
        )?;
        for slice in &self.slices {
            let (name, service, family) = (&slice.name, &slice.service, slice.family);
            writeln!(
                formatter,
                "slice {name:?} of {service}, {family:?}, ports {:?}",
                slice.ports
            )?;
            for endpoint in &slice.endpoints {
                writeln!(formatter, "  {endpoint:?}")?;
            }
        }
        Ok(())
    }
}
