//! What the tables must let clients meet, read out of a cluster's objects the slow way.
//!
//! Builds on the oracle's own reading of [`objects`](super::objects) and on its selection; knows of the tables no
//! more than their documented layout.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_agent::snapshot::{Cidr, Family, Node, Protocol, Service, ServicePort, Slice};
use lb_ebpf::abi::{address, endpoint, frontend};

use super::{Known, Selection, Target};

/// A service port of one family: namespace, Service, port name, protocol number, family's number.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PortName {
    pub namespace: String,
    pub service: String,
    pub port: String,
    pub protocol: u8,
    pub family: u8,
}

/// What a client dials; NodePorts under the unspecified address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Dialled {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: u8,
}

/// An endpoint as a client is sent to it: address, port, and the flags of its record.
pub type Met = (IpAddr, u16, u16);

/// What stands behind a dialled address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    pub owner: PortName,
    /// Of the frontend's record.
    pub flags: u32,
    pub affinity_seconds: u32,
    /// `None` where no client's way leads to this set.
    pub local: Option<BTreeSet<Met>>,
    pub cluster: Option<BTreeSet<Met>>,
}

impl View {
    /// Namespace and name of the Service.
    pub fn service(&self) -> (&str, &str) {
        (&self.owner.namespace, &self.owner.service)
    }
}

/// A service port, whoever has its frontends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Port {
    pub known: BTreeMap<Target, Known>,
    /// `None` where no frontend of it uses the set.
    pub local: Option<BTreeSet<Target>>,
    pub cluster: Option<BTreeSet<Target>>,
    /// Sources allowed to its filtered addresses: address and length in its own family.
    pub ranges: BTreeSet<(IpAddr, u8)>,
}

/// All of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Picture {
    /// Every claim to an address and port; the first one has it (D22).
    pub claims: BTreeMap<Dialled, Vec<View>>,
    pub ports: BTreeMap<PortName, Port>,
    /// Flags of addresses, of those that follow from objects alone.
    pub addresses: BTreeMap<IpAddr, u32>,
    /// Health-check ports: namespace, Service, family's number; port and count.
    pub checks: BTreeMap<(String, String, u8), (u16, usize)>,
}

impl Picture {
    /// Who has the address and port.
    pub fn view(&self, dialled: &Dialled) -> Option<&View> {
        self.claims.get(dialled).and_then(|views| views.first())
    }

    /// Whether two service ports want one address and port.
    pub fn is_contested(&self) -> bool {
        self.claims.values().any(|views| views.len() > 1)
    }

    /// Service ports that have nothing of what they claim.
    pub fn losers(&self) -> BTreeSet<&PortName> {
        let winners = self.claims.values().filter_map(|views| views.first());
        let winners: BTreeSet<_> = winners.map(|view| &view.owner).collect();
        self.ports
            .keys()
            .filter(|name| !winners.contains(name))
            .collect()
    }

    /// What `services` and `slices` mean on a node with some further addresses.
    pub fn of(services: &[Service], slices: &[Slice], node: &Node, further: &[IpAddr]) -> Self {
        let mut picture = Self::default();
        let own: BTreeSet<IpAddr> = node.addresses.iter().chain(further).copied().collect();
        let first = |v4: bool| node.addresses.iter().copied().find(|ip| ip.is_ipv4() == v4);
        let primary: Vec<IpAddr> = [first(true), first(false)].into_iter().flatten().collect();
        for address in &own {
            *picture.addresses.entry(*address).or_default() |= address::NODE_LOCAL;
        }
        for address in &primary {
            // G2.
            *picture.addresses.entry(*address).or_default() |= address::NODE;
        }
        let place = Place { own, primary };
        for service in services {
            for selection in super::select(service, slices, node) {
                picture.add(service, &selection, &place);
            }
            picture.add_checks(service, slices, node);
        }
        for views in picture.claims.values_mut() {
            // D22, ours: a ClusterIP first, then by name.
            views.sort_by_key(|view| {
                (
                    view.flags & frontend::KIND != frontend::CLUSTER_IP,
                    view.owner.clone(),
                )
            });
        }
        picture
    }

    fn add(&mut self, service: &Service, selection: &Selection, place: &Place) {
        let is_this = |port: &&ServicePort| {
            *port.name == *selection.port && port.protocol == selection.protocol
        };
        let Some(port) = service.ports.iter().find(is_this) else {
            return;
        };
        let name = port_name(service, selection);
        let frontends = frontends(service, port, selection.family);
        let ranges: Vec<Cidr> = service
            .source_ranges
            .iter()
            .filter(|range| Family::of(range.address) == selection.family)
            .copied()
            .collect();
        let filtered = |kind: u32| kind == frontend::LOAD_BALANCER && !ranges.is_empty();
        // H3.
        let admits_node = place
            .primary
            .iter()
            .any(|own| ranges.iter().any(|r| r.contains(*own)));
        let mut entry = Port {
            known: selection.known.clone(),
            ..Port::default()
        };
        for (dialled, kind, local_policy) in frontends {
            let bit = |on: bool, bit: u32| if on { bit } else { 0 };
            // D13, D14: who is near goes to the cluster set past a Local policy, at external addresses alone.
            let uses_cluster = !local_policy || kind != frontend::CLUSTER_IP;
            let met =
                |set: &BTreeSet<Target>| set.iter().map(|t| place.met(*t, selection)).collect();
            let view = View {
                owner: name.clone(),
                flags: kind
                    | bit(local_policy, frontend::LOCAL_POLICY)
                    | bit(selection.has_any, frontend::HAS_ENDPOINTS)
                    | bit(filtered(kind), frontend::SOURCE_RANGES)
                    | bit(filtered(kind) && admits_node, frontend::NODE_ALLOWED),
                affinity_seconds: service.affinity_seconds.unwrap_or(0),
                local: local_policy.then(|| met(&selection.local)),
                cluster: uses_cluster.then(|| met(&selection.cluster)),
            };
            if local_policy {
                entry.local = Some(selection.local.clone());
            }
            if uses_cluster {
                entry.cluster = Some(selection.cluster.clone());
            }
            if filtered(kind) {
                entry
                    .ranges
                    .extend(ranges.iter().map(|range| (range.address, range.length)));
                let whole = if dialled.address.is_ipv4() { 32 } else { 128 };
                entry
                    .ranges
                    .extend(admits_node.then_some((dialled.address, whole)));
            }
            let flag = match kind {
                frontend::CLUSTER_IP => address::CLUSTER_IP,
                frontend::NODE_PORT => 0,
                _ => address::EXTERNAL,
            };
            if flag != 0 {
                *self.addresses.entry(dialled.address).or_default() |= flag;
            }
            self.claims.entry(dialled).or_default().push(view);
        }
        self.ports.insert(name, entry);
    }

    fn add_checks(&mut self, service: &Service, slices: &[Slice], node: &Node) {
        let Some(port) = service.health_check_port else {
            return;
        };
        for family in [Family::V4, Family::V6] {
            // H15 as §8 corrects it: each family its own count.
            if service
                .cluster_ips
                .iter()
                .any(|ip| Family::of(*ip) == family)
            {
                let name = (
                    service.name.namespace.to_string(),
                    service.name.name.to_string(),
                    number_of(family),
                );
                let count = super::local_ready(service, slices, node, family);
                self.checks.insert(name, (port, count));
            }
        }
    }
}

/// Where this node is.
struct Place {
    own: BTreeSet<IpAddr>,
    primary: Vec<IpAddr>,
}

impl Place {
    fn met(&self, target: Target, selection: &Selection) -> Met {
        let own = self.own.contains(&target.0);
        let local = own
            || selection
                .known
                .get(&target)
                .is_some_and(|known| known.local);
        let flags = if local { endpoint::LOCAL } else { 0 } | if own { endpoint::HOST } else { 0 };
        (target.0, target.1, flags)
    }
}

/// What clients dial for one service port: where, the kind's number, whether its policy is Local.
fn frontends(service: &Service, port: &ServicePort, family: Family) -> Vec<(Dialled, u32, bool)> {
    let protocol = number_of_protocol(port.protocol);
    let of_family = |ips: &[IpAddr]| -> Vec<IpAddr> {
        ips.iter()
            .copied()
            .filter(|ip| Family::of(*ip) == family)
            .collect()
    };
    let mut found: Vec<(Dialled, u32, bool)> = Vec::new();
    let mut add = |address: IpAddr, port: u16, kind: u32, local: bool| {
        let dialled = Dialled {
            address,
            port,
            protocol,
        };
        // Ours: what is both ClusterIP and external counts as the first, what is both VIP and externalIP as a VIP.
        if found.iter().all(|(other, ..)| other.address != address) {
            found.push((dialled, kind, local));
        }
    };
    for ip in of_family(&service.cluster_ips).into_iter().take(1) {
        add(ip, port.port, frontend::CLUSTER_IP, service.internal_local);
    }
    for ip in of_family(&service.load_balancer_ips) {
        add(
            ip,
            port.port,
            frontend::LOAD_BALANCER,
            service.external_local,
        );
    }
    for ip in of_family(&service.external_ips) {
        add(ip, port.port, frontend::EXTERNAL_IP, service.external_local);
    }
    if port.node_port != 0 {
        let any: IpAddr = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        add(
            any,
            port.node_port,
            frontend::NODE_PORT,
            service.external_local,
        );
    }
    found
}

fn port_name(service: &Service, selection: &Selection) -> PortName {
    PortName {
        namespace: service.name.namespace.to_string(),
        service: service.name.name.to_string(),
        port: selection.port.clone(),
        protocol: number_of_protocol(selection.protocol),
        family: number_of(selection.family),
    }
}

fn number_of(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

fn number_of_protocol(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}
