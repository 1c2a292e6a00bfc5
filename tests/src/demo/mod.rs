//! The demo: a cluster on this machine, a service in it, and what happens to it while traffic runs.
//!
//! It is a test that explains itself: everything printed was measured, and any failed request fails the demo.

mod screen;

use std::collections::BTreeMap;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_agent::snapshot::Family;

use crate::address::FAMILIES;
use crate::agent::{Agent, SocketLb};
use crate::cluster::Cluster;
use crate::link::Layout;
use crate::peer::protocol::{Pattern, Tally};
use crate::pod::Pod;
use crate::scenario::{SOON, Web};
use crate::traffic::{Flood, Peer};
use crate::wait::eventually;
pub use screen::Screen;

/// Requests per protocol and family in the parts that count.
const REQUESTS: u32 = 120;
/// How long traffic runs before and after each event.
const PHASE: Duration = Duration::from_millis(700);
const PAUSE: Duration = Duration::from_millis(2);

/// The cluster with all that plays a part.
struct Stage<'a> {
    cluster: &'a Cluster,
    web: Web<'a>,
    client: Peer,
    /// The service's endpoints at the start.
    pods: [&'a Pod; 3],
    /// The one that joins later.
    spare: &'a Pod,
}

/// Runs the demo. An error means that something did not work as promised.
pub fn run(screen: &mut Screen<impl Write>) -> Result<()> {
    let start = Instant::now();
    screen.title("Beeline demo: a Kubernetes service without kube-proxy, on this machine")?;
    screen.text(
        "Two nodes, made of network namespaces, get an agent each. No API server: they follow a",
    )?;
    screen.text("directory of ordinary Service and EndpointSlice manifests.")?;
    let cluster = Cluster::builder()
        .layout(Layout::PointToPoint)
        .pods_per_node(3)
        .build()?;
    screen.blank()?;
    for node in cluster.nodes() {
        let [v4, v6] = FAMILIES.map(|family| node.address(family).to_string());
        screen.text(&format!("  {}   {v4}   {v6}", node.name()))?;
    }
    let mut stage = Stage::set(&cluster)?;
    stage.introduce(screen)?;

    screen.title("1. Socket hooks: a socket dials its endpoint, packets need no translation")?;
    stage.ask_everything(screen)?;
    stage.make_trouble(screen)?;

    screen.title("2. Packet path: every packet is translated at the pod's interface")?;
    screen.text("The agents restart with --socket-lb=off, as for pods in virtual machines.")?;
    cluster.each_agent(|agent| agent.restart_as(SocketLb::Off))?;
    stage.ask_everything(screen)?;
    stage.make_trouble(screen)?;

    let Stage { web, client, .. } = stage;
    drop((web, client));
    let scope = cluster.scope().clone();
    drop(cluster);
    let remains = scope.remains()?;
    ensure!(
        remains.is_empty(),
        "the demo left something behind: {remains:?}"
    );
    screen.title(&format!(
        "Nothing failed. All of it is removed again. ({:.0} s)",
        start.elapsed().as_secs_f64()
    ))
}

impl<'a> Stage<'a> {
    fn set(cluster: &'a Cluster) -> Result<Self> {
        let pods = [cluster.pod(1, 2), cluster.pod(2, 1), cluster.pod(2, 2)];
        let spare = cluster.pod(1, 3);
        let mut web = Web::start(cluster, &pods)?;
        web.serve(spare)?;
        let client = cluster.pod(1, 1).peer()?;
        web.wait_for(&client, &pods)?;
        Ok(Self {
            cluster,
            web,
            client,
            pods,
            spare,
        })
    }

    /// Shows the service as the kernel of node 1 has it.
    fn introduce(&self, screen: &mut Screen<impl Write>) -> Result<()> {
        screen.blank()?;
        screen.text("Service `web` has a server in three pods; `node1-pod1` is the client. In the kernel of node1:")?;
        for what in ["service", "endpoint"] {
            screen.command(&format!("beeline {what} list"))?;
            screen.table(&self.cluster.node(1).agent()?.command(&[what, "list"])?)?;
        }
        Ok(())
    }

    /// Sends requests through the ClusterIP by both protocols and families and shows who answered.
    fn ask_everything(&self, screen: &mut Screen<impl Write>) -> Result<()> {
        for family in FAMILIES {
            let vip = self.web.vip(family)?;
            screen.blank()?;
            screen.text(&format!("{REQUESTS} requests each by TCP and UDP to {vip}"))?;
            let (mut tcp, mut udp) = (self.nobody(), self.nobody());
            for _ in 0..REQUESTS {
                let by_tcp = self.client.ask_tcp(vip)?;
                let own = self.cluster.pod(1, 1).address(family);
                ensure!(
                    by_tcp.seen.ip() == own,
                    "{} saw {} and not the client's {own}",
                    by_tcp.server,
                    by_tcp.seen
                );
                *tcp.entry(by_tcp.server).or_default() += 1;
                *udp.entry(self.client.ask_udp(vip)?.server).or_default() += 1;
            }
            screen.bars("TCP", &tcp)?;
            screen.bars("UDP", &udp)?;
        }
        screen.text("Every endpoint saw the client's own address.")
    }

    /// Scales, kills an endpoint and kills the agents under traffic, then puts everything back.
    fn make_trouble(&mut self, screen: &mut Screen<impl Write>) -> Result<()> {
        screen.blank()?;
        screen.text(
            "Traffic starts: new connections, a long-lived connection and UDP, in both families.",
        )?;
        let floods = self.start_traffic()?;
        thread::sleep(PHASE);

        let [first, second, third] = self.pods;
        self.web
            .set_endpoints(&[first, second, third, self.spare])?;
        self.until_it_serves(self.spare)?;
        screen.event(
            "scale up",
            &format!("{} joined and answers", self.spare.name()),
        )?;
        thread::sleep(PHASE);

        let victim = self.expendable(&floods)?;
        let rest: Vec<_> = self
            .pods
            .into_iter()
            .chain([self.spare])
            .filter(|pod| pod.name() != victim.name())
            .collect();
        self.web.set_endpoints(&rest)?;
        self.until_idle(victim)?;
        self.web.server(victim)?.kill();
        screen.event(
            "scale down",
            &format!(
                "{} left the slice, got no more requests, and was killed",
                victim.name()
            ),
        )?;
        thread::sleep(PHASE);

        self.cluster.each_agent(Agent::kill9)?;
        screen.event("kill -9", "both agents are dead; the kernel carries on")?;
        thread::sleep(2 * PHASE);
        self.cluster.each_agent(Agent::restart)?;
        screen.event(
            "restart",
            "both agents found their tables in the kernel and took them over",
        )?;
        thread::sleep(PHASE);

        self.finish_traffic(screen, floods)?;
        self.web.serve(victim)?;
        self.web.set_endpoints(&self.pods)?;
        self.web.wait_for(&self.client, &self.pods)
    }

    fn start_traffic(&self) -> Result<Vec<(String, Flood<'_>)>> {
        let mut floods = Vec::new();
        for family in FAMILIES {
            let number = if family == Family::V4 { "IPv4" } else { "IPv6" };
            let vip = self.web.vip(family)?;
            for (name, pattern) in [
                ("connections", Pattern::TcpConnections),
                ("datagrams", Pattern::UdpSockets),
            ] {
                floods.push((
                    format!("{number} {name}"),
                    self.client.flood(pattern, vip, 2, PAUSE)?,
                ));
            }
        }
        let vip = self.web.vip(FAMILIES[0])?;
        floods.push((
            "long-lived TCP".into(),
            self.client.flood(Pattern::TcpStream, vip, 1, PAUSE)?,
        ));
        Ok(floods)
    }

    fn finish_traffic(
        &self,
        screen: &mut Screen<impl Write>,
        floods: Vec<(String, Flood<'_>)>,
    ) -> Result<()> {
        screen.blank()?;
        let mut all = Tally::default();
        for (name, flood) in floods {
            let tally = flood.finish()?;
            ensure!(
                tally.answered() > 100,
                "{name}: only {} answers",
                tally.answered()
            );
            screen.bars(&name, &tally.answers)?;
            all.add(&tally);
        }
        ensure!(
            all.failed() == 0,
            "{} requests failed: {:#?}",
            all.failed(),
            all.examples
        );
        let slowest = Duration::from_micros(all.slowest_micros);
        screen.good(&format!(
            "{} requests, none failed, the slowest took {slowest:.1?}",
            all.answered()
        ))
    }

    /// A pod without a long-lived connection, as killing that would rightly break it.
    fn expendable(&self, floods: &[(String, Flood<'_>)]) -> Result<&'a Pod> {
        let (_, stream) = floods.last().context("no traffic")?;
        let busy = stream.report()?.answers;
        let free = self
            .pods
            .into_iter()
            .rev()
            .find(|pod| !busy.contains_key(&pod.name()));
        free.context("every endpoint holds a long-lived connection")
    }

    fn until_it_serves(&self, pod: &Pod) -> Result<()> {
        let server = self.web.server(pod)?;
        let before = server.served()?;
        eventually(&format!("{} answers requests", pod.name()), SOON, || {
            let served = server.served()?;
            Ok((served.tcp > before.tcp && served.udp > before.udp).then_some(()))
        })
    }

    fn until_idle(&self, pod: &Pod) -> Result<()> {
        let server = self.web.server(pod)?;
        eventually(
            &format!("{} gets no more requests", pod.name()),
            SOON,
            || {
                let before = server.served()?;
                thread::sleep(Duration::from_millis(100));
                Ok((server.served()? == before).then_some(()))
            },
        )
    }

    /// All endpoints with nothing counted, so that one that gets nothing shows as such.
    fn nobody(&self) -> BTreeMap<String, u64> {
        self.pods.iter().map(|pod| (pod.name(), 0)).collect()
    }
}
