//! Services out of a random number.

use std::collections::BTreeMap;

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
pub(super) fn change(random: &mut Random, wanted: &mut Wanted) -> ObjectName {
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
