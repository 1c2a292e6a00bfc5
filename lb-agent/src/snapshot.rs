//! The cluster as we keep it: packed records of Services, EndpointSlices and this node.
//!
//! API objects are converted on receipt and dropped, so memory follows what we use of them. Nothing here
//! knows Kubernetes types, maps or clocks.

mod event;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

pub use event::{Event, Kind};

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

impl Cidr {
    /// Whether an address has this prefix.
    pub fn contains(&self, address: IpAddr) -> bool {
        let same = |ours: u128, theirs: u128, width: u32| {
            let rest = width.saturating_sub(u32::from(self.length));
            (ours ^ theirs).checked_shr(rest).unwrap_or(0) == 0
        };
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                same(ours.to_bits().into(), theirs.to_bits().into(), 32)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => same(ours.to_bits(), theirs.to_bits(), 128),
            _ => false,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Namespace and name of an object.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// What we keep of a Service (spec §1.A). Services that the proxy must not see (A1, A2, A4) never get here.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
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
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ServicePort {
    /// Empty for an unnamed port.
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
    /// 0 for none (A10).
    pub node_port: u16,
}

/// What we keep of an EndpointSlice (spec §1.B).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
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
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SlicePort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
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
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Hints {
    pub zones: Vec<Arc<str>>,
    pub nodes: Vec<Arc<str>>,
}

/// What we keep of our own Node (spec §3.4).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
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

/// What an event changed. Empty for a report of what was known already.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// Services whose own fields or endpoints changed, each named once. Those that are gone now are named too.
    pub services: Vec<ObjectName>,
    /// Our Node changed: every Service may mean something else (spec C8, H3).
    pub node: bool,
    /// The set of service CIDRs changed, or is known now (D5).
    pub service_cidrs: bool,
}

impl Change {
    /// Nothing changed.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && !self.node && !self.service_cidrs
    }
}

/// The store: applies events in the order they come, and says what each of them touched.
///
/// Objects may come in any order; slices of a Service that is not known yet are kept (B19). Nothing is removed
/// but by an event that says so: a `…Gone`, or a `Complete` whose list lacks it.
#[derive(Default)]
pub struct Snapshot {
    services: HashMap<ObjectName, Box<Service>>,
    /// Slices of each Service, known or not, by slice name. No entry is empty (B13).
    slices: HashMap<ObjectName, Vec<Slice>>,
    /// Which Service a slice belongs to: the label may change.
    slice_owners: HashMap<ObjectName, Arc<str>>,
    node: Option<Box<Node>>,
    service_cidrs: BTreeMap<Arc<str>, Vec<Cidr>>,
    lists: Lists,
}

/// Progress of the complete lists. While one runs, `Some` holds what it did not name yet.
#[derive(Default)]
struct Lists {
    services: List<ObjectName>,
    slices: List<ObjectName>,
    node: List<()>,
    service_cidrs: List<Arc<str>>,
}

struct List<K> {
    unnamed: Option<HashSet<K>>,
    complete: bool,
}

impl Snapshot {
    /// Takes in one event.
    pub fn apply(&mut self, event: Event) -> Change {
        match event {
            Event::Begin(kind) => {
                self.begin(kind);
                Change::default()
            }
            Event::Complete(kind) => self.complete(kind),
            Event::Lost(_) | Event::Found(_) => Change::default(),
            Event::Service(service) => self.put_service(service),
            Event::ServiceGone(name) => self.remove_service(&name),
            Event::Slice(slice) => self.put_slice(*slice),
            Event::SliceGone(name) => self.remove_slice(&name),
            Event::Node(node) => {
                self.lists.node.name(&());
                let node = Some(node);
                let changed = self.node != node;
                self.node = node;
                Change {
                    node: changed,
                    ..Change::default()
                }
            }
            Event::NodeGone => Change {
                node: self.node.take().is_some(),
                ..Change::default()
            },
            Event::ServiceCidr(name, prefixes) => self.put_service_cidr(name, prefixes),
            Event::ServiceCidrGone(name) => self.remove_service_cidr(&name),
        }
    }

    /// Services, slices and the Node were listed completely once: the picture may be acted on (J1).
    ///
    /// Service CIDRs are not waited for: a server that has none to offer must not hold up traffic, and those of a
    /// former agent do until it does.
    pub fn synced(&self) -> bool {
        self.lists.services.complete && self.lists.slices.complete && self.lists.node.complete
    }

    /// A Service.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name).map(Box::as_ref)
    }

    /// All Services, in no order.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Service> {
        self.services.values().map(Box::as_ref)
    }

    /// The slices of a Service, ordered by slice name.
    pub fn slices(&self, service: &ObjectName) -> impl ExactSizeIterator<Item = &Slice> + Clone {
        self.slices
            .get(service)
            .map(Vec::as_slice)
            .unwrap_or_default()
            .iter()
    }

    /// Our own Node, once reported.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_deref()
    }

    /// The service CIDRs of the cluster, sorted, each once; `None` until they were listed completely once.
    pub fn service_cidrs(&self) -> Option<Vec<Cidr>> {
        if !self.lists.service_cidrs.complete {
            return None;
        }
        let mut all: Vec<_> = self.service_cidrs.values().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        Some(all)
    }

    // ---- lists ----------------------------------------------------------------------------------------------

    fn begin(&mut self, kind: Kind) {
        match kind {
            Kind::Services => self.lists.services.begin(self.services.keys().cloned()),
            Kind::Slices => self.lists.slices.begin(self.slice_owners.keys().cloned()),
            Kind::Node => self.lists.node.begin(self.node.iter().map(|_| ())),
            Kind::ServiceCidrs => self
                .lists
                .service_cidrs
                .begin(self.service_cidrs.keys().cloned()),
        }
    }

    fn complete(&mut self, kind: Kind) -> Change {
        let mut change = Change::default();
        match kind {
            Kind::Services => {
                for name in self.lists.services.complete() {
                    change.merge(self.remove_service(&name));
                }
                shrink(&mut self.services);
            }
            Kind::Slices => {
                for name in self.lists.slices.complete() {
                    change.merge(self.remove_slice(&name));
                }
                shrink(&mut self.slices);
                shrink(&mut self.slice_owners);
            }
            Kind::Node => {
                for () in self.lists.node.complete() {
                    change.node |= self.node.take().is_some();
                }
            }
            Kind::ServiceCidrs => {
                change.service_cidrs = !self.lists.service_cidrs.complete;
                for name in self.lists.service_cidrs.complete() {
                    change.merge(self.remove_service_cidr(&name));
                }
            }
        }
        // Several slices of one Service may go at once.
        change.services.sort_unstable();
        change.services.dedup();
        change
    }

    // ---- objects --------------------------------------------------------------------------------------------

    fn put_service(&mut self, service: Box<Service>) -> Change {
        self.lists.services.name(&service.name);
        if self.services.get(&service.name) == Some(&service) {
            return Change::default();
        }
        let name = service.name.clone();
        self.services.insert(name.clone(), service);
        Change::of(name)
    }

    fn remove_service(&mut self, name: &ObjectName) -> Change {
        match self.services.remove_entry(name) {
            Some((name, _)) => Change::of(name),
            None => Change::default(),
        }
    }

    fn put_slice(&mut self, slice: Slice) -> Change {
        self.lists.slices.name(&slice.name);
        let owner = ObjectName {
            namespace: slice.name.namespace.clone(),
            name: slice.service.clone(),
        };
        let mut change = match self.slice_owners.get(&slice.name) {
            Some(before) if *before != slice.service => {
                let name = slice.name.clone();
                self.remove_slice(&name)
            }
            _ => Change::default(),
        };

        let siblings = self.slices.entry(owner.clone()).or_default();
        match siblings.binary_search_by(|other| other.name.cmp(&slice.name)) {
            Ok(at) if siblings[at] == slice => return change,
            Ok(at) => siblings[at] = slice,
            Err(at) => {
                self.slice_owners
                    .insert(slice.name.clone(), slice.service.clone());
                // Most Services have one slice: the usual growth to four would waste half of it.
                siblings.reserve_exact(1);
                siblings.insert(at, slice);
            }
        }
        if self.services.contains_key(&owner) {
            change.services.push(owner);
        }
        change
    }

    fn remove_slice(&mut self, name: &ObjectName) -> Change {
        let Some(service) = self.slice_owners.remove(name) else {
            return Change::default();
        };
        let owner = ObjectName {
            namespace: name.namespace.clone(),
            name: service,
        };
        if let Some(siblings) = self.slices.get_mut(&owner) {
            siblings.retain(|slice| slice.name != *name);
            if siblings.is_empty() {
                self.slices.remove(&owner);
            }
        }
        if self.services.contains_key(&owner) {
            Change::of(owner)
        } else {
            Change::default()
        }
    }

    fn put_service_cidr(&mut self, name: Arc<str>, prefixes: Vec<Cidr>) -> Change {
        self.lists.service_cidrs.name(&name);
        let changed = self.service_cidrs.get(&name) != Some(&prefixes);
        self.service_cidrs.insert(name, prefixes);
        Change {
            service_cidrs: changed,
            ..Change::default()
        }
    }

    fn remove_service_cidr(&mut self, name: &Arc<str>) -> Change {
        Change {
            service_cidrs: self.service_cidrs.remove(name).is_some(),
            ..Change::default()
        }
    }
}

impl Change {
    fn of(service: ObjectName) -> Self {
        Self {
            services: vec![service],
            ..Self::default()
        }
    }

    fn merge(&mut self, other: Self) {
        self.services.extend(other.services);
        self.node |= other.node;
        self.service_cidrs |= other.service_cidrs;
    }
}

impl<K> Default for List<K> {
    fn default() -> Self {
        Self {
            unnamed: None,
            complete: false,
        }
    }
}

impl<K: Eq + Hash> List<K> {
    /// A list starts, or starts over: nothing that is known was named yet.
    fn begin(&mut self, known: impl Iterator<Item = K>) {
        self.unnamed = Some(known.collect());
    }

    fn name(&mut self, key: &K) {
        if let Some(unnamed) = &mut self.unnamed {
            unnamed.remove(key);
        }
    }

    /// The list ended: returns what it did not name.
    fn complete(&mut self) -> HashSet<K> {
        self.complete = true;
        self.unnamed.take().unwrap_or_default()
    }
}

/// Gives memory back after a list that is much shorter than what was kept before.
fn shrink<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    if map.capacity() / 4 > map.len() {
        map.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests;
