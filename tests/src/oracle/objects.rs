//! API objects read slowly and plainly: what kube-proxy takes from them (spec §1.A, §1.B, §3.4, corrections of §8).
//!
//! Shares no code with the agent's converter. Rules of ours, where the objects are ones no API server accepts: an
//! address nobody may be sent to counts as not written; a name that is none refuses its whole object; of two ports
//! with one identity the first counts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_agent::snapshot::{
    Cidr, Family, Hints, Node, ObjectName, Protocol, Service, ServicePort, Slice, SliceEndpoint,
    SlicePort,
};

/// Prefixes of addresses that only the node itself, its links or nobody can reach.
const FORBIDDEN: [(&str, u8); 10] = [
    ("0.0.0.0", 8),
    ("127.0.0.0", 8),
    ("169.254.0.0", 16),
    ("224.0.0.0", 4),
    ("::", 128),
    ("::1", 128),
    ("fe80::", 10),
    ("ff00::", 8),
    ("::ffff:0:0", 96),
    ("255.255.255.255", 32),
];

/// Whether no client may be sent there, and no Service may be there.
pub fn is_forbidden(address: IpAddr) -> bool {
    FORBIDDEN.iter().any(|(prefix, length)| {
        let prefix: IpAddr = prefix.parse().expect("an address");
        match (prefix, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                (ours.to_bits() ^ theirs.to_bits()).leading_zeros() >= u32::from(*length)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                (ours.to_bits() ^ theirs.to_bits()).leading_zeros() >= u32::from(*length)
            }
            _ => false,
        }
    })
}

/// A Service, if it is one for a proxy.
pub fn service(object: &core::Service) -> Option<Service> {
    // A1 as §8 corrects it: whatever the label's value.
    if label(&object.metadata, "service.kubernetes.io/service-proxy-name").is_some() {
        return None;
    }
    let name = named(&object.metadata, 63)?;
    let spec = object.spec.as_ref()?;
    // A2, A4.
    let first = spec.cluster_ip.as_deref().unwrap_or("");
    if first.is_empty() || first == "None" || spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let cluster_ips = cluster_ips(spec);
    if cluster_ips.is_empty() {
        return None;
    }
    let external_ips = addresses(spec.external_ips.iter().flatten());
    let type_ = spec.type_.as_deref().unwrap_or("ClusterIP");
    // A21.
    let has_external_policy = match type_ {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" | "" => !external_ips.is_empty(),
        _ => false,
    };
    let external_local =
        has_external_policy && spec.external_traffic_policy.as_deref() == Some("Local");
    // A14, A15.
    let ingress = object
        .status
        .iter()
        .flat_map(|status| &status.load_balancer);
    let ingress = ingress.flat_map(|balancer| balancer.ingress.iter().flatten());
    let vips = ingress
        .filter(|ingress| ingress.ip_mode.as_deref().unwrap_or("VIP") == "VIP")
        .filter_map(|ingress| ingress.ip.as_ref());
    // A24.
    let affinity_seconds = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref();
        let given = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
        match given {
            Some(seconds @ 1..=86_400) => seconds as u32,
            Some(86_401..) => 86_400,
            None | Some(_) => 10_800,
        }
    });
    // A23.
    let health_check_port = match (type_, external_local) {
        ("LoadBalancer", true) => port_number(spec.health_check_node_port.unwrap_or(0)),
        _ => None,
    };
    Some(Service {
        name,
        cluster_ips,
        load_balancer_ips: addresses(vips),
        source_ranges: source_ranges(spec),
        ports: service_ports(spec)?,
        external_ips,
        external_local,
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        affinity_seconds,
        health_check_port,
    })
}

/// An EndpointSlice, if it says whose it is.
pub fn slice(object: &discovery::EndpointSlice) -> Option<Slice> {
    // §8, A3: for slices the other label.
    if label(&object.metadata, "service.kubernetes.io/headless").is_some() {
        return None;
    }
    let name = named(&object.metadata, 253)?;
    // B2, B4.
    let service =
        label(&object.metadata, "kubernetes.io/service-name").filter(|s| !s.is_empty())?;
    let family = family(&object.address_type)?;
    if !is_name(service, 63) {
        return None;
    }
    let mut ports = Vec::new();
    for port in object.ports.iter().flatten() {
        // B6.
        let (Some(name), Some(number)) = (&port.name, port.port) else {
            continue;
        };
        if number == 0 {
            continue;
        }
        if !name.is_empty() && !is_name(name, 63) {
            return None;
        }
        if let (Some(port), Some(protocol)) = (port_number(number), protocol(&port.protocol)) {
            ports.push(SlicePort {
                name: name.as_str().into(),
                protocol,
                port,
            });
        }
    }
    let mut endpoints = Vec::new();
    for endpoint in &object.endpoints {
        endpoints.extend(slice_endpoint(endpoint, family)?);
    }
    Some(Slice {
        name,
        service: service.into(),
        family,
        ports,
        endpoints,
        trigger_time: None,
    })
}

/// Our own Node.
pub fn node(object: &core::Node) -> Option<Node> {
    let name = object
        .metadata
        .name
        .as_deref()
        .filter(|name| is_name(name, 253))?;
    // C6, C8: an empty label is none.
    let zone = label(&object.metadata, "topology.kubernetes.io/zone").filter(|z| !z.is_empty());
    if zone.is_some_and(|zone| !is_name(zone, 63)) {
        return None;
    }
    let listed = object
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    let of = |kind: &'static str| {
        let of_kind = listed.clone().filter(move |listed| listed.type_ == kind);
        of_kind.map(|listed| &listed.address)
    };
    Some(Node {
        name: name.into(),
        zone: zone.map(Into::into),
        addresses: addresses(of("InternalIP").chain(of("ExternalIP"))),
        ..Node::default()
    })
}

/// A6.
fn cluster_ips(spec: &core::ServiceSpec) -> Vec<IpAddr> {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    if families.is_empty() {
        return addresses(spec.cluster_ip.iter());
    }
    let all = spec.cluster_ips.as_deref().unwrap_or_default();
    let mut found: Vec<IpAddr> = Vec::new();
    for wanted in ["IPv4", "IPv6"] {
        let place = families.iter().position(|family| family == wanted);
        let Some(text) = place.and_then(|place| all.get(place)) else {
            continue;
        };
        let address = address(text).filter(|ip| Some(Family::of(*ip)) == family(wanted));
        found.extend(address);
    }
    found
}

/// A19.
fn source_ranges(spec: &core::ServiceSpec) -> Vec<Cidr> {
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    let all: Vec<Cidr> = ranges.filter_map(|text| prefix(text.trim())).collect();
    let is_open = |family: Family| {
        let mut of_family = all
            .iter()
            .filter(|range| Family::of(range.address) == family);
        of_family.any(|range| range.length == 0)
    };
    let kept = all
        .iter()
        .filter(|range| !is_open(Family::of(range.address)));
    kept.copied().collect()
}

fn service_ports(spec: &core::ServiceSpec) -> Option<Vec<ServicePort>> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for port in spec.ports.iter().flatten() {
        let name = port.name.as_deref().unwrap_or("");
        if !name.is_empty() && !is_name(name, 63) {
            return None;
        }
        let (Some(protocol), Some(number)) = (protocol(&port.protocol), port_number(port.port))
        else {
            continue;
        };
        // A5.
        let is_same = |other: &ServicePort| &*other.name == name && other.protocol == protocol;
        if !ports.iter().any(is_same) {
            ports.push(ServicePort {
                name: name.into(),
                protocol,
                port: number,
                // A10.
                node_port: port.node_port.and_then(port_number).unwrap_or(0),
            });
        }
    }
    Some(ports)
}

/// The outer `None` refuses the slice, the inner the endpoint.
fn slice_endpoint(endpoint: &discovery::Endpoint, family: Family) -> Option<Option<SliceEndpoint>> {
    // B5.
    let address = endpoint.addresses.first().and_then(|text| address(text));
    let Some(address) = address.filter(|address| Family::of(*address) == family) else {
        return Some(None);
    };
    let node = endpoint
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty());
    if node.is_some_and(|node| !is_name(node, 253)) {
        return None;
    }
    // B10.
    let hints = endpoint.hints.as_ref();
    let zones: Vec<_> = hints
        .iter()
        .flat_map(|hints| hints.for_zones.iter().flatten())
        .map(|zone| zone.name.as_str())
        .collect();
    let nodes: Vec<_> = hints
        .iter()
        .flat_map(|hints| hints.for_nodes.iter().flatten())
        .map(|node| node.name.as_str())
        .collect();
    if zones.iter().any(|name| !is_name(name, 63)) || nodes.iter().any(|name| !is_name(name, 253)) {
        return None;
    }
    // B7.
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    Some(Some(SliceEndpoint {
        address,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: node.map(Into::into),
        hints: Some(Box::new(Hints {
            zones: zones.into_iter().map(Into::into).collect(),
            nodes: nodes.into_iter().map(Into::into).collect(),
        })),
    }))
}

fn named(metadata: &ObjectMeta, limit: usize) -> Option<ObjectName> {
    let namespace = metadata
        .namespace
        .as_deref()
        .filter(|text| is_name(text, 63))?;
    let name = metadata
        .name
        .as_deref()
        .filter(|text| is_name(text, limit))?;
    Some(ObjectName {
        namespace: namespace.into(),
        name: name.into(),
    })
}

fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(name).map(String::as_str)
}

fn is_name(text: &str, limit: usize) -> bool {
    (1..=limit).contains(&text.len())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
}

fn family(text: &str) -> Option<Family> {
    match text {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }
}

fn protocol(text: &Option<String>) -> Option<Protocol> {
    match text.as_deref().unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

fn port_number(number: i32) -> Option<u16> {
    (1..=65_535).contains(&number).then_some(number as u16)
}

/// Those that may be used, each once.
fn addresses<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for address in texts.filter_map(|text| address(text)) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

fn address(text: &str) -> Option<IpAddr> {
    any_address(text).filter(|address| !is_forbidden(*address))
}

/// A25: octets are decimal whatever zeros lead them.
fn any_address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    let parts: Vec<&str> = text.split('.').collect();
    let octets: Option<Vec<u8>> = parts.iter().map(|part| number(part)).collect();
    let octets: [u8; 4] = octets?.try_into().ok()?;
    Some(IpAddr::V4(Ipv4Addr::from(octets)))
}

fn number(text: &str) -> Option<u8> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let significant = text.trim_start_matches('0');
    match (digits, significant) {
        (true, "") => Some(0),
        (true, significant) => significant.parse().ok(),
        (false, _) => None,
    }
}

/// A prefix without host bits.
fn prefix(text: &str) -> Option<Cidr> {
    let (address, length) = text.split_once('/')?;
    let length = number(length)?;
    let address = match any_address(address)? {
        IpAddr::V4(v4) if length <= 32 => {
            let hosts = (1u64 << (32 - length)) - 1;
            IpAddr::V4((v4.to_bits() & !(hosts as u32)).into())
        }
        IpAddr::V6(v6) if length <= 128 && v6.to_ipv4_mapped().is_none() => {
            let hosts = u128::MAX.checked_shr(u32::from(length)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & !hosts).into())
        }
        _ => return None,
    };
    Some(Cidr { address, length })
}
