//! The packet path once more on hosts that differ in what they do with packets besides: senders that compute every
//! checksum themselves, frames of a bridge that pass the firewall or do not, strict checks of sources and of what
//! conntrack calls invalid.
//!
//! One walk through all kinds of traffic, in the mixtures that have been seen to matter; every single behaviour has
//! tests of its own elsewhere.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_agent::snapshot::Family;
use lb_tests::address::{self, FAMILIES};
use lb_tests::agent::SocketLb;
use lb_tests::cluster::Cluster;
use lb_tests::guards::Guards;
use lb_tests::link::Layout;
use lb_tests::manifests::Service;
use lb_tests::scenario::{PORT, Web, check_transfers};
use lb_tests::table::{Outcome, Table};
use lb_tests::traffic::Peer;

const NODE_PORT: u16 = 30_001;

/// MiB/s that any path here carries many times over; one that handles offloads wrong, or shows the firewall half of a
/// connection, carries a fraction of one.
const SLOW: f64 = 2.0;

fn service(number: u8) -> Service {
    let service =
        Service::cluster_ip(&format!("s{number}"), number).node_port(NODE_PORT + u16::from(number));
    FAMILIES.into_iter().fold(service, |service, family| {
        service.load_balancer(address::load_balancer(family, number))
    })
}

/// Where the services are dialled.
struct Dialled<'a> {
    cluster: &'a Cluster,
    family: Family,
}

impl Dialled<'_> {
    fn cluster_ip(&self, number: u8) -> SocketAddr {
        SocketAddr::new(address::service(self.family, number), PORT)
    }

    fn vip(&self, number: u8) -> SocketAddr {
        SocketAddr::new(address::load_balancer(self.family, number), PORT)
    }

    fn node_port(&self, number: u8) -> SocketAddr {
        let port = NODE_PORT + u16::from(number);
        SocketAddr::new(self.cluster.node(1).address(self.family), port)
    }
}

fn walk(layout: Layout, offload: bool, guards: Guards) -> Result<()> {
    let cluster = Cluster::builder()
        .layout(layout)
        .socket_lb(SocketLb::Off)
        .tx_offload(offload)
        .guards(guards)
        .build()?;
    cluster.route_services_to(1)?;
    let pods = [cluster.pod(1, 2), cluster.pod(2, 1)];
    let _webs = (
        Web::start_as(&cluster, service(1), &pods)?,
        Web::beside(&cluster, service(2).external_local(), &pods)?,
        Web::beside(&cluster, service(3), &[])?,
        Web::beside(&cluster, service(4).external_local(), &[pods[1]])?,
        Web::beside(&cluster, service(5), &[pods[0]])?,
        Web::beside(&cluster, service(6), &[pods[1]])?,
    );
    let (client, pod, node) = (
        cluster.client()?,
        cluster.pod(1, 1).peer()?,
        cluster.node(1).peer()?,
    );
    let itself = pods[0].peer()?;
    let mut table = Table::new();
    for family in FAMILIES {
        let at = Dialled {
            cluster: &cluster,
            family,
        };
        let (own, inside) = (
            cluster.client_address(family),
            cluster.pod(1, 1).address(family),
        );
        let (masked, inner) = (
            cluster.node(1).address(family),
            inner(&cluster, layout, family),
        );
        let both = |near: IpAddr, far: IpAddr| {
            Outcome::answered([(pods[0].name(), near), (pods[1].name(), far)])
        };
        table.soon(
            "pod → ClusterIP",
            &pod,
            at.cluster_ip(1),
            &both(inside, inside),
        );
        table.soon("pod → VIP", &pod, at.vip(1), &both(inside, masked));
        table.row(
            "pod → NodePort",
            &pod,
            at.node_port(2),
            &both(inside, inside),
        );
        let hairpin = Outcome::answered([(pods[0].name(), at.cluster_ip(5).ip())]);
        table.soon("pod → itself", &itself, at.cluster_ip(5), &hairpin);
        table.soon("pod → nobody", &pod, at.cluster_ip(3), &Outcome::Refused);
        table.soon(
            "external → NodePort",
            &client,
            at.node_port(1),
            &both(own, masked),
        );
        table.row("external → VIP", &client, at.vip(1), &both(own, masked));
        let local = Outcome::answered([(pods[0].name(), own)]);
        table.soon("external → VIP, policy Local", &client, at.vip(2), &local);
        table.row(
            "external → nobody",
            &client,
            at.node_port(3),
            &Outcome::Refused,
        );
        table.soon(
            "external → VIP, nobody here",
            &client,
            at.vip(4),
            &Outcome::Silent,
        );
        table.soon(
            "node → ClusterIP",
            &node,
            at.cluster_ip(1),
            &both(inner, masked),
        );
        table.soon(
            "node → NodePort",
            &node,
            at.node_port(1),
            &both(inner, masked),
        );
        table.row("node → nobody", &node, at.node_port(3), &Outcome::Refused);
    }
    table.finish()?;
    for family in FAMILIES {
        let at = Dialled {
            cluster: &cluster,
            family,
        };
        for number in [5, 6] {
            for (client, dialled) in [
                (&pod, at.cluster_ip(number)),
                (&client, at.vip(number)),
                (&node, at.node_port(number)),
            ] {
                check_transfers(client, dialled, SLOW)?;
            }
            datagrams_in_fragments(&pod, at.cluster_ip(number))?;
            datagrams_in_fragments(&client, at.vip(number))?;
        }
    }
    Ok(())
}

/// The address node 1 has towards its own pods.
fn inner(cluster: &Cluster, layout: Layout, family: Family) -> IpAddr {
    match layout {
        Layout::Bridge => address::pod_gateway(family, 1),
        Layout::PointToPoint => cluster.node(1).address(family),
    }
}

fn datagrams_in_fragments(client: &Peer, dialled: SocketAddr) -> Result<()> {
    let text = "x".repeat(1_900);
    let answer = client
        .udp(dialled)?
        .ask_at(dialled, &text)
        .with_context(|| format!("{} → {dialled} with a large datagram", client.name()))?;
    ensure!(
        (answer.from, answer.text.len()) == (dialled, text.len()),
        "{answer:?}"
    );
    Ok(())
}

fn guards(bridge_firewall: bool, strict: bool) -> Guards {
    Guards {
        bridge_firewall: Some(bridge_firewall),
        strict,
    }
}

#[test]
fn bridge_without_offload() -> Result<()> {
    walk(Layout::Bridge, false, guards(false, false))
}

#[test]
fn bridge_behind_the_firewall_without_offload_and_strict() -> Result<()> {
    walk(Layout::Bridge, false, guards(true, true))
}

#[test]
fn bridge_strict() -> Result<()> {
    walk(Layout::Bridge, true, guards(false, true))
}

#[test]
fn point_to_point_without_offload() -> Result<()> {
    walk(Layout::PointToPoint, false, Guards::default())
}

#[test]
fn point_to_point_strict() -> Result<()> {
    walk(Layout::PointToPoint, true, Guards::strict())
}
