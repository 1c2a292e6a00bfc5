//! States from seeds.
//!
//! Addresses and NodePorts are counted, not drawn: neighbours in time shall not share them, as what the kernel
//! tracks outlives a Service. Everything else comes from small pools, so that it meets.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_agent::snapshot::Family;
use serde_json::{Map, Value, json};

use super::mutate::first_node_port;
use super::stage::{NODES, PODS, TARGETS};
use super::state::{Case, NAMESPACE, State};
use crate::address::{self, FAMILIES};
use crate::fuzz::random::Random;

const ZONES: [&str; 2] = ["east", "west"];

/// Cases that a state may have, at most: some things are there once in so many.
pub const MOST_TOGETHER: u64 = 24;

/// A Service port: name, protocol, number.
pub(super) type PortPlan = (String, String, u16);

/// Attributes of one endpoint address within a Service: duplicates of it must not differ between slices, as kube-proxy
/// visits them in random order (spec §8, B11).
#[derive(Clone)]
pub(super) struct Endpoint {
    address: String,
    node: Option<String>,
    conditions: Value,
    hints: Option<Value>,
}

impl Endpoint {
    /// As a slice lists it.
    fn listed(&self) -> Value {
        let mut object = json!({"addresses": [self.address], "conditions": self.conditions});
        if let Some(node) = &self.node {
            object["nodeName"] = json!(node);
        }
        if let Some(hints) = &self.hints {
            object["hints"] = hints.clone();
        }
        object
    }
}

/// What a Service's endpoints lean to.
#[derive(Clone, Copy)]
pub(super) struct Leaning {
    hints: usize,
    conditions: usize,
}

impl Leaning {
    pub(super) fn some(random: &mut Random) -> Self {
        Self {
            hints: random.below(7),
            conditions: random.below(6),
        }
    }
}

/// The state of that number in the campaign of that seed.
pub fn state(seed: u64, number: u64, cases: usize) -> State {
    let mut random = Random::new(seed.wrapping_mul(0x1_0000_0001).wrapping_add(number));
    // Zones stay for a while, as their change takes long to arrive for sure.
    let mut zoning = Random::new(seed ^ (number / 6) << 8);
    let zones = (0..NODES)
        .map(|node| match zoning.below(6) {
            0 => None,
            1 => Some(zoning.pick(&ZONES).to_owned()),
            _ => Some(ZONES[usize::from(node) % 2].to_owned()),
        })
        .collect();
    let cases = (0..cases)
        .map(|index| case(&mut random, number * cases as u64 + index as u64))
        .collect();
    State {
        note: format!("seed {seed}, state {number}"),
        zones,
        cases,
    }
}

fn case(random: &mut Random, number: u64) -> Case {
    let name = format!("service-{number}");
    let families: &[Family] = match random.below(8) {
        0 => &[Family::V4],
        1 => &[Family::V6],
        2 => &[Family::V6, Family::V4],
        _ => &FAMILIES,
    };
    let ports = ports(random);
    let service = service(random, &name, number, families, &ports);
    let leaning = Leaning::some(random);
    let mut slices = Vec::new();
    for family in FAMILIES {
        // Slices of a family that the Service has not must do no harm.
        if !families.contains(&family) && !random.once_in(4) {
            continue;
        }
        let mut known = BTreeMap::new();
        for _ in 0..random.pick(&[0, 1, 1, 1, 2, 2, 3]) {
            let number = slices.len();
            slices.push(slice(
                random, &name, number, family, &ports, leaning, &mut known,
            ));
        }
    }
    Case { service, slices }
}

fn ports(random: &mut Random) -> Vec<PortPlan> {
    let pool: [PortPlan; 5] = [
        ("http", "TCP", 80),
        ("dns", "UDP", 53),
        ("dns-tcp", "TCP", 53),
        ("alt", "TCP", 81),
        ("quic", "UDP", 80),
    ]
    .map(|(name, protocol, number)| (name.into(), protocol.into(), number));
    let mut ports: Vec<PortPlan> = pool
        .iter()
        .filter(|_| random.below(100) < 38)
        .cloned()
        .collect();
    if ports.is_empty() {
        ports.push(random.pick(&pool));
    }
    if ports.len() == 1 && random.once_in(2) {
        ports[0].0.clear();
    }
    ports
}

fn service(
    random: &mut Random,
    name: &str,
    number: u64,
    families: &[Family],
    ports: &[PortPlan],
) -> Value {
    let kind = random.pick(&[
        "ClusterIP",
        "ClusterIP",
        "ClusterIP",
        "NodePort",
        "NodePort",
        "NodePort",
        "LoadBalancer",
        "LoadBalancer",
        "LoadBalancer",
        "LoadBalancer",
    ]);
    let headless = random.once_in(40);
    let kind = if headless { "ClusterIP" } else { kind };
    if random.once_in(50) {
        return json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"type": "ExternalName", "externalName": "example.org", "externalIPs": [
                address::external(Family::V4, host(number, 0)).to_string()], "ports": port_list(ports, None)},
        });
    }
    let mut spec = Map::new();
    spec.insert("type".into(), json!(kind));
    let ips: Vec<String> = if headless {
        vec!["None".into()]
    } else {
        families
            .iter()
            .map(|&family| cluster_ip(random, family, number))
            .collect()
    };
    let names: Vec<&str> = families.iter().map(|&family| family_name(family)).collect();
    spec.insert("ipFamilies".into(), json!(names));
    spec.insert(
        "ipFamilyPolicy".into(),
        json!(if families.len() == 2 {
            "RequireDualStack"
        } else {
            "SingleStack"
        }),
    );
    spec.insert("clusterIP".into(), json!(ips[0]));
    spec.insert("clusterIPs".into(), json!(ips));
    let with_node_ports = kind == "NodePort" || (kind == "LoadBalancer" && !random.once_in(5));
    if kind == "LoadBalancer" && !with_node_ports {
        spec.insert("allocateLoadBalancerNodePorts".into(), json!(false));
    }
    let first = with_node_ports.then(|| first_node_port(number));
    spec.insert("ports".into(), port_list(ports, first));
    if random.below(100) < 35 {
        spec.insert("internalTrafficPolicy".into(), json!("Local"));
    }
    let externals = external_ips(random, number);
    if (kind != "ClusterIP" || !externals.is_empty()) && random.below(100) < 45 {
        spec.insert("externalTrafficPolicy".into(), json!("Local"));
    }
    if !externals.is_empty() {
        spec.insert("externalIPs".into(), json!(externals));
    }
    if random.below(100) < 12 {
        spec.insert("sessionAffinity".into(), json!("ClientIP"));
        spec.insert(
            "sessionAffinityConfig".into(),
            json!({"clientIP": {"timeoutSeconds": 1000}}),
        );
    }
    let mut labels = Map::new();
    if random.once_in(30) {
        labels.insert(
            "service.kubernetes.io/service-proxy-name".into(),
            json!(random.pick(&["", "other"])),
        );
    }
    if random.once_in(30) {
        labels.insert("service.kubernetes.io/headless".into(), json!(""));
    }
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
    });
    if kind == "LoadBalancer" {
        if random.below(100) < 40 {
            spec.insert(
                "loadBalancerSourceRanges".into(),
                json!(source_ranges(random)),
            );
        }
        let ingress = ingress(random, number);
        if !ingress.is_empty() {
            object["status"] = json!({"loadBalancer": {"ingress": ingress}});
        }
    }
    object["spec"] = Value::Object(spec);
    object
}

/// TCP and UDP of one port number share a NodePort, as users have it for DNS.
pub(super) fn port_list(ports: &[PortPlan], first_node_port: Option<u16>) -> Value {
    let mut numbers: Vec<u16> = Vec::new();
    let list = ports.iter().map(|(name, protocol, number)| {
        let place = numbers
            .iter()
            .position(|other| other == number)
            .unwrap_or_else(|| {
                numbers.push(*number);
                numbers.len() - 1
            });
        let mut port = json!({"port": number, "protocol": protocol});
        if !name.is_empty() {
            port["name"] = json!(name);
        }
        if let Some(first) = first_node_port {
            port["nodePort"] = json!(first + place as u16);
        }
        port
    });
    list.collect()
}

/// In 10.96.16.0 and after; sometimes with leading zeros, as old objects have them (spec A25).
fn cluster_ip(random: &mut Random, family: Family, number: u64) -> String {
    let (high, low) = ((number / 250 % 200) as u8 + 16, (number % 250) as u8 + 1);
    match family {
        Family::V4 if random.once_in(40) => format!("010.096.{high:03}.{low:03}"),
        Family::V4 => Ipv4Addr::new(10, 96, high, low).to_string(),
        Family::V6 => {
            let host = u16::from(high) << 8 | u16::from(low);
            Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, host).to_string()
        }
    }
}

fn host(number: u64, offset: u64) -> u8 {
    (1 + (number * 3 + offset) % 249) as u8
}

pub(super) fn external_ips(random: &mut Random, number: u64) -> Vec<String> {
    if random.below(100) >= 30 {
        return Vec::new();
    }
    let mut found = Vec::new();
    for family in FAMILIES {
        if random.below(100) < 70 {
            let ip = address::external(family, host(number, 0)).to_string();
            let zeros = family == Family::V4 && random.once_in(20);
            found.push(if zeros {
                ip.replace(".0.", ".000.")
            } else {
                ip
            });
        }
    }
    // Twice in one state it would be open which of two Services has it (spec D22).
    if number % MOST_TOGETHER == 5 {
        // An address of a node, which then serves this port too (spec D9).
        found.push(address::node(random.pick(&FAMILIES), 1).to_string());
    }
    found
}

pub(super) fn ingress(random: &mut Random, number: u64) -> Vec<Value> {
    let mut found = Vec::new();
    for offset in 0..random.pick(&[0, 1, 1, 1, 2]) {
        for family in FAMILIES {
            if random.below(100) < 75 {
                let ip = address::load_balancer(family, host(number, offset)).to_string();
                let mut entry = json!({"ip": ip});
                match random.below(6) {
                    0 => entry["ipMode"] = json!("Proxy"),
                    1 | 2 => entry["ipMode"] = json!("VIP"),
                    _ => {}
                }
                found.push(entry);
            }
        }
    }
    if random.once_in(10) {
        found.push(json!({"hostname": "lb.example.org"}));
    }
    found
}

pub(super) fn source_ranges(random: &mut Random) -> Vec<String> {
    let pool = [
        "172.31.0.100/32",
        "172.31.0.11/32",
        "172.31.0.0/24",
        "172.31.0.12/32",
        "10.244.0.0/16",
        "10.244.1.11/32",
        "10.244.2.0/24",
        "192.0.2.0/24",
        "0.0.0.0/0",
        "fd31::100/128",
        "fd31::/64",
        "fd31::11/128",
        "fd44:1::/64",
        "fd44:2::12/128",
        "2001:db8::/32",
        "::/0",
        " 172.31.0.100/32",
        "010.244.001.000/24",
    ];
    (0..1 + random.below(4))
        .map(|_| random.pick(&pool).to_owned())
        .collect()
}

pub(super) fn slice(
    random: &mut Random,
    service: &str,
    number: usize,
    family: Family,
    ports: &[PortPlan],
    leaning: Leaning,
    known: &mut BTreeMap<usize, Endpoint>,
) -> Value {
    let mut labels = Map::new();
    labels.insert("kubernetes.io/service-name".into(), json!(service));
    if random.once_in(40) {
        labels.insert("service.kubernetes.io/headless".into(), json!(""));
    }
    if random.once_in(30) {
        labels.insert(
            "service.kubernetes.io/service-proxy-name".into(),
            json!("other"),
        );
    }
    if random.once_in(3) {
        labels.insert(
            "endpointslice.kubernetes.io/managed-by".into(),
            json!("staff"),
        );
    }
    let mut slice_ports = Vec::new();
    for (name, protocol, _) in ports {
        if random.once_in(12) {
            continue;
        }
        // The same name may lead elsewhere in each slice (spec B6).
        let target = random.pick(&TARGETS);
        let other = if protocol == "TCP" { "UDP" } else { "TCP" };
        let protocol = if random.once_in(25) { other } else { protocol };
        slice_ports.push(json!({"name": name, "protocol": protocol, "port": target}));
    }
    let mut endpoints = Vec::new();
    for _ in 0..random.below(6) {
        let hosts = usize::from(NODES) * (usize::from(PODS) + 1);
        let place = random.below(hosts);
        let found = known.entry(place).or_insert_with(|| {
            if random.once_in(8) {
                // Who had the address before: within a slice the later one counts, unless it terminates (spec §8, B11).
                let leaning = Leaning::some(random);
                endpoints.push(endpoint(random, place, family, leaning).listed());
            }
            endpoint(random, place, family, leaning)
        });
        endpoints.push(found.listed());
    }
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{service}-{}{number}", random.pick(&["x", "b", "q"])),
            "namespace": NAMESPACE, "labels": labels},
        "addressType": family_name(family), "ports": slice_ports, "endpoints": endpoints,
    })
}

/// `place` counts the pods of node1, node1 itself, then those of node2.
fn endpoint(random: &mut Random, place: usize, family: Family, leaning: Leaning) -> Endpoint {
    let each = usize::from(PODS) + 1;
    let (node, index) = ((place / each + 1) as u8, (place % each + 1) as u8);
    let ip: IpAddr = if index <= PODS {
        address::pod(family, node, index)
    } else {
        address::node(family, node)
    };
    // Never another node of ours: an endpoint that is somewhere else than its slice says is none that a cluster has.
    let node = match random.below(12) {
        0 => None,
        1 => Some(random.pick(&["node", "node11"]).to_owned()),
        _ => Some(format!("node{node}")),
    };
    Endpoint {
        address: ip.to_string(),
        node,
        conditions: conditions(random, leaning.conditions),
        hints: hints(random, leaning.hints),
    }
}

fn conditions(random: &mut Random, leaning: usize) -> Value {
    let of = |ready: bool, serving: bool, terminating: bool| json!({"ready": ready, "serving": serving, "terminating": terminating});
    match leaning {
        0 | 1 => of(true, true, false),
        // Nobody is ready, some are on their way out.
        2 => of(false, !random.once_in(3), !random.once_in(4)),
        3 => random.pick(&[
            of(true, true, false),
            of(false, true, true),
            of(false, false, true),
        ]),
        4 => random.pick(&[
            json!({}),
            json!({"ready": null}),
            json!({"ready": false}),
            json!({"ready": true}),
            json!({"ready": false, "terminating": true}),
            json!({"serving": false}),
        ]),
        _ => of(random.once_in(2), random.once_in(2), random.once_in(2)),
    }
}

fn hints(random: &mut Random, leaning: usize) -> Option<Value> {
    let zone = random.pick(&ZONES);
    let node = format!("node{}", 1 + random.below(3));
    let zones =
        |names: &[&str]| -> Vec<Value> { names.iter().map(|name| json!({"name": name})).collect() };
    if random.once_in(20) {
        return None;
    }
    match leaning {
        0 | 1 => None,
        2 | 3 => Some(json!({"forZones": zones(&[zone])})),
        4 => Some(json!({"forZones": zones(&[zone]), "forNodes": [{"name": node}]})),
        5 => Some(json!({"forZones": zones(&["north"]), "forNodes": [{"name": node}]})),
        _ => match random.below(3) {
            0 => None,
            1 => Some(json!({"forNodes": [{"name": node}]})),
            _ => Some(json!({"forZones": zones(&ZONES)})),
        },
    }
}

pub(super) fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}
