//! Services with as many frontends or ports as an object has room for: work that grows with the square of either would
//! hold the agent, which plans on one thread, for minutes, and these tests with it.

use std::net::Ipv4Addr;

use super::cases::kinds;
use super::*;

/// External addresses; the port names are those of service ports.
fn wide(addresses: u32, ports: &[&str], endpoints: &[&str]) -> Vec<ServicePort> {
    let external = (0..addresses).map(|n| IpAddr::from(Ipv4Addr::from_bits(0xc612_0000 + n)));
    let frontends: Vec<_> = external
        .map(|address| model::Frontend {
            address,
            ..frontend("0.0.0.0", 0, FrontendKind::ExternalIp)
        })
        .collect();
    (80..)
        .zip(ports)
        .map(|(number, name)| {
            let endpoints = endpoints.iter().map(|address| endpoint(address)).collect();
            let mut port = port("wide", "10.96.0.1", endpoints);
            port.id.port = (*name).into();
            port.frontends.extend(&frontends);
            port.frontends
                .iter_mut()
                .for_each(|frontend| frontend.port = number);
            port
        })
        .collect()
}

fn count(plan: &Plan, kind: &str) -> usize {
    let kinds = kinds(plan);
    kinds.into_iter().filter(|other| *other == kind).count()
}

#[test]
fn a_service_of_60_000_frontends_comes_changes_and_goes() {
    let mut bench = Bench::default();
    let desired = |endpoints: &[&str]| wide(20_000, &["a", "b", "c"], endpoints);
    let counts =
        |plan: &Plan| ["frontend", "address", "frontend gone"].map(|kind| count(plan, kind));

    let plan = bench.apply("wide", desired(&["10.0.0.1"]));
    assert_eq!(counts(&plan), [60_003, 20_001, 0]);
    let plan = bench.apply("wide", desired(&["10.0.0.1", "10.0.0.2"]));
    assert_eq!(counts(&plan), [60_003, 0, 0]);
    let resolved = bench.fake.resolve();
    assert_eq!(resolved.len(), 60_003);
    assert!(resolved.values().all(|found| found.cluster.len() == 2));
    let plan = bench.apply("wide", vec![]);
    assert_eq!(counts(&plan), [0, 20_001, 60_003]);
    assert!(bench.fake.resolve().is_empty());
}

#[test]
fn a_service_of_20_000_ports_comes_changes_and_goes() {
    let mut bench = Bench::default();
    let names: Vec<String> = (0..20_000).map(|n| format!("port-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let counts = |plan: &Plan| ["name", "frontend", "name gone"].map(|kind| count(plan, kind));

    let plan = bench.apply("wide", wide(0, &names, &[]));
    assert_eq!(counts(&plan), [20_000, 20_000, 0]);
    let plan = bench.apply("wide", wide(0, &names[1..], &[]));
    // The numbers of all ports shifted by one.
    assert_eq!(counts(&plan), [0, 19_999, 1]);
    bench
        .ledger
        .failed(Some(&object("wide")), plan.writes, Retired::default());
    let plan = bench.apply("wide", vec![]);
    assert_eq!(count(&plan, "name gone"), 20_000);
    assert!(bench.fake.resolve().is_empty());
}

#[test]
fn a_port_wanted_twice_is_held_once() {
    let mut bench = Bench::default();
    let plan = bench.apply("wide", wide(1, &["a", "a"], &[]));
    assert_eq!(count(&plan, "name"), 1);
    assert_eq!(bench.ledger.service_ports(), 1);
}
