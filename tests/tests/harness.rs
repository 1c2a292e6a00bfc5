//! The harness itself: the network carries traffic without any agent, and nothing is left of it afterwards.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use lb_tests::address::{self, CLIENT, FAMILIES, mapped};
use lb_tests::capture::Capture;
use lb_tests::cluster::{Builder, Cluster};
use lb_tests::link::Layout;
use lb_tests::netns::Namespace;
use lb_tests::peer::protocol::{Direction, FailureKind, Pattern, Step};
use lb_tests::process::Place;
use lb_tests::{cgroup, scope};

const PORT: u16 = 8080;

fn network(layout: Layout) -> Builder {
    Cluster::builder().layout(layout).without_agents()
}

fn every_pod_reaches_every_other(layout: Layout) -> Result<()> {
    let cluster = network(layout).build()?;
    let servers = cluster
        .pods()
        .map(|pod| pod.serve(&[PORT], &[PORT]))
        .collect::<Result<Vec<_>>>()?;
    for from in cluster.pods() {
        let client = from.peer()?;
        for (to, server) in cluster.pods().zip(&servers) {
            for family in FAMILIES {
                let target = to.socket(family, PORT);
                for answer in [client.ask_tcp(target)?, client.ask_udp(target)?] {
                    assert_eq!(
                        (answer.server.as_str(), answer.own),
                        (server.name(), target)
                    );
                    assert_eq!(answer.seen.ip(), from.address(family));
                    assert_eq!(answer.from, target);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn every_pod_reaches_every_other_on_bridges() -> Result<()> {
    every_pod_reaches_every_other(Layout::Bridge)
}

#[test]
fn every_pod_reaches_every_other_on_point_to_point_links() -> Result<()> {
    every_pod_reaches_every_other(Layout::PointToPoint)
}

fn first_packets_wait_for_nothing(layout: Layout) -> Result<()> {
    let cluster = network(layout).build()?;
    let _servers = [
        cluster.pod(1, 2).serve(&[PORT], &[])?,
        cluster.pod(2, 1).serve(&[PORT], &[])?,
    ];
    let client = cluster.pod(1, 1).peer()?;
    for family in FAMILIES {
        for to in [cluster.pod(1, 2), cluster.pod(2, 1)] {
            let opened = client.connect(to.socket(family, PORT))?;
            assert!(
                opened.micros < 200_000,
                "the first connection took {} µs",
                opened.micros
            );
        }
    }
    Ok(())
}

#[test]
fn first_packets_wait_for_nothing_on_bridges() -> Result<()> {
    first_packets_wait_for_nothing(Layout::Bridge)
}

#[test]
fn first_packets_wait_for_nothing_on_point_to_point_links() -> Result<()> {
    first_packets_wait_for_nothing(Layout::PointToPoint)
}

#[test]
fn nodes_and_the_outside_client_reach_pods_and_each_other() -> Result<()> {
    let cluster = network(Layout::PointToPoint).build()?;
    let server = cluster.pod(2, 1).serve(&[PORT], &[])?;
    let (host, outside) = (cluster.node(1).peer()?, cluster.client()?);
    for family in FAMILIES {
        let target = cluster.pod(2, 1).socket(family, PORT);
        let by_host = host.ask_tcp(target)?;
        assert_eq!(
            (by_host.server.as_str(), by_host.seen.ip()),
            (server.name(), cluster.node(1).address(family))
        );
        assert_eq!(
            outside.ask_tcp(target)?.seen.ip(),
            address::lan(family, CLIENT)
        );
        assert!(outside.reaches(cluster.node(1).address(family)));
    }
    Ok(())
}

#[test]
fn an_untranslated_service_address_is_unreachable() -> Result<()> {
    let cluster = network(Layout::Bridge).build()?;
    let client = cluster.pod(1, 1).peer()?;
    for family in FAMILIES {
        let nowhere = SocketAddr::new(address::service(family, 10), 80);
        let failure = client.ask_tcp(nowhere).unwrap_err();
        assert_eq!(
            failure.failure().map(|failure| failure.kind),
            Some(FailureKind::Unreachable),
            "{failure}"
        );
    }
    Ok(())
}

#[test]
fn peers_tell_refused_from_timed_out_and_keep_their_source_port() -> Result<()> {
    let cluster = network(Layout::Bridge).build()?;
    let _server = cluster.pod(1, 2).serve(&[PORT], &[PORT])?;
    let client = cluster.pod(1, 1).peer()?;
    for family in FAMILIES {
        let closed = cluster.pod(1, 2).socket(family, 9);
        let refused = client.ask_tcp(closed).unwrap_err();
        assert_eq!(
            refused.failure().map(|f| (f.kind, f.step)),
            Some((FailureKind::Refused, Step::Open))
        );
        let socket = client.udp_connect(closed)?;
        let refused = socket.ask("anyone?").unwrap_err();
        assert_eq!(
            refused.failure().map(|failure| failure.kind),
            Some(FailureKind::Refused),
            "{refused}"
        );

        let target = cluster.pod(1, 2).socket(family, PORT);
        let socket = client.connect_from(40_000, target, Duration::from_secs(1))?;
        assert_eq!(socket.ask("hello")?.seen.port(), 40_000);
        assert_eq!(socket.names_now()?.peer, Some(target));
        assert_eq!(
            client
                .udp_from(40_001, target)?
                .ask_at(target, "hello")?
                .seen
                .port(),
            40_001
        );
    }
    let target = mapped(cluster.pod(1, 2).socket(FAMILIES[0], PORT));
    assert!(
        client.ask_tcp(target)?.from.is_ipv6(),
        "a mapped address is dialled by an IPv6 socket"
    );
    assert_eq!(client.ask_udp(target)?.from, target);
    Ok(())
}

#[test]
fn bulk_arrives_intact_with_jumbo_frames_and_without_offload() -> Result<()> {
    let cluster = network(Layout::PointToPoint)
        .mtu(9000)
        .tx_offload(false)
        .build()?;
    let _server = cluster.pod(2, 1).serve(&[PORT], &[])?;
    let client = cluster.pod(1, 1).peer()?;
    for family in FAMILIES {
        for direction in [Direction::Push, Direction::Pull] {
            let transfer = client.bulk(cluster.pod(2, 1).socket(family, PORT), direction, 16)?;
            assert!(transfer.intact, "{transfer:?}");
        }
    }
    Ok(())
}

#[test]
fn background_traffic_is_counted_by_server() -> Result<()> {
    let cluster = network(Layout::Bridge).build()?;
    let server = cluster.pod(2, 1).serve(&[PORT], &[PORT])?;
    let client = cluster.pod(1, 1).peer()?;
    let target = cluster.pod(2, 1).socket(FAMILIES[0], PORT);
    let patterns = [
        Pattern::TcpConnections,
        Pattern::TcpStream,
        Pattern::UdpSockets,
        Pattern::UdpStream,
    ];
    for pattern in patterns {
        let flood = client.flood(pattern, target, 4, Duration::ZERO)?;
        lb_tests::wait::eventually("100 requests are answered", Duration::from_secs(10), || {
            Ok((flood.report()?.answered() >= 100).then_some(()))
        })?;
        let tally = flood.finish()?;
        assert_eq!(
            (
                tally.failed(),
                tally.answers.keys().map(String::as_str).collect::<Vec<_>>()
            ),
            (0, vec![server.name()]),
            "{tally:?}"
        );
    }
    let served = server.served()?;
    assert!(served.tcp >= 200 && served.udp >= 200, "{served:?}");
    Ok(())
}

#[test]
fn a_capture_shows_what_passed_and_nothing_else() -> Result<()> {
    let cluster = network(Layout::Bridge).build()?;
    let _server = cluster.pod(2, 1).serve(&[PORT], &[])?;
    let client = cluster.pod(1, 1).peer()?;
    let uplink = Capture::start(cluster.node(1).namespace(), "eth0")?;
    let target = cluster.pod(2, 1).socket(FAMILIES[0], PORT);
    client.ask_tcp(target)?;
    let packets = uplink.finish();
    let ours = packets
        .iter()
        .filter(|packet| packet.destination == target.ip() && packet.destination_port == PORT);
    assert!(ours.count() >= 3, "{packets:?}");
    assert!(
        !packets
            .iter()
            .any(|packet| packet.destination == Ipv4Addr::new(10, 96, 0, 10))
    );
    Ok(())
}

#[test]
fn nothing_is_left_of_a_cluster_after_a_panic() -> Result<()> {
    let mut scope = None;
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        let cluster = network(Layout::PointToPoint)
            .build()
            .expect("the cluster comes up");
        scope = Some(cluster.scope().clone());
        let _server = cluster
            .pod(1, 1)
            .serve(&[PORT], &[PORT])
            .expect("the server starts");
        assert!(
            !cluster
                .scope()
                .remains()
                .expect("remains can be read")
                .is_empty()
        );
        panic!("a test fails here on purpose");
    }));
    assert!(outcome.is_err());
    assert_eq!(
        scope.expect("the cluster came up").remains()?,
        Vec::<String>::new()
    );
    Ok(())
}

#[test]
fn leftovers_of_a_killed_process_are_removed_by_the_next_run() -> Result<()> {
    // No process has this number: pid_max is 4194304 at most.
    let (namespace, label) = ("beeline-4194305-1-node1", "beeline-tests-4194305-1");
    let (files, group) = (Path::new("/run").join(label), cgroup::root()?.join(label));
    scope::require_root()?;
    Namespace::create(&[namespace.into()])?;
    fs::create_dir_all(files.join("node1"))?;
    cgroup::create(&group, &["node1"])?;
    let _sleeper = Place {
        namespace: Namespace::named(namespace),
        cgroup: group.join("node1"),
    }
    .command("sleep")?
    .arg("1000")
    .spawn()?;

    scope::sweep()?;

    let gone = |path: &Path| !path.exists();
    assert!(gone(&Path::new("/run/netns").join(namespace)) && gone(&files) && gone(&group));
    Ok(())
}
