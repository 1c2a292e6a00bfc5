//! A cluster in network namespaces: nodes with pods and agents, a LAN, an outside client.
//!
//! ```no_run
//! use lb_tests::cluster::Cluster;
//! use lb_tests::link::Layout;
//!
//! # fn main() -> anyhow::Result<()> {
//! let cluster = Cluster::builder().nodes(2).pods_per_node(2).layout(Layout::PointToPoint).build()?;
//! let server = cluster.pod(2, 1).serve(&[8080], &[])?;
//! let answer = cluster.pod(1, 1).peer()?.ask_tcp("10.244.2.11:8080".parse()?)?;
//! assert_eq!(answer.server, server.name());
//! # Ok(()) }
//! ```
//!
//! Dropping the cluster removes all of it, also during a panic.

use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use lb_agent::snapshot::Family;

use crate::address::{self, CLIENT, FAMILIES};
use crate::agent::{Agent, SocketLb, Source};
use crate::backlog;
use crate::cgroup;
use crate::guards::Guards;
use crate::link::{self, Layout, Socket, Station, Wire};
use crate::manifests::Object;
use crate::netns::Namespace;
use crate::node::Node;
use crate::pod::Pod;
use crate::process::{Place, output};
use crate::scope::Scope;
use crate::surroundings::Surroundings;
use crate::traffic::Peer;

/// What a cluster shall look like.
#[derive(Clone, Debug)]
pub struct Builder {
    nodes: u8,
    pods: u8,
    layout: Layout,
    mtu: u32,
    offload: Option<bool>,
    socket_lb: SocketLb,
    agents: bool,
    agent_arguments: Vec<String>,
    guards: Option<Guards>,
}

impl Builder {
    /// The number of nodes; they are called `node1` and so on.
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// The number of pods on each node.
    pub fn pods_per_node(mut self, pods: u8) -> Self {
        self.pods = pods;
        self
    }

    /// How the CNI connects pods.
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// Which sockets the agents' hooks translate. `Off` leaves all work to the packet path.
    pub fn socket_lb(mut self, mode: SocketLb) -> Self {
        self.socket_lb = mode;
        self
    }

    /// The largest packet on every link.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// `false`: every sender computes checksums and segments itself. If nothing is said, as the run's surroundings are.
    pub fn tx_offload(mut self, on: bool) -> Self {
        self.offload = Some(on);
        self
    }

    /// What the nodes check about packets besides. If nothing is said, as the run's surroundings are.
    pub fn guards(mut self, guards: Guards) -> Self {
        self.guards = Some(guards);
        self
    }

    /// Leaves the agents out: the network alone.
    pub fn without_agents(mut self) -> Self {
        self.agents = false;
        self
    }

    /// Further arguments for `beeline agent`.
    pub fn agent_arguments(mut self, arguments: &[&str]) -> Self {
        self.agent_arguments = arguments.iter().map(|&argument| argument.into()).collect();
        self
    }

    /// Builds everything and waits until the agents are ready.
    pub fn build(self) -> Result<Cluster> {
        backlog::lengthen();
        let scope = Scope::new()?;
        // From here on, whatever fails, dropping the cluster removes what was made.
        let mut cluster = Cluster::unwired(&self, scope);
        cluster.wire(&self)?;
        if self.agents {
            for node in &mut cluster.nodes {
                node.start_agent(self.socket_lb, &self.agent_arguments)?;
            }
            cluster.each_agent(Agent::wait_ready)?;
        }
        Ok(cluster)
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    scope: Scope,
    lan: Namespace,
    outside: Namespace,
    nodes: Vec<Node>,
}

impl Cluster {
    /// Two nodes with two pods each on bridges, plain Ethernet frames, socket hooks for all.
    pub fn builder() -> Builder {
        Builder {
            nodes: 2,
            pods: 2,
            layout: Layout::Bridge,
            mtu: 1500,
            offload: None,
            socket_lb: SocketLb::All,
            agents: true,
            agent_arguments: Vec::new(),
            guards: None,
        }
    }

    /// A node, counted from 1.
    pub fn node(&self, number: u8) -> &Node {
        &self.nodes[usize::from(number) - 1]
    }

    /// A node that is to be changed, counted from 1.
    pub fn node_mut(&mut self, number: u8) -> &mut Node {
        &mut self.nodes[usize::from(number) - 1]
    }

    /// Starts agents that follow an API server, on a cluster that was built without, and waits until they are ready.
    pub fn start_agents(
        &mut self,
        kubeconfig: &Path,
        socket_lb: SocketLb,
        arguments: &[String],
    ) -> Result<()> {
        for node in &mut self.nodes {
            let source = Source::Kubeconfig(kubeconfig.to_owned());
            node.start_agent_on(source, socket_lb, arguments)?;
        }
        self.each_agent(Agent::wait_ready)
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A pod; nodes and their pods are counted from 1.
    pub fn pod(&self, node: u8, index: u8) -> &Pod {
        &self.node(node).pods()[usize::from(index) - 1]
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.nodes.iter().flat_map(|node| node.pods())
    }

    /// A process on the outside client's machine.
    pub fn client(&self) -> Result<Peer> {
        Peer::start("client", &self.outside_place()?, &[])
    }

    /// The outside client's address.
    pub fn client_address(&self, family: Family) -> IpAddr {
        address::lan(family, CLIENT)
    }

    /// The outside client's network namespace.
    pub fn outside(&self) -> &Namespace {
        &self.outside
    }

    /// Makes the outside client send whatever goes to service, load-balancer and external addresses to a node, as
    /// routers at the edge of a cluster do.
    pub fn route_services_to(&self, node: u8) -> Result<()> {
        let lines = FAMILIES.map(|family| {
            let via = self.node(node).address(family);
            let (balancers, external) = match family {
                Family::V4 => ("198.51.100.0/24", "203.0.113.0/24"),
                Family::V6 => ("fd51::/64", "fd13::/64"),
            };
            [address::service_range(family), balancers, external]
                .map(|range| format!("route replace {range} via {via}"))
        });
        self.outside.ip(&lines.concat())
    }

    /// Shows an object to the agents of all nodes, new or changed.
    pub fn publish(&self, object: &impl Object) -> Result<()> {
        self.nodes
            .iter()
            .try_for_each(|node| node.manifests().publish(object))
    }

    /// Takes an object away.
    pub fn withdraw(&self, object: &impl Object) -> Result<()> {
        self.nodes
            .iter()
            .try_for_each(|node| node.manifests().withdraw(object))
    }

    /// Does something to the agents of all nodes.
    pub fn each_agent(&self, mut act: impl FnMut(&mut Agent) -> Result<()>) -> Result<()> {
        self.nodes
            .iter()
            .try_for_each(|node| act(&mut *node.agent()?))
    }

    /// The LAN's network namespace, which routes too.
    pub fn lan(&self) -> &Namespace {
        &self.lan
    }

    /// The name everything of this cluster carries.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    fn unwired(plan: &Builder, scope: Scope) -> Self {
        let namespace = |role: &str| Namespace::named(scope.namespace(role));
        let nodes = (1..=plan.nodes)
            .map(|number| Node::new(&scope, number, plan.pods))
            .collect();
        Self {
            lan: namespace("lan"),
            outside: namespace("client"),
            nodes,
            scope,
        }
    }

    fn wire(&mut self, plan: &Builder) -> Result<()> {
        let surroundings = Surroundings::of_this_run()?;
        let guards = plan.guards.unwrap_or(surroundings.guards);
        let wire = Wire {
            mtu: plan.mtu,
            offload: plan.offload.unwrap_or(surroundings.offload),
        };
        let routers: Vec<_> = self
            .nodes
            .iter()
            .map(Node::namespace)
            .chain([&self.lan])
            .cloned()
            .collect();
        let leaves: Vec<_> = self
            .pods()
            .map(Pod::namespace)
            .chain([&self.outside])
            .cloned()
            .collect();
        let names: Vec<_> = routers
            .iter()
            .chain(&leaves)
            .map(|namespace| namespace.name().to_owned())
            .collect();
        Namespace::create(&names)?;
        routers
            .iter()
            .try_for_each(|namespace| link::prepare(namespace, true))?;
        leaves
            .iter()
            .try_for_each(|namespace| link::prepare(namespace, false))?;
        for node in &self.nodes {
            guards.set(node.namespace())?;
        }

        let mut stations: Vec<_> = self
            .nodes
            .iter()
            .map(|node| Station {
                namespace: node.namespace(),
                host: 10 + node.number(),
            })
            .collect();
        stations.push(Station {
            namespace: &self.outside,
            host: CLIENT,
        });
        link::lan(&self.lan, &stations, wire)?;

        cgroup::create(&self.scope.cgroup()?, &["outside"])?;
        let numbers: Vec<_> = self.nodes.iter().map(Node::number).collect();
        link::pod_routes(&self.lan, &numbers)?;
        link::pod_routes(&self.outside, &numbers)?;
        for node in &mut self.nodes {
            node.prepare(&self.scope)?;
            let others: Vec<_> = numbers
                .iter()
                .copied()
                .filter(|&number| number != node.number())
                .collect();
            link::pod_routes(node.namespace(), &others)?;
            let sockets: Vec<_> = node
                .pods()
                .iter()
                .map(|pod| Socket {
                    namespace: pod.namespace(),
                    index: pod.index(),
                })
                .collect();
            link::pods(node.namespace(), node.number(), plan.layout, &sockets, wire)?;
        }
        if wire.offload {
            Ok(())
        } else {
            self.disable_offload()
        }
    }

    fn disable_offload(&self) -> Result<()> {
        let outside = self.outside_place()?;
        link::disable_offload(&outside, "eth0")?;
        let lan = self.lan_place()?;
        link::disable_offload(&lan, &format!("port{CLIENT}"))?;
        for node in &self.nodes {
            link::disable_offload(&lan, &format!("port{}", 10 + node.number()))?;
            link::disable_offload(&node.place()?, "eth0")?;
            for pod in node.pods() {
                link::disable_offload(&node.place()?, &format!("veth{}", pod.index()))?;
                link::disable_offload(pod.place()?, "eth0")?;
            }
        }
        Ok(())
    }

    /// Makes the nodes' uplinks able to send what XDP gives them: a veth can while its other end gathers segments.
    pub fn let_uplinks_send_for_xdp(&self) -> Result<()> {
        let lan = self.lan_place()?;
        self.nodes.iter().try_for_each(|node| {
            let mut ethtool = lan.command("ethtool")?;
            let port = format!("port{}", 10 + node.number());
            output(ethtool.args(["-K", &port, "gro", "on"]))?;
            Ok(())
        })
    }

    fn lan_place(&self) -> Result<Place> {
        Ok(Place {
            namespace: self.lan.clone(),
            ..self.outside_place()?
        })
    }

    /// Where processes of the outside client run.
    pub fn outside_place(&self) -> Result<Place> {
        Ok(Place {
            namespace: self.outside.clone(),
            cgroup: self.scope.cgroup()?.join("outside"),
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.clear();
        if let Err(error) = self.scope.remove() {
            // A second panic while one unwinds would abort and hide the first.
            eprintln!("removing the cluster: {error:#}");
        }
    }
}
