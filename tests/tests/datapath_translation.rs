//! A pod's packets to a service reach its endpoint, and the answers come from the service.

use lb_ebpf::abi::flow::{ANSWERED, ESTABLISHED, NEW, POD};
use lb_tests::object::{
    Net, Node, Received, in_both_families, on_a_node, tcp_service, udp_service,
};
use lb_tests::packet::{ACK, Checksum, Frame as _, PSH, Packet, tcp, udp};

fn serve_both(node: &mut Node, net: &Net) {
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
}

/// A conversation's packets of a client, each with what the endpoint gets.
fn requests(net: &Net) -> Vec<(Packet, Packet)> {
    let segment = tcp(net.client, net.service);
    let requests = [
        segment.clone().syn(),
        segment.clone(),
        segment
            .clone()
            .flags(PSH | ACK)
            .carrying(b"GET / HTTP/1.1\r\n\r\n"),
        segment.clone().carrying(b"odd"),
        segment.fin(),
        udp(net.client, net.service),
        udp(net.client, net.service).carrying(b""),
        udp(net.client, net.service).carrying(&[0xff; 1400]),
    ];
    requests
        .into_iter()
        .map(|request| (request.clone(), request.to(net.endpoint)))
        .collect()
}

/// Answers of the endpoint, each with what the client gets.
fn answers(net: &Net) -> Vec<(Packet, Packet)> {
    let segment = tcp(net.endpoint, net.client);
    let answers = [
        segment.clone().syn_ack(),
        segment.clone().carrying(&[7; 1000]),
        segment.rst(),
        udp(net.endpoint, net.client),
    ];
    answers
        .into_iter()
        .map(|answer| (answer.clone(), answer.from(net.service)))
        .collect()
}

#[test]
fn requests_reach_the_endpoint_and_answers_come_from_the_service() {
    in_both_families(|node, net| {
        serve_both(node, net);
        for (request, arrives) in requests(net) {
            node.pod_sends(&request).becomes(&arrives);
        }
        for (answer, arrives) in answers(net) {
            node.pod_gets(&answer).becomes(&arrives);
        }
    });
}

#[test]
fn a_packet_summed_up_by_the_device_stays_summed_up() {
    in_both_families(|node, net| {
        serve_both(node, net);
        node.receives_frames(Received::Summed);
        for (request, arrives) in requests(net) {
            node.pod_sends(&request).becomes(&arrives);
        }
        for (answer, arrives) in answers(net) {
            node.pod_gets(&answer).becomes(&arrives);
        }
    });
}

#[test]
fn a_flow_notes_who_spoke() {
    in_both_families(|node, net| {
        serve_both(node, net);
        node.pod_sends(&tcp(net.client, net.service).syn());
        let flow = node.flows()[0];
        assert_eq!((flow.client, flow.dialled), (net.client, net.service));
        assert_eq!(
            (flow.new_source, flow.new_destination),
            (net.client, net.endpoint)
        );
        assert_eq!((flow.scope, flow.state), (POD, NEW));
        node.pod_gets(&tcp(net.endpoint, net.client).syn_ack());
        assert_eq!(node.flows()[0].state, ANSWERED);
        node.pod_sends(&tcp(net.client, net.service));
        assert_eq!(node.flows()[0].state, ESTABLISHED);
    });
}

#[test]
fn a_datagram_without_checksum_stays_without_one() {
    on_a_node(|node| {
        let net = Net::v4();
        serve_both(node, &net);
        let request = udp(net.client, net.service).checksum(Checksum::Zero);
        node.pod_sends(&request).becomes(&request.to(net.endpoint));
        let answer = udp(net.endpoint, net.client).checksum(Checksum::Zero);
        node.pod_gets(&answer).becomes(&answer.from(net.service));
    });
}

#[test]
fn a_checksum_that_comes_out_as_zero_is_written_as_its_twin() {
    // RFC 768: an all-zero checksum field means "none", so zero is sent as 0xffff. Some data have it.
    in_both_families(|node, net| {
        serve_both(node, net);
        let carrying = |number: u16| udp(net.client, net.service).carrying(&number.to_be_bytes());
        let at = carrying(0).frame().len() - 4;
        let twin = (0..=u16::MAX)
            .find(|number| carrying(*number).to(net.endpoint).frame()[at..at + 2] == [0xff, 0xff]);
        let request = carrying(twin.expect("some data have it"));
        node.pod_sends(&request).becomes(&request.to(net.endpoint));
    });
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    in_both_families(|node, net| {
        serve_both(node, net);
        for (request, at) in [
            (tcp(net.client, net.service).syn(), 16),
            (udp(net.client, net.service), 6),
        ] {
            let outcome = node.pod_sends(&request.clone().checksum(Checksum::Wrong(0x0550)));
            let start = if net.is_v4() { 34 } else { 54 } + at;
            let field = u16::from_be_bytes([outcome.bytes[start], outcome.bytes[start + 1]]);
            let right = request.to(net.endpoint);
            outcome.becomes(&right.clone().checksum(Checksum::Fixed(field)));
            assert_ne!(outcome.bytes, right.frame());
        }
    });
}

#[test]
fn a_service_and_its_endpoint_on_one_port_change_the_address_alone() {
    in_both_families(|node, net| {
        let mut endpoint = net.endpoint;
        endpoint.set_port(net.service.port());
        node.serve(
            tcp_service("web", net.family)
                .cluster_ip(net.service)
                .endpoint(endpoint),
        );
        let syn = tcp(net.client, net.service).syn();
        node.pod_sends(&syn).becomes(&syn.to(endpoint));
        let answer = tcp(endpoint, net.client).syn_ack();
        node.pod_gets(&answer).becomes(&answer.from(net.service));
    });
}

#[test]
fn a_known_flow_is_looked_up_before_the_service_that_lost_its_endpoints() {
    in_both_families(|node, net| {
        serve_both(node, net);
        let segment = tcp(net.client, net.service);
        node.pod_sends(&segment.clone().syn());
        node.pod_gets(&tcp(net.endpoint, net.client).syn_ack());
        node.serve(tcp_service("web", net.family).cluster_ip(net.service));
        node.pod_sends(&segment)
            .becomes(&segment.clone().to(net.endpoint));
        node.remove(tcp_service("web", net.family));
        node.pod_sends(&segment)
            .becomes(&segment.clone().to(net.endpoint));
        let answer = tcp(net.endpoint, net.client);
        node.pod_gets(&answer).becomes(&answer.from(net.service));
    });
}
