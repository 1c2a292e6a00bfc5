//! The same small cluster once for each way in which a Service can be served, and once for each limit.
//!
//! ```text
//!   client ── LAN ── node1 ── pod 1 (dials), pod 2 (serves)
//!                 └─ node2 ── pod 1 (serves)
//! ```
//!
//! Only node1 has a proxy. What goes from the client to node2's pod passes node1 in all of them, there and back.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use lb_agent::snapshot::Family;

use super::kube::{self, Kube};
use super::worker::Work;
use super::{SOON, objects};
use crate::agent::{Agent, SocketLb};
use crate::cluster::Cluster;
use crate::kube_proxy::{KubeProxy, Mode};
use crate::link::Layout;
use crate::process::{Place, output};
use crate::wait::eventually;

/// Who serves Services in a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Proxy {
    /// Nobody: endpoints are dialled.
    Nobody,
    /// Nobody, and node1 tracks connections.
    Conntrack,
    Kube(Mode),
    /// Beeline, by hooks of the sockets.
    Sockets,
    /// Beeline, packet by packet.
    Packets,
}

impl Proxy {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nobody => "direct",
            Self::Conntrack => "direct, conntrack",
            Self::Kube(Mode::Nftables) => "kube-proxy, nftables",
            Self::Kube(Mode::Iptables) => "kube-proxy, iptables-nft",
            Self::Kube(Mode::IptablesLegacy) => "kube-proxy, iptables-legacy",
            Self::Sockets => "beeline, sockets",
            Self::Packets => "beeline, packets",
        }
    }

    /// Whether there are no Services: what clients dial are endpoints.
    pub(super) fn is_direct(self) -> bool {
        matches!(self, Self::Nobody | Self::Conntrack)
    }
}

/// What clients dial, and from where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Path {
    /// A pod dials a ClusterIP; the endpoint is on its node.
    ClusterIp,
    /// The client dials a NodePort; the endpoint is on that node.
    NodePortLocal,
    /// The client dials a NodePort; the endpoint is on the other node.
    NodePortRemote,
}

impl Path {
    pub(super) const ALL: [Path; 3] = [Self::ClusterIp, Self::NodePortLocal, Self::NodePortRemote];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePortLocal => "NodePort, endpoint of the node",
            Self::NodePortRemote => "NodePort, endpoint of another node",
        }
    }

    /// First of the four NodePorts, which are in the order of [`Work::ALL`].
    pub(super) fn node_port(self) -> u16 {
        match self {
            Self::ClusterIp => 0,
            Self::NodePortLocal => 30_080,
            Self::NodePortRemote => 30_090,
        }
    }
}

/// A cluster and who serves in it.
pub(super) struct Side {
    pub(super) proxy: Proxy,
    pub(super) kube_proxy: Option<KubeProxy>,
    pub(super) cluster: Cluster,
}

const CLUSTER_CIDR: &str = "10.244.0.0/16";

const FAMILY: Family = Family::V4;

impl Side {
    pub(super) fn build(proxy: Proxy, kube: Option<&Kube>) -> Result<Self> {
        let mut cluster = Cluster::builder()
            .nodes(2)
            .pods_per_node(2)
            .layout(Layout::PointToPoint)
            .without_agents()
            .build()?;
        detour(&cluster)?;
        let mut kube_proxy = None;
        match proxy {
            Proxy::Nobody => {}
            Proxy::Conntrack => {
                let rule = "table inet track {\nchain forward {\ntype filter hook forward priority 0\n\
                            ct state invalid drop\n}\n}\n";
                output(cluster.node(1).place()?.command("nft")?.arg(rule))?;
            }
            Proxy::Kube(mode) => {
                let kube = kube.context("a kube-proxy needs an API server")?;
                kube.connect(&cluster)?;
                let node = cluster.node(1);
                let mut started = KubeProxy::start(node, &kube.kubeconfig()?, mode, CLUSTER_CIDR)?;
                started.wait_ready()?;
                kube_proxy = Some(started);
            }
            Proxy::Sockets | Proxy::Packets => {
                let mode = if proxy == Proxy::Sockets {
                    SocketLb::All
                } else {
                    SocketLb::Off
                };
                let node = cluster.node_mut(1);
                node.start_agent(mode, &[])?;
                Agent::wait_ready(&mut *node.agent()?)?;
            }
        }
        Ok(Self {
            proxy,
            kube_proxy,
            cluster,
        })
    }

    /// The ClusterIPs to dial among `services`, with what is to be said of their places. Where rules are walked one by
    /// one their order counts, which is kube-proxy's own and another one after each start.
    pub(super) fn targets(&self, services: usize) -> Result<Vec<(&'static str, IpAddr)>> {
        let save = match self.proxy {
            Proxy::Kube(Mode::Iptables) => "iptables-nft-save",
            Proxy::Kube(Mode::IptablesLegacy) => "iptables-legacy-save",
            _ => return Ok(vec![("", objects::address(services - 1).into())]),
        };
        let mut places = kube::places(&self.cluster, save)?;
        places.retain(|&address| objects::is_alike(address, services));
        let found = [
            ("first", 0),
            ("middle", places.len() / 2),
            ("last", places.len() - 1),
        ];
        Ok(found
            .into_iter()
            .filter_map(|(place, index)| Some((place, (*places.get(index)?).into())))
            .collect())
    }

    /// Waits until a Beeline has this ClusterIP. Who dials it before sends a SYN that no hook has translated, and its
    /// repetition opens a flow of the packet path beside what is measured.
    pub(super) fn knows(&self, vip: IpAddr) -> Result<()> {
        if !matches!(self.proxy, Proxy::Sockets | Proxy::Packets) {
            return Ok(());
        }
        let wanted = vip.to_string();
        let agent = self.cluster.node(1).agent()?;
        eventually("the agent knows the Service", SOON, || {
            let list = agent.command(&["service", "list"])?;
            Ok(list.contains(&wanted).then_some(()))
        })
    }

    /// Where the client of a path is.
    pub(super) fn client(&self, path: Path) -> Result<Place> {
        match path {
            Path::ClusterIp => self.cluster.pod(1, 1).place().cloned(),
            Path::NodePortLocal | Path::NodePortRemote => self.cluster.outside_place(),
        }
    }

    /// What it dials for a work, `vip` being the ClusterIP.
    pub(super) fn dialled(&self, path: Path, work: Work, vip: IpAddr) -> SocketAddr {
        let number = Work::ALL
            .iter()
            .position(|&other| other == work)
            .unwrap_or(0) as u16;
        if self.proxy.is_direct() {
            return SocketAddr::new(endpoint(path), work.port());
        }
        match path {
            Path::ClusterIp => SocketAddr::new(vip, 80 + number),
            Path::NodePortLocal | Path::NodePortRemote => SocketAddr::new(
                self.cluster.node(1).address(FAMILY),
                path.node_port() + number,
            ),
        }
    }

    /// Names and addresses of the nodes, which are the same in all clusters.
    pub(super) fn nodes(&self) -> Vec<(String, IpAddr)> {
        let nodes = self.cluster.nodes().iter();
        nodes
            .map(|node| (node.name(), node.address(FAMILY)))
            .collect()
    }

    /// Where the servers are.
    pub(super) fn servers(&self) -> Result<[(Place, IpAddr); 2]> {
        let server = |node, pod| -> Result<(Place, IpAddr)> {
            let pod = self.cluster.pod(node, pod);
            Ok((pod.place()?.clone(), pod.address(FAMILY)))
        };
        Ok([server(1, 2)?, server(2, 1)?])
    }
}

/// The endpoint of a path.
pub(super) fn endpoint(path: Path) -> IpAddr {
    match path {
        Path::ClusterIp | Path::NodePortLocal => crate::address::pod(FAMILY, 1, 2),
        Path::NodePortRemote => crate::address::pod(FAMILY, 2, 1),
    }
}

/// Sends what is between the client and node2's pod through node1, as a NodePort of node1 would.
fn detour(cluster: &Cluster) -> Result<()> {
    let (client, via) = (
        cluster.client_address(FAMILY),
        cluster.node(1).address(FAMILY),
    );
    let pod = endpoint(Path::NodePortRemote);
    cluster
        .outside()
        .ip(&[format!("route replace {pod}/32 via {via}")])?;
    cluster
        .node(2)
        .namespace()
        .ip(&[format!("route replace {client}/32 via {via}")])?;
    // It would tell both that there is a shorter way.
    let quiet = [
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/eth0/send_redirects", "0"),
    ];
    cluster
        .node(1)
        .namespace()
        .sysctl(&quiet)
        .context("switching redirects off")
}
