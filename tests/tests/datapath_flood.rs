//! A flood of made-up clients displaces itself, not those who talk (reliability R9, R10).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_ebpf::abi::FLOW_SHARDS;
use lb_ebpf::abi::counter;
use lb_ebpf::abi::flow::{ANSWERED, ESTABLISHED, NEW};
use lb_tests::object::{Net, Node, POOL, in_both_families, tcp_service, udp_service};
use lb_tests::packet::{ACK, FIN, Packet, RST, tcp, udp};

/// Flows of a family that may be unproven at a time, as the tables are at first.
const NEWCOMERS: usize = 256 * FLOW_SHARDS as usize;
/// Flows that all shards of a family have room for at first.
const ROOM: usize = 1024 * FLOW_SHARDS as usize;
/// Unproven flows that may leave their queues unseen before a flood is noticed. One in eight is looked at: more than this
/// are missed in a row once in some 600,000 times.
const OVERLOOKED: usize = 100;

fn serve(node: &mut Node, net: &Net) {
    for service in [
        tcp_service("web", net.family),
        udp_service("web", net.family),
    ] {
        node.serve(
            service
                .load_balancer(net.vip)
                .local_endpoint(net.local_endpoint),
        );
    }
}

/// A client from outside; each number is another one.
fn client(net: &Net, number: u32) -> SocketAddr {
    let ip: IpAddr = if net.is_v4() {
        Ipv4Addr::from(0x0b00_0000 + number).into()
    } else {
        Ipv6Addr::from(0x2001_0db8_00aa_u128 << 80 | u128::from(number)).into()
    };
    SocketAddr::new(ip, 1024 + (number % 60_000) as u16)
}

/// A client that opens a connection and talks.
fn talks(node: &Node, net: &Net, number: u32) {
    let client = client(net, number);
    node.comes_in(&tcp(client, net.vip).syn());
    node.goes_out(&tcp(net.local_endpoint, client).syn_ack());
    node.comes_in(&tcp(client, net.vip));
}

/// How many flows are in each state.
fn states(node: &Node) -> BTreeMap<u8, usize> {
    let mut states = BTreeMap::new();
    for flow in node.flows() {
        *states.entry(flow.state).or_default() += 1;
    }
    states
}

#[test]
fn a_syn_flood_displaces_itself_and_nobody_who_talks() {
    in_both_families(|node, net| {
        serve(node, net);
        for number in 0..500 {
            talks(node, net, number);
        }
        let flood = 3 * NEWCOMERS as u32;
        for number in 0..flood {
            node.comes_in(&tcp(client(net, 1_000_000 + number), net.vip).syn());
        }
        let states = states(node);
        assert_eq!(states[&ESTABLISHED], 500);
        assert!(states[&NEW] <= NEWCOMERS + OVERLOOKED, "{states:?}");
        let kept = states[&NEW] as u64;
        assert_eq!(
            node.count_of(counter::FLOW_DISPLACED),
            u64::from(flood) - kept
        );
        assert_eq!(node.count_of(counter::FLOW_TABLE_FULL), 0);
        assert_eq!(node.halves(), (node.flows().len(), node.flows().len()));
    });
}

/// A server says nothing to a FIN or RST without a connection: who sends them need not be there.
#[test]
fn a_flood_that_also_ends_what_it_opens_is_no_better() {
    in_both_families(|node, net| {
        serve(node, net);
        for number in 0..500 {
            talks(node, net, number);
        }
        for number in 0..2 * NEWCOMERS as u32 {
            let syn = tcp(client(net, 1_000_000 + number), net.vip).syn();
            node.comes_in(&syn);
            node.comes_in(&syn.flags([FIN, RST, FIN | ACK, RST | ACK][number as usize % 4]));
        }
        let states = states(node);
        assert_eq!(states[&ESTABLISHED], 500);
        assert_eq!(states.len(), 2, "{states:?}");
        assert!(states[&NEW] <= NEWCOMERS + OVERLOOKED, "{states:?}");
        assert_eq!(node.count_of(counter::FLOW_TABLE_FULL), 0);
    });
}

#[test]
fn a_flood_that_the_endpoint_answers_is_no_better() {
    // With SYN cookies a server answers every SYN, a resolver every question.
    in_both_families(|node, net| {
        serve(node, net);
        let flood = 2 * NEWCOMERS as u32;
        for number in 0..flood {
            let client = client(net, number);
            let packets: [Packet; 2] = if number % 2 == 0 {
                [
                    tcp(client, net.vip).syn(),
                    tcp(net.local_endpoint, client).syn_ack(),
                ]
            } else {
                [udp(client, net.vip), udp(net.local_endpoint, client)]
            };
            node.comes_in(&packets[0]);
            node.goes_out(&packets[1]);
        }
        let states = states(node);
        assert!(states[&ANSWERED] <= NEWCOMERS + OVERLOOKED, "{states:?}");
        assert_eq!(states.len(), 1, "{states:?}");
        // Nor does it stay for as long as those who talk.
        node.let_flows_rest(31);
        let first = client(net, flood - 2);
        node.comes_in(&tcp(first, net.vip)).is_untouched();
    });
}

#[test]
fn clients_connect_during_a_flood() {
    in_both_families(|node, net| {
        serve(node, net);
        let mut flood = 0;
        for number in 0..1_000 {
            let client = client(net, 5_000_000 + number);
            let syn = tcp(client, net.vip).syn();
            node.comes_in(&syn)
                .becomes(&syn.clone().to(net.local_endpoint));
            // As many strangers come while the client's answer is under way as a third of the queues hold.
            let pause = if number % 100 == 0 { NEWCOMERS / 3 } else { 8 };
            for _ in 0..pause {
                flood += 1;
                node.comes_in(&tcp(self::client(net, 1_000_000 + flood), net.vip).syn());
            }
            let accepts = tcp(net.local_endpoint, client).syn_ack();
            node.goes_out(&accepts)
                .becomes(&accepts.clone().from(net.vip));
            let segment = tcp(client, net.vip);
            node.comes_in(&segment)
                .becomes(&segment.clone().to(net.local_endpoint));
        }
        assert!(node.count_of(counter::FLOW_DISPLACED) > 10_000);
        assert_eq!(states(node)[&ESTABLISHED], 1_000);
    });
}

#[test]
fn who_is_displaced_may_try_again() {
    in_both_families(|node, net| {
        serve(node, net);
        let syn = tcp(net.outside, net.vip).syn();
        node.comes_in(&syn);
        for number in 0..2 * NEWCOMERS as u32 {
            node.comes_in(&tcp(client(net, number), net.vip).syn());
        }
        node.comes_in(&syn)
            .becomes(&syn.clone().to(net.local_endpoint));
        let accepts = tcp(net.local_endpoint, net.outside).syn_ack();
        node.goes_out(&accepts)
            .becomes(&accepts.clone().from(net.vip));
    });
}

#[test]
fn in_full_shards_the_unproven_make_room_and_nobody_else() {
    in_both_families(|node, net| {
        serve(node, net);
        for number in 0..4_000 {
            node.comes_in(&tcp(client(net, 1_000_000 + number), net.vip).syn());
        }
        // More than there is room for, so that every shard is full in the end.
        for number in 0..(ROOM as u32 + 2_000) {
            talks(node, net, number);
        }
        let states = states(node);
        // But for those that left their queue before the processor met the first of them.
        let overlooked = states.get(&NEW).copied().unwrap_or(0);
        assert!(overlooked <= OVERLOOKED, "{states:?}");
        assert_eq!(states[&ESTABLISHED], ROOM - overlooked);
        assert_eq!(node.halves(), (ROOM, ROOM));
        assert!(node.count_of(counter::FLOW_TABLE_FULL) > 0);
        // Everybody who was let in is served.
        let mut served = 0;
        for number in 0..(ROOM as u32 + 2_000) {
            let segment = tcp(client(net, number), net.vip);
            served += usize::from(!node.comes_in(&segment).goes_on_untouched());
        }
        assert_eq!(served, ROOM - overlooked);
    });
}

/// Serves with an endpoint elsewhere, so that flows are masqueraded.
fn serve_elsewhere(node: &mut Node, net: &Net) {
    node.route_packets(false);
    node.serve(
        tcp_service("web", net.family)
            .load_balancer(net.vip)
            .endpoint(net.endpoint),
    );
}

/// Opens a masqueraded connection; the client's end as the endpoint has it.
fn opens_elsewhere(node: &Node, net: &Net, number: u32) -> SocketAddr {
    let client = client(net, number);
    let syn = tcp(client, net.vip).syn();
    let outcome = node.comes_in(&syn);
    let port = outcome.ports().0;
    assert!((POOL.0..=POOL.1).contains(&port), "{}", outcome.story());
    let renumbered = SocketAddr::new(client.ip(), port);
    outcome.becomes(&syn.from(renumbered).to(net.endpoint));
    SocketAddr::new(net.node, port)
}

#[test]
fn a_flood_towards_an_endpoint_elsewhere_does_not_use_its_ports_up() {
    in_both_families(|node, net| {
        serve_elsewhere(node, net);
        let ports = u32::from(POOL.1 - POOL.0) + 1;
        // So few that four tries hardly ever hit four of theirs: those nobody takes.
        let talkers = ports / 100;
        for number in 0..talkers {
            let end = opens_elsewhere(node, net, number);
            node.comes_in(&tcp(net.endpoint, end).syn_ack());
            node.comes_in(&tcp(client(net, number), net.vip));
        }
        for number in 0..3 * ports {
            opens_elsewhere(node, net, 1_000_000 + number);
        }
        assert_eq!(states(node)[&ESTABLISHED], talkers as usize);
        assert_eq!(node.count_of(counter::FLOW_TABLE_FULL), 0);
        assert!(node.count_of(counter::FLOW_DISPLACED) > u64::from(ports));
        let flows = node.flows().len();
        assert_eq!(node.halves(), (flows, 2 * flows));
    });
}

#[test]
fn free_ports_are_found_where_most_are_taken_for_good() {
    in_both_families(|node, net| {
        serve_elsewhere(node, net);
        let ports = u32::from(POOL.1 - POOL.0) + 1;
        // In the end eight tries would find none one time in six, all that are made hardly ever.
        for number in 0..ports * 4 / 5 {
            let end = opens_elsewhere(node, net, number);
            node.comes_in(&tcp(net.endpoint, end).syn_ack());
            node.comes_in(&tcp(client(net, number), net.vip));
        }
        assert_eq!(states(node).len(), 1, "all talk");
        assert_eq!(node.count_of(counter::FLOW_TABLE_FULL), 0);
    });
}

#[test]
fn who_takes_a_port_over_leaves_nothing_of_the_flow_that_had_it() {
    in_both_families(|node, net| {
        serve_elsewhere(node, net);
        let half = u32::from(POOL.1 - POOL.0) / 2;
        for round in 0..4 {
            for number in 0..half {
                let number = round * half + number;
                let end = opens_elsewhere(node, net, number);
                node.comes_in(&tcp(net.endpoint, end).syn_ack());
                node.comes_in(&tcp(client(net, number), net.vip).rst());
            }
        }
        assert_eq!(node.count_of(counter::FLOW_TABLE_FULL), 0);
        let flows = node.flows().len();
        assert!(flows < 3 * half as usize, "no port was taken over: {flows}");
        assert_eq!(node.halves(), (flows, 2 * flows));
    });
}
