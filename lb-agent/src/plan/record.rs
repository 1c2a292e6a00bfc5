//! Table records from the ledger's own, and back.

use lb_ebpf::abi::address::Address6;
use std::net::IpAddr;

use lb_ebpf::abi::endpoint::Endpoint;
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::frontend::{self, FrontendKey};
use lb_ebpf::abi::name::ServiceName;
use lb_ebpf::abi::{SCTP, TCP, UDP};

use super::claims::FrontendId;
use super::port::Held;
use super::{NO_ID, Write};
use crate::model::{FrontendKind, ServicePortId};
use crate::snapshot::{self, ObjectName, Protocol};

/// A family's own write of endpoint records.
pub(super) trait Wire: Family {
    fn write(first: u32, records: Vec<Endpoint<Self>>) -> Write;
}

impl Wire for V4 {
    fn write(first: u32, records: Vec<Endpoint<V4>>) -> Write {
        Write::Endpoints4 { first, records }
    }
}

impl Wire for V6 {
    fn write(first: u32, records: Vec<Endpoint<V6>>) -> Write {
        Write::Endpoints6 { first, records }
    }
}

/// An address as 16 bytes; IPv4 becomes `::ffff:a.b.c.d`.
pub(super) fn wide(address: IpAddr) -> Address6 {
    address.into()
}

/// How the records of a block divide into sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Counts {
    pub(super) local_count: u32,
    pub(super) cluster_first: u32,
    pub(super) cluster_count: u32,
}

/// The records of a block, in the order the frontend's ranges ask for, with a terminator (see the module
/// documentation of `plan`).
pub(super) fn block<F: Wire>(held: &[Held], service: u32) -> (Vec<Endpoint<F>>, Counts) {
    let mut records = Vec::with_capacity(held.len() + 1);
    let mut ends = [0; 4];
    let groups: [(bool, bool); 4] = [(true, false), (true, true), (false, true), (false, false)];
    for ((local, cluster), end) in groups.into_iter().zip(&mut ends) {
        let group = held.iter().filter(|h| {
            h.id != NO_ID && h.in_local_set() == local && h.in_cluster_set() == cluster
        });
        records.extend(group.map(|h| Endpoint {
            address: F::narrow(h.address),
            port: h.port,
            flags: h.record_flags(),
            id: h.id,
            service,
        }));
        *end = records.len() as u32;
    }
    records.push(Endpoint {
        address: F::UNSPECIFIED,
        port: 0,
        flags: 0,
        id: NO_ID,
        service: u32::MAX,
    });
    let [local_only, local_count, cluster_end, _] = ends;
    (
        records,
        Counts {
            local_count,
            cluster_first: local_only,
            cluster_count: cluster_end - local_only,
        },
    )
}

/// A frontend written (`Some`) or removed.
pub(super) fn frontend(key: FrontendId, record: Option<frontend::Frontend>) -> Write {
    match (key.address, record) {
        (IpAddr::V4(a), Some(frontend)) => Write::Frontend4 {
            key: key_of::<V4>(key, a.into()),
            frontend,
        },
        (IpAddr::V4(a), None) => Write::Frontend4Gone {
            key: key_of::<V4>(key, a.into()),
        },
        (IpAddr::V6(a), Some(frontend)) => Write::Frontend6 {
            key: key_of::<V6>(key, a.into()),
            frontend,
        },
        (IpAddr::V6(a), None) => Write::Frontend6Gone {
            key: key_of::<V6>(key, a.into()),
        },
    }
}

/// The check word of a frontend's record.
pub(super) fn check(key: FrontendId) -> u32 {
    match key.address {
        IpAddr::V4(a) => frontend::key_check(&key_of::<V4>(key, a.into())),
        IpAddr::V6(a) => frontend::key_check(&key_of::<V6>(key, a.into())),
    }
}

fn key_of<F: Family>(key: FrontendId, address: F::Addr) -> FrontendKey<F> {
    FrontendKey {
        address,
        port: key.port,
        protocol: key.protocol,
        zero: 0,
    }
}

/// The id behind a table key.
pub(super) fn id_of<F: Family>(key: &FrontendKey<F>) -> FrontendId
where
    IpAddr: From<F::Addr>,
{
    FrontendId {
        address: key.address.into(),
        port: key.port,
        protocol: key.protocol,
    }
}

/// IP protocol number.
pub(super) fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
        Protocol::Sctp => SCTP,
    }
}

/// Kind bits of [`frontend::Frontend::flags`].
pub(super) fn kind_bits(kind: FrontendKind) -> u32 {
    match kind {
        FrontendKind::ClusterIp => frontend::CLUSTER_IP,
        FrontendKind::NodePort => frontend::NODE_PORT,
        FrontendKind::ExternalIp => frontend::EXTERNAL_IP,
        FrontendKind::LoadBalancer => frontend::LOAD_BALANCER,
    }
}

/// The inverse of [`kind_bits`]; `None` for what no version of ours writes.
pub(super) fn kind(flags: u32) -> Option<FrontendKind> {
    let all = [
        FrontendKind::ClusterIp,
        FrontendKind::NodePort,
        FrontendKind::ExternalIp,
        FrontendKind::LoadBalancer,
    ];
    all.into_iter()
        .find(|kind| kind_bits(*kind) == flags & frontend::KIND)
}

/// The name record of a service port. Kubernetes' names fit; longer ones, from a manifest directory, are cut.
pub(super) fn name(id: &ServicePortId) -> ServiceName {
    ServiceName {
        namespace: text(&id.service.namespace),
        name: text(&id.service.name),
        port: text(&id.port),
        family: match id.family {
            snapshot::Family::V4 => 4,
            snapshot::Family::V6 => 6,
        },
        protocol: number(id.protocol),
        zero: [0; 2],
    }
}

/// The inverse of [`name`]; `None` for what no version of ours writes.
pub(super) fn parse_name(name: &ServiceName) -> Option<ServicePortId> {
    let family = match name.family {
        4 => snapshot::Family::V4,
        6 => snapshot::Family::V6,
        _ => return None,
    };
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|p| number(*p) == name.protocol)?;
    let service = ObjectName {
        namespace: parse_text(&name.namespace)?.into(),
        name: parse_text(&name.name)?.into(),
    };
    Some(ServicePortId {
        service,
        port: parse_text(&name.port)?.into(),
        protocol,
        family,
    })
}

fn text(text: &str) -> [u8; 64] {
    let mut bytes = [0; 64];
    let len = (0..=text.len().min(64))
        .rev()
        .find(|len| text.is_char_boundary(*len))
        .unwrap_or(0);
    bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
    bytes
}

fn parse_text(bytes: &[u8; 64]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(64);
    std::str::from_utf8(&bytes[..end]).ok()
}
