//! The network between nodes, control plane and the world outside: a router with a bridge, all in namespaces.
//!
//! ```text
//! outside ── router ─┬─ control plane
//!                    ├─ node 1 ── its pods
//!                    └─ node 2 ── its pods
//! ```
//!
//! Nothing leads out of it.

use std::process::Command;

use anyhow::Result;

use super::place::{self, LAN4, LAN6, OUTSIDE4, OUTSIDE6, PODS4, PODS6};
use super::process::{in_network, run};
use super::settings::Settings;

/// Makes router, control plane and outside; nodes come by [`connect_node`].
pub(super) fn create(settings: &Settings) -> Result<()> {
    let (router, outside) = (place::router(), place::outside());
    for namespace in [&router, &outside, &place::control_plane()] {
        add(namespace)?;
    }
    ip(&router, "link add lan type bridge")?;
    ip(&router, "link set lan up")?;
    ip(&router, &format!("addr add {LAN4}.1/24 dev lan"))?;
    ip(&router, &format!("addr add {LAN6}:1/64 dev lan nodad"))?;
    run(in_network(&router, "sysctl").args([
        "-qw",
        "net.ipv4.ip_forward=1",
        "net.ipv6.conf.all.forwarding=1",
        // A load balancer's connections go to nodes by their ports too, else one client would always meet one node.
        "net.ipv4.fib_multipath_hash_policy=1",
    ]))?;

    ip(
        &outside,
        &format!("link add eth0 type veth peer name outside netns {router}"),
    )?;
    ip(&router, &format!("addr add {OUTSIDE4}.1/24 dev outside"))?;
    ip(
        &router,
        &format!("addr add {OUTSIDE6}:1/64 dev outside nodad"),
    )?;
    ip(&router, "link set outside up")?;
    ip(&outside, &format!("addr add {OUTSIDE4}.2/24 dev eth0"))?;
    ip(
        &outside,
        &format!("addr add {OUTSIDE6}:2/64 dev eth0 nodad"),
    )?;
    ip(&outside, "link set eth0 up")?;
    ip(&outside, &format!("route add default via {OUTSIDE4}.1"))?;
    ip(&outside, &format!("route add default via {OUTSIDE6}:1"))?;

    attach(&place::control_plane(), 10)?;
    for namespace in [router, place::control_plane()] {
        routes_to_pods(&namespace, settings.numbers())?;
    }
    Ok(())
}

/// Makes a node's network namespace.
pub(super) fn connect_node(settings: &Settings, number: u8) -> Result<()> {
    let namespace = place::node(number);
    add(&namespace)?;
    attach(&namespace, 10 + number)?;
    routes_to_pods(
        &namespace,
        settings.numbers().filter(|other| *other != number),
    )
}

/// Removes a node's network namespace with what hangs on it.
pub(super) fn disconnect_node(number: u8) -> Result<()> {
    run(Command::new("ip").args(["netns", "delete", &place::node(number)]))?;
    // The other end of the cable goes at some later time, and its name is needed again.
    let cable = format!("link delete cable{}", 10 + number);
    let _ = ip(&place::router(), &cable);
    Ok(())
}

/// Removes every namespace of the cluster.
pub(super) fn remove() -> Result<()> {
    for name in namespaces() {
        run(Command::new("ip").args(["netns", "delete", &name]))?;
    }
    Ok(())
}

/// Network namespaces of the cluster that exist.
pub(super) fn namespaces() -> Vec<String> {
    let ours = |name: &String| {
        let fixed = [place::router(), place::control_plane(), place::outside()];
        fixed.contains(name) || (1..=9).any(|number| place::node(number) == *name)
    };
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(ours).collect()
}

fn add(namespace: &str) -> Result<()> {
    run(Command::new("ip").args(["netns", "add", namespace]))?;
    ip(namespace, "link set lo up")
}

/// Plugs a namespace into the bridge.
fn attach(namespace: &str, host: u8) -> Result<()> {
    let router = place::router();
    ip(
        namespace,
        &format!("link add eth0 type veth peer name cable{host} netns {router}"),
    )?;
    ip(&router, &format!("link set cable{host} master lan up"))?;
    ip(namespace, &format!("addr add {LAN4}.{host}/24 dev eth0"))?;
    ip(
        namespace,
        &format!("addr add {LAN6}:{host}/64 dev eth0 nodad"),
    )?;
    ip(namespace, "link set eth0 up")?;
    ip(namespace, &format!("route add default via {LAN4}.1"))?;
    ip(namespace, &format!("route add default via {LAN6}:1"))
}

fn routes_to_pods(namespace: &str, nodes: impl Iterator<Item = u8>) -> Result<()> {
    for node in nodes {
        let host = 10 + node;
        ip(
            namespace,
            &format!("route add {PODS4}.{node}.0/24 via {LAN4}.{host}"),
        )?;
        ip(
            namespace,
            &format!("route add {PODS6}:{node}::/64 via {LAN6}:{host}"),
        )?;
    }
    Ok(())
}

fn ip(namespace: &str, words: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["-n", namespace]).args(words.split(' '));
    run(&mut command).map(drop)
}
