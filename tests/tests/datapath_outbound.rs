//! Datagrams that leave from a port that is a NodePort, too: of the node's own sockets, or of a pod that a CNI masquerades.
//! What comes back is no client's.

use lb_tests::object::{Net, Node, in_both_families, tcp_service, udp_service};
use lb_tests::packet::{tcp, udp};

fn serve(node: &mut Node, net: &Net) {
    for service in [
        tcp_service("web", net.family),
        udp_service("web", net.family),
    ] {
        node.serve(
            service
                .node_port(net.node_port.port())
                .endpoint(net.endpoint),
        );
    }
}

/// Spec §7, item 10.
#[test]
fn an_answer_to_a_question_from_a_node_ports_port_is_its_askers() {
    in_both_families(|node, net| {
        serve(node, net);
        let question = udp(net.node_port, net.stranger);
        node.goes_out(&question).is_untouched();
        node.comes_in(&udp(net.stranger, net.node_port))
            .is_untouched();
        node.sends(&question).is_untouched();
        node.comes_in(&udp(net.stranger, net.node_port))
            .is_untouched();
        assert!(node.flows().is_empty());
    });
}

#[test]
fn other_clients_of_the_node_port_are_served_meanwhile() {
    in_both_families(|node, net| {
        serve(node, net);
        node.goes_out(&udp(net.node_port, net.stranger));
        node.comes_in(&udp(net.outside, net.node_port));
        node.comes_in(&tcp(net.stranger, net.node_port).syn());
        assert_eq!(node.flows().len(), 2);
    });
}

#[test]
fn nobody_remembers_what_leaves_from_other_ports() {
    in_both_families(|node, net| {
        node.goes_out(&udp(net.node_port, net.stranger))
            .is_untouched();
        serve(node, net);
        node.comes_in(&udp(net.stranger, net.node_port));
        assert_eq!(node.flows().len(), 1);
    });
}

#[test]
fn a_conversation_ends_as_a_flow_would() {
    in_both_families(|node, net| {
        serve(node, net);
        node.set(|settings| settings.timeout_udp = 20);
        node.goes_out(&udp(net.node_port, net.stranger));
        node.let_flows_rest(21);
        node.comes_in(&udp(net.stranger, net.node_port));
        assert_eq!(node.flows().len(), 1);
    });
}

/// They leave by a device on top of another, such as a VLAN's: what is translated on the one passes the other.
#[test]
fn answers_to_clients_are_no_conversation() {
    in_both_families(|node, net| {
        serve(node, net);
        let request = udp(net.outside, net.node_port);
        node.comes_in(&request);
        node.goes_out(&udp(net.node_port, net.outside))
            .is_untouched();
        node.let_flows_rest(31);
        node.comes_in(&request);
        let flows = node.flows();
        assert!(flows.len() == 1 && !node.comes_in(&request).goes_on_untouched());
    });
}

/// A host process asks a pod of its node, as the socket hooks make it do where a Service's endpoint is here.
#[test]
fn a_pods_answer_to_its_node_is_the_askers_too() {
    in_both_families(|node, net| {
        serve(node, net);
        node.pod_gets(&udp(net.node_port, net.client))
            .is_untouched();
        node.pod_sends(&udp(net.client, net.node_port))
            .is_untouched();
        assert!(node.flows().is_empty());
        let mut other = net.client;
        other.set_port(40_001);
        node.pod_sends(&udp(other, net.node_port));
        assert_eq!(node.flows().len(), 1);
    });
}
