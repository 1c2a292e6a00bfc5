//! The flags that change which source an endpoint sees: the other configurations of spec §5.9 and §1.E.1, and
//! `--snat-local`.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use lb_agent::snapshot::Family;
use lb_tests::address::{self, FAMILIES};
use lb_tests::agent::SocketLb;
use lb_tests::cluster::Cluster;
use lb_tests::in_both_layouts;
use lb_tests::link::Layout;
use lb_tests::manifests::Service;
use lb_tests::scenario::{PORT, TARGET, Web};
use lb_tests::table::{Outcome, Table};

/// A service with every kind of address. `number` tells several apart.
fn service(number: u8) -> Service {
    let service =
        Service::cluster_ip(&format!("s{number}"), number).node_port(30_000 + u16::from(number));
    FAMILIES.into_iter().fold(service, |service, family| {
        service.load_balancer(address::load_balancer(family, number))
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

fn vip(number: u8, family: Family) -> SocketAddr {
    SocketAddr::new(address::load_balancer(family, number), PORT)
}

/// Pods' packets are translated, not their sockets, so that they can be masqueraded at all.
fn cluster(layout: Layout, arguments: &[&str]) -> Result<Cluster> {
    let cluster = Cluster::builder()
        .layout(layout)
        .socket_lb(SocketLb::Off)
        .agent_arguments(arguments)
        .build()?;
    cluster.route_services_to(1)?;
    Ok(cluster)
}

/// The address a node has towards its own pods.
fn inner(cluster: &Cluster, layout: Layout, family: Family) -> IpAddr {
    match layout {
        Layout::Bridge => address::pod_gateway(family, 1),
        Layout::PointToPoint => cluster.node(1).address(family),
    }
}

in_both_layouts! {
    /// §5.9 "masqueradeAll": pods reach ClusterIPs masqueraded, too. Endpoints of this node still see them.
    /// Spec E5.
    fn masquerade_all(layout: Layout) {
        let cluster = cluster(layout, &["--masquerade-all"])?;
        let (near, far) = (cluster.pod(1, 2), cluster.pod(2, 1));
        let _one = Web::start_as(&cluster, service(1), &[near, far])?;
        let _two = Web::beside(&cluster, service(2).external_local(), &[near, far])?;
        let pod = cluster.pod(1, 1).peer()?;
        let mut table = Table::new();
        for family in FAMILIES {
            let (own, node) = (cluster.pod(1, 1).address(family), cluster.node(1).address(family));
            let masked = Outcome::answered([(near.name(), own), (far.name(), node)]);
            let kept = Outcome::answered([(near.name(), own), (far.name(), own)]);
            table.soon("pod → S1 ClusterIP", &pod, cluster_ip(1, family), &masked);
            table.soon("pod → S2 ClusterIP", &pod, cluster_ip(2, family), &masked);
            table.row("pod → S1 NodePort", &pod, node_port(&cluster, 1, 1, family), &masked);
            table.row("pod → S2 NodePort", &pod, node_port(&cluster, 1, 2, family), &kept);
            table.row("pod → S2 VIP", &pod, vip(2, family), &kept);
        }
        table.finish()
    }

    /// §5.9 "no detector" (E10): pods are bound by the external policy (D16), and nothing to a ClusterIP is masqueraded.
    /// Spec E10, D16.
    fn without_a_detector(layout: Layout) {
        let cluster = cluster(layout, &["--detect-local-mode", "ClusterCIDR"])?;
        let (near, far) = (cluster.pod(1, 2), cluster.pod(2, 1));
        let _one = Web::start_as(&cluster, service(1), &[near, far])?;
        let _two = Web::beside(&cluster, service(2).external_local(), &[near, far])?;
        let _far = Web::beside(&cluster, service(3), &[far])?;
        let (pod, client) = (cluster.pod(1, 1).peer()?, cluster.client()?);
        let mut table = Table::new();
        for family in FAMILIES {
            let (own, node) = (cluster.pod(1, 1).address(family), cluster.node(1).address(family));
            let local = Outcome::answered([(near.name(), own)]);
            let both = Outcome::answered([(near.name(), own), (far.name(), own)]);
            table.soon("pod → S1 ClusterIP", &pod, cluster_ip(1, family), &both);
            table.soon("pod → S2 NodePort", &pod, node_port(&cluster, 1, 2, family), &local);
            table.row("pod → S2 VIP", &pod, vip(2, family), &local);
            table.soon("external → S3 NodePort", &client, node_port(&cluster, 1, 3, family), &Outcome::answered([(far.name(), node)]));
        }
        table.finish()?;
        // The answer of an endpoint elsewhere misses the node, and comes as it was sent.
        for family in FAMILIES {
            let to = cluster_ip(3, family);
            let answer = client.udp(to)?.ask_at(to, "hello")?;
            assert_eq!((answer.seen.ip(), answer.from), (cluster.client_address(family), far.socket(family, TARGET)));
        }
        Ok(())
    }

    /// E6: pods by source address.
    /// Spec E6, E11.
    fn pods_by_cluster_cidr(layout: Layout) {
        let cluster = cluster(layout, &["--cluster-cidr", "10.244.0.0/16,fd44::/16"])?;
        pods_are_told_from_others(&cluster)
    }

    /// E7.
    /// Spec E7.
    fn pods_by_node_cidr(layout: Layout) {
        let cluster = cluster(layout, &["--detect-local-mode", "NodeCIDR"])?;
        pods_are_told_from_others(&cluster)
    }

    /// E9.
    /// Spec E9.
    fn pods_by_device_name(layout: Layout) {
        let cluster = cluster(layout, &["--detect-local-mode", "InterfaceNamePrefix", "--pod-interface-name-prefix", "veth"])?;
        pods_are_told_from_others(&cluster)
    }

    /// What kube-proxy does: endpoints of this node see an address of its own where the external policy is Cluster.
    /// Spec D11, E2.
    fn snat_local_as_kube_proxy(layout: Layout) {
        let cluster = cluster(layout, &["--snat-local", "kube-proxy"])?;
        let (near, far) = (cluster.pod(1, 2), cluster.pod(2, 1));
        let _one = Web::start_as(&cluster, service(1), &[near, far])?;
        let _two = Web::beside(&cluster, service(2).external_local(), &[near, far])?;
        let (pod, client) = (cluster.pod(1, 1).peer()?, cluster.client()?);
        let mut table = Table::new();
        for family in FAMILIES {
            let (own, node) = (cluster.client_address(family), cluster.node(1).address(family));
            let masked = Outcome::answered([(near.name(), inner(&cluster, layout, family)), (far.name(), node)]);
            table.soon("external → S1 NodePort", &client, node_port(&cluster, 1, 1, family), &masked);
            table.row("external → S1 VIP", &client, vip(1, family), &masked);
            table.row("external → S1 ClusterIP", &client, cluster_ip(1, family), &masked);
            table.soon("external → S2 VIP", &client, vip(2, family), &Outcome::answered([(near.name(), own)]));
            let inside = cluster.pod(1, 1).address(family);
            let kept = Outcome::answered([(near.name(), inside), (far.name(), inside)]);
            table.row("pod → S1 ClusterIP", &pod, cluster_ip(1, family), &kept);
            table.row("pod → S1 NodePort", &pod, node_port(&cluster, 1, 1, family), &masked);
            table.row("pod → S2 VIP", &pod, vip(2, family), &kept);
        }
        table.finish()
    }
}

/// E8, on the layout that has a bridge.
#[test]
fn pods_by_bridge() -> Result<()> {
    let arguments = [
        "--detect-local-mode",
        "BridgeInterface",
        "--pod-bridge-interface",
        "cni0",
    ];
    pods_are_told_from_others(&cluster(Layout::Bridge, &arguments)?)
}

/// Base configuration of §5.9: pods and outside clients, whatever tells them apart.
fn pods_are_told_from_others(cluster: &Cluster) -> Result<()> {
    let (near, far) = (cluster.pod(1, 2), cluster.pod(2, 1));
    let _one = Web::start_as(cluster, service(1), &[near, far])?;
    let _two = Web::beside(cluster, service(2).external_local(), &[near, far])?;
    let (pod, client) = (cluster.pod(1, 1).peer()?, cluster.client()?);
    let mut table = Table::new();
    for family in FAMILIES {
        let (own, outside, node) = (
            cluster.pod(1, 1).address(family),
            cluster.client_address(family),
            cluster.node(1).address(family),
        );
        let kept = Outcome::answered([(near.name(), own), (far.name(), own)]);
        table.soon("pod → S1 ClusterIP", &pod, cluster_ip(1, family), &kept);
        table.soon(
            "pod → S2 NodePort",
            &pod,
            node_port(cluster, 1, 2, family),
            &kept,
        );
        table.row("pod → S2 VIP", &pod, vip(2, family), &kept);
        table.row(
            "external → S1 ClusterIP",
            &client,
            cluster_ip(1, family),
            &Outcome::answered([(near.name(), outside), (far.name(), node)]),
        );
        table.row(
            "external → S2 VIP",
            &client,
            vip(2, family),
            &Outcome::answered([(near.name(), outside)]),
        );
    }
    table.finish()
}
