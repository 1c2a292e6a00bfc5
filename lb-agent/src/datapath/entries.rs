//! How many entries a hash holds, without walking it.
//!
//! The kernel (Linux 6.4, `htab_map_mem_usage`) tells the bytes of a hash that allocates its elements as they come:
//! a constant for its buckets, and as much for every element. Both are measured on an empty hash of the same size, so
//! nothing here depends on the kernel's structs. An older kernel tells a constant; then the entries are walked.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Result;
use super::object::{Definition, Definitions};
use crate::sys::bpf::{self, Map, WriteMode};

/// Counts entries of hashes that differ only in size.
#[derive(Debug)]
pub struct Meter {
    definitions: Arc<Definitions>,
    definition: Definition,
    /// By size; `None` where the kernel does not tell.
    bytes: BTreeMap<u32, Option<Bytes>>,
}

/// What a hash takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Bytes {
    empty: u64,
    entry: u64,
}

impl Meter {
    pub fn new(definitions: Arc<Definitions>, definition: Definition) -> Self {
        Self {
            definitions,
            definition,
            bytes: BTreeMap::new(),
        }
    }

    /// Entries of a hash as of now.
    pub fn count(&mut self, map: &Map) -> Result<usize> {
        match self.bytes(map.info().max_entries)? {
            Some(bytes) => Ok(bytes.entries(map.memory()?)),
            None => {
                let mut count = 0;
                map.for_each(|_, _| count += 1)?;
                Ok(count)
            }
        }
    }

    /// Whether counting costs the same however many entries there are.
    pub fn is_cheap(&mut self) -> Result<bool> {
        Ok(self.bytes(self.definition.max_entries)?.is_some())
    }

    fn bytes(&mut self, max_entries: u32) -> bpf::Result<Option<Bytes>> {
        if let Some(known) = self.bytes.get(&max_entries) {
            return Ok(*known);
        }
        let map = self
            .definitions
            .create_sized(&self.definition, max_entries)?;
        let empty = map.memory()?;
        let (key, value) = (vec![0; map.key_bytes()], vec![0; map.value_bytes()]);
        map.update(&key, &value, WriteMode::Create)?;
        let entry = map.memory()?.saturating_sub(empty);
        let bytes = (entry > 0).then_some(Bytes { empty, entry });
        self.bytes.insert(max_entries, bytes);
        Ok(bytes)
    }
}

impl Bytes {
    fn entries(self, memory: u64) -> usize {
        (memory.saturating_sub(self.empty) / self.entry) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_what_is_beyond_the_empty_hash() {
        let bytes = Bytes {
            empty: 9000,
            entry: 112,
        };
        assert_eq!(bytes.entries(9000), 0);
        assert_eq!(bytes.entries(9000 + 7 * 112), 7);
        assert_eq!(bytes.entries(8000), 0);
    }
}
