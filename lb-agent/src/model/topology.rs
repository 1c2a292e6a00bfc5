//! Which endpoints a service port uses: spec §2, step by step.

use super::NodeView;
use super::endpoints::Candidate;

/// Which sets are needed at all (spec A28).
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) uses_cluster: bool,
    pub(super) uses_local: bool,
}

/// Topology mode over the ready endpoints (step 2.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    None,
    SameNode,
    SameZone,
}

/// Marks the members of the cluster set and of the local set; tells whether any usable endpoint exists.
pub(super) fn select(endpoints: &mut [Candidate<'_>], policy: Policy, node: &NodeView) -> bool {
    let cluster_any = policy.uses_cluster && select_cluster(endpoints, node);
    // A usable endpoint is in the cluster set or seen by the local pass; a Service that needs only one of the
    // sets hears it from that one.
    let local_any = policy.uses_local && select_local(endpoints);
    cluster_any || local_any
}

fn select_cluster(endpoints: &mut [Candidate<'_>], node: &NodeView) -> bool {
    let mode = mode(endpoints, node);
    let mut any = false;
    for endpoint in endpoints.iter_mut() {
        // B14: only `ready` is examined, terminating or not.
        endpoint.cluster = endpoint.ready && admits(mode, endpoint, node);
        any |= endpoint.cluster;
    }
    if !any {
        // C7: the fallback knows no topology.
        for endpoint in endpoints.iter_mut() {
            endpoint.cluster = endpoint.serving && endpoint.terminating;
            any |= endpoint.cluster;
        }
    }
    any
}

fn select_local(endpoints: &mut [Candidate<'_>]) -> bool {
    let fallback = |e: &Candidate<'_>| !e.ready && e.serving && e.terminating;
    let any = endpoints.iter().any(|e| e.ready || fallback(e));
    let local_ready = endpoints.iter().any(|e| e.local && e.ready);
    for endpoint in endpoints {
        endpoint.in_local_set = endpoint.local
            && if local_ready {
                endpoint.ready
            } else {
                fallback(endpoint)
            };
    }
    any
}

fn mode(endpoints: &[Candidate<'_>], node: &NodeView) -> Mode {
    let zone = node.zone.as_deref().filter(|zone| !zone.is_empty());
    let (mut all_node, mut any_node, mut all_zone, mut any_zone) = (true, false, true, false);
    for endpoint in endpoints.iter().filter(|e| e.ready) {
        let (nodes, zones) = endpoint
            .hints
            .map_or((&[][..], &[][..]), |h| (&h.nodes[..], &h.zones[..]));
        all_node &= !nodes.is_empty();
        any_node |= nodes.contains(&node.name);
        all_zone &= !zones.is_empty();
        any_zone |= zone.is_some_and(|zone| zones.iter().any(|hint| **hint == *zone));
    }
    if all_node && any_node {
        Mode::SameNode
    } else if all_zone && any_zone {
        Mode::SameZone
    } else {
        Mode::None
    }
}

fn admits(mode: Mode, endpoint: &Candidate<'_>, node: &NodeView) -> bool {
    match mode {
        Mode::None => true,
        Mode::SameNode => endpoint
            .hints
            .is_some_and(|hints| hints.nodes.contains(&node.name)),
        Mode::SameZone => endpoint
            .hints
            .zip(node.zone.as_ref())
            .is_some_and(|(hints, zone)| hints.zones.contains(zone)),
    }
}
