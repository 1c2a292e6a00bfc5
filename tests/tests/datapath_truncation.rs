//! A frame cut anywhere is never half translated.

use lb_tests::object::{Net, Node, Outcome, in_both_families, tcp_service, udp_service};
use lb_tests::packet::{Frame as _, Packet, echo, port_unreachable, tcp, udp};

/// A test run takes no frame that is shorter than its family's IP header.
fn shortest(net: &Net) -> usize {
    if net.is_v4() { 34 } else { 54 }
}

fn serve(node: &mut Node, net: &Net) {
    node.serve(
        tcp_service("web", net.family)
            .cluster_ip(net.service)
            .load_balancer(net.vip)
            .endpoint(net.endpoint),
    );
    node.serve(
        udp_service("web", net.family)
            .cluster_ip(net.service)
            .endpoint(net.endpoint),
    );
    node.serve(tcp_service("none", net.family).cluster_ip(net.other_service));
}

/// Seed frames, each with the length its headers need; shorter ones must not be translated.
fn seeds(net: &Net) -> Vec<(Packet, usize)> {
    let start = if net.is_v4() { 34 } else { 54 };
    let more = |packet: Packet| {
        if net.is_v4() {
            (packet.options(&[1; 12]), 12)
        } else {
            (packet.hop_by_hop().destination_options(), 24)
        }
    };
    let (tcp_more, extra) = more(tcp(net.client, net.service).syn());
    let (udp_more, _) = more(udp(net.client, net.service));
    vec![
        (tcp(net.client, net.service).syn(), start + 18),
        (
            tcp(net.client, net.service).carrying(b"some data"),
            start + 18,
        ),
        (udp(net.client, net.service), start + 8),
        (tcp_more, start + extra + 18),
        (udp_more, start + extra + 8),
        (
            udp(net.client, net.service)
                .carrying(&[3; 100])
                .fragments(48)[0]
                .clone(),
            start + 8,
        ),
        (tcp(net.client, net.other_service).syn(), start + 20),
        (echo(net.client.ip(), net.service.ip()), start),
        (
            port_unreachable(net.client.ip(), &udp(net.service, net.client)),
            start,
        ),
    ]
}

/// The bytes may be all new (an answer, a translation) only if all headers were there.
fn judge(outcome: &Outcome, length: usize, needed: usize) {
    let fine = outcome.ends() || outcome.goes_on_untouched() || length >= needed;
    assert!(fine, "{length} bytes of {needed}: {}", outcome.story());
    if outcome.goes_on() {
        assert_eq!(outcome.bytes.len(), length, "{}", outcome.story());
    }
}

/// Cuts every seed at every byte. Without flows, so that nothing of the whole frame is known beforehand.
fn cut(node: &mut Node, net: &Net, run: impl Fn(&Node, &Vec<u8>) -> Outcome) {
    for (seed, needed) in seeds(net) {
        let whole = seed.frame();
        for length in shortest(net)..=whole.len() {
            judge(&run(node, &whole[..length].to_vec()), length, needed);
        }
    }
}

#[test]
fn a_pods_cut_frame_is_translated_only_with_its_headers_whole() {
    in_both_families(|node, net| {
        serve(node, net);
        cut(node, net, |node, frame| node.pod_sends(frame));
    });
}

#[test]
fn a_cut_frame_from_outside_is_translated_only_with_its_headers_whole() {
    in_both_families(|node, net| {
        serve(node, net);
        cut(node, net, |node, frame| node.comes_in(frame));
    });
}

#[test]
fn a_cut_answer_is_translated_only_with_its_headers_whole() {
    in_both_families(|node, net| {
        serve(node, net);
        node.pod_sends(&tcp(net.client, net.service).syn());
        node.pod_sends(&udp(net.client, net.service));
        let start = if net.is_v4() { 34 } else { 54 };
        for (answer, needed) in [
            (
                tcp(net.endpoint, net.client).syn_ack().carrying(b"late"),
                start + 18,
            ),
            (udp(net.endpoint, net.client), start + 8),
        ] {
            let whole = answer.frame();
            for length in shortest(net)..=whole.len() {
                judge(&node.pod_gets(&whole[..length].to_vec()), length, needed);
            }
        }
    });
}

#[test]
fn a_cut_packet_of_an_open_connection_is_translated_only_with_its_headers_whole() {
    in_both_families(|node, net| {
        serve(node, net);
        node.pod_sends(&tcp(net.client, net.service).syn());
        node.pod_sends(&udp(net.client, net.service));
        cut(node, net, |node, frame| node.pod_sends(frame));
    });
}

#[test]
fn a_frame_too_short_for_its_ports_opens_no_flow() {
    in_both_families(|node, net| {
        serve(node, net);
        for (seed, needed) in seeds(net) {
            let whole = seed.frame();
            for length in shortest(net)..needed {
                node.pod_sends(&whole[..length].to_vec());
            }
            assert!(node.flows().is_empty(), "{seed:?}: {:?}", node.flows());
        }
    });
}
