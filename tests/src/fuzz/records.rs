//! The oracle's tables as the kernel's records.

use std::net::IpAddr;

use lb_agent::plan::{NO_BLOCK, Write};
use lb_ebpf::abi::address::{self, Address4, Address6};
use lb_ebpf::abi::endpoint::{self, Endpoint, EndpointState};
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::frontend::{self, Frontend, FrontendKey, key_check};
use lb_ebpf::abi::settings::{self, PREFIXES, Prefix4, Prefix6, Settings};
use lb_ebpf::abi::socket::TombstoneKey;

use crate::oracle::packet::flows::timeout;
use crate::oracle::packet::tables::{self, Kind, Prefix, Rules, Service, Tables, Use};
use crate::oracle::packet::wire::UDP;

/// Records a block may have.
const BLOCK: u32 = 32;

pub(super) fn settings(rules: &Rules) -> Settings {
    let mut flags = 0;
    if rules.masquerade_all {
        flags |= settings::MASQUERADE_ALL;
    }
    if rules.snat_local {
        flags |= settings::SNAT_LOCAL;
    }
    if rules.pods_by_address {
        flags |= settings::PODS_BY_ADDRESS;
    }
    Settings {
        host_netns: 1,
        flags,
        timeout_new: timeout::NEW as u32,
        timeout_udp: timeout::UDP as u32,
        timeout_tcp: timeout::TCP as u32,
        timeout_closing: timeout::CLOSING as u32,
        timeout_closed: timeout::CLOSED as u32,
        nat_port_first: rules.ports.0,
        nat_port_last: rules.ports.1,
        zero: 0,
        service_cidrs4: prefixes4(&rules.service_cidrs),
        service_cidrs6: prefixes6(&rules.service_cidrs),
        pod_cidrs4: prefixes4(&rules.pod_cidrs),
        pod_cidrs6: prefixes6(&rules.pod_cidrs),
    }
}

fn prefixes4(prefixes: &[Prefix]) -> [Prefix4; PREFIXES] {
    let mut all = [Prefix4::default(); PREFIXES];
    let ours = prefixes.iter().filter(|p| p.address.is_ipv4());
    for (slot, prefix) in all.iter_mut().zip(ours) {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix.length));
        slot.address = narrow(Some(prefix.address));
        slot.mask.octets = mask.unwrap_or(0).to_be_bytes();
    }
    all
}

fn prefixes6(prefixes: &[Prefix]) -> [Prefix6; PREFIXES] {
    let mut all = [Prefix6::default(); PREFIXES];
    let ours = prefixes.iter().filter(|p| p.address.is_ipv6());
    for (slot, prefix) in all.iter_mut().zip(ours) {
        let mask = u128::MAX.checked_shl(128 - u32::from(prefix.length));
        slot.address = prefix.address.into();
        slot.mask.octets = mask.unwrap_or(0).to_be_bytes();
    }
    all
}

/// An IPv4 address as record; none and IPv6 give the unspecified one.
pub(super) fn narrow(address: Option<IpAddr>) -> Address4 {
    match address {
        Some(IpAddr::V4(address)) => address.into(),
        _ => Address4::default(),
    }
}

/// Every write that makes the kernel's tables these.
pub(super) fn writes(tables: &Tables, generation: u32) -> Vec<Write> {
    let mut writes = Vec::new();
    for service in &tables.services {
        write_endpoints(service, &mut writes);
        for range in &service.ranges {
            let (address, extra): (Address6, u8) = match range.address {
                IpAddr::V4(_) => (range.address.into(), 96),
                IpAddr::V6(_) => (range.address.into(), 0),
            };
            writes.push(Write::SourceRange {
                service: service.id,
                address,
                length: range.length + extra,
                allowed: true,
            });
        }
        for frontend in &service.frontends {
            writes.push(frontend_write(service, frontend, generation));
        }
    }
    for (address, port) in &tables.tombstones {
        let key = TombstoneKey {
            address: (*address).into(),
            port: *port,
            protocol: UDP,
            zero: 0,
        };
        writes.push(Write::Tombstone { key, present: true });
    }
    for address in tables.addresses() {
        let flags = use_flags(tables.uses(address));
        writes.push(Write::Address { address, flags });
    }
    writes
}

fn use_flags(uses: Use) -> u32 {
    [
        (uses.cluster_ip, address::CLUSTER_IP),
        (uses.external, address::EXTERNAL),
        (uses.node, address::NODE),
        (uses.tombstone, address::TOMBSTONE),
        (uses.lingering, address::LINGERING),
        (uses.node_local, address::NODE_LOCAL),
    ]
    .into_iter()
    .filter(|(is, _)| *is)
    .fold(0, |flags, (_, flag)| flags | flag)
}

/// Local only, both, cluster only, neither.
fn place(endpoint: &tables::Endpoint) -> u8 {
    match (endpoint.in_local, endpoint.in_cluster) {
        (true, false) => 0,
        (true, true) => 1,
        (false, true) => 2,
        (false, false) => 3,
    }
}

fn write_endpoints(service: &Service, writes: &mut Vec<Write>) {
    let mut endpoints: Vec<_> = service.endpoints.iter().collect();
    endpoints.sort_by_key(|e| place(e));
    let first = service.id * BLOCK;
    let flags = |e: &tables::Endpoint| {
        (u16::from(e.local) * endpoint::LOCAL) | (u16::from(e.host) * endpoint::HOST)
    };
    fn record<F: Family>(
        endpoint: &tables::Endpoint,
        address: F::Addr,
        flags: u16,
        service: u32,
    ) -> Endpoint<F> {
        Endpoint {
            address,
            port: endpoint.port,
            flags,
            id: endpoint.id,
            service,
        }
    }
    if !endpoints.is_empty() && service.v4 {
        let records = endpoints
            .iter()
            .map(|e| record::<V4>(e, narrow(Some(e.address)), flags(e), service.id))
            .collect();
        writes.push(Write::Endpoints4 { first, records });
    } else if !endpoints.is_empty() {
        let records = endpoints
            .iter()
            .map(|e| record::<V6>(e, e.address.into(), flags(e), service.id))
            .collect();
        writes.push(Write::Endpoints6 { first, records });
    }
    for e in &service.endpoints {
        let flags = (u32::from(e.in_cluster) * endpoint::IN_CLUSTER)
            | (u32::from(e.in_local) * endpoint::IN_LOCAL)
            | (u32::from(e.serving) * endpoint::SERVING);
        let state = EndpointState {
            generation: e.generation,
            flags,
        };
        writes.push(Write::EndpointState { id: e.id, state });
    }
}

fn frontend_write(service: &Service, frontend: &tables::Frontend, generation: u32) -> Write {
    let count = |wanted: &[u8]| {
        let places = service.endpoints.iter().map(place);
        places.filter(|p| wanted.contains(p)).count() as u32
    };
    let kind = match frontend.kind {
        Kind::ClusterIp => frontend::CLUSTER_IP,
        Kind::NodePort => frontend::NODE_PORT,
        Kind::ExternalIp => frontend::EXTERNAL_IP,
        Kind::LoadBalancer => frontend::LOAD_BALANCER,
    };
    let ranges = frontend.kind == Kind::LoadBalancer && !service.ranges.is_empty();
    let flags = kind
        | (u32::from(service.is_local(frontend.kind)) * frontend::LOCAL_POLICY)
        | (u32::from(service.has_any()) * frontend::HAS_ENDPOINTS)
        | (u32::from(ranges) * frontend::SOURCE_RANGES);
    let record = |check| Frontend {
        generation,
        service: service.id,
        block: if service.endpoints.is_empty() {
            NO_BLOCK
        } else {
            service.id * BLOCK
        },
        local_count: count(&[0, 1]),
        cluster_first: count(&[0]),
        cluster_count: count(&[1, 2]),
        affinity_seconds: service.affinity,
        flags,
        check,
        generation_end: generation,
    };
    fn key<F: Family>(address: F::Addr, port: u16, protocol: u8) -> FrontendKey<F> {
        FrontendKey {
            address,
            port,
            protocol,
            zero: 0,
        }
    }
    if service.v4 {
        let key = key::<V4>(narrow(frontend.address), frontend.port, service.protocol);
        let frontend = record(key_check(&key));
        Write::Frontend4 { key, frontend }
    } else {
        let address = frontend.address.map(Into::into).unwrap_or_default();
        let key = key::<V6>(address, frontend.port, service.protocol);
        let frontend = record(key_check(&key));
        Write::Frontend6 { key, frontend }
    }
}

/// The write that takes another back, where one is needed.
pub(super) fn undone(write: &Write) -> Option<Write> {
    match write {
        Write::Frontend4 { key, .. } => Some(Write::Frontend4Gone { key: *key }),
        Write::Frontend6 { key, .. } => Some(Write::Frontend6Gone { key: *key }),
        Write::Address { address, .. } => Some(Write::Address {
            address: *address,
            flags: 0,
        }),
        Write::SourceRange {
            service,
            address,
            length,
            ..
        } => Some(Write::SourceRange {
            service: *service,
            address: *address,
            length: *length,
            allowed: false,
        }),
        Write::Tombstone { key, .. } => Some(Write::Tombstone {
            key: *key,
            present: false,
        }),
        _ => None,
    }
}

/// Both write the same entry of the same table.
pub(super) fn same_place(a: &Write, b: &Write) -> bool {
    undone(a) == undone(b) && undone(a).is_some()
}
