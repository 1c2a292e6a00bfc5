//! The first start on a node where somebody else serves until then, as when Beeline takes kube-proxy's place.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use lb_agent::snapshot::Family;
use lb_tests::address;
use lb_tests::agent::{Agent, SocketLb};
use lb_tests::cluster::Cluster;
use lb_tests::link::Layout;
use lb_tests::manifests::ServiceCidr;
use lb_tests::scenario::SOON;
use lb_tests::wait::eventually;

/// So many that writing them takes a while.
const SERVICES: u16 = 2_000;

/// Programs drop what goes to an address of the service CIDRs that no Service has. Where they come before the Services are
/// in the tables, that is every address, and whoever serves them is cut off.
#[test]
fn packets_are_left_alone_until_the_services_are_known() -> Result<()> {
    let mut cluster = Cluster::builder()
        .layout(Layout::PointToPoint)
        .without_agents()
        .build()?;
    let manifests = cluster.node(1).manifests();
    manifests.publish(&ServiceCidr)?;
    let range = address::service_range(Family::V4);
    let net = range.split('.').take(2).collect::<Vec<_>>().join(".");
    let mut text = String::new();
    for number in 0..SERVICES {
        let [high, low] = number.to_be_bytes();
        let vip = format!("{net}.{}.{low}", 100 + high);
        write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: default, uid: u{number}}}\n\
             spec:\n  type: ClusterIP\n  clusterIP: {vip}\n  clusterIPs: [{vip}]\n  ipFamilies: [IPv4]\n  \
             ports: [{{port: 53, protocol: UDP, targetPort: 53}}]\n"
        )?;
    }
    manifests.write("many.yaml", &text)?;
    let [high, low] = (SERVICES - 1).to_be_bytes();
    let asking = format!(
        "while :; do echo > /dev/udp/{net}.{}.{low}/53; done",
        100 + high
    );
    let mut client = cluster
        .pod(1, 1)
        .place()?
        .command("bash")?
        .args(["-c", &asking])
        .spawn()?;
    let node = cluster.node_mut(1);
    node.start_agent(SocketLb::Off, &[])?;
    Agent::wait_ready(&mut *node.agent()?)?;
    let refused = eventually("the client is refused: nobody serves", SOON, || {
        let metrics = node.agent()?.get(10249, "/metrics")?;
        Ok((!metrics.contains("event=\"packet_rejected\"} 0")).then_some(metrics))
    });
    client.kill()?;
    client.wait()?;
    let told = refused?;
    let dropped = told.lines().find(|line| line.contains("\"cidr_dropped\""));
    ensure!(
        dropped.is_some_and(|line| line.ends_with(" 0")),
        "packets to Services were dropped for having none: {dropped:?}"
    );
    Ok(())
}
