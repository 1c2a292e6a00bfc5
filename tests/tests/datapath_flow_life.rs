//! How flows end, begin again and move.

use lb_ebpf::abi::counter;
use lb_ebpf::abi::flow::{CLIENT_CLOSED, CLOSED, ENDPOINT_CLOSED, ESTABLISHED, NEW, RESET};
use lb_tests::object::{Net, Node, POOL, in_both_families, tcp_service, udp_service};
use lb_tests::packet::{tcp, udp};

fn web(node: &mut Node, net: &Net, endpoint: std::net::SocketAddr) {
    node.serve(
        tcp_service("web", net.family)
            .cluster_ip(net.service)
            .endpoint(endpoint),
    );
}

fn dns(node: &mut Node, net: &Net, endpoint: std::net::SocketAddr) {
    node.serve(
        udp_service("dns", net.family)
            .cluster_ip(net.service)
            .endpoint(endpoint),
    );
}

/// Spec E12, D10.
#[test]
fn tcp_stays_on_an_endpoint_that_left_the_service() {
    in_both_families(|node, net| {
        web(node, net, net.endpoint);
        node.pod_sends(&tcp(net.client, net.service).syn());
        node.pod_gets(&tcp(net.endpoint, net.client).syn_ack());
        web(node, net, net.other_endpoint);
        let segment = tcp(net.client, net.service);
        node.pod_sends(&segment)
            .becomes(&segment.clone().to(net.endpoint));
    });
}

/// Spec E24.
#[test]
fn a_repeated_syn_leaves_an_endpoint_that_is_gone() {
    in_both_families(|node, net| {
        web(node, net, net.endpoint);
        let syn = tcp(net.client, net.service).syn();
        node.pod_sends(&syn).becomes(&syn.clone().to(net.endpoint));
        node.pod_sends(&syn).becomes(&syn.clone().to(net.endpoint));
        web(node, net, net.other_endpoint);
        node.pod_sends(&syn)
            .becomes(&syn.clone().to(net.other_endpoint));
    });
}

/// Spec E13. Upstream: "should be able to preserve UDP traffic when server pod cycles for a ClusterIP service".
#[test]
fn udp_moves_when_its_endpoint_leaves_the_service() {
    in_both_families(|node, net| {
        dns(node, net, net.endpoint);
        let request = udp(net.client, net.service);
        node.pod_sends(&request)
            .becomes(&request.clone().to(net.endpoint));
        dns(node, net, net.other_endpoint);
        node.pod_sends(&request)
            .becomes(&request.clone().to(net.other_endpoint));
        assert_eq!(node.count_of(counter::FLOW_MOVED), 1);
        assert_eq!(node.flows().len(), 1);
        // The old endpoint's late answer is nobody's.
        node.pod_gets(&udp(net.endpoint, net.client)).is_untouched();
        let answer = udp(net.other_endpoint, net.client);
        node.pod_gets(&answer)
            .becomes(&answer.clone().from(net.service));
    });
}

#[test]
fn udp_does_not_move_when_another_endpoint_comes() {
    in_both_families(|node, net| {
        dns(node, net, net.endpoint);
        let request = udp(net.client, net.service);
        node.pod_sends(&request);
        let both = udp_service("dns", net.family).cluster_ip(net.service);
        node.serve(both.endpoint(net.endpoint).endpoint(net.other_endpoint));
        for _ in 0..20 {
            node.pod_sends(&request)
                .becomes(&request.clone().to(net.endpoint));
        }
    });
}

/// Spec E13, D2. Upstream: "should be able to preserve UDP traffic when initial unready endpoints get ready".
#[test]
fn udp_without_endpoints_is_refused_at_once_and_recovers() {
    in_both_families(|node, net| {
        dns(node, net, net.endpoint);
        let request = udp(net.client, net.service);
        node.pod_sends(&request);
        node.serve(udp_service("dns", net.family).cluster_ip(net.service));
        assert!(node.pod_sends(&request).turns_back());
        assert!(node.flows().is_empty());
        dns(node, net, net.other_endpoint);
        node.pod_sends(&request)
            .becomes(&request.clone().to(net.other_endpoint));
    });
}

/// A connection that is open, both sides having spoken.
fn connect(node: &mut Node, net: &Net) {
    web(node, net, net.endpoint);
    node.pod_sends(&tcp(net.client, net.service).syn());
    node.pod_gets(&tcp(net.endpoint, net.client).syn_ack());
    node.pod_sends(&tcp(net.client, net.service));
}

/// Both sides say something, and are understood.
fn both_speak(node: &Node, net: &Net) {
    let (said, answered) = (tcp(net.client, net.service), tcp(net.endpoint, net.client));
    node.pod_sends(&said)
        .becomes(&said.clone().to(net.endpoint));
    node.pod_gets(&answered)
        .becomes(&answered.clone().from(net.service));
}

/// Old resets, and forged ones, are none to those who get them.
#[test]
fn a_connection_that_goes_on_after_a_reset_stands_as_before() {
    in_both_families(|node, net| {
        node.set(|settings| settings.timeout_closed = 5);
        connect(node, net);
        node.pod_gets(&tcp(net.endpoint, net.client).rst());
        assert_eq!(node.flows()[0].state, RESET);
        both_speak(node, net);
        assert_eq!(node.flows()[0].state, ESTABLISHED);
        node.let_flows_rest(6);
        both_speak(node, net);
    });
}

#[test]
fn the_rest_of_a_connection_that_both_have_closed_may_take_its_time() {
    in_both_families(|node, net| {
        connect(node, net);
        node.pod_sends(&tcp(net.client, net.service).fin());
        node.pod_gets(&tcp(net.endpoint, net.client).fin());
        for _ in 0..3 {
            node.let_flows_rest(20);
            both_speak(node, net);
        }
        let rested = node.flows()[0];
        assert_eq!(rested.state, CLOSED);
        node.let_flows_rest(20);
        node.pod_gets(&tcp(net.endpoint, net.client).rst());
        assert!(node.flows()[0].last_seen < rested.last_seen, "by a reset");
    });
}

#[test]
fn a_syn_opens_a_closing_connection_anew() {
    in_both_families(|node, net| {
        let syn = tcp(net.client, net.service).syn();
        let closings: [&dyn Fn(&Node) -> u8; 4] = [
            &|node| {
                node.pod_sends(&tcp(net.client, net.service).fin());
                CLIENT_CLOSED
            },
            &|node| {
                node.pod_gets(&tcp(net.endpoint, net.client).fin());
                ENDPOINT_CLOSED
            },
            &|node| {
                node.pod_sends(&tcp(net.client, net.service).fin());
                node.pod_gets(&tcp(net.endpoint, net.client).fin());
                CLOSED
            },
            &|node| {
                node.pod_gets(&tcp(net.endpoint, net.client).rst());
                RESET
            },
        ];
        for close in closings {
            web(node, net, net.endpoint);
            node.pod_sends(&syn).becomes(&syn.clone().to(net.endpoint));
            node.pod_gets(&tcp(net.endpoint, net.client).syn_ack());
            let state = close(node);
            assert_eq!(node.flows()[0].state, state);
            web(node, net, net.other_endpoint);
            node.pod_sends(&syn)
                .becomes(&syn.clone().to(net.other_endpoint));
            assert_eq!(node.flows().len(), 1);
            assert_eq!(node.flows()[0].state, NEW);
            node.pod_gets(&tcp(net.other_endpoint, net.client).rst());
        }
    });
}

#[test]
fn a_closed_connection_still_passes_its_last_segments() {
    in_both_families(|node, net| {
        web(node, net, net.endpoint);
        node.pod_sends(&tcp(net.client, net.service).syn());
        node.pod_gets(&tcp(net.endpoint, net.client).syn_ack());
        node.pod_sends(&tcp(net.client, net.service).fin());
        node.pod_gets(&tcp(net.endpoint, net.client).fin());
        let last = tcp(net.client, net.service);
        node.pod_sends(&last)
            .becomes(&last.clone().to(net.endpoint));
        let late = tcp(net.endpoint, net.client).fin();
        node.pod_gets(&late)
            .becomes(&late.clone().from(net.service));
    });
}

#[test]
fn an_expired_flow_chooses_anew() {
    in_both_families(|node, net| {
        node.set(|settings| {
            settings.timeout_new = 2;
            settings.timeout_udp = 2;
        });
        dns(node, net, net.endpoint);
        web(node, net, net.endpoint);
        let (request, syn) = (
            udp(net.client, net.service),
            tcp(net.client, net.service).syn(),
        );
        node.pod_sends(&request);
        node.pod_sends(&syn);
        let both = udp_service("dns", net.family).cluster_ip(net.service);
        node.serve(both.endpoint(net.endpoint).endpoint(net.other_endpoint));
        web(node, net, net.other_endpoint);
        node.let_flows_rest(3);
        // The endpoint still serves, so only expiry makes the datagrams move; half of them do.
        let moved = (0..64).any(|_| {
            node.let_flows_rest(3);
            node.pod_sends(&request).bytes
                == lb_tests::packet::Frame::frame(&request.clone().to(net.other_endpoint))
        });
        assert!(moved);
        node.pod_sends(&syn)
            .becomes(&syn.clone().to(net.other_endpoint));
    });
}

#[test]
fn a_segment_of_an_expired_connection_is_not_ours() {
    in_both_families(|node, net| {
        node.set(|settings| settings.timeout_tcp = 2);
        web(node, net, net.endpoint);
        node.pod_sends(&tcp(net.client, net.service).syn());
        node.pod_gets(&tcp(net.endpoint, net.client).syn_ack());
        node.pod_sends(&tcp(net.client, net.service));
        node.let_flows_rest(3);
        node.pod_sends(&tcp(net.client, net.service)).is_untouched();
        assert!(node.flows().is_empty());
    });
}

#[test]
fn two_services_on_one_endpoint_do_not_mix_one_clients_connections() {
    in_both_families(|node, net| {
        web(node, net, net.endpoint);
        let other = tcp_service("other", net.family).cluster_ip(net.other_service);
        node.serve(other.endpoint(net.endpoint));
        let first = tcp(net.client, net.service).syn();
        node.pod_sends(&first)
            .becomes(&first.clone().to(net.endpoint));
        // The answers of both would look alike, so the second gets another source port.
        let second = tcp(net.client, net.other_service).syn();
        let outcome = node.pod_sends(&second);
        let mut client = net.client;
        client.set_port(outcome.ports().0);
        assert!(
            (POOL.0..=POOL.1).contains(&client.port()),
            "{}",
            outcome.story()
        );
        outcome.becomes(&second.clone().from(client).to(net.endpoint));
        assert_eq!(node.count_of(counter::REPLY_CONFLICT), 1);
        node.pod_sends(&second)
            .becomes(&second.clone().from(client).to(net.endpoint));

        let answer = tcp(net.endpoint, net.client).syn_ack();
        node.pod_gets(&answer)
            .becomes(&answer.clone().from(net.service));
        let answer = tcp(net.endpoint, client).syn_ack();
        node.pod_gets(&answer)
            .becomes(&answer.clone().from(net.other_service).to(net.client));
    });
}

#[test]
fn a_reply_key_of_a_closed_connection_is_taken_over() {
    in_both_families(|node, net| {
        web(node, net, net.endpoint);
        let other = tcp_service("other", net.family).cluster_ip(net.other_service);
        node.serve(other.endpoint(net.endpoint));
        node.pod_sends(&tcp(net.client, net.service).syn());
        node.pod_gets(&tcp(net.endpoint, net.client).rst());
        let syn = tcp(net.client, net.other_service).syn();
        node.pod_sends(&syn).becomes(&syn.clone().to(net.endpoint));
        let answer = tcp(net.endpoint, net.client).syn_ack();
        node.pod_gets(&answer)
            .becomes(&answer.clone().from(net.other_service));
    });
}

#[test]
fn an_endpoint_that_vanished_answers_no_more_pods() {
    in_both_families(|node, net| {
        dns(node, net, net.endpoint);
        dns(node, net, net.other_endpoint);
        // A socket that was connected straight to the endpoint by the socket hooks. What it sent in the same moment
        // still passes.
        let stale = udp(net.client, net.endpoint);
        node.pod_sends(&stale).is_untouched();
        std::thread::sleep(std::time::Duration::from_millis(2_500));
        assert!(node.pod_sends(&stale).turns_back());
        assert_eq!(node.count_of(counter::TOMBSTONE_REJECTED), 1);
        // Another port of that address, and TCP, are not concerned.
        let mut elsewhere = net.endpoint;
        elsewhere.set_port(9);
        node.pod_sends(&udp(net.client, elsewhere)).is_untouched();
        node.pod_sends(&tcp(net.client, net.endpoint).syn())
            .is_untouched();
        dns(node, net, net.endpoint);
        node.pod_sends(&stale).is_untouched();
    });
}

#[test]
fn port_zero_is_no_service_and_no_client() {
    in_both_families(|node, net| {
        web(node, net, net.endpoint);
        dns(node, net, net.endpoint);
        let zero = |mut at: std::net::SocketAddr| {
            at.set_port(0);
            at
        };
        for outcome in [
            node.pod_sends(&tcp(net.client, zero(net.service)).syn()),
            node.pod_sends(&udp(net.client, zero(net.service))),
        ] {
            // An undefined port of a ClusterIP.
            assert!(
                outcome.turns_back() || outcome.ends(),
                "{}",
                outcome.story()
            );
        }
        assert!(node.flows().is_empty());
    });
}
