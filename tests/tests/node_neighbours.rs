//! Programs of others on the same devices: before ours, behind it, and as filters. They go on to see packets, services
//! go on to work, and `beeline status` names them.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use anyhow::{Result, ensure};
use lb_agent::sys::bpf::{Attach, Link, Position, pin};
use lb_tests::address::{self, FAMILIES};
use lb_tests::agent::SocketLb;
use lb_tests::cluster::Cluster;
use lb_tests::device;
use lb_tests::manifests::Service;
use lb_tests::object::Bystander;
use lb_tests::process::output;
use lb_tests::scenario::{PORT, Web};
use lb_tests::table::{Outcome, Table};

/// A program that is attached as long as this lives.
struct Attached {
    place: String,
    bystander: Bystander,
    _link: Link,
}

/// One before and one behind ours, in both directions of a device of node 1.
fn surround(cluster: &Cluster, device: &str) -> Result<Vec<Attached>> {
    cluster.node(1).namespace().run(|| {
        let index = device::index(device)?;
        let mut attached = Vec::new();
        for attach in [Attach::TcxIngress, Attach::TcxEgress] {
            for position in [Position::First, Position::Last] {
                let bystander = Bystander::load()?;
                let link = bystander.program.attach(index, attach, position)?;
                attached.push(Attached {
                    place: format!("{device} {attach:?} {position:?}"),
                    bystander,
                    _link: link,
                });
            }
        }
        Ok(attached)
    })
}

#[test]
fn neighbours_on_our_devices_see_packets_and_are_named() -> Result<()> {
    let cluster = Cluster::builder().socket_lb(SocketLb::Off).build()?;
    cluster.route_services_to(1)?;
    let pods = [cluster.pod(1, 2), cluster.pod(2, 1)];
    let service = FAMILIES
        .into_iter()
        .fold(Service::cluster_ip("web", 1), |service, family| {
            service.load_balancer(address::load_balancer(family, 1))
        });
    let _web = Web::start_as(&cluster, service, &pods)?;
    let mut neighbours = surround(&cluster, "eth0")?;
    neighbours.extend(surround(&cluster, "veth1")?);
    let node = cluster.node(1);
    let filter = Bystander::load()?;
    let pinned = node.bpffs().join("bystander");
    pin::pin(filter.program.as_fd(), &pinned)?;
    for words in [
        "qdisc add dev eth0 clsact",
        "filter add dev eth0 ingress bpf direct-action object-pinned",
    ] {
        let mut tc = node.place()?.command("tc")?;
        tc.args(words.split(' '));
        if words.starts_with("filter") {
            tc.arg(&pinned);
        }
        output(&mut tc)?;
    }
    node.agent()?.restart()?;
    let (client, pod) = (cluster.client()?, cluster.pod(1, 1).peer()?);
    let mut table = Table::new();
    for family in FAMILIES {
        let (vip, cluster_ip) = (
            SocketAddr::new(address::load_balancer(family, 1), PORT),
            SocketAddr::new(address::service(family, 1), PORT),
        );
        let (own, inside, masked) = (
            cluster.client_address(family),
            cluster.pod(1, 1).address(family),
            node.address(family),
        );
        let both = |near, far| Outcome::answered([(pods[0].name(), near), (pods[1].name(), far)]);
        table.soon("external → VIP", &client, vip, &both(own, masked));
        table.soon("pod → ClusterIP", &pod, cluster_ip, &both(inside, inside));
    }
    table.finish()?;
    for Attached {
        place, bystander, ..
    } in &neighbours
    {
        ensure!(bystander.seen()? > 0, "nothing passed {place}");
    }
    ensure!(filter.seen()? > 0, "nothing passed the filter");
    // The agent's node has no API server, so `status` finds no problem to fail with.
    let status = node.agent()?.command(&["status"])?;
    let lines = |text: &str| status.lines().filter(|line| line.contains(text)).count();
    ensure!(
        lines("before ours") == 4 && lines("behind ours") == 5 && lines("filter ingress") == 1,
        "{status}"
    );
    Ok(())
}
