//! The host's own firewall stays the host's: its rules see clients and endpoints, decide, and are left as they are.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_tests::address::{self, FAMILIES};
use lb_tests::agent::SocketLb;
use lb_tests::cluster::Cluster;
use lb_tests::in_both_layouts;
use lb_tests::manifests::Service;
use lb_tests::node::Node;
use lb_tests::process::output;
use lb_tests::scenario::{SOON, TARGET, Web};
use lb_tests::table::{Outcome, Table};
use lb_tests::wait::eventually;

const NODE_PORT: u16 = 30_001;

fn rules(node: &Node, what: &[&str]) -> Result<String> {
    output(node.place()?.command("nft")?.args(["list"]).args(what))
}

fn node_port(node: &Node, family: lb_agent::snapshot::Family, number: u16) -> SocketAddr {
    SocketAddr::new(node.address(family), NODE_PORT + number)
}

in_both_layouts! {
    /// Spec E15, E4: a policy of DROP stands, rules name the endpoint as the client reaches it, and no packet bears a
    /// mark of ours.
    fn a_policy_of_drop_admits_whom_its_rules_name(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).socket_lb(SocketLb::Off).build()?;
        let (admitted, barred) = (cluster.pod(1, 1), cluster.pod(1, 2));
        let web = |number: u16| Service::cluster_ip(&format!("s{number}"), number as u8).node_port(NODE_PORT + number);
        let _webs = (
            Web::start_as(&cluster, web(1), &[admitted])?,
            Web::start_as(&cluster, web(2), &[barred])?,
        );
        let [v4, v6] = FAMILIES.map(|family| admitted.address(family));
        cluster.node(1).namespace().nft(&format!("
table inet guard {{
    counter marked {{ }}
    counter seen {{ }}
    chain before {{
        type filter hook prerouting priority raw; policy accept;
        meta mark != 0 counter name marked
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        ct state established,related accept
        ip daddr {v4} meta l4proto {{ tcp, udp }} th dport {TARGET} counter name seen accept
        ip6 daddr {v6} meta l4proto {{ tcp, udp }} th dport {TARGET} counter name seen accept
    }}
    chain after {{
        type filter hook postrouting priority 300; policy accept;
        meta mark != 0 counter name marked
    }}
}}
"))?;
        let client = cluster.client()?;
        let mut table = Table::new();
        for family in FAMILIES {
            let own = cluster.client_address(family);
            let named = Outcome::answered([(admitted.name(), own)]);
            table.soon("external → admitted", &client, node_port(cluster.node(1), family, 1), &named);
            table.row("external → barred", &client, node_port(cluster.node(1), family, 2), &Outcome::Silent);
        }
        table.finish()?;
        let counters = rules(cluster.node(1), &["counters"])?;
        let marked = counters.split("counter marked").nth(1).unwrap_or_default();
        ensure!(marked.trim_start_matches([' ', '{', '\n', '\t']).starts_with("packets 0 "), "{counters}");
        Ok(())
    }

    /// Spec E15: with `--forwarding=stack` the rules also decide about endpoints of other nodes. On the fast way they are
    /// not asked.
    fn they_also_decide_about_other_nodes_endpoints_where_the_stack_forwards(layout: Layout) {
        for (forwarding, heard) in [("stack", false), ("fast", true)] {
            let cluster = Cluster::builder()
                .layout(layout)
                .agent_arguments(&["--forwarding", forwarding])
                .build()?;
            let far = cluster.pod(2, 1);
            let service = Service::cluster_ip("far", 1).node_port(NODE_PORT);
            let _web = Web::start_as(&cluster, service, &[far])?;
            let client = cluster.client()?;
            let mut table = Table::new();
            for family in FAMILIES {
                let masked = Outcome::answered([(far.name(), cluster.node(1).address(family))]);
                table.soon("external → far", &client, node_port(cluster.node(1), family, 0), &masked);
            }
            cluster.node(1).namespace().nft("
table inet guard {
    chain forward {
        type filter hook forward priority filter; policy drop;
    }
}
")?;
            for family in FAMILIES {
                let masked = Outcome::answered([(far.name(), cluster.node(1).address(family))]);
                let expected = if heard { masked } else { Outcome::Silent };
                table.row("external → far, barred", &client, node_port(cluster.node(1), family, 0), &expected);
            }
            table.finish()?;
        }
        Ok(())
    }

    /// Spec H14, E4: the agent opens no port and makes no rule, also not for health checks.
    fn no_rule_is_made(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        let theirs = "table inet guard { chain input { type filter hook input priority filter; policy accept; }\n}\n";
        for node in cluster.nodes() {
            node.namespace().nft(theirs)?;
        }
        let before = cluster.nodes().iter().map(|node| rules(node, &["ruleset"])).collect::<Result<Vec<_>>>()?;
        let service = FAMILIES.into_iter().fold(
            Service::cluster_ip("web", 1).external_local().health_check_port(32_000),
            |service, family| service.load_balancer(address::load_balancer(family, 1)),
        );
        let pod = cluster.pod(1, 1);
        let _web = Web::start_as(&cluster, service, &[pod])?;
        eventually("the health check answers", SOON, || {
            let answer = cluster.node(1).health_check(32_000);
            Ok(answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")).then_some(()))
        })?;
        for (node, before) in cluster.nodes().iter().zip(before) {
            assert_eq!(rules(node, &["tables"])?.trim(), "table inet guard", "{}", node.name());
            assert_eq!(rules(node, &["ruleset"])?, before, "{}", node.name());
        }
        Ok(())
    }
}
