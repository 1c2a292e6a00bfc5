//! The objects of a history: sound ones mostly, with a share of what only a hostile or broken writer makes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::History;
use crate::history::script::{Key, OWN_NODE, Object, Watch};

/// Addresses that must never count, or that are written in odd ways.
const ODD: [&str; 22] = [
    "127.0.0.1",
    "0127.0.0.2",
    "::1",
    "169.254.169.254",
    "fe80::1",
    "224.0.0.9",
    "ff02::1",
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "255.255.255.255",
    "240.0.0.1",
    "::ffff:10.0.0.1",
    "fe80::1%eth0",
    "010.000.0.003",
    "10.0.0.256",
    "FD00:0:0:0:0:0:0:2",
    "10.0.0.1/32",
    "web.example",
    "",
    " 10.0.0.1",
    "10.96.0.1",
];
/// Names that are none.
const NO_NAMES: [&str; 4] = ["", "a b", "a\u{1b}[31m", "ab/../c"];

impl History {
    pub(super) fn node(&mut self) -> Object {
        let name = if self.random.once_in(12) {
            "node-b"
        } else {
            OWN_NODE
        };
        let mut labels = BTreeMap::new();
        if !self.random.once_in(3) {
            let zone = self.random.pick(&["east", "east", "west", "", "a b"]);
            labels.insert("topology.kubernetes.io/zone".into(), zone.into());
        }
        let mut addresses = Vec::new();
        for kind in ["InternalIP", "ExternalIP", "Hostname"] {
            for _ in 0..self.random.below(3) {
                let known = [
                    "192.168.0.2",
                    "192.168.0.3",
                    "fd01::2",
                    "1.2.3.1",
                    "10.0.0.4",
                ];
                let address = self.address(&known);
                addresses.push(core::NodeAddress {
                    address,
                    type_: kind.into(),
                });
            }
        }
        let status = core::NodeStatus {
            addresses: Some(addresses),
            ..core::NodeStatus::default()
        };
        Object::Node(Box::new(core::Node {
            metadata: ObjectMeta {
                name: Some(name.into()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            status: Some(status),
            ..core::Node::default()
        }))
    }

    /// A new Service, or a known one with something changed.
    pub(super) fn service(&mut self) -> Object {
        let key = self.object_key(Watch::Services, &["web", "dns", "api", "db"]);
        let known = self.objects.get(&key).cloned();
        if let Some(Object::Service(mut service)) = known
            && !self.random.once_in(5)
        {
            self.change_service(&mut service);
            return Object::Service(service);
        }
        let number = 1 + self.random.below(4);
        let mut addresses = vec![(format!("10.96.0.{number}"), "IPv4")];
        if self.random.once_in(2) {
            addresses.push((format!("fd96::{number}"), "IPv6"));
        }
        if self.random.once_in(3) {
            addresses.reverse();
        }
        if self.random.once_in(5) {
            addresses.truncate(1);
        }
        let (addresses, mut families): (Vec<String>, Vec<String>) = addresses
            .into_iter()
            .map(|(ip, family)| (ip, family.to_owned()))
            .unzip();
        if self.random.once_in(12) {
            families.clear();
        }
        let mut service = Box::new(core::Service {
            metadata: metadata(&key),
            spec: Some(core::ServiceSpec {
                cluster_ip: addresses.first().cloned(),
                cluster_ips: Some(addresses),
                ip_families: Some(families),
                type_: Some(
                    self.random
                        .pick(&["ClusterIP", "NodePort", "LoadBalancer"])
                        .into(),
                ),
                ports: Some(self.service_ports()),
                ..core::ServiceSpec::default()
            }),
            ..core::Service::default()
        });
        for _ in 0..self.random.below(4) {
            self.change_service(&mut service);
        }
        Object::Service(service)
    }

    fn service_ports(&mut self) -> Vec<core::ServicePort> {
        let all = [
            ("http", "TCP", 80),
            ("dns", "UDP", 53),
            ("dns-tcp", "TCP", 53),
            ("sig", "SCTP", 80),
        ];
        let mut ports = Vec::new();
        for (name, protocol, number) in all {
            if self.random.once_in(2) {
                ports.push(core::ServicePort {
                    name: Some(name.into()),
                    protocol: Some(protocol.into()),
                    port: number,
                    node_port: self
                        .random
                        .once_in(2)
                        .then(|| 30_000 + self.random.below(3) as i32),
                    ..core::ServicePort::default()
                });
            }
        }
        if ports.is_empty() {
            ports.push(core::ServicePort {
                port: 80,
                ..core::ServicePort::default()
            });
        }
        if self.random.once_in(12) {
            let mut odd = self.random.pick(&ports);
            match self.random.below(6) {
                0 => odd.port = self.random.pick(&[0, -1, 65_536, 81]),
                1 => odd.protocol = Some(self.random.pick(&["tcp", "ICMP", "UDP"]).into()),
                2 => odd.name = Some(self.random.pick(&NO_NAMES).into()),
                3 => odd.node_port = Some(self.random.pick(&[0, -5, 70_000, 30_001])),
                4 => odd.name = Some("again".into()),
                _ => {}
            }
            ports.push(odd);
        }
        ports
    }

    fn change_service(&mut self, service: &mut core::Service) {
        let external = [
            "1.2.3.1",
            "1.2.3.2",
            "10.96.0.2",
            "2001:db8::1",
            "192.168.0.2",
            "fd96::1",
        ];
        let choice = self.random.below(18);
        match choice {
            0 => {
                return toggle(
                    &mut service.metadata,
                    "service.kubernetes.io/service-proxy-name",
                );
            }
            1 => return toggle(&mut service.metadata, "service.kubernetes.io/headless"),
            2 | 3 => {
                let ingress = (0..self.random.below(3)).map(|_| core::LoadBalancerIngress {
                    ip: Some(self.address(&external)).filter(|_| !self.random.once_in(8)),
                    ip_mode: self
                        .random
                        .pick(&[None, Some("VIP"), Some("VIP"), Some("Proxy")])
                        .map(Into::into),
                    ..core::LoadBalancerIngress::default()
                });
                let ingress = Some(ingress.collect());
                let load_balancer = Some(core::LoadBalancerStatus { ingress });
                service.status = Some(core::ServiceStatus {
                    load_balancer,
                    ..core::ServiceStatus::default()
                });
                return;
            }
            _ => {}
        }
        let ports = self.service_ports();
        let spec = service.spec.get_or_insert_default();
        let random = &mut self.random;
        match choice {
            4 => {
                spec.type_ = Some(
                    random
                        .pick(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"])
                        .into(),
                )
            }
            5 | 6 => {
                let count = random.below(3);
                let addresses = (0..count).map(|_| self.address(&external));
                spec.external_ips = Some(addresses.collect());
            }
            7 | 8 => {
                spec.external_traffic_policy =
                    Some(random.pick(&["Local", "Local", "Cluster", "Odd"]).into())
            }
            9 => {
                spec.internal_traffic_policy =
                    Some(random.pick(&["Local", "Cluster", "Odd"]).into())
            }
            10 => {
                spec.session_affinity = Some(random.pick(&["ClientIP", "ClientIP", "None"]).into());
                let timeout_seconds =
                    random.pick(&[None, Some(5), Some(10_800), Some(0), Some(90_000)]);
                spec.session_affinity_config = Some(core::SessionAffinityConfig {
                    client_ip: Some(core::ClientIPConfig { timeout_seconds }),
                });
            }
            11 | 12 => {
                let ranges = [
                    "10.0.0.0/8",
                    " 192.168.0.0/24 ",
                    "0.0.0.0/0",
                    "fd00::/8",
                    "::/0",
                    "10.0.0.1",
                    "1.2.3.4/33",
                    "10.0.0.77/8",
                    "192.168.0.2/32",
                    "fd01::/16",
                ];
                let some = (0..random.below(4)).map(|_| random.pick(&ranges).to_owned());
                spec.load_balancer_source_ranges = Some(some.collect());
            }
            13 => spec.health_check_node_port = Some(random.pick(&[0, 32_000, 32_001, -1])),
            14 => {
                let number = 1 + random.below(4);
                let address = match random.below(8) {
                    0 => "None".into(),
                    1 => String::new(),
                    2 => random.pick(&ODD).to_owned(),
                    _ => format!("10.96.0.{number}"),
                };
                spec.cluster_ip = Some(address.clone());
                spec.cluster_ips = Some(vec![address, format!("fd96::{number}")]);
                let families =
                    random.pick(&[&["IPv4", "IPv6"][..], &["IPv4"], &["IPv6", "IPv4"], &[]]);
                spec.ip_families =
                    Some(families.iter().map(|family| (*family).to_owned()).collect());
            }
            _ => spec.ports = Some(ports),
        }
    }

    /// A new slice, or a known one with something changed.
    pub(super) fn slice(&mut self) -> Object {
        let key = self.object_key(Watch::Slices, &["s-1", "s-2", "s-3", "s-4", "s-5"]);
        let known = self.objects.get(&key).cloned();
        if let Some(Object::Slice(mut slice)) = known
            && !self.random.once_in(6)
        {
            self.change_slice(&mut slice);
            return Object::Slice(slice);
        }
        let v4 = !self.random.once_in(3);
        let mut metadata = metadata(&key);
        let service = self.random.pick(&["web", "dns", "api", "db"]);
        let labels = metadata.labels.get_or_insert_default();
        labels.insert("kubernetes.io/service-name".into(), service.into());
        // Whole slices lean to one kind of hints: a mode needs them on every ready endpoint.
        let hinting = self.random.below(4);
        let endpoints = (0..self.random.below(5))
            .map(|_| self.endpoint(v4, hinting))
            .collect();
        let slice = discovery::EndpointSlice {
            address_type: if v4 { "IPv4" } else { "IPv6" }.into(),
            endpoints,
            metadata,
            ports: Some(self.slice_ports()),
        };
        Object::Slice(Box::new(slice))
    }

    fn slice_ports(&mut self) -> Vec<discovery::EndpointPort> {
        let mut ports = Vec::new();
        for (name, protocol) in [
            ("http", "TCP"),
            ("dns", "UDP"),
            ("dns-tcp", "TCP"),
            ("sig", "SCTP"),
            ("", "TCP"),
        ] {
            if self.random.once_in(4) {
                continue;
            }
            let mut port = discovery::EndpointPort {
                name: Some(name.into()),
                protocol: Some(protocol.into()),
                port: Some(8080 + self.random.below(2) as i32),
                ..discovery::EndpointPort::default()
            };
            match self.random.below(60) {
                0 => port.name = None,
                1 => port.port = None,
                2 => port.port = Some(self.random.pick(&[0, -1, 65_536])),
                3 => port.name = Some(self.random.pick(&NO_NAMES).into()),
                4 => {
                    port.protocol = self
                        .random
                        .pick(&[None, Some("udp"), Some("UDP")])
                        .map(Into::into)
                }
                5 => ports.push(port.clone()),
                _ => {}
            }
            ports.push(port);
        }
        ports
    }

    fn endpoint(&mut self, v4: bool, hinting: usize) -> discovery::Endpoint {
        let host = 1 + self.random.below(5);
        let address = match v4 {
            true => self.address(&[&format!("10.0.0.{host}"), "10.0.0.1", "192.168.0.2"]),
            false => self.address(&[&format!("fd00::{host}"), "fd00::1", "fd01::2"]),
        };
        let random = &mut self.random;
        let mut condition = |usual: bool| match random.below(10) {
            0 => None,
            1 | 2 => Some(!usual),
            _ => Some(usual),
        };
        let conditions = discovery::EndpointConditions {
            ready: condition(true),
            serving: condition(true),
            terminating: condition(false),
        };
        let zone = |name: &str| discovery::ForZone { name: name.into() };
        let node = |name: &str| discovery::ForNode { name: name.into() };
        let zones = vec![zone(random.pick(&["east", "west"]))];
        let nodes = vec![node(random.pick(&[OWN_NODE, "node-b"]))];
        let hints = match hinting {
            _ if random.once_in(20) => None,
            0 | 1 => None,
            2 => Some((zones, Vec::new())),
            _ => Some((zones, nodes)),
        };
        let names = [
            Some(OWN_NODE),
            Some(OWN_NODE),
            Some("node-b"),
            Some("node-b"),
            Some(""),
            None,
        ];
        let node_name = random.pick(&names).map(Into::into);
        let mut endpoint = discovery::Endpoint {
            addresses: vec![address],
            conditions: Some(conditions).filter(|_| !random.once_in(12)),
            hints: hints.map(|(zones, nodes)| discovery::EndpointHints {
                for_zones: Some(zones),
                for_nodes: Some(nodes),
            }),
            node_name,
            ..discovery::Endpoint::default()
        };
        match random.below(60) {
            0 => endpoint.addresses.clear(),
            1 => endpoint.addresses.push("10.0.0.250".into()),
            2 => endpoint.node_name = Some(random.pick(&NO_NAMES).into()),
            _ => {}
        }
        endpoint
    }

    fn change_slice(&mut self, slice: &mut discovery::EndpointSlice) {
        let v4 = slice.address_type != "IPv6";
        let hinting = self.random.below(4);
        let service = self.random.pick(&["web", "dns", "api", "db", "", "a b"]);
        match self.random.below(16) {
            0 => toggle(&mut slice.metadata, "service.kubernetes.io/headless"),
            1 => toggle(
                &mut slice.metadata,
                "service.kubernetes.io/service-proxy-name",
            ),
            2 => {
                let labels = slice.metadata.labels.get_or_insert_default();
                labels.insert("kubernetes.io/service-name".into(), service.into());
            }
            3 => drop(slice.metadata.labels.take()),
            4 => slice.address_type = self.random.pick(&["IPv4", "IPv6", "FQDN"]).into(),
            5 | 6 => slice.ports = Some(self.slice_ports()).filter(|_| !self.random.once_in(5)),
            7..10 => slice.endpoints.push(self.endpoint(v4, hinting)),
            10 | 11 => drop(slice.endpoints.pop()),
            12 => slice.endpoints.reverse(),
            _ => {
                let count = slice.endpoints.len().max(1);
                let at = self.random.below(count);
                if let Some(endpoint) = slice.endpoints.get_mut(at) {
                    let address = endpoint.addresses.clone();
                    *endpoint = self.endpoint(v4, hinting);
                    endpoint.addresses = address;
                }
            }
        }
    }

    fn object_key(&mut self, watch: Watch, names: &[&str]) -> Key {
        let mut key = Key {
            watch,
            namespace: "shop".into(),
            name: self.random.pick(names).into(),
        };
        match self.random.below(80) {
            0..4 => key.namespace = "other".into(),
            4 => key.name = self.random.pick(&NO_NAMES).into(),
            5 => key.namespace = self.random.pick(&NO_NAMES).into(),
            _ => {}
        }
        key
    }

    fn address(&mut self, known: &[&str]) -> String {
        if self.random.once_in(15) {
            self.random.pick(&ODD).into()
        } else {
            self.random.pick(known).into()
        }
    }
}

fn metadata(key: &Key) -> ObjectMeta {
    ObjectMeta {
        namespace: Some(key.namespace.clone()),
        name: Some(key.name.clone()),
        ..ObjectMeta::default()
    }
}

/// Adds a label, of any value, or takes it off.
fn toggle(metadata: &mut ObjectMeta, label: &str) {
    let labels = metadata.labels.get_or_insert_default();
    if labels.remove(label).is_none() {
        labels.insert(label.into(), String::new());
    }
}
