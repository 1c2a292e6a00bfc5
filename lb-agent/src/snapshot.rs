//! The cluster as we keep it: packed records of Services, EndpointSlices and this node.
//!
//! API objects are converted on receipt and dropped, so memory follows what we use of them. Nothing here
//! knows Kubernetes types, maps or clocks.

use std::net::IpAddr;
use std::sync::Arc;

/// An IP family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
    }
}

/// A transport protocol of a service port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// An address prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Cidr {
    pub address: IpAddr,
    pub length: u8,
}

/// Namespace and name of an object.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// What we keep of a Service (spec §1.A). Services that the proxy must not see (A1, A2, A4) never get here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    pub name: ObjectName,
    /// At most one per family (A6).
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs` (A13).
    pub external_ips: Vec<IpAddr>,
    /// Load-balancer ingress addresses of mode VIP (A14).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges` that parsed (A19).
    pub source_ranges: Vec<Cidr>,
    pub ports: Vec<ServicePort>,
    /// `externalTrafficPolicy` as A21 reads it.
    pub external_local: bool,
    /// `internalTrafficPolicy` (A22).
    pub internal_local: bool,
    /// Session affinity `ClientIP`: its timeout (A24).
    pub affinity_seconds: Option<u32>,
    /// A23; `None` unless type LoadBalancer with external policy Local and a port set.
    pub health_check_port: Option<u16>,
}

/// One port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Empty for an unnamed port.
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
    /// 0 for none (A10).
    pub node_port: u16,
}

/// What we keep of an EndpointSlice (spec §1.B).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slice {
    pub name: ObjectName,
    /// The Service's name, from the label (B2); its namespace is the slice's.
    pub service: Arc<str>,
    pub family: Family,
    /// Ports with a name and a number (B6).
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<SliceEndpoint>,
    /// `endpoints.kubernetes.io/last-change-trigger-time` (B18), nanoseconds since the Unix epoch.
    pub trigger_time: Option<i64>,
}

/// One port of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SliceEndpoint {
    /// Element 0 of `addresses` (B5).
    pub address: IpAddr,
    /// B7.
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<Arc<str>>,
    /// `hints`, absent for most endpoints (B10).
    pub hints: Option<Box<Hints>>,
}

/// Topology hints of an endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hints {
    pub zones: Vec<Arc<str>>,
    pub nodes: Vec<Arc<str>>,
}

/// What we keep of our own Node (spec §3.4).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// InternalIPs first, then ExternalIPs, in the object's order.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<Cidr>,
    /// KEP-3836: being deleted, or tainted by the cluster autoscaler.
    pub draining: bool,
}

/// A change of the cluster, as a source reports it.
///
/// A source first reports everything that exists between `Begin` and `Complete`. A later `Begin` … `Complete`
/// is a new complete list: what it does not name is gone.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    Begin(Kind),
    Complete(Kind),
    Service(Box<Service>),
    /// The Service is gone or is no longer ours (headless, ExternalName, hidden by label).
    ServiceGone(ObjectName),
    Slice(Box<Slice>),
    SliceGone(ObjectName),
    Node(Box<Node>),
    NodeGone,
    /// Prefixes of one ServiceCIDR object, replacing its earlier ones.
    ServiceCidr(Arc<str>, Vec<Cidr>),
    ServiceCidrGone(Arc<str>),
}

/// A kind of object a source lists.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    Services,
    Slices,
    Node,
    ServiceCidrs,
}

// `Snapshot` (the store that applies events and answers "which services did this touch") follows below.
