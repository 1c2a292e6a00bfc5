//! What this node's own processes send to services past the socket hooks, met where it leaves by the uplink or passes
//! the loopback device.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_ebpf::abi::counter;
use lb_ebpf::abi::flow::{HAIRPIN, MASQUERADE, OWN_ADDRESS, OWN_CLIENT};
use lb_ebpf::abi::settings::STACK_FORWARDS;
use lb_tests::object::{Described, Net, Node, POOL, in_both_families, tcp_service, udp_service};
use lb_tests::packet::{Body, Packet, echo, tcp, too_big, udp};

fn services(net: &Net) -> [Described; 2] {
    [
        tcp_service("web", net.family),
        udp_service("web", net.family),
    ]
    .map(|service| service.cluster_ip(net.service).load_balancer(net.vip))
}

fn serve(node: &mut Node, net: &Net) {
    services(net)
        .into_iter()
        .for_each(|service| node.serve(service.endpoint(net.endpoint)));
}

fn own(net: &Net) -> SocketAddr {
    SocketAddr::new(net.node, 40_000)
}

fn requests(dialled: SocketAddr, net: &Net) -> [Packet; 2] {
    [tcp(own(net), dialled).syn(), udp(own(net), dialled)]
}

fn answer(request: &Packet, from: SocketAddr, to: SocketAddr) -> Packet {
    match request.body {
        Body::Tcp(_) => tcp(from, to).syn_ack(),
        _ => udp(from, to),
    }
}

/// Opens a flow; this node as the endpoint sees it.
fn open(node: &Node, net: &Net, request: &Packet) -> SocketAddr {
    let outcome = node.sends(request);
    let port = outcome.ports().0;
    assert!((POOL.0..=POOL.1).contains(&port), "{}", outcome.story());
    let masked = SocketAddr::new(net.node, port);
    let left = request.clone().from(masked).to(net.endpoint);
    outcome.is_sent_out_as(&left.ttl(request.ttl - 1));
    masked
}

#[test]
fn a_request_leaves_translated_and_its_answer_comes_in_as_the_services() {
    in_both_families(|node, net| {
        serve(node, net);
        for dialled in [net.service, net.vip] {
            for request in requests(dialled, net) {
                let masked = open(node, net, &request);
                let answer = answer(&request, net.endpoint, masked);
                let expected = answer.clone().from(dialled).to(own(net));
                node.comes_in(&answer).becomes(&expected);
                // From a pod only if the endpoint is one: others' sources are for the stack to check.
                node.pod_sends(&answer).becomes(&expected);
            }
        }
        let flags = MASQUERADE | OWN_CLIENT;
        assert!(node.flows().iter().all(|flow| flow.flags & flags == flags));
    });
}

/// A host that checks sources (`rp_filter`) takes the service's address from the device alone that leads to it.
#[test]
fn an_answer_that_comes_by_another_device_than_leads_to_the_service_is_handed_over() {
    in_both_families(|node, net| {
        let elsewhere = if net.is_v4() {
            "10.3.0.9:443"
        } else {
            "[fd03::9]:443"
        };
        let vip: SocketAddr = elsewhere.parse().expect("an address");
        for service in services(net) {
            node.serve(service.load_balancer(vip).endpoint(net.endpoint));
        }
        for request in requests(vip, net) {
            let masked = open(node, net, &request);
            let answer = answer(&request, net.endpoint, masked);
            let expected = answer.clone().from(vip).to(own(net));
            node.comes_in(&answer).is_sent_out_as(&expected);
        }
    });
}

#[test]
fn an_error_about_a_request_is_about_what_was_sent() {
    in_both_families(|node, net| {
        serve(node, net);
        let [request, _] = requests(net.service, net);
        let masked = open(node, net, &request);
        let left = request.clone().from(masked).to(net.endpoint);
        let error = too_big(net.router, 1300, &left);
        // The quote's transport checksum stays, as nobody can check it.
        let quoted = request.with_checksum_of(&left);
        node.comes_in(&error)
            .becomes(&too_big(net.router, 1300, &quoted));
    });
}

#[test]
fn a_server_of_this_node_sees_the_service_as_its_client() {
    in_both_families(|node, net| {
        let server = SocketAddr::new(net.node, 8080);
        services(net)
            .into_iter()
            .for_each(|service| node.serve(service.host_endpoint(server)));
        for request in requests(net.service, net) {
            let client = SocketAddr::new(net.service.ip(), own(net).port());
            let turned = request.clone().from(client).to(server).turned_back();
            node.sends(&request).is_turned_back_as(&turned);
            let answer = answer(&request, server, client);
            let back = answer.clone().from(net.service).to(own(net)).turned_back();
            node.sends(&answer).is_turned_back_as(&back);
        }
        assert!(node.flows().iter().all(|flow| flow.flags & HAIRPIN != 0));
    });
}

/// Spec D2, D4.
#[test]
fn without_endpoints_and_on_undefined_ports_requests_are_refused() {
    in_both_families(|node, net| {
        services(net)
            .into_iter()
            .for_each(|service| node.serve(service));
        for dialled in [net.service, SocketAddr::new(net.service.ip(), 9)] {
            for request in requests(dialled, net) {
                assert!(node.sends(&request).turns_back());
            }
        }
        assert_eq!(node.count_of(counter::PACKET_REJECTED), 4);
    });
}

/// Spec D5, D6.
#[test]
fn what_belongs_to_nobody_does_not_leave() {
    in_both_families(|node, net| {
        serve(node, net);
        // No flow, and none is opened by a segment in the middle.
        node.sends(&tcp(own(net), net.service).flags(0x10))
            .is_dropped();
        // A VIP may be somebody else's on other ports.
        node.sends(&tcp(own(net), SocketAddr::new(net.vip.ip(), 9)).syn())
            .is_untouched();
    });
}

/// Flows through a Service that is gone may go on, so its address is looked at for a while; whatever else is sent
/// there is dropped as on any free address (spec D5), not sent to the next router.
#[test]
fn nothing_new_leaves_towards_a_service_that_is_gone() {
    in_both_families(|node, net| {
        serve(node, net);
        let [request, _] = requests(net.service, net);
        let masked = open(node, net, &request);
        services(net)
            .into_iter()
            .for_each(|service| node.remove(service));
        let other = SocketAddr::new(net.node, 40_001);
        node.sends(&tcp(other, net.service).syn()).is_dropped();
        node.sends(&udp(other, net.service)).is_dropped();
        node.sends(&echo(net.node, net.service.ip())).is_dropped();
        node.goes_out(&tcp(net.client, net.service).syn())
            .is_dropped();
        let more = request.flags(0x10);
        let left = more.clone().from(masked).to(net.endpoint);
        node.sends(&more).is_sent_out_as(&left.ttl(more.ttl - 1));
    });
}

/// A Service may have a node's address as an external one. That node is a client like any other.
#[test]
fn a_server_of_this_node_answers_a_client_whose_address_is_an_external_one() {
    in_both_families(|node, net| {
        let server = SocketAddr::new(net.node, 8080);
        let external = SocketAddr::new(net.outside.ip(), 80);
        for service in services(net) {
            let service = service
                .node_port(net.node_port.port())
                .external_ip(external);
            node.serve(service.host_endpoint(server));
        }
        for request in [
            tcp(net.outside, net.node_port).syn(),
            udp(net.outside, net.node_port),
        ] {
            node.comes_in(&request).becomes(&request.clone().to(server));
            let answer = answer(&request, server, net.outside);
            node.sends(&answer)
                .becomes(&answer.clone().from(net.node_port));
        }
    });
}
/// The services' NodePort, on the node's own address.
fn node_ports(net: &Net) -> [Described; 2] {
    services(net).map(|service| service.node_port(net.node_port.port()))
}

fn localhost(net: &Net) -> IpAddr {
    if net.is_v4() {
        Ipv4Addr::LOCALHOST.into()
    } else {
        Ipv6Addr::LOCALHOST.into()
    }
}

#[test]
fn a_request_to_an_address_of_this_node_is_sent_on_and_its_answer_is_handed_over() {
    in_both_families(|node, net| {
        node_ports(net)
            .into_iter()
            .for_each(|service| node.serve(service.endpoint(net.endpoint)));
        let port = net.node_port.port();
        for address in [net.node, localhost(net)] {
            let (client, dialled) = (
                SocketAddr::new(address, 40_000),
                SocketAddr::new(address, port),
            );
            for request in [tcp(client, dialled).syn(), udp(client, dialled)] {
                let outcome = node.sends_itself(&request);
                let masked = SocketAddr::new(net.node, outcome.ports().0);
                let left = request.clone().from(masked).to(net.endpoint);
                outcome.is_sent_out_as(&left.ttl(request.ttl - 1));
                let answer = answer(&request, net.endpoint, masked);
                let expected = answer.clone().from(dialled).to(client);
                node.comes_in(&answer).is_sent_out_as(&expected);
                node.pod_sends(&answer).becomes(&expected);
            }
        }
        let flags = MASQUERADE | OWN_CLIENT | OWN_ADDRESS;
        assert!(node.flows().iter().all(|flow| flow.flags & flags == flags));
    });
}

#[test]
fn a_server_of_this_node_behind_an_address_of_this_node_is_reached_in_place() {
    in_both_families(|node, net| {
        let server = SocketAddr::new(net.node, 8080);
        node_ports(net)
            .into_iter()
            .for_each(|service| node.serve(service.host_endpoint(server)));
        let request = tcp(own(net), net.node_port).syn();
        let outcome = node.sends_itself(&request);
        let client = SocketAddr::new(net.node, outcome.ports().0);
        assert!(
            (POOL.0..=POOL.1).contains(&client.port()),
            "{}",
            outcome.story()
        );
        outcome.becomes(&request.clone().from(client).to(server).turned_back());
        let answer = answer(&request, server, client);
        let back = answer
            .clone()
            .from(net.node_port)
            .to(own(net))
            .turned_back();
        node.sends_itself(&answer).becomes(&back);
    });
}

#[test]
fn on_loopback_the_external_policy_counts_and_refuses() {
    in_both_families(|node, net| {
        node_ports(net)
            .into_iter()
            .for_each(|service| node.serve(service.external_local().endpoint(net.endpoint)));
        let port = net.node_port.port();
        let on = |address| {
            let (from, to) = (
                SocketAddr::new(address, 40_000),
                SocketAddr::new(address, port),
            );
            tcp(from, to).syn()
        };
        assert!(node.sends_itself(&on(net.node)).turns_back(), "D14");
        let outcome = node.sends_itself(&on(localhost(net)));
        assert!(
            outcome.goes_on() && !outcome.goes_on_untouched(),
            "{}",
            outcome.story()
        );
        assert_eq!(node.count_of(counter::PACKET_REJECTED), 1);
    });
}

/// Spec E22.
#[test]
fn loopback_addresses_are_nobody_elses() {
    in_both_families(|node, net| {
        node_ports(net)
            .into_iter()
            .for_each(|service| node.serve(service.endpoint(net.endpoint)));
        let dialled = SocketAddr::new(localhost(net), net.node_port.port());
        for client in [net.client, net.outside] {
            for outcome in node.everywhere(&tcp(client, dialled).syn()) {
                outcome.is_untouched();
            }
        }
        assert!(node.flows().is_empty());
    });
}

#[test]
fn what_this_node_says_to_itself_beside_services_is_left_alone() {
    in_both_families(|node, net| {
        node_ports(net)
            .into_iter()
            .for_each(|service| node.serve(service.endpoint(net.endpoint)));
        let listener = SocketAddr::new(net.node, 9_000);
        for packet in [
            tcp(own(net), listener).syn(),
            tcp(listener, own(net)).syn_ack(),
            tcp(own(net), net.node_port).flags(0x10),
            udp(own(net), listener),
        ] {
            node.sends_itself(&packet).is_untouched();
        }
    });
}

/// `--forwarding=stack` is about what the host forwards. What it sends has been through its stack.
#[test]
fn own_packets_leave_translated_whatever_forwards_others() {
    in_both_families(|node, net| {
        serve(node, net);
        node.set(|settings| settings.flags |= STACK_FORWARDS);
        for request in requests(net.service, net) {
            open(node, net, &request);
        }
        assert_eq!(node.count_of(counter::STRAY_DROPPED), 0);
    });
}
