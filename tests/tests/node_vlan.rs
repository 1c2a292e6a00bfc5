//! Tagged frames on an uplink. The kernel takes a frame's tag out before the programs meet it, which fixtures cannot do.

use std::time::Duration;

use anyhow::ensure;
use lb_tests::address::FAMILIES;
use lb_tests::cluster::Cluster;
use lb_tests::in_both_layouts;
use lb_tests::object::Tagger;
use lb_tests::scenario::{SOON, Web, balanced, check_transfers, vip};
use lb_tests::table::{Outcome, Table};

/// The highest priority of a class of traffic, and no VLAN.
const PRIORITY: u16 = 7 << 13;
/// A VLAN that no device of the node belongs to.
const ELSEWHERE: u16 = 100;

/// MiB/s that any path here carries many times over.
const SLOW: f64 = 10.0;

in_both_layouts! {
    /// VLAN 0 is none: the tag tells a priority, and the frame is the untagged device's (IEEE 802.1Q, 9.6).
    fn a_tag_that_is_a_priority_makes_no_difference(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        cluster.route_services_to(1)?;
        let (near, far) = (cluster.pod(1, 1), cluster.pod(2, 1));
        let _webs = (
            Web::start_as(&cluster, balanced(1), &[near])?,
            Web::start_as(&cluster, balanced(2), &[far])?,
            Web::beside(&cluster, balanced(3), &[])?,
        );
        let _tagger = Tagger::attach(cluster.outside(), "eth0", PRIORITY)?;
        let client = cluster.client()?;
        let mut table = Table::new();
        for family in FAMILIES {
            let (own, masked) = (cluster.client_address(family), cluster.node(1).address(family));
            for (number, endpoint, seen) in [(1, near, own), (2, far, masked)] {
                let outcome = Outcome::answered([(endpoint.name(), seen)]);
                table.soon(format!("external → VIP of S{number}"), &client, vip(family, number), &outcome);
            }
            table.soon("external → VIP without endpoints", &client, vip(family, 3), &Outcome::Refused);
        }
        table.finish()?;
        for family in FAMILIES {
            for number in [1, 2] {
                check_transfers(&client, vip(family, number), SLOW)?;
            }
        }
        Ok(())
    }

    /// The kernel looks for the device of the VLAN behind our programs, and drops the frame as there is none.
    fn what_belongs_to_a_vlan_is_not_the_devices(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        cluster.route_services_to(1)?;
        let far = cluster.pod(2, 1);
        let _web = Web::start_as(&cluster, balanced(2), &[far])?;
        let client = cluster.client()?;
        let mut table = Table::new();
        for family in FAMILIES {
            let masked = Outcome::answered([(far.name(), cluster.node(1).address(family))]);
            table.soon("external → VIP", &client, vip(family, 2), &masked);
        }
        let mut sockets = Vec::new();
        for family in FAMILIES {
            sockets.push((client.udp(vip(family, 2))?, vip(family, 2)));
        }
        let ask = |text: &str, patience| -> Vec<_> {
            sockets.iter().map(|(socket, to)| socket.ask_for(Some(*to), text, patience)).collect()
        };
        let known = ask("without a tag", SOON);
        ensure!(known.iter().all(Result::is_ok), "{known:?}");
        let tagger = Tagger::attach(cluster.outside(), "eth0", ELSEWHERE)?;
        // Also not in a flow that stands.
        let answers = ask("tagged", Duration::from_millis(300));
        ensure!(answers.iter().all(Result::is_err), "a frame of another VLAN was answered: {answers:?}");
        for family in FAMILIES {
            table.row("external → VIP, of a VLAN", &client, vip(family, 2), &Outcome::Silent);
        }
        drop(tagger);
        for family in FAMILIES {
            let masked = Outcome::answered([(far.name(), cluster.node(1).address(family))]);
            table.row("external → VIP", &client, vip(family, 2), &masked);
        }
        table.finish()
    }
}
