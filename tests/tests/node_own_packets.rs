//! Processes of a node with the socket hooks off: their packets are translated where they leave by the uplink.

use std::net::SocketAddr;

use anyhow::Result;
use lb_agent::snapshot::Family;
use lb_tests::address::{self, FAMILIES};
use lb_tests::agent::SocketLb;
use lb_tests::cluster::Cluster;
use lb_tests::in_both_layouts;
use lb_tests::link::Layout;
use lb_tests::manifests::{Condition, EndpointSlice, Service};
use lb_tests::peer::protocol::{Direction, FailureKind};
use lb_tests::scenario::{PORT, SOON, TARGET, Web};
use lb_tests::traffic::Peer;
use lb_tests::wait::eventually;

fn cluster(layout: Layout) -> Result<Cluster> {
    Cluster::builder()
        .layout(layout)
        .socket_lb(SocketLb::Off)
        .build()
}

fn service(number: u8) -> Service {
    let service = Service::cluster_ip(&format!("s{number}"), number)
        .tcp("tcp", PORT)
        .udp("udp", PORT);
    FAMILIES.into_iter().fold(service, |service, family| {
        service.load_balancer(address::load_balancer(family, number))
    })
}

/// The ClusterIP and the VIP.
fn dialled(number: u8, family: Family) -> [SocketAddr; 2] {
    [
        address::service(family, number),
        address::load_balancer(family, number),
    ]
    .map(|ip| SocketAddr::new(ip, PORT))
}

in_both_layouts! {
    /// A pod of the same node and one of another answer, and moved bytes are whole.
    /// Spec D1, E20. Upstream: "should function for node-Service: udp".
    fn pods_answer_processes_of_the_node(layout: Layout) {
        let cluster = cluster(layout)?;
        for (number, pod) in [(1, cluster.pod(1, 2)), (2, cluster.pod(2, 1))] {
            let _web = Web::start_as(&cluster, Service::cluster_ip(&format!("s{number}"), number)
                .load_balancer(address::load_balancer(Family::V4, number))
                .load_balancer(address::load_balancer(Family::V6, number)), &[pod])?;
            let client = cluster.node(1).peer()?;
            for family in FAMILIES {
                for to in dialled(number, family) {
                    eventually(&format!("{to} is served by {}", pod.name()), SOON, || Ok(client.ask_tcp(to).is_ok().then_some(())))?;
                    for _ in 0..20 {
                        assert_eq!(client.ask_tcp(to)?.server, pod.name());
                        assert_eq!(client.ask_udp(to)?.server, pod.name());
                    }
                    for direction in [Direction::Push, Direction::Pull] {
                        let moved = client.bulk(to, direction, 16)?;
                        assert!(moved.intact, "{moved:?}");
                    }
                }
            }
        }
        Ok(())
    }

    /// A host-network server of the same node.
    /// Spec B16. Upstream: "should respect internalTrafficPolicy=Local Pod and Node, to Pod (hostNetwork: true)".
    fn a_server_of_the_node_answers_its_processes(layout: Layout) {
        let cluster = cluster(layout)?;
        let node = cluster.node(1);
        let addresses = FAMILIES.map(|family| node.address(family));
        let server = Peer::start("server", &node.place()?, &addresses)?;
        server.serve(&[TARGET], &[TARGET])?;
        cluster.publish(&service(1))?;
        for family in FAMILIES {
            let slice = EndpointSlice::of("s1", family).tcp("tcp", TARGET).udp("udp", TARGET);
            cluster.publish(&slice.endpoint(node.address(family), 1, Condition::Ready))?;
        }
        let client = node.peer()?;
        for family in FAMILIES {
            for to in dialled(1, family) {
                eventually("the server answers", SOON, || Ok(client.ask_tcp(to).is_ok().then_some(())))?;
                assert_eq!(client.ask_udp(to)?.server, "server");
                let moved = client.bulk(to, Direction::Push, 16)?;
                assert!(moved.intact, "{moved:?}");
            }
        }
        Ok(())
    }

    /// Spec D2.
    fn processes_of_the_node_are_refused_where_nobody_serves(layout: Layout) {
        let cluster = cluster(layout)?;
        cluster.publish(&service(1))?;
        let client = cluster.node(1).peer()?;
        for family in FAMILIES {
            let refused = |to| client.ask_tcp(to).err().and_then(|error| error.failure().map(|failure| failure.kind));
            for to in dialled(1, family) {
                eventually("the service refuses", SOON, || {
                    Ok((refused(to) == Some(FailureKind::Refused)).then_some(()))
                })?;
                let socket = client.udp_connect(to)?;
                let error = socket.ask("hello").err().and_then(|error| error.failure().map(|failure| failure.kind));
                assert_eq!(error, Some(FailureKind::Refused));
            }
        }
        Ok(())
    }
}
