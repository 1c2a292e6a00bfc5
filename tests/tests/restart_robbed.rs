//! Somebody removes what we pinned: names and programs come back, and connections live on.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use lb_tests::address::FAMILIES;
use lb_tests::agent::Agent;
use lb_tests::in_every_case;
use lb_tests::manifests::Service;
use lb_tests::scenario::{SOON, Web};
use lb_tests::wait::eventually;

const NODE_PORT: u16 = 30_010;
/// Twice the time between two looks.
const LOOKED: Duration = Duration::from_secs(10);

in_every_case! {
    /// Spec J5. The next agent finds the tables, too.
    fn removed_pins_come_back(case: Case) {
        let cluster = case.cluster().build()?;
        let pods = [cluster.pod(1, 2), cluster.pod(2, 1)];
        let service = Service::cluster_ip("web", 10).node_port(NODE_PORT);
        let web = Web::start_as(&cluster, service, &pods)?;
        let (pod, outside) = (cluster.pod(1, 1).peer()?, cluster.client()?);
        web.wait_for(&pod, &pods)?;
        let mut targets = Vec::new();
        for family in FAMILIES {
            targets.push((&pod, web.vip(family)?));
            // Some of these go on to the other node, which only the flow's record can bring back.
            let node_port = SocketAddr::new(cluster.node(1).address(family), NODE_PORT);
            targets.extend([(&outside, node_port); 6]);
        }
        let mut connections = Vec::new();
        for &(client, to) in &targets {
            eventually("the target is served", SOON, || Ok(client.ask_tcp(to).ok()))?;
            let connection = client.connect(to)?;
            connection.ask("before")?;
            connections.push(connection);
        }
        // What the agent has not looked at since it was pinned is lost.
        std::thread::sleep(LOOKED * 6 / 10);
        for node in cluster.nodes() {
            fs::remove_dir_all(node.bpffs().join("beeline")).context("removing the pins")?;
        }
        cluster.each_agent(|agent| {
            eventually("the agent puts back what is missing", LOOKED, || {
                Ok(agent.log_contains("put back").then_some(()))
            })
        })?;
        for connection in &connections {
            connection.ask("after")?;
        }
        for &(client, to) in &targets {
            client.ask_tcp(to)?;
            client.ask_udp(to)?;
        }
        cluster.each_agent(Agent::kill9)?;
        cluster.each_agent(Agent::restart)?;
        cluster.each_agent(|agent| {
            anyhow::ensure!(agent.log_contains("adopted the running programs"), "{}", agent.log());
            Ok(())
        })?;
        for connection in &connections {
            connection.ask("in the end")?;
        }
        Ok(())
    }
}
