//! Random changes: the tables equal what was asked for, at every prefix nothing is mixed.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::expected::check;
use super::scenario::{Random, Wanted, change};
use super::*;

/// How many random histories: `BEELINE_TEST_SEEDS`, or what takes a second or so.
fn seeds(usual: u64) -> u64 {
    std::env::var("BEELINE_TEST_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(usual)
}

/// Executes a plan; after each write every frontend is as before or as after. `visit` sees the tables before
/// the first and after each write.
pub(super) fn execute(fake: &mut Fake, writes: &[Write], mut visit: impl FnMut(&Fake)) {
    if writes.is_empty() {
        return visit(fake);
    }
    let before = fake.resolve();
    let mut last = fake.clone();
    writes.iter().for_each(|write| last.execute(write));
    let after = last.resolve();
    visit(fake);
    for write in writes {
        fake.execute(write);
        for (key, now) in fake.resolve() {
            assert!(
                before.get(&key) == Some(&now) || after.get(&key) == Some(&now),
                "{key:?} is mixed after {write:?}"
            );
        }
        visit(fake);
    }
}

/// Which endpoint each (id, generation) ever named.
#[derive(Default)]
struct Memory(BTreeMap<(u32, u32), (IpAddr, u16)>);

impl Memory {
    fn observe(&mut self, fake: &Fake) {
        for met in fake
            .resolve()
            .values()
            .flat_map(|resolved| resolved.local.union(&resolved.cluster))
        {
            let generation = fake.states[&met.3].generation;
            let first = self.0.entry((met.3, generation)).or_insert((met.0, met.1));
            assert_eq!(
                *first,
                (met.0, met.1),
                "id {} generation {generation} named two endpoints",
                met.3
            );
        }
    }
}

/// Applies everything to adopted tables and checks the outcome; the second adoption must find nothing to do.
pub(super) fn readopt(mut fake: Fake, wanted: &Wanted) -> (Ledger, Fake) {
    let seen: HashSet<_> = wanted.keys().cloned().collect();
    let mut ledger = Ledger::default();
    for round in 0..2 {
        let (adopted, plan) = Ledger::adopt(fake.dump(), Timing::default(), 1);
        ledger = adopted;
        let mut plans = vec![plan];
        let mut writes = 0;
        let mut todo: Vec<_> = wanted.keys().collect();
        loop {
            for plan in plans.drain(..) {
                writes += plan.writes.len();
                execute(&mut fake, &plan.writes, |_| ());
                fake.poison(&plan.retire);
                ledger.release(plan.retire);
            }
            match todo.pop() {
                Some(service) => plans.push(ledger.apply(service, wanted[service].clone())),
                None => break,
            }
        }
        let plan = ledger.finish_adoption(&seen);
        writes += plan.writes.len();
        execute(&mut fake, &plan.writes, |_| ());
        fake.poison(&plan.retire);
        ledger.release(plan.retire);
        check(&fake, wanted);
        if round == 1 {
            assert_eq!(writes, 0, "adoption of settled tables writes");
        }
    }
    (ledger, fake)
}

/// Spec J6.
#[test]
fn tables_equal_what_was_asked_for_and_are_never_mixed() {
    for seed in 0..seeds(8) {
        let mut random = Random(seed);
        let (mut bench, mut wanted, mut memory) =
            (Bench::default(), Wanted::new(), Memory::default());
        let mut retired = Retired::default();
        for _ in 0..60 {
            let service = change(&mut random, &mut wanted);
            let plan = bench
                .ledger
                .apply(&service, wanted.get(&service).cloned().unwrap_or_default());
            execute(&mut bench.fake, &plan.writes, |fake| memory.observe(fake));
            retired.append(plan.retire);
            if random.chance(3) {
                bench.fake.poison(&retired);
                bench.ledger.release(std::mem::take(&mut retired));
            }
            check(&bench.fake, &wanted);
            for (service, ports) in &wanted {
                assert_eq!(bench.ledger.apply(service, ports.clone()), Plan::default());
            }
        }
    }
}

#[test]
fn a_new_agent_converges_from_every_prefix_and_then_writes_nothing() {
    for seed in 1_000..1_000 + seeds(2) {
        let mut random = Random(seed);
        let (mut bench, mut wanted, mut memory) =
            (Bench::default(), Wanted::new(), Memory::default());
        for round in 0..12 {
            let service = change(&mut random, &mut wanted);
            let plan = bench
                .ledger
                .apply(&service, wanted.get(&service).cloned().unwrap_or_default());
            let mut prefixes = Vec::new();
            execute(&mut bench.fake, &plan.writes, |fake| {
                prefixes.push(fake.clone())
            });
            bench.run(plan);
            for prefix in &prefixes {
                let (ledger, fake) = readopt(prefix.clone(), &wanted);
                // Now and then the new agent goes on where the old one died.
                if round % 4 == 3 && random.chance(prefixes.len()) {
                    bench = Bench { ledger, fake };
                    break;
                }
            }
            memory.observe(&bench.fake);
        }
    }
}

/// Spec J7, J4.
#[test]
fn a_failed_plan_is_made_good_by_the_next_one() {
    for seed in 2_000..2_000 + seeds(8) {
        let mut random = Random(seed);
        let (mut bench, mut wanted, mut memory) =
            (Bench::default(), Wanted::new(), Memory::default());
        let mut failed: BTreeSet<ObjectName> = BTreeSet::new();
        for _ in 0..60 {
            let service = change(&mut random, &mut wanted);
            let mut plan = bench
                .ledger
                .apply(&service, wanted.get(&service).cloned().unwrap_or_default());
            failed.remove(&service);
            if random.chance(3) && !plan.writes.is_empty() {
                let unwritten = plan.writes.split_off(random.below(plan.writes.len()));
                execute(&mut bench.fake, &plan.writes, |_| ());
                bench.ledger.failed(Some(&service), unwritten, plan.retire);
                failed.insert(service);
            } else {
                execute(&mut bench.fake, &plan.writes, |_| ());
                bench.fake.poison(&plan.retire);
                bench.ledger.release(plan.retire);
            }
            memory.observe(&bench.fake);
            if random.chance(4) {
                for service in std::mem::take(&mut failed) {
                    let plan = bench
                        .ledger
                        .apply(&service, wanted.get(&service).cloned().unwrap_or_default());
                    bench.run(plan);
                }
                let plan = bench.ledger.tick(1);
                bench.run(plan);
                check(&bench.fake, &wanted);
            }
        }
    }
}
