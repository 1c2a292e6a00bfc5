//! Traffic from outside to an endpoint elsewhere that goes past the host's stack: all of the translation at once,
//! and a hop less to live.

use std::net::SocketAddr;

use lb_ebpf::abi::flow::{ANSWERED, MASQUERADE};
use lb_ebpf::abi::settings::STACK_FORWARDS;
use lb_tests::object::{
    Net, Node, Outcome, POOL, Received, in_both_families, let_a_tick_pass, tcp_service, udp_service,
};
use lb_tests::packet::{Body, Packet, tcp, udp};

fn serve(node: &mut Node, net: &Net) {
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

/// This node as the endpoint sees it.
fn masked(net: &Net, outcome: &Outcome) -> SocketAddr {
    let port = outcome.ports().0;
    assert!((POOL.0..=POOL.1).contains(&port), "{}", outcome.story());
    SocketAddr::new(net.node, port)
}

/// Opens a flow; this node as the endpoint sees it.
fn open(node: &Node, net: &Net, request: &Packet) -> SocketAddr {
    let outcome = node.comes_in(request);
    let masked = masked(net, &outcome);
    let left = request.clone().from(masked).to(net.endpoint);
    outcome.is_sent_out_as(&left.ttl(request.ttl - 1));
    masked
}

fn requests(dialled: SocketAddr, net: &Net) -> [Packet; 2] {
    [tcp(net.outside, dialled).syn(), udp(net.outside, dialled)]
}

fn answer(request: &Packet, net: &Net, to: SocketAddr) -> Packet {
    match request.body {
        Body::Tcp(_) => tcp(net.endpoint, to).syn_ack(),
        _ => udp(net.endpoint, to),
    }
}

fn there_and_back(node: &Node, net: &Net) {
    there_and_back_with(node, net, |packet| packet);
}

/// The same with something in the packets.
fn there_and_back_with(node: &Node, net: &Net, with: impl Fn(Packet) -> Packet) {
    for dialled in [net.node_port, net.vip, net.service] {
        for request in requests(dialled, net).map(&with) {
            let masked = open(node, net, &request);
            let answer = with(answer(&request, net, masked));
            let left = answer.clone().from(dialled).to(net.outside).ttl(63);
            node.comes_in(&answer).is_sent_out_as(&left);
        }
    }
}

/// Spec E19.
#[test]
fn requests_and_answers_leave_wholly_translated() {
    in_both_families(|node, net| {
        serve(node, net);
        there_and_back(node, net);
        let flows = node.flows();
        assert!(
            flows
                .iter()
                .all(|flow| flow.flags & MASQUERADE != 0 && flow.state == ANSWERED)
        );
    });
}

#[test]
fn they_stay_summed_up_if_the_device_did_so() {
    in_both_families(|node, net| {
        serve(node, net);
        node.receives_frames(Received::Summed);
        there_and_back(node, net);
    });
}

#[test]
fn they_may_have_further_headers() {
    in_both_families(|node, net| {
        serve(node, net);
        if net.is_v4() {
            for words in 1..=10 {
                there_and_back_with(node, net, |packet| packet.options(&vec![1; words * 4]));
            }
        } else {
            there_and_back_with(node, net, Packet::hop_by_hop);
            there_and_back_with(node, net, Packet::destination_options);
            there_and_back_with(node, net, Packet::routing);
            there_and_back_with(node, net, |packet| {
                packet.hop_by_hop().routing().destination_options()
            });
        }
    });
}

#[test]
fn a_packet_at_the_end_of_its_life_is_the_stacks() {
    in_both_families(|node, net| {
        serve(node, net);
        for ttl in [0, 1] {
            let request = udp(net.outside, net.vip).ttl(ttl);
            let outcome = node.comes_in(&request);
            let client = SocketAddr::new(net.outside.ip(), outcome.ports().0);
            outcome.becomes(&request.from(client).to(net.endpoint));
        }
        let masked = open(node, net, &udp(net.outside, net.vip).ttl(2));
        let answer = udp(net.endpoint, masked).ttl(1);
        let client = SocketAddr::new(net.outside.ip(), masked.port());
        node.comes_in(&answer).becomes(&answer.clone().to(client));
    });
}

#[test]
fn a_packet_larger_than_the_way_out_is_the_stacks() {
    in_both_families(|node, net| {
        serve(node, net);
        let largest = 1500 - 8 - if net.is_v4() { 20 } else { 40 };
        open(
            node,
            net,
            &udp(net.outside, net.vip).carrying(&vec![1; largest]),
        );
        let request = udp(net.outside, net.vip).carrying(&vec![1; largest + 1]);
        let outcome = node.comes_in(&request);
        let client = SocketAddr::new(net.outside.ip(), outcome.ports().0);
        outcome.becomes(&request.from(client).to(net.endpoint));
    });
}

/// An endpoint behind a route that takes 1300 bytes.
fn narrow(net: &Net) -> SocketAddr {
    let address = if net.is_v4() {
        "10.4.0.7:8080"
    } else {
        "[fd04::7]:8080"
    };
    address.parse().expect("an address")
}

/// Spec E16: a route may take less than its device.
#[test]
fn a_packet_larger_than_the_route_takes_is_the_stacks() {
    in_both_families(|node, net| {
        let narrow = narrow(net);
        let web = udp_service("web", net.family).load_balancer(net.vip);
        node.serve(web.endpoint(narrow));
        let largest = 1300 - 8 - if net.is_v4() { 20 } else { 40 };
        let request = |length| udp(net.outside, net.vip).carrying(&vec![1; length]);
        let outcome = node.comes_in(&request(largest));
        let masked = masked(net, &outcome);
        outcome.is_sent_out_as(&request(largest).from(masked).to(narrow).ttl(63));
        let client = SocketAddr::new(net.outside.ip(), masked.port());
        node.comes_in(&request(largest + 1))
            .becomes(&request(largest + 1).from(client).to(narrow));
    });
}

/// Spec E17: a host that tracks connections puts fragments together, so it gets all of a packet or none.
#[test]
fn fragments_whose_first_does_not_fit_are_the_stacks_together() {
    in_both_families(|node, net| {
        let narrow = narrow(net);
        let web = udp_service("web", net.family).load_balancer(net.vip);
        node.serve(web.endpoint(narrow));
        let request = udp(net.outside, net.vip).carrying(&[1; 1500]);
        let pieces = request.fragments(1400);
        let outcome = node.comes_in(&pieces[0]);
        let client = SocketAddr::new(net.outside.ip(), outcome.ports().0);
        let left = request.clone().from(client).to(narrow).fragments(1400);
        outcome.becomes(&left[0]);
        for (piece, left) in pieces.iter().zip(&left).skip(1) {
            node.comes_in(piece).becomes(left);
        }
        // Of the next datagram all fit.
        let mut request = request;
        request.identification += 1;
        let masked = SocketAddr::new(net.node, client.port());
        let left = request.clone().from(masked).to(narrow).ttl(63);
        for (piece, left) in request.fragments(104).iter().zip(left.fragments(104)) {
            node.comes_in(piece).is_sent_out_as(&left);
        }
    });
}

/// `--forwarding=stack`
#[test]
fn where_the_stack_is_to_forward_nothing_passes_it_by() {
    in_both_families(|node, net| {
        node.set(|settings| settings.flags |= STACK_FORWARDS);
        serve(node, net);
        for request in requests(net.vip, net) {
            let outcome = node.comes_in(&request);
            let masked = masked(net, &outcome);
            let client = SocketAddr::new(net.outside.ip(), masked.port());
            outcome.becomes(&request.clone().from(client).to(net.endpoint));
            let answer = answer(&request, net, masked);
            node.comes_in(&answer).becomes(&answer.clone().to(client));
        }
    });
}

#[test]
fn the_two_ways_are_one_flow() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = udp(net.outside, net.vip);
        let masked = open(node, net, &request);
        node.route_packets(false);
        let_a_tick_pass();
        let client = SocketAddr::new(net.outside.ip(), masked.port());
        let between = request.clone().from(client).to(net.endpoint);
        node.comes_in(&request).becomes(&between);
        node.goes_out(&between)
            .becomes(&between.clone().from(masked));
        node.route_packets(true);
        assert_eq!(open(node, net, &request), masked);
        assert_eq!(node.flows().len(), 1);
    });
}

#[test]
fn what_was_sent_out_is_not_translated_again() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = udp(net.outside, net.vip);
        let masked = open(node, net, &request);
        node.goes_out(&request.from(masked).to(net.endpoint).ttl(63))
            .is_untouched();
        node.goes_out(&udp(net.vip, net.outside).ttl(63))
            .is_untouched();
    });
}

#[test]
fn fragments_leave_together() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = udp(net.outside, net.vip).carrying(&[4; 300]);
        let pieces = request.fragments(104);
        let masked = masked(net, &node.comes_in(&pieces[0]));
        let left = request.clone().from(masked).to(net.endpoint).ttl(63);
        for (piece, left) in pieces.iter().zip(left.fragments(104)) {
            node.comes_in(piece).is_sent_out_as(&left);
        }
        let answer = udp(net.endpoint, masked).carrying(&[5; 300]);
        let left = answer.clone().from(net.vip).to(net.outside).ttl(63);
        for (piece, left) in answer.fragments(104).iter().zip(left.fragments(104)) {
            node.comes_in(piece).is_sent_out_as(&left);
        }
    });
}

/// The stack knows where an endpoint's packets come from, and drops what others send in its name.
#[test]
fn what_a_pod_sends_in_the_name_of_an_endpoint_elsewhere_is_the_stacks() {
    in_both_families(|node, net| {
        serve(node, net);
        for request in requests(net.vip, net) {
            let masked = open(node, net, &request);
            let forged = answer(&request, net, masked);
            let client = SocketAddr::new(net.outside.ip(), masked.port());
            node.pod_sends(&forged).becomes(&forged.clone().to(client));
        }
    });
}

/// Spec E15: whoever filters for a pod of this node sees its packets, also where no slice names the node.
#[test]
fn an_endpoint_behind_a_pods_device_is_reached_through_the_stack() {
    in_both_families(|node, net| {
        let pod = if net.is_v4() {
            "10.5.0.9:8080"
        } else {
            "[fd05::9]:8080"
        };
        let pod: SocketAddr = pod.parse().expect("an address");
        let web = tcp_service("web", net.family).load_balancer(net.vip);
        node.serve(web.endpoint(pod));
        let request = tcp(net.outside, net.vip).syn();
        let outcome = node.comes_in(&request);
        let client = SocketAddr::new(net.outside.ip(), outcome.ports().0);
        outcome.becomes(&request.from(client).to(pod));
    });
}
