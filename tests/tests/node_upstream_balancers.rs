//! What upstream's end-to-end tests of load balancers assert, where it takes no cloud: in namespaces, in both families,
//! with the titles of the tests.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_agent::snapshot::Family;
use lb_tests::address::{self, FAMILIES};
use lb_tests::cluster::Cluster;
use lb_tests::in_both_layouts;
use lb_tests::manifests::Service;
use lb_tests::scenario::{PORT, SOON, Web, who_answers};
use lb_tests::traffic::Peer;
use lb_tests::wait::eventually;

const NODE_PORT: u16 = 30_001;
const HEALTH_PORT: u16 = 30_500;

fn balanced(service: Service) -> Service {
    FAMILIES.into_iter().fold(service, |service, family| {
        service.load_balancer(address::load_balancer(family, 1))
    })
}

fn vip(family: Family) -> SocketAddr {
    SocketAddr::new(address::load_balancer(family, 1), PORT)
}

/// Those who answer, of `count` that might; `None` if somebody does not.
fn answering(client: &Peer, to: SocketAddr, count: usize) -> Option<BTreeSet<String>> {
    who_answers(count, || {
        client.ask_tcp(to).ok().map(|answer| answer.server)
    })
}

/// Spec F1, F6. Soon, one endpoint serves the client if `sticky`, else all do.
fn affinity_is(client: &Peer, sticky: bool, count: usize) -> Result<()> {
    FAMILIES.into_iter().try_for_each(|family| {
        eventually("affinity is what it was switched to", SOON, || {
            let found = answering(client, vip(family), count);
            let wanted = if sticky { 1 } else { count };
            Ok(found
                .is_some_and(|found| found.len() == wanted)
                .then_some(()))
        })
    })
}

in_both_layouts! {
    /// Spec A10, D17. Upstream: "should be able to create LoadBalancer Service without NodePort and change it".
    fn without_a_node_port_and_then_with_one(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        cluster.route_services_to(1)?;
        let pods = [cluster.pod(1, 1), cluster.pod(2, 1)];
        let web = Web::start_as(&cluster, balanced(Service::cluster_ip("web", 1)), &pods)?;
        let client = cluster.client()?;
        let all: BTreeSet<String> = pods.iter().map(|pod| pod.name()).collect();
        for family in FAMILIES {
            let node_port = SocketAddr::new(cluster.node(1).address(family), NODE_PORT);
            eventually("the VIP is served", SOON, || {
                Ok((answering(&client, vip(family), 2).as_ref() == Some(&all)).then_some(()))
            })?;
            ensure!(client.ask_tcp(node_port).is_err(), "nobody asked for a NodePort");
        }
        let changed = web.service().clone().node_port(NODE_PORT);
        cluster.publish(&changed)?;
        for family in FAMILIES {
            for to in [vip(family), SocketAddr::new(cluster.node(1).address(family), NODE_PORT)] {
                eventually("VIP and NodePort are served", SOON, || {
                    Ok((answering(&client, to, 2).as_ref() == Some(&all)).then_some(()))
                })?;
            }
        }
        Ok(())
    }

    /// Upstream: "should have session affinity work for LoadBalancer service with Cluster traffic policy", "should be able
    /// to switch session affinity for LoadBalancer service with Cluster traffic policy", and the same "with Local traffic
    /// policy".
    fn affinity_at_a_vip_is_switched(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        cluster.route_services_to(1)?;
        let client = cluster.client()?;
        let (near, other, far) = (cluster.pod(1, 1), cluster.pod(1, 2), cluster.pod(2, 1));
        let service = |local: bool, sticky: bool| {
            let service = balanced(Service::cluster_ip("web", 1)).tcp("tcp", PORT).udp("udp", PORT);
            let service = if local { service.external_local() } else { service };
            if sticky { service.affinity(3600) } else { service }
        };
        let _web = Web::start_as(&cluster, balanced(Service::cluster_ip("web", 1)), &[near, other, far])?;
        for local in [false, true] {
            let count = if local { 2 } else { 3 };
            for sticky in [false, true, false] {
                cluster.publish(&service(local, sticky))?;
                affinity_is(&client, sticky, count)?;
            }
        }
        Ok(())
    }

    /// Spec H7, D17. Upstream: "should work for type=LoadBalancer", "should target all nodes with endpoints", "should only
    /// target nodes with endpoints".
    fn only_nodes_with_endpoints_ask_for_traffic(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        let client = cluster.client()?;
        let pods = [cluster.pod(1, 1), cluster.pod(2, 1)];
        let service = balanced(Service::cluster_ip("web", 1)).external_local().health_check_port(HEALTH_PORT);
        let web = Web::start_as(&cluster, service, &pods)?;
        for served in [&pods[..], &pods[..1], &pods[1..], &pods[..]] {
            web.set_endpoints(served)?;
            for node in cluster.nodes() {
                let own: Vec<_> = served.iter().filter(|pod| pod.node() == node.number()).collect();
                let code = if own.is_empty() { "503" } else { "200" };
                eventually("the health check tells who has endpoints", SOON, || {
                    let answer = node.health_check(HEALTH_PORT);
                    Ok(answer.is_ok_and(|answer| answer.starts_with(&format!("HTTP/1.1 {code} "))).then_some(()))
                })?;
                let Some(pod) = own.first() else { continue };
                cluster.route_services_to(node.number())?;
                for family in FAMILIES {
                    let answer = eventually("its endpoint answers", SOON, || Ok(client.ask_tcp(vip(family)).ok()))?;
                    let seen = (answer.server, answer.seen.ip());
                    ensure!(seen == (pod.name(), cluster.client_address(family)), "{seen:?}");
                }
            }
        }
        Ok(())
    }
}
