//! What is no business of ours passes all four programs byte for byte.

use std::net::SocketAddr;

use lb_tests::object::{Net, Node, in_both_families, on_a_node, tcp_service, udp_service};
use lb_tests::packet::{Frame as _, HERE, Packet, RST, THERE, echo, icmp, other, tcp, udp};

fn serve(node: &mut Node, net: &Net) {
    let web = tcp_service("web", net.family)
        .cluster_ip(net.service)
        .node_port(30080);
    node.serve(web.load_balancer(net.vip).endpoint(net.endpoint));
    node.serve(
        udp_service("web", net.family)
            .cluster_ip(net.service)
            .endpoint(net.endpoint),
    );
    node.pod_sends(&tcp(net.client, net.service).syn());
    node.pod_sends(&udp(net.client, net.service));
}

fn passes_everywhere(node: &Node, frame: &impl lb_tests::packet::Frame) {
    for outcome in node.everywhere(frame) {
        outcome.is_untouched();
    }
}

#[test]
fn packets_between_strangers() {
    in_both_families(|node, net| {
        serve(node, net);
        for (from, to) in [
            (net.client, net.stranger),
            (net.stranger, net.client),
            (net.outside, net.client),
        ] {
            passes_everywhere(node, &tcp(from, to).syn());
            passes_everywhere(node, &tcp(from, to).carrying(&[1; 999]));
            passes_everywhere(node, &udp(from, to));
            passes_everywhere(node, &echo(from.ip(), to.ip()));
        }
        for protocol in [0xfd, 47, 50, 132] {
            passes_everywhere(
                node,
                &other(net.client.ip(), net.stranger.ip(), protocol, &[6; 40]),
            );
        }
    });
}

#[test]
fn packets_straight_to_an_endpoint() {
    in_both_families(|node, net| {
        serve(node, net);
        let mut client = net.client;
        client.set_port(40_001);
        passes_everywhere(node, &tcp(client, net.endpoint).syn());
        passes_everywhere(node, &tcp(net.endpoint, client).syn_ack());
        passes_everywhere(node, &udp(client, net.endpoint));
    });
}

#[test]
fn packets_of_this_node() {
    in_both_families(|node, net| {
        serve(node, net);
        let ssh = std::net::SocketAddr::new(net.node, 22);
        passes_everywhere(node, &tcp(net.outside, ssh).syn());
        passes_everywhere(node, &tcp(ssh, net.outside).syn_ack());
        passes_everywhere(node, &echo(net.outside.ip(), net.node));
        passes_everywhere(node, &udp(ssh, net.outside));
    });
}

#[test]
fn neighbour_discovery() {
    on_a_node(|node| {
        let net = Net::v6();
        serve(node, &net);
        for kind in 133..=136 {
            let target = [0xfd, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
            let all = "ff02::1".parse().unwrap();
            passes_everywhere(
                node,
                &icmp(net.client.ip(), all, kind, 0, [0; 4], target.to_vec()),
            );
        }
    });
}

#[test]
fn addresses_that_mean_a_place_and_not_a_host() {
    on_a_node(|node| {
        serve(node, &Net::v4());
        serve(node, &Net::v6());
        let special = [
            ["10.1.0.5:68", "255.255.255.255:67"],
            ["0.0.0.0:68", "255.255.255.255:67"],
            ["10.1.0.5:5353", "224.0.0.251:5353"],
            ["127.0.0.1:1", "127.0.0.1:30080"],
            ["10.1.0.5:1", "0.0.0.0:30080"],
            ["169.254.1.1:1", "169.254.1.2:30080"],
            ["[fe80::1]:5353", "[ff02::fb]:5353"],
            ["[::]:1", "[ff02::1]:2"],
            ["[::1]:1", "[::1]:30080"],
            ["[fd01::5]:1", "[::]:30080"],
        ];
        for [from, to] in special {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            passes_everywhere(node, &udp(from, to));
            passes_everywhere(node, &tcp(from, to).syn());
        }
    });
}

#[test]
fn frames_that_carry_no_ip() {
    on_a_node(|node| {
        serve(node, &Net::v4());
        let frame = |ethertype: u16, body: &[u8]| {
            let mut bytes = [&THERE[..], &HERE, &ethertype.to_be_bytes()].concat();
            bytes.extend(body);
            bytes
        };
        let arp = [
            0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 1, 0, 5, 0, 0, 0, 0, 0, 0, 10, 96, 0, 10,
        ];
        passes_everywhere(node, &frame(0x0806, &arp));
        // 802.3 with LLC, MPLS, LLDP, PPPoE, one nobody knows.
        passes_everywhere(node, &frame(38, &[0x42; 38]));
        for ethertype in [0x8847, 0x88cc, 0x8864, 0xabcd] {
            passes_everywhere(node, &frame(ethertype, &[0x45; 60]));
        }
    });
}

#[test]
fn a_packet_of_the_other_family_than_its_ethertype_says() {
    on_a_node(|node| {
        let (four, six) = (Net::v4(), Net::v6());
        serve(node, &four);
        serve(node, &six);
        let mut bytes = tcp(four.client, four.service).syn().frame();
        bytes[12..14].copy_from_slice(&[0x86, 0xdd]);
        passes_everywhere(node, &bytes);
        let mut bytes = tcp(six.client, six.service).syn().frame();
        bytes[12..14].copy_from_slice(&[8, 0]);
        passes_everywhere(node, &bytes);
    });
}

#[test]
fn answers_of_an_endpoint_to_others() {
    in_both_families(|node, net| {
        serve(node, net);
        let mut other = net.client;
        other.set_port(1);
        for answer in [tcp(net.endpoint, other).syn_ack(), udp(net.endpoint, other)] {
            node.pod_gets(&answer).is_untouched();
        }
        // The pod's flow is the pod side's alone.
        let answer: Packet = tcp(net.endpoint, net.client).syn_ack();
        node.goes_out(&answer).is_untouched();
        node.comes_in(&answer).is_untouched();
    });
}

/// A promiscuous device, or one that mirrors traffic, brings what others are to serve; the host's stack drops it.
#[test]
fn frames_for_another_host() {
    in_both_families(|node, net| {
        serve(node, net);
        let to_another = |mut packet: Packet| {
            packet.macs.1 = [2, 0, 0, 0, 0, 7];
            packet
        };
        let node_port = SocketAddr::new(net.node, 30080);
        let flows = node.flows().len();
        for dialled in [net.vip, net.service, node_port] {
            let syn = tcp(net.outside, dialled).syn();
            node.comes_in(&to_another(syn)).is_untouched();
        }
        assert_eq!(node.flows().len(), flows);
        let known = tcp(net.outside, net.vip).syn();
        assert!(!node.comes_in(&known).goes_on_untouched());
        node.comes_in(&to_another(known.clone())).is_untouched();
        node.comes_in(&to_another(known.flags(RST))).is_untouched();
        assert_eq!(node.flows().len(), flows + 1);
    });
}
