//! Health-check node ports: how many endpoints this node has (spec H6-H15).

use std::collections::BTreeSet;

use super::endpoints::{candidates, slices_of};
use super::frontends::Addresses;
use super::{HealthCheck, NodeView, Options};
use crate::snapshot::{Family, Service, ServicePort, Slice};

/// The health checks of a Service: one per family it exists in, each with its own count (spec §8, H15).
/// Empty unless the Service has a health-check port (A23).
pub fn health_checks(service: &Service, slices: &[&Slice], node: &NodeView) -> Vec<HealthCheck> {
    let Some(port) = service.health_check_port else {
        return Vec::new();
    };
    let of_family = |family: Family| {
        Addresses::of(service, family, &Options::default())?;
        let local_endpoints = local_ready(service, slices, node, family);
        Some(HealthCheck {
            service: service.name.clone(),
            family,
            port,
            local_endpoints,
        })
    };
    [Family::V4, Family::V6]
        .into_iter()
        .filter_map(of_family)
        .collect()
}

/// H10: distinct addresses over all ports, as slices have them: what the Service calls its ports does not matter. Ready
/// alone decides: a terminating endpoint counts only where `publishNotReadyAddresses` made it ready (B14).
fn local_ready(service: &Service, slices: &[&Slice], node: &NodeView, family: Family) -> usize {
    let slices = slices_of(service, slices, family);
    let mut ports: Vec<ServicePort> = Vec::new();
    for port in slices.iter().flat_map(|slice| &slice.ports) {
        let known =
            |known: &ServicePort| known.name == port.name && known.protocol == port.protocol;
        if !ports.iter().any(known) {
            ports.push(ServicePort {
                name: port.name.clone(),
                protocol: port.protocol,
                port: 0,
                node_port: 0,
            });
        }
    }
    let ready = |port: &ServicePort| {
        let endpoints = candidates(&slices, port, node).into_iter();
        endpoints
            .filter(|e| e.ready && e.local)
            .map(|e| e.address)
            .collect::<Vec<_>>()
    };
    ports.iter().flat_map(ready).collect::<BTreeSet<_>>().len()
}
