//! Somebody removes what we pinned, or keeps us from pinning: names and programs come back, and connections live on.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use anyhow::Context as _;
use lb_agent::datapath::pins::Pins;
use lb_tests::address::FAMILIES;
use lb_tests::agent::{Agent, SocketLb};
use lb_tests::cluster::Cluster;
use lb_tests::link::Layout;
use lb_tests::manifests::Service;
use lb_tests::scenario::{SOON, Web};
use lb_tests::wait::eventually;
use lb_tests::{device, in_every_case};

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
            let pins = node.bpffs().join("beeline");
            let there = names_below(&pins)?;
            fs::remove_dir_all(&pins).context("removing the pins")?;
            // One that looks just then puts back what was gone already, and the rest the next time.
            eventually("the agent puts back what is missing", 2 * LOOKED, || {
                Ok((names_below(&pins).unwrap_or_default() == there).then_some(()))
            })?;
        }
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

/// All names in a directory and those below, but those of programs for devices that come later: nobody has them but their
/// names, and they are loaded again with such a device.
fn names_below(directory: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.extend(names_below(&entry.path())?);
        }
        if !entry.file_name().as_encoded_bytes().starts_with(b"l3_") {
            names.insert(entry.path());
        }
    }
    Ok(names)
}

/// Spec J4. Nothing else of the node changes meanwhile.
#[test]
fn a_device_whose_programs_could_not_be_attached_is_tried_again() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder()
        .layout(Layout::PointToPoint)
        .without_agents()
        .build()?;
    let veth = cluster.node(1).namespace().run(|| device::index("veth1"))?;
    let pins = Pins::new(&cluster.node(1).bpffs());
    let in_the_way = pins.link(&format!("tc-{veth}-ingress"));
    fs::create_dir_all(&in_the_way).context("taking the link's name")?;
    cluster.node_mut(1).start_agent(SocketLb::Off, &[])?;
    cluster.node(1).agent()?.wait_ready()?;

    let server = cluster.pod(1, 2);
    let web = Web::start(&cluster, &[server])?;
    let (client, vip) = (cluster.pod(1, 1).peer()?, web.vip(FAMILIES[0])?);
    client.ask_tcp(vip).expect_err("the device has no program");
    std::thread::sleep(LOOKED);
    let told = cluster.node(1).agent()?.log();
    let told = told.matches("could not attach the packet programs");
    assert_eq!(told.count(), 1, "it is told once");

    fs::remove_dir(&in_the_way).context("giving the link's name back")?;
    eventually("the device is served", 2 * LOOKED, || {
        Ok(client.ask_tcp(vip).ok())
    })?;
    Ok(())
}
