//! Which addresses of the node are served.

use lb_ebpf::abi::address::{CLUSTER_IP, LOOPBACK, NODE, NODE_LOCAL};

use super::cases::web;
use super::*;

fn served_on<'a>(nodeport: &'a [IpAddr], all: &'a [IpAddr]) -> NodeAddresses<'a> {
    NodeAddresses {
        nodeport,
        loopback: &[],
        all,
    }
}

#[test]
fn a_loopback_address_is_served_to_the_node_alone() {
    let mut bench = Bench::default();
    let localhost = ip("127.0.0.1");
    let plan = bench.ledger.set_node_addresses(&NodeAddresses {
        loopback: &[localhost],
        ..NodeAddresses::default()
    });
    bench.run(plan);
    assert_eq!(bench.fake.addresses.get(&localhost), Some(&LOOPBACK));
}

#[test]
fn node_addresses_follow_the_lists() {
    let mut bench = Bench::default();
    bench.apply("web", web(&[]));
    let (a, b, vip) = (ip("192.168.0.2"), ip("192.168.1.2"), ip("10.96.0.1"));
    let plan = bench
        .ledger
        .set_node_addresses(&served_on(&[a], &[a, b, vip]));
    bench.run(plan);
    let flags: Vec<_> = bench
        .fake
        .addresses
        .iter()
        .map(|(address, flags)| (*address, *flags))
        .collect();
    assert_eq!(
        flags,
        [
            (vip, CLUSTER_IP | NODE_LOCAL),
            (a, NODE | NODE_LOCAL),
            (b, NODE_LOCAL)
        ]
    );
    assert_eq!(
        bench
            .ledger
            .set_node_addresses(&served_on(&[a], &[vip, b, a])),
        Plan::default()
    );
    let plan = bench.ledger.set_node_addresses(&served_on(&[b], &[b]));
    bench.run(plan);
    let flags: Vec<_> = bench
        .fake
        .addresses
        .iter()
        .map(|(address, flags)| (*address, *flags))
        .collect();
    assert_eq!(flags, [(vip, CLUSTER_IP), (b, NODE | NODE_LOCAL)]);
}

#[test]
fn a_failed_address_is_written_by_the_next_tick() {
    let mut bench = Bench::default();
    let a = ip("192.168.0.2");
    let plan = bench.ledger.set_node_addresses(&served_on(&[a], &[]));
    bench.ledger.failed(None, plan.writes.clone(), plan.retire);
    assert_eq!(bench.ledger.tick(1).writes, plan.writes);
}
