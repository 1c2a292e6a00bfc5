//! IPv4 options and IPv6 extension headers are parsed past; broken headers are left alone.

use lb_ebpf::abi::counter;
use lb_tests::object::{Net, Node, in_both_families, on_a_node, tcp_service, udp_service};
use lb_tests::packet::{Frame as _, Packet, tcp, udp};

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

/// The service's packets there and back, with further headers put in by `with`.
fn travels(node: &Node, net: &Net, with: impl Fn(Packet) -> Packet) {
    let there = [
        tcp(net.client, net.service).syn(),
        udp(net.client, net.service),
    ];
    for request in there.map(&with) {
        node.pod_sends(&request)
            .becomes(&request.clone().to(net.endpoint));
    }
    let back = [
        tcp(net.endpoint, net.client).syn_ack(),
        udp(net.endpoint, net.client),
    ];
    for answer in back.map(&with) {
        node.pod_gets(&answer)
            .becomes(&answer.clone().from(net.service));
    }
}

#[test]
fn ipv4_options_of_every_length_are_parsed_past() {
    on_a_node(|node| {
        let net = Net::v4();
        serve(node, &net);
        for words in 1..=10 {
            travels(node, &net, |packet| packet.options(&vec![1; words * 4]));
        }
        // Router alert, record route, timestamp.
        let options: [&[u8]; 3] = [
            &[148, 4, 0, 0],
            &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ];
        for option in options {
            travels(node, &net, |packet| packet.options(option));
        }
    });
}

#[test]
fn ipv6_extension_headers_are_parsed_past() {
    on_a_node(|node| {
        let net = Net::v6();
        serve(node, &net);
        travels(node, &net, Packet::hop_by_hop);
        travels(node, &net, Packet::destination_options);
        travels(node, &net, Packet::routing);
        // An authentication header of 24 bytes.
        travels(node, &net, |packet| packet.extension(51, 3));
        travels(node, &net, |packet| {
            packet
                .hop_by_hop()
                .destination_options()
                .routing()
                .destination_options()
        });
    });
}

#[test]
fn an_atomic_fragment_is_a_whole_packet() {
    // RFC 6946: offset 0 and nothing follows.
    on_a_node(|node| {
        let net = Net::v6();
        serve(node, &net);
        travels(node, &net, |packet| Packet {
            fragment: Some((0, false)),
            ..packet
        });
        travels(node, &net, |packet| Packet {
            fragment: Some((0, false)),
            ..packet.hop_by_hop()
        });
    });
}

#[test]
fn a_chain_of_eight_extension_headers_is_walked() {
    on_a_node(|node| {
        let net = Net::v6();
        serve(node, &net);
        for headers in 1..=8 {
            travels(node, &net, |packet| {
                (0..headers).fold(packet, |packet, _| packet.extension(60, 1))
            });
        }
    });
}

#[test]
fn a_longer_chain_is_left_alone_and_counted() {
    on_a_node(|node| {
        let net = Net::v6();
        serve(node, &net);
        let syn = tcp(net.client, net.service).syn();
        let long = (0..9).fold(syn, |packet, _| packet.extension(60, 1));
        node.pod_sends(&long).is_untouched();
        assert_eq!(node.count_of(counter::MALFORMED), 1);
    });
}

#[test]
fn an_extension_header_longer_than_the_packet_is_left_alone() {
    on_a_node(|node| {
        let net = Net::v6();
        serve(node, &net);
        for kind in [0, 43, 51, 60] {
            let mut bytes = tcp(net.client, net.service)
                .syn()
                .extension(kind, 3)
                .frame();
            bytes[14 + 40 + 1] = 200;
            node.pod_sends(&bytes).is_untouched();
        }
        assert!(node.flows().is_empty());
    });
}

#[test]
fn an_ipv4_header_that_contradicts_itself_is_left_alone_and_counted() {
    on_a_node(|node| {
        let net = Net::v4();
        serve(node, &net);
        let good = tcp(net.client, net.service).syn().frame();
        let mut broken = Vec::new();
        for length in 0..5 {
            let mut bytes = good.clone();
            bytes[14] = 0x40 | length;
            broken.push(bytes);
        }
        // Total length below the header's.
        for length in [0u16, 19] {
            let mut bytes = good.clone();
            bytes[16..18].copy_from_slice(&length.to_be_bytes());
            broken.push(bytes);
        }
        for version in [0, 5, 6, 15] {
            let mut bytes = good.clone();
            bytes[14] = version << 4 | 5;
            broken.push(bytes);
        }
        for bytes in &broken {
            node.pod_sends(bytes).is_untouched();
        }
        assert_eq!(node.count_of(counter::MALFORMED), broken.len() as u64);
        assert!(node.flows().is_empty());
    });
}

#[test]
fn a_header_length_beyond_the_packet_is_left_alone() {
    on_a_node(|node| {
        let net = Net::v4();
        serve(node, &net);
        // 60 bytes of header are claimed, 40 of packet are there.
        let mut bytes = tcp(net.client, net.service).flags(2).frame();
        bytes[14] = 0x4f;
        bytes[16..18].copy_from_slice(&60u16.to_be_bytes());
        node.pod_sends(&bytes).is_untouched();
    });
}

#[test]
fn an_ipv6_header_of_another_version_is_left_alone() {
    on_a_node(|node| {
        let net = Net::v6();
        serve(node, &net);
        for version in [0, 4, 5, 15] {
            let mut bytes = tcp(net.client, net.service).syn().frame();
            bytes[14] = version << 4;
            node.pod_sends(&bytes).is_untouched();
        }
    });
}

#[test]
fn a_length_field_longer_than_the_frame_does_not_lead_outside_of_it() {
    in_both_families(|node, net| {
        serve(node, net);
        let mut bytes = tcp(net.client, net.service).syn().frame();
        let at = if net.is_v4() { 16 } else { 18 };
        bytes[at..at + 2].copy_from_slice(&u16::MAX.to_be_bytes());
        let outcome = node.pod_sends(&bytes);
        // Translated or not: the receiver drops it. It must only not be more than was there.
        assert_eq!(outcome.bytes.len(), bytes.len(), "{}", outcome.story());
    });
}

#[test]
fn a_datagram_shorter_than_its_own_header_is_left_alone() {
    in_both_families(|node, net| {
        serve(node, net);
        let at = if net.is_v4() { 34 } else { 54 } + 4;
        for length in 0..8u16 {
            let mut bytes = udp(net.client, net.service).frame();
            bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
            node.pod_sends(&bytes).is_untouched();
        }
        assert!(node.flows().is_empty());
    });
}

#[test]
fn a_datagram_longer_than_its_packet_is_left_alone() {
    in_both_families(|node, net| {
        serve(node, net);
        let at = if net.is_v4() { 34 } else { 54 } + 4;
        for length in [17, 1000, u16::MAX] {
            let mut bytes = udp(net.client, net.service).frame();
            bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
            node.pod_sends(&bytes).is_untouched();
        }
        assert!(node.flows().is_empty());
    });
}
