//! Who answers an outside client, a pod and the node itself under each traffic policy, and which source it sees:
//! spec §5.5, §5.6, §5.9 and §1.E.1.
//!
//! kube-proxy masquerades wherever the table says so; Beeline only where the endpoint is on another node, and keeps
//! the client's address towards endpoints of its own node.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use lb_agent::snapshot::Family;
use lb_tests::address::{self, FAMILIES};
use lb_tests::cluster::Cluster;
use lb_tests::manifests::Service;
use lb_tests::pod::Pod;
use lb_tests::scenario::{PORT, Web};
use lb_tests::table::{Outcome, Table};
use lb_tests::{in_both_layouts, in_every_case};

/// A service with every kind of address. `number` tells several apart.
fn service(number: u8) -> Service {
    let service =
        Service::cluster_ip(&format!("s{number}"), number).node_port(30_000 + u16::from(number));
    FAMILIES.into_iter().fold(service, |service, family| {
        service
            .load_balancer(address::load_balancer(family, number))
            .external_ip(address::external(family, number))
    })
}

fn node_port(cluster: &Cluster, node: u8, number: u8, family: Family) -> SocketAddr {
    SocketAddr::new(
        cluster.node(node).address(family),
        30_000 + u16::from(number),
    )
}

fn cluster_ip(number: u8, family: Family) -> SocketAddr {
    SocketAddr::new(address::service(family, number), PORT)
}

/// What the three external destinations of a service on node 1 are.
fn external(cluster: &Cluster, number: u8, family: Family) -> [(&'static str, SocketAddr); 3] {
    [
        ("NodePort", node_port(cluster, 1, number, family)),
        (
            "VIP",
            SocketAddr::new(address::load_balancer(family, number), PORT),
        ),
        (
            "externalIP",
            SocketAddr::new(address::external(family, number), PORT),
        ),
    ]
}

/// S1 of §5.9: both policies Cluster. S2: the external one Local. S3: the internal one Local.
fn three_services(number: u8) -> Service {
    match number {
        2 => service(2).external_local(),
        3 => service(3).internal_local(),
        _ => service(1),
    }
}

/// All three with the same servers behind them.
fn start_three<'a>(cluster: &'a Cluster, pods: &[&'a Pod]) -> Result<[Web<'a>; 3]> {
    Ok([
        Web::start_as(cluster, three_services(1), pods)?,
        Web::beside(cluster, three_services(2), pods)?,
        Web::beside(cluster, three_services(3), pods)?,
    ])
}

in_both_layouts! {
    /// The rows "external" of §5.9 and §5.5, §5.6: endpoints on node 1 (which translates) and node 2.
    /// Spec D11, D15, D17, D18, D21. Upstream: "should support externalTrafficPolicy=Local for type=NodePort".
    fn an_outside_client_under_each_policy(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        let (near, far) = (cluster.pod(1, 2), cluster.pod(2, 1));
        cluster.route_services_to(1)?;
        let _webs = start_three(&cluster, &[near, far])?;
        let client = cluster.client()?;
        let mut table = Table::new();
        for family in FAMILIES {
            let (own, node) = (cluster.client_address(family), cluster.node(1).address(family));
            let both = Outcome::answered([(near.name(), own), (far.name(), node)]);
            let local = Outcome::answered([(near.name(), own)]);
            for number in [1, 2, 3] {
                table.soon(format!("external → S{number} NodePort"), &client, node_port(&cluster, 1, number, family),
                    if number == 2 { &local } else { &both });
            }
            for (name, to) in external(&cluster, 1, family) {
                table.row(format!("external → S1 {name}"), &client, to, &both);
            }
            for (name, to) in external(&cluster, 2, family) {
                table.row(format!("external → S2 {name}"), &client, to, &local);
            }
            for (name, to) in external(&cluster, 3, family) {
                table.row(format!("external → S3 {name}"), &client, to, &both);
            }
            table.row("external → S1 ClusterIP", &client, cluster_ip(1, family), &both);
            table.row("external → S2 ClusterIP", &client, cluster_ip(2, family), &both);
            table.row("external → S3 ClusterIP", &client, cluster_ip(3, family), &local);
        }
        table.finish()
    }

    /// §5.8's last column and D8: where the external policy is Local and no endpoint is, clients get silence.
    /// Spec D8.
    fn local_policies_without_a_local_endpoint_are_silent(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        let far = cluster.pod(2, 1);
        cluster.route_services_to(1)?;
        let _near = Web::start_as(&cluster, service(1).external_local(), &[far])?;
        let _inner = Web::beside(&cluster, service(2).internal_local(), &[far])?;
        let client = cluster.client()?;
        let mut table = Table::new();
        for family in FAMILIES {
            table.soon("external → node 2, which has it", &client, node_port(&cluster, 2, 1, family),
                &Outcome::answered([(far.name(), cluster.client_address(family))]));
            table.soon("external → S2 NodePort", &client, node_port(&cluster, 1, 2, family),
                &Outcome::answered([(far.name(), cluster.node(1).address(family))]));
            for (name, to) in external(&cluster, 1, family) {
                table.row(format!("external → S1 {name}"), &client, to, &Outcome::Silent);
            }
            table.row("external → S2 ClusterIP", &client, cluster_ip(2, family), &Outcome::Silent);
        }
        table.finish()
    }

    /// §5.1: no endpoint anywhere.
    /// Spec D7, §5.1.
    fn without_endpoints_clients_are_refused(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        cluster.route_services_to(1)?;
        let _all = Web::start_as(&cluster, service(1), &[])?;
        let _local = Web::start_as(&cluster, service(2).external_local().internal_local(), &[])?;
        let client = cluster.client()?;
        let mut table = Table::new();
        for family in FAMILIES {
            for number in [1, 2] {
                table.soon(format!("external → S{number} ClusterIP"), &client, cluster_ip(number, family), &Outcome::Refused);
                for (name, to) in external(&cluster, number, family) {
                    table.row(format!("external → S{number} {name}"), &client, to, &Outcome::Refused);
                }
            }
        }
        table.finish()
    }
}

in_every_case! {
    /// The rows "pod" of §5.9, §5.5 and §5.6. A local policy does not bind pods (D13).
    /// Spec D13, D17, D18. Upstream: "should work from pods".
    fn a_pod_under_each_policy(case: Case) {
        let cluster = case.cluster().build()?;
        let (near, far) = (cluster.pod(1, 2), cluster.pod(2, 1));
        let _webs = start_three(&cluster, &[near, far])?;
        let client = cluster.pod(1, 1).peer()?;
        let mut table = Table::new();
        for family in FAMILIES {
            let (own, node) = (cluster.pod(1, 1).address(family), cluster.node(1).address(family));
            let kept = Outcome::answered([(near.name(), own), (far.name(), own)]);
            // Sockets dial the endpoint themselves: nothing is masqueraded.
            let masked = Outcome::answered([(near.name(), own), (far.name(), if case.by_sockets() { own } else { node })]);
            let local = Outcome::answered([(near.name(), own)]);
            for number in [1, 2, 3] {
                table.soon(format!("pod → S{number} ClusterIP"), &client, cluster_ip(number, family),
                    if number == 3 { &local } else { &kept });
                for (name, to) in external(&cluster, number, family) {
                    table.row(format!("pod → S{number} {name}"), &client, to, if number == 2 { &kept } else { &masked });
                }
            }
        }
        table.finish()
    }

    /// A pod dialling another node's NodePort is an outside client to that node (G11, e2e 41).
    /// Spec E11. Upstream: "should be able to create a functioning NodePort service".
    fn a_pod_at_another_nodes_node_port(case: Case) {
        let cluster = case.cluster().build()?;
        let (near, far) = (cluster.pod(1, 2), cluster.pod(2, 1));
        let _one = Web::start_as(&cluster, three_services(1), &[near, far])?;
        let _two = Web::beside(&cluster, three_services(2), &[near, far])?;
        let _near = Web::beside(&cluster, service(4).external_local(), &[near])?;
        let client = cluster.pod(1, 1).peer()?;
        let mut table = Table::new();
        for family in FAMILIES {
            let (own, node) = (cluster.pod(1, 1).address(family), cluster.node(2).address(family));
            let both = Outcome::answered([(near.name(), node), (far.name(), own)]);
            table.soon("pod → other node, Cluster", &client, node_port(&cluster, 2, 1, family), &both);
            table.soon("pod → other node, Local", &client, node_port(&cluster, 2, 2, family), &Outcome::answered([(far.name(), own)]));
            table.soon("pod → own node, Local", &client, node_port(&cluster, 1, 4, family), &Outcome::answered([(near.name(), own)]));
            table.row("pod → other node, Local without endpoint", &client, node_port(&cluster, 2, 4, family), &Outcome::Silent);
        }
        table.finish()
    }

    /// §5.1 from a pod.
    /// Spec D2, D7, §5.1.
    fn without_endpoints_pods_are_refused(case: Case) {
        let cluster = case.cluster().build()?;
        let _web = Web::start_as(&cluster, service(1), &[])?;
        let client = cluster.pod(1, 1).peer()?;
        let mut table = Table::new();
        for family in FAMILIES {
            table.soon("pod → ClusterIP", &client, cluster_ip(1, family), &Outcome::Refused);
            for (name, to) in external(&cluster, 1, family) {
                table.row(format!("pod → {name}"), &client, to, &Outcome::Refused);
            }
        }
        table.finish()
    }
}

/// The rows "node" of §5.9: sockets of the host dial endpoints themselves, so the source is the address that the
/// host has towards the endpoint.
#[test]
fn the_node_itself_under_each_policy() -> Result<()> {
    for layout in [
        lb_tests::link::Layout::Bridge,
        lb_tests::link::Layout::PointToPoint,
    ] {
        let cluster = Cluster::builder().layout(layout).build()?;
        let (near, far) = (cluster.pod(1, 2), cluster.pod(2, 1));
        let _webs = start_three(&cluster, &[near, far])?;
        let client = cluster.node(1).peer()?;
        let mut table = Table::new();
        for family in FAMILIES {
            let node = cluster.node(1).address(family);
            let inner: IpAddr = match layout {
                lb_tests::link::Layout::Bridge => address::pod_gateway(family, 1),
                lb_tests::link::Layout::PointToPoint => node,
            };
            let both = Outcome::answered([(near.name(), inner), (far.name(), node)]);
            let local = Outcome::answered([(near.name(), inner)]);
            for number in [1, 2, 3] {
                table.soon(
                    format!("node → S{number} ClusterIP"),
                    &client,
                    cluster_ip(number, family),
                    if number == 3 { &local } else { &both },
                );
                for (name, to) in external(&cluster, number, family) {
                    table.row(format!("node → S{number} {name}"), &client, to, &both);
                }
            }
        }
        table.finish()?;
    }
    Ok(())
}
