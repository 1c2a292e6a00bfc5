//! Two agents of one node: the second one waits a little for the first to end, and starts only then.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::address::FAMILIES;
use lb_tests::agent::{Agent, Settings, SocketLb, Source};
use lb_tests::cluster::Cluster;
use lb_tests::node::Node;
use lb_tests::process::Place;
use lb_tests::scenario::Web;
use lb_tests::wait::eventually;

/// Twice the time between two looks.
const LOOKED: Duration = Duration::from_secs(10);

/// Another agent of a node, as one that an operator starts by hand.
fn another(node: &Node) -> Result<Settings> {
    let cgroup = node.cgroup()?.to_owned();
    Ok(Settings {
        node: node.name(),
        place: Place {
            namespace: node.namespace().clone(),
            cgroup: cgroup.join("agent"),
        },
        source: Source::Manifests(node.manifests().directory().to_owned()),
        bpffs: node.bpffs(),
        cgroup,
        log: node.directory().join("another.log"),
        socket_lb: SocketLb::All,
        arguments: Vec::new(),
    })
}

#[test]
fn a_second_agent_and_a_clean_up_are_refused() -> Result<()> {
    let cluster = Cluster::builder().build()?;
    let pods = [cluster.pod(1, 2), cluster.pod(2, 1)];
    let web = Web::start(&cluster, &pods)?;
    let client = cluster.pod(1, 1).peer()?;
    web.wait_for(&client, &pods)?;
    let node = cluster.node(1);
    let agent = node.agent()?;
    let manifests = node.manifests().directory().to_str().context("UTF-8")?;
    for command in [
        &["agent", "--node-name", "node1", "--manifests", manifests][..],
        &["cleanup"],
    ] {
        let refusal = agent.command(command).err().context("it ran")?.to_string();
        ensure!(
            refusal.contains("an agent of this node is running already"),
            "{refusal}"
        );
    }
    // Also where somebody removed what the first one had locked, and had looked at: after the refusals, it has.
    std::fs::remove_dir_all(node.bpffs().join("beeline")).context("removing the pins")?;
    eventually("the agent puts back what is missing", LOOKED, || {
        Ok(agent.log_contains("names: put back").then_some(()))
    })?;
    ensure!(agent.command(&["cleanup"]).is_err(), "nothing was locked");
    for family in FAMILIES {
        client.ask_tcp(web.vip(family)?)?;
    }
    Ok(())
}

#[test]
fn a_second_agent_starts_when_the_first_one_has_ended() -> Result<()> {
    let cluster = Cluster::builder().build()?;
    let pods = [cluster.pod(1, 2), cluster.pod(2, 1)];
    let web = Web::start(&cluster, &pods)?;
    let client = cluster.pod(1, 1).peer()?;
    web.wait_for(&client, &pods)?;
    let node = cluster.node(1);
    let mut second = Agent::start(another(node)?)?;
    eventually("the second agent waits", Duration::from_secs(8), || {
        Ok(second.log_contains("waiting up to").then_some(()))
    })?;
    node.agent()?.stop()?;
    second.wait_ready()?;
    ensure!(second.log_contains("adopted the running programs"));
    for family in FAMILIES {
        client.ask_tcp(web.vip(family)?)?;
    }
    Ok(())
}
