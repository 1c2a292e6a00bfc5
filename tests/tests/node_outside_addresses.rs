//! Which addresses are served: source ranges (§5.3), NodePort addresses (§5.4), undefined ports and free addresses
//! (§5.2), addresses of a load balancer that serves itself, endpoints on the host's own network.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use lb_agent::snapshot::Family;
use lb_tests::address::{self, FAMILIES};
use lb_tests::cluster::Cluster;
use lb_tests::link::Layout;
use lb_tests::manifests::{Condition, EndpointSlice, NodeObject, Service, ServiceCidr};
use lb_tests::pod::Pod;
use lb_tests::process::output;
use lb_tests::scenario::{PORT, TARGET, Web};
use lb_tests::table::{Outcome, Protocol, Table};
use lb_tests::traffic::Peer;
use lb_tests::{in_both_layouts, in_every_case};

const NODE_PORT: u16 = 30_001;

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

fn vip(family: Family) -> SocketAddr {
    at(address::load_balancer(family, 1), PORT)
}

/// A LoadBalancer Service.
fn balanced() -> Service {
    let service = Service::cluster_ip("web", 1).node_port(NODE_PORT);
    FAMILIES.into_iter().fold(service, |service, family| {
        service.load_balancer(address::load_balancer(family, 1))
    })
}

/// A further address of a machine: what a client sends from when it prefers it for a destination.
fn second_client(cluster: &Cluster, family: Family) -> IpAddr {
    let _ = cluster;
    address::lan(family, 130)
}

in_both_layouts! {
    /// §5.3, H1-H4, A19.
    /// Spec H1, H2, H3, G7, §5.3. Upstream: "should only allow access from service loadbalancer source ranges".
    fn source_ranges_filter_load_balancer_addresses_alone(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        let near = cluster.pod(1, 2);
        cluster.route_services_to(1)?;
        // The outside client is in; its second address, pods and node 2 are out; node 1 is in.
        let allowed = ["172.31.0.100/32", " 172.31.0.11/32", "fd31::100/128", "fd31::11/128"];
        let service = allowed.iter().fold(balanced(), |service, range| service.source_range(range));
        let second_vip = |family| at(address::load_balancer(family, 2), PORT);
        let service = FAMILIES.into_iter().fold(service, |service, family| service.load_balancer(second_vip(family).ip()));
        let _web = Web::start_as(&cluster, service, &[near])?;
        let (client, pod, node, other) =
            (cluster.client()?, cluster.pod(1, 1).peer()?, cluster.node(1).peer()?, cluster.node(2).peer()?);
        let mut table = Table::new();
        for family in FAMILIES {
            let seen = |address| Outcome::answered([(near.name(), address)]);
            let own = cluster.client_address(family);
            table.soon("external → VIP", &client, vip(family), &seen(own));
            table.row("external → second VIP", &client, second_vip(family), &seen(own));
            table.row("external → node:nodePort", &client, at(cluster.node(1).address(family), NODE_PORT), &seen(own));
            table.row("pod → ClusterIP", &pod, at(address::service(family, 1), PORT), &seen(cluster.pod(1, 1).address(family)));
            table.row_over(Protocol::Tcp, "pod → VIP", &pod, vip(family), &Outcome::Silent);
            table.row_over(Protocol::Udp, "pod → VIP", &pod, vip(family), &Outcome::Silent);
            let inner = match layout {
                Layout::Bridge => address::pod_gateway(family, 1),
                Layout::PointToPoint => cluster.node(1).address(family),
            };
            table.row("node → VIP", &node, vip(family), &seen(inner));
            table.row("other node → its NodePort", &other, at(cluster.node(2).address(family), NODE_PORT),
                &seen(cluster.node(2).address(family)));
        }
        prefer_second_address(&cluster)?;
        for family in FAMILIES {
            let second = second_client(&cluster, family);
            table.row("blocked external → VIP", &client, vip(family), &Outcome::Silent);
            table.row("blocked external → second VIP", &client, second_vip(family), &Outcome::Silent);
            table.row("blocked external → node:nodePort", &client, at(cluster.node(1).address(family), NODE_PORT),
                &Outcome::answered([(near.name(), second)]));
        }
        // No endpoints: the ranges still filter (H4).
        cluster.publish(&EndpointSlice::of("web", Family::V4))?;
        cluster.publish(&EndpointSlice::of("web", Family::V6))?;
        for family in FAMILIES {
            table.soon("blocked external → node:nodePort, no endpoints", &client,
                at(cluster.node(1).address(family), NODE_PORT), &Outcome::Refused);
            table.row("blocked external → VIP, no endpoints", &client, vip(family), &Outcome::Silent);
        }
        table.finish()
    }

    /// §5.4: by default the primary addresses alone; what listens on others is the host's.
    /// Spec G2, G6, D9, §5.4. Upstream: "should be able to create a functioning NodePort service".
    fn node_ports_are_served_on_the_primary_address(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        let near = cluster.pod(1, 2);
        let _web = Web::start_as(&cluster, balanced(), &[near])?;
        add_address(&cluster)?;
        let client = cluster.client()?;
        let mut table = Table::new();
        for family in FAMILIES {
            let own = cluster.client_address(family);
            table.soon("external → node:nodePort", &client, at(cluster.node(1).address(family), NODE_PORT),
                &Outcome::answered([(near.name(), own)]));
            table.row("external → alternative address:nodePort", &client, at(alternative(family), NODE_PORT), &Outcome::Refused);
        }
        // A host process may use the port there (§8), and any port that is no NodePort.
        let host = host_server(&cluster, &[NODE_PORT, 30_002])?;
        for family in FAMILIES {
            let own = cluster.client_address(family);
            for port in [NODE_PORT, 30_002] {
                table.row(format!("external → host's own listener on {port}"), &client, at(alternative(family), port),
                    &Outcome::answered([(host.name(), own)]));
            }
        }
        table.finish()
    }

    /// §5.4 with lists, and G4, G5: an address that appears while the agent runs.
    /// Spec G1, G4, G5, §5.4.
    fn all_addresses_are_served_as_they_come_and_go(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).agent_arguments(&["--nodeport-addresses", "all"]).build()?;
        let near = cluster.pod(1, 2);
        let _web = Web::start_as(&cluster, balanced(), &[near])?;
        let client = cluster.client()?;
        let mut table = Table::new();
        for family in FAMILIES {
            table.soon("external → node:nodePort", &client, at(cluster.node(1).address(family), NODE_PORT),
                &Outcome::answered([(near.name(), cluster.client_address(family))]));
        }
        add_address(&cluster)?;
        for family in FAMILIES {
            table.soon("external → new address:nodePort", &client, at(alternative(family), NODE_PORT),
                &Outcome::answered([(near.name(), cluster.client_address(family))]));
        }
        remove_address(&cluster)?;
        let host = host_server(&cluster, &[])?;
        drop(host);
        for family in FAMILIES {
            table.soon("external → address that went", &client, at(alternative(family), NODE_PORT), &Outcome::Silent);
        }
        table.finish()
    }

    /// §5.4 with a list of prefixes.
    /// Spec G1, §5.4.
    fn a_list_of_prefixes_is_kept_to(layout: Layout) {
        let cluster = Cluster::builder()
            .layout(layout)
            .agent_arguments(&["--nodeport-addresses", "172.31.7.0/24,fd31:7::/64"])
            .build()?;
        add_address(&cluster)?;
        let near = cluster.pod(1, 2);
        let _web = Web::start_as(&cluster, balanced(), &[near])?;
        let client = cluster.client()?;
        let mut table = Table::new();
        for family in FAMILIES {
            table.soon("external → address in the list", &client, at(alternative(family), NODE_PORT),
                &Outcome::answered([(near.name(), cluster.client_address(family))]));
            table.row("external → node:nodePort", &client, at(cluster.node(1).address(family), NODE_PORT), &Outcome::Refused);
        }
        table.finish()
    }

    /// §5.2, D4, D5, D6: undefined ports of a ClusterIP are refused, free addresses of its range drop, undefined ports
    /// of other addresses are not ours.
    /// Spec D4, D5, D6, D21, §5.2.
    fn undefined_ports_and_free_addresses(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        let near = cluster.pod(1, 2);
        cluster.route_services_to(1)?;
        cluster.publish(&ServiceCidr)?;
        let _web = Web::start_as(&cluster, balanced(), &[near])?;
        let client = cluster.client()?;
        let host = host_server(&cluster, &[])?;
        host.serve(&[31_999], &[31_999])?;
        let mut table = Table::new();
        for family in FAMILIES {
            let node = cluster.node(1).address(family);
            table.soon("external → VIP", &client, vip(family), &Outcome::answered([(near.name(), cluster.client_address(family))]));
            table.row("external → undefined port of a ClusterIP", &client, at(address::service(family, 1), 81), &Outcome::Refused);
            table.row("external → free address of the range", &client, at(address::service(family, 50), PORT), &Outcome::Silent);
            // Before the next: the node's redirects to the client use up what it may send of ICMP.
            table.row("external → undefined port of a node", &client, at(node, 31_998), &Outcome::Refused);
            table.row("external → undefined port of a VIP", &client, at(vip(family).ip(), 81), &Outcome::LeftAlone);
            table.row("external → host's own listener", &client, at(node, 31_999),
                &Outcome::answered([(host.name(), cluster.client_address(family))]));
        }
        table.finish()
    }

    /// A15: traffic to a load balancer that serves itself leaves the node as it came.
    /// Spec A15.
    fn addresses_of_a_proxying_load_balancer_are_left_alone(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        let near = cluster.pod(1, 2);
        cluster.route_services_to(1)?;
        let service = Service::cluster_ip("web", 1).node_port(NODE_PORT);
        let service = FAMILIES.into_iter().fold(service, |service, family| {
            service.load_balancer_proxy(address::load_balancer(family, 1))
        });
        let _web = Web::start_as(&cluster, service, &[near])?;
        let (client, pod) = (cluster.client()?, cluster.pod(1, 1).peer()?);
        let mut table = Table::new();
        for family in FAMILIES {
            table.soon("external → node:nodePort", &client, at(cluster.node(1).address(family), NODE_PORT),
                &Outcome::answered([(near.name(), cluster.client_address(family))]));
            table.row("external → VIP", &client, vip(family), &Outcome::LeftAlone);
            table.row("pod → VIP", &pod, vip(family), &Outcome::LeftAlone);
        }
        table.finish()
    }

    /// Spec G10: what the Node object calls its external address, but no device has, is the cloud's to translate.
    fn an_address_that_the_cloud_translates_is_none_of_the_nodes(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        let near = cluster.pod(1, 2);
        for family in FAMILIES {
            cluster.publish(&NodeObject::of(1).external_ip(vip(family).ip()))?;
            let web = Web::start_as(&cluster, Service::cluster_ip("web", 1).node_port(NODE_PORT), &[near])?;
            let pod = cluster.pod(1, 1).peer()?;
            let mut table = Table::new();
            let own = cluster.pod(1, 1).address(family);
            table.soon("pod → node:nodePort", &pod, at(cluster.node(1).address(family), NODE_PORT),
                &Outcome::answered([(near.name(), own)]));
            table.row("pod → external:nodePort", &pod, at(vip(family).ip(), NODE_PORT), &Outcome::LeftAlone);
            table.finish()?;
            drop(web);
        }
        Ok(())
    }

    /// §5.8, external policy Local, and the health-check port beside it (§1.I).
    /// Spec §5.8. Upstream: "should fallback to local terminating endpoints when there are no ready endpoints with
    /// externalTrafficPolicy=Local".
    fn terminating_endpoints_serve_where_no_others_are(layout: Layout) {
        use Condition::{Ended, Ready, Terminating};

        let cluster = Cluster::builder().layout(layout).pods_per_node(3).build()?;
        let (a, b, c, far) = (cluster.pod(1, 1), cluster.pod(1, 2), cluster.pod(1, 3), cluster.pod(2, 1));
        let web = Web::start_as(&cluster, balanced().external_local().health_check_port(32_500), &[a, b, c, far])?;
        let rows = [
            ("ready and ending", vec![(a, Ready), (b, Ready), (c, Terminating), (far, Ready)], vec![a, b, far], Some(vec![a, b])),
            ("one ready", vec![(a, Ready), (b, Terminating), (c, Ended), (far, Ready)], vec![a, far], Some(vec![a])),
            ("local ones end", vec![(a, Terminating), (b, Terminating), (c, Ended), (far, Ready)], vec![far], Some(vec![a, b])),
            ("remote one ends", vec![(far, Terminating)], vec![far], Some(vec![])),
            ("all ended, one told twice", vec![(a, Ended), (a, Ended), (far, Ended)], vec![], None),
            ("none", vec![], vec![], None),
        ];
        terminating(&cluster, &web, &rows, |row, endpoints| {
            let healthy = endpoints.iter().any(|&(pod, condition)| pod.node() == 1 && condition == Ready);
            let answer = cluster.node(1).health_check(32_500)?;
            ensure!(answer.starts_with("HTTP/1.1 200") == healthy, "{row}: {answer}");
            Ok(())
        })
    }

    /// §5.8, external policy Cluster.
    /// Spec §5.8. Upstream: "should fallback to terminating endpoints when there are no ready endpoints with
    /// externallTrafficPolicy=Cluster".
    fn terminating_endpoints_serve_anywhere_with_policy_cluster(layout: Layout) {
        use Condition::{Ended, Ready, Terminating};

        let cluster = Cluster::builder().layout(layout).pods_per_node(3).build()?;
        let (a, b) = (cluster.pod(1, 1), cluster.pod(1, 2));
        let (far, further) = (cluster.pod(2, 1), cluster.pod(2, 3));
        let web = Web::start_as(&cluster, balanced(), &[a, b, far, further])?;
        let rows = [
            ("ready and ending", vec![(a, Ready), (b, Terminating), (far, Ended), (further, Ready)], vec![a, further], Some(vec![a, further])),
            ("all end", vec![(a, Terminating), (b, Terminating), (far, Ended), (further, Terminating)], vec![a, b, further], Some(vec![a, b, further])),
            ("remote one ends", vec![(far, Terminating)], vec![far], Some(vec![far])),
            ("all ended, one told twice", vec![(a, Ended), (a, Ended), (far, Ended)], vec![], None),
            ("none", vec![], vec![], None),
        ];
        terminating(&cluster, &web, &rows, |_, _| Ok(()))
    }

    /// Spec D19, D20: what listens on the node at a NodePort hears nothing of who dials it, and nobody has a service's address.
    fn a_process_of_the_host_at_a_node_port_is_passed_over(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        cluster.route_services_to(1)?;
        let near = cluster.pod(1, 2);
        let host = cluster.node(1).peer()?;
        host.serve(&[NODE_PORT], &[NODE_PORT])?;
        let client = cluster.client()?;
        let to = |family| at(cluster.node(1).address(family), NODE_PORT);
        let mut table = Table::new();
        for family in FAMILIES {
            let own = cluster.client_address(family);
            table.row("external → node, before", &client, to(family), &Outcome::answered([("node1", own)]));
        }
        let web = Web::start_as(&cluster, balanced(), &[near])?;
        for family in FAMILIES {
            let own = cluster.client_address(family);
            let inner = match layout {
                Layout::Bridge => address::pod_gateway(family, 1),
                Layout::PointToPoint => cluster.node(1).address(family),
            };
            table.soon("external → NodePort", &client, to(family), &Outcome::answered([(near.name(), own)]));
            table.row("node → NodePort", &host, to(family), &Outcome::answered([(near.name(), inner)]));
        }
        let addresses = output(cluster.node(1).place()?.command("ip")?.arg("address"))?;
        for family in FAMILIES {
            for service in [address::service(family, 1), vip(family).ip()] {
                ensure!(!addresses.contains(&format!(" {service}/")), "{addresses}");
            }
        }
        cluster.withdraw(web.service())?;
        for family in FAMILIES {
            let own = cluster.client_address(family);
            table.soon("external → node, after", &client, to(family), &Outcome::answered([("node1", own)]));
        }
        table.finish()
    }

    /// B16, and §8: endpoints on a host's own network. On the node that translates the client is kept.
    /// Spec B16. Upstream: "should function for service endpoints using hostNetwork".
    fn endpoints_on_the_hosts_network(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        cluster.route_services_to(1)?;
        let hosts = [1, 2].map(|number| cluster.node(number).peer());
        let hosts = hosts.into_iter().collect::<Result<Vec<_>>>()?;
        for host in &hosts {
            host.serve(&[TARGET], &[TARGET])?;
        }
        let _web = Web::beside(&cluster, balanced(), &[])?;
        for family in FAMILIES {
            let slice = EndpointSlice::of("web", family).tcp("tcp", TARGET).udp("udp", TARGET);
            let slice = [1, 2].into_iter().fold(slice, |slice, number| {
                slice.endpoint(cluster.node(number).address(family), number, Condition::Ready)
            });
            cluster.publish(&slice)?;
        }
        let (client, pod) = (cluster.client()?, cluster.pod(1, 1).peer()?);
        let mut table = Table::new();
        for family in FAMILIES {
            let (own, node) = (cluster.client_address(family), cluster.node(1).address(family));
            let both = Outcome::answered([("node1", own), ("node2", node)]);
            table.soon("external → VIP", &client, vip(family), &both);
            table.row("external → node:nodePort", &client, at(node, NODE_PORT), &both);
            table.row("external → ClusterIP", &client, at(address::service(family, 1), PORT), &both);
            let inside = cluster.pod(1, 1).address(family);
            table.row("pod → ClusterIP", &pod, at(address::service(family, 1), PORT),
                &Outcome::answered([("node1", inside), ("node2", inside)]));
        }
        table.finish()
    }
}

/// A row of §5.8: its name, the endpoints, who answers a pod at the ClusterIP, and who an outside client at the VIP (nobody
/// refuses where none are told).
type Row<'a> = (
    &'static str,
    Vec<(&'a Pod, Condition)>,
    Vec<&'a Pod>,
    Option<Vec<&'a Pod>>,
);

/// Walks the rows, each followed by a further look at it.
fn terminating(
    cluster: &Cluster,
    web: &Web<'_>,
    rows: &[Row<'_>],
    look: impl Fn(&str, &[(&Pod, Condition)]) -> Result<()>,
) -> Result<()> {
    cluster.route_services_to(1)?;
    let (client, pod) = (cluster.client()?, cluster.pod(2, 2).peer()?);
    let mut table = Table::new();
    for (row, endpoints, inner, outer) in rows {
        web.set_conditions(endpoints)?;
        for family in FAMILIES {
            let (own, node) = (
                cluster.client_address(family),
                cluster.node(1).address(family),
            );
            let seen = |pod: &Pod| if pod.node() == 1 { own } else { node };
            let outer = match outer {
                None => Outcome::Refused,
                Some(pods) if pods.is_empty() => Outcome::Silent,
                Some(pods) => Outcome::answered(pods.iter().map(|pod| (pod.name(), seen(pod)))),
            };
            table.soon(
                format!("{row}: external → VIP"),
                &client,
                vip(family),
                &outer,
            );
            let inside = cluster.pod(2, 2).address(family);
            let inner = match inner.as_slice() {
                [] => Outcome::Refused,
                pods => Outcome::answered(pods.iter().map(|pod| (pod.name(), inside))),
            };
            table.soon(
                format!("{row}: pod → ClusterIP"),
                &pod,
                at(address::service(family, 1), PORT),
                &inner,
            );
        }
        look(row, endpoints)?;
    }
    table.finish()
}

in_every_case! {
    /// Undefined ports and free addresses from a pod; §5.7's silence is in `node_cluster_ip`.
    fn undefined_ports_and_free_addresses_from_a_pod(case: Case) {
        let cluster = case.cluster().build()?;
        let near = cluster.pod(1, 2);
        cluster.publish(&ServiceCidr)?;
        let _web = Web::start_as(&cluster, balanced(), &[near])?;
        let pod = cluster.pod(1, 1).peer()?;
        let mut table = Table::new();
        for family in FAMILIES {
            table.soon("pod → VIP", &pod, vip(family), &Outcome::answered([(near.name(), cluster.pod(1, 1).address(family))]));
            table.row("pod → undefined port of a ClusterIP", &pod, at(address::service(family, 1), 81), &Outcome::Refused);
            table.row("pod → free address of the range", &pod, at(address::service(family, 50), PORT), &Outcome::Silent);
            table.row("pod → undefined port of a VIP", &pod, at(vip(family).ip(), 81), &Outcome::LeftAlone);
            table.row("pod → undefined port of its node", &pod, at(cluster.node(1).address(family), 31_998), &Outcome::Refused);
        }
        table.finish()
    }
}

/// An address of node 1 besides its own, reachable from the LAN.
fn alternative(family: Family) -> IpAddr {
    match family {
        Family::V4 => [172, 31, 7, 1].into(),
        Family::V6 => [0xfd31, 7, 0, 0, 0, 0, 0, 1].into(),
    }
}

fn add_address(cluster: &Cluster) -> Result<()> {
    cluster.node(1).namespace().ip(&[
        format!("addr add {}/24 dev eth0", alternative(Family::V4)),
        format!("addr add {}/64 dev eth0 nodad", alternative(Family::V6)),
    ])?;
    cluster.outside().ip(&FAMILIES.map(|family| {
        format!(
            "route replace {} via {}",
            alternative(family),
            cluster.node(1).address(family)
        )
    }))
}

fn remove_address(cluster: &Cluster) -> Result<()> {
    cluster.node(1).namespace().ip(&[
        format!("addr del {}/24 dev eth0", alternative(Family::V4)),
        format!("addr del {}/64 dev eth0", alternative(Family::V6)),
    ])
}

/// Makes the outside client send from its second address.
fn prefer_second_address(cluster: &Cluster) -> Result<()> {
    let mut lines = Vec::new();
    for family in FAMILIES {
        let second = second_client(cluster, family);
        let length = if family == Family::V4 { 24 } else { 64 };
        let nodad = if family == Family::V4 { "" } else { " nodad" };
        lines.push(format!("addr add {second}/{length} dev eth0{nodad}"));
        let node = cluster.node(1).address(family);
        let range = match family {
            Family::V4 => "198.51.100.0/24",
            Family::V6 => "fd51::/64",
        };
        lines.push(format!("route replace {range} via {node} src {second}"));
        let host = if family == Family::V4 { 32 } else { 128 };
        lines.push(format!("route replace {node}/{host} dev eth0 src {second}"));
    }
    cluster.outside().ip(&lines)
}

/// A process of node 1 that serves these ports on the node's alternative addresses, and on the usual ones none yet.
fn host_server(cluster: &Cluster, ports: &[u16]) -> Result<Peer> {
    if ports.is_empty() {
        return cluster.node(1).peer();
    }
    let addresses = FAMILIES.map(alternative);
    let host = Peer::start("node1", &cluster.node(1).place()?, &addresses)?;
    host.serve(ports, ports)?;
    Ok(host)
}
