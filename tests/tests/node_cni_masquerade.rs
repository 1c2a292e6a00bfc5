//! A CNI's own masquerade rule, as most networks have one for what pods send out of the cluster: answers of endpoints are
//! none of its business.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use lb_agent::snapshot::Family;
use lb_tests::address::{self, FAMILIES};
use lb_tests::agent::SocketLb;
use lb_tests::cluster::Cluster;
use lb_tests::in_both_layouts;
use lb_tests::link::Layout;
use lb_tests::manifests::Service;
use lb_tests::node::Node;
use lb_tests::process::output;
use lb_tests::scenario::{PORT, TARGET, Web, balanced, check_transfers, vip};
use lb_tests::table::{Outcome, Table};
use lb_tests::traffic::Peer;

/// Pods of node 1 that send out of the cluster.
const RULES: &str = "
table ip cni {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 10.244.1.0/24 ip daddr != 10.244.0.0/16 counter masquerade
    }
}
table ip6 cni {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        ip6 saddr fd44:1::/64 ip6 daddr != fd44::/16 counter masquerade
    }
}
";

/// MiB/s that any path here carries many times over.
const SLOW: f64 = 10.0;

fn service(number: u8) -> Service {
    balanced(number).node_port(30_000 + u16::from(number))
}

fn node_port(node: &Node, family: Family, number: u8) -> SocketAddr {
    SocketAddr::new(node.address(family), 30_000 + u16::from(number))
}

fn forget(node: &Node) -> Result<()> {
    output(node.place()?.command("conntrack")?.arg("-F")).map(drop)
}

fn cluster(layout: Layout) -> Result<Cluster> {
    let cluster = Cluster::builder()
        .layout(layout)
        .socket_lb(SocketLb::Off)
        .build()?;
    cluster.route_services_to(1)?;
    cluster.node(1).namespace().nft(RULES)?;
    Ok(cluster)
}

in_both_layouts! {
    /// Spec E14.
    fn it_leaves_answers_alone(layout: Layout) {
        let cluster = cluster(layout)?;
        let (near, far) = (cluster.pod(1, 2), cluster.pod(2, 1));
        let _webs = (
            Web::start_as(&cluster, service(1), &[near])?,
            Web::start_as(&cluster, service(2), &[far])?,
            Web::beside(&cluster, service(3).external_local(), &[near])?,
        );
        let outside = cluster.outside_place()?;
        let addresses = FAMILIES.map(|family| cluster.client_address(family));
        let server = Peer::start("outside", &outside, &addresses)?;
        server.serve(&[TARGET], &[TARGET])?;
        let (client, pod) = (cluster.client()?, cluster.pod(1, 1).peer()?);
        let mut table = Table::new();
        for family in FAMILIES {
            let (own, node) = (cluster.client_address(family), cluster.node(1).address(family));
            // The rule is one that works.
            table.row("pod → outside", &pod, SocketAddr::new(own, TARGET), &Outcome::answered([(server.name(), node)]));
            for (number, endpoint, seen) in [(1, near, own), (2, far, node), (3, near, own)] {
                let outcome = Outcome::answered([(endpoint.name(), seen)]);
                table.soon(format!("external → S{number} VIP"), &client, vip(family, number), &outcome);
                table.row(format!("external → S{number} NodePort"), &client, node_port(cluster.node(1), family, number), &outcome);
            }
            let inside = cluster.pod(1, 1).address(family);
            table.row("pod → S2 ClusterIP", &pod, SocketAddr::new(address::service(family, 2), PORT),
                &Outcome::answered([(far.name(), inside)]));
            table.row("pod → S2 VIP", &pod, vip(family, 2), &Outcome::answered([(far.name(), node)]));
        }
        table.finish()?;
        for family in FAMILIES {
            check_transfers(&client, vip(family, 1), SLOW)?;
        }
        Ok(())
    }

    /// Conntrack may forget a flow: flushed, or full. What the client sends next tells it who began.
    /// Spec E14.
    fn it_leaves_answers_alone_of_flows_that_conntrack_forgot(layout: Layout) {
        let cluster = cluster(layout)?;
        let near = cluster.pod(1, 2);
        let web = Web::start_as(&cluster, service(1), &[near])?;
        let client = cluster.client()?;
        for family in FAMILIES {
            let to = vip(family, 1);
            web.wait_for(&client, &[near])?;
            let (tcp, udp) = (client.connect(to)?, client.udp(to)?);
            for text in ["before", "after", "after that"] {
                let answers = [tcp.ask(text)?, udp.ask_at(to, text)?];
                for answer in answers {
                    let own = cluster.client_address(family);
                    ensure!((answer.from, answer.seen.ip(), answer.text.as_str()) == (to, own, text), "{answer:?}");
                }
                forget(cluster.node(1)).context("conntrack -F")?;
            }
        }
        Ok(())
    }
}
