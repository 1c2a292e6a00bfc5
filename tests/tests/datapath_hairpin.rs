//! A pod that reaches itself through a service sees the service as its peer, on both sides.

use lb_ebpf::abi::flow::{ANSWERED, HAIRPIN};
use lb_tests::object::{Net, Node, in_both_families, tcp_service, udp_service};
use lb_tests::packet::{Packet, tcp, udp};

/// The client's own server.
fn itself(net: &Net) -> std::net::SocketAddr {
    std::net::SocketAddr::new(net.client.ip(), 8080)
}

/// The client as its own server sees it.
fn seen(net: &Net) -> std::net::SocketAddr {
    std::net::SocketAddr::new(net.service.ip(), net.client.port())
}

fn serve(node: &mut Node, net: &Net) {
    node.serve(
        tcp_service("self", net.family)
            .cluster_ip(net.service)
            .local_endpoint(itself(net)),
    );
    node.serve(
        udp_service("self", net.family)
            .cluster_ip(net.service)
            .local_endpoint(itself(net)),
    );
}

/// Spec D12.
#[test]
fn the_request_turns_back_with_the_service_as_its_source() {
    in_both_families(|node, net| {
        serve(node, net);
        for request in [
            tcp(net.client, net.service).syn(),
            udp(net.client, net.service),
        ] {
            let arrives = request
                .clone()
                .from(seen(net))
                .to(itself(net))
                .turned_back();
            node.pod_sends(&request).is_turned_back_as(&arrives);
        }
        assert!(node.flows().iter().all(|flow| flow.flags & HAIRPIN != 0));
    });
}

#[test]
fn the_answer_turns_back_as_the_services() {
    in_both_families(|node, net| {
        serve(node, net);
        node.pod_sends(&tcp(net.client, net.service).syn());
        node.pod_sends(&udp(net.client, net.service));
        let answers: [Packet; 2] = [
            tcp(itself(net), seen(net)).syn_ack(),
            udp(itself(net), seen(net)),
        ];
        for answer in answers {
            let arrives = answer
                .clone()
                .from(net.service)
                .to(net.client)
                .turned_back();
            node.pod_sends(&answer).is_turned_back_as(&arrives);
        }
        assert!(node.flows().iter().all(|flow| flow.state == ANSWERED));
    });
}

#[test]
fn what_turned_back_is_not_translated_again_on_its_way_to_the_pod() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = tcp(net.client, net.service).syn();
        node.pod_sends(&request);
        node.pod_gets(&request.from(seen(net)).to(itself(net)).turned_back())
            .is_untouched();
        let answer = tcp(net.service, net.client).syn_ack().turned_back();
        node.pod_gets(&answer).is_untouched();
    });
}

#[test]
fn only_the_pod_that_is_its_own_endpoint_turns_back() {
    in_both_families(|node, net| {
        node.serve(
            tcp_service("self", net.family)
                .cluster_ip(net.service)
                .local_endpoint(net.local_endpoint),
        );
        let syn = tcp(net.client, net.service).syn();
        node.pod_sends(&syn).becomes(&syn.to(net.local_endpoint));
    });
}

#[test]
fn fragments_turn_back_together() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = udp(net.client, net.service).carrying(&[4; 300]);
        let arrives = request
            .clone()
            .from(seen(net))
            .to(itself(net))
            .turned_back();
        for (piece, arrives) in request.fragments(104).iter().zip(arrives.fragments(104)) {
            node.pod_sends(piece).is_turned_back_as(&arrives);
        }
        let answer = udp(itself(net), seen(net)).carrying(&[5; 300]);
        let arrives = answer
            .clone()
            .from(net.service)
            .to(net.client)
            .turned_back();
        for (piece, arrives) in answer.fragments(104).iter().zip(arrives.fragments(104)) {
            node.pod_sends(piece).is_turned_back_as(&arrives);
        }
    });
}
