//! What policy wants to time out ends without an answer.

use lb_ebpf::abi::counter;
use lb_tests::object::{in_both_families, tcp_service, udp_service};
use lb_tests::packet::{echo, tcp, udp};

/// Spec D3.
#[test]
fn an_internal_local_policy_without_a_local_endpoint_drops() {
    in_both_families(|node, net| {
        let web = tcp_service("web", net.family)
            .cluster_ip(net.service)
            .internal_local();
        node.serve(web.endpoint(net.endpoint));
        node.pod_sends(&tcp(net.client, net.service).syn())
            .is_dropped();
        assert_eq!(node.count_of(counter::PACKET_DROPPED), 1);
        assert!(node.flows().is_empty());
    });
}

#[test]
fn an_internal_local_policy_chooses_among_local_endpoints() {
    in_both_families(|node, net| {
        let web = tcp_service("web", net.family)
            .cluster_ip(net.service)
            .internal_local();
        node.serve(
            web.endpoint(net.endpoint)
                .local_endpoint(net.local_endpoint),
        );
        for port in 1..50 {
            let mut client = net.client;
            client.set_port(40_000 + port);
            let syn = tcp(client, net.service).syn();
            node.pod_sends(&syn).becomes(&syn.to(net.local_endpoint));
        }
    });
}

/// Spec D8, D13.
#[test]
fn an_external_local_policy_without_a_local_endpoint_drops_from_outside_alone() {
    in_both_families(|node, net| {
        let web = tcp_service("web", net.family)
            .cluster_ip(net.service)
            .load_balancer(net.vip)
            .node_port(net.node_port.port())
            .external_local()
            .endpoint(net.endpoint);
        node.serve(web);
        for dialled in [net.vip, net.node_port] {
            node.comes_in(&tcp(net.outside, dialled).syn()).is_dropped();
        }
        assert_eq!(node.count_of(counter::PACKET_DROPPED), 2);
        // Pods are not bound by the external policy (spec D13), and keep their address.
        for dialled in [net.vip, net.node_port] {
            let mut client = net.client;
            client.set_port(dialled.port());
            let syn = tcp(client, dialled).syn();
            node.pod_sends(&syn).becomes(&syn.to(net.endpoint));
        }
    });
}

/// Spec D10, E12.
#[test]
fn an_open_connection_outlives_the_policy_that_now_drops() {
    in_both_families(|node, net| {
        let web = || tcp_service("web", net.family).cluster_ip(net.service);
        node.serve(web().endpoint(net.endpoint));
        node.pod_sends(&tcp(net.client, net.service).syn());
        node.pod_gets(&tcp(net.endpoint, net.client).syn_ack());
        node.serve(web().internal_local().endpoint(net.endpoint));
        let segment = tcp(net.client, net.service);
        node.pod_sends(&segment)
            .becomes(&segment.clone().to(net.endpoint));
    });
}

/// Spec D5.
#[test]
fn a_free_address_of_the_service_cidr_is_silent() {
    in_both_families(|node, net| {
        node.serve(tcp_service("web", net.family).cluster_ip(net.service));
        node.pod_sends(&tcp(net.client, net.free).syn())
            .is_dropped();
        node.pod_sends(&udp(net.client, net.free)).is_dropped();
        node.pod_sends(&echo(net.client.ip(), net.free.ip()))
            .is_dropped();
        node.comes_in(&tcp(net.outside, net.free).syn())
            .is_dropped();
        assert_eq!(node.count_of(counter::CIDR_DROPPED), 4);
    });
}

/// Spec D5.
#[test]
fn the_address_of_a_service_that_went_is_silent_again() {
    in_both_families(|node, net| {
        node.serve(udp_service("dns", net.family).cluster_ip(net.service));
        node.remove(udp_service("dns", net.family));
        node.pod_sends(&udp(net.client, net.service)).is_dropped();
        node.pod_sends(&tcp(net.client, net.service).syn())
            .is_dropped();
    });
}

/// Spec D6.
#[test]
fn an_undefined_port_of_a_vip_is_not_ours() {
    in_both_families(|node, net| {
        let web = tcp_service("web", net.family)
            .cluster_ip(net.service)
            .load_balancer(net.vip);
        node.serve(web.endpoint(net.endpoint));
        let mut undefined = net.vip;
        undefined.set_port(444);
        node.pod_sends(&tcp(net.client, undefined).syn())
            .is_untouched();
        node.comes_in(&tcp(net.outside, undefined).syn())
            .is_untouched();
        node.comes_in(&echo(net.outside.ip(), net.vip.ip()))
            .is_untouched();
    });
}

#[test]
fn a_packet_to_a_service_address_that_nobody_translated_does_not_leave_the_node() {
    in_both_families(|node, net| {
        let web = tcp_service("web", net.family)
            .cluster_ip(net.service)
            .load_balancer(net.vip);
        node.serve(web.endpoint(net.endpoint));
        for address in [net.service, net.free] {
            node.goes_out(&tcp(net.client, address)).is_dropped();
            node.goes_out(&udp(net.client, address)).is_dropped();
            node.goes_out(&echo(net.client.ip(), address.ip()))
                .is_dropped();
        }
        assert_eq!(node.count_of(counter::STRAY_DROPPED), 6);
        // The VIP may be somebody else's, too.
        node.goes_out(&tcp(net.client, net.vip)).is_untouched();
    });
}
