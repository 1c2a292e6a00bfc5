//! The first fragment of a datagram teaches the others where they go.

use lb_ebpf::abi::counter;
use lb_tests::object::{Net, Node, in_both_families, tcp_service, udp_service};
use lb_tests::packet::{Packet, tcp, udp};

fn serve(node: &mut Node, net: &Net) {
    node.serve(
        udp_service("dns", net.family)
            .cluster_ip(net.service)
            .endpoint(net.endpoint),
    );
    node.serve(
        tcp_service("dns", net.family)
            .cluster_ip(net.service)
            .endpoint(net.endpoint),
    );
}

fn large(net: &Net) -> Packet {
    udp(net.client, net.service).carrying(&[0x5a; 300])
}

/// Pieces of a datagram, each with the same piece of another.
fn pieces(sent: &Packet, arrives: &Packet, size: usize) -> Vec<(Packet, Packet)> {
    sent.fragments(size)
        .into_iter()
        .zip(arrives.fragments(size))
        .collect()
}

/// Spec E17.
#[test]
fn every_fragment_of_a_request_reaches_the_endpoint() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = large(net);
        for (piece, arrives) in pieces(&request, &request.clone().to(net.endpoint), 104) {
            node.pod_sends(&piece).becomes(&arrives);
        }
    });
}

/// Spec E17.
#[test]
fn every_fragment_of_an_answer_comes_from_the_service() {
    in_both_families(|node, net| {
        serve(node, net);
        node.pod_sends(&udp(net.client, net.service));
        let answer = udp(net.endpoint, net.client).carrying(&[1; 300]);
        for (piece, arrives) in pieces(&answer, &answer.clone().from(net.service), 96) {
            node.pod_gets(&piece).becomes(&arrives);
        }
    });
}

#[test]
fn later_fragments_may_come_in_any_order_and_twice() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = large(net);
        let pieces = pieces(&request, &request.clone().to(net.endpoint), 64);
        node.pod_sends(&pieces[0].0).becomes(&pieces[0].1);
        for (piece, arrives) in pieces[1..].iter().rev().chain(&pieces[1..]) {
            node.pod_sends(piece).becomes(arrives);
        }
        node.pod_sends(&pieces[0].0).becomes(&pieces[0].1);
    });
}

/// More datagrams than the table has room for, none of which ever comes to an end.
#[test]
fn many_that_are_never_whole_are_in_nobodys_way() {
    in_both_families(|node, net| {
        serve(node, net);
        for identification in 0..5_000 {
            let mut request = large(net);
            request.identification = identification;
            node.pod_sends(&request.fragments(104)[0]);
        }
        let request = large(net);
        for (piece, arrives) in pieces(&request, &request.clone().to(net.endpoint), 104) {
            node.pod_sends(&piece).becomes(&arrives);
        }
    });
}

#[test]
fn what_leaves_for_elsewhere_is_not_remembered() {
    in_both_families(|node, net| {
        serve(node, net);
        node.pod_sends(&udp(net.client, net.service));
        for piece in udp(net.client, net.stranger)
            .carrying(&[1; 300])
            .fragments(104)
        {
            node.goes_out(&piece).is_untouched();
        }
        for piece in udp(net.stranger, net.client)
            .carrying(&[1; 300])
            .fragments(104)
        {
            node.pod_gets(&piece).is_untouched();
        }
        assert_eq!(node.fragmented(), 0);
        assert_eq!(node.count_of(counter::FRAGMENT_UNKNOWN), 0);
    });
}

#[test]
fn a_fragment_whose_first_was_not_seen_is_left_to_the_stack_and_counted() {
    in_both_families(|node, net| {
        serve(node, net);
        let pieces = large(net).fragments(104);
        node.pod_sends(&pieces[1]).is_untouched();
        assert_eq!(node.count_of(counter::FRAGMENT_UNKNOWN), 1);
        assert!(node.flows().is_empty());
    });
}

#[test]
fn fragments_of_two_datagrams_are_told_apart() {
    in_both_families(|node, net| {
        serve(node, net);
        node.pod_sends(&large(net).fragments(104)[0]);
        let stranger = Packet {
            identification: 0x1717,
            ..large(net)
        };
        node.pod_sends(&stranger.fragments(104)[1]).is_untouched();
        let mut elsewhere = large(net).fragments(104)[1].clone();
        elsewhere.source = net.other_endpoint.ip();
        node.pod_sends(&elsewhere).is_untouched();
    });
}

#[test]
fn a_first_fragment_without_a_whole_tcp_header_is_left_alone() {
    in_both_families(|node, net| {
        serve(node, net);
        let syn = tcp(net.client, net.service).syn();
        // 16 bytes are the ports and flags, but the checksum is in the next fragment.
        for size in [8, 16] {
            for piece in syn.fragments(size) {
                node.pod_sends(&piece).is_untouched();
            }
        }
        assert!(node.flows().is_empty());
    });
}

#[test]
fn a_first_fragment_of_eight_bytes_has_a_whole_udp_header() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = large(net);
        for (piece, arrives) in pieces(&request, &request.clone().to(net.endpoint), 8) {
            node.pod_sends(&piece).becomes(&arrives);
        }
    });
}

#[test]
fn a_fragmented_segment_of_an_open_connection_is_translated() {
    in_both_families(|node, net| {
        serve(node, net);
        node.pod_sends(&tcp(net.client, net.service).syn());
        let segment = tcp(net.client, net.service).carrying(&[9; 200]);
        for (piece, arrives) in pieces(&segment, &segment.clone().to(net.endpoint), 80) {
            node.pod_sends(&piece).becomes(&arrives);
        }
    });
}

#[test]
fn fragments_to_no_service_are_untouched() {
    in_both_families(|node, net| {
        serve(node, net);
        for piece in udp(net.client, net.stranger)
            .carrying(&[3; 200])
            .fragments(64)
        {
            for outcome in node.everywhere(&piece) {
                outcome.is_untouched();
            }
        }
    });
}
