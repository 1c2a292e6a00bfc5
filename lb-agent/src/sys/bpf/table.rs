//! Tables with types.

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use lb_ebpf::abi::Record;

use super::map::{Map, WriteError, WriteMode};
use super::{Error, Result};

/// A map whose keys are `K` and whose values are `V`.
///
/// Opening checks both sizes against the kernel's, as a value larger than we think would be copied past the
/// end of ours. What the bytes mean is the pin directory's promise, see `lb_ebpf::abi::ABI_VERSION`.
#[derive(Debug)]
pub struct Table<K, V> {
    map: Map,
    types: PhantomData<(K, V)>,
}

impl<K: Record, V: Record> Table<K, V> {
    /// Gives a map its types.
    pub fn new(map: Map) -> Result<Self> {
        if map.key_bytes() != size_of::<K>() || map.value_bytes() != size_of::<V>() {
            return Err(Error::refused(
                format!("use map {}", map.name()),
                format!(
                    "its keys and values have {} and {} bytes, ours {} and {}: it belongs to another version, \
                     run `beeline cleanup`",
                    map.key_bytes(),
                    map.value_bytes(),
                    size_of::<K>(),
                    size_of::<V>()
                ),
            ));
        }
        Ok(Self {
            map,
            types: PhantomData,
        })
    }

    /// Opens a pinned table.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(Map::open(path)?)
    }

    /// Opens a pinned table for reading alone.
    pub fn open_read_only(path: &Path) -> Result<Self> {
        Self::new(Map::open_read_only(path)?)
    }

    pub fn map(&self) -> &Map {
        &self.map
    }

    pub fn max_entries(&self) -> u32 {
        self.map.info().max_entries
    }

    /// The value under `key`.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        let mut value = vec![0; size_of::<V>()];
        Ok(self
            .map
            .lookup_into(bytes(key), &mut value)?
            .then(|| record(&value)))
    }

    /// Writes one entry.
    pub fn put(&self, key: &K, value: &V, mode: WriteMode) -> Result<()> {
        self.map.update(bytes(key), bytes(value), mode)
    }

    /// Removes one entry; whether there was one.
    pub fn delete(&self, key: &K) -> Result<bool> {
        self.map.delete(bytes(key))
    }

    /// The whole contents.
    pub fn entries(&self) -> Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        self.map
            .for_each(|key, value| entries.push((record(key), record(value))))?;
        Ok(entries)
    }

    /// Number of entries, by walking them.
    pub fn count(&self) -> Result<usize> {
        let mut count = 0;
        self.map.for_each(|_, _| count += 1)?;
        Ok(count)
    }

    /// Writes entries, overwriting.
    pub fn put_many(&self, keys: &[K], values: &[V]) -> std::result::Result<(), WriteError> {
        self.map.update_many(slice_bytes(keys), slice_bytes(values))
    }

    /// Removes entries; absent ones are fine.
    pub fn delete_many(&self, keys: &[K]) -> std::result::Result<(), WriteError> {
        self.map.delete_many(slice_bytes(keys))
    }
}

impl<K, V> AsFd for Table<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

/// A per-CPU array of `u64`, read as sums.
#[derive(Debug)]
pub struct Counters {
    map: Map,
}

impl Counters {
    /// Takes a per-CPU array of `u64`.
    pub fn new(map: Map) -> Result<Self> {
        let info = map.info();
        let fits = info.kind == super::MapKind::PerCpuArray as u32
            && info.key_size == 4
            && info.value_size == 8;
        if !fits {
            return Err(Error::refused(
                format!("use map {}", map.name()),
                "it is no per-CPU array of 64-bit counters: run `beeline cleanup`",
            ));
        }
        Ok(Self { map })
    }

    /// Every counter, summed over the CPUs, by number.
    pub fn read(&self) -> Result<Vec<u64>> {
        let mut sums = vec![0u64; self.map.info().max_entries as usize];
        self.map.for_each(|key, values| {
            let sum = values
                .chunks_exact(8)
                .map(record::<u64>)
                .fold(0, u64::wrapping_add);
            if let Some(slot) = sums.get_mut(record::<u32>(key) as usize) {
                *slot = sum;
            }
        })?;
        Ok(sums)
    }
}

impl AsFd for Counters {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

/// A record as the bytes the kernel sees.
pub(super) fn bytes<T: Record>(record: &T) -> &[u8] {
    slice_bytes(std::slice::from_ref(record))
}

fn slice_bytes<T: Record>(records: &[T]) -> &[u8] {
    // SAFETY: a `Record` has no padding, so every byte is initialised.
    unsafe { std::slice::from_raw_parts(records.as_ptr().cast(), size_of_val(records)) }
}

/// A record from the bytes the kernel gave. Callers pass a slice of the record's size.
fn record<T: Record>(bytes: &[u8]) -> T {
    assert_eq!(
        bytes.len(),
        size_of::<T>(),
        "record length is checked when the table is opened"
    );
    // SAFETY: the length is checked, and every byte pattern is a valid `Record`.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}
