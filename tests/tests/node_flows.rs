//! Many flows through one service, by the packet path: none refused, all listed, all ended by one command.

use lb_agent::snapshot::Family;
use lb_tests::agent::SocketLb;
use lb_tests::cluster::Cluster;
use lb_tests::scenario::Web;

/// Flows of each client; together enough to make the flow table grow, which starts with 32 shards of 1,024 and grows
/// at 70 %.
const FLOWS_EACH: u16 = 13_000;
/// Source ports below the ephemeral ones, so that no other socket has them.
const FIRST_PORT: u16 = 10_000;

#[test]
fn many_flows_are_served_listed_and_ended() -> anyhow::Result<()> {
    let cluster = Cluster::builder().socket_lb(SocketLb::Off).build()?;
    let servers = [cluster.pod(2, 1), cluster.pod(2, 2)];
    let web = Web::start(&cluster, &servers)?;
    let vip = web.vip(Family::V4)?;
    let clients = [cluster.pod(1, 1).peer()?, cluster.pod(1, 2).peer()?];
    web.wait_for(&clients[0], &servers)?;
    let beeline = |arguments: &[&str]| cluster.node(1).agent()?.command(arguments);
    beeline(&["flow", "flush", "--yes"])?;
    for client in &clients {
        for port in FIRST_PORT..FIRST_PORT + FLOWS_EACH {
            let socket = client.udp_from(port, vip)?;
            // A client that asks again has had its answer; others may have to make room.
            for _ in 0..2 {
                let answer = socket.ask_at(vip, "hello")?;
                assert_eq!(answer.text, "hello", "{answer:?}");
            }
        }
    }
    let all = 2 * usize::from(FLOWS_EACH);
    let list = |arguments: &[&str]| -> anyhow::Result<serde_json::Value> {
        let arguments = [&["flow", "list", "-o", "json"], arguments].concat();
        Ok(serde_json::from_str(&beeline(&arguments)?)?)
    };
    let count = |list: &serde_json::Value| list["items"].as_array().map_or(0, Vec::len);

    let flows = list(&["--service", "web:udp"])?;
    assert_eq!(count(&flows), all);
    assert_eq!(flows["tables"][0]["used"], all);
    assert!(flows["tables"][0]["capacity"].as_u64() > Some(all as u64));
    let established = |item: &serde_json::Value| item["state"] == "established";
    assert!(
        flows["items"]
            .as_array()
            .is_some_and(|items| items.iter().all(established))
    );
    let refused = list(&[]).and_then(|_| {
        cluster
            .node(1)
            .agent()?
            .get(10249, "/metrics")
            .map(|page| page.contains("event=\"flow_table_full\"} 0"))
    })?;
    assert!(refused, "no flow was refused");

    // With the agent dead the commands work as well.
    cluster.node(1).agent()?.kill9()?;
    let one = cluster.pod(1, 1).address(Family::V4).to_string();
    let ended = format!("{FLOWS_EACH} flows ended\n");
    assert_eq!(
        beeline(&["flow", "flush", "--yes", "--client", &one])?,
        ended
    );
    assert_eq!(count(&list(&[])?), usize::from(FLOWS_EACH));
    assert_eq!(
        beeline(&["flow", "flush", "--yes", "--service", "web"])?,
        ended
    );
    assert_eq!(count(&list(&[])?), 0);
    let answer = clients[0].udp_from(FIRST_PORT, vip)?.ask_at(vip, "again")?;
    assert_eq!(answer.text, "again");
    Ok(())
}
