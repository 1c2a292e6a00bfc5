//! Random changes: the tables equal what was asked for, at every prefix nothing is mixed.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use lb_ebpf::abi::address::{CLUSTER_IP, EXTERNAL, TOMBSTONE};
use lb_ebpf::abi::frontend::{HAS_ENDPOINTS, LOCAL_POLICY, NODE_ALLOWED, SOURCE_RANGES};

use super::super::claims::FrontendId;
use super::super::record;
use super::fake::{Resolved, wide};
use super::*;
use crate::snapshot::Cidr;

/// SplitMix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }

    pub(super) fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

/// What was asked for, by Service.
pub(super) type Wanted = BTreeMap<ObjectName, Vec<ServicePort>>;

fn address(family: Family, v4: String, v6: String) -> IpAddr {
    ip(if family == Family::V4 { &v4 } else { &v6 })
}

fn random_endpoints(random: &mut Random, family: Family) -> Vec<model::Endpoint> {
    let mut endpoints: Vec<model::Endpoint> = Vec::new();
    for host in 1..=6 {
        if random.chance(2) {
            continue;
        }
        let address = address(family, format!("10.0.0.{host}"), format!("fd00::{host}"));
        let local = random.chance(2);
        let serving = !random.chance(4);
        let cluster = random.chance(2);
        let in_local_set = local && random.chance(2);
        let host = random.chance(8);
        endpoints.push(model::Endpoint {
            address,
            port: 8080,
            local,
            host,
            serving,
            cluster,
            in_local_set,
        });
    }
    endpoints
}

fn random_frontends(
    random: &mut Random,
    service: usize,
    family: Family,
    number: u16,
) -> Vec<model::Frontend> {
    let cluster_ip = address(
        family,
        format!("10.96.0.{}", service + 1),
        format!("fd96::{}", service + 1),
    );
    let mut list = vec![(cluster_ip, number, FrontendKind::ClusterIp)];
    if random.chance(2) {
        let any = address(family, "0.0.0.0".into(), "::".into());
        list.push((any, 30000 + random.below(3) as u16, FrontendKind::NodePort));
    }
    if random.chance(2) {
        let shared = random.below(3);
        list.push((
            address(family, format!("1.2.3.{shared}"), format!("2001::{shared}")),
            number,
            FrontendKind::ExternalIp,
        ));
    }
    if random.chance(3) {
        // Another Service's ClusterIP, or an address that others have as externalIP.
        let other = (service + 1) % 4;
        let vip = match random.chance(3) {
            true => address(
                family,
                format!("10.96.0.{}", other + 1),
                format!("fd96::{}", other + 1),
            ),
            false => address(family, "1.2.3.9".into(), "2001::9".into()),
        };
        list.push((vip, number, FrontendKind::LoadBalancer));
    }
    let filtered = random.chance(2);
    let frontend = |(address, port, kind): (IpAddr, u16, FrontendKind)| model::Frontend {
        address,
        port,
        kind,
        local_policy: port % 2 == 0,
        source_ranges: filtered && kind == FrontendKind::LoadBalancer,
    };
    let mut frontends: Vec<_> = list.into_iter().map(frontend).collect();
    frontends.sort_unstable();
    frontends
}

fn random_service(random: &mut Random, service: usize) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    for (name, protocol, number) in [
        ("a", Protocol::Tcp, 80),
        ("b", Protocol::Udp, 80),
        ("c", Protocol::Udp, 81),
    ] {
        for family in [Family::V4, Family::V6] {
            if random.chance(2) {
                continue;
            }
            let endpoints = random_endpoints(random, family);
            let frontends = random_frontends(random, service, family, number);
            let ranges = frontends.iter().any(|f| f.source_ranges);
            let range = Cidr {
                address: address(family, "10.0.0.0".into(), "fd00::".into()),
                length: 8,
            };
            ports.push(ServicePort {
                id: ServicePortId {
                    service: object(&format!("s{service}")),
                    port: name.into(),
                    protocol,
                    family,
                },
                has_any: endpoints.iter().any(|e| e.cluster || e.in_local_set) || random.chance(4),
                frontends,
                endpoints,
                affinity_seconds: random.below(2) as u32 * 100,
                source_ranges: if ranges { vec![range] } else { vec![] },
                ranges_admit_node: ranges && random.chance(2),
            });
        }
    }
    ports
}

/// A small change of one Service, often of a single endpoint.
fn change(random: &mut Random, wanted: &mut Wanted) -> ObjectName {
    let number = random.below(4);
    let service = object(&format!("s{number}"));
    let ports = wanted.entry(service.clone()).or_default();
    match random.below(6) {
        0 => drop(wanted.remove(&service)),
        1 | 2 => *ports = random_service(random, number),
        _ => {
            for port in ports.iter_mut() {
                if random.chance(2) {
                    continue;
                }
                port.endpoints = random_endpoints(random, port.id.family);
                port.has_any = true;
            }
        }
    }
    service
}

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
                    u16::from(e.local) | u16::from(e.host) << 1,
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

/// Executes a plan; after each write every frontend is as before or as after. `visit` sees the tables before
/// the first and after each write.
pub(super) fn execute(fake: &mut Fake, writes: &[Write], mut visit: impl FnMut(&Fake)) {
    if writes.is_empty() {
        return visit(fake);
    }
    let before = fake.resolve();
    let mut last = fake.clone();
    writes.iter().for_each(|write| last.execute(write));
    let after = last.resolve();
    visit(fake);
    for write in writes {
        fake.execute(write);
        for (key, now) in fake.resolve() {
            assert!(
                before.get(&key) == Some(&now) || after.get(&key) == Some(&now),
                "{key:?} is mixed after {write:?}"
            );
        }
        visit(fake);
    }
}

/// Which endpoint each (id, generation) ever named.
#[derive(Default)]
struct Memory(BTreeMap<(u32, u32), (IpAddr, u16)>);

impl Memory {
    fn observe(&mut self, fake: &Fake) {
        for met in fake
            .resolve()
            .values()
            .flat_map(|resolved| resolved.local.union(&resolved.cluster))
        {
            let generation = fake.states[&met.3].generation;
            let first = self.0.entry((met.3, generation)).or_insert((met.0, met.1));
            assert_eq!(
                *first,
                (met.0, met.1),
                "id {} generation {generation} named two endpoints",
                met.3
            );
        }
    }
}

/// Applies everything to adopted tables and checks the outcome; the second adoption must find nothing to do.
pub(super) fn readopt(mut fake: Fake, wanted: &Wanted) -> (Ledger, Fake) {
    let seen: HashSet<_> = wanted.keys().cloned().collect();
    let mut ledger = Ledger::default();
    for round in 0..2 {
        let (adopted, plan) = Ledger::adopt(fake.dump(), Timing::default(), 1);
        ledger = adopted;
        let mut plans = vec![plan];
        let mut writes = 0;
        let mut todo: Vec<_> = wanted.keys().collect();
        loop {
            for plan in plans.drain(..) {
                writes += plan.writes.len();
                execute(&mut fake, &plan.writes, |_| ());
                fake.poison(&plan.retire);
                ledger.release(plan.retire);
            }
            match todo.pop() {
                Some(service) => plans.push(ledger.apply(service, wanted[service].clone())),
                None => break,
            }
        }
        let plan = ledger.finish_adoption(&seen);
        writes += plan.writes.len();
        execute(&mut fake, &plan.writes, |_| ());
        fake.poison(&plan.retire);
        ledger.release(plan.retire);
        check(&fake, wanted);
        if round == 1 {
            assert_eq!(writes, 0, "adoption of settled tables writes");
        }
    }
    (ledger, fake)
}

#[test]
fn tables_equal_what_was_asked_for_and_are_never_mixed() {
    for seed in 0..16 {
        let mut random = Random(seed);
        let (mut bench, mut wanted, mut memory) =
            (Bench::default(), Wanted::new(), Memory::default());
        let mut retired = Retired::default();
        for _ in 0..60 {
            let service = change(&mut random, &mut wanted);
            let plan = bench
                .ledger
                .apply(&service, wanted.get(&service).cloned().unwrap_or_default());
            execute(&mut bench.fake, &plan.writes, |fake| memory.observe(fake));
            retired.append(plan.retire);
            if random.chance(3) {
                bench.fake.poison(&retired);
                bench.ledger.release(std::mem::take(&mut retired));
            }
            check(&bench.fake, &wanted);
            for (service, ports) in &wanted {
                assert_eq!(bench.ledger.apply(service, ports.clone()), Plan::default());
            }
        }
    }
}

#[test]
fn a_new_agent_converges_from_every_prefix_and_then_writes_nothing() {
    for seed in 100..104 {
        let mut random = Random(seed);
        let (mut bench, mut wanted, mut memory) =
            (Bench::default(), Wanted::new(), Memory::default());
        for round in 0..12 {
            let service = change(&mut random, &mut wanted);
            let plan = bench
                .ledger
                .apply(&service, wanted.get(&service).cloned().unwrap_or_default());
            let mut prefixes = Vec::new();
            execute(&mut bench.fake, &plan.writes, |fake| {
                prefixes.push(fake.clone())
            });
            bench.run(plan);
            for prefix in &prefixes {
                let (ledger, fake) = readopt(prefix.clone(), &wanted);
                // Now and then the new agent goes on where the old one died.
                if round % 4 == 3 && random.chance(prefixes.len()) {
                    bench = Bench { ledger, fake };
                    break;
                }
            }
            memory.observe(&bench.fake);
        }
    }
}

#[test]
fn a_failed_plan_is_made_good_by_the_next_one() {
    for seed in 200..216 {
        let mut random = Random(seed);
        let (mut bench, mut wanted, mut memory) =
            (Bench::default(), Wanted::new(), Memory::default());
        let mut failed: BTreeSet<ObjectName> = BTreeSet::new();
        for _ in 0..60 {
            let service = change(&mut random, &mut wanted);
            let mut plan = bench
                .ledger
                .apply(&service, wanted.get(&service).cloned().unwrap_or_default());
            failed.remove(&service);
            if random.chance(3) && !plan.writes.is_empty() {
                let unwritten = plan.writes.split_off(random.below(plan.writes.len()));
                execute(&mut bench.fake, &plan.writes, |_| ());
                bench.ledger.failed(Some(&service), unwritten, plan.retire);
                failed.insert(service);
            } else {
                execute(&mut bench.fake, &plan.writes, |_| ());
                bench.fake.poison(&plan.retire);
                bench.ledger.release(plan.retire);
            }
            memory.observe(&bench.fake);
            if random.chance(4) {
                for service in std::mem::take(&mut failed) {
                    let plan = bench
                        .ledger
                        .apply(&service, wanted.get(&service).cloned().unwrap_or_default());
                    bench.run(plan);
                }
                let plan = bench.ledger.tick(1);
                bench.run(plan);
                check(&bench.fake, &wanted);
            }
        }
    }
}
