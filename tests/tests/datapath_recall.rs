//! Of a connection that stands, most answers are translated by their entry alone, and none that says more than data.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use lb_agent::sys::clock;
use lb_ebpf::abi::counter;
use lb_ebpf::abi::flow::{CLIENT_CLOSED, ENDPOINT_CLOSED, ESTABLISHED, NEW, RESET, RESET_DENIED};
use lb_ebpf::abi::settings::SNAT_LOCAL;
use lb_tests::object::{Net, Node, in_both_families, tcp_service, udp_service};
use lb_tests::packet::{Frame as _, tcp, udp};

/// A mark lasts until the next second that eight divides, and no test is to pass over that. The programs' clock is a tick
/// behind this one.
fn early_in_eight_seconds() {
    while !(1..=4).contains(&(clock::seconds() % 8)) {
        sleep(Duration::from_millis(100));
    }
}

fn serve(node: &mut Node, net: &Net) {
    early_in_eight_seconds();
    let web = tcp_service("web", net.family).cluster_ip(net.service);
    node.serve(web.endpoint(net.endpoint));
}

/// Opens the connection of a pod, up to its first answer.
fn connect(node: &Node, net: &Net) {
    node.pod_sends(&tcp(net.client, net.service).syn());
    let accepts = tcp(net.endpoint, net.client).syn_ack();
    node.pod_gets(&accepts)
        .becomes(&accepts.clone().from(net.service));
    node.pod_sends(&tcp(net.client, net.service));
    assert_eq!(node.marked(), 0, "before there is a connection");
    answers(node, net);
    assert_eq!(node.marked(), 1);
}

fn answers(node: &Node, net: &Net) {
    let data = tcp(net.endpoint, net.client).carrying(b"data");
    node.pod_gets(&data)
        .becomes(&data.clone().from(net.service));
}

#[test]
fn answers_of_a_connection_do_without_its_record_for_a_moment() {
    in_both_families(|node, net| {
        serve(node, net);
        connect(node, net);
        node.lose_records();
        answers(node, net);
        for last in [
            tcp(net.endpoint, net.client).rst(),
            tcp(net.endpoint, net.client).fin(),
            tcp(net.endpoint, net.client).syn_ack(),
        ] {
            node.pod_gets(&last).is_untouched();
        }
        node.let_marks_lapse();
        let late = tcp(net.endpoint, net.client).carrying(b"late");
        node.pod_gets(&late).is_untouched();
    });
}

#[test]
fn answers_of_a_masqueraded_connection_do_so_in_every_program() {
    in_both_families(|node, net| {
        early_in_eight_seconds();
        let web = tcp_service("web", net.family).node_port(net.node_port.port());
        node.serve(web.endpoint(net.endpoint));
        let port = node
            .comes_in(&tcp(net.outside, net.node_port).syn())
            .ports()
            .0;
        let masked = SocketAddr::new(net.node, port);
        node.comes_in(&tcp(net.endpoint, masked).syn_ack());
        node.comes_in(&tcp(net.outside, net.node_port));
        let data = tcp(net.endpoint, masked).carrying(b"data");
        let whole = node.comes_in(&data);
        assert_eq!(node.marked(), 1);
        node.lose_records();
        assert_eq!(node.comes_in(&data).bytes, whole.bytes);
        node.let_marks_lapse();
        assert_ne!(node.comes_in(&data).bytes, whole.bytes);
    });
}

#[test]
fn a_datagram_does_so_for_the_rest_of_a_second() {
    in_both_families(|node, net| {
        let names = udp_service("names", net.family).cluster_ip(net.service);
        node.serve(names.endpoint(net.endpoint));
        let (request, answer) = (udp(net.client, net.service), udp(net.endpoint, net.client));
        let back = answer.clone().from(net.service);
        for _ in 0..2 {
            node.pod_sends(&request);
            node.pod_gets(&answer).becomes(&back);
        }
        assert_eq!(node.marked(), 1);
        // The second may be over.
        let recalled = (0..20).any(|_| {
            for _ in 0..2 {
                node.pod_sends(&request);
                node.pod_gets(&answer);
            }
            node.lose_records();
            node.pod_gets(&answer).bytes == back.frame()
        });
        assert!(recalled);
        sleep(Duration::from_millis(1100));
        node.pod_gets(&answer).is_untouched();
    });
}

/// It might mean that the connection stands, or the peer of another one by now.
#[test]
fn a_reset_makes_every_answer_count_again() {
    in_both_families(|node, net| {
        for by_client in [true, false] {
            serve(node, net);
            connect(node, net);
            if by_client {
                node.pod_sends(&tcp(net.client, net.service).rst());
            } else {
                node.pod_gets(&tcp(net.endpoint, net.client).rst());
            }
            assert_eq!((node.flows()[0].state, node.marked()), (RESET, 0));
            node.let_flows_rest(3);
            let rested = node.flows()[0].last_seen;
            answers(node, net);
            assert_eq!((node.flows()[0].state, node.marked()), (RESET, 0));
            assert!(node.flows()[0].last_seen > rested);
        }
    });
}

#[test]
fn a_flow_that_goes_takes_its_marked_entry_along() {
    in_both_families(|node, net| {
        let names = || udp_service("names", net.family).cluster_ip(net.service);
        node.serve(names().endpoint(net.endpoint));
        let (request, answer) = (udp(net.client, net.service), udp(net.endpoint, net.client));
        for _ in 0..2 {
            node.pod_sends(&request);
            node.pod_gets(&answer);
        }
        assert_eq!(node.marked(), 1);
        node.serve(names().endpoint(net.other_endpoint));
        node.pod_sends(&request)
            .becomes(&request.clone().to(net.other_endpoint));
        assert_eq!(node.halves(), (1, 1));
        node.pod_gets(&answer).is_untouched();
    });
}

#[test]
fn the_end_of_a_connection_is_noted_in_its_record() {
    in_both_families(|node, net| {
        serve(node, net);
        connect(node, net);
        node.pod_gets(&tcp(net.endpoint, net.client).fin());
        assert_eq!(node.flows()[0].state, ENDPOINT_CLOSED);
        node.pod_gets(&tcp(net.endpoint, net.client).rst());
        assert_eq!(node.flows()[0].state, RESET);
    });
}

#[test]
fn whether_a_reset_that_the_client_denied_counted_the_next_answer_says() {
    in_both_families(|node, net| {
        serve(node, net);
        connect(node, net);
        node.pod_sends(&tcp(net.client, net.service).rst());
        answers(node, net);
        assert_eq!((node.flows()[0].state, node.marked()), (RESET, 0));
        node.pod_sends(&tcp(net.client, net.service));
        assert_eq!((node.flows()[0].state, node.marked()), (RESET_DENIED, 0));
        answers(node, net);
        assert_eq!((node.flows()[0].state, node.marked()), (ESTABLISHED, 1));
    });
}

#[test]
fn a_new_connection_has_nothing_of_its_predecessor_s() {
    in_both_families(|node, net| {
        serve(node, net);
        connect(node, net);
        node.pod_sends(&tcp(net.client, net.service).rst());
        let syn = tcp(net.client, net.service).syn();
        node.pod_sends(&syn).becomes(&syn.clone().to(net.endpoint));
        assert_eq!((node.flows()[0].state, node.marked()), (NEW, 0));
        // The endpoint is in the middle of another: the client's own.
        let direct = tcp(net.endpoint, net.client).carrying(b"direct");
        node.pod_gets(&direct).is_untouched();
        assert_eq!(node.count_of(counter::FLOW_STEPPED_ASIDE), 1);
    });
}

#[test]
fn a_new_connection_after_one_that_the_client_closed_has_nothing_of_it_either() {
    in_both_families(|node, net| {
        serve(node, net);
        connect(node, net);
        node.pod_sends(&tcp(net.client, net.service).fin());
        assert_eq!((node.flows()[0].state, node.marked()), (CLIENT_CLOSED, 1));
        let syn = tcp(net.client, net.service).syn();
        node.pod_sends(&syn).becomes(&syn.clone().to(net.endpoint));
        assert_eq!((node.flows()[0].state, node.marked()), (NEW, 0));
    });
}

#[test]
fn a_flow_with_a_short_timeout_is_never_marked() {
    in_both_families(|node, net| {
        serve(node, net);
        node.set(|settings| settings.timeout_tcp = 511);
        node.pod_sends(&tcp(net.client, net.service).syn());
        node.pod_gets(&tcp(net.endpoint, net.client).syn_ack());
        node.pod_sends(&tcp(net.client, net.service));
        answers(node, net);
        assert_eq!((node.flows()[0].state, node.marked()), (ESTABLISHED, 0));
        node.set(|settings| settings.timeout_tcp = 512);
        answers(node, net);
        assert_eq!(node.marked(), 1);
    });
}

/// What becomes of them depends on more than their key.
#[test]
fn answers_to_this_node_are_always_looked_up() {
    in_both_families(|node, net| {
        serve(node, net);
        let own = SocketAddr::new(net.node, 40_000);
        let port = node.sends(&tcp(own, net.service).syn()).ports().0;
        let masked = SocketAddr::new(net.node, port);
        node.comes_in(&tcp(net.endpoint, masked).syn_ack());
        node.sends(&tcp(own, net.service));
        let data = tcp(net.endpoint, masked).carrying(b"data");
        let first = node.comes_in(&data);
        assert_eq!(node.comes_in(&data).bytes, first.bytes);
        assert_eq!((node.flows()[0].state, node.marked()), (ESTABLISHED, 0));
    });
}

#[test]
fn answers_that_a_masqueraded_client_gets_from_this_node_are_always_looked_up() {
    in_both_families(|node, net| {
        node.set(|settings| settings.flags |= SNAT_LOCAL);
        let web = tcp_service("web", net.family).node_port(net.node_port.port());
        node.serve(web.local_endpoint(net.local_endpoint));
        let port = node
            .comes_in(&tcp(net.outside, net.node_port).syn())
            .ports()
            .0;
        let masked = SocketAddr::new(net.node, port);
        node.pod_sends(&tcp(net.local_endpoint, masked).syn_ack());
        node.comes_in(&tcp(net.outside, net.node_port));
        let data = tcp(net.local_endpoint, masked).carrying(b"data");
        let first = node.pod_sends(&data);
        assert_eq!(node.pod_sends(&data).bytes, first.bytes);
        assert_eq!((node.flows()[0].state, node.marked()), (ESTABLISHED, 0));
    });
}

#[test]
fn answers_to_oneself_are_always_looked_up() {
    in_both_families(|node, net| {
        let web = tcp_service("web", net.family).cluster_ip(net.service);
        node.serve(web.local_endpoint(net.client));
        let mut own = net.client;
        own.set_port(4000);
        node.pod_sends(&tcp(own, net.service).syn());
        node.pod_sends(&tcp(net.client, SocketAddr::new(net.service.ip(), 4000)).syn_ack());
        node.pod_sends(&tcp(own, net.service));
        node.pod_sends(&tcp(net.client, SocketAddr::new(net.service.ip(), 4000)));
        assert_eq!((node.flows().len(), node.marked()), (1, 0));
        assert_eq!(node.flows()[0].state, ESTABLISHED);
    });
}
