//! Services for which there is no room in a table: spec J7, and the others need what room there is.

use super::cases::kinds;
use super::*;

/// Service web with these external addresses besides its ClusterIP.
fn web(external: &[&str], endpoints: &[&str]) -> Vec<ServicePort> {
    let endpoints = endpoints.iter().map(|address| endpoint(address)).collect();
    let mut port = port("web", "10.96.0.1", endpoints);
    let external = external.iter();
    port.frontends
        .extend(external.map(|address| frontend(address, 80, FrontendKind::ExternalIp)));
    port.frontends.sort_unstable();
    vec![port]
}

/// Carries a plan out, but for the last of the writes of `kind` and what follows, and takes back what is new; how far it
/// got is known no better than that it came to the first of them.
fn no_room(bench: &mut Bench, plan: Plan, kind: &str) -> Vec<&'static str> {
    let all = kinds(&plan);
    let first = all.iter().position(|other| *other == kind).expect("one");
    let last = all.iter().rposition(|other| *other == kind).expect("one");
    let writes = &plan.writes[first..last];
    writes.iter().for_each(|write| bench.fake.execute(write));
    no_room_from(bench, plan, first)
}

/// Carries a plan out as far as that.
fn no_room_from(bench: &mut Bench, plan: Plan, from: usize) -> Vec<&'static str> {
    let writes = &plan.writes[..from];
    writes.iter().for_each(|write| bench.fake.execute(write));
    let back = bench.ledger.no_room(&object("web"), plan, from);
    let removals = Plan {
        writes: back.writes,
        retire: back.retire,
        ..Plan::default()
    };
    kinds(&bench.run(removals))
}

fn frontends(bench: &Bench) -> Vec<String> {
    let keys = bench.fake.frontends.keys();
    keys.map(|key| key.address.to_string()).collect()
}

#[test]
fn a_new_service_without_room_takes_none_and_comes_when_there_is_some() {
    for kind in ["frontend", "address"] {
        let mut bench = Bench::default();
        let want = || web(&["198.18.0.1", "198.18.0.2"], &["10.0.0.1"]);
        for _ in 0..3 {
            let plan = bench.ledger.apply(&object("web"), want());
            let removed = no_room(&mut bench, plan, kind);
            assert!(removed.contains(&"frontend gone"));
            assert!(bench.fake.frontends.is_empty() && bench.fake.addresses.is_empty());
        }
        bench.apply("web", want());
        assert_eq!(frontends(&bench), ["10.96.0.1", "198.18.0.1", "198.18.0.2"]);
        assert_eq!(bench.fake.addresses.len(), 3);
    }
}

#[test]
fn a_service_that_grows_beyond_the_room_goes_on_as_far_as_it_was() {
    let mut bench = Bench::default();
    bench.apply("web", web(&["198.18.0.1"], &["10.0.0.1"]));
    let want = || web(&["198.18.0.0", "198.18.0.1", "198.18.0.2"], &["10.0.0.2"]);
    for _ in 0..3 {
        let plan = bench.ledger.apply(&object("web"), want());
        assert!(no_room(&mut bench, plan, "frontend").contains(&"frontend gone"));
        assert_eq!(frontends(&bench), ["10.96.0.1", "198.18.0.1"]);
        // Those that are there were written first: a full table takes them.
        for found in bench.fake.resolve().into_values() {
            assert_eq!(fake::names(&found.cluster), ["10.0.0.2"]);
        }
    }
    let plan = bench.apply("web", web(&["198.18.0.1"], &["10.0.0.2"]));
    assert!(!kinds(&plan).contains(&"block"));
    assert_eq!(frontends(&bench), ["10.96.0.1", "198.18.0.1"]);
    assert_eq!(bench.fake.addresses.len(), 2);
}

/// Blocks and ids of endpoints must not run out because a Service that does not fit changes all the time.
#[test]
fn a_service_without_room_that_changes_uses_nothing_up() {
    for existing in [false, true] {
        let mut bench = Bench::default();
        if existing {
            bench.apply("web", web(&["198.18.0.1"], &["10.0.0.1"]));
        }
        let mut used = Vec::new();
        for change in 0..8 {
            let endpoints = [format!("10.0.1.{change}"), format!("10.0.2.{change}")];
            let endpoints = endpoints.each_ref().map(String::as_str);
            let want = web(&["198.18.0.1", "198.18.0.2"], &endpoints);
            let plan = bench.ledger.apply(&object("web"), want);
            let block = plan.writes.iter().find_map(|write| match write {
                Write::Endpoints4 { first, .. } => Some(*first),
                _ => None,
            });
            // The new one is the last, behind those that were there.
            let new = kinds(&plan).iter().rposition(|kind| *kind == "frontend");
            no_room_from(&mut bench, plan, new.expect("one"));
            used.push((block, bench.ledger.endpoint_ids.remaining()));
        }
        // Blocks take turns: the former one is free when the next is written.
        assert_eq!(used[2..5], used[4..7], "existing: {existing}");
    }
}

#[test]
fn an_address_that_another_service_relies_on_stays() {
    let mut bench = Bench::default();
    let plan = bench
        .ledger
        .apply(&object("web"), web(&["198.18.0.1"], &[]));
    let mut shop = port("shop", "10.96.0.2", vec![]);
    let shared = frontend("198.18.0.1", 81, FrontendKind::ExternalIp);
    shop.frontends.push(shared);
    let other = bench.ledger.apply(&object("shop"), vec![shop]);
    let from = plan.writes.len() - 1;
    let writes = plan.writes.iter().chain(&other.writes);
    writes.for_each(|write| bench.fake.execute(write));
    let back = bench.ledger.no_room(&object("web"), plan, from);
    back.writes
        .iter()
        .for_each(|write| bench.fake.execute(write));
    assert_eq!(frontends(&bench), ["10.96.0.2", "198.18.0.1"]);
    let addresses: Vec<_> = bench.fake.addresses.keys().copied().collect();
    assert_eq!(addresses, [ip("10.96.0.2"), ip("198.18.0.1")]);
}

#[test]
fn a_service_without_room_for_its_block_has_nothing_to_take_back() {
    let mut bench = Bench::default();
    let plan = bench.ledger.apply(&object("web"), web(&[], &["10.0.0.1"]));
    assert!(no_room(&mut bench, plan, "block").is_empty());
    bench.apply("web", web(&[], &["10.0.0.1"]));
    assert_eq!(frontends(&bench), ["10.96.0.1"]);
}
