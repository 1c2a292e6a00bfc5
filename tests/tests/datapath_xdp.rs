//! What XDP itself does with a frame, before tc could. That both come to the same is what every other fixture of
//! traffic from outside shows, as each runs with XDP first, too.

use std::net::SocketAddr;

use lb_ebpf::abi::device::{SENDS_BACK, TRANSMITS};
use lb_tests::object::{
    Early, Net, Node, POOL, tcp_service, udp_service, with_xdp_in_both_families as in_both_families,
};
use lb_tests::packet::{Checksum, Frame as _, Packet, tcp, udp};

/// From the uplink to its router, and from the other one to its, as the fixtures' network has them.
const TO_ROUTER: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 0xfe]);
const TO_OTHER_ROUTER: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 3, 0xfe]);

fn serve(node: &mut Node, net: &Net, endpoint: SocketAddr) {
    for service in [
        tcp_service("web", net.family),
        udp_service("web", net.family),
    ] {
        let service = service.load_balancer(net.vip);
        node.serve(service.node_port(net.node_port.port()).endpoint(endpoint));
    }
}

/// An endpoint behind the other uplink's router.
fn elsewhere(net: &Net) -> SocketAddr {
    let address = if net.is_v4() { "10.3.0.7" } else { "fd03::7" };
    SocketAddr::new(address.parse().expect("an address"), 8080)
}

/// What was sent back.
#[track_caller]
fn sent_back(early: Early) -> Vec<u8> {
    match early {
        Early::SentBack(bytes) => bytes,
        other => panic!("not sent back: {other:?}"),
    }
}

/// Asserts that XDP sent exactly this packet, and to whom; its source port is from the pool.
#[track_caller]
fn sent_as(
    bytes: &[u8],
    expected: Packet,
    net: &Net,
    (from, to): ([u8; 6], [u8; 6]),
) -> SocketAddr {
    let port = lb_tests::packet::text::ports(bytes).0;
    assert!((POOL.0..=POOL.1).contains(&port), "source port {port}");
    let masked = SocketAddr::new(net.node, port);
    let mut wanted = expected.from(masked).frame();
    wanted[..6].copy_from_slice(&to);
    wanted[6..12].copy_from_slice(&from);
    if let Some(difference) = lb_tests::packet::text::difference(&wanted, bytes) {
        panic!("expected (-) and found (+):\n{difference}");
    }
    masked
}

#[test]
fn a_masqueraded_flow_goes_back_out_of_its_device_both_ways() {
    in_both_families(|node, net| {
        serve(node, net, net.endpoint);
        let macs = TO_ROUTER;
        for dialled in [net.node_port, net.vip] {
            for request in [tcp(net.outside, dialled).syn(), udp(net.outside, dialled)] {
                let bytes = sent_back(node.meets_xdp(&request));
                let left = request.clone().to(net.endpoint).ttl(63);
                let masked = sent_as(&bytes, left, net, macs);
                // The same flow again, and its answer.
                let again = sent_back(node.meets_xdp(&request));
                assert_eq!(again, bytes);
                let answer = match request.body {
                    lb_tests::packet::Body::Tcp(_) => tcp(net.endpoint, masked).syn_ack(),
                    _ => udp(net.endpoint, masked),
                };
                let bytes = sent_back(node.meets_xdp(&answer));
                let mut wanted = answer.from(dialled).to(net.outside).ttl(63).frame();
                wanted[..6].copy_from_slice(&macs.1);
                wanted[6..12].copy_from_slice(&macs.0);
                assert_eq!(bytes, wanted);
            }
        }
        assert_eq!(node.flows().len(), 4);
    });
}

#[test]
fn an_endpoint_behind_another_uplink_is_redirected_to() {
    in_both_families(|node, net| {
        serve(node, net, elsewhere(net));
        let request = udp(net.outside, net.vip);
        let Early::Sent(bytes) = node.meets_xdp(&request) else {
            panic!("not sent by another device");
        };
        let left = request.to(elsewhere(net)).ttl(63);
        let masked = SocketAddr::new(
            if net.is_v4() {
                "192.0.3.1".parse().expect("an address")
            } else {
                "2001:db8:3::1".parse().expect("an address")
            },
            0,
        );
        let here = Net {
            node: masked.ip(),
            ..*net
        };
        sent_as(&bytes, left, &here, TO_OTHER_ROUTER);
    });
}

#[test]
fn a_device_that_cannot_send_for_xdp_is_tcs() {
    in_both_families(|node, net| {
        serve(node, net, net.endpoint);
        let request = udp(net.outside, net.vip);
        node.set_uplinks(|device| device.flags = 0);
        assert_eq!(node.meets_xdp(&request), Early::Passed);
        // As veth does: not back, but by itself like by any other.
        node.set_uplinks(|device| device.flags = TRANSMITS);
        assert!(matches!(node.meets_xdp(&request), Early::Sent(_)));
        node.set_uplinks(|device| device.flags = SENDS_BACK);
        sent_back(node.meets_xdp(&request));
        serve(node, net, elsewhere(net));
        let other = udp(net.stranger, net.vip);
        assert_eq!(node.meets_xdp(&other), Early::Passed);
    });
}

#[test]
fn an_endpoint_of_this_node_is_tcs() {
    in_both_families(|node, net| {
        for service in [
            tcp_service("web", net.family),
            udp_service("web", net.family),
        ] {
            node.serve(
                service
                    .load_balancer(net.vip)
                    .local_endpoint(net.local_endpoint),
            );
        }
        for request in [tcp(net.outside, net.vip).syn(), udp(net.outside, net.vip)] {
            assert_eq!(node.meets_xdp(&request), Early::Passed);
            node.comes_in(&request)
                .becomes(&request.clone().to(net.local_endpoint));
        }
    });
}

#[test]
fn what_is_rare_is_tcs() {
    in_both_families(|node, net| {
        serve(node, net, net.endpoint);
        let request = udp(net.outside, net.vip);
        sent_back(node.meets_xdp(&request));
        let tagged = request.clone().vlan(7);
        for packet in [request.clone().ttl(1), request.clone().ttl(0), tagged] {
            assert_eq!(node.meets_xdp(&packet), Early::Passed);
        }
        for piece in request.clone().carrying(&[4; 300]).fragments(104) {
            assert_eq!(node.meets_xdp(&piece), Early::Passed);
        }
        let largest = 1500 - 8 - if net.is_v4() { 20 } else { 40 };
        sent_back(node.meets_xdp(&request.clone().carrying(&vec![1; largest])));
        let large = request.carrying(&vec![1; largest + 1]);
        assert_eq!(node.meets_xdp(&large), Early::Passed);
    });
}

#[test]
fn a_datagram_without_checksum_stays_without() {
    in_both_families(|node, net| {
        if !net.is_v4() {
            return;
        }
        serve(node, net, net.endpoint);
        let request = udp(net.outside, net.vip).checksum(Checksum::Zero);
        let bytes = sent_back(node.meets_xdp(&request));
        let left = request.to(net.endpoint).ttl(63);
        sent_as(&bytes, left, net, TO_ROUTER);
    });
}

#[test]
fn what_has_no_flow_and_opens_none_is_tcs() {
    in_both_families(|node, net| {
        serve(node, net, net.endpoint);
        let nobodys = SocketAddr::new(net.vip.ip(), 9);
        for packet in [
            tcp(net.outside, net.vip),
            tcp(net.outside, nobodys).syn(),
            udp(net.outside, net.stranger),
        ] {
            assert_eq!(node.meets_xdp(&packet), Early::Passed);
        }
        assert_eq!(node.flows(), []);
    });
}
