//! What the cluster's objects mean: kube-proxy's rules (spec §1.A-§1.C, §2) as pure functions.
//!
//! No I/O, no clock, no maps, no Kubernetes types. The same snapshot gives the same answer.

mod endpoints;
mod frontends;
mod health;
#[cfg(test)]
mod sample;
#[cfg(test)]
mod tests;
mod topology;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

pub use health::health_checks;

use crate::snapshot::{self, Cidr, Family, ObjectName, Protocol, Service, Slice};

/// Identity of a service port in one family (spec A5, A6).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServicePortId {
    pub service: ObjectName,
    /// Port name; may be empty.
    pub port: Arc<str>,
    pub protocol: Protocol,
    pub family: Family,
}

/// Everything the datapath must know about one service port in one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    pub id: ServicePortId,
    /// Sorted and without duplicates.
    pub frontends: Vec<Frontend>,
    /// Every endpoint of the slices, sorted by address and port, without duplicates. Those that neither
    /// serve nor are in a set are here too: one that only stopped serving has not vanished.
    pub endpoints: Vec<Endpoint>,
    /// Some usable endpoint exists somewhere (spec §2, hasAny).
    pub has_any: bool,
    /// 0 for none.
    pub affinity_seconds: u32,
    /// Ranges of this family that apply to its load-balancer frontends; empty = no filter (A19).
    pub source_ranges: Vec<Cidr>,
    /// The ranges admit one of this node's own addresses (H3): then the Service's own VIPs are admitted too.
    pub ranges_admit_node: bool,
}

/// What a frontend is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum FrontendKind {
    ClusterIp,
    NodePort,
    ExternalIp,
    LoadBalancer,
}

/// An address and port that clients dial. The protocol is the service port's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Frontend {
    /// Unspecified for a NodePort.
    pub address: IpAddr,
    pub port: u16,
    pub kind: FrontendKind,
    /// The policy that governs it is Local (internal for a ClusterIP, external for the others).
    pub local_policy: bool,
    /// `source_ranges` apply to it.
    pub source_ranges: bool,
}

/// An endpoint and the sets it is in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Endpoint {
    pub address: IpAddr,
    pub port: u16,
    /// On this node (B8).
    pub local: bool,
    /// Its address is one of this node's own (B16).
    pub host: bool,
    pub serving: bool,
    /// In the cluster set.
    pub cluster: bool,
    /// In the local set.
    pub in_local_set: bool,
}

/// What becomes of a new connection to a frontend (spec §2, verdict selection).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// No usable endpoint anywhere: refuse (D2, D7).
    Reject,
    /// Endpoints exist, but the Local policy finds none here: silence (D3, D8).
    Drop,
    Translate,
}

/// Health-check node port of a Service (spec §1.H); one per family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    pub service: ObjectName,
    pub family: Family,
    pub port: u16,
    /// Distinct addresses of local ready endpoints (H10).
    pub local_endpoints: usize,
}

/// What the rules need to know of this node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeView {
    pub name: Arc<str>,
    /// The zone label; `None` or empty when the node has none (C6, C8).
    pub zone: Option<Arc<str>>,
    /// Every address of this node, the Node object's and those of its interfaces (B16).
    pub addresses: Vec<IpAddr>,
    /// Its primary address of each family, which its processes dial from (H3).
    pub primary: Vec<IpAddr>,
}

/// Switches that change what objects mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Honour `spec.externalIPs` (A13, KEP-5707).
    pub external_ips: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { external_ips: true }
    }
}

/// The service ports of one Service, in each family it has a ClusterIP of.
///
/// `slices` are the Service's; others are passed over.
pub fn service_ports(
    service: &Service,
    slices: &[&Slice],
    node: &NodeView,
    options: &Options,
) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::with_capacity(service.ports.len());
    for family in [Family::V4, Family::V6] {
        // A6: without an address of the family the Service does not exist in it, NodePorts included.
        let Some(addresses) = frontends::Addresses::of(service, family, options) else {
            continue;
        };
        let slices = endpoints::slices_of(service, slices, family);
        let mut known = HashSet::new();
        for port in service.ports.iter().filter(|port| port.port != 0) {
            if !known.insert((&*port.name, port.protocol)) {
                continue;
            }
            let id = ServicePortId {
                service: service.name.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
                family,
            };
            ports.push(service_port(id, service, port, &addresses, &slices, node));
        }
    }
    ports
}

impl ServicePort {
    /// What a new connection to `frontend` meets, short-circuits (D13, D14) and source ranges left aside.
    pub fn verdict(&self, frontend: &Frontend) -> Verdict {
        let usable = |endpoint: &Endpoint| {
            if frontend.local_policy {
                endpoint.in_local_set
            } else {
                endpoint.cluster
            }
        };
        if !self.has_any {
            Verdict::Reject
        } else if self.endpoints.iter().any(usable) {
            Verdict::Translate
        } else {
            Verdict::Drop
        }
    }
}

fn service_port(
    id: ServicePortId,
    service: &Service,
    port: &snapshot::ServicePort,
    addresses: &frontends::Addresses,
    slices: &[&Slice],
    node: &NodeView,
) -> ServicePort {
    let source_ranges = addresses.source_ranges(service);
    let frontends = addresses.frontends(service, port, !source_ranges.is_empty());
    // A28. `frontends` holds external ones only where the Service is externally reachable.
    let external = frontends
        .iter()
        .any(|frontend| frontend.kind != FrontendKind::ClusterIp);
    let policy = topology::Policy {
        uses_cluster: !service.internal_local || external,
        uses_local: service.internal_local || (service.external_local && external),
    };
    let mut candidates = endpoints::candidates(slices, port, node);
    let has_any = topology::select(&mut candidates, policy, node);
    ServicePort {
        ranges_admit_node: node
            .primary
            .iter()
            .any(|own| source_ranges.iter().any(|range| range.contains(*own))),
        frontends,
        endpoints: candidates
            .iter()
            .map(|candidate| candidate.endpoint(node))
            .collect(),
        has_any,
        affinity_seconds: service.affinity_seconds.unwrap_or(0),
        source_ranges,
        id,
    }
}
