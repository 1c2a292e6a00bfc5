//! Which endpoints a service port has, worked out slowly and plainly from kube-proxy's rules.
//!
//! An independent reading of the behaviour the agent's model must have: endpoint intake (B4-B11, duplicates
//! as the corrected B11 has them), the derived flags (A28) and endpoint selection (§2). It shares no code
//! with the model, follows the rules' own order and numbering, and cares nothing for speed.
//!
//! One rule is ours: of equal endpoints in one slice the first counts, which kube-proxy leaves open.

pub mod case;
pub mod objects;
pub mod packet;
pub mod picture;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_agent::snapshot::{Family, Node, Protocol, Service, ServicePort, Slice, SliceEndpoint};

/// Address and port of an endpoint.
pub type Target = (IpAddr, u16);

/// What kube-proxy would do with one service port in one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Selection {
    pub port: String,
    pub protocol: Protocol,
    pub family: Family,
    pub cluster: BTreeSet<Target>,
    pub local: BTreeSet<Target>,
    pub has_any: bool,
    /// Every endpoint, usable or not.
    pub known: BTreeMap<Target, Known>,
    /// For traffic to the ClusterIP.
    pub internal: Verdict,
    /// For traffic to an external address that is not short-cut; `None` if there is no such address.
    pub external: Option<Verdict>,
}

/// What is true of an endpoint whether or not it is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    pub local: bool,
    pub serving: bool,
}

/// What happens to a new flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    Reject,
    Drop,
    Translate(BTreeSet<Target>),
}

/// Every service port of `service`, in the order of the Service's ports, IPv4 before IPv6.
///
/// Slices of other Services are passed over (B2).
pub fn select(service: &Service, slices: &[Slice], node: &Node) -> Vec<Selection> {
    let mut selections = Vec::new();
    for port in &service.ports {
        for family in [Family::V4, Family::V6] {
            // A6: a Service without an address in a family does not exist there.
            if service
                .cluster_ips
                .iter()
                .any(|ip| Family::of(*ip) == family)
            {
                selections.push(select_port(service, port, family, slices, node));
            }
        }
    }
    selections
}

/// H10: addresses of local ready endpoints, over all ports that slices name, whether the Service has them or not.
pub fn local_ready(service: &Service, slices: &[Slice], node: &Node, family: Family) -> usize {
    let mut addresses = BTreeSet::new();
    for named in slices.iter().flat_map(|slice| &slice.ports) {
        let port = ServicePort {
            name: named.name.clone(),
            protocol: named.protocol,
            port: 0,
            node_port: 0,
        };
        for candidate in intake(service, &port, family, slices, node) {
            if candidate.is_local && candidate.endpoint.ready {
                addresses.insert(candidate.target.0);
            }
        }
    }
    addresses.len()
}

/// An endpoint after intake: §2's inputs.
#[derive(Clone)]
struct Candidate<'a> {
    target: Target,
    is_local: bool,
    slice_name: &'a str,
    endpoint: &'a SliceEndpoint,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    None,
    SameNode,
    SameZone,
}

fn select_port(
    service: &Service,
    port: &ServicePort,
    family: Family,
    slices: &[Slice],
    node: &Node,
) -> Selection {
    let candidates = intake(service, port, family, slices, node);
    let uses = Uses::of(service, port, family);

    // §2 step 2.
    let mut cluster = BTreeSet::new();
    let mut has_any = false;
    if uses.cluster {
        cluster = cluster_set(&candidates, node);
        has_any = !cluster.is_empty();
    }

    // §2 steps 4 and 5.
    let mut local = BTreeSet::new();
    if uses.local {
        for candidate in &candidates {
            let endpoint = candidate.endpoint;
            if endpoint.ready || (endpoint.serving && endpoint.terminating) {
                has_any = true;
            }
        }
        local = local_set(&candidates);
    }

    let known = candidates.iter().map(|candidate| {
        let known = Known {
            local: candidate.is_local,
            serving: candidate.endpoint.serving,
        };
        (candidate.target, known)
    });
    let verdict = |policy_local: bool| match (has_any, policy_local) {
        (false, _) => Verdict::Reject,
        (true, true) if local.is_empty() => Verdict::Drop,
        (true, true) => Verdict::Translate(local.clone()),
        (true, false) => Verdict::Translate(cluster.clone()),
    };
    Selection {
        port: port.name.to_string(),
        protocol: port.protocol,
        family,
        internal: verdict(service.internal_local),
        external: uses.external.then(|| verdict(service.external_local)),
        cluster,
        local,
        has_any,
        known: known.collect(),
    }
}

/// The flags of A28, for one family.
struct Uses {
    external: bool,
    cluster: bool,
    local: bool,
}

impl Uses {
    fn of(service: &Service, port: &ServicePort, family: Family) -> Self {
        let in_family = |ips: &[IpAddr]| ips.iter().any(|ip| Family::of(*ip) == family);
        let external = port.node_port != 0
            || in_family(&service.load_balancer_ips)
            || in_family(&service.external_ips);
        Self {
            external,
            cluster: !service.internal_local || external,
            local: service.internal_local || (service.external_local && external),
        }
    }
}

/// B4-B11: the endpoints of one service port.
fn intake<'a>(
    service: &Service,
    port: &ServicePort,
    family: Family,
    slices: &'a [Slice],
    node: &Node,
) -> Vec<Candidate<'a>> {
    let mut kept: Vec<Candidate<'a>> = Vec::new();
    for slice in slices {
        // B2.
        if slice.service != service.name.name || slice.name.namespace != service.name.namespace {
            continue;
        }
        // B4.
        if slice.family != family {
            continue;
        }
        let mut own: Vec<Candidate<'_>> = Vec::new();
        for slice_port in &slice.ports {
            // B6.
            if slice_port.name != port.name || slice_port.protocol != port.protocol {
                continue;
            }
            for endpoint in &slice.endpoints {
                if Family::of(endpoint.address) != family {
                    continue;
                }
                let candidate = Candidate {
                    target: (endpoint.address, slice_port.port),
                    // B8.
                    is_local: endpoint.node.as_deref() == Some(&*node.name),
                    slice_name: &slice.name.name,
                    endpoint,
                };
                // B11 within one slice, whose order is the writer's: a later one counts unless it terminates.
                put(&mut own, candidate, |new, _| !new.endpoint.terminating);
            }
        }
        for candidate in own {
            put(&mut kept, candidate, beats);
        }
    }
    kept
}

/// Keeps one candidate for each target.
fn put<'a>(
    kept: &mut Vec<Candidate<'a>>,
    candidate: Candidate<'a>,
    beats: impl Fn(&Candidate<'_>, &Candidate<'_>) -> bool,
) {
    match kept
        .iter_mut()
        .find(|other| other.target == candidate.target)
    {
        None => kept.push(candidate),
        Some(other) if beats(&candidate, other) => *other = candidate,
        Some(_) => {}
    }
}

/// B11 as corrected, between slices: not terminating beats terminating, then local beats remote, then the slice's name.
fn beats(new: &Candidate<'_>, old: &Candidate<'_>) -> bool {
    if new.endpoint.terminating != old.endpoint.terminating {
        return !new.endpoint.terminating;
    }
    if new.is_local != old.is_local {
        return new.is_local;
    }
    new.slice_name < old.slice_name
}

/// §2 steps 2.1 to 2.4.
fn cluster_set(candidates: &[Candidate<'_>], node: &Node) -> BTreeSet<Target> {
    let ready: Vec<&Candidate<'_>> = candidates
        .iter()
        .filter(|candidate| candidate.endpoint.ready)
        .collect();
    let mode = mode(&ready, node);
    let mut cluster = BTreeSet::new();
    for candidate in ready {
        let chosen = match mode {
            Mode::None => true,
            Mode::SameNode => node_hints(candidate).contains(&&*node.name),
            Mode::SameZone => node
                .zone
                .as_deref()
                .is_some_and(|zone| zone_hints(candidate).contains(&zone)),
        };
        if chosen {
            cluster.insert(candidate.target);
        }
    }
    if cluster.is_empty() {
        for candidate in candidates {
            if candidate.endpoint.serving && candidate.endpoint.terminating {
                cluster.insert(candidate.target);
            }
        }
    }
    cluster
}

/// §2 step 2.2.
fn mode(ready: &[&Candidate<'_>], node: &Node) -> Mode {
    if ready.is_empty() {
        return Mode::None;
    }
    let all_name_nodes = ready
        .iter()
        .all(|candidate| !node_hints(candidate).is_empty());
    let one_names_us = ready
        .iter()
        .any(|candidate| node_hints(candidate).contains(&&*node.name));
    if all_name_nodes && one_names_us {
        return Mode::SameNode;
    }
    // A missing label and an empty one are the same to kube-proxy.
    let zone = node.zone.as_deref().unwrap_or("");
    let all_name_zones = ready
        .iter()
        .all(|candidate| !zone_hints(candidate).is_empty());
    let one_names_ours = ready
        .iter()
        .any(|candidate| zone_hints(candidate).contains(&zone));
    if all_name_zones && !zone.is_empty() && one_names_ours {
        return Mode::SameZone;
    }
    Mode::None
}

fn node_hints<'a>(candidate: &Candidate<'a>) -> BTreeSet<&'a str> {
    candidate
        .endpoint
        .hints
        .iter()
        .flat_map(|hints| &hints.nodes)
        .map(|name| &**name)
        .collect()
}

fn zone_hints<'a>(candidate: &Candidate<'a>) -> BTreeSet<&'a str> {
    candidate
        .endpoint
        .hints
        .iter()
        .flat_map(|hints| &hints.zones)
        .map(|name| &**name)
        .collect()
}

/// §2 step 5.
fn local_set(candidates: &[Candidate<'_>]) -> BTreeSet<Target> {
    let mut ready = BTreeSet::new();
    let mut terminating = BTreeSet::new();
    for candidate in candidates.iter().filter(|candidate| candidate.is_local) {
        let endpoint = candidate.endpoint;
        if endpoint.ready {
            ready.insert(candidate.target);
        } else if endpoint.serving && endpoint.terminating {
            terminating.insert(candidate.target);
        }
    }
    if ready.is_empty() { terminating } else { ready }
}
