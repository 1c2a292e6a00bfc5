//! One behaviour a test.

use lb_ebpf::abi::SEGMENT_RECORDS;
use lb_ebpf::abi::address::{CLUSTER_IP, EXTERNAL, LINGERING};
use lb_ebpf::abi::endpoint::{HOST, LOCAL};
use lb_ebpf::abi::frontend::{NODE_ALLOWED, SOURCE_RANGES};

use super::fake::{names, wide};
use super::*;
use crate::snapshot::Cidr;

/// The kinds of a plan's writes, in order.
pub(super) fn kinds(plan: &Plan) -> Vec<&'static str> {
    let kind = |write: &Write| match write {
        Write::Endpoints4 { .. } | Write::Endpoints6 { .. } => "block",
        Write::EndpointState { .. } => "state",
        Write::Name { .. } => "name",
        Write::NameGone { .. } => "name gone",
        Write::Frontend4 { .. } | Write::Frontend6 { .. } => "frontend",
        Write::Frontend4Gone { .. } | Write::Frontend6Gone { .. } => "frontend gone",
        Write::Address { .. } => "address",
        Write::SourceRange { allowed: true, .. } => "range",
        Write::SourceRange { allowed: false, .. } => "range gone",
        Write::Tombstone { present: true, .. } => "tombstone",
        Write::Tombstone { present: false, .. } => "tombstone lifted",
    };
    plan.writes.iter().map(kind).collect()
}

pub(super) fn web(endpoints: &[&str]) -> Vec<ServicePort> {
    vec![port(
        "web",
        "10.96.0.1",
        endpoints.iter().map(|a| endpoint(a)).collect(),
    )]
}

/// States written: id, generation, flags.
fn states(plan: &Plan) -> Vec<(u32, u32, u32)> {
    let state = |write: &Write| match write {
        Write::EndpointState { id, state } => Some((*id, state.generation, state.flags)),
        _ => None,
    };
    plan.writes.iter().filter_map(state).collect()
}

fn with_external(service: &str, cluster_ip: &str, external: &str) -> Vec<ServicePort> {
    let mut port = port(service, cluster_ip, vec![]);
    port.frontends
        .push(frontend(external, 80, FrontendKind::ExternalIp));
    port.frontends.sort_unstable();
    vec![port]
}

/// Which service port the frontend `address`:80 leads to.
fn owner(bench: &Bench, address: &str) -> Option<u32> {
    let found = bench
        .fake
        .frontends
        .iter()
        .find(|(key, _)| key.address == ip(address) && key.port == 80);
    found.map(|(_, frontend)| frontend.service)
}

/// Spec J9.
#[test]
fn a_new_service_opens_its_address_last() {
    let plan = Bench::default().apply("web", web(&["10.0.0.1", "10.0.0.2"]));
    assert_eq!(
        kinds(&plan),
        ["name", "state", "state", "block", "frontend", "address"]
    );
}

#[test]
fn an_unchanged_service_writes_nothing() {
    let mut bench = Bench::default();
    bench.apply("web", web(&["10.0.0.1", "10.0.0.2"]));
    assert_eq!(
        bench.apply("web", web(&["10.0.0.1", "10.0.0.2"])),
        Plan::default()
    );
}

#[test]
fn one_more_endpoint_is_three_writes() {
    let mut bench = Bench::default();
    bench.apply("web", web(&["10.0.0.1"]));
    let plan = bench.apply("web", web(&["10.0.0.1", "10.0.0.2"]));
    assert_eq!(kinds(&plan), ["state", "block", "frontend"]);
}

/// Spec J9, J6.
#[test]
fn a_replaced_endpoint_loses_its_state_after_the_frontend() {
    let mut bench = Bench::default();
    bench.apply("web", web(&["10.0.0.1", "10.0.0.2"]));
    let plan = bench.apply("web", web(&["10.0.0.1", "10.0.0.3"]));
    assert_eq!(kinds(&plan), ["state", "block", "frontend", "state"]);
    assert_eq!(states(&plan), [(2, 1, 5), (1, 2, 0)]);
}

#[test]
fn an_endpoint_that_changes_sets_is_in_both_while_frontends_change_over() {
    let within = |in_local_set, cluster| {
        let endpoint = model::Endpoint {
            in_local_set,
            cluster,
            ..endpoint("10.0.0.1")
        };
        vec![port("web", "10.96.0.1", vec![endpoint])]
    };
    let mut bench = Bench::default();
    bench.apply("web", within(true, false));
    let plan = bench.apply("web", within(false, true));
    assert_eq!(kinds(&plan), ["state", "block", "frontend", "state"]);
    assert_eq!(states(&plan), [(0, 1, 7), (0, 1, 5)]);
}

#[test]
fn an_address_waits_for_the_frontends_of_a_failed_plan() {
    let mut bench = Bench::default();
    let service = object("web");
    let plan = bench.ledger.apply(&service, web(&["10.0.0.1"]));
    bench
        .ledger
        .failed(Some(&service), plan.writes, plan.retire);
    bench.apply("other", vec![port("other", "10.96.0.2", vec![])]);
    let plan = bench
        .ledger
        .finish_adoption(&[service, object("other")].into());
    bench.run(plan);
    let plan = bench.ledger.tick(1);
    bench.run(plan);
    assert!(!bench.fake.addresses.contains_key(&ip("10.96.0.1")));
    let plan = bench.apply("web", web(&["10.0.0.1"]));
    assert_eq!(kinds(&plan).last(), Some(&"address"));
}

#[test]
fn affinity_alone_rewrites_the_frontends_alone() {
    let mut bench = Bench::default();
    bench.apply("web", web(&["10.0.0.1"]));
    let mut sticky = web(&["10.0.0.1"]);
    sticky[0].affinity_seconds = 10800;
    assert_eq!(kinds(&bench.apply("web", sticky)), ["frontend"]);
}

#[test]
fn the_last_endpoint_gone_leaves_a_frontend_without_block() {
    let mut bench = Bench::default();
    bench.apply("web", web(&["10.0.0.1"]));
    assert_eq!(kinds(&bench.apply("web", web(&[]))), ["frontend", "state"]);
    let frontend = bench.fake.frontends.values().next().unwrap();
    assert_eq!(
        (frontend.block, frontend.local_count, frontend.cluster_count),
        (NO_BLOCK, 0, 0)
    );
}

#[test]
fn a_block_is_local_only_then_both_then_cluster_only() {
    let set = |address, in_local_set, cluster| model::Endpoint {
        in_local_set,
        cluster,
        ..endpoint(address)
    };
    let endpoints = vec![
        set("10.0.0.1", false, true),
        set("10.0.0.2", true, true),
        set("10.0.0.3", true, false),
        set("10.0.0.4", false, true),
    ];
    let mut bench = Bench::default();
    bench.apply("web", vec![port("web", "10.96.0.1", endpoints)]);
    let frontend = bench.fake.frontends.values().next().unwrap();
    assert_eq!(
        (
            frontend.local_count,
            frontend.cluster_first,
            frontend.cluster_count
        ),
        (2, 1, 3)
    );
    let resolved = bench.fake.resolve().into_values().next().unwrap();
    assert_eq!(names(&resolved.local), ["10.0.0.2", "10.0.0.3"]);
    assert_eq!(
        names(&resolved.cluster),
        ["10.0.0.1", "10.0.0.2", "10.0.0.4"]
    );
}

#[test]
fn an_endpoint_that_only_serves_keeps_its_id_and_generation() {
    let mut bench = Bench::default();
    let start = bench.apply("web", web(&["10.0.0.1", "10.0.0.2"]));
    let both = vec![endpoint("10.0.0.1"), unselected("10.0.0.2")];
    let plan = bench.apply("web", vec![port("web", "10.96.0.1", both)]);
    assert_eq!(states(&plan), [(1, 1, 4)]);
    let back = bench.apply("web", web(&["10.0.0.1", "10.0.0.2"]));
    assert_eq!(states(&back), [states(&start)[1]]);
}

#[test]
fn an_endpoint_that_only_serves_may_become_the_nodes_own_without_a_write() {
    let mut bench = Bench::default();
    let other = |second| vec![port("web", "10.96.0.1", vec![endpoint("10.0.0.1"), second])];
    bench.apply("web", web(&["10.0.0.1", "10.0.0.2"]));
    bench.apply("web", other(unselected("10.0.0.2")));
    let own = model::Endpoint {
        host: true,
        ..unselected("10.0.0.2")
    };
    assert_eq!(bench.apply("web", other(own)), Plan::default());
    let selected = model::Endpoint {
        cluster: true,
        ..own
    };
    bench.apply("web", other(selected));
    let resolved = bench.fake.resolve().into_values().next().unwrap();
    let flags: Vec<_> = resolved.cluster.iter().map(|met| met.2).collect();
    assert_eq!(flags, [0, LOCAL | HOST]);
}

#[test]
fn an_endpoint_that_stopped_serving_comes_back_as_another() {
    let mut bench = Bench::default();
    bench.apply("web", web(&["10.0.0.1"]));
    let stopped = bench.apply(
        "web",
        vec![port("web", "10.96.0.1", vec![failing("10.0.0.1")])],
    );
    assert_eq!(states(&stopped), [(0, 2, 0)]);
    // Raised once more: a program may have read generation 2 together with the old record.
    assert_eq!(states(&bench.apply("web", web(&["10.0.0.1"]))), [(0, 3, 5)]);
}

#[test]
fn a_block_is_not_used_again_before_its_release() {
    let mut bench = Bench::default();
    let first = |plan: &Plan| {
        plan.writes.iter().find_map(|write| match write {
            Write::Endpoints4 { first, .. } => Some(*first),
            _ => None,
        })
    };
    let service = object("web");
    let one = bench.ledger.apply(&service, web(&["10.0.0.1"]));
    let two = bench.ledger.apply(&service, web(&["10.0.0.2"]));
    let three = bench.ledger.apply(&service, web(&["10.0.0.3"]));
    assert_eq!(
        [first(&one), first(&two), first(&three)],
        [Some(0), Some(2), Some(4)]
    );
    bench.ledger.release(two.retire);
    assert_eq!(
        first(&bench.ledger.apply(&service, web(&["10.0.0.4"]))),
        Some(0)
    );
}

#[test]
fn the_address_of_a_removed_service_lingers() {
    let mut bench = Bench::default();
    bench.apply("web", web(&["10.0.0.1"]));
    let plan = bench.apply("web", vec![]);
    assert_eq!(
        kinds(&plan),
        ["frontend gone", "state", "address", "name gone"]
    );
    assert_eq!(bench.fake.addresses[&ip("10.96.0.1")], LINGERING);
    assert!(bench.ledger.tick(Timing::default().linger - 1).is_empty());
    let plan = bench.ledger.tick(Timing::default().linger);
    bench.run(plan);
    assert!(bench.fake.is_idle());
}

#[test]
fn where_many_addresses_linger_the_oldest_make_room() {
    let mut bench = Bench::default();
    for number in 1..=3_u8 {
        let name = format!("web{number}");
        bench.apply(
            &name,
            vec![port(&name, &format!("10.96.0.{number}"), vec![])],
        );
        let plan = bench.ledger.tick(u32::from(number));
        bench.run(plan);
        bench.apply(&name, vec![]);
    }
    bench.ledger.addresses.end_lingering(None, 2);
    let plan = bench.ledger.tick(4);
    bench.run(plan);
    let left: Vec<_> = bench.fake.addresses.keys().copied().collect();
    assert_eq!(left, [ip("10.96.0.2"), ip("10.96.0.3")]);
}

/// Spec J8.
#[test]
fn a_new_service_ends_the_lingering() {
    let mut bench = Bench::default();
    bench.apply("web", web(&[]));
    bench.apply("web", vec![]);
    bench.apply("other", vec![port("other", "10.96.0.1", vec![])]);
    assert_eq!(bench.fake.addresses[&ip("10.96.0.1")], CLUSTER_IP);
}

#[test]
fn d22_the_lower_name_wins_and_the_loser_inherits() {
    let mut bench = Bench::default();
    bench.apply("b", with_external("b", "10.96.0.2", "1.2.3.4"));
    bench.apply("a", with_external("a", "10.96.0.1", "1.2.3.4"));
    let conflict = "service port ns/b:http (Tcp, V4) does not get 1.2.3.4 port 80: ns/a:http (Tcp, V4) has it; \
                    give one of them another address or port";
    assert_eq!(conflicts(&bench), [conflict]);
    assert_eq!(owner(&bench, "1.2.3.4"), owner(&bench, "10.96.0.1"));
    assert_eq!(
        bench.apply("b", with_external("b", "10.96.0.2", "1.2.3.4")),
        Plan::default()
    );
    // As long as it lasts, whatever else changes.
    let mut other = with_external("b", "10.96.0.2", "1.2.3.4");
    other[0].endpoints = vec![endpoint("10.0.0.9")];
    bench.apply("b", other);
    assert_eq!(conflicts(&bench), [conflict]);
    bench.apply("b", with_external("b", "10.96.0.2", "1.2.3.4"));
    let plan = bench.apply("a", vec![]);
    assert_eq!(conflicts(&bench), [""; 0]);
    assert_eq!(
        kinds(&plan),
        ["frontend", "frontend gone", "address", "name gone"]
    );
    assert_eq!(owner(&bench, "1.2.3.4"), owner(&bench, "10.96.0.2"));
}

/// A Service's address goes over to another one in one burst, of which the latter is planned first.
#[test]
fn d22_an_address_that_changed_hands_is_no_conflict() {
    let mut bench = Bench::default();
    bench.apply("a", web_at("a"));
    bench.apply("b", web_at("b"));
    assert_eq!(conflicts(&bench).len(), 1);
    bench.apply("a", vec![]);
    assert_eq!(conflicts(&bench), [""; 0]);
}

fn web_at(name: &str) -> Vec<ServicePort> {
    vec![port(name, "10.96.0.1", vec![])]
}

fn conflicts(bench: &Bench) -> Vec<String> {
    bench
        .ledger
        .conflicts()
        .map(|found| found.to_string())
        .collect()
}

#[test]
fn d22_a_cluster_ip_beats_an_external_address() {
    for order in [["a", "z"], ["z", "a"]] {
        let mut bench = Bench::default();
        let service = |name: &str| match name {
            "a" => with_external("a", "10.96.0.1", "10.96.0.26"),
            _ => vec![port("z", "10.96.0.26", vec![])],
        };
        for name in order {
            bench.apply(name, service(name));
        }
        let losers: Vec<_> = bench.ledger.conflicts().map(|found| found.loser).collect();
        assert_eq!(losers.len(), 1);
        assert_eq!(&*losers[0].service.name, "a");
        assert_eq!(
            bench.fake.names[&owner(&bench, "10.96.0.26").unwrap()].name[0],
            b'z'
        );
        assert_eq!(
            bench.fake.addresses[&ip("10.96.0.26")],
            CLUSTER_IP | EXTERNAL
        );
    }
}

/// Spec §6.1: Services of more than 5,000 endpoints are met.
#[test]
fn a_service_of_more_endpoints_than_a_segment_holds_is_served_and_adopted() {
    let web = |from: u32| {
        let address = |n: u32| std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string();
        let endpoints = (from..from + SEGMENT_RECORDS + 1_000).map(|n| endpoint(&address(n)));
        vec![port("web", "10.96.0.1", endpoints.collect())]
    };
    let served = |fake: &Fake| fake.resolve().into_values().next().unwrap().cluster.len();
    let mut bench = Bench::default();
    for from in [0, 1, 7_000] {
        let plan = bench.apply("web", web(from));
        assert_eq!(plan.problems, []);
        assert_eq!(served(&bench.fake), SEGMENT_RECORDS as usize + 1_000);
    }
    let (mut ledger, plan) = Ledger::adopt(bench.fake.dump(), Timing::default(), 1);
    assert!(plan.is_empty());
    assert_eq!(ledger.apply(&object("web"), web(7_000)), Plan::default());
}

#[test]
fn ranges_come_before_the_frontend_that_asks_for_them_and_go_after() {
    let mut bench = Bench::default();
    let mut filtered = with_external("web", "10.96.0.1", "1.2.3.4");
    for vip in filtered[0]
        .frontends
        .iter_mut()
        .filter(|f| f.kind == FrontendKind::ExternalIp)
    {
        (vip.kind, vip.source_ranges) = (FrontendKind::LoadBalancer, true);
    }
    filtered[0].source_ranges = vec![Cidr {
        address: ip("192.168.0.0"),
        length: 24,
    }];
    filtered[0].ranges_admit_node = true;
    let plan = bench.apply("web", filtered.clone());
    assert_eq!(
        kinds(&plan),
        [
            "name", "range", "range", "frontend", "frontend", "address", "address"
        ]
    );
    let ranges: Vec<_> = bench.fake.ranges.iter().copied().collect();
    assert_eq!(
        ranges,
        [
            (0, wide(ip("1.2.3.4")), 128),
            (0, wide(ip("192.168.0.0")), 120)
        ]
    );
    let vip = bench
        .fake
        .frontends
        .iter()
        .find(|(key, _)| key.address == ip("1.2.3.4"))
        .unwrap()
        .1;
    assert_eq!(
        vip.flags & (SOURCE_RANGES | NODE_ALLOWED),
        SOURCE_RANGES | NODE_ALLOWED
    );

    filtered[0]
        .frontends
        .iter_mut()
        .for_each(|frontend| frontend.source_ranges = false);
    (filtered[0].source_ranges, filtered[0].ranges_admit_node) = (vec![], false);
    assert_eq!(
        kinds(&bench.apply("web", filtered)),
        ["frontend", "range gone", "range gone"]
    );
}
