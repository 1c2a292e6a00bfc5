//! A Service of more endpoints than a segment of the table has records (spec §6.1: over 5,000 are met).

use std::collections::HashSet;
use std::net::SocketAddr;

use lb_ebpf::abi::{SEGMENT_RECORDS, counter};
use lb_tests::object::{in_both_families, tcp_service};
use lb_tests::packet::tcp;

const ENDPOINTS: u16 = SEGMENT_RECORDS as u16 + 1_000;
const CLIENTS: u16 = 600;

#[test]
fn every_endpoint_of_a_large_service_has_its_clients_also_when_all_were_replaced() {
    in_both_families(|node, net| {
        // Two, so that the second one's block begins and ends within segments.
        for first in [1_000, 20_000] {
            // They differ by port, and are entered in the order of it.
            let ports = first..first + ENDPOINTS;
            let web = tcp_service("web", net.family).cluster_ip(net.service);
            let web = ports.clone().fold(web, |web, port| {
                web.endpoint(SocketAddr::new(net.endpoint.ip(), port))
            });
            node.serve(web);
            let chosen: HashSet<u16> = (0..CLIENTS)
                .map(|client| {
                    let client = SocketAddr::new(net.client.ip(), first + client);
                    let outcome = node.pod_sends(&tcp(client, net.service).syn());
                    assert!(outcome.goes_on(), "{}", outcome.story());
                    outcome.ports().1
                })
                .collect();
            let (near, far): (Vec<u16>, Vec<u16>) = chosen
                .iter()
                .partition(|port| **port - first < SEGMENT_RECORDS as u16);
            assert!(chosen.iter().all(|port| ports.contains(port)));
            // One in five leads behind the first segment's worth.
            assert!(near.len() > 300 && far.len() > 50, "{near:?} {far:?}");
        }
        assert_eq!(node.count_of(counter::NO_ENDPOINT), 0);
    });
}
