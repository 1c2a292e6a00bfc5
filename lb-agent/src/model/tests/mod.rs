//! The rules, one test a row; names carry the rule's id in the specification.

mod endpoints;
mod health;
mod services;
mod sets;
mod topology;

use super::sample::*;
use super::*;
use crate::snapshot::{SliceEndpoint, SlicePort};

/// Sorted addresses of the cluster set and of the local set, and hasAny.
type Sets = (Vec<String>, Vec<String>, bool);

fn ports(service: &Service, slices: &[Slice]) -> Vec<ServicePort> {
    service_ports(
        service,
        &slices.iter().collect::<Vec<_>>(),
        &node(),
        &Options::default(),
    )
}

fn only(service: &Service, endpoints: Vec<SliceEndpoint>) -> ServicePort {
    ports(service, &[slice("web-1", endpoints)]).remove(0)
}

fn set(port: &ServicePort, member: impl Fn(&Endpoint) -> bool) -> Vec<String> {
    port.endpoints
        .iter()
        .filter(|e| member(e))
        .map(|e| e.address.to_string())
        .collect()
}

fn sets(port: &ServicePort) -> Sets {
    (
        set(port, |e| e.cluster),
        set(port, |e| e.in_local_set),
        port.has_any,
    )
}

fn expect(cluster: &[&str], local: &[&str], has_any: bool) -> Sets {
    let owned = |list: &[&str]| list.iter().map(|&a| a.to_owned()).collect();
    (owned(cluster), owned(local), has_any)
}

/// What `frontend` of a kind leads to: addresses, or the verdict.
fn leads(port: &ServicePort, kind: FrontendKind) -> Result<Vec<String>, Verdict> {
    let frontend = port
        .frontends
        .iter()
        .find(|f| f.kind == kind)
        .expect("a frontend of this kind");
    match port.verdict(frontend) {
        Verdict::Translate if frontend.local_policy => Ok(set(port, |e| e.in_local_set)),
        Verdict::Translate => Ok(set(port, |e| e.cluster)),
        other => Err(other),
    }
}

fn to(addresses: &[&str]) -> Result<Vec<String>, Verdict> {
    Ok(addresses.iter().map(|&a| a.to_owned()).collect())
}

/// ETP Local with a VIP: uses both sets.
fn balanced_local() -> Service {
    Service {
        external_local: true,
        load_balancer_ips: vec![ip("1.2.3.4")],
        ..service()
    }
}

fn internal_local() -> Service {
    Service {
        internal_local: true,
        ..service()
    }
}

fn frontend(address: &str, port: u16, kind: FrontendKind) -> Frontend {
    Frontend {
        address: ip(address),
        port,
        kind,
        local_policy: false,
        source_ranges: false,
    }
}
