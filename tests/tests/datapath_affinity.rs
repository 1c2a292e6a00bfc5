//! Session affinity `ClientIP` on the packet path.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use lb_ebpf::abi::counter;
use lb_tests::object::{Net, Node, Outcome, in_both_families, tcp_service};
use lb_tests::packet::{Frame as _, tcp};

const SECONDS: u32 = 10;

fn serve(node: &mut Node, net: &Net, endpoints: &[SocketAddr]) {
    let web = tcp_service("web", net.family)
        .cluster_ip(net.service)
        .affinity(SECONDS);
    node.serve(
        endpoints
            .iter()
            .fold(web, |web, endpoint| web.endpoint(*endpoint)),
    );
}

/// A new connection from one of the client's ports; who got it.
fn dial(node: &Node, net: &Net, port: u16) -> SocketAddr {
    let endpoints = [net.endpoint, net.other_endpoint];
    dial_at(node, net, net.service, port, &endpoints)
}

/// The same at another address, where one of these must get it.
#[track_caller]
fn dial_at(
    node: &Node,
    net: &Net,
    to: SocketAddr,
    port: u16,
    endpoints: &[SocketAddr],
) -> SocketAddr {
    let mut client = net.client;
    client.set_port(port);
    let syn = tcp(client, to).syn();
    let outcome: Outcome = node.pod_sends(&syn);
    endpoints
        .iter()
        .copied()
        .find(|endpoint| outcome.bytes == syn.clone().to(*endpoint).frame())
        .unwrap_or_else(|| panic!("{}", outcome.story()))
}

/// Spec F1, F2.
#[test]
fn a_clients_connections_go_to_one_endpoint() {
    in_both_families(|node, net| {
        serve(node, net, &[net.endpoint, net.other_endpoint]);
        let first = dial(node, net, 1000);
        assert!((1001..1060).all(|port| dial(node, net, port) == first));
    });
}

#[test]
fn clients_are_spread() {
    in_both_families(|node, net| {
        serve(node, net, &[net.endpoint, net.other_endpoint]);
        let mut chosen = BTreeSet::new();
        for number in 0..60u8 {
            let mut from = *net;
            from.client.set_ip(match net.client.ip() {
                std::net::IpAddr::V4(_) => [10, 1, 9, number].into(),
                std::net::IpAddr::V6(_) => [0xfd01, 0, 0, 0, 0, 0, 9, u16::from(number)].into(),
            });
            chosen.insert(dial(node, &from, 1000));
        }
        assert_eq!(chosen.len(), 2);
    });
}

/// Spec F3, F4.
#[test]
fn a_client_whose_endpoint_is_gone_gets_another_and_stays_there() {
    in_both_families(|node, net| {
        serve(node, net, &[net.endpoint, net.other_endpoint]);
        let first = dial(node, net, 1000);
        let other = if first == net.endpoint {
            net.other_endpoint
        } else {
            net.endpoint
        };
        serve(node, net, &[other]);
        assert_eq!(dial(node, net, 1001), other);
        serve(node, net, &[first, other]);
        assert!((1002..1040).all(|port| dial(node, net, port) == other));
    });
}

/// Spec F7.
#[test]
fn a_client_that_stayed_away_too_long_is_forgotten() {
    in_both_families(|node, net| {
        serve(node, net, &[net.endpoint, net.other_endpoint]);
        let chosen: BTreeSet<SocketAddr> = (1000..1060)
            .map(|port| {
                let chosen = dial(node, net, port);
                node.let_affinity_rest(SECONDS + 1);
                chosen
            })
            .collect();
        assert_eq!(chosen.len(), 2);
    });
}

/// Spec F6, E23. Upstream: "should be able to switch session affinity for service with type clusterIP".
#[test]
fn without_affinity_every_connection_chooses() {
    in_both_families(|node, net| {
        let web = tcp_service("web", net.family).cluster_ip(net.service);
        node.serve(web.endpoint(net.endpoint).endpoint(net.other_endpoint));
        let chosen: BTreeSet<SocketAddr> = (1000..1060).map(|port| dial(node, net, port)).collect();
        assert_eq!(chosen.len(), 2);
    });
}

/// Spec F1, F3: at addresses of different policies a client may have to have different endpoints, and keeps each.
#[test]
fn a_client_keeps_an_endpoint_in_each_set() {
    in_both_families(|node, net| {
        let mut other_local = net.local_endpoint;
        other_local.set_port(8081);
        let web = tcp_service("web", net.family)
            .cluster_ip(net.service)
            .external_ip(net.vip)
            .internal_local()
            // To pods of this node such a policy means all endpoints (D13), and that they see the pod.
            .external_local()
            .affinity(SECONDS)
            .terminating_local_endpoint(net.local_endpoint)
            .terminating_local_endpoint(other_local);
        node.serve(web.endpoint(net.endpoint).endpoint(net.other_endpoint));
        let (near, far) = (
            [net.local_endpoint, other_local],
            [net.endpoint, net.other_endpoint],
        );
        let (inside, outside) = (
            dial_at(node, net, net.service, 1000, &near),
            dial_at(node, net, net.vip, 2000, &far),
        );
        for port in 1..40 {
            assert_eq!(dial_at(node, net, net.service, 1000 + port, &near), inside);
            assert_eq!(dial_at(node, net, net.vip, 2000 + port, &far), outside);
        }
    });
}

/// Spec F8.
#[test]
fn who_comes_to_a_full_table_is_served_and_not_remembered() {
    in_both_families(|node, net| {
        serve(node, net, &[net.endpoint, net.other_endpoint]);
        node.fill_affinity();
        let chosen: BTreeSet<SocketAddr> = (1000..1060).map(|port| dial(node, net, port)).collect();
        assert_eq!(chosen.len(), 2);
        assert_eq!(node.count_of(counter::AFFINITY_FULL), 60);
    });
}
