//! The way of a busy flow is looked up once a tick of the clock, not once a packet.

use std::net::SocketAddr;

use lb_tests::object::{
    Early, Entry, Net, Node, coarse_clock, in_both_families, let_a_tick_pass, on_a_node_by,
    udp_service,
};
use lb_tests::packet::{Packet, udp};

fn serve(node: &mut Node, net: &Net) {
    let names = udp_service("names", net.family).load_balancer(net.vip);
    node.serve(names.endpoint(net.endpoint));
}

fn request(net: &Net) -> Packet {
    udp(net.outside, net.vip).carrying(&[1; 600])
}

/// Sends some packets of one flow in a row; this node as the endpoint sees it.
fn be_busy(node: &Node, net: &Net) -> SocketAddr {
    let request = request(net);
    let masked = SocketAddr::new(net.node, node.comes_in(&request).ports().0);
    for _ in 0..3 {
        node.comes_in(&request)
            .is_sent_out_as(&request.clone().from(masked).to(net.endpoint).ttl(63));
    }
    let answer = udp(net.endpoint, masked).carrying(&[2; 600]);
    for _ in 0..3 {
        node.comes_in(&answer)
            .is_sent_out_as(&answer.clone().from(net.vip).to(net.outside).ttl(63));
    }
    masked
}

/// The packet as the stack gets it, to send it on.
fn for_the_stack(packet: &Packet, net: &Net, masked: SocketAddr) -> Packet {
    let client = SocketAddr::new(net.outside.ip(), masked.port());
    packet.clone().from(client).to(net.endpoint)
}

#[test]
fn the_way_is_taken_as_it_was_until_the_clock_ticks() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = request(net);
        for _ in 0..50 {
            let masked = be_busy(node, net);
            let stays = for_the_stack(&request, net, masked);
            let before = coarse_clock();
            node.comes_in(&request);
            node.route_packets(false);
            let left = node.comes_in(&request);
            let in_one_tick = coarse_clock() == before;
            if in_one_tick {
                left.is_sent_out_as(&request.clone().from(masked).to(net.endpoint).ttl(63));
            }
            let_a_tick_pass();
            node.comes_in(&request).becomes(&stays);
            node.route_packets(true);
            let_a_tick_pass();
            if in_one_tick {
                return;
            }
        }
        // A machine so slow takes no way twice.
    });
}

#[test]
fn a_packet_larger_than_those_before_asks_for_itself() {
    in_both_families(|node, net| {
        serve(node, net);
        let masked = be_busy(node, net);
        let largest = 1500 - 8 - if net.is_v4() { 20 } else { 40 };
        for (length, fits) in [(largest, true), (largest + 1, false), (largest, true)] {
            let large = udp(net.outside, net.vip).carrying(&vec![1; length]);
            if fits {
                let left = large.clone().from(masked).to(net.endpoint).ttl(63);
                node.comes_in(&large).is_sent_out_as(&left);
            } else {
                node.comes_in(&large)
                    .becomes(&for_the_stack(&large, net, masked));
            }
        }
        be_busy(node, net);
    });
}

#[test]
fn a_packet_at_the_end_of_its_life_is_the_stacks_on_a_cached_route_too() {
    in_both_families(|node, net| {
        serve(node, net);
        let masked = be_busy(node, net);
        let last = request(net).ttl(1);
        node.comes_in(&last)
            .becomes(&for_the_stack(&last, net, masked));
    });
}

/// XDP and tc send in different manners, and either may meet the next packet of a flow.
#[test]
fn xdp_and_tc_do_not_take_each_others_ways() {
    for net in [Net::v4(), Net::v6()] {
        on_a_node_by(Entry::Tc, |node| {
            serve(node, &net);
            let request = request(&net);
            let first = node.comes_in(&request);
            let early = node.meets_xdp(&request);
            assert!(matches!(early, Early::SentBack(_)), "{early:?}");
            for _ in 0..5 {
                let_a_tick_pass();
                for _ in 0..3 {
                    assert_eq!(node.comes_in(&request).bytes, first.bytes);
                }
                for _ in 0..3 {
                    assert_eq!(node.meets_xdp(&request), early);
                }
            }
        });
    }
}
