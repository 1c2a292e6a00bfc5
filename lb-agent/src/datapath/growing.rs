//! Hash tables that start small and are replaced by bigger copies while programs read them.
//!
//! The table is slot 0 of a table of tables. The agent is its only writer, so a copy that is complete when the
//! slot changes has lost nothing: a program meets the old table or the new one, with the same contents.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use lb_ebpf::abi::Record;

use super::Result;
use super::object::{Definition, Definitions};
use super::pins::check;
use crate::sys::bpf::{Map, Outer, Table, WriteError, WriteMode};

/// Growth by this factor: a copy costs its entries once, so few steps are better than small ones.
const FACTOR: u32 = 4;

/// Entries at which a table stops growing. Its buckets then take 16 MiB.
pub const LIMIT: u32 = 1 << 20;

/// A growing hash table.
#[derive(Debug)]
pub struct Growing<K, V> {
    outer: Outer,
    current: Table<K, V>,
    definitions: Arc<Definitions>,
    definition: Definition,
    fill: Fill,
    limit: u32,
}

impl<K: Record, V: Record> Growing<K, V> {
    /// Opens the table, or gives `outer` its first one.
    pub fn open(outer: Outer, definitions: Arc<Definitions>) -> Result<Self> {
        let definition = definitions
            .table(outer.map().name())?
            .inner_definition()?
            .clone();
        let map = match outer.open_inner(0)? {
            Some(map) => {
                check(&map, &definition, &outer.pin_path(0), true)?;
                map
            }
            None => {
                let map = definitions.create(&definition)?;
                outer.set(0, map.as_fd())?;
                map
            }
        };
        let current = Table::new(map)?;
        let fill = Fill::of(current.count()?, current.max_entries());
        Ok(Self {
            outer,
            current,
            definitions,
            definition,
            fill,
            limit: LIMIT,
        })
    }

    /// For tests: stops growing earlier.
    pub fn with_limit(mut self, limit: u32) -> Self {
        self.limit = limit;
        self
    }

    /// The table of this moment.
    pub fn table(&self) -> &Table<K, V> {
        &self.current
    }

    /// The table of tables it is in.
    pub fn outer(&self) -> &Outer {
        &self.outer
    }

    /// Entries used, and how many there may ever be.
    pub fn usage(&self) -> Result<(usize, u32)> {
        Ok((self.current.count()?, self.limit))
    }

    /// Writes one entry, by one system call unless the table must grow.
    pub fn put(&mut self, key: &K, value: &V) -> crate::sys::bpf::Result<()> {
        self.make_room(1)?;
        self.current.put(key, value, WriteMode::Any)?;
        self.fill.wrote(1);
        Ok(())
    }

    /// Writes entries, overwriting.
    pub fn put_many(&mut self, keys: &[K], values: &[V]) -> std::result::Result<(), WriteError> {
        self.make_room(keys.len())
            .map_err(|error| WriteError { done: 0, error })?;
        let answer = self.current.put_many(keys, values);
        self.fill.wrote(
            answer
                .as_ref()
                .err()
                .map_or(keys.len(), |stopped| stopped.done),
        );
        answer
    }

    /// Removes one entry; whether there was one.
    pub fn delete(&mut self, key: &K) -> Result<bool> {
        Ok(self.current.delete(key)?)
    }

    /// Removes entries; absent ones are fine.
    pub fn delete_many(&mut self, keys: &[K]) -> std::result::Result<(), WriteError> {
        self.current.delete_many(keys)
    }

    /// Grows the table if `more` writes might fill it. At the limit it does nothing: the kernel then refuses the
    /// entry that does not fit, and only that one.
    fn make_room(&mut self, more: usize) -> crate::sys::bpf::Result<()> {
        let capacity = self.current.max_entries();
        if !self.fill.needs_count(more) || capacity >= self.limit {
            return Ok(());
        }
        self.fill = Fill::of(self.current.count()?, capacity);
        let wanted = self.fill.used + more;
        if !over_threshold(wanted, capacity) {
            return Ok(());
        }
        let mut next = capacity;
        while over_threshold(wanted, next) && next < self.limit {
            next = next.saturating_mul(FACTOR).min(self.limit);
        }
        let moved = self
            .definitions
            .create_sized(&self.definition, next)
            .and_then(|map| self.move_to(map));
        if let Err(error) = &moved {
            // Told here: callers go on with single writes, for which there is room yet.
            tracing::warn!(table = self.outer.map().name(), to = next, %error, "could not grow a table");
        }
        moved
    }

    fn move_to(&mut self, map: Map) -> crate::sys::bpf::Result<()> {
        let bigger = Table::new(map)?;
        let (keys, values): (Vec<K>, Vec<V>) = self.current.entries()?.into_iter().unzip();
        bigger
            .put_many(&keys, &values)
            .map_err(|stopped| stopped.error)?;
        self.publish(&bigger)?;
        tracing::info!(
            table = self.outer.map().name(),
            entries = keys.len(),
            from = self.current.max_entries(),
            to = bigger.max_entries(),
            "table grew"
        );
        self.fill = Fill::of(keys.len(), bigger.max_entries());
        self.current = bigger;
        Ok(())
    }

    /// Makes the programs use `bigger`. Where its pin fails after that it is theirs all the same, and to go on writing
    /// to the former one would be to write where nobody looks.
    fn publish(&self, bigger: &Table<K, V>) -> crate::sys::bpf::Result<()> {
        let Err(error) = self.outer.set(0, bigger.as_fd()) else {
            return Ok(());
        };
        if self.outer.inner_id(0)? != Some(bigger.map().info().id) {
            return Err(error);
        }
        tracing::warn!(table = self.outer.map().name(), %error, "table grew, but its pin is not as it should be");
        Ok(())
    }
}

/// More than 70 % full: a hash with one bucket per entry is still fast there, and there is time to grow.
fn over_threshold(used: usize, capacity: u32) -> bool {
    used * 10 > capacity as usize * 7
}

/// How full a table may be, without a mirror of its keys: a write may overwrite, so writes since the last count
/// give an upper bound. Only when that passes a mark are the entries counted again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Fill {
    used: usize,
    written: usize,
    mark: usize,
}

impl Fill {
    fn of(used: usize, capacity: u32) -> Self {
        let capacity = capacity as usize;
        // An eighth of the table is written between two counts even when it is nearly full, so that counting
        // costs a few entries per write.
        let mark = (capacity * 7 / 10).max(used + capacity / 8);
        Self {
            used,
            written: 0,
            mark,
        }
    }

    fn wrote(&mut self, entries: usize) {
        self.written += entries;
    }

    fn needs_count(&self, more: usize) -> bool {
        self.used + self.written + more > self.mark
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_is_counted_when_seven_tenths_were_written() {
        let mut fill = Fill::of(0, 1000);
        fill.wrote(699);
        assert!(!fill.needs_count(1));
        assert!(fill.needs_count(2));
    }

    #[test]
    fn a_table_near_its_mark_is_not_counted_at_every_overwrite() {
        let fill = Fill::of(690, 1000);
        assert!(!fill.needs_count(125));
        assert!(fill.needs_count(126));
    }

    #[test]
    fn the_threshold_is_seventy_percent() {
        assert!(!over_threshold(700, 1000));
        assert!(over_threshold(701, 1000));
    }
}
