//! Nodes with more than one way to the world: requests that come in by one and are answered by another, ways that
//! come and go while the agent runs, and sides that differ in how large a packet may be.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_agent::snapshot::Family;
use lb_tests::address::FAMILIES;
use lb_tests::cluster::Cluster;
use lb_tests::guards::Guards;
use lb_tests::in_both_layouts;
use lb_tests::link::Layout;
use lb_tests::scenario::{SOON, Web, balanced, check_transfers, vip};
use lb_tests::table::{Outcome, Table};
use lb_tests::traffic::Peer;
use lb_tests::wait::eventually;

/// The wires here are veths whose other end is elsewhere, as pods' are: names tell them apart.
const PODS: [&str; 4] = [
    "--detect-local-mode",
    "InterfaceNamePrefix",
    "--pod-interface-name-prefix",
    "veth",
];

/// How long a datagram's answer may take.
const PATIENCE: Duration = Duration::from_millis(700);

/// The second wire between the client and node 1: the node is 11, the client 100.
fn second(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([172, 30, 0, host]),
        Family::V6 => IpAddr::from([0xfd30, 0, 0, 0, 0, 0, 0, u16::from(host)]),
    }
}

/// Lays a second wire between the client and node 1. The client sends to VIPs over it, from the address it has on the
/// first one, so that answers take that.
fn second_wire(cluster: &Cluster, mtu: u32) -> Result<()> {
    let (node, client) = (cluster.node(1).namespace(), cluster.outside());
    node.ip(&[
        format!(
            "link add eth1 mtu {mtu} type veth peer name eth1 mtu {mtu} netns {}",
            client.name()
        ),
        "link set eth1 up".into(),
    ])?;
    client.ip(&["link set eth1 up".into()])?;
    for (namespace, host) in [(node, 11), (client, 100)] {
        namespace.sysctl(&[
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/eth1/rp_filter", "0"),
            ("ipv4/conf/eth0/rp_filter", "0"),
        ])?;
        namespace.ip(&FAMILIES.map(|family| {
            let (length, nodad) = match family {
                Family::V4 => (24, ""),
                Family::V6 => (64, " nodad"),
            };
            format!(
                "address add {}/{length} dev eth1{nodad}",
                second(family, host)
            )
        }))?;
    }
    client.ip(&FAMILIES.map(|family| {
        let range = balancers(family);
        let (via, own) = (second(family, 11), cluster.client_address(family));
        format!("route replace {range} via {via} dev eth1 src {own}")
    }))
}

fn balancers(family: Family) -> &'static str {
    match family {
        Family::V4 => "198.51.100.0/24",
        Family::V6 => "fd51::/64",
    }
}

/// In IPv6 nobody on the way may cut a datagram, nor in IPv4 one that says so: the first ones only teach their
/// sender the size.
fn large_datagram(client: &Peer, dialled: SocketAddr) -> Result<()> {
    let text = "x".repeat(1_900);
    let answer = eventually("a large datagram is answered", SOON, || {
        let socket = client.udp(dialled)?;
        Ok(socket.ask_for(Some(dialled), &text, PATIENCE).ok())
    });
    let answer = answer.with_context(|| format!("from {dialled}"))?;
    ensure!(
        (answer.from, answer.text.len()) == (dialled, text.len()),
        "{answer:?}"
    );
    Ok(())
}

/// Clients behind a wire of small packets, endpoints with large ones.
fn differ_in_the_size_of_packets(cluster: &Cluster, layout: Layout) -> Result<()> {
    let (near, far) = (cluster.pod(1, 1), cluster.pod(2, 1));
    for pod in [near, far] {
        let mut lines = vec![format!("link set veth{} mtu 9000", pod.index())];
        if layout == Layout::Bridge {
            lines.push("link set cni0 mtu 9000".into());
        }
        cluster.node(pod.node()).namespace().ip(&lines)?;
        pod.namespace().ip(&["link set eth0 mtu 9000".into()])?;
    }
    second_wire(cluster, 1400)?;
    // Answers take the small wire, too.
    for family in FAMILIES {
        let length = if family == Family::V4 { 32 } else { 128 };
        let (own, via) = (cluster.client_address(family), second(family, 100));
        cluster
            .node(1)
            .namespace()
            .ip(&[format!("route add {own}/{length} via {via} dev eth1")])?;
    }
    let _near = Web::start_as(cluster, balanced(1), &[near])?;
    let _far = Web::start_as(cluster, balanced(2), &[far])?;
    let client = cluster.client()?;
    let mut table = Table::new();
    for family in FAMILIES {
        for (number, pod) in [(1, near), (2, far)] {
            let seen = if number == 1 {
                cluster.client_address(family)
            } else {
                cluster.node(1).address(family)
            };
            table.soon(
                "external → VIP",
                &client,
                vip(family, number),
                &Outcome::answered([(pod.name(), seen)]),
            );
        }
    }
    table.finish()?;
    for family in FAMILIES {
        for number in [1, 2] {
            check_transfers(&client, vip(family, number), 10.0)?;
            large_datagram(&client, vip(family, number))?;
        }
    }
    Ok(())
}

in_both_layouts! {
    /// Requests come in by a wire that was not there when the agent started, answers leave by another. The wire
    /// goes, and comes again as another device of the same name.
    fn requests_and_answers_take_different_ways(layout: Layout) {
        // Strict checks of sources forbid this kind of network.
        let cluster = Cluster::builder().layout(layout).guards(Guards::default()).agent_arguments(&PODS).build()?;
        let (near, far) = (cluster.pod(1, 1), cluster.pod(2, 1));
        let _near = Web::start_as(&cluster, balanced(1), &[near])?;
        let _far = Web::start_as(&cluster, balanced(2), &[far])?;
        let _local = Web::beside(&cluster, balanced(3).external_local(), &[near])?;
        let client = cluster.client()?;
        let rows = |table: &mut Table| {
            for family in FAMILIES {
                let own = cluster.client_address(family);
                let masked = cluster.node(1).address(family);
                for (number, pod, seen) in [(1, near, own), (2, far, masked), (3, near, own)] {
                    table.soon(format!("external → VIP of S{number}"), &client, vip(family, number),
                        &Outcome::answered([(pod.name(), seen)]));
                }
            }
        };
        let mut table = Table::new();
        second_wire(&cluster, 1500)?;
        rows(&mut table);
        for family in FAMILIES {
            for number in [1, 2] {
                check_transfers(&client, vip(family, number), 10.0)?;
                large_datagram(&client, vip(family, number))?;
            }
        }
        cluster.node(1).namespace().ip(&["link delete eth1".into()])?;
        cluster.route_services_to(1)?;
        rows(&mut table);
        second_wire(&cluster, 1500)?;
        rows(&mut table);
        table.finish()
    }

    /// Clients behind a wire of small packets, endpoints with large ones.
    fn sides_differ_in_the_size_of_packets(layout: Layout) {
        // Hosts that track connections put fragments together.
        for guards in [Guards::default(), Guards::strict()] {
            let cluster = Cluster::builder().layout(layout).guards(guards).agent_arguments(&PODS).build()?;
            differ_in_the_size_of_packets(&cluster, layout)?;
        }
        Ok(())
    }
}
