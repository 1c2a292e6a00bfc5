//! Only a clean SYN opens a connection; an open one takes every segment.

use lb_tests::object::{in_both_families, tcp_service};
use lb_tests::packet::{ACK, FIN, RST, SYN, tcp};

#[test]
fn of_all_512_flag_patterns_only_a_clean_syn_opens_a_flow() {
    in_both_families(|node, net| {
        node.serve(
            tcp_service("web", net.family)
                .cluster_ip(net.service)
                .endpoint(net.endpoint),
        );
        for flags in 0..512u16 {
            let mut client = net.client;
            client.set_port(10_000 + flags);
            let segment = tcp(client, net.service).flags(flags);
            let outcome = node.pod_sends(&segment);
            let opened = node.flows().iter().any(|flow| flow.client == client);
            if flags & (SYN | ACK | FIN | RST) == SYN {
                outcome.becomes(&segment.to(net.endpoint));
                assert!(opened, "flags {flags:#x}");
            } else {
                // It may belong to a connection through a proxy that ran here before.
                outcome.is_untouched();
                assert!(!opened, "flags {flags:#x}");
            }
        }
    });
}

#[test]
fn an_open_connection_takes_all_512_flag_patterns_both_ways() {
    in_both_families(|node, net| {
        node.serve(
            tcp_service("web", net.family)
                .cluster_ip(net.service)
                .endpoint(net.endpoint),
        );
        for flags in 0..512u16 {
            let mut client = net.client;
            client.set_port(10_000 + flags);
            node.pod_sends(&tcp(client, net.service).syn());
            node.pod_gets(&tcp(net.endpoint, client).syn_ack());
            let segment = tcp(client, net.service).flags(flags).carrying(b"x");
            node.pod_sends(&segment).becomes(&segment.to(net.endpoint));
            let answer = tcp(net.endpoint, client).flags(flags).carrying(b"y");
            node.pod_gets(&answer).becomes(&answer.from(net.service));
        }
    });
}

/// Spec E14. Upstream: "should not be vulnerable to the invalid conntrack state bug".
#[test]
fn sequence_numbers_do_not_matter() {
    in_both_families(|node, net| {
        node.serve(
            tcp_service("web", net.family)
                .cluster_ip(net.service)
                .endpoint(net.endpoint),
        );
        node.pod_sends(&tcp(net.client, net.service).syn().sequence(u32::MAX, 0));
        for (sequence, acknowledgement) in [(0, 0), (u32::MAX, 1), (1 << 31, 7), (5, u32::MAX)] {
            let segment = tcp(net.client, net.service).sequence(sequence, acknowledgement);
            node.pod_sends(&segment).becomes(&segment.to(net.endpoint));
        }
    });
}
