//! Processes of a node that dial the node's own addresses: NodePorts, and addresses of services that are bound on the
//! node. Such packets never leave the node; where no socket hook translates, they are met on the loopback device.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use lb_agent::snapshot::Family;
use lb_tests::address::{self, FAMILIES};
use lb_tests::cluster::Cluster;
use lb_tests::in_every_case;
use lb_tests::link::Layout;
use lb_tests::manifests::{Condition, EndpointSlice, Service};
use lb_tests::peer::protocol::Direction;
use lb_tests::scenario::{PORT, SOON, TARGET, Web};
use lb_tests::table::{Outcome, Table};
use lb_tests::traffic::Peer;

const NODE_PORT: u16 = 30_001;

fn service(number: u8) -> Service {
    let service =
        Service::cluster_ip(&format!("s{number}"), number).node_port(NODE_PORT + u16::from(number));
    FAMILIES.into_iter().fold(service, |service, family| {
        service
            .load_balancer(address::load_balancer(family, number))
            .external_ip(address::external(family, number))
    })
}

fn node_port(cluster: &Cluster, family: Family, number: u8) -> SocketAddr {
    SocketAddr::new(
        cluster.node(1).address(family),
        NODE_PORT + u16::from(number),
    )
}

fn localhost(family: Family, number: u8) -> SocketAddr {
    let address: IpAddr = match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(address, NODE_PORT + u16::from(number))
}

/// The address node 1 has towards its own pods.
fn inner(cluster: &Cluster, layout: Layout, family: Family) -> IpAddr {
    match layout {
        Layout::Bridge => address::pod_gateway(family, 1),
        Layout::PointToPoint => cluster.node(1).address(family),
    }
}

/// A server of node 1 itself, as the only endpoint of a service.
fn host_server(cluster: &Cluster, service: &Service) -> Result<Peer> {
    let node = cluster.node(1);
    let server = Peer::start(
        "server",
        &node.place()?,
        &FAMILIES.map(|family| node.address(family)),
    )?;
    server.serve(&[TARGET], &[TARGET])?;
    cluster.publish(&service.clone().tcp("tcp", PORT).udp("udp", PORT))?;
    for family in FAMILIES {
        let slice = EndpointSlice::of(service.name(), family)
            .tcp("tcp", TARGET)
            .udp("udp", TARGET);
        cluster.publish(&slice.endpoint(node.address(family), 1, Condition::Ready))?;
    }
    Ok(server)
}

in_every_case! {
    /// The rows "node → NodePort" of §5.4 and §5.9: endpoints on this node and on another, the external policy Local
    /// (D14) and the internal one, and §5.1.
    /// Spec D14, D11. Upstream: "should function for node-Service: http", "should support
    /// basic nodePort: udp functionality".
    fn a_process_of_the_node_at_its_own_node_port(case: Case) {
        let cluster = case.cluster().build()?;
        let pods = [cluster.pod(1, 2), cluster.pod(2, 1)];
        let (s1, s2, s3) = (service(1), service(2).external_local(), service(3).internal_local());
        let _webs = (
            Web::start_as(&cluster, s1, &pods)?,
            Web::beside(&cluster, s2, &pods)?,
            Web::beside(&cluster, s3, &pods)?,
            Web::beside(&cluster, service(4).external_local(), &[pods[1]])?,
            Web::beside(&cluster, service(5), &[])?,
        );
        let client = cluster.node(1).peer()?;
        let mut table = Table::new();
        for family in FAMILIES {
            let near = (pods[0].name(), inner(&cluster, case.layout, family));
            let far = (pods[1].name(), cluster.node(1).address(family));
            let both = Outcome::answered([near, far.clone()]);
            for number in 1..=3 {
                table.soon(format!("node → its NodePort of S{number}"), &client, node_port(&cluster, family, number), &both);
            }
            table.soon("node → its NodePort, policy Local, endpoint elsewhere", &client,
                node_port(&cluster, family, 4), &Outcome::answered([far]));
            table.soon("node → its NodePort without endpoints", &client, node_port(&cluster, family, 5), &Outcome::Refused);
            table.row("node → its own port that is no NodePort", &client,
                SocketAddr::new(cluster.node(1).address(family), 30_900), &Outcome::Refused);
        }
        table.finish()?;
        for family in FAMILIES {
            for direction in [Direction::Push, Direction::Pull] {
                let moved = client.bulk(node_port(&cluster, family, 1), direction, 32)?;
                assert!(moved.intact, "{moved:?}");
            }
        }
        Ok(())
    }

    /// An endpoint on the node's own network, behind the node's own NodePort.
    /// Spec B16, D20.
    fn a_server_of_the_node_behind_its_node_port(case: Case) {
        let cluster = case.cluster().agent_arguments(&["--nodeport-addresses", "primary,localhost"]).build()?;
        let server = host_server(&cluster, &service(1))?;
        let client = cluster.node(1).peer()?;
        let mut table = Table::new();
        for family in FAMILIES {
            let node = cluster.node(1).address(family);
            let seen = |address| Outcome::answered([(server.name(), address)]);
            table.soon("node → its NodePort", &client, node_port(&cluster, family, 1), &seen(node));
            let local = localhost(family, 1);
            let from = if case.by_sockets() { node } else { local.ip() };
            table.row("node → localhost:nodePort", &client, local, &seen(from));
        }
        table.finish()?;
        for family in FAMILIES {
            // One port, both ways to the server at once: the kernel keeps the connections apart.
            let direct = client.connect_from(40_123, SocketAddr::new(cluster.node(1).address(family), TARGET), SOON)?;
            let served = client.connect_from(40_123, node_port(&cluster, family, 1), SOON);
            if case.by_sockets() {
                assert!(served.is_err(), "the socket hooks make both connections the same");
            } else {
                assert_eq!(served?.ask("hello")?.server, server.name());
            }
            assert_eq!(direct.ask("hello")?.server, server.name());
            let moved = client.bulk(node_port(&cluster, family, 1), Direction::Pull, 32)?;
            assert!(moved.intact, "{moved:?}");
        }
        Ok(())
    }

    /// G5: addresses of services bound on the node, as keepalived does.
    /// Spec G5, D14.
    fn a_process_of_the_node_at_addresses_bound_there(case: Case) {
        let cluster = case.cluster().build()?;
        let node = cluster.node(1).namespace();
        let mut lines = Vec::new();
        // Addresses that the kernel does not choose as sources of its own.
        for family in FAMILIES {
            let length = if family == Family::V4 { 32 } else { 128 };
            for address in [
                address::load_balancer(family, 1),
                address::load_balancer(family, 2),
                address::load_balancer(family, 3),
                address::external(family, 1),
            ] {
                lines.push(match family {
                    Family::V4 => format!("address add {address}/{length} dev eth0"),
                    Family::V6 => format!("address add {address}/{length} dev eth0 nodad preferred_lft 0"),
                });
            }
        }
        node.ip(&lines)?;
        let pods = [cluster.pod(1, 2), cluster.pod(2, 1)];
        // H3: a range that admits the node admits the VIP as a source as well, which it is for packets.
        let admitted = ["172.31.0.0/24", "fd31::/64"].iter().fold(service(2), |service, range| service.source_range(range));
        let shut = ["192.0.2.0/24", "2001:db8::/64"].iter().fold(service(3), |service, range| service.source_range(range));
        let _webs = (
            Web::start_as(&cluster, service(1), &pods)?,
            Web::beside(&cluster, admitted, &pods)?,
            Web::beside(&cluster, shut, &pods)?,
        );
        let client = cluster.node(1).peer()?;
        let mut table = Table::new();
        for family in FAMILIES {
            let near = (pods[0].name(), inner(&cluster, case.layout, family));
            let both = Outcome::answered([near, (pods[1].name(), cluster.node(1).address(family))]);
            table.soon("node → VIP bound there", &client, SocketAddr::new(address::load_balancer(family, 1), PORT), &both);
            table.soon("VIP → itself, its node admitted", &client, SocketAddr::new(address::load_balancer(family, 2), PORT), &both);
            if !case.by_sockets() {
                // The hooks leave such a call alone, and then it is the host's.
                table.row("VIP → itself, its node shut out", &client,
                    SocketAddr::new(address::load_balancer(family, 3), PORT), &Outcome::Silent);
            }
            table.row("node → external address bound there", &client, SocketAddr::new(address::external(family, 1), PORT), &both);
        }
        table.finish()
    }

    /// G3, G9: where the list names it, and for the node alone; the external policy counts there.
    /// Spec G8, G9. Upstream: "should proxy localhost NodePort traffic to backends across nodes", "should honor
    /// sessionAffinity=ClientIP for localhost NodePort".
    fn localhost_node_ports(case: Case) {
        let cluster = case.cluster().agent_arguments(&["--nodeport-addresses", "primary,localhost"]).build()?;
        let pods = [cluster.pod(1, 2), cluster.pod(2, 1)];
        let _webs = (
            Web::start_as(&cluster, service(1), &pods)?,
            Web::beside(&cluster, service(2).external_local(), &pods)?,
            Web::beside(&cluster, service(3).external_local(), &[pods[1]])?,
            Web::beside(&cluster, service(4), &[])?,
            Web::beside(&cluster, service(5).affinity(100), &pods)?,
        );
        let (client, pod) = (cluster.node(1).peer()?, cluster.pod(1, 1).peer()?);
        let mut table = Table::new();
        for family in FAMILIES {
            let near = (pods[0].name(), inner(&cluster, case.layout, family));
            let far = (pods[1].name(), cluster.node(1).address(family));
            table.soon("node → localhost:nodePort", &client, localhost(family, 1), &Outcome::answered([near.clone(), far]));
            table.soon("node → localhost:nodePort, policy Local", &client, localhost(family, 2), &Outcome::answered([near]));
            table.soon("node → localhost:nodePort, policy Local, endpoint elsewhere", &client, localhost(family, 3), &Outcome::Refused);
            table.soon("node → localhost:nodePort without endpoints", &client, localhost(family, 4), &Outcome::Refused);
            // A pod's localhost is the pod's.
            table.row("pod → localhost:nodePort", &pod, localhost(family, 1), &Outcome::Refused);
        }
        table.finish()?;
        // To affinity every process is one client, whatever address it has.
        for family in FAMILIES {
            let first = client.ask_tcp(localhost(family, 5))?.server;
            let other = cluster.node(1).peer()?;
            for _ in 0..20 {
                assert_eq!(client.ask_tcp(localhost(family, 5))?.server, first);
                assert_eq!(other.ask_tcp(localhost(family, 5))?.server, first);
            }
        }
        Ok(())
    }

    /// G8: by no other list, and never from outside.
    /// Spec G3, G9.
    fn localhost_is_served_where_the_list_names_it_only(case: Case) {
        let cluster = case.cluster().agent_arguments(&["--nodeport-addresses", "all"]).build()?;
        let _web = Web::start_as(&cluster, service(1), &[cluster.pod(1, 2)])?;
        let client = cluster.node(1).peer()?;
        let mut table = Table::new();
        for family in FAMILIES {
            let seen = inner(&cluster, case.layout, family);
            table.soon("node → its NodePort", &client, node_port(&cluster, family, 1),
                &Outcome::answered([(cluster.pod(1, 2).name(), seen)]));
            table.row("node → localhost:nodePort", &client, localhost(family, 1), &Outcome::Refused);
        }
        table.finish()
    }
}
