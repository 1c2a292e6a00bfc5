//! `loadBalancerSourceRanges` on the packet path.

use lb_ebpf::abi::counter;
use lb_tests::object::{Net, Node, in_both_families, tcp_service};
use lb_tests::packet::tcp;

fn serve(node: &mut Node, net: &Net, length: u8) {
    let web = tcp_service("web", net.family)
        .cluster_ip(net.service)
        .load_balancer(net.vip)
        .node_port(net.node_port.port())
        .source_range(net.outside.ip(), length)
        .local_endpoint(net.local_endpoint);
    node.serve(web);
}

#[test]
fn a_source_within_the_range_is_served() {
    in_both_families(|node, net| {
        serve(node, net, if net.is_v4() { 24 } else { 64 });
        let syn = tcp(net.outside, net.vip).syn();
        node.comes_in(&syn).becomes(&syn.to(net.local_endpoint));
    });
}

/// Spec H2.
#[test]
fn a_source_outside_of_the_range_is_dropped_and_counted() {
    in_both_families(|node, net| {
        serve(node, net, if net.is_v4() { 32 } else { 128 });
        node.comes_in(&tcp(net.stranger, net.vip).syn())
            .is_dropped();
        node.pod_sends(&tcp(net.client, net.vip).syn()).is_dropped();
        assert_eq!(node.count_of(counter::SOURCE_RANGE_DROPPED), 2);
        assert!(node.flows().is_empty());
    });
}

/// Spec H1, G7.
#[test]
fn the_cluster_ip_and_the_node_port_have_no_ranges() {
    in_both_families(|node, net| {
        serve(node, net, if net.is_v4() { 32 } else { 128 });
        for dialled in [net.service, net.node_port] {
            let mut stranger = net.stranger;
            stranger.set_port(dialled.port());
            let syn = tcp(stranger, dialled).syn();
            node.comes_in(&syn).becomes(&syn.to(net.local_endpoint));
        }
    });
}

/// Spec H5, D10.
#[test]
fn ranges_that_change_concern_new_connections_alone() {
    in_both_families(|node, net| {
        serve(node, net, if net.is_v4() { 24 } else { 64 });
        let segment = tcp(net.outside, net.vip);
        node.comes_in(&segment.clone().syn());
        let web = tcp_service("web", net.family).load_balancer(net.vip);
        let length = if net.is_v4() { 32 } else { 128 };
        node.serve(
            web.source_range(net.stranger.ip(), length)
                .local_endpoint(net.local_endpoint),
        );
        node.comes_in(&segment)
            .becomes(&segment.clone().to(net.local_endpoint));
        let mut again = net.outside;
        again.set_port(51_001);
        node.comes_in(&tcp(again, net.vip).syn()).is_dropped();
    });
}
