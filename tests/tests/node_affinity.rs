//! Session affinity `ClientIP`: a client keeps its endpoint while it lives and the client is not silent too long.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use lb_tests::address::FAMILIES;
use lb_tests::cluster::Cluster;
use lb_tests::manifests::Service;
use lb_tests::scenario::{SOON, Web};
use lb_tests::traffic::Peer;
use lb_tests::wait::eventually;
use lb_tests::{in_both_layouts, in_every_case};

/// The client's endpoint, once its sockets are served. The first answer may have come by packets: a SYN from
/// before the service was known is translated when it is repeated. To the packet path a client is an address,
/// to the socket hooks a network namespace.
fn settled(client: &Peer, vip: SocketAddr) -> anyhow::Result<String> {
    eventually("the service answers", SOON, || Ok(client.ask_tcp(vip).ok()))?;
    Ok(client.ask_tcp(vip)?.server)
}

fn sticky(seconds: u32) -> Service {
    Service::cluster_ip("sticky", 20).affinity(seconds)
}

in_every_case! {
    /// Spec F1, F2. Upstream: "should have session affinity work for service with type clusterIP", "should function for
    /// client IP based session affinity: http", "should function for client IP based session affinity: udp".
    fn a_client_stays_on_its_endpoint(case: Case) {
        let cluster = case.cluster().build()?;
        let pods = [cluster.pod(1, 2), cluster.pod(2, 1), cluster.pod(2, 2)];
        let web = Web::start_as(&cluster, sticky(3600), &pods)?;
        let client = cluster.pod(1, 1).peer()?;
        for family in FAMILIES {
            let vip = web.vip(family)?;
            for ask in [Peer::ask_tcp, Peer::ask_udp] {
                eventually("the service answers", SOON, || Ok(ask(&client, vip).ok()))?;
                let servers = (0..30).map(|_| Ok(ask(&client, vip)?.server)).collect::<anyhow::Result<BTreeSet<_>>>()?;
                assert_eq!(servers.len(), 1, "{servers:?}");
            }
        }
        Ok(())
    }

    /// Spec F1, F9.
    fn another_process_of_the_same_pod_is_the_same_client(case: Case) {
        let cluster = case.cluster().build()?;
        let pods = [cluster.pod(1, 2), cluster.pod(2, 1), cluster.pod(2, 2)];
        let web = Web::start_as(&cluster, sticky(3600), &pods)?;
        for family in FAMILIES {
            let vip = web.vip(family)?;
            let first = cluster.pod(1, 1).peer()?;
            let server = settled(&first, vip)?;
            drop(first);
            for _ in 0..5 {
                assert_eq!(cluster.pod(1, 1).peer()?.ask_tcp(vip)?.server, server);
            }
        }
        Ok(())
    }

    /// Spec F3, F4.
    fn a_client_leaves_an_endpoint_that_is_gone(case: Case) {
        let cluster = case.cluster().build()?;
        let pods = [cluster.pod(1, 2), cluster.pod(2, 1), cluster.pod(2, 2)];
        let web = Web::start_as(&cluster, sticky(3600), &pods)?;
        let client = cluster.pod(1, 1).peer()?;
        let vip = web.vip(FAMILIES[0])?;
        let gone = settled(&client, vip)?;
        let rest: Vec<_> = pods.into_iter().filter(|pod| pod.name() != gone).collect();
        web.set_endpoints(&rest)?;
        let next = eventually("another endpoint answers", SOON, || {
            Ok(Some(client.ask_tcp(vip)?.server).filter(|server| *server != gone))
        })?;
        for _ in 0..20 {
            assert_eq!(client.ask_tcp(vip)?.server, next);
        }
        Ok(())
    }

    /// Spec F7, A24. Upstream: "should have session affinity timeout work for service with type clusterIP", "should have
    /// session affinity timeout work for NodePort service".
    fn a_client_that_was_silent_too_long_may_get_another_endpoint(case: Case) {
        let cluster = case.cluster().build()?;
        let pods = [cluster.pod(1, 2), cluster.pod(2, 1), cluster.pod(2, 2)];
        let web = Web::start_as(&cluster, sticky(1).node_port(30_001), &pods)?;
        let client = cluster.pod(1, 1).peer()?;
        let node_port = SocketAddr::new(cluster.node(1).address(FAMILIES[0]), 30_001);
        for to in [web.vip(FAMILIES[0])?, node_port] {
            let first = settled(&client, to)?;
            assert_eq!(client.ask_tcp(to)?.server, first);
            // Twelve new choices among three: all the same once in 500,000 runs. Rest is counted in whole seconds, so that
            // a second is over for certain only after two.
            let moved = (0..12).any(|_| {
                thread::sleep(Duration::from_millis(2100));
                client.ask_tcp(to).is_ok_and(|answer| answer.server != first)
            });
            assert!(moved, "{to}: after each silence of 2.1 s it was {first} again");
        }
        Ok(())
    }
}

in_both_layouts! {
    /// Spec F5: through another node the same client may get another endpoint.
    fn each_node_remembers_for_itself(layout: Layout) {
        const SERVICES: u8 = 24;
        let cluster = Cluster::builder().layout(layout).build()?;
        let pods = [cluster.pod(1, 1), cluster.pod(2, 1)];
        let service = |number: u8| {
            Service::cluster_ip(&format!("s{number}"), number).affinity(3600).node_port(30_000 + u16::from(number))
        };
        let _first = Web::start_as(&cluster, service(1), &pods)?;
        let _others = (2..=SERVICES).map(|number| Web::beside(&cluster, service(number), &pods)).collect::<anyhow::Result<Vec<_>>>()?;
        let client = cluster.client()?;
        let mut differ = 0;
        for number in 1..=SERVICES {
            let mut choices = BTreeSet::new();
            for node in cluster.nodes() {
                let to = SocketAddr::new(node.address(FAMILIES[0]), 30_000 + u16::from(number));
                let choice = settled(&client, to)?;
                for _ in 0..4 {
                    assert_eq!(client.ask_tcp(to)?.server, choice);
                }
                choices.insert(choice);
            }
            differ += usize::from(choices.len() > 1);
        }
        // Each Service is a coin: all alike once in 10^7 times.
        assert!(differ > 0, "both nodes chose alike for {SERVICES} Services");
        Ok(())
    }
}
