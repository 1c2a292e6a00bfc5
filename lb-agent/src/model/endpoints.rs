//! Endpoints of one service port, gathered from its slices (spec §1.B).

use std::net::IpAddr;

use super::{Endpoint, NodeView};
use crate::snapshot::{Family, Hints, Service, ServicePort, Slice};

/// An endpoint with all that selection looks at, and what selection said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) ready: bool,
    pub(super) serving: bool,
    pub(super) terminating: bool,
    /// B8.
    pub(super) local: bool,
    pub(super) hints: Option<&'a Hints>,
    pub(super) cluster: bool,
    pub(super) in_local_set: bool,
}

/// The slices of `service` in one family (B2, B4), by name: sources deliver them in any order (B20), and
/// the answer must not depend on it.
pub(super) fn slices_of<'a>(
    service: &Service,
    slices: &[&'a Slice],
    family: Family,
) -> Vec<&'a Slice> {
    let ours = |slice: &&&Slice| {
        slice.family == family
            && slice.service == service.name.name
            && slice.name.namespace == service.name.namespace
    };
    let mut own: Vec<&Slice> = slices.iter().filter(ours).copied().collect();
    own.sort_unstable_by(|a, b| a.name.name.cmp(&b.name.name));
    own
}

/// The endpoints behind `port`, each address and port once, sorted by them.
pub(super) fn candidates<'a>(
    slices: &[&'a Slice],
    port: &ServicePort,
    node: &NodeView,
) -> Vec<Candidate<'a>> {
    let mut all = Vec::with_capacity(slices.iter().map(|slice| slice.endpoints.len()).sum());
    let mut own: Vec<Candidate<'a>> = Vec::new();
    for slice in slices {
        // B6: the same name may have different numbers, even within one slice.
        let numbers = slice
            .ports
            .iter()
            .filter(|p| p.name == port.name && p.protocol == port.protocol && p.port != 0);
        for number in numbers {
            own.extend(
                slice
                    .endpoints
                    .iter()
                    .filter(|e| Family::of(e.address) == slice.family)
                    .map(|endpoint| Candidate {
                        address: endpoint.address,
                        port: number.port,
                        ready: endpoint.ready,
                        serving: endpoint.serving,
                        terminating: endpoint.terminating,
                        local: endpoint
                            .node
                            .as_ref()
                            .is_some_and(|name| *name == node.name),
                        hints: endpoint.hints.as_deref(),
                        cluster: false,
                        in_local_set: false,
                    }),
            );
        }
        // Spec §8, B11: the order within a slice is the writer's, and a later duplicate counts unless it terminates.
        own.sort_by_key(|c| (c.address, c.port));
        own.dedup_by(|later, kept| {
            let is_same = (later.address, later.port) == (kept.address, kept.port);
            if is_same && !later.terminating {
                *kept = *later;
            }
            is_same
        });
        all.append(&mut own);
    }
    // Slices have no order: not terminating beats terminating, then local beats remote, then their names, whose order
    // the stable sort keeps.
    all.sort_by_key(|c| (c.address, c.port, c.terminating, !c.local));
    all.dedup_by_key(|c| (c.address, c.port));
    all
}

impl Candidate<'_> {
    pub(super) fn endpoint(&self, node: &NodeView) -> Endpoint {
        Endpoint {
            address: self.address,
            port: self.port,
            local: self.local,
            host: node.addresses.contains(&self.address),
            serving: self.serving,
            cluster: self.cluster,
            in_local_set: self.in_local_set,
        }
    }
}
