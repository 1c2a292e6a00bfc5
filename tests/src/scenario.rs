//! A service with servers behind it, as most tests need one, and the ways a test is repeated in.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_agent::snapshot::Family;

use crate::address::{self, FAMILIES};
use crate::agent::{Agent, SocketLb};
use crate::cluster::{Builder, Cluster};
use crate::link::Layout;
use crate::manifests::{Condition, EndpointSlice, Service};
use crate::peer::protocol::Direction;
use crate::pod::Pod;
use crate::traffic::{Flood, Peer};
use crate::wait::eventually;

/// The port a [`Web`] service has, in TCP and UDP.
pub const PORT: u16 = 80;
/// The port its servers listen on.
pub const TARGET: u16 = 8080;

/// How long an edited manifest may take to show.
pub const SOON: Duration = Duration::from_secs(5);

/// A service with a load-balancer address in each family. `number` tells several apart.
pub fn balanced(number: u8) -> Service {
    let service = Service::cluster_ip(&format!("s{number}"), number);
    FAMILIES.into_iter().fold(service, |service, family| {
        service.load_balancer(address::load_balancer(family, number))
    })
}

/// Where it is dialled from outside.
pub fn vip(family: Family, number: u8) -> SocketAddr {
    SocketAddr::new(address::load_balancer(family, number), PORT)
}

/// A way by which traffic is translated, and a network it happens in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    pub layout: Layout,
    pub socket_lb: SocketLb,
}

impl Case {
    /// A cluster of this kind, to be adjusted.
    pub fn cluster(self) -> Builder {
        Cluster::builder()
            .layout(self.layout)
            .socket_lb(self.socket_lb)
    }

    /// Whether sockets are translated when they connect, not their packets.
    pub fn by_sockets(self) -> bool {
        self.socket_lb == SocketLb::All
    }
}

/// Makes four tests of each function: on bridges and on point-to-point links, by socket hooks and by packets.
#[macro_export]
macro_rules! in_every_case {
    ($($(#[$doc:meta])* fn $name:ident($case:ident: Case) $body:block)*) => { $(
        mod $name {
            use super::*;

            $(#[$doc])*
            fn check($case: $crate::scenario::Case) -> anyhow::Result<()> $body

            $crate::in_every_case!(@test bridge_sockets, Bridge, All);
            $crate::in_every_case!(@test bridge_packets, Bridge, Off);
            $crate::in_every_case!(@test point_to_point_sockets, PointToPoint, All);
            $crate::in_every_case!(@test point_to_point_packets, PointToPoint, Off);
        }
    )* };
    (@test $name:ident, $layout:ident, $mode:ident) => {
        #[test]
        fn $name() -> anyhow::Result<()> {
            check($crate::scenario::Case {
                layout: $crate::link::Layout::$layout,
                socket_lb: $crate::agent::SocketLb::$mode,
            })
        }
    };
}

/// Makes two tests of each function: on bridges and on point-to-point links. Clients are outside, so it is all the
/// packet path's work.
#[macro_export]
macro_rules! in_both_layouts {
    ($($(#[$doc:meta])* fn $name:ident($layout:ident: Layout) $body:block)*) => { $(
        mod $name {
            use super::*;

            $(#[$doc])*
            fn check($layout: $crate::link::Layout) -> anyhow::Result<()> $body

            #[test]
            fn bridge() -> anyhow::Result<()> {
                check($crate::link::Layout::Bridge)
            }

            #[test]
            fn point_to_point() -> anyhow::Result<()> {
                check($crate::link::Layout::PointToPoint)
            }
        }
    )* };
}

/// A dual-stack service `web`, TCP and UDP on port 80, with a server in each of its pods.
#[derive(Debug)]
pub struct Web<'a> {
    cluster: &'a Cluster,
    service: Service,
    servers: Vec<(&'a Pod, Peer)>,
}

impl<'a> Web<'a> {
    /// Publishes the service with these pods as ready endpoints.
    pub fn start(cluster: &'a Cluster, pods: &[&'a Pod]) -> Result<Self> {
        Self::start_as(cluster, Service::cluster_ip("web", 10), pods)
    }

    /// The same for a service with settings of its own; its ports are added here.
    pub fn start_as(cluster: &'a Cluster, service: Service, pods: &[&'a Pod]) -> Result<Self> {
        let mut web = Self::unpublished(cluster, service);
        pods.iter().try_for_each(|pod| web.serve(pod))?;
        web.publish(pods)
    }

    /// The same without servers: those of another service serve this one too.
    pub fn beside(cluster: &'a Cluster, service: Service, pods: &[&'a Pod]) -> Result<Self> {
        Self::unpublished(cluster, service).publish(pods)
    }

    fn unpublished(cluster: &'a Cluster, service: Service) -> Self {
        Self {
            cluster,
            service: service.tcp("tcp", PORT).udp("udp", PORT),
            servers: Vec::new(),
        }
    }

    fn publish(self, pods: &[&'a Pod]) -> Result<Self> {
        self.set_endpoints(pods)?;
        self.cluster.publish(&self.service)?;
        Ok(self)
    }

    /// Starts a server in one more pod, or anew in one where it was killed, without telling anybody.
    pub fn serve(&mut self, pod: &'a Pod) -> Result<()> {
        self.servers.retain(|(other, _)| other.name() != pod.name());
        self.servers.push((pod, pod.serve(&[TARGET], &[TARGET])?));
        Ok(())
    }

    /// Makes these pods the ready endpoints, in both families.
    pub fn set_endpoints(&self, pods: &[&Pod]) -> Result<()> {
        let endpoints: Vec<_> = pods.iter().map(|&pod| (pod, Condition::Ready)).collect();
        self.set_conditions(&endpoints)
    }

    /// Makes these pods the endpoints, in both families.
    pub fn set_conditions(&self, endpoints: &[(&Pod, Condition)]) -> Result<()> {
        FAMILIES
            .iter()
            .try_for_each(|&family| self.cluster.publish(&self.slice(family, endpoints)))
    }

    /// The slice of one family with these endpoints.
    pub fn slice(&self, family: Family, endpoints: &[(&Pod, Condition)]) -> EndpointSlice {
        let slice = EndpointSlice::of(self.service.name(), family)
            .tcp("tcp", TARGET)
            .udp("udp", TARGET);
        endpoints.iter().fold(slice, |slice, (pod, condition)| {
            slice.endpoint(pod.address(family), pod.node(), *condition)
        })
    }

    /// The service itself.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// The address clients dial.
    pub fn vip(&self, family: Family) -> Result<SocketAddr> {
        let address = self
            .service
            .address(family)
            .context("the service lacks an address of that family")?;
        Ok(SocketAddr::new(address, PORT))
    }

    /// Another port on the same address.
    pub fn vip_port(&self, family: Family, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.vip(family)?.ip(), port))
    }

    /// The server in a pod.
    pub fn server(&self, pod: &Pod) -> Result<&Peer> {
        let found = self
            .servers
            .iter()
            .find(|(candidate, _)| candidate.name() == pod.name());
        found
            .map(|(_, peer)| peer)
            .with_context(|| format!("no server in {}", pod.name()))
    }

    /// Waits until exactly these pods answer `client`, in both families and protocols.
    pub fn wait_for(&self, client: &Peer, pods: &[&Pod]) -> Result<()> {
        let wanted: BTreeSet<_> = pods.iter().map(|pod| pod.name()).collect();
        for family in FAMILIES {
            let vip = self.vip(family)?;
            let what = format!(
                "{} is answered by {wanted:?}, and by nobody else",
                self.service.name()
            );
            eventually(&what, SOON, || {
                let tcp = who_answers(pods.len(), || {
                    client.ask_tcp(vip).ok().map(|answer| answer.server)
                });
                let udp = who_answers(pods.len(), || {
                    client.ask_udp(vip).ok().map(|answer| answer.server)
                });
                Ok((tcp.as_ref() == Some(&wanted) && udp.as_ref() == Some(&wanted)).then_some(()))
            })?;
        }
        Ok(())
    }
}

/// Asks so often that each of `count` equally likely servers appears, save once in a million times.
pub fn who_answers(
    count: usize,
    mut ask: impl FnMut() -> Option<String>,
) -> Option<BTreeSet<String>> {
    // n·(1 − 1/n)^k < 10⁻⁶ holds for k = 20·n.
    (0..count.max(1) * 20).map(|_| ask()).collect()
}

/// Checks that `counts` answers are spread evenly: each server within six standard deviations of its share.
pub fn check_even(counts: &[u64]) -> Result<()> {
    let total: u64 = counts.iter().sum();
    let share = total as f64 / counts.len() as f64;
    let deviation = (share * (1.0 - 1.0 / counts.len() as f64)).sqrt();
    let uneven = counts
        .iter()
        .any(|&count| (count as f64 - share).abs() > 6.0 * deviation);
    ensure!(
        !uneven,
        "{counts:?} is no even spread: expected about {share:.0} ± {deviation:.0} each"
    );
    Ok(())
}

/// Moves 8 MiB each way, whole and no slower than this in MiB/s: one that handles offloads wrong, or shows a firewall half
/// of a connection, carries a fraction of what any path here does.
pub fn check_transfers(client: &Peer, dialled: SocketAddr, slow: f64) -> Result<()> {
    for direction in [Direction::Push, Direction::Pull] {
        let moved = client
            .bulk(dialled, direction, 8)
            .with_context(|| format!("{} {direction:?} {dialled}", client.name()))?;
        ensure!(
            moved.intact && moved.mebibytes_per_second > slow,
            "{} {direction:?} {dialled}: {moved:?}",
            client.name()
        );
    }
    Ok(())
}

/// Lets traffic run while the agents are killed, come back and are stopped; none of it may fail or wait.
pub fn outlive_agents(cluster: &Cluster, floods: Vec<Flood<'_>>) -> Result<()> {
    wait_for_more(&floods)?;
    for act in [Agent::kill9, Agent::restart, Agent::stop] {
        cluster.each_agent(act)?;
        wait_for_more(&floods)?;
    }
    for flood in floods {
        let tally = flood.finish()?;
        ensure!(tally.failed() == 0, "{tally:#?}");
        ensure!(tally.slowest_micros < 1_000_000, "{tally:#?}");
    }
    Ok(())
}

/// Waits for all at once: the longer the agents are dead, the fuller the flow tables, which then do not grow.
fn wait_for_more(floods: &[Flood<'_>]) -> Result<()> {
    let before: Vec<u64> = floods
        .iter()
        .map(|flood| Ok(flood.report()?.answered()))
        .collect::<Result<_>>()?;
    for (flood, before) in floods.iter().zip(before) {
        let more = eventually(
            "200 more requests are answered",
            Duration::from_secs(20),
            || Ok((flood.report()?.answered() >= before + 200).then_some(())),
        );
        more.with_context(|| format!("{:#?}", flood.report()))?;
    }
    Ok(())
}
