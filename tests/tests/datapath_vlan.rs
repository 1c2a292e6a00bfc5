//! Tags in the frame are parsed past (`reliability`: VLAN and QinQ parsed, others pass).
//!
//! The kernel takes the outermost tag out of a frame before tc programs see it, so a tag in the frame is the
//! inner one of two.

use lb_tests::object::{Net, Node, in_both_families, tcp_service, udp_service};
use lb_tests::packet::{Packet, tcp, udp};

fn serve(node: &mut Node, net: &Net) {
    node.serve(
        tcp_service("web", net.family)
            .cluster_ip(net.service)
            .endpoint(net.endpoint),
    );
    node.serve(
        udp_service("web", net.family)
            .cluster_ip(net.service)
            .endpoint(net.endpoint),
    );
}

fn tagged(packet: Packet, tags: usize) -> Packet {
    (0..tags).fold(packet, |packet, number| packet.vlan(100 + number as u16))
}

#[test]
#[ignore = "the programs do not look behind tags in the frame yet"]
fn a_tagged_packet_is_translated_and_stays_tagged() {
    in_both_families(|node, net| {
        serve(node, net);
        for request in [
            tcp(net.client, net.service).syn(),
            udp(net.client, net.service),
        ] {
            let request = tagged(request, 1);
            node.pod_sends(&request)
                .becomes(&request.clone().to(net.endpoint));
        }
        let answer = tagged(tcp(net.endpoint, net.client).syn_ack(), 1);
        node.pod_gets(&answer)
            .becomes(&answer.clone().from(net.service));
    });
}

#[test]
#[ignore = "the programs do not look behind tags in the frame yet"]
fn a_doubly_tagged_packet_is_translated_and_stays_tagged() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = tagged(tcp(net.client, net.service).syn(), 2);
        node.pod_sends(&request)
            .becomes(&request.clone().to(net.endpoint));
    });
}

#[test]
fn a_tagged_packet_of_a_stranger_is_untouched() {
    in_both_families(|node, net| {
        serve(node, net);
        for tags in 1..=3 {
            for outcome in node.everywhere(&tagged(udp(net.client, net.stranger), tags)) {
                outcome.is_untouched();
            }
        }
    });
}
