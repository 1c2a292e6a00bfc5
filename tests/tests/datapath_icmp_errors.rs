//! ICMP errors about translated packets quote the packet their receiver knows.

use std::net::SocketAddr;

use lb_ebpf::abi::counter;
use lb_tests::object::{
    Net, Node, Received, in_both_families, on_a_node, tcp_service, udp_service,
};
use lb_tests::packet::{
    Frame as _, Packet, echo, port_unreachable, redirect, tcp, time_exceeded, too_big, udp,
};

/// The request as the client sent it and as the endpoint was to get it, for TCP and UDP. The flows are open.
fn requests(node: &mut Node, net: &Net) -> Vec<(Packet, Packet)> {
    node.serve(
        tcp_service("web", net.family)
            .cluster_ip(net.service)
            .endpoint(net.endpoint),
    );
    node.serve(
        udp_service("web", net.family)
            .cluster_ip(net.service)
            .endpoint(net.endpoint),
    );
    let sent = [
        tcp(net.client, net.service).syn(),
        udp(net.client, net.service),
    ];
    let open = |request: Packet| {
        node.pod_sends(&request);
        (request.clone(), request.to(net.endpoint))
    };
    sent.map(open).into()
}

/// Every kind of error that a router or the receiver sends.
fn errors(net: &Net) -> Vec<fn(std::net::IpAddr, &Packet) -> Packet> {
    let mut errors: Vec<fn(std::net::IpAddr, &Packet) -> Packet> =
        vec![port_unreachable, time_exceeded, |from, about| {
            too_big(from, 1280, about)
        }];
    // Parameter problem.
    if net.is_v4() {
        errors.push(|from, about| {
            lb_tests::packet::icmp(from, about.source, 12, 0, [20, 0, 0, 0], about.quoted())
        });
    } else {
        errors.push(|from, about| {
            lb_tests::packet::icmp(from, about.source, 4, 0, [0, 0, 0, 40], about.quoted())
        });
    }
    errors
}

/// Spec E16.
#[test]
fn a_routers_error_about_a_request_is_about_the_service() {
    in_both_families(|node, net| {
        for (sent, arrived) in requests(node, net) {
            for error in errors(net) {
                // Receivers cannot check a checksum in a quote, so that stays.
                let known = sent.clone().with_checksum_of(&arrived);
                node.pod_gets(&error(net.router, &arrived))
                    .becomes(&error(net.router, &known));
            }
        }
        assert_eq!(node.count_of(counter::ICMP_TRANSLATED), 8);
    });
}

/// Spec E16.
#[test]
fn the_endpoints_own_error_comes_from_the_service() {
    in_both_families(|node, net| {
        for (sent, arrived) in requests(node, net) {
            let known = sent.with_checksum_of(&arrived);
            let error = port_unreachable(net.endpoint.ip(), &arrived);
            node.pod_gets(&error)
                .becomes(&port_unreachable(net.service.ip(), &known));
        }
    });
}

#[test]
fn the_clients_error_about_an_answer_goes_to_the_endpoint_that_sent_it() {
    in_both_families(|node, net| {
        requests(node, net);
        for answer in [tcp(net.endpoint, net.client), udp(net.endpoint, net.client)] {
            let arrived = answer.clone().from(net.service);
            for error in errors(net) {
                let known = answer.clone().with_checksum_of(&arrived);
                let sent = error(net.client.ip(), &arrived);
                node.pod_sends(&sent)
                    .becomes(&error(net.client.ip(), &known));
            }
        }
    });
}

#[test]
fn an_error_summed_up_by_the_device_stays_summed_up() {
    in_both_families(|node, net| {
        let requests = requests(node, net);
        node.receives_frames(Received::Summed);
        for (sent, arrived) in requests {
            let known = sent.clone().with_checksum_of(&arrived);
            let router = too_big(net.router, 1280, &arrived);
            node.pod_gets(&router)
                .becomes(&too_big(net.router, 1280, &known));
            let error = port_unreachable(net.endpoint.ip(), &arrived);
            node.pod_gets(&error)
                .becomes(&port_unreachable(net.service.ip(), &known));
        }
        let answer = udp(net.endpoint, net.client);
        let arrived = answer.clone().from(net.service);
        let known = answer.with_checksum_of(&arrived);
        node.pod_sends(&port_unreachable(net.client.ip(), &arrived))
            .becomes(&port_unreachable(net.client.ip(), &known));
    });
}

#[test]
fn a_quote_of_the_header_and_eight_bytes_is_enough() {
    in_both_families(|node, net| {
        let length = if net.is_v4() { 28 } else { 48 };
        for (sent, arrived) in requests(node, net) {
            let known = sent.with_checksum_of(&arrived);
            let error = time_exceeded(net.router, &arrived).quoting_only(length);
            node.pod_gets(&error)
                .becomes(&time_exceeded(net.router, &known).quoting_only(length));
        }
    });
}

#[test]
fn a_quote_cut_anywhere_is_translated_whole_or_not_at_all() {
    in_both_families(|node, net| {
        for (sent, arrived) in requests(node, net) {
            let known = sent.clone().with_checksum_of(&arrived);
            for length in 0..=arrived.quoted().len() {
                let error = time_exceeded(net.router, &arrived).quoting_only(length);
                let outcome = node.pod_gets(&error);
                let translated = time_exceeded(net.router, &known).quoting_only(length);
                let fine = outcome.goes_on_untouched()
                    || outcome.ends()
                    || outcome.bytes == translated.frame();
                assert!(fine, "quote of {length} bytes: {}", outcome.story());
            }
        }
    });
}

#[test]
fn a_quoted_packet_with_further_headers_is_found() {
    in_both_families(|node, net| {
        requests(node, net);
        let with = |packet: Packet| {
            if net.is_v4() {
                packet.options(&[1; 8])
            } else {
                packet.hop_by_hop()
            }
        };
        let sent = with(udp(net.client, net.service));
        let arrived = sent.clone().to(net.endpoint);
        let known = sent.with_checksum_of(&arrived);
        node.pod_gets(&too_big(net.router, 1400, &arrived))
            .becomes(&too_big(net.router, 1400, &known));
    });
}

#[test]
fn a_redirect_about_a_translated_packet_is_dropped() {
    in_both_families(|node, net| {
        for (_, arrived) in requests(node, net) {
            node.pod_gets(&redirect(net.router, net.endpoint.ip(), &arrived))
                .is_dropped();
        }
        assert_eq!(node.count_of(counter::REDIRECT_DROPPED), 2);
        let stranger = udp(net.client, net.stranger);
        node.pod_gets(&redirect(net.router, net.stranger.ip(), &stranger))
            .is_untouched();
    });
}

#[test]
fn an_error_about_a_strangers_packet_is_untouched() {
    in_both_families(|node, net| {
        requests(node, net);
        for error in errors(net) {
            node.pod_gets(&error(net.router, &udp(net.client, net.stranger)))
                .is_untouched();
            node.pod_gets(&error(
                net.router,
                &echo(net.client.ip(), net.endpoint.ip()),
            ))
            .is_untouched();
            node.pod_sends(&error(net.client.ip(), &udp(net.stranger, net.client)))
                .is_untouched();
        }
        assert_eq!(node.count_of(counter::ICMP_TRANSLATED), 0);
    });
}

#[test]
fn an_error_about_a_packet_that_is_on_its_way_to_the_service_still_is_not_ours() {
    // It was made before the translation, quotes what the client sent, and needs nothing.
    in_both_families(|node, net| {
        for (sent, _) in requests(node, net) {
            node.pod_gets(&time_exceeded(net.router, &sent))
                .is_untouched();
        }
    });
}

#[test]
fn an_error_that_goes_elsewhere_than_to_who_sent_the_packet_is_about_nothing() {
    in_both_families(|node, net| {
        requests(node, net);
        node.serve(
            udp_service("other", net.family)
                .cluster_ip(net.other_service)
                .external_ip(net.vip)
                .endpoint(net.endpoint),
        );
        for answer in [tcp(net.service, net.client), udp(net.service, net.client)] {
            for error in errors(net) {
                let sent = error(net.client.ip(), &answer);
                node.pod_sends(&sent.clone().to_address(net.vip.ip()))
                    .is_untouched();
                node.pod_sends(&sent.to_address(net.other_service.ip()))
                    .is_dropped();
            }
        }
        assert_eq!(node.count_of(counter::ICMP_TRANSLATED), 0);
    });
}

#[test]
fn an_error_about_a_later_fragment_is_left_alone() {
    on_a_node(|node| {
        let net = Net::v4();
        requests(node, &net);
        let pieces = udp(net.client, net.endpoint)
            .carrying(&[8; 100])
            .fragments(56);
        node.pod_gets(&time_exceeded(net.router, &pieces[1]))
            .is_untouched();
    });
}

/// Spec E16: the stack has met no packet of a flow on the fast way, and may call errors about them invalid.
#[test]
fn errors_about_flows_of_the_fast_way_go_straight_on() {
    in_both_families(|node, net| {
        for service in [
            tcp_service("web", net.family),
            udp_service("web", net.family),
        ] {
            node.serve(service.load_balancer(net.vip).endpoint(net.endpoint));
        }
        for request in [tcp(net.outside, net.vip).syn(), udp(net.outside, net.vip)] {
            let masked = SocketAddr::new(net.node, node.comes_in(&request).ports().0);
            let arrived = request.clone().from(masked).to(net.endpoint);
            let answer = arrived.clone().from(net.endpoint).to(masked);
            let returned = answer.clone().from(net.vip).to(net.outside);
            for error in errors(net) {
                // From a router, and from the endpoint or client itself, who is the service or this node to the other.
                let known = request.clone().with_checksum_of(&arrived);
                for (from, seen) in [(net.router, net.router), (net.endpoint.ip(), net.vip.ip())] {
                    node.comes_in(&error(from, &arrived))
                        .is_sent_out_as(&error(seen, &known).ttl(63));
                }
                let known = answer.clone().with_checksum_of(&returned);
                for from in [net.router, net.outside.ip()] {
                    node.comes_in(&error(from, &returned))
                        .is_sent_out_as(&error(net.node, &known).ttl(63));
                }
            }
        }
        assert_eq!(node.count_of(counter::ICMP_TRANSLATED), 32);
    });
}

/// As all of the fast way's packets.
#[test]
fn errors_at_the_end_of_their_life_are_the_stacks() {
    in_both_families(|node, net| {
        let web = udp_service("web", net.family).load_balancer(net.vip);
        node.serve(web.endpoint(net.endpoint));
        let request = udp(net.outside, net.vip);
        let masked = SocketAddr::new(net.node, node.comes_in(&request).ports().0);
        let arrived = request.clone().from(masked).to(net.endpoint);
        // Egress does the rest.
        let client = SocketAddr::new(net.outside.ip(), masked.port());
        let known = request
            .from(client)
            .to(net.endpoint)
            .with_checksum_of(&arrived);
        node.comes_in(&time_exceeded(net.router, &arrived).ttl(1))
            .becomes(&time_exceeded(net.router, &known).ttl(1));
    });
}
