//! Flows of outside clients: ports that collide, large datagrams, small paths, and agents that come and go.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lb_agent::snapshot::Family;
use lb_tests::address::FAMILIES;
use lb_tests::capture::Capture;
use lb_tests::cluster::Cluster;
use lb_tests::guards::Guards;
use lb_tests::in_both_layouts;
use lb_tests::link::Layout;
use lb_tests::manifests::Service;
use lb_tests::peer::protocol::{Direction, Pattern};
use lb_tests::scenario::{SOON, TARGET, Web, balanced, outlive_agents, vip};
use lb_tests::traffic::Peer;
use lb_tests::wait::eventually;

const NODE_PORT: u16 = 30_001;

fn service(number: u8) -> Service {
    balanced(number).node_port(30_000 + u16::from(number))
}

/// Waits until the VIP is served.
fn served(client: &Peer, number: u8) -> Result<()> {
    FAMILIES.into_iter().try_for_each(|family| {
        eventually("the VIP is served", SOON, || {
            let to = vip(family, number);
            Ok((client.ask_tcp(to).is_ok() && client.ask_udp(to).is_ok()).then_some(()))
        })
    })
}

/// Pods behind links of smaller packets, on this node and the other.
fn discover_a_smaller_path(cluster: &Cluster, layout: Layout) -> Result<()> {
    let (near, far) = (cluster.pod(1, 1), cluster.pod(2, 1));
    cluster.route_services_to(1)?;
    let _near = Web::start_as(cluster, service(1), &[near])?;
    let _far = Web::start_as(cluster, service(2), &[far])?;
    let client = cluster.client()?;
    for pod in [near, far] {
        for family in FAMILIES {
            let host = if family == Family::V4 { 32 } else { 128 };
            let own = pod.address(family);
            let device = match layout {
                Layout::Bridge => "cni0".into(),
                Layout::PointToPoint => format!("veth{}", pod.index()),
            };
            let route = format!("route replace {own}/{host} dev {device} mtu lock 1300");
            cluster.node(pod.node()).namespace().ip(&[route])?;
        }
    }
    for number in [1, 2] {
        served(&client, number)?;
        for family in FAMILIES {
            let moved = client.bulk(vip(family, number), Direction::Push, 4)?;
            assert!(moved.intact, "{moved:?}");
        }
    }
    Ok(())
}

in_both_layouts! {
    /// One client port towards two VIPs and a NodePort, all landing on one endpoint (§8).
    fn one_client_port_towards_several_services(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        for pod in [cluster.pod(1, 1), cluster.pod(2, 1)] {
            cluster.route_services_to(1)?;
            let _one = Web::start_as(&cluster, service(1), &[pod])?;
            let _two = Web::beside(&cluster, service(2), &[pod])?;
            let client = cluster.client()?;
            eventually("the endpoint is the one wanted", SOON, || {
                let found = FAMILIES.iter().all(|&family| [1, 2].into_iter().all(|number| {
                    client.ask_tcp(vip(family, number)).is_ok_and(|answer| answer.server == pod.name())
                }));
                Ok(found.then_some(()))
            })?;
            for family in FAMILIES {
                let node_port = SocketAddr::new(cluster.node(1).address(family), NODE_PORT);
                let all = [vip(family, 1), vip(family, 2), node_port];
                let sockets = all.map(|to| client.connect_from(41_000, to, SOON).map_err(anyhow::Error::new));
                let sockets = sockets.into_iter().collect::<Result<Vec<_>>>()?;
                for _ in 0..3 {
                    for (socket, to) in sockets.iter().zip(all) {
                        assert_eq!(socket.ask("hello")?.from, to);
                    }
                }
                let socket = client.udp_from(41_000, all[0])?;
                for to in [all, all].concat() {
                    let answer = socket.ask_at(to, "hello").with_context(|| format!("asking {to} over UDP, endpoint {}", pod.name()))?;
                    assert_eq!((answer.from, answer.server), (to, pod.name()));
                }
            }
        }
        Ok(())
    }

    /// E17: datagrams in fragments, to local and remote endpoints and back.
    /// Spec E17. Upstream: "should be able to handle large requests: udp".
    fn datagrams_larger_than_a_packet(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        cluster.route_services_to(1)?;
        let (near, far) = (cluster.pod(1, 1), cluster.pod(2, 1));
        let _near = Web::start_as(&cluster, service(1), &[near])?;
        let _far = Web::start_as(&cluster, service(2), &[far])?;
        let client = cluster.client()?;
        let text = "x".repeat(1_900);
        for number in [1, 2] {
            served(&client, number)?;
            for family in FAMILIES {
                let to = vip(family, number);
                for _ in 0..3 {
                    let answer = client.udp(to)?.ask_at(to, &text).with_context(|| format!("{to}"))?;
                    assert_eq!((answer.from, answer.text.len()), (to, text.len()));
                }
            }
        }
        Ok(())
    }

    /// E16: a smaller path behind the service is learned through it. The pod's own link has the smaller MTU, so the
    /// node sends the error.
    /// Spec E16.
    fn a_smaller_path_is_discovered_through_a_vip(layout: Layout) {
        for guards in [Guards::default(), Guards::strict()] {
            discover_a_smaller_path(&Cluster::builder().layout(layout).guards(guards).build()?, layout)?;
        }
        Ok(())
    }

    /// Bulk transfers through a VIP, both ways.
    /// Upstream: "should be able to handle large requests: http".
    fn transfers_are_intact(layout: Layout) {
        for offload in [true, false] {
            let cluster = Cluster::builder().layout(layout).tx_offload(offload).build()?;
            cluster.route_services_to(1)?;
            let (near, far) = (cluster.pod(1, 1), cluster.pod(2, 1));
            let _near = Web::start_as(&cluster, service(1), &[near])?;
            let _far = Web::start_as(&cluster, service(2), &[far])?;
            let client = cluster.client()?;
            for (number, pod) in [(1, near), (2, far)] {
                served(&client, number)?;
                for family in FAMILIES {
                    for direction in [Direction::Push, Direction::Pull] {
                        // A way that spoils offloads or checksums is slow every time, a machine that is busy not.
                        let fast_enough = || -> Result<Option<()>> {
                            let direct = client.bulk(pod.socket(family, TARGET), direction, 32)?;
                            let through = client.bulk(vip(family, number), direction, 32)?;
                            assert!(through.intact && through.server == pod.name(), "{through:?}");
                            Ok((through.mebibytes_per_second * 4.0 > direct.mebibytes_per_second).then_some(()))
                        };
                        let what = format!("{family:?} {direction:?} to {}, offload {offload}, has a quarter of the direct pace", pod.name());
                        eventually(&what, Duration::from_secs(20), fast_enough)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// J2: long flows and new ones over a dead, a restarted and a stopped agent.
    /// Spec J2, E12.
    fn flows_outlive_the_agent(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        cluster.route_services_to(1)?;
        let _web = Web::start_as(&cluster, service(1), &[cluster.pod(1, 1), cluster.pod(2, 1)])?;
        let client = cluster.client()?;
        served(&client, 1)?;
        let mut floods = Vec::new();
        for family in FAMILIES {
            for pattern in [Pattern::TcpStream, Pattern::UdpStream] {
                floods.push(client.flood(pattern, vip(family, 1), 2, Duration::from_millis(2))?);
            }
            // Slow enough for the tables' first size: with agents dead they do not grow.
            for pattern in [Pattern::TcpConnections, Pattern::UdpSockets] {
                floods.push(client.flood(pattern, vip(family, 1), 2, Duration::from_millis(20))?);
            }
        }
        outlive_agents(&cluster, floods)
    }

    /// Nothing that belongs to a translated flow is ever seen outside with an endpoint's address (E14), and the
    /// endpoint of another node never meets the client's.
    /// Spec E14.
    fn nothing_leaves_untranslated(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        cluster.route_services_to(1)?;
        let (near, far) = (cluster.pod(1, 1), cluster.pod(2, 1));
        let _web = Web::start_as(&cluster, service(1), &[near, far])?;
        let client = cluster.client()?;
        served(&client, 1)?;
        let outside = Capture::start(cluster.outside(), "eth0")?;
        let inside = Capture::start(far.namespace(), "eth0")?;
        for family in FAMILIES {
            for _ in 0..20 {
                client.ask_tcp(vip(family, 1))?;
                client.ask_udp(vip(family, 1))?;
            }
        }
        let pods = FAMILIES.map(|family| [near.address(family), far.address(family)]).concat();
        for packet in outside.finish() {
            assert!(!pods.contains(&packet.source), "{packet:?}");
        }
        let clients = FAMILIES.map(|family| cluster.client_address(family));
        for packet in inside.finish() {
            assert!(!clients.contains(&packet.source) && !clients.contains(&packet.destination), "{packet:?}");
        }
        Ok(())
    }
}
