//! Flows for people: read and ended through the pins, with or without a running agent.

use std::collections::HashMap;
use std::thread;
use std::time::Duration;

use lb_ebpf::abi::family::Family;
use lb_ebpf::abi::flow::{Flow, FlowKey, MASQUERADE, key_check};
use lb_ebpf::abi::{FLOW_SHARDS, Record, table};
use lb_ebpf::flow_keys::{names, write_reply_key, write_returning_key};

use super::Result;
use super::pins::Pins;
use super::shards::SHARD_LIMIT;
use crate::sys::bpf::{Map, Outer, Table};

/// The shards are opened again this often while one changes its map under us.
const RETRIES: u32 = 8;

/// Flows by key.
pub type Entries<F> = Vec<(FlowKey<F>, Flow<F>)>;

/// The flow table of one family, as it was when opened.
#[derive(Debug)]
pub struct Flows<F: Family> {
    flows: Vec<Option<Table<FlowKey<F>, Flow<F>>>>,
    replies: Vec<Option<Table<FlowKey<F>, FlowKey<F>>>>,
    outer: Outer,
}

impl<F: Family> Flows<F>
where
    FlowKey<F>: Record,
    Flow<F>: Record,
{
    /// Opens every shard.
    pub fn open(pins: &Pins) -> Result<Self> {
        let (flows, replies) = if F::VERSION == 4 {
            (table::FLOWS4, table::REPLIES4)
        } else {
            (table::FLOWS6, table::REPLIES6)
        };
        Ok(Self {
            flows: shards(pins, flows)?,
            replies: shards(pins, replies)?,
            outer: outer(pins, flows)?,
        })
    }

    /// Opens every shard and reads every flow, also one that has expired and waits to be swept.
    pub fn read(pins: &Pins) -> Result<(Self, Entries<F>)> {
        let mut read = Self::open(pins)?.with_entries()?;
        for _ in 0..RETRIES {
            if read.0.is_current()? {
                break;
            }
            read = Self::open(pins)?.with_entries()?;
        }
        Ok(read)
    }

    fn with_entries(self) -> Result<(Self, Entries<F>)> {
        let mut entries = HashMap::new();
        for shard in self.flows.chunks(2) {
            // A flow that moves while we read may be met twice: the former map first, or it may be missed.
            for map in shard.iter().rev().flatten() {
                let whole = |(key, flow): &(_, Flow<F>)| flow.check == key_check(key);
                // An element may be reused under a reader, see `Flow::check`.
                entries.extend(map.entries()?.into_iter().filter(whole));
            }
        }
        Ok((self, entries.into_iter().collect()))
    }

    /// Whether no shard has got another map since it was opened, into which flows moved unseen.
    fn is_current(&self) -> Result<bool> {
        for (slot, map) in (0..).zip(&self.flows).step_by(2) {
            let opened = map.as_ref().map(|map| map.map().info().id);
            if self.outer.inner_id(slot)? != opened {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Flows there is room for at present, and at most.
    pub fn room(&self) -> (usize, usize) {
        let current = self.flows.iter().step_by(2).flatten();
        current.fold((0, 0), |(capacity, limit), shard| {
            let size = shard.max_entries();
            (
                capacity + size as usize,
                limit + size.max(SHARD_LIMIT) as usize,
            )
        })
    }

    /// Ends a flow, as the programs do: the record first, so that nobody finds half a flow, then the entries that
    /// lead to it. Whether there was one.
    pub fn end(&self, key: &FlowKey<F>, flow: &Flow<F>) -> Result<bool> {
        let ended = remove(&self.flows, key)?;
        let mut reply = FlowKey::default();
        write_reply_key(&mut reply, flow, key);
        self.release(&reply, key)?;
        if flow.flags & MASQUERADE != 0 {
            write_returning_key(&mut reply, flow, key);
            self.release(&reply, key)?;
        }
        Ok(ended)
    }

    /// Removes a reply entry if it leads to `key`.
    fn release(&self, reply: &FlowKey<F>, key: &FlowKey<F>) -> Result<()> {
        for slot in slots(reply) {
            if let Some(Some(shard)) = self.replies.get(slot)
                && shard.get(reply)?.is_some_and(|entry| names(&entry, key))
            {
                shard.delete(reply)?;
            }
        }
        Ok(())
    }
}

/// Slots of the current and the former map of a key's shard.
fn slots<F: Family>(key: &FlowKey<F>) -> [usize; 2] {
    let slot = 2 * (key_check(key) & (FLOW_SHARDS - 1)) as usize;
    [slot, slot + 1]
}

fn remove<F: Family>(
    shards: &[Option<Table<FlowKey<F>, Flow<F>>>],
    key: &FlowKey<F>,
) -> Result<bool>
where
    FlowKey<F>: Record,
    Flow<F>: Record,
{
    let mut removed = false;
    for slot in slots(key) {
        if let Some(Some(shard)) = shards.get(slot) {
            removed |= shard.delete(key)?;
        }
    }
    Ok(removed)
}

/// The map in each slot.
fn shards<K: Record, V: Record>(pins: &Pins, name: &str) -> Result<Vec<Option<Table<K, V>>>> {
    let outer = outer(pins, name)?;
    let open = |slot| Ok(outer.find_inner(slot)?.map(Table::new).transpose()?);
    // A slot and its pin change one after the other: in between there seems to be none.
    let patiently = |slot| {
        let mut opened = open(slot);
        for _ in 0..RETRIES {
            if opened.is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
            opened = open(slot);
        }
        opened
    };
    (0..outer.slots()).map(patiently).collect()
}

fn outer(pins: &Pins, name: &str) -> Result<Outer> {
    Ok(Outer::new(
        Map::open_read_only(&pins.map(name))?,
        &pins.inner(),
    )?)
}
