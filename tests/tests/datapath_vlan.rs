//! A tagged packet is met where its VLAN has a device, without the tag. A tag that is still there belongs to somebody
//! else: to a VLAN inside of a VLAN, or to one that this host has no device for and whose packets it drops.

use lb_tests::object::{Net, Node, in_both_families, tcp_service, udp_service};
use lb_tests::packet::{Packet, tcp, udp};

fn serve(node: &mut Node, net: &Net) {
    for service in [
        tcp_service("web", net.family),
        udp_service("web", net.family),
    ] {
        node.serve(
            service
                .cluster_ip(net.service)
                .load_balancer(net.vip)
                .endpoint(net.endpoint),
        );
    }
}

fn tagged(packet: Packet, tags: usize) -> Packet {
    (0..tags).fold(packet, |packet, number| packet.vlan(100 + number as u16))
}

#[test]
fn a_packet_of_a_vlan_inside_is_left_to_its_device() {
    in_both_families(|node, net| {
        serve(node, net);
        for tags in 1..=3 {
            for request in [
                tcp(net.client, net.service).syn(),
                udp(net.client, net.service),
                tcp(net.outside, net.vip).syn(),
                udp(net.outside, net.vip),
            ] {
                for outcome in node.everywhere(&tagged(request, tags)) {
                    outcome.is_untouched();
                }
            }
        }
        assert!(node.flows().is_empty());
    });
}

#[test]
fn an_answer_with_a_tag_is_none_of_the_flow_without() {
    in_both_families(|node, net| {
        serve(node, net);
        node.pod_sends(&tcp(net.client, net.service).syn());
        let answer = tagged(tcp(net.endpoint, net.client).syn_ack(), 1);
        node.pod_gets(&answer).is_untouched();
    });
}
