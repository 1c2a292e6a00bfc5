//! Where a UDP flow goes when not its endpoint but the meaning of things around it changes.

use lb_ebpf::abi::counter;
use lb_tests::object::{Net, Node, in_both_families, udp_service};
use lb_tests::packet::udp;

/// Has the VIP or not; its endpoint is that of its ClusterIP all the time.
fn first_service(node: &mut Node, net: &Net, has_address: bool) {
    let service = udp_service("first", net.family)
        .cluster_ip(net.service)
        .endpoint(net.endpoint);
    node.serve(if has_address {
        service.external_ip(net.vip)
    } else {
        service
    });
}

fn second_service(node: &mut Node, net: &Net) {
    node.serve(
        udp_service("second", net.family)
            .external_ip(net.vip)
            .endpoint(net.other_endpoint),
    );
}

/// Spec B14: with `publishNotReadyAddresses` an endpoint is ready that does not serve.
#[test]
fn a_flow_stays_on_an_endpoint_that_is_published_though_not_ready() {
    in_both_families(|node, net| {
        node.serve(
            udp_service("dns", net.family)
                .cluster_ip(net.service)
                .published_endpoint(net.endpoint)
                .published_endpoint(net.other_endpoint),
        );
        let request = udp(net.client, net.service);
        node.pod_sends(&request);
        let first = node.flows()[0].new_destination;
        for _ in 0..20 {
            node.pod_sends(&request);
            assert_eq!(node.flows()[0].new_destination, first);
        }
        assert_eq!(node.count_of(counter::FLOW_MOVED), 0);
        assert_eq!(node.flows().len(), 1);
    });
}

/// Spec E13, differences `udp-follows-service`.
#[test]
fn a_flow_follows_an_address_that_another_service_got() {
    in_both_families(|node, net| {
        first_service(node, net, true);
        let request = udp(net.client, net.vip);
        assert!(node.pod_sends(&request).goes_on());
        assert_eq!(node.flows()[0].new_destination, net.endpoint);
        first_service(node, net, false);
        second_service(node, net);
        node.let_flows_rest(1);
        assert!(node.pod_sends(&request).goes_on());
        assert_eq!(node.flows().len(), 1);
        assert_eq!(node.flows()[0].new_destination, net.other_endpoint);
        assert_eq!(node.count_of(counter::FLOW_MOVED), 1);
    });
}

#[test]
fn a_flow_ends_where_its_service_lost_the_address() {
    in_both_families(|node, net| {
        first_service(node, net, true);
        let request = udp(net.client, net.vip);
        assert!(node.pod_sends(&request).goes_on());
        assert_eq!(node.flows().len(), 1);
        first_service(node, net, false);
        node.let_flows_rest(1);
        node.pod_sends(&request).is_untouched();
        assert!(node.flows().is_empty());
    });
}

/// Nobody but pods has sockets that hooks connected there.
#[test]
fn who_left_every_service_is_still_reached_from_outside() {
    in_both_families(|node, net| {
        let dns = |endpoint| {
            udp_service("dns", net.family)
                .cluster_ip(net.service)
                .endpoint(endpoint)
        };
        node.serve(dns(net.endpoint));
        node.serve(dns(net.other_endpoint));
        std::thread::sleep(std::time::Duration::from_millis(2_500));
        assert!(node.pod_sends(&udp(net.client, net.endpoint)).turns_back());
        node.comes_in(&udp(net.outside, net.endpoint))
            .is_untouched();
        assert_eq!(node.count_of(counter::TOMBSTONE_REJECTED), 1);
    });
}
