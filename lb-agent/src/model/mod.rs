//! What the cluster's objects mean: kube-proxy's rules (spec §1.A-§1.C, §2) as pure functions.
//!
//! No I/O, no clock, no maps, no Kubernetes types. The same snapshot gives the same answer.

use std::net::IpAddr;
use std::sync::Arc;

use crate::snapshot::{Cidr, Family, ObjectName, Protocol};

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
    /// Every serving endpoint and every selected one, sorted by address and port, without duplicates.
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

/// Health-check node port of a Service (spec §1.H); one per family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    pub service: ObjectName,
    pub family: Family,
    pub port: u16,
    /// Distinct addresses of local ready endpoints (H10).
    pub local_endpoints: usize,
}
