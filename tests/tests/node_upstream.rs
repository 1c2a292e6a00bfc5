//! What upstream's end-to-end tests of Services assert, where it takes no kubelet: in namespaces, in both families, with
//! the titles of the tests. Others are named where the tests of a subject are.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use lb_agent::snapshot::Family;
use lb_tests::address::{self, FAMILIES};
use lb_tests::cluster::Cluster;
use lb_tests::in_every_case;
use lb_tests::manifests::{Condition, EndpointSlice, Service};
use lb_tests::peer::protocol::FailureKind;
use lb_tests::pod::Pod;
use lb_tests::scenario::{PORT, SOON, TARGET, Web, who_answers};
use lb_tests::traffic::{Failed, Peer};
use lb_tests::wait::eventually;

const NODE_PORT: u16 = 30_001;
const HEALTH_PORT: u16 = 30_500;

fn node_port(cluster: &Cluster, node: u8, family: Family) -> SocketAddr {
    SocketAddr::new(cluster.node(node).address(family), NODE_PORT)
}

fn cluster_ip(family: Family, host: u8, port: u16) -> SocketAddr {
    SocketAddr::new(address::service(family, host), port)
}

/// The names of those who answer over TCP, of `count` that might.
fn over_tcp(client: &Peer, to: SocketAddr, count: usize) -> Option<BTreeSet<String>> {
    who_answers(count, || {
        client.ask_tcp(to).ok().map(|answer| answer.server)
    })
}

fn names(pods: &[&Pod]) -> BTreeSet<String> {
    pods.iter().map(|pod| pod.name()).collect()
}

/// Waits until all pods of the list answer, and nobody else.
fn wait_for(client: &Peer, to: SocketAddr, pods: &[&Pod]) -> Result<()> {
    eventually(
        &format!("{to} is served by {:?}", names(pods)),
        SOON,
        || Ok((over_tcp(client, to, pods.len()) == Some(names(pods))).then_some(())),
    )
}

fn is(result: Result<impl Sized, Failed>, kind: FailureKind) -> bool {
    result
        .err()
        .is_some_and(|failed| failed.failure().is_some_and(|failure| failure.kind == kind))
}

in_every_case! {
    /// Spec A5, A26. Upstream: "should serve endpoints on same port and different protocols", "should be able to update
    /// service type to NodePort listening on same port number but different protocols", "should serve endpoints on same
    /// port and different protocol for internal traffic on Type LoadBalancer".
    fn protocols_on_one_port_come_and_go_by_themselves(case: Case) {
        let cluster = case.cluster().build()?;
        let pod = cluster.pod(2, 1);
        let _server = pod.serve(&[TARGET], &[TARGET])?;
        let client = cluster.pod(1, 1).peer()?;
        for family in FAMILIES {
            let slice = EndpointSlice::of("web", family).tcp("tcp", TARGET).udp("udp", TARGET);
            cluster.publish(&slice.endpoint(pod.address(family), pod.node(), Condition::Ready))?;
        }
        let plain = || FAMILIES.into_iter().fold(Service::cluster_ip("web", 10), |service, family| {
            service.load_balancer(address::load_balancer(family, 10))
        });
        for (service, tcp, udp) in [
            (plain().tcp("tcp", PORT), true, false),
            (plain().tcp("tcp", PORT).udp("udp", PORT).node_port(NODE_PORT), true, true),
            (plain().udp("udp", PORT).node_port(NODE_PORT), false, true),
        ] {
            cluster.publish(&service)?;
            for family in FAMILIES {
                let vip = SocketAddr::new(address::load_balancer(family, 10), PORT);
                let to = cluster_ip(family, 10, PORT);
                eventually("each protocol is served or not", SOON, || {
                    let served = client.ask_tcp(to).is_ok() == tcp && client.ask_udp(to).is_ok() == udp;
                    Ok(served.then_some(()))
                })?;
                // Of a VIP an undefined port is nobody's; of a ClusterIP it is refused.
                ensure!(client.ask_tcp(vip).is_ok() == tcp && client.ask_udp(vip).is_ok() == udp);
                if !tcp {
                    ensure!(is(client.ask_tcp(to), FailureKind::Refused));
                }
            }
        }
        Ok(())
    }

    /// Spec A26, D20. Upstream: "should function for multiple endpoint-Services with same selector", "should be able to up
    /// and down services", "should update nodePort: http", "should update nodePort: udp", "should release NodePorts on
    /// delete".
    fn one_of_two_services_of_the_same_pods_goes(case: Case) {
        let cluster = case.cluster().build()?;
        let pods = [cluster.pod(1, 1), cluster.pod(2, 1)];
        let stays = Web::start_as(&cluster, Service::cluster_ip("stays", 10), &pods)?;
        let goes = Web::beside(&cluster, Service::cluster_ip("goes", 11).node_port(NODE_PORT), &pods)?;
        let client = cluster.pod(1, 2).peer()?;
        stays.wait_for(&client, &pods)?;
        goes.wait_for(&client, &pods)?;
        for family in FAMILIES {
            wait_for(&client, node_port(&cluster, 2, family), &pods)?;
        }
        cluster.withdraw(goes.service())?;
        for family in FAMILIES {
            let ports = [1, 2].map(|node| node_port(&cluster, node, family));
            eventually("the NodePort is free", SOON, || {
                // The node itself says so: no socket of ours listens there, and a host process may.
                Ok(ports.iter().all(|&to| is(client.ask_tcp(to), FailureKind::Refused)).then_some(()))
            })?;
            ensure!(client.ask_udp(ports[1]).is_err());
            ensure!(client.ask_tcp(goes.vip(family)?).is_err());
        }
        cluster.node(2).peer()?.serve(&[NODE_PORT], &[])?;
        stays.wait_for(&client, &pods)
    }

    /// Spec A9, B3, B6. Upstream: "should support a Service with multiple ports specified in multiple EndpointSlices",
    /// "should support a Service with multiple endpoint IPs specified in multiple EndpointSlices", "should serve multiport
    /// endpoints from pods", "should support named targetPorts that resolve to different ports on different endpoints".
    fn ports_and_endpoints_in_several_slices(case: Case) {
        let cluster = case.cluster().build()?;
        let (one, two) = (cluster.pod(1, 1), cluster.pod(2, 1));
        let _servers = [one.serve(&[8080, 8081], &[])?, two.serve(&[8080, 9090], &[])?];
        cluster.publish(&Service::cluster_ip("web", 10).tcp("web", 80).tcp("admin", 81))?;
        for family in FAMILIES {
            let slice = |part| EndpointSlice::of("web", family).part(part);
            let ready = |slice: EndpointSlice, pod: &Pod| slice.endpoint(pod.address(family), pod.node(), Condition::Ready);
            cluster.publish(&ready(slice("-one").tcp("web", 8080), one))?;
            cluster.publish(&ready(slice("-two").tcp("web", 9090), two))?;
            cluster.publish(&ready(slice("-admin").tcp("admin", 8081), one))?;
        }
        let client = cluster.pod(1, 2).peer()?;
        for family in FAMILIES {
            wait_for(&client, cluster_ip(family, 10, 80), &[one, two])?;
            wait_for(&client, cluster_ip(family, 10, 81), &[one])?;
            let ports: Option<BTreeSet<u16>> = (0..40)
                .map(|_| client.ask_tcp(cluster_ip(family, 10, 80)).ok().map(|answer| answer.own.port()))
                .collect();
            ensure!(ports == Some(BTreeSet::from([8080, 9090])), "{ports:?}");
        }
        // The port of one slice moves into another.
        for family in FAMILIES {
            let slice = EndpointSlice::of("web", family);
            cluster.withdraw(&slice.clone().part("-admin"))?;
            cluster.publish(&slice.part("-two").tcp("web", 9090).tcp("admin", 8080).endpoint(
                two.address(family), two.node(), Condition::Ready,
            ))?;
            wait_for(&client, cluster_ip(family, 10, 81), &[two])?;
        }
        Ok(())
    }

    /// Spec H7, H10, §5.8. Upstream: "should fallback to terminating endpoints when there are no ready endpoints with
    /// internalTrafficPolicy=Cluster", "should fallback to local terminating endpoints when there are no ready endpoints
    /// with internalTrafficPolicy=Local", "should fallback to terminating endpoints when there are no ready endpoints with
    /// externallTrafficPolicy=Cluster", "should fail health check node port if there are only terminating endpoints",
    /// "should not be able to connect to terminating and unready endpoints if PublishNotReadyAddresses is false".
    fn terminating_endpoints_serve_the_last_clients(case: Case) {
        let cluster = case.cluster().build()?;
        let pod = cluster.pod(1, 1);
        let balanced = || FAMILIES.into_iter().fold(Service::cluster_ip("web", 10).node_port(NODE_PORT), |service, family| {
            service.load_balancer(address::load_balancer(family, 10))
        });
        let web = Web::start_as(&cluster, balanced(), &[pod])?;
        let inner = Web::beside(&cluster, Service::cluster_ip("inner", 11).internal_local(), &[pod])?;
        let checked = Web::beside(
            &cluster,
            FAMILIES.into_iter().fold(
                Service::cluster_ip("checked", 12).external_local().health_check_port(HEALTH_PORT),
                |service, family| service.load_balancer(address::load_balancer(family, 12)),
            ),
            &[pod],
        )?;
        let all = [&web, &inner, &checked];
        let (here, there) = (cluster.pod(1, 2).peer()?, cluster.pod(2, 1).peer()?);
        let health = |node: u8, code: &str| {
            let answer = cluster.node(node).health_check(HEALTH_PORT);
            // The port may not be open yet.
            let told = answer.is_ok_and(|answer| answer.starts_with(&format!("HTTP/1.1 {code} ")));
            Ok(told.then_some(()))
        };
        eventually("node1 has a ready endpoint", SOON, || health(1, "200"))?;
        eventually("node2 has none", SOON, || health(2, "503"))?;
        // H6: not at other addresses than NodePorts are.
        assert!(cluster.node(1).agent()?.get(HEALTH_PORT, "/").is_err());

        all.iter().try_for_each(|web| web.set_conditions(&[(pod, Condition::Terminating)]))?;
        eventually("no node has a ready endpoint", SOON, || health(1, "503"))?;
        for family in FAMILIES {
            for client in [&here, &there] {
                wait_for(client, web.vip(family)?, &[pod])?;
                for node in [1, 2] {
                    wait_for(client, node_port(&cluster, node, family), &[pod])?;
                }
            }
            wait_for(&here, inner.vip(family)?, &[pod])?;
            let silent = there.connect_from(0, inner.vip(family)?, std::time::Duration::from_millis(700));
            ensure!(is(silent, FailureKind::TimedOut), "a local policy has nobody on node2");
        }

        all.iter().try_for_each(|web| web.set_conditions(&[(pod, Condition::Ended)]))?;
        for family in FAMILIES {
            let places = [web.vip(family)?, inner.vip(family)?, node_port(&cluster, 1, family), node_port(&cluster, 2, family)];
            for to in places {
                eventually(&format!("{to} is refused"), SOON, || {
                    Ok(is(there.ask_tcp(to), FailureKind::Refused).then_some(()))
                })?;
            }
        }
        Ok(())
    }

    /// Spec F1, F6, A13. Upstream: "should be able to switch session affinity for NodePort service", "should have session
    /// affinity work for NodePort service", "should be possible to connect to a service via ExternalIP when the external
    /// IP is not assigned to a node".
    fn affinity_is_switched_under_node_ports_and_external_addresses(case: Case) {
        let cluster = case.cluster().build()?;
        let pods = [cluster.pod(1, 1), cluster.pod(2, 1), cluster.pod(2, 2)];
        let service = || FAMILIES.into_iter().fold(Service::cluster_ip("web", 10).node_port(NODE_PORT), |service, family| {
            service.external_ip(address::external(family, 10))
        });
        let _web = Web::start_as(&cluster, service(), &pods)?;
        let client = cluster.pod(1, 2).peer()?;
        let places = |family| -> [SocketAddr; 2] {
            let external: IpAddr = address::external(family, 10);
            [node_port(&cluster, 1, family), SocketAddr::new(external, PORT)]
        };
        let with_ports = |service: Service| service.tcp("tcp", PORT).udp("udp", PORT);
        for sticky in [false, true, false] {
            let wanted = if sticky { service().affinity(3600) } else { service() };
            cluster.publish(&with_ports(wanted))?;
            for family in FAMILIES {
                eventually("affinity is what it was switched to", SOON, || {
                    let found: Option<BTreeSet<String>> = places(family)
                        .into_iter()
                        .map(|to| over_tcp(&client, to, pods.len()))
                        .try_fold(BTreeSet::new(), |all, some| Some(&all | &some?));
                    let count = if sticky { 1 } else { pods.len() };
                    Ok((found.is_some_and(|found| found.len() == count)).then_some(()))
                })?;
            }
        }
        Ok(())
    }
}
