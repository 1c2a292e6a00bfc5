//! Live tables joined into services, frontends and endpoints.
//!
//! Pure: `read` fills [`LiveTables`] from the kernel, tests from literals. Everything is said as the kernel
//! has it; what the API server says plays no part.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_ebpf::abi::endpoint::{self, Endpoint, EndpointState};
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::frontend::{self, Frontend, FrontendKey};
use lb_ebpf::abi::name::ServiceName;
use serde::Serialize;

/// The tables that say where traffic goes.
#[derive(Clone, Debug, Default)]
pub struct LiveTables {
    /// By service port id.
    pub names: BTreeMap<u32, ServiceName>,
    pub frontends4: Vec<(FrontendKey<V4>, Frontend)>,
    pub frontends6: Vec<(FrontendKey<V6>, Frontend)>,
    /// By record index.
    pub endpoints4: BTreeMap<u32, Endpoint<V4>>,
    /// By record index.
    pub endpoints6: BTreeMap<u32, Endpoint<V6>>,
    /// By endpoint id.
    pub states: BTreeMap<u32, EndpointState>,
}

/// A service port in one family.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    pub namespace: String,
    pub name: String,
    /// Empty for an unnamed port.
    pub port_name: String,
    pub protocol: &'static str,
    pub family: &'static str,
    /// Service port id.
    pub id: u32,
    pub frontends: Vec<LiveFrontend>,
    /// By address and port, each once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<LiveEndpoint>,
}

/// What clients dial.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveFrontend {
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Unspecified for a NodePort.
    pub address: IpAddr,
    pub port: u16,
    /// Traffic policy that governs it.
    pub policy: &'static str,
    /// 0 for none.
    pub affinity_seconds: u32,
    /// Size of the local set.
    pub local_endpoints: u32,
    /// Size of the cluster set.
    pub cluster_endpoints: u32,
    pub source_ranges: bool,
    pub verdict: Verdict,
    /// Number of the last write.
    pub generation: u32,
    /// First endpoint record.
    pub block: u32,
}

/// What happens to a client's packet or call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Verdict {
    #[serde(rename = "translate")]
    Translate,
    #[serde(rename = "REJECT")]
    Reject,
    #[serde(rename = "DROP")]
    Drop,
}

/// What answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveEndpoint {
    pub address: IpAddr,
    pub port: u16,
    /// On this node.
    pub local: bool,
    /// Its address is this node's own.
    pub host: bool,
    /// A frontend may send to it under policy Local.
    pub in_local_set: bool,
    /// A frontend may send to it under policy Cluster.
    pub in_cluster_set: bool,
    pub serving: bool,
    pub id: u32,
    pub generation: u32,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Translate => "translate",
            Verdict::Reject => "REJECT",
            Verdict::Drop => "DROP",
        }
    }
}

impl ServicePort {
    /// `namespace/name:port`, the port's name left out where it has none.
    pub fn full_name(&self) -> String {
        let port = if self.port_name.is_empty() {
            String::new()
        } else {
            format!(":{}", self.port_name)
        };
        format!("{}/{}{port}", self.namespace, self.name)
    }
}

impl ServicePort {
    /// Whether clients dial this address and port for it, or get this endpoint (id and generation) from it. A NodePort is at
    /// any of the node's addresses.
    pub(super) fn has_led(&self, (address, port): (IpAddr, u16), endpoint: (u32, u32)) -> bool {
        let mut endpoints = self.endpoints.iter();
        self.frontends.iter().any(|frontend| {
            frontend.port == port
                && (frontend.address == address || frontend.address.is_unspecified())
        }) || endpoints.any(|known| (known.id, known.generation) == endpoint)
    }

    /// One of which only the id is known.
    pub(super) fn unknown<F: Family>(id: u32, protocol: u8) -> Self {
        Self {
            namespace: "?".into(),
            name: format!("#{id}"),
            port_name: String::new(),
            protocol: protocol_name(protocol),
            family: if F::VERSION == 4 { "IPv4" } else { "IPv6" },
            id,
            frontends: Vec::new(),
            endpoints: Vec::new(),
        }
    }
}

impl LiveTables {
    /// Service ports by name, protocol and family.
    pub fn services(&self) -> Vec<ServicePort> {
        let mut services = BTreeMap::new();
        for (key, value) in &self.frontends4 {
            self.file(&mut services, key, value, &self.endpoints4);
        }
        for (key, value) in &self.frontends6 {
            self.file(&mut services, key, value, &self.endpoints6);
        }
        let mut services: Vec<ServicePort> = services.into_values().collect();
        for service in &mut services {
            service
                .frontends
                .sort_by_key(|f| (order(f.kind), f.address, f.port));
            service.endpoints.sort_by_key(|e| (e.address, e.port));
        }
        services.sort_by(|a, b| {
            let key = |s: &ServicePort| {
                (
                    s.namespace.clone(),
                    s.name.clone(),
                    s.port_name.clone(),
                    s.protocol,
                    s.family,
                    s.id,
                )
            };
            key(a).cmp(&key(b))
        });
        services
    }

    /// Adds a frontend and its endpoints to its service port.
    fn file<F: Family>(
        &self,
        services: &mut BTreeMap<u32, ServicePort>,
        key: &FrontendKey<F>,
        value: &Frontend,
        records: &BTreeMap<u32, Endpoint<F>>,
    ) {
        let service = services
            .entry(value.service)
            .or_insert_with(|| self.service::<F>(value.service, key.protocol));
        service.frontends.push(live_frontend(key, value));
        let local = 0..value.local_count;
        let cluster = value.cluster_first..value.cluster_first.saturating_add(value.cluster_count);
        let block =
            records.range(value.block..value.block.saturating_add(local.end.max(cluster.end)));
        // A record of another service port means that the block was given back while we read.
        for (index, record) in block.filter(|(_, record)| record.service == value.service) {
            let place = index - value.block;
            let endpoint =
                self.live_endpoint(record, local.contains(&place), cluster.contains(&place));
            match service
                .endpoints
                .iter_mut()
                .find(|e| (e.address, e.port) == (endpoint.address, endpoint.port))
            {
                Some(known) => {
                    known.in_local_set |= endpoint.in_local_set;
                    known.in_cluster_set |= endpoint.in_cluster_set;
                }
                None => service.endpoints.push(endpoint),
            }
        }
    }

    /// The service port of an id, by its name alone.
    pub(super) fn service<F: Family>(&self, id: u32, protocol: u8) -> ServicePort {
        let unknown = ServicePort::unknown::<F>(id, protocol);
        match self.names.get(&id) {
            Some(name) => ServicePort {
                namespace: text(&name.namespace),
                name: text(&name.name),
                port_name: text(&name.port),
                ..unknown
            },
            // A name that is gone or not there yet: the id still tells services apart.
            None => unknown,
        }
    }

    fn live_endpoint<F: Family>(
        &self,
        record: &Endpoint<F>,
        in_local_set: bool,
        in_cluster_set: bool,
    ) -> LiveEndpoint {
        let state = self.states.get(&record.id).copied().unwrap_or_default();
        LiveEndpoint {
            address: address::<F>(record.address),
            port: record.port,
            local: record.flags & endpoint::LOCAL != 0,
            host: record.flags & endpoint::HOST != 0,
            in_local_set,
            in_cluster_set,
            serving: state.flags & endpoint::SERVING != 0,
            id: record.id,
            generation: state.generation,
        }
    }
}

/// Whether a frontend was read whole, and under its own key; see [`Frontend`].
pub fn is_whole<F: Family>(key: &FrontendKey<F>, value: &Frontend) -> bool {
    value.generation == value.generation_end && value.check == frontend::key_check(key)
}

fn live_frontend<F: Family>(key: &FrontendKey<F>, value: &Frontend) -> LiveFrontend {
    let local_policy = value.flags & frontend::LOCAL_POLICY != 0;
    let usable = if local_policy {
        value.local_count
    } else {
        value.cluster_count
    };
    let verdict = match (usable, value.flags & frontend::HAS_ENDPOINTS != 0) {
        (1.., _) => Verdict::Translate,
        (0, true) => Verdict::Drop,
        (0, false) => Verdict::Reject,
    };
    LiveFrontend {
        kind: match value.flags & frontend::KIND {
            frontend::CLUSTER_IP => "ClusterIP",
            frontend::NODE_PORT => "NodePort",
            frontend::EXTERNAL_IP => "ExternalIP",
            frontend::LOAD_BALANCER => "LoadBalancer",
            _ => "?",
        },
        address: address::<F>(key.address),
        port: key.port,
        policy: if local_policy { "Local" } else { "Cluster" },
        affinity_seconds: value.affinity_seconds,
        local_endpoints: value.local_count,
        cluster_endpoints: value.cluster_count,
        source_ranges: value.flags & frontend::SOURCE_RANGES != 0,
        verdict,
        generation: value.generation,
        block: value.block,
    }
}

fn order(kind: &str) -> u8 {
    match kind {
        "ClusterIP" => 0,
        "ExternalIP" => 1,
        "LoadBalancer" => 2,
        _ => 3,
    }
}

pub(super) fn address<F: Family>(address: F::Addr) -> IpAddr {
    F::wide(address).into()
}

pub(super) fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        lb_ebpf::abi::TCP => "TCP",
        lb_ebpf::abi::UDP => "UDP",
        lb_ebpf::abi::SCTP => "SCTP",
        _ => "?",
    }
}

/// Text of a zero-filled field.
fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    super::output::clean(&String::from_utf8_lossy(&bytes[..end]))
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn services_are_joined_with_names_and_sorted() {
        let services = sample::tables().services();
        let names: Vec<String> = services
            .iter()
            .map(|s| format!("{} {} {}", s.full_name(), s.protocol, s.family))
            .collect();
        assert_eq!(
            names,
            [
                "kube-system/dns[2J:dns UDP IPv6",
                "shop/empty TCP IPv4",
                "shop/web:http TCP IPv4"
            ]
        );
    }

    #[test]
    fn verdicts_follow_the_governing_set() {
        let services = sample::tables().services();
        let verdicts: Vec<_> = services
            .iter()
            .flat_map(|s| &s.frontends)
            .map(|f| {
                (
                    f.kind,
                    f.address.to_string(),
                    f.policy,
                    f.local_endpoints,
                    f.cluster_endpoints,
                    f.verdict,
                )
            })
            .collect();
        assert_eq!(
            verdicts,
            [
                (
                    "ClusterIP",
                    "fd00::a".into(),
                    "Cluster",
                    0,
                    1,
                    Verdict::Translate
                ),
                (
                    "ClusterIP",
                    "10.96.0.11".into(),
                    "Cluster",
                    0,
                    0,
                    Verdict::Reject
                ),
                (
                    "ClusterIP",
                    "10.96.0.10".into(),
                    "Cluster",
                    2,
                    2,
                    Verdict::Translate
                ),
                ("NodePort", "0.0.0.0".into(), "Local", 0, 1, Verdict::Drop),
            ]
        );
    }

    #[test]
    fn endpoints_are_listed_once_with_their_sets() {
        let services = sample::tables().services();
        let endpoints: Vec<_> = services[2]
            .endpoints
            .iter()
            .map(|e| {
                (
                    e.address.to_string(),
                    e.local,
                    e.host,
                    e.in_local_set,
                    e.in_cluster_set,
                    e.serving,
                )
            })
            .collect();
        assert_eq!(
            endpoints,
            [
                ("10.244.0.1".into(), true, false, true, false, true),
                ("10.244.0.2".into(), true, true, true, true, false),
                ("10.244.0.3".into(), false, false, false, true, true),
            ]
        );
    }

    #[test]
    fn a_service_without_a_name_keeps_its_id_and_wild_counts_do_no_harm() {
        let mut tables = sample::tables();
        tables.names.clear();
        for (_, frontend) in &mut tables.frontends4 {
            (
                frontend.block,
                frontend.cluster_first,
                frontend.cluster_count,
            ) = (u32::MAX - 1, u32::MAX, u32::MAX);
        }
        let services = tables.services();
        assert_eq!(services[0].full_name(), "?/#1");
        assert!(services[0].endpoints.is_empty());
    }

    #[test]
    fn a_torn_or_misplaced_frontend_is_noticed() {
        let (key, whole) = sample::tables().frontends4[0];
        assert!(is_whole(&key, &whole));
        assert!(!is_whole(
            &key,
            &Frontend {
                generation: 6,
                ..whole
            }
        ));
        assert!(!is_whole(&FrontendKey { port: 81, ..key }, &whole));
    }
}
