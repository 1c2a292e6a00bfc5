//! What expired leaves the tables as fast as it comes, with nobody but the programs there.

use std::thread;
use std::time::Duration;

use lb_tests::object::{Ends, Entry, Met, Net, Stream, on_a_node_by, udp_service};
use lb_tests::packet::udp;
use lb_tests::wait::eventually;

const FLOWS: u32 = 65_536;

/// A tick of each table, 200 ms apart, takes 14 s, and what is to be deleted 2 s more. With one share of deletions a round
/// for each shard it would be a minute.
const ROUND: Duration = Duration::from_secs(30);

/// Reading the table takes a while, too.
const PACE: Duration = Duration::from_millis(500);

#[test]
fn one_round_of_the_sweep_removes_all_that_expired() {
    on_a_node_by(Entry::Tc, |node| {
        let net = Net::v4();
        node.serve(
            udp_service("names", net.family)
                .cluster_ip(net.service)
                .endpoint(net.endpoint),
        );
        let question = udp(net.client, net.service);
        let (source, destination) = question.ports().expect("a datagram has ports");
        let ([a, b], [c, d]) = (source.to_be_bytes(), destination.to_be_bytes());
        let clients: Vec<Ends> = (0..FLOWS)
            .map(|number| Ends {
                address: (0x0a40_0000 + number).to_be_bytes(),
                ports: [a, b, c, d],
            })
            .collect();
        let questions = Stream::from(Met::PodIngress, &question, &clients).expect("a stream");
        node.open_flows(&questions).expect("opened");
        let opened = node.flows().len();
        assert!(opened > FLOWS as usize / 2, "{opened} flows");

        node.set(|settings| (settings.timeout_new, settings.timeout_udp) = (1, 1));
        eventually("all flows are gone", ROUND, || {
            thread::sleep(PACE);
            Ok(node.flows().is_empty().then_some(()))
        })
        .expect("swept");
    });
}
