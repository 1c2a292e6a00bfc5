//! Traffic from outside to NodePorts, VIPs and externalIPs with an endpoint on this node: the client keeps its
//! address, and its answers come from what it dialled.

use std::net::SocketAddr;

use lb_ebpf::abi::flow::{LOCAL_ENDPOINT, OUTSIDE};
use lb_tests::object::{
    Described, Net, Node, Received, in_both_families, tcp_service, udp_service,
};
use lb_tests::packet::{Packet, tcp, udp};

fn external(net: &Net) -> SocketAddr {
    let mut address = net.vip;
    address.set_port(8443);
    address
}

fn exposed(service: Described, net: &Net) -> Described {
    service
        .cluster_ip(net.service)
        .load_balancer(net.vip)
        .external_ip(external(net))
        .node_port(net.node_port.port())
}

fn serve(node: &mut Node, net: &Net) {
    for service in [
        tcp_service("web", net.family),
        udp_service("web", net.family),
    ] {
        node.serve(exposed(service, net).local_endpoint(net.local_endpoint));
    }
}

/// Everything that can be dialled from outside, each by a client of its own: the endpoint must be able to tell
/// them apart.
fn dialled(net: &Net) -> Vec<(SocketAddr, SocketAddr)> {
    let client = |port| SocketAddr::new(net.outside.ip(), port);
    vec![
        (client(51_000), net.vip),
        (client(51_001), external(net)),
        (client(51_002), net.node_port),
        (client(51_003), net.service),
    ]
}

/// Spec D15.
#[test]
fn a_client_outside_reaches_a_local_endpoint_with_its_own_address() {
    in_both_families(|node, net| {
        serve(node, net);
        for (client, dialled) in dialled(net) {
            let requests = [
                tcp(client, dialled).syn(),
                tcp(client, dialled).carrying(b"GET"),
                udp(client, dialled),
            ];
            for request in requests {
                node.comes_in(&request)
                    .becomes(&request.clone().to(net.local_endpoint));
            }
        }
        let flows = node.flows();
        assert_eq!(flows.len(), 8);
        assert!(
            flows
                .iter()
                .all(|flow| flow.scope == OUTSIDE && flow.flags == LOCAL_ENDPOINT)
        );
    });
}

#[test]
fn its_answers_leave_as_the_services() {
    in_both_families(|node, net| {
        serve(node, net);
        for (client, dialled) in dialled(net) {
            node.comes_in(&tcp(client, dialled).syn());
            node.comes_in(&udp(client, dialled));
            let answers: [Packet; 2] = [
                tcp(net.local_endpoint, client).syn_ack(),
                udp(net.local_endpoint, client),
            ];
            for answer in answers {
                node.goes_out(&answer)
                    .becomes(&answer.clone().from(dialled));
            }
        }
    });
}

#[test]
fn both_stay_summed_up_if_the_device_did_so() {
    in_both_families(|node, net| {
        serve(node, net);
        node.receives_frames(Received::Summed);
        let request = tcp(net.outside, net.vip).syn();
        node.comes_in(&request)
            .becomes(&request.to(net.local_endpoint));
        let answer = tcp(net.local_endpoint, net.outside).syn_ack();
        node.goes_out(&answer).becomes(&answer.from(net.vip));
    });
}

#[test]
fn a_flow_from_outside_is_undone_on_the_uplink_alone() {
    in_both_families(|node, net| {
        serve(node, net);
        node.comes_in(&tcp(net.outside, net.vip).syn());
        let answer = tcp(net.local_endpoint, net.outside).syn_ack();
        node.pod_sends(&answer).is_untouched();
        node.pod_gets(&answer).is_untouched();
        node.comes_in(&answer).is_untouched();
    });
}

/// Spec D15.
#[test]
fn the_external_local_policy_keeps_to_local_endpoints() {
    in_both_families(|node, net| {
        let web = exposed(tcp_service("web", net.family), net).external_local();
        node.serve(
            web.endpoint(net.endpoint)
                .local_endpoint(net.local_endpoint),
        );
        for number in 0..30 {
            let client = SocketAddr::new(net.outside.ip(), 52_000 + number);
            let syn = tcp(client, net.node_port).syn();
            node.comes_in(&syn).becomes(&syn.to(net.local_endpoint));
        }
    });
}

/// Spec D9, G11.
#[test]
fn a_node_port_is_served_on_this_nodes_addresses_alone() {
    in_both_families(|node, net| {
        serve(node, net);
        for address in [
            net.router,
            net.endpoint.ip(),
            net.vip.ip(),
            net.stranger.ip(),
        ] {
            let elsewhere = SocketAddr::new(address, net.node_port.port());
            node.comes_in(&tcp(net.outside, elsewhere).syn())
                .is_untouched();
        }
        // On a ClusterIP it is an undefined port.
        let undefined = SocketAddr::new(net.service.ip(), net.node_port.port());
        assert!(
            node.comes_in(&tcp(net.outside, undefined).syn())
                .turns_back()
        );
    });
}

/// Spec D9.
#[test]
fn a_vip_that_is_this_nodes_own_address_wins_over_the_node_port() {
    in_both_families(|node, net| {
        node.serve(exposed(tcp_service("web", net.family), net).local_endpoint(net.local_endpoint));
        let other = tcp_service("other", net.family).external_ip(net.node_port);
        let mut endpoint = net.local_endpoint;
        endpoint.set_port(9999);
        node.serve(other.local_endpoint(endpoint));
        let syn = tcp(net.outside, net.node_port).syn();
        node.comes_in(&syn).becomes(&syn.to(endpoint));
    });
}

/// Spec D7.
#[test]
fn a_service_without_endpoints_refuses_outside_clients_too() {
    in_both_families(|node, net| {
        node.serve(exposed(tcp_service("web", net.family), net));
        for (client, dialled) in dialled(net) {
            assert!(node.comes_in(&tcp(client, dialled).syn()).turns_back());
        }
    });
}

#[test]
fn a_clients_error_about_an_answer_reaches_the_local_endpoint() {
    in_both_families(|node, net| {
        serve(node, net);
        node.comes_in(&udp(net.outside, net.vip));
        let answer = udp(net.local_endpoint, net.outside);
        let arrived = answer.clone().from(net.vip);
        let known = answer.with_checksum_of(&arrived);
        for from in [net.outside.ip(), net.router] {
            let error = lb_tests::packet::too_big(from, 1300, &arrived);
            node.comes_in(&error)
                .becomes(&lb_tests::packet::too_big(from, 1300, &known));
        }
    });
}

#[test]
fn a_local_endpoints_error_about_a_request_comes_from_the_service() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = udp(net.outside, net.vip);
        node.comes_in(&request);
        let arrived = request.clone().to(net.local_endpoint);
        let known = request.with_checksum_of(&arrived);
        let error = lb_tests::packet::port_unreachable(net.local_endpoint.ip(), &arrived);
        node.goes_out(&error)
            .becomes(&lb_tests::packet::port_unreachable(net.vip.ip(), &known));
    });
}

#[test]
fn fragments_reach_a_local_endpoint_together_and_answer_together() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = udp(net.outside, net.vip).carrying(&[4; 300]);
        let arrives = request.clone().to(net.local_endpoint);
        for (piece, arrives) in request.fragments(104).iter().zip(arrives.fragments(104)) {
            node.comes_in(piece).becomes(&arrives);
        }
        let answer = udp(net.local_endpoint, net.outside).carrying(&[5; 300]);
        let arrives = answer.clone().from(net.vip);
        for (piece, arrives) in answer.fragments(104).iter().zip(arrives.fragments(104)) {
            node.goes_out(piece).becomes(&arrives);
        }
    });
}
