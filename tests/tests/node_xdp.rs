//! XDP on the uplinks of live nodes. A veth stands in for a network card: its senders compute their checksums
//! themselves here, as a wire would have it, and its other end takes what XDP sends.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use lb_tests::address::FAMILIES;
use lb_tests::cluster::Cluster;
use lb_tests::in_both_layouts;
use lb_tests::manifests::Service;
use lb_tests::node::Node;
use lb_tests::process::output;
use lb_tests::scenario::{SOON, Web};
use lb_tests::wait::eventually;

const NODE_PORT: u16 = 30_001;

fn service() -> Service {
    Service::cluster_ip("far", 1).node_port(NODE_PORT)
}

/// Frames that XDP has sent out of a node's uplink again.
fn sent_by_xdp(node: &Node) -> Result<u64> {
    let text = output(node.place()?.command("ethtool")?.args(["-S", "eth0"]))?;
    let sent = text.lines().filter_map(|line| {
        let (name, number) = line.split_once(':')?;
        name.trim()
            .ends_with("_xdp_redirect")
            .then(|| number.trim().parse::<u64>())
    });
    sent.sum::<Result<u64, _>>().context("numbers of ethtool")
}

/// Id of the XDP program on a node's uplink.
fn on_uplink(node: &Node) -> Result<Option<String>> {
    let text = output(
        node.place()?
            .command("ip")?
            .args(["-d", "link", "show", "eth0"]),
    )?;
    let found = text.split_once("prog/xdp id ");
    Ok(found.and_then(|(_, rest)| Some(rest.split_whitespace().next()?.to_owned())))
}

fn xdp_line(node: &Node) -> Result<String> {
    let text = node.agent()?.command(&["status"])?;
    let line = text.lines().find(|line| line.starts_with("XDP "));
    Ok(line
        .with_context(|| format!("no line of XDP in:\n{text}"))?
        .to_owned())
}

in_both_layouts! {
    fn a_remote_endpoint_is_served_by_xdp_and_outlives_the_agent(layout: Layout) {
        let cluster = Cluster::builder()
            .layout(layout)
            .tx_offload(false)
            .agent_arguments(&["--xdp=native"])
            .build()?;
        cluster.let_uplinks_send_for_xdp()?;
        let (node, pod) = (cluster.node(1), cluster.pod(2, 1));
        let _web = Web::start_as(&cluster, service(), &[pod])?;
        let client = cluster.client()?;
        let ask = || -> Result<()> {
            for family in FAMILIES {
                let to = SocketAddr::new(node.address(family), NODE_PORT);
                assert_eq!(client.ask_tcp(to)?.server, pod.name());
                assert_eq!(client.ask_udp(to)?.server, pod.name());
            }
            Ok(())
        };
        eventually("the NodePort is served, and by XDP", SOON * 3, || {
            let before = sent_by_xdp(node)?;
            Ok(ask().is_ok_and(|()| sent_by_xdp(node).is_ok_and(|now| now > before)).then_some(()))
        })?;
        // Neighbours are known by now: requests and answers of both protocols and families.
        let before = sent_by_xdp(node)?;
        ask()?;
        let sent = sent_by_xdp(node)? - before;
        assert!(sent >= 2 * (2 + 6), "XDP sent {sent} frames");
        assert_eq!(xdp_line(node)?, "XDP       eth0: native");

        let program = on_uplink(node)?.context("no XDP program")?;
        node.agent()?.kill9()?;
        let before = sent_by_xdp(node)?;
        ask()?;
        assert!(sent_by_xdp(node)? > before);
        node.agent()?.restart_with(&["--xdp=native"])?;
        assert_eq!(on_uplink(node)?, Some(program));

        node.agent()?.restart_with(&["--xdp=auto"])?;
        assert_eq!(on_uplink(node)?, None);
        let line = xdp_line(node)?;
        assert!(line.starts_with("XDP       eth0: no, it is no network card"), "{line}");
        let before = sent_by_xdp(node)?;
        ask()?;
        assert_eq!(sent_by_xdp(node)?, before);
        node.agent()?.restart_with(&["--xdp=off"])?;
        assert_eq!(xdp_line(node)?, "XDP       eth0: no, switched off by --xdp=off or --forwarding=stack");
        Ok(())
    }
}

#[test]
fn generic_mode_serves_where_it_is_asked_for_and_cleanup_takes_it_away() -> Result<()> {
    let cluster = Cluster::builder()
        .tx_offload(false)
        .agent_arguments(&["--xdp=generic"])
        .build()?;
    let (node, pod) = (cluster.node(1), cluster.pod(2, 1));
    let web = Web::start_as(&cluster, service(), &[pod])?;
    let client = cluster.client()?;
    eventually("the NodePort is served", SOON, || {
        let served = FAMILIES.iter().all(|&family| {
            let to = SocketAddr::new(node.address(family), NODE_PORT);
            client.ask_tcp(to).is_ok() && client.ask_udp(to).is_ok()
        });
        Ok(served.then_some(()))
    })?;
    assert_eq!(xdp_line(node)?, "XDP       eth0: generic");
    assert!(on_uplink(node)?.is_some() || generic_on_uplink(node)?);
    drop(web);
    node.agent()?.stop()?;
    node.agent()?.command(&["cleanup"])?;
    assert!(on_uplink(node)?.is_none() && !generic_on_uplink(node)?);
    Ok(())
}

fn generic_on_uplink(node: &Node) -> Result<bool> {
    let text = output(node.place()?.command("ip")?.args(["link", "show", "eth0"]))?;
    Ok(text.contains("xdpgeneric"))
}

#[test]
fn a_program_of_somebody_else_stays() -> Result<()> {
    let cluster = Cluster::builder()
        .agent_arguments(&["--xdp=native"])
        .build()?;
    let (node, other) = (cluster.node(1), cluster.node(2));
    let ours = on_uplink(other)?.context("no XDP program")?;
    // The other node's program takes the first one's place while no agent looks.
    node.agent()?.restart_with(&["--xdp=off"])?;
    let id = ["id", ours.as_str(), "dev", "eth0"];
    let mut bpftool = node.place()?.command("bpftool")?;
    output(bpftool.args(["net", "attach", "xdpdrv"]).args(id))?;
    node.agent()?.restart_with(&["--xdp=native"])?;
    assert_eq!(on_uplink(node)?, Some(ours));
    let line = xdp_line(node)?;
    assert!(line.contains("another XDP program sits on it"), "{line}");
    Ok(())
}
