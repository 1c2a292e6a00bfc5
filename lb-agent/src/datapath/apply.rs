//! Carries out plans.
//!
//! A plan orders the writes of one Service; between Services no order is needed. So the writes of many plans go
//! out in common phases, each table's writes of a phase in batches: what nobody reaches yet, frontends, addresses,
//! frontends that go, the rest. Two plans that write the same frontend, address or tombstone are carried out one after
//! the other.
//!
//! What cannot be written fails alone: its plan is named, none of that plan's later phases happen (its frontends
//! never lead to a block that is not there), and all others go on.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;

use lb_ebpf::abi::Record;
use lb_ebpf::abi::address::AddressUse;
use lb_ebpf::abi::endpoint::EndpointState;
use lb_ebpf::abi::family::Family;
use lb_ebpf::abi::table;

use super::addresses::Addresses;
use super::growing::Growing;
use super::node_ports::udp_node_port;
use super::stage::{Changes, Progress, Staged, steps};
use super::tables::Tables;
use crate::plan::Write;
use crate::sys::bpf::{Error as KernelError, Table, WriteError, WriteMode};

/// A plan whose writes did not all happen.
#[derive(Debug)]
pub struct Failure {
    /// Index of the plan among those applied.
    pub plan: usize,
    /// Its writes before this one happened. From there on some may have, which does no harm: writes are absolute.
    pub from: usize,
    /// The table that refused.
    pub table: &'static str,
    /// Entries the table holds, and may hold at most.
    pub usage: Option<(usize, u32)>,
    pub error: KernelError,
}

impl Failure {
    /// The plan's own: there was no room for it, or it waits for another one. Whatever else fails a write would fail
    /// anybody's.
    pub fn is_its_own(&self) -> bool {
        self.lacked_room() || self.error.errno() == 0
    }

    /// There was no room for what it wanted.
    pub fn lacked_room(&self) -> bool {
        self.error.is_full()
    }

    /// The plan would lead clients to what another, failed plan did not write.
    fn of_another(plan: usize) -> Self {
        let why = "the Service that follows at one of its addresses could not be written";
        Self {
            plan,
            from: 0,
            table: table::FRONTENDS4,
            usage: None,
            error: KernelError::refused("write its plan", why),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.error.is_full(), self.usage) {
            (true, Some((used, capacity))) => write!(
                f,
                "table {} is full: {used} of {capacity} entries",
                self.table
            ),
            (true, None) => write!(f, "table {} is full", self.table),
            (false, _) => write!(f, "table {}: {}", self.table, self.error),
        }
    }
}

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Applied {
    /// Entries written or removed.
    pub entries: usize,
    /// Plans that failed, each once, in the order of failing.
    pub failures: Vec<Failure>,
}

impl Tables {
    /// Carries out plans, each for another Service (or none).
    pub fn apply(&mut self, plans: &[&[Write]]) -> Applied {
        let mut applied = Applied::default();
        let mut progress = Progress::default();
        for step in steps(plans) {
            let (mut staged, mut first) = (Staged::default(), HashMap::new());
            let known = applied.failures.len();
            for placed in step.writes() {
                if progress.is_failed(placed.plan) {
                    continue;
                }
                first.entry(placed.plan).or_insert(placed.at);
                if progress.forbids(placed.write) {
                    progress.fail(placed.plan, plans[placed.plan]);
                    applied.failures.push(Failure::of_another(placed.plan));
                } else {
                    staged.add(placed);
                }
            }
            self.write(staged, &mut applied);
            for failure in &mut applied.failures[known..] {
                failure.from = first.get(&failure.plan).copied().unwrap_or(0);
                progress.fail(failure.plan, plans[failure.plan]);
            }
        }
        applied
    }

    fn write(&mut self, staged: Staged<'_>, applied: &mut Applied) {
        let Staged {
            endpoints4,
            endpoints6,
            states,
            names,
            frontends4,
            frontends6,
            addresses4,
            addresses6,
            source_ranges,
            tombstones,
        } = staged;
        let prepared = [
            self.endpoints4.prepare(
                endpoints4
                    .iter()
                    .flat_map(|(_, first, block)| ends(*first, block)),
            ),
            self.endpoints6.prepare(
                endpoints6
                    .iter()
                    .flat_map(|(_, first, block)| ends(*first, block)),
            ),
            self.endpoint_state.prepare(states.keys().copied()),
        ];
        for error in prepared.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "could not create segments together; trying one by one");
        }
        let mut run = Run {
            applied,
            failed: HashSet::new(),
        };
        run.changes(table::NAMES, &mut self.names, names);
        for (batch, first, records) in endpoints4 {
            let answer = self.endpoints4.write(first, records);
            run.records(
                table::ENDPOINTS4,
                &[batch],
                records.len(),
                answer,
                self.endpoints4.usage(),
            );
        }
        for (batch, first, records) in endpoints6 {
            let answer = self.endpoints6.write(first, records);
            run.records(
                table::ENDPOINTS6,
                &[batch],
                records.len(),
                answer,
                self.endpoints6.usage(),
            );
        }
        let owners: Vec<usize> = states.values().map(|(batch, _)| *batch).collect();
        let states: Vec<(u32, EndpointState)> = states
            .into_iter()
            .map(|(id, (_, state))| (id, state))
            .collect();
        let count = states.len();
        let answer = self.endpoint_state.write_scattered(states);
        run.records(
            table::ENDPOINT_STATE,
            &owners,
            count,
            answer,
            self.endpoint_state.usage(),
        );
        run.changes(table::TOMBSTONES, &mut self.tombstones, tombstones);
        run.changes(table::SOURCE_RANGES, &mut self.source_ranges, source_ranges);
        let ports4 = frontends4.keys().filter_map(udp_node_port);
        let ports6 = frontends6.keys().filter_map(udp_node_port);
        // An array takes what it is given; without the bit, answers to this node's own questions may be taken for clients'.
        if let Err(error) = self.node_ports.announce(ports4.chain(ports6)) {
            tracing::warn!(%error, "could not note which ports are UDP NodePorts");
        }
        run.changes(table::FRONTENDS4, &mut self.frontends4, frontends4);
        run.changes(table::FRONTENDS6, &mut self.frontends6, frontends6);
        run.changes(table::ADDRESSES4, &mut self.addresses4, addresses4);
        run.changes(table::ADDRESSES6, &mut self.addresses6, addresses6);
    }
}

/// First and last record of a block. Segments between those of the longest ones are made by the write.
fn ends<T>(first: u32, block: &[T]) -> [u32; 2] {
    [
        first,
        first.saturating_add(block.len().saturating_sub(1) as u32),
    ]
}

/// A table that takes puts and deletes in bulk.
trait Bulk<K, V> {
    fn put_one(&mut self, key: &K, value: &V) -> Result<(), KernelError>;
    fn put_all(&mut self, keys: &[K], values: &[V]) -> Result<(), WriteError>;
    fn delete_all(&mut self, keys: &[K]) -> Result<(), WriteError>;
    fn used(&self) -> Option<(usize, u32)>;
}

impl<K: Record, V: Record> Bulk<K, V> for Growing<K, V> {
    fn put_one(&mut self, key: &K, value: &V) -> Result<(), KernelError> {
        self.put(key, value)
    }
    fn put_all(&mut self, keys: &[K], values: &[V]) -> Result<(), WriteError> {
        self.put_many(keys, values)
    }
    fn delete_all(&mut self, keys: &[K]) -> Result<(), WriteError> {
        self.delete_many(keys)
    }
    fn used(&self) -> Option<(usize, u32)> {
        self.usage().ok()
    }
}

impl<K: Record, V: Record> Bulk<K, V> for Table<K, V> {
    fn put_one(&mut self, key: &K, value: &V) -> Result<(), KernelError> {
        self.put(key, value, WriteMode::Any)
    }
    fn put_all(&mut self, keys: &[K], values: &[V]) -> Result<(), WriteError> {
        self.put_many(keys, values)
    }
    fn delete_all(&mut self, keys: &[K]) -> Result<(), WriteError> {
        self.delete_many(keys)
    }
    fn used(&self) -> Option<(usize, u32)> {
        Some((self.count().ok()?, self.max_entries()))
    }
}

impl<F: Family> Bulk<F::Addr, AddressUse> for Addresses<F>
where
    F::Addr: Record,
{
    fn put_one(&mut self, address: &F::Addr, uses: &AddressUse) -> Result<(), KernelError> {
        self.put(address, uses)
    }
    fn put_all(&mut self, addresses: &[F::Addr], uses: &[AddressUse]) -> Result<(), WriteError> {
        self.put_many(addresses, uses)
    }
    fn delete_all(&mut self, addresses: &[F::Addr]) -> Result<(), WriteError> {
        self.delete_many(addresses)
    }
    fn used(&self) -> Option<(usize, u32)> {
        self.usage().ok()
    }
}

struct Run<'a> {
    applied: &'a mut Applied,
    /// Plans that failed in this step. Those of earlier ones write nothing.
    failed: HashSet<usize>,
}

impl Run<'_> {
    /// Removals first: they make room.
    fn changes<K: Record + Eq + Hash, V: Record>(
        &mut self,
        name: &'static str,
        table: &mut impl Bulk<K, V>,
        changes: Changes<K, V>,
    ) {
        let (mut coming, mut leaving, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for (key, (from, value)) in changes {
            match value {
                Some(value) => coming.push((from, key, value)),
                None => {
                    leaving.push(from.0);
                    gone.push(key);
                }
            }
        }
        let mut usage = None;
        let mut done = 0;
        while done < gone.len() {
            match table.delete_all(&gone[done..]) {
                Ok(()) => {
                    self.applied.entries += gone.len() - done;
                    break;
                }
                Err(stopped) => {
                    self.applied.entries += stopped.done;
                    done += stopped.done;
                    let usage = *usage.get_or_insert_with(|| table.used());
                    let plan = leaving[done.min(leaving.len() - 1)];
                    self.fail(plan, name, stopped.error, usage);
                    done += 1;
                }
            }
        }
        // Plan by plan: where the room ends, as few of them as can be are left without.
        coming.sort_unstable_by_key(|(from, ..)| *from);
        let mut owners = Vec::with_capacity(coming.len());
        let (keys, values): (Vec<K>, Vec<V>) = coming
            .into_iter()
            .map(|((plan, _), key, value)| {
                owners.push(plan);
                (key, value)
            })
            .unzip();
        self.puts(name, table, &owners, (&keys, &values));
    }

    /// The keys of a plan lie together, in its order.
    fn puts<K: Record, V: Record>(
        &mut self,
        name: &'static str,
        table: &mut impl Bulk<K, V>,
        owners: &[usize],
        (keys, values): (&[K], &[V]),
    ) {
        let mut rest = 0;
        if keys.len() > 1 {
            match table.put_all(keys, values) {
                Ok(()) => {
                    self.applied.entries += keys.len();
                    return;
                }
                Err(stopped) => {
                    self.applied.entries += stopped.done;
                    rest = stopped.done;
                }
            }
        }
        // A full table still takes new values for keys it has, and a plan names those first: ask for each until one
        // does not fit. To count a large table takes long, and one count tells it all.
        let (mut full, mut usage) = (None, None);
        for at in rest..keys.len() {
            if full == Some(owners[at]) {
                continue;
            }
            match table.put_one(&keys[at], &values[at]) {
                Ok(()) => self.applied.entries += 1,
                Err(error) => {
                    full = error.is_full().then_some(owners[at]);
                    let usage = *usage.get_or_insert_with(|| table.used());
                    self.fail(owners[at], name, error, usage);
                }
            }
        }
    }

    fn records(
        &mut self,
        name: &'static str,
        owners: &[usize],
        count: usize,
        answer: Result<(), KernelError>,
        usage: (usize, u32),
    ) {
        match answer {
            Ok(()) => self.applied.entries += count,
            Err(error) => {
                let text = error.to_string();
                let errno = error.errno();
                for &owner in owners {
                    self.fail(
                        owner,
                        name,
                        KernelError::from_errno(text.clone(), errno),
                        Some(usage),
                    );
                }
            }
        }
    }

    fn fail(
        &mut self,
        plan: usize,
        table: &'static str,
        error: KernelError,
        usage: Option<(usize, u32)>,
    ) {
        if self.failed.insert(plan) {
            self.applied.failures.push(Failure {
                plan,
                from: 0,
                table,
                usage,
                error,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table that counts what it is asked.
    #[derive(Default)]
    struct Small {
        entries: HashMap<u32, u32>,
        room: usize,
        counts: std::cell::Cell<usize>,
        puts: usize,
    }

    impl Bulk<u32, u32> for Small {
        fn put_one(&mut self, key: &u32, value: &u32) -> Result<(), KernelError> {
            self.puts += 1;
            if self.entries.len() == self.room && !self.entries.contains_key(key) {
                return Err(KernelError::from_errno("update map", libc::E2BIG));
            }
            self.entries.insert(*key, *value);
            Ok(())
        }

        fn put_all(&mut self, keys: &[u32], values: &[u32]) -> Result<(), WriteError> {
            for (done, (key, value)) in keys.iter().zip(values).enumerate() {
                self.put_one(key, value)
                    .map_err(|error| WriteError { done, error })?;
            }
            Ok(())
        }

        fn delete_all(&mut self, keys: &[u32]) -> Result<(), WriteError> {
            self.entries.retain(|key, _| !keys.contains(key));
            Ok(())
        }

        fn used(&self) -> Option<(usize, u32)> {
            self.counts.set(self.counts.get() + 1);
            Some((self.entries.len(), self.room as u32))
        }
    }

    /// Plan by plan, the keys each puts.
    fn put(table: &mut Small, plans: &[std::ops::Range<u32>]) -> Applied {
        let mut applied = Applied::default();
        let mut run = Run {
            applied: &mut applied,
            failed: HashSet::new(),
        };
        let keys = (0..).zip(plans).flat_map(|(plan, keys)| {
            let keys = (0..).zip(keys.clone());
            keys.map(move |(at, key)| (key, ((plan, at), Some(key))))
        });
        run.changes(table::FRONTENDS4, table, keys.collect());
        applied
    }

    #[test]
    fn a_full_table_is_counted_once_and_each_plan_tried_until_it_does_not_fit() {
        let mut table = Small {
            room: 110,
            ..Small::default()
        };
        put(&mut table, &[0..10, 0..0]);
        table.puts = 0;
        let applied = put(
            &mut table,
            &[100..150, 200..100_000, 100_000..200_000, 0..5],
        );
        let failed: Vec<_> = applied
            .failures
            .iter()
            .map(|failure| failure.plan)
            .collect();
        assert_eq!(failed, [1, 2]);
        assert_eq!(applied.failures[0].usage, Some((110, 110)));
        assert_eq!(table.counts.get(), 1);
        // What fits, the key at which the batch stopped, that key again, one of the next plan, and keys that are there.
        assert_eq!(table.puts, 50 + 50 + 1 + 1 + 1 + 5);
        assert_eq!(applied.entries, 50 + 50 + 5);
    }
}
