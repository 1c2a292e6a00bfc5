//! What the tables must say, found the slow way.

use std::collections::{BTreeMap, BTreeSet};

use lb_ebpf::abi::address::{CLUSTER_IP, EXTERNAL, TOMBSTONE};
use lb_ebpf::abi::frontend::{HAS_ENDPOINTS, LOCAL_POLICY, NODE_ALLOWED, SOURCE_RANGES};

use super::super::claims::FrontendId;
use super::super::record;
use super::fake::{Resolved, wide};
use super::scenario::Wanted;
use super::*;

/// The winner of every key, found the slow way.
fn expected(wanted: &Wanted) -> BTreeMap<FrontendId, (&ServicePort, &model::Frontend)> {
    let mut all = BTreeMap::new();
    for port in wanted.values().flatten() {
        for frontend in &port.frontends {
            let protocol = record::number(port.id.protocol);
            let key = FrontendId {
                address: frontend.address,
                port: frontend.port,
                protocol,
            };
            let rank = |(port, frontend): &(&ServicePort, &model::Frontend)| {
                (frontend.kind != FrontendKind::ClusterIp, port.id.clone())
            };
            let entry = all.entry(key).or_insert((port, frontend));
            if rank(&(port, frontend)) < rank(entry) {
                *entry = (port, frontend);
            }
        }
    }
    all
}

/// Asserts that the tables say exactly what was asked for.
pub(super) fn check(fake: &Fake, wanted: &Wanted) {
    let ids: BTreeMap<ServicePortId, u32> = fake
        .names
        .iter()
        .map(|(id, name)| (record::parse_name(name).unwrap(), *id))
        .collect();
    assert_eq!(ids.len(), fake.names.len());
    let names: BTreeSet<_> = wanted
        .values()
        .flatten()
        .map(|port| port.id.clone())
        .collect();
    assert_eq!(ids.keys().cloned().collect::<BTreeSet<_>>(), names);

    let resolved = fake.resolve();
    let expected = expected(wanted);
    assert_eq!(
        resolved.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    let mut seen = BTreeMap::new();
    for (key, (port, frontend)) in expected {
        let got = &resolved[&key];
        check_frontend(fake, got, port, frontend);
        assert_eq!(got.service, ids[&port.id]);
        for met in got.local.union(&got.cluster) {
            assert_eq!(
                *seen.entry(met.3).or_insert((got.service, met.0, met.1)),
                (got.service, met.0, met.1)
            );
        }
    }
    check_addresses(fake, wanted);
    check_ranges(fake, wanted, &ids);
}

fn check_frontend(fake: &Fake, got: &Resolved, port: &ServicePort, frontend: &model::Frontend) {
    let bit = |on: bool, bit: u32| if on { bit } else { 0 };
    let flags = record::kind_bits(frontend.kind)
        | bit(frontend.local_policy, LOCAL_POLICY)
        | bit(port.has_any, HAS_ENDPOINTS)
        | bit(frontend.source_ranges, SOURCE_RANGES)
        | bit(
            frontend.source_ranges && port.ranges_admit_node,
            NODE_ALLOWED,
        );
    assert_eq!((got.flags, got.affinity), (flags, port.affinity_seconds));
    for (set, local) in [(&got.local, true), (&got.cluster, false)] {
        let want: BTreeSet<_> = port
            .endpoints
            .iter()
            .filter(|e| if local { e.in_local_set } else { e.cluster })
            .map(|e| {
                (
                    e.address,
                    e.port,
                    u16::from(e.local || e.host) | u16::from(e.host) << 1,
                )
            })
            .collect();
        assert_eq!(
            set.iter()
                .map(|met| (met.0, met.1, met.2))
                .collect::<BTreeSet<_>>(),
            want
        );
    }
    for endpoint in &port.endpoints {
        let met = got
            .local
            .union(&got.cluster)
            .find(|met| met.0 == endpoint.address);
        if let Some(met) = met {
            let flags =
                bit(endpoint.cluster, 1) | bit(endpoint.in_local_set, 2) | bit(endpoint.serving, 4);
            assert_eq!(fake.states[&met.3].flags, flags);
        }
    }
}

fn check_addresses(fake: &Fake, wanted: &Wanted) {
    let mut flags: BTreeMap<IpAddr, u32> = BTreeMap::new();
    for frontend in wanted.values().flatten().flat_map(|port| &port.frontends) {
        let flag = match frontend.kind {
            FrontendKind::ClusterIp => CLUSTER_IP,
            FrontendKind::ExternalIp | FrontendKind::LoadBalancer => EXTERNAL,
            FrontendKind::NodePort => continue,
        };
        *flags.entry(frontend.address).or_default() |= flag;
    }
    let got = fake
        .addresses
        .iter()
        .map(|(address, flags)| (*address, flags & (CLUSTER_IP | EXTERNAL)));
    assert_eq!(
        got.filter(|(_, flags)| *flags != 0)
            .collect::<BTreeMap<_, _>>(),
        flags
    );
    let dead = fake
        .addresses
        .iter()
        .filter(|(_, flags)| **flags & TOMBSTONE != 0)
        .map(|(address, _)| wide(*address));
    let buried: BTreeSet<_> = fake
        .tombstones
        .iter()
        .map(|(address, _)| *address)
        .collect();
    assert_eq!(dead.collect::<BTreeSet<_>>(), buried);
    for port in wanted
        .values()
        .flatten()
        .filter(|port| port.id.protocol == Protocol::Udp)
    {
        for endpoint in &port.endpoints {
            assert!(
                !fake
                    .tombstones
                    .contains(&(wide(endpoint.address), endpoint.port))
            );
        }
    }
}

fn check_ranges(fake: &Fake, wanted: &Wanted, ids: &BTreeMap<ServicePortId, u32>) {
    let mut ranges = BTreeSet::new();
    for port in wanted.values().flatten() {
        let id = ids[&port.id];
        for range in &port.source_ranges {
            let mapped = if range.address.is_ipv4() { 96 } else { 0 };
            ranges.insert((id, wide(range.address), range.length + mapped));
        }
        let own = port
            .frontends
            .iter()
            .filter(|f| f.source_ranges && port.ranges_admit_node);
        ranges.extend(own.map(|frontend| (id, wide(frontend.address), 128)));
    }
    assert_eq!(fake.ranges, ranges);
}
