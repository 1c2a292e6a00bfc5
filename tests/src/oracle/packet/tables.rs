//! What the oracle knows of Services: the same facts the kernel's tables hold, in the shape people think of them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::wire::{TCP, UDP};

/// Everything a packet's fate depends on but flows, fragments and affinity.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Tables {
    pub settings: Rules,
    pub services: Vec<Service>,
    /// Addresses of this node on which NodePorts are served.
    pub node_ports_on: BTreeSet<IpAddr>,
    /// Further addresses of this node.
    pub node_only: BTreeSet<IpAddr>,
    /// Addresses of Services that are gone.
    pub lingering: BTreeSet<IpAddr>,
    /// UDP endpoints that vanished.
    pub tombstones: BTreeSet<(IpAddr, u16)>,
    /// Addresses the uplink masquerades with, IPv4 and IPv6.
    pub uplink: [Option<IpAddr>; 2],
}

/// What the operator and the cluster set.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Rules {
    pub masquerade_all: bool,
    /// Masquerade also towards endpoints of this node.
    pub snat_local: bool,
    pub service_cidrs: Vec<Prefix>,
    /// Local pods are who has an address of `pod_cidrs`, and not who sends by a pod's device.
    #[serde(default)]
    pub pods_by_address: bool,
    pub pod_cidrs: Vec<Prefix>,
    /// First and last port for masqueraded flows.
    pub ports: (u16, u16),
}

/// A network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Prefix {
    pub address: IpAddr,
    pub length: u8,
}

impl Prefix {
    pub fn holds(&self, address: IpAddr) -> bool {
        let (ours, theirs) = match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.octets().to_vec(), b.octets().to_vec()),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.octets().to_vec(), b.octets().to_vec()),
            _ => return false,
        };
        (0..usize::from(self.length)).all(|bit| {
            let mask = 0x80 >> (bit % 8);
            (ours[bit / 8] ^ theirs[bit / 8]) & mask == 0
        })
    }
}

/// A service port in one family.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Service {
    pub id: u32,
    pub protocol: u8,
    /// IPv4, else IPv6.
    pub v4: bool,
    pub frontends: Vec<Frontend>,
    pub endpoints: Vec<Endpoint>,
    /// Seconds of `ClientIP` affinity, 0 for none.
    pub affinity: u32,
    /// `loadBalancerSourceRanges`.
    pub ranges: Vec<Prefix>,
    pub internal_local: bool,
    pub external_local: bool,
}

/// What clients dial.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Frontend {
    pub kind: Kind,
    /// `None` for a NodePort.
    pub address: Option<IpAddr>,
    pub port: u16,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Kind {
    ClusterIp,
    NodePort,
    ExternalIp,
    LoadBalancer,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    pub id: u32,
    pub address: IpAddr,
    pub port: u16,
    pub local: bool,
    /// Its address is one of this node's.
    pub host: bool,
    pub in_cluster: bool,
    pub in_local: bool,
    pub serving: bool,
    pub generation: u32,
}

/// What an address is to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Use {
    pub cluster_ip: bool,
    pub external: bool,
    /// NodePorts are served on it.
    pub node: bool,
    pub node_local: bool,
    pub lingering: bool,
    pub tombstone: bool,
}

impl Service {
    /// The policy that governs a frontend is Local (D17).
    pub fn is_local(&self, kind: Kind) -> bool {
        match kind {
            Kind::ClusterIp => self.internal_local,
            _ => self.external_local,
        }
    }

    /// Some usable endpoint exists somewhere.
    pub fn has_any(&self) -> bool {
        self.endpoints.iter().any(|e| e.in_cluster || e.in_local)
    }

    /// The local set, or the cluster set.
    pub fn set(&self, local: bool) -> Vec<&Endpoint> {
        self.endpoints
            .iter()
            .filter(|e| if local { e.in_local } else { e.in_cluster })
            .collect()
    }
}

impl Tables {
    /// What an address is used for.
    pub fn uses(&self, address: IpAddr) -> Use {
        let frontends = || self.services.iter().flat_map(|s| &s.frontends);
        let is = |kinds: &[Kind]| {
            frontends().any(|f| f.address == Some(address) && kinds.contains(&f.kind))
        };
        let node = self.node_ports_on.contains(&address);
        Use {
            cluster_ip: is(&[Kind::ClusterIp]),
            external: is(&[Kind::ExternalIp, Kind::LoadBalancer]),
            node,
            node_local: node || self.node_only.contains(&address),
            lingering: self.lingering.contains(&address),
            tombstone: self.tombstones.iter().any(|(a, _)| *a == address),
        }
    }

    /// Every address that has a use.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let frontends = self.services.iter().flat_map(|s| &s.frontends);
        let mut all: BTreeSet<IpAddr> = frontends.filter_map(|f| f.address).collect();
        all.extend(&self.node_ports_on);
        all.extend(&self.node_only);
        all.extend(&self.lingering);
        all.extend(self.tombstones.iter().map(|(address, _)| address));
        all
    }

    /// Who is dialled (D9: a NodePort only where no address matches).
    pub fn dialled(
        &self,
        address: IpAddr,
        port: u16,
        protocol: u8,
    ) -> Option<(&Service, &Frontend)> {
        if port == 0 || !matches!(protocol, TCP | UDP) {
            return None;
        }
        let find = |address: Option<IpAddr>, v4: bool| {
            self.services.iter().find_map(|service| {
                let frontend = service.frontends.iter().find(|f| {
                    service.protocol == protocol
                        && f.port == port
                        && f.address == address
                        && service.v4 == v4
                })?;
                Some((service, frontend))
            })
        };
        let v4 = address.is_ipv4();
        find(Some(address), v4).or_else(|| {
            let node = self.node_ports_on.contains(&address);
            node.then(|| find(None, v4)).flatten()
        })
    }

    /// Whether a port is a NodePort in this family.
    pub fn has_node_port(&self, v4: bool, port: u16, protocol: u8) -> bool {
        let mut services = self
            .services
            .iter()
            .filter(|s| s.v4 == v4 && s.protocol == protocol);
        services.any(|s| {
            s.frontends
                .iter()
                .any(|f| f.address.is_none() && f.port == port)
        })
    }

    /// A free address in a Service CIDR is nobody's (D5), also one that a Service had before.
    pub fn is_nobodys(&self, address: IpAddr) -> bool {
        let uses = self.uses(address);
        let used = uses.cluster_ip || uses.external || uses.node_local || uses.tombstone;
        !used && self.settings.service_cidrs.iter().any(|p| p.holds(address))
    }

    pub fn endpoint(&self, id: u32) -> Option<&Endpoint> {
        let mut all = self.services.iter().flat_map(|s| &s.endpoints);
        all.find(|e| e.id == id)
    }
}
