//! What cannot be served is refused so that its sender learns at once: RST for TCP, port unreachable for the rest.

use lb_ebpf::abi::counter;
use lb_tests::object::{Net, Node, in_both_families, tcp_service, udp_service};
use lb_tests::packet::{
    ACK, Body, FIN, Frame as _, Packet, RST, SYN, echo, other, port_unreachable, tcp, udp,
};

/// A port that the Service at this address does not have.
fn undefined(net: &Net) -> std::net::SocketAddr {
    std::net::SocketAddr::new(net.service.ip(), 81)
}

fn serve(node: &mut Node, net: &Net) {
    node.serve(
        tcp_service("web", net.family)
            .cluster_ip(net.service)
            .endpoint(net.endpoint),
    );
    node.serve(udp_service("dns", net.family).cluster_ip(net.other_service));
    node.serve(tcp_service("dns", net.family).cluster_ip(net.other_service));
}

/// An answer as the programs make them: no identification, window 0, back to where the packet came from.
fn answer(mut packet: Packet) -> Packet {
    packet.identification = 0;
    packet.dont_fragment = true;
    if let Body::Tcp(tcp) = &mut packet.body {
        tcp.window = 0;
    }
    packet.turned_back()
}

/// The refusal of a datagram: its header and eight bytes more are quoted.
fn unreachable(about: &Packet, header: usize) -> Packet {
    answer(port_unreachable(about.destination, about).quoting_only(header + 8))
}

fn header(net: &Net) -> usize {
    if net.is_v4() { 20 } else { 40 }
}

/// Spec D4.
#[test]
fn a_syn_to_an_undefined_port_is_reset() {
    in_both_families(|node, net| {
        serve(node, net);
        let syn = tcp(net.client, undefined(net)).syn().sequence(77, 0);
        let reset = tcp(undefined(net), net.client)
            .flags(RST | ACK)
            .sequence(0, 78);
        node.pod_sends(&syn).is_turned_back_as(&answer(reset));
        assert_eq!(node.count_of(counter::PACKET_REJECTED), 1);
    });
}

#[test]
fn a_reset_counts_data_and_fin_and_wraps() {
    in_both_families(|node, net| {
        serve(node, net);
        let reset = |number| {
            answer(
                tcp(undefined(net), net.client)
                    .flags(RST | ACK)
                    .sequence(0, number),
            )
        };
        let syn = tcp(net.client, undefined(net)).syn();
        let with_data = syn.clone().sequence(1000, 0).carrying(b"fast open");
        node.pod_sends(&with_data).is_turned_back_as(&reset(1010));
        let with_fin = syn
            .clone()
            .flags(SYN | FIN)
            .sequence(1000, 0)
            .carrying(b"all");
        node.pod_sends(&with_fin).is_turned_back_as(&reset(1005));
        node.pod_sends(&syn.sequence(u32::MAX, 0))
            .is_turned_back_as(&reset(0));
    });
}

#[test]
fn a_segment_with_ack_is_reset_where_it_says_it_is() {
    in_both_families(|node, net| {
        serve(node, net);
        let segment = tcp(net.client, undefined(net))
            .sequence(5000, 9000)
            .carrying(b"data");
        let reset = tcp(undefined(net), net.client).flags(RST).sequence(9000, 0);
        node.pod_sends(&segment).is_turned_back_as(&answer(reset));
    });
}

#[test]
fn a_reset_is_not_answered() {
    in_both_families(|node, net| {
        serve(node, net);
        for flags in [RST, RST | ACK, RST | SYN] {
            node.pod_sends(&tcp(net.client, undefined(net)).flags(flags))
                .is_dropped();
        }
    });
}

#[test]
fn the_padding_of_a_short_frame_is_no_data() {
    // Ethernet pads frames to 60 bytes; an ACK of 55 in answer to a bare SYN would be no answer to its sender.
    in_both_families(|node, net| {
        serve(node, net);
        let syn = tcp(net.client, undefined(net)).flags(SYN).sequence(77, 0);
        let mut padded = syn.frame();
        padded.resize(padded.len() + 6, 0);
        let reset = tcp(undefined(net), net.client)
            .flags(RST | ACK)
            .sequence(0, 78);
        node.pod_sends(&padded).is_turned_back_as(&answer(reset));
    });
}

/// Spec D4.
#[test]
fn a_datagram_to_an_undefined_port_gets_port_unreachable() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = udp(net.client, undefined(net)).carrying(&[7; 200]);
        node.pod_sends(&request)
            .is_turned_back_as(&unreachable(&request, header(net)));
    });
}

/// Spec D2. Upstream: "should be rejected when no endpoints exist".
#[test]
fn a_service_without_endpoints_refuses() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = udp(net.client, net.other_service);
        node.pod_sends(&request)
            .is_turned_back_as(&unreachable(&request, header(net)));
        let syn = tcp(net.client, net.other_service).syn().sequence(1, 0);
        let reset = tcp(net.other_service, net.client)
            .flags(RST | ACK)
            .sequence(0, 2);
        node.pod_sends(&syn).is_turned_back_as(&answer(reset));
        assert!(node.flows().is_empty());
    });
}

/// Spec E18, D19.
#[test]
fn an_echo_to_a_cluster_ip_is_refused() {
    in_both_families(|node, net| {
        serve(node, net);
        let ping = echo(net.client.ip(), net.service.ip());
        node.pod_sends(&ping)
            .is_turned_back_as(&unreachable(&ping, header(net)));
        node.comes_in(&ping)
            .is_turned_back_as(&unreachable(&ping, header(net)));
    });
}

/// Spec A11, D4.
#[test]
fn another_protocol_to_a_cluster_ip_is_refused() {
    in_both_families(|node, net| {
        serve(node, net);
        for protocol in [47, 132] {
            let packet = other(net.client.ip(), net.service.ip(), protocol, &[9; 24]);
            node.pod_sends(&packet)
                .is_turned_back_as(&unreachable(&packet, header(net)));
        }
    });
}

/// Spec A11, D6.
#[test]
fn sctp_to_other_addresses_of_a_service_passes() {
    // Reliability: unsupported is passed. The address may be a host's that speaks SCTP itself (spec D6).
    in_both_families(|node, net| {
        let web = tcp_service("web", net.family).load_balancer(net.vip);
        node.serve(
            web.node_port(net.node_port.port())
                .local_endpoint(net.local_endpoint),
        );
        for address in [net.vip.ip(), net.node] {
            let packet = other(net.outside.ip(), address, 132, &[9; 24]);
            node.comes_in(&packet).is_untouched();
        }
    });
}

#[test]
fn an_icmp_error_to_a_cluster_ip_is_never_answered() {
    // RFC 1122 §3.2.2: no error about an error, or two hosts would go on for ever.
    in_both_families(|node, net| {
        serve(node, net);
        let about = udp(net.service, net.client);
        node.pod_sends(&port_unreachable(net.client.ip(), &about))
            .is_dropped();
    });
}

#[test]
fn a_datagram_with_options_is_refused_too() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = udp(net.client, undefined(net));
        let (request, header) = if net.is_v4() {
            (request.options(&[148, 4, 0, 0]), 24)
        } else {
            (request.hop_by_hop(), 48)
        };
        let outcome = node.pod_sends(&request);
        outcome.is_turned_back_as(&unreachable(&request, header));
    });
}

#[test]
fn a_segment_with_options_is_reset() {
    in_both_families(|node, net| {
        serve(node, net);
        let syn = tcp(net.client, undefined(net))
            .syn()
            .sequence(10, 0)
            .carrying(b"x");
        let syn = if net.is_v4() {
            syn.options(&[1; 40])
        } else {
            syn.hop_by_hop()
        };
        let reset = tcp(undefined(net), net.client)
            .flags(RST | ACK)
            .sequence(0, 12);
        node.pod_sends(&syn).is_turned_back_as(&answer(reset));
    });
}

#[test]
fn nobody_hears_of_a_refused_fragment_twice() {
    in_both_families(|node, net| {
        serve(node, net);
        let pieces = udp(net.client, undefined(net))
            .carrying(&[7; 200])
            .fragments(64);
        let first = node.pod_sends(&pieces[0]);
        assert!(first.turns_back() || first.ends(), "{}", first.story());
        for piece in &pieces[1..] {
            // What goes on here ends at the uplink.
            assert!(!node.pod_sends(piece).turns_back());
            node.goes_out(piece).is_dropped();
        }
    });
}

#[test]
fn an_icmp_message_that_does_not_tell_its_type_is_never_answered() {
    // For all anybody knows it is an error. What the frame holds behind the packet is no part of it.
    in_both_families(|node, net| {
        serve(node, net);
        let protocol = if net.is_v4() { 1 } else { 58 };
        let packet = other(net.client.ip(), net.service.ip(), protocol, &[]);
        let padded = [packet.frame(), vec![8; 26]].concat();
        node.pod_sends(&packet).is_dropped();
        node.pod_sends(&padded).is_dropped();
        node.comes_in(&padded).is_dropped();
    });
}
