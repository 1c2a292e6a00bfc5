//! What a new agent finds, and what it makes of tables that no agent of ours can have left.

use std::collections::HashSet;

use lb_ebpf::abi::endpoint::EndpointState;

use super::scenario::Random;
use super::*;

fn adopt(fake: &Fake) -> (Ledger, Plan) {
    Ledger::adopt(fake.dump(), Timing::default(), 1)
}

#[test]
fn ids_and_generations_go_on() {
    let mut bench = Bench::default();
    let pair = |second| vec![port("web", "10.96.0.1", vec![endpoint("10.0.0.1"), second])];
    bench.apply("web", pair(endpoint("10.0.0.2")));
    bench.apply("web", pair(unselected("10.0.0.2")));
    let (ledger, plan) = adopt(&bench.fake);
    assert!(plan.is_empty());
    bench.ledger = ledger;
    // The serving endpoint without a set is known, though no frontend reaches it.
    assert!(bench.apply("web", pair(unselected("10.0.0.2"))).is_empty());
    bench.apply("web", pair(endpoint("10.0.0.2")));
    assert_eq!(
        bench.fake.states[&1],
        EndpointState {
            generation: 1,
            flags: 5
        }
    );
}

#[test]
fn a_service_the_cluster_no_longer_has_goes() {
    let mut bench = Bench::default();
    bench.apply(
        "web",
        vec![port("web", "10.96.0.1", vec![endpoint("10.0.0.1")])],
    );
    bench.apply(
        "old",
        vec![port("old", "10.96.0.2", vec![endpoint("10.0.0.1")])],
    );
    bench.ledger = adopt(&bench.fake).0;
    bench.apply(
        "web",
        vec![port("web", "10.96.0.1", vec![endpoint("10.0.0.1")])],
    );
    let plan = bench
        .ledger
        .finish_adoption(&HashSet::from([object("web")]));
    bench.run(plan);
    assert_eq!(bench.fake.names.len(), 1);
    assert_eq!(bench.fake.frontends.len(), 1);
}

#[test]
fn an_endpoint_that_vanished_meanwhile_gets_its_tombstone() {
    let mut bench = Bench::default();
    bench.apply(
        "dns",
        vec![udp(port("dns", "10.96.0.1", vec![endpoint("10.0.0.1")]))],
    );
    bench.ledger = adopt(&bench.fake).0;
    bench.apply("dns", vec![udp(port("dns", "10.96.0.1", vec![]))]);
    assert_eq!(bench.fake.tombstones.len(), 1);
}

#[test]
fn damaged_tables_never_panic_and_are_put_right() {
    let wanted = || {
        let many = (1..9).map(|n| endpoint(&format!("10.0.0.{n}"))).collect();
        let few = vec![endpoint("fd00::1"), unselected("fd00::2")];
        vec![
            ("web", vec![port("web", "10.96.0.1", many)]),
            ("dns", vec![udp(port("dns", "fd96::1", few))]),
        ]
    };
    for seed in 0..400 {
        let mut random = Random(seed);
        let mut bench = Bench::default();
        wanted()
            .into_iter()
            .for_each(|(name, ports)| drop(bench.apply(name, ports)));
        let mut state = bench.fake.dump();
        for _ in 0..1 + random.below(4) {
            damage(&mut state, &mut random);
        }
        bench.fake = Fake::of(&state);
        let (ledger, plan) = Ledger::adopt(state, Timing::default(), 1);
        bench.ledger = ledger;
        bench.run(plan);
        wanted()
            .into_iter()
            .for_each(|(name, ports)| drop(bench.apply(name, ports)));
        let plan = bench
            .ledger
            .finish_adoption(&wanted().iter().map(|(name, _)| object(name)).collect());
        bench.run(plan);
        let wanted = wanted()
            .into_iter()
            .map(|(name, ports)| (object(name), ports))
            .collect();
        super::expected::check(&bench.fake, &wanted);
    }
}

/// Spoils one number somewhere.
fn damage(state: &mut KernelState, random: &mut Random) {
    let wild = [0, 1, 2, 3, 4095, 4096, u32::MAX - 1, u32::MAX][random.below(8)];
    match random.below(9) {
        0 => state
            .frontends4
            .iter_mut()
            .for_each(|(_, frontend)| frontend.block = wild),
        1 => state
            .frontends4
            .iter_mut()
            .for_each(|(_, frontend)| frontend.cluster_count = wild),
        2 => state
            .frontends6
            .iter_mut()
            .for_each(|(_, frontend)| frontend.service = wild),
        3 => state
            .frontends6
            .iter_mut()
            .for_each(|(_, frontend)| frontend.flags = wild),
        4 => state
            .frontends4
            .iter_mut()
            .for_each(|(_, frontend)| frontend.local_count = wild),
        5 => {
            let index = random.below(state.endpoints4[0].len());
            state.endpoints4[0][index].id = wild;
        }
        6 => {
            let index = random.below(state.endpoints6[0].len());
            state.endpoints6[0][index].service = wild;
        }
        7 => {
            let index = random.below(state.states.len());
            state.states[index] = EndpointState {
                generation: wild,
                flags: wild,
            };
        }
        _ => {
            let index = random.below(state.names.len());
            state.names[index].0 = wild;
        }
    }
}
