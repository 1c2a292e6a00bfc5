//! UDP endpoints that are gone.

use lb_ebpf::abi::address::TOMBSTONE;

use super::cases::{kinds, web};
use super::fake::wide;
use super::*;

fn dns(endpoints: Vec<model::Endpoint>) -> Vec<ServicePort> {
    vec![udp(port("dns", "10.96.0.10", endpoints))]
}

/// Another Service.
fn other(endpoints: Vec<model::Endpoint>) -> Vec<ServicePort> {
    vec![udp(port("other", "10.96.0.11", endpoints))]
}

#[test]
fn a_vanished_udp_endpoint_leaves_a_tombstone_for_ten_minutes() {
    let mut bench = Bench::default();
    bench.apply("dns", dns(vec![endpoint("10.0.0.1"), endpoint("10.0.0.2")]));
    let plan = bench.apply("dns", dns(vec![endpoint("10.0.0.1")]));
    assert_eq!(
        kinds(&plan),
        ["block", "frontend", "state", "tombstone", "address"]
    );
    assert_eq!(bench.fake.addresses[&ip("10.0.0.2")], TOMBSTONE);
    assert!(bench.ledger.tick(599).is_empty());
    let plan = bench.ledger.tick(600);
    bench.run(plan);
    assert!(
        bench.fake.tombstones.is_empty() && !bench.fake.addresses.contains_key(&ip("10.0.0.2"))
    );
}

#[test]
fn a_tombstone_is_lifted_when_the_endpoint_is_back() {
    let mut bench = Bench::default();
    bench.apply("dns", dns(vec![endpoint("10.0.0.1"), endpoint("10.0.0.2")]));
    bench.apply("dns", dns(vec![endpoint("10.0.0.1")]));
    let plan = bench.apply("dns", dns(vec![endpoint("10.0.0.1"), endpoint("10.0.0.2")]));
    assert_eq!(
        kinds(&plan),
        ["state", "block", "tombstone lifted", "frontend", "address"]
    );
}

#[test]
fn no_tombstone_while_the_slices_or_another_service_name_the_endpoint() {
    let mut bench = Bench::default();
    let pair = |second| dns(vec![endpoint("10.0.0.1"), second]);
    bench.apply("dns", pair(endpoint("10.0.0.2")));
    bench.apply("dns", pair(failing("10.0.0.2")));
    assert!(bench.fake.tombstones.is_empty());
    bench.apply("other", other(vec![endpoint("10.0.0.2")]));
    bench.apply("dns", dns(vec![endpoint("10.0.0.1")]));
    assert!(bench.fake.tombstones.is_empty());
    bench.apply("other", other(vec![]));
    assert_eq!(
        bench.fake.tombstones.iter().next(),
        Some(&(wide(ip("10.0.0.2")), 8080))
    );
}

#[test]
fn a_tcp_endpoint_or_a_deleted_service_leaves_no_tombstone() {
    let mut bench = Bench::default();
    bench.apply("web", web(&["10.0.0.1"]));
    bench.apply("web", web(&[]));
    bench.apply("dns", dns(vec![endpoint("10.0.0.1")]));
    bench.apply("dns", vec![]);
    assert!(bench.fake.tombstones.is_empty());
}

#[test]
fn the_last_service_to_let_go_need_not_have_sent_anybody() {
    for last in [other(vec![]), vec![]] {
        let mut bench = Bench::default();
        bench.apply("dns", dns(vec![endpoint("10.0.0.1")]));
        bench.apply("other", other(vec![failing("10.0.0.1")]));
        bench.apply("dns", dns(vec![]));
        assert!(bench.fake.tombstones.is_empty());
        let plan = bench.apply("other", last);
        assert!(kinds(&plan).contains(&"tombstone"));
        assert_eq!(bench.fake.addresses[&ip("10.0.0.1")], TOMBSTONE);
    }
}

#[test]
fn what_comes_back_behind_another_service_is_told_of_when_that_lets_go() {
    let mut bench = Bench::default();
    bench.apply("dns", dns(vec![endpoint("10.0.0.1")]));
    bench.apply("dns", dns(vec![]));
    bench.apply("other", other(vec![failing("10.0.0.1")]));
    assert!(bench.fake.tombstones.is_empty());
    bench.apply("other", vec![]);
    assert_eq!(bench.fake.tombstones.len(), 1);
}

#[test]
fn a_service_that_has_its_endpoint_back_owes_nothing() {
    let mut bench = Bench::default();
    bench.apply("dns", dns(vec![endpoint("10.0.0.1")]));
    bench.apply("dns", dns(vec![]));
    bench.apply("dns", dns(vec![endpoint("10.0.0.1")]));
    bench.apply("dns", vec![]);
    assert!(bench.fake.tombstones.is_empty());
}

#[test]
fn a_deleted_service_is_owed_nothing() {
    let mut bench = Bench::default();
    bench.apply("dns", dns(vec![endpoint("10.0.0.1")]));
    bench.apply("other", other(vec![failing("10.0.0.1")]));
    bench.apply("dns", dns(vec![]));
    bench.apply("dns", vec![]);
    bench.apply("other", other(vec![]));
    assert!(bench.fake.tombstones.is_empty());
}
