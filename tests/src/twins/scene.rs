//! What every twin is prepared with: settings of its namespaces, clients and servers.

use std::path::Path;

use anyhow::Result;

use super::stage::{CLIENTS, TARGETS, Who};
use crate::cluster::Cluster;
use crate::netns::Namespace;
use crate::traffic::Peer;

/// Every refusal shall be seen, not only some a second.
pub(super) fn quieten(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.nodes().iter().map(|node| node.namespace());
    let pods = cluster.pods().map(|pod| pod.namespace());
    for namespace in nodes.chain(pods).chain([cluster.lan(), cluster.outside()]) {
        namespace.sysctl(&[
            // A client that was once sent to the router for an address that nobody served would go there for ever.
            ("ipv4/conf/all/accept_redirects", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv6/conf/all/accept_redirects", "0"),
            ("ipv4/icmp_ratemask", "0"),
            // A list, and no empty one: of a type that nobody sends.
            ("ipv6/icmp/ratemask", "200"),
            ("ipv6/icmp/ratelimit", "0"),
        ])?;
        // A namespace's own since Linux 6.12; before, nobody may change it here.
        let _ = namespace.sysctl(&[
            ("ipv4/icmp_msgs_per_sec", "1000000"),
            ("ipv4/icmp_msgs_burst", "1000000"),
        ]);
    }
    Ok(())
}

/// The network's router tells of every packet that leads nowhere. By a route that is `unreachable` it would tell a
/// client of one a second, whatever `icmp_ratemask` says, so that chance decided who hears of it.
pub(super) fn tell_of_every_stray(router: &Namespace) -> Result<()> {
    if Path::new("/proc/sys/net/bridge").exists() {
        // What is switched is none of this.
        router.sysctl(&[("bridge/bridge-nf-call-iptables", "0")])?;
    }
    router.ip(&["route replace default dev lan metric 0".into()])?;
    router.nft(
        "table ip strays {\n\
         chain forward {\n\
         type filter hook forward priority filter;\n\
         reject with icmp type net-unreachable\n\
         }\n\
         }\n",
    )
}

/// A device's own setting counts beside that for all.
pub(super) fn refuse_redirects(namespace: &Namespace, devices: &[&str]) -> Result<()> {
    for device in devices {
        let accept = [4, 6].map(|ip| format!("ipv{ip}/conf/{device}/accept_redirects"));
        let send = format!("ipv4/conf/{device}/send_redirects");
        namespace.sysctl(&[(&accept[0], "0"), (&accept[1], "0"), (&send, "0")])?;
    }
    Ok(())
}

/// With bridge-nf-call-iptables a bridge switches translated packets without routing them; towards the pod they came
/// from it does so in hairpin mode only, which CNIs set (`hairpinMode`).
pub(super) fn let_pods_meet_themselves(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let ports = node
            .pods()
            .iter()
            .map(|pod| format!("link set veth{} type bridge_slave hairpin on", pod.index()));
        node.namespace().ip(&ports.collect::<Vec<_>>())?;
    }
    Ok(())
}

pub(super) fn client(cluster: &Cluster, who: Who) -> Result<Peer> {
    match who {
        Who::Pod(node, index) => cluster.pod(node, index).peer(),
        Who::Host(node) => cluster.node(node).peer(),
        Who::Outside => cluster.client(),
    }
}

pub(super) fn clients(cluster: &Cluster) -> Result<Vec<Peer>> {
    CLIENTS.iter().map(|who| client(cluster, *who)).collect()
}

pub(super) fn servers(cluster: &Cluster) -> Result<Vec<Peer>> {
    let pods = cluster.pods().map(|pod| pod.serve(&TARGETS, &TARGETS));
    let nodes = cluster.nodes().iter().map(|node| {
        let peer = node.peer()?;
        peer.serve(&TARGETS, &TARGETS)?;
        Ok(peer)
    });
    pods.chain(nodes).collect()
}
