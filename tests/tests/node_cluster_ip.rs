//! A ClusterIP, dialled from pods: who answers, and what both sides see.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lb_tests::address::FAMILIES;
use lb_tests::in_every_case;
use lb_tests::manifests::Service;
use lb_tests::peer::protocol::FailureKind;
use lb_tests::scenario::{SOON, TARGET, Web, check_even};
use lb_tests::traffic::{Failed, Peer};
use lb_tests::wait::eventually;

/// A refusal must come from the kernel's answer, not from a timer.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Long enough to tell a dropped packet from a slow one.
const DROPPED: Duration = Duration::from_millis(1500);

in_every_case! {
    /// Spec E23, D1. Upstream: "should function for pod-Service: http", "should function for pod-Service: udp".
    fn requests_spread_evenly_over_local_and_remote_endpoints(case: Case) {
        let cluster = case.cluster().pods_per_node(2).build()?;
        let pods = [cluster.pod(1, 2), cluster.pod(2, 1), cluster.pod(2, 2)];
        let web = Web::start(&cluster, &pods)?;
        let client = cluster.pod(1, 1).peer()?;
        web.wait_for(&client, &pods)?;
        for family in FAMILIES {
            let vip = web.vip(family)?;
            for ask in [Peer::ask_tcp, Peer::ask_udp] {
                let mut counts = BTreeMap::new();
                for _ in 0..300 {
                    *counts.entry(ask(&client, vip)?.server).or_insert(0) += 1;
                }
                assert_eq!(counts.len(), pods.len(), "{counts:?}");
                check_even(&counts.into_values().collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }

    /// Spec E1, D1. Upstream: "should preserve source pod IP for traffic thru service cluster IP".
    fn the_endpoint_sees_the_pod_and_the_pod_sees_the_service(case: Case) {
        let cluster = case.cluster().build()?;
        let pods = [cluster.pod(1, 2), cluster.pod(2, 1)];
        let web = Web::start(&cluster, &pods)?;
        let client = cluster.pod(1, 1).peer()?;
        web.wait_for(&client, &pods)?;
        for family in FAMILIES {
            let vip = web.vip(family)?;
            for answer in [client.ask_tcp(vip)?, client.ask_udp(vip)?, client.udp_connect(vip)?.ask("hello")?] {
                assert_eq!((answer.seen.ip(), answer.from), (cluster.pod(1, 1).address(family), vip), "{answer:?}");
                assert!(pods.iter().any(|pod| pod.socket(family, TARGET) == answer.own), "{answer:?}");
            }
        }
        Ok(())
    }

    /// Spec D12. Upstream: "should allow pods to hairpin back to themselves through services", "should function for
    /// endpoint-Service: http", "should function for endpoint-Service: udp".
    fn a_pod_reaches_itself_through_its_own_service(case: Case) {
        let cluster = case.cluster().build()?;
        let pod = cluster.pod(1, 1);
        let web = Web::start(&cluster, &[pod])?;
        let client = pod.peer()?;
        web.wait_for(&client, &[pod])?;
        for family in FAMILIES {
            let vip = web.vip(family)?;
            // A packet cannot come back to its sender from the sender's own address: the service lends its own.
            let source = if case.by_sockets() { pod.address(family) } else { vip.ip() };
            for answer in [client.ask_tcp(vip)?, client.ask_udp(vip)?] {
                assert_eq!((answer.server.as_str(), answer.seen.ip(), answer.from), (pod.name().as_str(), source, vip));
            }
        }
        Ok(())
    }

    /// Spec D4, §5.2.
    fn an_undefined_port_of_a_service_is_refused_at_once(case: Case) {
        let cluster = case.cluster().build()?;
        let pods = [cluster.pod(2, 1)];
        let web = Web::start(&cluster, &pods)?;
        let client = cluster.pod(1, 1).peer()?;
        web.wait_for(&client, &pods)?;
        for family in FAMILIES {
            assert_refused(&client, web.vip_port(family, 81)?)?;
        }
        Ok(())
    }

    /// Spec D2. Upstream: "should be rejected when no endpoints exist".
    fn a_service_without_endpoints_refuses_at_once(case: Case) {
        let cluster = case.cluster().build()?;
        let pods = [cluster.pod(2, 1)];
        let web = Web::start(&cluster, &pods)?;
        let client = cluster.pod(1, 1).peer()?;
        web.wait_for(&client, &pods)?;
        web.set_endpoints(&[])?;
        for family in FAMILIES {
            let vip = web.vip(family)?;
            eventually("the service has lost its endpoint", SOON, || Ok(client.ask_tcp(vip).is_err().then_some(())))?;
            assert_refused(&client, vip)?;
            if case.by_sockets() {
                assert_eq!(kind(client.ask_udp(vip)), Some(FailureKind::Refused));
            }
        }
        Ok(())
    }

    /// Spec D3, §5.7. Upstream: "should respect internalTrafficPolicy=Local Pod to Pod".
    fn a_local_only_service_drops_where_no_endpoint_is_local(case: Case) {
        let cluster = case.cluster().build()?;
        let pods = [cluster.pod(2, 1)];
        let web = Web::start_as(&cluster, Service::cluster_ip("near", 11).internal_local(), &pods)?;
        let near = cluster.pod(2, 2).peer()?;
        let far = cluster.pod(1, 1).peer()?;
        web.wait_for(&near, &pods)?;
        for family in FAMILIES {
            let vip = web.vip(family)?;
            // Node 1 learns of the service on its own: until then the LAN's router answers "unreachable".
            let dropped = || far.connect_from(0, vip, DROPPED).map(drop);
            eventually("node 1 knows the service", SOON, || {
                Ok((kind(dropped()) != Some(FailureKind::Unreachable)).then_some(()))
            })?;
            assert_eq!(kind(dropped()), Some(FailureKind::TimedOut));
            assert_eq!(kind(far.udp(vip)?.ask_for(Some(vip), "hello", DROPPED)), Some(FailureKind::TimedOut));
        }
        Ok(())
    }

    /// Spec D1, §5.7. Upstream: "should respect internalTrafficPolicy=Local Pod to Pod".
    fn a_local_only_service_uses_local_endpoints_only(case: Case) {
        let cluster = case.cluster().pods_per_node(3).build()?;
        let pods = [cluster.pod(1, 2), cluster.pod(1, 3), cluster.pod(2, 1)];
        let web = Web::start_as(&cluster, Service::cluster_ip("near", 11).internal_local(), &pods)?;
        let clients = [cluster.pod(1, 1).peer()?, cluster.pod(2, 2).peer()?];
        web.wait_for(&clients[0], &pods[..2])?;
        web.wait_for(&clients[1], &pods[2..])?;
        web.set_endpoints(&[])?;
        for (client, family) in clients.iter().zip(FAMILIES) {
            let vip = web.vip(family)?;
            eventually("nobody is left", SOON, || {
                let refused = kind(client.connect(vip).map(drop)) == Some(FailureKind::Refused);
                Ok(refused.then_some(()))
            })?;
        }
        Ok(())
    }

    /// Spec D1, D3. Upstream: "should respect internalTrafficPolicy=Local Pod (hostNetwork: true) to Pod".
    fn a_local_only_service_is_so_for_processes_of_the_node(case: Case) {
        let cluster = case.cluster().build()?;
        let pods = [cluster.pod(2, 1)];
        let web = Web::start_as(&cluster, Service::cluster_ip("near", 11).internal_local(), &pods)?;
        let (near, far) = (cluster.node(2).peer()?, cluster.node(1).peer()?);
        web.wait_for(&near, &pods)?;
        for family in FAMILIES {
            let vip = web.vip(family)?;
            let dropped = || far.connect_from(0, vip, DROPPED).map(drop);
            eventually("node 1 knows the service", SOON, || {
                Ok((kind(dropped()) == Some(FailureKind::TimedOut)).then_some(()))
            })?;
            assert_eq!(kind(dropped()), Some(FailureKind::TimedOut));
        }
        Ok(())
    }

    /// Spec B20, E13. Upstream: "should update endpoints: http", "should update endpoints: udp".
    fn changed_endpoints_are_followed(case: Case) {
        let cluster = case.cluster().pods_per_node(3).build()?;
        let (first, second) = ([cluster.pod(1, 2), cluster.pod(2, 1)], [cluster.pod(1, 3), cluster.pod(2, 2)]);
        let mut web = Web::start(&cluster, &first)?;
        second.iter().try_for_each(|pod| web.serve(pod))?;
        let client = cluster.pod(1, 1).peer()?;
        web.wait_for(&client, &first)?;
        web.set_endpoints(&second)?;
        let changed = Instant::now();
        let vip = web.vip(FAMILIES[0])?;
        eventually("a new endpoint answers", SOON, || {
            let server = client.ask_tcp(vip)?.server;
            Ok(second.iter().any(|pod| pod.name() == server).then_some(()))
        })?;
        assert!(changed.elapsed() < Duration::from_secs(1), "it took {:?}", changed.elapsed());
        web.wait_for(&client, &second)?;
        web.set_endpoints(&[first[0], second[1]])?;
        web.wait_for(&client, &[first[0], second[1]])
    }

    /// Upstream: "Should be able to send traffic between Pods without SNAT".
    fn traffic_that_is_no_service_is_left_alone(case: Case) {
        let cluster = case.cluster().build()?;
        let pods = [cluster.pod(1, 2), cluster.pod(2, 1)];
        let web = Web::start(&cluster, &pods)?;
        let client = cluster.pod(1, 1).peer()?;
        web.wait_for(&client, &pods)?;
        for family in FAMILIES {
            for pod in pods {
                let target = pod.socket(family, TARGET);
                for answer in [client.ask_tcp(target)?, client.ask_udp(target)?] {
                    assert_eq!((answer.from, answer.own, answer.seen.ip()), (target, target, cluster.pod(1, 1).address(family)));
                }
            }
            assert!(client.reaches(cluster.node(2).address(family)));
        }
        Ok(())
    }
}

/// Two services with one endpoint: the replies of both connections look alike until one of them is changed.
#[test]
fn one_client_port_reaches_two_services_on_one_endpoint() -> Result<()> {
    use lb_tests::agent::SocketLb;
    use lb_tests::link::Layout;
    use lb_tests::scenario::Case;

    for layout in [Layout::Bridge, Layout::PointToPoint] {
        let cluster = Case {
            layout,
            socket_lb: SocketLb::Off,
        }
        .cluster()
        .build()?;
        let pods = [cluster.pod(2, 1)];
        let web = Web::start(&cluster, &pods)?;
        let twin = Web::start_as(&cluster, Service::cluster_ip("twin", 12), &[])?;
        twin.set_endpoints(&pods)?;
        let client = cluster.pod(1, 1).peer()?;
        web.wait_for(&client, &pods)?;
        twin.wait_for(&client, &pods)?;
        for family in FAMILIES {
            let (one, other) = (web.vip(family)?, twin.vip(family)?);
            let first = client.connect_from(40_000, one, SOON)?;
            first.ask("one")?;
            let second = client.connect_from(40_000, other, SOON)?;
            assert_eq!(
                (second.ask("other")?.from, first.ask("one again")?.from),
                (other, one)
            );
            let socket = client.udp_from(40_000, one)?;
            for vip in [one, other, one, other] {
                assert_eq!(socket.ask_at(vip, "hello")?.from, vip);
            }
        }
    }
    Ok(())
}

/// Checks that TCP and connected UDP are told "refused", and soon.
fn assert_refused(client: &Peer, to: SocketAddr) -> Result<()> {
    let tcp = client
        .ask_tcp(to)
        .err()
        .with_context(|| format!("{to} accepted a connection"))?;
    let failure = tcp.failure().context("the harness failed")?;
    assert_eq!(failure.kind, FailureKind::Refused, "{tcp}");
    assert!(Duration::from_micros(failure.micros) < AT_ONCE, "{tcp}");
    let asked = Instant::now();
    assert_eq!(
        kind(
            client
                .udp_connect(to)
                .and_then(|socket| socket.ask("hello"))
        ),
        Some(FailureKind::Refused)
    );
    assert!(
        asked.elapsed() < AT_ONCE,
        "UDP was refused after {:?}",
        asked.elapsed()
    );
    Ok(())
}

fn kind<T>(outcome: Result<T, Failed>) -> Option<FailureKind> {
    outcome
        .err()
        .and_then(|failed| failed.failure().map(|failure| failure.kind))
}
