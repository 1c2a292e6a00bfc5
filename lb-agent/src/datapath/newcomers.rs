//! Queues of the flows opened last, one a shard: how many clients that may be made up a shard holds at a time.
//!
//! The programs end the oldest when a queue is full. A client far away takes longer to show that it is there, so where
//! a flood displaces flows the queues grow, and the shards after them. A queue that is replaced is forgotten with all
//! that is in it: those flows just live as long as any other.

use std::sync::Arc;

use lb_ebpf::abi::FLOW_SHARDS;

use super::Result;
use super::object::{Definition, Definitions};
use super::pins::check;
use crate::sys::bpf::Outer;

/// Flows of a shard that may be unproven at a time, at most: 131,072 over all shards of a family.
const LIMIT: u32 = 4096;

/// Growth by this factor.
const FACTOR: u32 = 4;

/// The queues of one family.
#[derive(Debug)]
pub struct Newcomers {
    outer: Outer,
    definitions: Arc<Definitions>,
    definition: Definition,
    /// Size of the smallest queue.
    size: u32,
}

impl Newcomers {
    /// Opens the queues, and gives shards without one their first.
    pub fn open(name: &str, outer: Outer, definitions: &Arc<Definitions>) -> Result<Self> {
        let definition = definitions.table(name)?.inner_definition()?.clone();
        let mut missing = Vec::new();
        let mut size = LIMIT;
        for slot in 0..FLOW_SHARDS {
            match outer.open_inner(slot)? {
                Some(queue) => {
                    check(&queue, &definition, &outer.pin_path(slot), true)?;
                    size = size.min(queue.info().max_entries);
                }
                None => {
                    missing.push((slot, definitions.create(&definition)?));
                    size = size.min(definition.max_entries);
                }
            }
        }
        outer.set_many(&missing)?;
        Ok(Self {
            outer,
            definitions: Arc::clone(definitions),
            definition,
            size,
        })
    }

    /// Flows of the family that may be unproven at a time.
    pub fn capacity(&self) -> usize {
        (self.size * FLOW_SHARDS) as usize
    }

    /// Makes the queues longer, if they may be.
    pub fn grow(&mut self) -> Result<()> {
        if self.size >= LIMIT {
            return Ok(());
        }
        let size = (self.size * FACTOR).min(LIMIT);
        let queues = (0..FLOW_SHARDS)
            .map(|slot| {
                let queue = self.definitions.create_sized(&self.definition, size)?;
                Ok((slot, queue))
            })
            .collect::<Result<Vec<_>>>()?;
        self.outer.set_many(&queues)?;
        tracing::info!(
            table = self.outer.map().name(),
            from = self.size,
            to = size,
            "queues of new flows grew, as a flood displaces some"
        );
        self.size = size;
        Ok(())
    }
}
