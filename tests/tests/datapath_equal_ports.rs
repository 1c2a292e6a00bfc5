//! A client's port may serve several conversations with one endpoint: through a service, and directly. To the endpoint
//! they would be one, so the later gets another source port (spec §8, equal client ports; netfilter does the same).

use std::net::SocketAddr;

use lb_ebpf::abi::counter;
use lb_ebpf::abi::flow::{DIRECT, ESTABLISHED};
use lb_ebpf::abi::settings::SNAT_LOCAL;
use lb_tests::object::{Net, Node, Outcome, POOL, in_both_families, tcp_service, udp_service};
use lb_tests::packet::{Packet, port_unreachable, tcp, udp};

fn serve(node: &mut Node, net: &Net) {
    for service in [
        tcp_service("web", net.family),
        udp_service("web", net.family),
    ] {
        node.serve(service.cluster_ip(net.service).endpoint(net.endpoint));
    }
}

/// What opens a conversation.
fn openings(from: SocketAddr, to: SocketAddr) -> [Packet; 2] {
    [tcp(from, to).syn(), udp(from, to)]
}

/// An endpoint's first answer to such an opening.
fn answer(opening: &Packet, from: SocketAddr, to: SocketAddr) -> Packet {
    match opening.body {
        lb_tests::packet::Body::Tcp(_) => tcp(from, to).syn_ack(),
        _ => udp(from, to),
    }
}

/// The client with the source port it got from us.
#[track_caller]
fn renumbered(client: SocketAddr, outcome: &Outcome) -> SocketAddr {
    let port = outcome.ports().0;
    assert!((POOL.0..=POOL.1).contains(&port), "{}", outcome.story());
    SocketAddr::new(client.ip(), port)
}

#[test]
fn a_direct_connection_beside_a_flow_gets_a_port_of_its_own() {
    in_both_families(|node, net| {
        serve(node, net);
        let through = openings(net.client, net.service);
        let direct = openings(net.client, net.endpoint);
        for (through, direct) in through.iter().zip(&direct) {
            node.pod_sends(through)
                .becomes(&through.clone().to(net.endpoint));
            let outcome = node.pod_sends(direct);
            let other = renumbered(net.client, &outcome);
            outcome.becomes(&direct.clone().from(other));
            // Each answer finds the conversation it belongs to.
            let flows = answer(through, net.endpoint, net.client);
            node.pod_gets(&flows)
                .becomes(&flows.clone().from(net.service));
            let own = answer(direct, net.endpoint, other);
            node.pod_gets(&own).becomes(&own.clone().to(net.client));
        }
        for (through, direct) in [
            (tcp(net.client, net.service), tcp(net.client, net.endpoint)),
            (udp(net.client, net.service), udp(net.client, net.endpoint)),
        ] {
            node.pod_sends(&through)
                .becomes(&through.clone().to(net.endpoint));
            let outcome = node.pod_sends(&direct);
            outcome.becomes(&direct.clone().from(renumbered(net.client, &outcome)));
        }
        assert_eq!(node.count_of(counter::DIRECT_RENUMBERED), 2);
        let direct = |flag| {
            let flows = node.flows();
            flows.iter().filter(|f| f.flags & DIRECT == flag).count()
        };
        assert_eq!((direct(DIRECT), direct(0)), (2, 2));
        assert!(node.flows().iter().all(|flow| flow.state == ESTABLISHED));
    });
}

#[test]
fn a_client_from_outside_gets_a_port_of_its_own_too() {
    in_both_families(|node, net| {
        let web = tcp_service("web", net.family).load_balancer(net.vip);
        node.serve(web.local_endpoint(net.local_endpoint));
        let through = tcp(net.outside, net.vip).syn();
        node.comes_in(&through)
            .becomes(&through.clone().to(net.local_endpoint));
        let direct = tcp(net.outside, net.local_endpoint).syn();
        let outcome = node.comes_in(&direct);
        let other = renumbered(net.outside, &outcome);
        outcome.becomes(&direct.clone().from(other));
        let own = tcp(net.local_endpoint, other).syn_ack();
        node.goes_out(&own).becomes(&own.clone().to(net.outside));
        let flows = tcp(net.local_endpoint, net.outside).syn_ack();
        node.goes_out(&flows).becomes(&flows.clone().from(net.vip));
    });
}

#[test]
fn a_new_flow_makes_way_for_a_direct_connection_that_was_there_before() {
    in_both_families(|node, net| {
        serve(node, net);
        // Nobody saw it open: it is no service's.
        let direct = tcp(net.client, net.endpoint);
        node.pod_sends(&direct.clone().syn()).is_untouched();
        node.pod_sends(&direct).is_untouched();

        let syn = tcp(net.client, net.service).syn();
        node.pod_sends(&syn).becomes(&syn.clone().to(net.endpoint));
        // To the endpoint that is a SYN within an open connection: it says where it is (RFC 5961 §4). Nothing of the
        // direct connection is taken for the service's.
        for segment in [
            tcp(net.endpoint, net.client),
            tcp(net.endpoint, net.client).carrying(b"direct"),
        ] {
            node.pod_gets(&segment).is_untouched();
        }
        assert_eq!(node.count_of(counter::FLOW_STEPPED_ASIDE), 1);
        // The client repeats its SYN, which goes from another port now.
        let outcome = node.pod_sends(&syn);
        let other = renumbered(net.client, &outcome);
        outcome.becomes(&syn.clone().from(other).to(net.endpoint));
        let accepts = tcp(net.endpoint, other).syn_ack();
        node.pod_gets(&accepts)
            .becomes(&accepts.clone().from(net.service).to(net.client));
        let data = tcp(net.client, net.service).carrying(b"data");
        node.pod_sends(&data)
            .becomes(&data.clone().from(other).to(net.endpoint));
        node.pod_sends(&direct).is_untouched();
        node.pod_gets(&tcp(net.endpoint, net.client)).is_untouched();
        assert_eq!(node.flows().len(), 1);
    });
}

#[test]
fn a_refused_connection_is_the_flows_own() {
    in_both_families(|node, net| {
        serve(node, net);
        node.pod_sends(&tcp(net.client, net.service).syn());
        let reset = tcp(net.endpoint, net.client).rst();
        node.pod_gets(&reset)
            .becomes(&reset.clone().from(net.service));
    });
}

#[test]
fn direct_conversations_that_meet_no_flow_are_untouched() {
    in_both_families(|node, net| {
        serve(node, net);
        for opening in openings(net.client, net.service) {
            node.pod_sends(&opening);
        }
        let mut other_port = net.client;
        other_port.set_port(net.client.port() + 1);
        let mut elsewhere = net.endpoint;
        elsewhere.set_port(net.endpoint.port() + 1);
        for (from, to) in [
            (other_port, net.endpoint),
            (net.client, elsewhere),
            (net.client, net.other_endpoint),
            (net.client, net.stranger),
        ] {
            for opening in openings(from, to) {
                node.pod_sends(&opening).is_untouched();
                node.comes_in(&opening).is_untouched();
            }
        }
        // In the middle of a connection nothing is decided any more.
        node.pod_sends(&tcp(net.client, net.endpoint))
            .is_untouched();
        assert_eq!(node.flows().len(), 2);
    });
}

#[test]
fn a_flow_that_is_over_leaves_its_port_to_a_direct_connection() {
    in_both_families(|node, net| {
        serve(node, net);
        node.pod_sends(&tcp(net.client, net.service).syn());
        node.pod_gets(&tcp(net.endpoint, net.client).rst());
        node.pod_sends(&tcp(net.client, net.endpoint).syn())
            .is_untouched();
        assert!(node.flows().is_empty());
        node.pod_gets(&tcp(net.endpoint, net.client).syn_ack())
            .is_untouched();

        node.pod_sends(&udp(net.client, net.service));
        node.let_flows_rest(31);
        node.pod_sends(&udp(net.client, net.endpoint))
            .is_untouched();
        assert!(node.flows().is_empty());
    });
}

/// A UDP port of the endpoint's address left a Service: for some time the address is looked at for that.
fn retire_datagrams(node: &mut Node, net: &Net, endpoint: SocketAddr) {
    let service = || udp_service("dns", net.family).cluster_ip(net.service);
    node.serve(service().endpoint(endpoint));
    node.serve(service().endpoint(net.other_endpoint));
}

#[test]
fn what_an_endpoint_was_before_changes_nothing() {
    in_both_families(|node, net| {
        retire_datagrams(node, net, net.endpoint);
        let web = tcp_service("web", net.family).cluster_ip(net.service);
        node.serve(web.endpoint(net.endpoint));
        node.pod_sends(&tcp(net.client, net.service).syn());
        let direct = tcp(net.client, net.endpoint).syn();
        let outcome = node.pod_sends(&direct);
        outcome.becomes(&direct.clone().from(renumbered(net.client, &outcome)));
    });
}

/// The other node's client had a flow here, through a pool port that the other node gives to a flow of its own later.
#[test]
fn a_port_of_the_pool_that_a_flow_left_is_free_for_direct_connections() {
    for retired in [false, true] {
        in_both_families(|node, net| {
            node.route_packets(false);
            node.set(|settings| settings.flags |= SNAT_LOCAL);
            if retired {
                retire_datagrams(node, net, net.local_endpoint);
            }
            let web = tcp_service("web", net.family).node_port(net.node_port.port());
            node.serve(web.local_endpoint(net.local_endpoint));
            let request = tcp(net.outside, net.node_port);
            let open = |node: &Node| {
                let syn = request.clone().syn();
                let between = renumbered(net.outside, &node.comes_in(&syn));
                let masked = SocketAddr::new(net.node, between.port());
                let arrives = syn.from(between).to(net.local_endpoint);
                node.pod_gets(&arrives)
                    .becomes(&arrives.clone().from(masked));
                node.pod_sends(&tcp(net.local_endpoint, masked).rst());
                between
            };
            let direct = tcp(open(node), net.local_endpoint).syn();
            node.comes_in(&direct).is_untouched();
            node.pod_gets(&direct).is_untouched();
            assert_eq!(node.halves(), (0, 0));

            // Where the answer is all that is seen.
            let client = open(node);
            node.goes_out(&tcp(net.local_endpoint, client).syn_ack())
                .is_untouched();
            assert_eq!(node.halves(), (0, 0));
        });
    }
}

#[test]
fn a_direct_connection_that_has_its_port_to_itself_again_keeps_it() {
    in_both_families(|node, net| {
        serve(node, net);
        let (through, direct) = (tcp(net.client, net.service), tcp(net.client, net.endpoint));
        node.pod_sends(&through.clone().syn());
        let other = renumbered(net.client, &node.pod_sends(&direct.clone().syn()));
        for port in [net.client, other] {
            node.pod_gets(&tcp(net.endpoint, port).rst());
        }
        node.pod_sends(&direct.clone().syn()).is_untouched();
        node.pod_sends(&direct).is_untouched();
        assert!(node.flows().is_empty());
    });
}

#[test]
fn a_renumbered_direct_conversation_outlives_the_service() {
    in_both_families(|node, net| {
        serve(node, net);
        node.pod_sends(&udp(net.client, net.service));
        let direct = udp(net.client, net.endpoint);
        let other = renumbered(net.client, &node.pod_sends(&direct));
        node.remove(udp_service("web", net.family));
        node.pod_sends(&direct).becomes(&direct.clone().from(other));
    });
}

#[test]
fn an_error_about_a_renumbered_packet_is_about_the_clients_own() {
    in_both_families(|node, net| {
        serve(node, net);
        node.pod_sends(&udp(net.client, net.service));
        let direct = udp(net.client, net.endpoint);
        let other = renumbered(net.client, &node.pod_sends(&direct));
        let left = direct.clone().from(other);
        let known = direct.with_checksum_of(&left);
        node.pod_gets(&port_unreachable(net.endpoint.ip(), &left))
            .becomes(&port_unreachable(net.endpoint.ip(), &known));
    });
}

#[test]
fn fragments_of_a_renumbered_datagram_stay_together() {
    in_both_families(|node, net| {
        serve(node, net);
        node.pod_sends(&udp(net.client, net.service));
        let direct = udp(net.client, net.endpoint).carrying(&[4; 300]);
        let pieces = direct.fragments(104);
        let other = renumbered(net.client, &node.pod_sends(&pieces[0]));
        let left = direct.from(other).fragments(104);
        for (piece, arrives) in pieces.iter().zip(&left) {
            node.pod_sends(piece).becomes(arrives);
        }
    });
}
