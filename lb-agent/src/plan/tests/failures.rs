//! Services that cannot be written, for as long as that may last.

use lb_ebpf::abi::SEGMENT_RECORDS;

use super::cases::{kinds, web};
use super::*;

/// Carries a plan out up to the first write of `kind`, which fails.
fn fail_at(bench: &mut Bench, plan: Plan, kind: &str) {
    let mut writes = plan.writes;
    let at = kinds(&Plan {
        writes: writes.clone(),
        ..Plan::default()
    })
    .into_iter()
    .position(|other| other == kind)
    .expect("the plan has such a write");
    let unwritten = writes.split_off(at);
    writes.iter().for_each(|write| bench.fake.execute(write));
    bench
        .ledger
        .failed(Some(&object("web")), unwritten, plan.retire);
}

/// Leaves `records` of the table of IPv4 endpoints.
fn fill(bench: &mut Bench, records: u32) -> Vec<Block> {
    let blocks = &mut bench.ledger.blocks4;
    let segments = std::iter::from_fn(|| blocks.allocate(SEGMENT_RECORDS));
    let all: Vec<Block> = segments.collect();
    while blocks.allocate(1).is_some() {}
    if records > 0 {
        let (first, len) = (all[0].first, records);
        blocks.release(Block { first, len });
    }
    all
}

/// Where the frontend of web leads.
fn served(bench: &Bench) -> Vec<String> {
    let resolved = bench.fake.resolve().into_values().next();
    fake::names(&resolved.expect("web has a frontend").cluster)
}

/// Spec J7.
#[test]
fn a_block_that_cannot_be_written_takes_no_room() {
    let mut bench = Bench::default();
    bench.apply("web", web(&["10.0.0.1"]));
    fill(&mut bench, 3);
    for _ in 0..100 {
        let plan = bench
            .ledger
            .apply(&object("web"), web(&["10.0.0.2", "10.0.0.3"]));
        assert_eq!(plan.problems, []);
        fail_at(&mut bench, plan, "block");
        assert_eq!(served(&bench), ["10.0.0.1"]);
    }
    bench.apply("web", web(&["10.0.0.2", "10.0.0.3"]));
    assert_eq!(served(&bench), ["10.0.0.2", "10.0.0.3"]);
}

/// Spec J7.
#[test]
fn a_block_that_was_written_is_not_written_again_for_a_frontend_that_cannot() {
    let mut bench = Bench::default();
    bench.apply("web", web(&["10.0.0.1"]));
    let plan = bench.ledger.apply(&object("web"), web(&["10.0.0.2"]));
    fail_at(&mut bench, plan, "frontend");
    fill(&mut bench, 0);
    for _ in 0..100 {
        let plan = bench.ledger.apply(&object("web"), web(&["10.0.0.2"]));
        assert!(!kinds(&plan).contains(&"block"));
        fail_at(&mut bench, plan, "frontend");
        assert_eq!(served(&bench), ["10.0.0.1"]);
    }
    let plan = bench.apply("web", web(&["10.0.0.2"]));
    assert_eq!(plan.retire.blocks4.len(), 1);
    assert_eq!(served(&bench), ["10.0.0.2"]);
}

/// Spec J7.
#[test]
fn without_room_what_a_failed_plan_left_stays_in_force() {
    let mut bench = Bench::default();
    bench.apply("web", web(&["10.0.0.1"]));
    let plan = bench
        .ledger
        .apply(&object("web"), web(&["10.0.0.1", "10.0.0.2"]));
    fail_at(&mut bench, plan, "block");
    let all = fill(&mut bench, 0);
    for _ in 0..3 {
        let plan = bench.apply("web", web(&["10.0.0.1", "10.0.0.2"]));
        assert!(matches!(
            plan.problems[..],
            [Problem::EndpointTableFull { .. }]
        ));
        assert_eq!((kinds(&plan), plan.retire.is_empty()), (vec![], true));
        let plan = bench.ledger.tick(1);
        bench.run(plan);
        assert_eq!(served(&bench), ["10.0.0.1"]);
    }
    bench.ledger.blocks4.release(all[7]);
    let plan = bench.apply("web", web(&["10.0.0.1", "10.0.0.2"]));
    assert_eq!((plan.problems.len(), plan.retire.blocks4.len()), (0, 1));
    assert_eq!(served(&bench), ["10.0.0.1", "10.0.0.2"]);
}
