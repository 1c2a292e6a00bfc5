//! Translation at connect time: what sockets show, and how long they stay where they are.

use anyhow::{Context as _, Result};
use lb_agent::snapshot::Family;
use lb_tests::address::{self, FAMILIES, mapped};
use lb_tests::agent::SocketLb;
use lb_tests::capture::Capture;
use lb_tests::cluster::Cluster;
use lb_tests::link::Layout;
use lb_tests::peer::protocol::FailureKind;
use lb_tests::pod::Pod;
use lb_tests::scenario::{SOON, TARGET, Web};
use lb_tests::traffic::Peer;
use lb_tests::wait::eventually;

fn cluster(mode: SocketLb) -> Result<Cluster> {
    Cluster::builder()
        .layout(Layout::PointToPoint)
        .socket_lb(mode)
        .build()
}

/// Three endpoints, the client beside one of them.
fn endpoints(cluster: &Cluster) -> [&Pod; 3] {
    [cluster.pod(1, 2), cluster.pod(2, 1), cluster.pod(2, 2)]
}

#[test]
fn sockets_show_the_service_they_dialled() -> Result<()> {
    let cluster = cluster(SocketLb::All)?;
    let pods = endpoints(&cluster);
    let web = Web::start(&cluster, &pods)?;
    let client = cluster.pod(1, 1).peer()?;
    web.wait_for(&client, &pods)?;
    for family in FAMILIES {
        let vip = web.vip(family)?;
        for socket in [client.connect(vip)?, client.udp_connect(vip)?] {
            assert_eq!(
                (socket.ask("hello")?.from, socket.names_now()?.peer),
                (vip, Some(vip))
            );
        }
        assert_eq!(client.ask_udp(vip)?.from, vip);
    }
    Ok(())
}

#[test]
fn no_packet_carries_the_service_address() -> Result<()> {
    let cluster = cluster(SocketLb::All)?;
    let pods = endpoints(&cluster);
    let web = Web::start(&cluster, &pods)?;
    let client = cluster.pod(1, 1).peer()?;
    web.wait_for(&client, &pods)?;
    let wire = Capture::start(cluster.node(1).namespace(), "veth1")?;
    for family in FAMILIES {
        client.ask_tcp(web.vip(family)?)?;
        client.ask_udp(web.vip(family)?)?;
    }
    let packets = wire.finish();
    let is_vip = |address| {
        FAMILIES
            .iter()
            .any(|&family| address == address::service(family, 10))
    };
    assert!(
        packets
            .iter()
            .any(|packet| packet.destination_port == TARGET),
        "{packets:?}"
    );
    assert!(
        !packets
            .iter()
            .any(|packet| is_vip(packet.destination) || is_vip(packet.source)),
        "{packets:?}"
    );
    Ok(())
}

#[test]
fn an_ipv4_mapped_address_reaches_the_ipv4_service() -> Result<()> {
    let cluster = cluster(SocketLb::All)?;
    let pods = endpoints(&cluster);
    let web = Web::start(&cluster, &pods)?;
    let client = cluster.pod(1, 1).peer()?;
    web.wait_for(&client, &pods)?;
    let vip = mapped(web.vip(Family::V4)?);
    let connected = client.connect(vip)?;
    assert_eq!(
        (connected.ask("hello")?.from, connected.names_now()?.peer),
        (vip, Some(vip))
    );
    for answer in [client.ask_udp(vip)?, client.udp_connect(vip)?.ask("hello")?] {
        assert_eq!(
            (answer.from, answer.seen.ip()),
            (vip, cluster.pod(1, 1).address(Family::V4))
        );
    }
    web.set_endpoints(&[])?;
    let refused = eventually("the service has lost its endpoints", SOON, || {
        Ok(client.ask_tcp(vip).err())
    })?;
    assert_eq!(
        refused.failure().map(|failure| failure.kind),
        Some(FailureKind::Refused),
        "{refused}"
    );
    Ok(())
}

#[test]
fn an_unconnected_udp_socket_stays_on_its_endpoint_while_that_lives() -> Result<()> {
    let cluster = cluster(SocketLb::All)?;
    let pods = endpoints(&cluster);
    let web = Web::start(&cluster, &pods)?;
    let client = cluster.pod(1, 1).peer()?;
    web.wait_for(&client, &pods)?;
    for family in FAMILIES {
        web.set_endpoints(&pods)?;
        web.wait_for(&client, &pods)?;
        let vip = web.vip(family)?;
        let socket = client.udp(vip)?;
        let ask = || -> Result<_> { Ok(socket.ask_at(vip, "hello")?.server) };
        let first = ask()?;
        for _ in 0..30 {
            assert_eq!(ask()?, first);
        }
        let rest: Vec<_> = pods.into_iter().filter(|pod| pod.name() != first).collect();
        web.set_endpoints(&rest)?;
        let second = eventually("the socket moves on", SOON, || {
            Ok(Some(ask()?).filter(|server| *server != first))
        })?;
        for _ in 0..30 {
            assert_eq!(ask()?, second);
        }
    }
    Ok(())
}

#[test]
fn a_connected_udp_socket_is_told_that_its_endpoint_vanished() -> Result<()> {
    let cluster = cluster(SocketLb::All)?;
    let pods = endpoints(&cluster);
    let web = Web::start(&cluster, &pods)?;
    let clients = [cluster.pod(1, 1).peer()?, cluster.node(1).peer()?];
    for (client, family) in clients
        .iter()
        .flat_map(|client| FAMILIES.map(|family| (client, family)))
    {
        web.set_endpoints(&pods)?;
        web.wait_for(client, &pods)?;
        let vip = web.vip(family)?;
        let socket = client.udp_connect(vip)?;
        let first = socket.ask("hello")?.server;
        let rest: Vec<_> = pods.into_iter().filter(|pod| pod.name() != first).collect();
        // The server itself lives on: only the service's slice says that it is gone.
        web.set_endpoints(&rest)?;
        let told = eventually("the socket reports an error", SOON, || {
            Ok(socket.ask("still there?").err())
        })?;
        let kind = told.failure().context("the harness failed")?.kind;
        // A pod's packet is answered by a port-unreachable; a host's socket is destroyed
        // (ECONNABORTED while it receives, EDESTADDRREQ when it sends).
        assert!(
            matches!(kind, FailureKind::Refused | FailureKind::Broken),
            "{told}"
        );
        assert_ne!(client.udp_connect(vip)?.ask("hello again")?.server, first);
    }
    Ok(())
}

#[test]
fn a_host_process_reaches_services() -> Result<()> {
    for mode in [SocketLb::All, SocketLb::Host] {
        let cluster = cluster(mode)?;
        let pods = endpoints(&cluster);
        let web = Web::start(&cluster, &pods)?;
        let host = cluster.node(1).peer()?;
        web.wait_for(&host, &pods)?;
        for family in FAMILIES {
            let vip = web.vip(family)?;
            for answer in [host.ask_tcp(vip)?, host.ask_udp(vip)?] {
                assert_eq!(
                    (answer.from, answer.seen.ip()),
                    (vip, cluster.node(1).address(family))
                );
            }
        }
    }
    Ok(())
}

#[test]
fn in_host_mode_pods_are_served_by_their_packets() -> Result<()> {
    let cluster = cluster(SocketLb::Host)?;
    let pods = endpoints(&cluster);
    let web = Web::start(&cluster, &pods)?;
    let client = cluster.pod(1, 1).peer()?;
    web.wait_for(&client, &pods)?;
    for family in FAMILIES {
        let vip = web.vip(family)?;
        for ask in [Peer::ask_tcp, Peer::ask_udp] {
            let wire = Capture::start(cluster.node(1).namespace(), "veth1")?;
            ask(&client, vip)?;
            let packets = wire.finish();
            assert!(
                packets.iter().any(|packet| packet.destination == vip.ip()),
                "{packets:?}"
            );
        }
    }
    Ok(())
}
