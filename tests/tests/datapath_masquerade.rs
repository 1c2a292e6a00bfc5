//! Traffic from outside to an endpoint elsewhere: the answers must come back through this node, so the packets
//! leave with its address. Here they take the stack's way, which sees client and endpoint in between.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use lb_ebpf::abi::counter;
use lb_ebpf::abi::flow::{ANSWERED, CLOSED, MASQUERADE};
use lb_ebpf::abi::settings::SNAT_LOCAL;
use lb_tests::object::{
    Net, Node, Outcome, POOL, Received, in_both_families, tcp_service, udp_service,
};
use lb_tests::packet::{Packet, port_unreachable, tcp, time_exceeded, too_big, udp};

fn serve(node: &mut Node, net: &Net) {
    // Without routes nothing takes the fast way.
    node.route_packets(false);
    for service in [
        tcp_service("web", net.family),
        udp_service("web", net.family),
    ] {
        let service = service.cluster_ip(net.service).load_balancer(net.vip);
        node.serve(
            service
                .node_port(net.node_port.port())
                .endpoint(net.endpoint),
        );
    }
}

/// The client with the source port that the programs gave it.
fn renumbered(net: &Net, outcome: &Outcome) -> SocketAddr {
    let port = outcome.ports().0;
    assert!((POOL.0..=POOL.1).contains(&port), "{}", outcome.story());
    SocketAddr::new(net.outside.ip(), port)
}

/// Opens a flow: the client and this node as the endpoint's side sees them, before and behind the uplink.
fn open(node: &Node, net: &Net, request: &Packet) -> (SocketAddr, SocketAddr) {
    let outcome = node.comes_in(request);
    let client = renumbered(net, &outcome);
    outcome.becomes(&request.clone().from(client).to(net.endpoint));
    (client, SocketAddr::new(net.node, client.port()))
}

fn requests(dialled: SocketAddr, net: &Net) -> [Packet; 2] {
    [tcp(net.outside, dialled).syn(), udp(net.outside, dialled)]
}

/// The endpoint's answer to a request.
fn answer(request: &Packet, net: &Net, to: SocketAddr) -> Packet {
    match request.body {
        lb_tests::packet::Body::Tcp(_) => tcp(net.endpoint, to).syn_ack(),
        _ => udp(net.endpoint, to),
    }
}

/// Spec E1, E2, D11.
#[test]
fn a_request_gets_a_port_where_it_comes_in_and_an_address_where_it_leaves() {
    in_both_families(|node, net| {
        serve(node, net);
        for dialled in [net.node_port, net.vip, net.service] {
            for request in requests(dialled, net) {
                let (client, masked) = open(node, net, &request);
                let between = request.clone().from(client).to(net.endpoint);
                node.goes_out(&between)
                    .becomes(&between.clone().from(masked));
            }
        }
        assert!(node.flows().iter().all(|flow| flow.flags & MASQUERADE != 0));
    });
}

#[test]
fn an_answer_gets_the_clients_address_where_it_comes_in_and_the_services_where_it_leaves() {
    in_both_families(|node, net| {
        serve(node, net);
        for dialled in [net.node_port, net.vip, net.service] {
            for request in requests(dialled, net) {
                let (client, masked) = open(node, net, &request);
                let answer = answer(&request, net, masked);
                let between = answer.clone().to(client);
                node.comes_in(&answer).becomes(&between);
                node.goes_out(&between)
                    .becomes(&between.clone().from(dialled).to(net.outside));
            }
        }
        assert!(node.flows().iter().all(|flow| flow.state == ANSWERED));
    });
}

#[test]
fn all_steps_stay_summed_up_if_the_device_did_so() {
    in_both_families(|node, net| {
        serve(node, net);
        node.receives_frames(Received::Summed);
        for request in requests(net.vip, net) {
            let (client, masked) = open(node, net, &request);
            let between = request.clone().from(client).to(net.endpoint);
            node.goes_out(&between)
                .becomes(&between.clone().from(masked));
            let answer = answer(&request, net, masked);
            let between = answer.clone().to(client);
            node.comes_in(&answer).becomes(&between);
            node.goes_out(&between)
                .becomes(&between.clone().from(net.vip).to(net.outside));
        }
    });
}

#[test]
fn later_packets_keep_their_port() {
    in_both_families(|node, net| {
        serve(node, net);
        let (client, _) = open(node, net, &tcp(net.outside, net.vip).syn());
        for data in [&b""[..], b"one", b"three"] {
            let segment = tcp(net.outside, net.vip).carrying(data);
            node.comes_in(&segment)
                .becomes(&segment.clone().from(client).to(net.endpoint));
        }
    });
}

/// Spec E3.
#[test]
fn clients_with_one_port_are_told_apart() {
    in_both_families(|node, net| {
        serve(node, net);
        let other = SocketAddr::new(net.stranger.ip(), net.outside.port());
        let (_, first) = open(node, net, &udp(net.outside, net.vip));
        let request = udp(other, net.vip);
        let outcome = node.comes_in(&request);
        let second = SocketAddr::new(net.node, outcome.ports().0);
        assert_ne!(first, second);
        for (client, masked) in [(net.outside, first), (other, second)] {
            let seen = SocketAddr::new(client.ip(), masked.port());
            let answer = udp(net.endpoint, masked);
            let between = answer.clone().to(seen);
            node.comes_in(&answer).becomes(&between);
            node.goes_out(&between)
                .becomes(&between.clone().from(net.vip).to(client));
        }
    });
}

#[test]
fn a_port_of_the_pool_without_a_flow_is_not_ours() {
    in_both_families(|node, net| {
        serve(node, net);
        let node_end = SocketAddr::new(net.node, POOL.0 + 7);
        for packet in [
            tcp(net.stranger, node_end).syn_ack(),
            udp(net.stranger, node_end),
        ] {
            node.comes_in(&packet).is_untouched();
        }
        let client = SocketAddr::new(net.outside.ip(), POOL.0 + 7);
        node.goes_out(&udp(client, net.endpoint)).is_untouched();
    });
}

/// Spec E1.
#[test]
fn pods_keep_their_address_towards_endpoints_elsewhere() {
    in_both_families(|node, net| {
        serve(node, net);
        let syn = tcp(net.client, net.service).syn();
        node.pod_sends(&syn).becomes(&syn.to(net.endpoint));
    });
}

/// Spec E5.
#[test]
fn with_masquerade_all_pods_do_not() {
    in_both_families(|node, net| {
        serve(node, net);
        node.set(|settings| settings.flags |= lb_ebpf::abi::settings::MASQUERADE_ALL);
        let syn = tcp(net.client, net.service).syn();
        let outcome = node.pod_sends(&syn);
        let seen = SocketAddr::new(net.client.ip(), outcome.ports().0);
        outcome.becomes(&syn.clone().from(seen).to(net.endpoint));
        let between = syn.from(seen).to(net.endpoint);
        let masked = SocketAddr::new(net.node, seen.port());
        node.goes_out(&between)
            .becomes(&between.clone().from(masked));
        let answer = tcp(net.endpoint, masked).syn_ack();
        let between = answer.clone().to(seen);
        node.comes_in(&answer).becomes(&between);
        node.pod_gets(&between)
            .becomes(&between.clone().from(net.service).to(net.client));
    });
}

/// Spec D11.
#[test]
fn a_pod_that_dials_a_vip_of_a_cluster_policy_is_masqueraded() {
    // Spec D11.
    in_both_families(|node, net| {
        serve(node, net);
        let syn = tcp(net.client, net.vip).syn();
        let outcome = node.pod_sends(&syn);
        let seen = SocketAddr::new(net.client.ip(), outcome.ports().0);
        assert!(
            (POOL.0..=POOL.1).contains(&seen.port()),
            "{}",
            outcome.story()
        );
        outcome.becomes(&syn.from(seen).to(net.endpoint));
    });
}

#[test]
fn an_error_about_a_masqueraded_request_reaches_the_client_in_two_steps() {
    in_both_families(|node, net| {
        serve(node, net);
        for request in requests(net.vip, net) {
            let (client, masked) = open(node, net, &request);
            let between = request.clone().from(client).to(net.endpoint);
            let left = between.clone().from(masked);
            let errors: [fn(std::net::IpAddr, &Packet) -> Packet; 3] =
                [port_unreachable, time_exceeded, |from, about| {
                    too_big(from, 1280, about)
                }];
            for error in errors {
                let halfway = error(net.router, &between.clone().with_checksum_of(&left));
                node.comes_in(&error(net.router, &left)).becomes(&halfway);
                let known = request.clone().with_checksum_of(&left);
                node.goes_out(&halfway).becomes(&error(net.router, &known));
            }
        }
    });
}

#[test]
fn this_nodes_own_error_about_a_masqueraded_request_is_translated_where_it_leaves() {
    // The stack's "packet too big" for a tunnel: it quotes client and endpoint.
    in_both_families(|node, net| {
        serve(node, net);
        for request in requests(net.vip, net) {
            let (client, _) = open(node, net, &request);
            let between = request.clone().from(client).to(net.endpoint);
            let known = request.with_checksum_of(&between);
            let error = too_big(net.node, 1400, &between);
            node.goes_out(&error)
                .becomes(&too_big(net.node, 1400, &known));
        }
    });
}

#[test]
fn a_clients_error_about_a_masqueraded_answer_reaches_the_endpoint_in_two_steps() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = udp(net.outside, net.vip);
        let (client, masked) = open(node, net, &request);
        let answer = udp(net.endpoint, masked);
        let between = answer.clone().to(client);
        let arrived = between.clone().from(net.vip).to(net.outside);
        let halfway = port_unreachable(net.outside.ip(), &between.with_checksum_of(&arrived));
        node.comes_in(&port_unreachable(net.outside.ip(), &arrived))
            .becomes(&halfway);
        // Where it leaves, its own source and the quote's destination become this node's.
        let known = port_unreachable(net.node, &answer.with_checksum_of(&arrived));
        node.goes_out(&halfway).becomes(&known);
    });
}

/// Spec E16, with `--snat-local=kube-proxy`: an endpoint of this node knows this node, too, and no client.
#[test]
fn an_error_about_a_masqueraded_answer_reaches_an_endpoint_of_this_node_in_two_steps() {
    in_both_families(|node, net| {
        node.set(|settings| settings.flags |= SNAT_LOCAL);
        let dns = udp_service("dns", net.family).load_balancer(net.vip);
        node.serve(dns.local_endpoint(net.local_endpoint));
        let request = udp(net.outside, net.vip);
        let client = renumbered(net, &node.comes_in(&request));
        let masked = SocketAddr::new(net.node, client.port());
        let between = request.from(client).to(net.local_endpoint);
        node.pod_gets(&between)
            .becomes(&between.clone().from(masked));
        let answer = udp(net.local_endpoint, masked);
        let between = udp(net.local_endpoint, client);
        node.pod_sends(&answer).becomes(&between);
        let arrived = between.clone().from(net.vip).to(net.outside);
        node.goes_out(&between).becomes(&arrived);

        let halfway = too_big(net.router, 1300, &between.with_checksum_of(&arrived));
        node.comes_in(&too_big(net.router, 1300, &arrived))
            .becomes(&halfway);
        let known = too_big(net.node, 1300, &answer.with_checksum_of(&arrived));
        node.pod_gets(&halfway).becomes(&known);
    });
}

#[test]
fn fragments_are_masqueraded_together() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = udp(net.outside, net.vip).carrying(&[4; 300]);
        let pieces = request.fragments(104);
        let client = renumbered(net, &node.comes_in(&pieces[0]));
        let between = request.clone().from(client).to(net.endpoint);
        for (piece, arrives) in pieces.iter().zip(between.fragments(104)) {
            node.comes_in(piece).becomes(&arrives);
        }
        let masked = SocketAddr::new(net.node, client.port());
        let left = between.clone().from(masked);
        for (piece, arrives) in between.fragments(104).iter().zip(left.fragments(104)) {
            node.goes_out(piece).becomes(&arrives);
        }
        let answer = udp(net.endpoint, masked).carrying(&[5; 300]);
        let back = answer.clone().to(client);
        for (piece, arrives) in answer.fragments(104).iter().zip(back.fragments(104)) {
            node.comes_in(piece).becomes(&arrives);
        }
        let arrived = back.clone().from(net.vip).to(net.outside);
        for (piece, arrives) in back.fragments(104).iter().zip(arrived.fragments(104)) {
            node.goes_out(piece).becomes(&arrives);
        }
    });
}

#[test]
fn without_a_known_address_of_this_node_the_packet_is_dropped_and_counted() {
    in_both_families(|node, net| {
        serve(node, net);
        node.forget_device_addresses();
        node.comes_in(&tcp(net.outside, net.vip).syn()).is_dropped();
        assert_eq!(node.count_of(counter::NO_SOURCE_ADDRESS), 1);
        assert!(node.flows().is_empty());
    });
}

/// An endpoint that closed a connection refuses another client's from its port for a minute.
#[test]
fn the_port_of_a_closed_connection_rests_while_others_are_free() {
    const CLIENTS: u16 = 300;
    in_both_families(|node, net| {
        serve(node, net);
        // So many that four tries do not all meet one that is taken.
        node.set(|settings| (settings.nat_port_first, settings.nat_port_last) = (1024, 29_999));
        let open_from = |port: u16| {
            let client = SocketAddr::new(net.outside.ip(), port);
            let outcome = node.comes_in(&tcp(client, net.vip).syn());
            (client, SocketAddr::new(net.node, outcome.ports().0))
        };
        let mut closed = BTreeSet::new();
        for number in 0..CLIENTS {
            let (client, masked) = open_from(10_000 + number);
            node.comes_in(&tcp(net.endpoint, masked).syn_ack());
            node.comes_in(&tcp(client, net.vip));
            node.comes_in(&tcp(net.endpoint, masked).fin());
            node.comes_in(&tcp(client, net.vip).fin());
            closed.insert(masked.port());
        }
        assert!(node.flows().iter().all(|flow| flow.state == CLOSED));
        for number in 0..CLIENTS {
            let (_, masked) = open_from(20_000 + number);
            assert!(!closed.contains(&masked.port()), "{masked}");
        }
    });
}
