//! A connection between the same ends as one that ended takes over its record: nothing is entered, nothing removed.

use std::net::SocketAddr;

use lb_ebpf::abi::counter;
use lb_ebpf::abi::flow::{NEW, RESET};
use lb_tests::object::{in_both_families, tcp_service};
use lb_tests::packet::tcp;

#[test]
fn a_connection_to_the_same_endpoint_takes_the_record_of_the_one_that_ended() {
    in_both_families(|node, net| {
        node.serve(
            tcp_service("web", net.family)
                .cluster_ip(net.service)
                .endpoint(net.endpoint),
        );
        let syn = tcp(net.client, net.service).syn();
        for opened in 1..=3 {
            node.pod_sends(&syn).becomes(&syn.clone().to(net.endpoint));
            assert_eq!(node.flows()[0].state, NEW);
            assert_eq!(node.halves(), (1, 1));
            assert_eq!(node.count_of(counter::FLOW_CREATED), opened);
            let answer = tcp(net.endpoint, net.client).syn_ack();
            node.pod_gets(&answer)
                .becomes(&answer.clone().from(net.service));
            node.pod_sends(&tcp(net.client, net.service));
            node.pod_sends(&tcp(net.client, net.service).rst());
            assert_eq!(node.flows()[0].state, RESET);
        }
    });
}

#[test]
fn a_masqueraded_connection_keeps_its_port_with_the_record() {
    in_both_families(|node, net| {
        node.serve(
            tcp_service("web", net.family)
                .node_port(net.node_port.port())
                .endpoint(net.endpoint),
        );
        let syn = tcp(net.outside, net.node_port).syn();
        let first = node.comes_in(&syn).ports();
        let masked = SocketAddr::new(net.node, first.0);
        node.comes_in(&tcp(net.endpoint, masked).rst());
        assert_eq!(node.flows()[0].state, RESET);
        assert_eq!(node.comes_in(&syn).ports(), first);
        assert_eq!(node.halves(), (1, 2));
    });
}

#[test]
fn a_connection_to_another_endpoint_leaves_nothing_of_the_one_that_ended() {
    in_both_families(|node, net| {
        let web = || tcp_service("web", net.family).cluster_ip(net.service);
        node.serve(web().endpoint(net.endpoint));
        let syn = tcp(net.client, net.service).syn();
        node.pod_sends(&syn);
        node.pod_gets(&tcp(net.endpoint, net.client).rst());
        node.serve(web().endpoint(net.other_endpoint));
        node.pod_sends(&syn)
            .becomes(&syn.clone().to(net.other_endpoint));
        assert_eq!(node.halves(), (1, 1));
        node.pod_gets(&tcp(net.endpoint, net.client).syn_ack())
            .is_untouched();
    });
}

/// Its ports are its own again once the first one is gone.
#[test]
fn a_port_of_the_pool_is_not_handed_on_without_need() {
    in_both_families(|node, net| {
        for (name, at) in [("web", net.service), ("other", net.other_service)] {
            node.serve(
                tcp_service(name, net.family)
                    .cluster_ip(at)
                    .endpoint(net.endpoint),
            );
        }
        node.pod_sends(&tcp(net.client, net.service).syn());
        let second = tcp(net.client, net.other_service).syn();
        let renumbered = node.pod_sends(&second).ports().0;
        assert_ne!(renumbered, net.client.port());
        for port in [net.client.port(), renumbered] {
            let client = SocketAddr::new(net.client.ip(), port);
            node.pod_gets(&tcp(net.endpoint, client).rst());
        }
        node.pod_sends(&second)
            .becomes(&second.clone().to(net.endpoint));
    });
}

#[test]
fn who_is_refused_ends_no_record() {
    in_both_families(|node, net| {
        let web = || tcp_service("web", net.family).cluster_ip(net.service);
        node.serve(web().endpoint(net.endpoint));
        let syn = tcp(net.client, net.service).syn();
        node.pod_sends(&syn);
        node.pod_gets(&tcp(net.endpoint, net.client).syn_ack());
        node.pod_sends(&tcp(net.client, net.service).fin());
        node.pod_gets(&tcp(net.endpoint, net.client).fin());
        node.serve(web());
        assert!(node.pod_sends(&syn).turns_back());
        // The last segment of the old connection.
        let last = tcp(net.client, net.service);
        node.pod_sends(&last)
            .becomes(&last.clone().to(net.endpoint));
    });
}
