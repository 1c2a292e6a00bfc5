//! Flow shards that grow while packets pass.
//!
//! A flow table is a table of tables: slot `2 i` has the current map of shard `i`, slot `2 i + 1` the former one while
//! it is emptied. The programs look in both and enter into the current one alone. So growing is
//!
//! 1. the former slot gets the old map (both slots have it for a moment),
//! 2. the current slot gets a bigger one: what was found before is found now, in the other slot,
//! 3. what no packet has moved by itself is moved here,
//! 4. the former slot is emptied.
//!
//! Each step waits for the programs that still know the state before it, and each state is one that another agent can
//! go on from. A shard never shrinks: its buckets are small, and what filled it once may come again.

use std::sync::{Arc, Mutex, PoisonError};

use lb_ebpf::abi::{FLOW_SHARDS, counter};

use super::Result;
use super::entries::Meter;
use super::newcomers::Newcomers;
use super::object::{Definition, Definitions};
use super::pins::check;
use crate::sys::bpf::{self, Counters, Map, Outer, WriteMode, pin};

/// Entries at which a shard stops growing: 1 Mi flows over all shards, about 130 MiB.
pub const SHARD_LIMIT: u32 = 32_768;

/// Growth by this factor.
const FACTOR: u32 = 4;

/// Slots emptied in one go: the kernel waits about 10 ms for each, and a shard may have to grow meanwhile.
const CLEARED_AT_ONCE: usize = 2;

/// The flow tables of this node.
#[derive(Debug)]
pub struct FlowShards {
    tables: Mutex<Vec<FlowTable>>,
    newcomers: Mutex<Vec<Newcomers>>,
    counters: Counters,
    usage: Mutex<Vec<FlowUsage>>,
}

/// How full a flow table is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowUsage {
    pub table: &'static str,
    pub entries: usize,
    /// What its shards have room for at present.
    pub capacity: usize,
    /// What they may grow to.
    pub limit: usize,
    /// Shards in which entries wait to be moved.
    pub moving: usize,
}

/// What happened to flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Events {
    pub created: u64,
    pub expired: u64,
    /// For want of room.
    pub refused: u64,
    /// By newer ones.
    pub displaced: u64,
}

/// One flow table.
#[derive(Debug)]
pub struct FlowTable {
    name: &'static str,
    outer: Outer,
    definitions: Arc<Definitions>,
    definition: Definition,
    meter: Meter,
    shards: Vec<Shard>,
    limit: u32,
}

#[derive(Debug)]
struct Shard {
    current: Map,
    former: Option<Former>,
    used: usize,
    /// Entries more than at the measurement before.
    more: usize,
}

/// A map that lost its place. Nothing is entered into it, so once it is empty it stays so.
#[derive(Debug)]
struct Former {
    map: Map,
    empty: bool,
}

impl FlowShards {
    pub fn new(
        tables: Vec<FlowTable>,
        newcomers: Vec<Newcomers>,
        counters: Counters,
    ) -> Result<Self> {
        let shards = Self {
            tables: Mutex::new(tables),
            newcomers: Mutex::new(newcomers),
            counters,
            usage: Mutex::default(),
        };
        shards.measure(&mut shards.lock())?;
        Ok(shards)
    }

    /// For tests: stops growing earlier.
    pub fn set_limit(&self, limit: u32) {
        self.lock()
            .iter_mut()
            .for_each(|table| table.limit = limit.min(SHARD_LIMIT));
    }

    /// How full the tables were when last looked at.
    pub fn usage(&self) -> Vec<FlowUsage> {
        self.usage
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Measures the shards, grows those that fill, and moves what is in former maps; whether there is more to do.
    ///
    /// A table that fails does not keep the others waiting; the first failure is told.
    pub fn tend(&self) -> Result<bool> {
        let mut tables = self.lock();
        let mut outcome = self.measure(&mut tables);
        for table in tables.iter_mut() {
            outcome = outcome.and(table.grow());
        }
        if !moving(&tables) {
            return outcome.map(|()| false);
        }
        let mut clear = CLEARED_AT_ONCE;
        for table in tables.iter_mut() {
            outcome = outcome.and(table.settle(&mut clear));
        }
        outcome = outcome.and(self.measure(&mut tables));
        outcome.map(|()| moving(&tables))
    }

    /// Lets more clients be unproven at a time; a flood displaces some.
    pub fn admit_more(&self) -> Result<()> {
        let mut queues = self
            .newcomers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        queues.iter_mut().try_for_each(Newcomers::grow)
    }

    /// What happened since the tables were made.
    pub fn events(&self) -> Result<Events> {
        let counts = self.counters.read()?;
        let count = |number: u32| counts.get(number as usize).copied().unwrap_or(0);
        Ok(Events {
            created: count(counter::FLOW_CREATED),
            expired: count(counter::FLOW_EXPIRED),
            refused: count(counter::FLOW_TABLE_FULL),
            displaced: count(counter::FLOW_DISPLACED),
        })
    }

    /// Whether measuring costs next to nothing, see [`Meter`].
    pub fn is_cheap(&self) -> Result<bool> {
        self.lock()
            .iter_mut()
            .try_fold(true, |cheap, table| Ok(cheap & table.meter.is_cheap()?))
    }

    fn measure(&self, tables: &mut [FlowTable]) -> Result<()> {
        let usage: Result<Vec<FlowUsage>> = tables.iter_mut().map(FlowTable::measure).collect();
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = usage?;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<FlowTable>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FlowTable {
    /// Opens the shards, and gives those without a map their first.
    pub fn open(name: &'static str, outer: Outer, definitions: &Arc<Definitions>) -> Result<Self> {
        let definition = definitions.table(name)?.inner_definition()?.clone();
        let mut missing = Vec::new();
        for slot in (0..FLOW_SHARDS).map(current_slot) {
            if outer.inner_id(slot)?.is_none() {
                missing.push((slot, definitions.create(&definition)?));
            }
        }
        outer.set_many(&missing)?;
        let mut table = Self {
            meter: Meter::new(Arc::clone(definitions), definition.clone()),
            name,
            outer,
            definitions: Arc::clone(definitions),
            definition,
            shards: Vec::new(),
            limit: SHARD_LIMIT,
        };
        table.read_slots()?;
        Ok(table)
    }

    /// Takes the shards as the slots have them.
    fn read_slots(&mut self) -> Result<()> {
        let mut shards = Vec::new();
        for slot in (0..FLOW_SHARDS).map(current_slot) {
            let current = self.open_slot(slot)?.ok_or_else(|| {
                super::Error::Object(format!(
                    "table {} has no map in slot {slot}: run `beeline cleanup`",
                    self.name
                ))
            })?;
            let former = self.open_slot(slot + 1)?;
            if former.is_none() {
                // Whoever emptied the slot may have ended before its pin was gone.
                pin::remove(&self.outer.pin_path(slot + 1))?;
            }
            let same = |map: &Map| map.info().id == current.info().id;
            shards.push(Shard {
                former: former.map(|map| Former {
                    // Published by half: nothing was moved, and nothing has to be.
                    empty: same(&map),
                    map,
                }),
                current,
                used: 0,
                more: 0,
            });
        }
        self.shards = shards;
        Ok(())
    }

    fn open_slot(&self, slot: u32) -> Result<Option<Map>> {
        let map = self.outer.open_inner(slot)?;
        if let Some(map) = &map {
            check(map, &self.definition, &self.outer.pin_path(slot), true)?;
        }
        Ok(map)
    }

    fn measure(&mut self) -> Result<FlowUsage> {
        let mut usage = FlowUsage {
            table: self.name,
            entries: 0,
            capacity: 0,
            limit: 0,
            moving: 0,
        };
        for shard in &mut self.shards {
            let used = self.meter.count(&shard.current)?;
            shard.more = used.saturating_sub(shard.used);
            shard.used = used;
            let capacity = shard.current.info().max_entries;
            usage.entries += used;
            usage.capacity += capacity as usize;
            usage.limit += self.limit.max(capacity) as usize;
            if let Some(former) = shard.former.as_ref().filter(|former| !former.empty) {
                usage.entries += self.meter.count(&former.map)?;
                usage.moving += 1;
            }
        }
        Ok(usage)
    }

    /// Publishes bigger maps for the shards that fill.
    fn grow(&mut self) -> Result<()> {
        let mut bigger = Vec::new();
        for (index, shard) in self.shards.iter().enumerate() {
            let waits = shard.former.as_ref().is_some_and(|former| !former.empty);
            if let (false, Some(size)) = (waits, shard.wanted_size(self.limit)) {
                let map = self.definitions.create_sized(&self.definition, size)?;
                bigger.push((index, map));
            }
        }
        if bigger.is_empty() {
            return Ok(());
        }
        let slot = |index: usize| current_slot(index as u32);
        let formers: Vec<_> = bigger
            .iter()
            .map(|(index, _)| (slot(*index) + 1, &self.shards[*index].current))
            .collect();
        let currents: Vec<_> = bigger
            .iter()
            .map(|(index, map)| (slot(*index), map))
            .collect();
        let published = self
            .outer
            .set_many(&formers)
            .and_then(|()| self.outer.set_many(&currents));
        if let Err(error) = published {
            // Some may have been published: the slots tell which.
            self.read_slots()?;
            return Err(error.into());
        }
        tracing::info!(
            table = self.name,
            shards = bigger.len(),
            to = bigger.iter().map(|(_, map)| map.info().max_entries).max(),
            "flow shards grew"
        );
        for (index, map) in bigger {
            let shard = &mut self.shards[index];
            let former = std::mem::replace(&mut shard.current, map);
            shard.former = Some(Former {
                map: former,
                empty: false,
            });
            (shard.used, shard.more) = (0, 0);
        }
        Ok(())
    }

    /// Moves what is in former maps, and empties at most `clear` slots of those that have nothing left.
    fn settle(&mut self, clear: &mut usize) -> Result<()> {
        for shard in &mut self.shards {
            if let Some(former) = &mut shard.former {
                former.empty = former.empty || move_all(&former.map, &shard.current)?;
            }
        }
        for (index, shard) in self.shards.iter_mut().enumerate() {
            if *clear > 0 && shard.former.as_ref().is_some_and(|former| former.empty) {
                self.outer.clear(current_slot(index as u32) + 1)?;
                shard.former = None;
                *clear -= 1;
            }
        }
        Ok(())
    }
}

impl Shard {
    /// The size it should have, if not its own. What came since the last look may come again until the next.
    fn wanted_size(&self, limit: u32) -> Option<u32> {
        let capacity = self.current.info().max_entries;
        let next = wanted_size(self.used + self.more, capacity, limit);
        (next > capacity).then_some(next)
    }
}

/// Whether a shard has a former map.
fn moving(tables: &[FlowTable]) -> bool {
    let mut shards = tables.iter().flat_map(|table| &table.shards);
    shards.any(|shard| shard.former.is_some())
}

fn wanted_size(wanted: usize, capacity: u32, limit: u32) -> u32 {
    let mut size = capacity;
    while wanted * 10 > size as usize * 7 && size < limit {
        size = size.saturating_mul(FACTOR).min(limit);
    }
    size
}

fn current_slot(shard: u32) -> u32 {
    2 * shard
}

/// Moves every entry; `false` if some stay for want of room.
///
/// Programs move entries too, and remove them. An entry is read right before it is written, and entered only where
/// there is none. That it has gone from `from` afterwards means that a program removed it in between (one that had
/// moved it would have kept us from entering it), so it is taken back.
fn move_all(from: &Map, to: &Map) -> bpf::Result<bool> {
    let mut keys = Vec::new();
    from.for_each(|key, _| keys.extend_from_slice(key))?;
    let mut value = vec![0; from.value_bytes()];
    let mut now = value.clone();
    for key in keys.chunks_exact(from.key_bytes()) {
        if !from.lookup_into(key, &mut value)? {
            continue;
        }
        let entered = match to.update(key, &value, WriteMode::Create) {
            Ok(()) => true,
            Err(error) if error.errno() == libc::EEXIST => false,
            Err(error) if error.is_full() || error.errno() == libc::ENOMEM => return Ok(false),
            Err(error) => return Err(error),
        };
        let removed_meanwhile = !from.delete(key)?;
        if entered && removed_meanwhile && to.lookup_into(key, &mut now)? && now == value {
            to.delete(key)?;
        }
    }
    let mut key = vec![0; from.key_bytes()];
    Ok(!from.next_key(None, &mut key)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_grows_beyond_seven_tenths_and_not_beyond_its_limit() {
        assert_eq!(wanted_size(358, 512, SHARD_LIMIT), 512);
        assert_eq!(wanted_size(359, 512, SHARD_LIMIT), 2048);
        assert_eq!(wanted_size(1434, 512, SHARD_LIMIT), 8192);
        assert_eq!(wanted_size(30_000, 8192, SHARD_LIMIT), 32_768);
        assert_eq!(wanted_size(40_000, 32_768, SHARD_LIMIT), 32_768);
    }
}
