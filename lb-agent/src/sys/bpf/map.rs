//! Tables of bytes: create, describe, single and batch access.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use aya_obj::generated::bpf_map_info;

use super::command::{self, Batch, Command, Element, MapCreate, call, call_for_fd};
use super::{Btf, Error, Result, pin};

/// Entries per batch call: the kernel copies a batch through one allocation of keys and values each.
pub const BATCH: usize = 4096;

/// `BPF_F_NO_PREALLOC`: elements are allocated as they come.
pub const NO_PREALLOC: u32 = 1;

/// The kernel's own "not supported" (`ENOTSUPP`), which libc does not name: no batch for this kind of map.
const ENOTSUPP: i32 = 524;

/// Kinds of maps we create or meet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum MapKind {
    Hash = 1,
    Array = 2,
    PerCpuArray = 6,
    LpmTrie = 11,
    ArrayOfMaps = 12,
    Queue = 22,
    SocketStorage = 24,
}

/// Type information of a map.
#[derive(Clone, Copy, Debug)]
pub struct Types<'a> {
    pub btf: &'a Btf,
    /// Type id of the key; 0 for kinds whose key has none.
    pub key: u32,
    /// Type id of the value.
    pub value: u32,
}

/// What to create.
#[derive(Clone, Copy, Debug)]
pub struct MapSpec<'a> {
    /// At most 15 characters.
    pub name: &'a str,
    /// `enum bpf_map_type`; see [`MapKind`].
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    pub types: Option<Types<'a>>,
    /// For a map of maps: one with the layout all inner maps must have.
    pub inner: Option<BorrowedFd<'a>>,
}

/// What the kernel says about a map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapInfo {
    /// `enum bpf_map_type`; see [`MapKind`].
    pub kind: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    pub name: String,
    /// Id of its type information, 0 without.
    pub btf_id: u32,
}

impl MapInfo {
    /// Describes the map behind a descriptor.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self> {
        // SAFETY: `bpf_map_info` is the kernel's struct for maps and holds integers alone. The kernel looks at
        // the descriptor's kind itself; a program's info is longer but is cut to the length given.
        let info: bpf_map_info = unsafe { command::info(fd.as_raw_fd()) }
            .map_err(|e| Error::new("describe a map", e))?;
        Ok(Self {
            kind: info.type_,
            id: info.id,
            key_size: info.key_size,
            value_size: info.value_size,
            max_entries: info.max_entries,
            flags: info.map_flags,
            name: c_string(&info.name),
            btf_id: info.btf_id,
        })
    }
}

/// When a write may happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum WriteMode {
    Any = 0,
    /// Only where the key is absent (`BPF_NOEXIST`).
    Create = 1,
    /// Only where the key is present (`BPF_EXIST`).
    Replace = 2,
}

/// A batch write that stopped: everything before `done` happened, nothing from there on.
#[derive(Debug)]
pub struct WriteError {
    pub done: usize,
    pub error: Error,
}

/// A map, with what the kernel says about it; sizes of keys and values are checked against that.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    info: MapInfo,
    /// Bytes of a value as the system call copies it: per-CPU kinds have one for each possible CPU.
    value_bytes: usize,
}

impl Map {
    /// Creates a map.
    pub fn create(spec: &MapSpec<'_>) -> Result<Self> {
        if spec.name.len() > 15 {
            return Err(Error::refused(
                format!("create map {}", spec.name),
                "names have at most 15 characters",
            ));
        }
        let mut name = [0; 16];
        name[..spec.name.len()].copy_from_slice(spec.name.as_bytes());
        let mut block = MapCreate {
            kind: spec.kind,
            key_size: spec.key_size,
            value_size: spec.value_size,
            max_entries: spec.max_entries,
            flags: spec.flags,
            inner_map_fd: spec.inner.map_or(0, |fd| fd.as_raw_fd() as u32),
            numa_node: 0,
            name,
            ifindex: 0,
            btf_fd: spec.types.map_or(0, |t| t.btf.as_fd().as_raw_fd() as u32),
            btf_key_type: spec.types.map_or(0, |t| t.key),
            btf_value_type: spec.types.map_or(0, |t| t.value),
        };
        // SAFETY: the block holds no addresses; the answer is a descriptor.
        let fd = unsafe { call_for_fd(Command::MapCreate, &mut block) }
            .map_err(|e| Error::new(format!("create map {}", spec.name), e))?;
        Self::from_fd(fd)
    }

    /// Takes over the descriptor of a map.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let info = MapInfo::of(fd.as_fd())?;
        let value_bytes = if info.kind == MapKind::PerCpuArray as u32 {
            let cpus = aya::util::nr_cpus()
                .map_err(|(what, e)| Error::new(format!("count CPUs: {what}"), e))?;
            (info.value_size as usize).next_multiple_of(8) * cpus
        } else {
            info.value_size as usize
        };
        Ok(Self {
            fd,
            info,
            value_bytes,
        })
    }

    /// Opens a pinned map.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_fd(pin::get(path)?)
    }

    /// Opens a pinned map for lookups and dumps alone.
    pub fn open_read_only(path: &Path) -> Result<Self> {
        Self::from_fd(pin::get_read_only(path)?)
    }

    pub fn info(&self) -> &MapInfo {
        &self.info
    }

    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// The value under `key`, of the length of [`Map::value_bytes`].
    pub fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_bytes];
        Ok(self.lookup_into(key, &mut value)?.then_some(value))
    }

    /// Reads the value under `key`; whether there is one.
    pub fn lookup_into(&self, key: &[u8], value: &mut [u8]) -> Result<bool> {
        self.check(key.len(), 1, Some(value.len()))?;
        let mut block = self.element(key.as_ptr() as u64, value.as_mut_ptr() as u64, 0);
        // SAFETY: both lengths are what the kernel reads and writes, checked above.
        match unsafe { call(Command::MapLookup, &mut block) } {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(self.error("look up in", e)),
        }
    }

    /// Writes one entry.
    pub fn update(&self, key: &[u8], value: &[u8], mode: WriteMode) -> Result<()> {
        self.check(key.len(), 1, Some(value.len()))?;
        let mut block = self.element(key.as_ptr() as u64, value.as_ptr() as u64, mode as u64);
        // SAFETY: both lengths are what the kernel reads, checked above.
        unsafe { call(Command::MapUpdate, &mut block) }.map_err(|e| self.error("write to", e))?;
        Ok(())
    }

    /// Removes one entry; whether there was one.
    pub fn delete(&self, key: &[u8]) -> Result<bool> {
        self.check(key.len(), 1, None)?;
        let mut block = self.element(key.as_ptr() as u64, 0, 0);
        // SAFETY: the key has the length the kernel reads, checked above.
        match unsafe { call(Command::MapDelete, &mut block) } {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(self.error("delete from", e)),
        }
    }

    /// Moves `key` on to the key behind `after` (the first without); whether there is one.
    pub fn next_key(&self, after: Option<&[u8]>, key: &mut [u8]) -> Result<bool> {
        self.check(after.map_or(key.len(), <[u8]>::len), 1, None)?;
        self.check(key.len(), 1, None)?;
        let from = after.map_or(0, |k| k.as_ptr() as u64);
        let mut block = self.element(from, key.as_mut_ptr() as u64, 0);
        // SAFETY: both keys have the length the kernel reads or writes, checked above.
        match unsafe { call(Command::MapNextKey, &mut block) } {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(self.error("walk", e)),
        }
    }

    /// Hands every entry to `visit`. Entries that come or go meanwhile may be missed or seen twice.
    pub fn for_each(&self, mut visit: impl FnMut(&[u8], &[u8])) -> Result<()> {
        match self.for_each_batch(&mut visit) {
            Ok(true) => Ok(()),
            Ok(false) => self.for_each_single(&mut visit),
            Err(error) => Err(error),
        }
    }

    /// Writes entries, given as one buffer of keys and one of values, overwriting.
    pub fn update_many(&self, keys: &[u8], values: &[u8]) -> std::result::Result<(), WriteError> {
        let count = keys.len() / self.key_bytes();
        self.check(keys.len(), count, Some(values.len()))
            .map_err(|error| WriteError { done: 0, error })?;
        let mut done = 0;
        while done < count {
            let n = (count - done).min(BATCH);
            let (keys, values) = (
                &keys[done * self.key_bytes()..],
                &values[done * self.value_bytes..],
            );
            // One entry is cheaper without the batch's copies.
            let answer = if n == 1 {
                Err((0, io::Error::from_raw_os_error(ENOTSUPP)))
            } else {
                self.batch(Command::MapUpdateBatch, keys, Some(values), n)
            };
            match answer {
                Ok(()) => done += n,
                Err((0, e)) if no_batch(&e) => {
                    for i in 0..n {
                        let key = &keys[i * self.key_bytes()..][..self.key_bytes()];
                        let value = &values[i * self.value_bytes..][..self.value_bytes];
                        self.update(key, value, WriteMode::Any)
                            .map_err(|error| WriteError {
                                done: done + i,
                                error,
                            })?;
                    }
                    done += n;
                }
                Err((wrote, e)) => {
                    return Err(WriteError {
                        done: done + wrote,
                        error: self.error("write to", e),
                    });
                }
            }
        }
        Ok(())
    }

    /// Removes entries, given as one buffer of keys; absent ones are fine.
    pub fn delete_many(&self, keys: &[u8]) -> std::result::Result<(), WriteError> {
        let count = keys.len() / self.key_bytes();
        self.check(keys.len(), count, None)
            .map_err(|error| WriteError { done: 0, error })?;
        let mut done = 0;
        while done < count {
            let n = (count - done).min(BATCH);
            let rest = &keys[done * self.key_bytes()..];
            let answer = if n == 1 {
                Err((0, io::Error::from_raw_os_error(ENOTSUPP)))
            } else {
                self.batch(Command::MapDeleteBatch, rest, None, n)
            };
            match answer {
                Ok(()) => done += n,
                // The kernel stops at the first absent key: go on behind it.
                Err((gone, e)) if e.raw_os_error() == Some(libc::ENOENT) => done += gone + 1,
                Err((0, e)) if no_batch(&e) => {
                    for i in 0..n {
                        self.delete(&rest[i * self.key_bytes()..][..self.key_bytes()])
                            .map_err(|error| WriteError {
                                done: done + i,
                                error,
                            })?;
                    }
                    done += n;
                }
                Err((gone, e)) => {
                    return Err(WriteError {
                        done: done + gone,
                        error: self.error("delete from", e),
                    });
                }
            }
        }
        Ok(())
    }

    /// Length of a key.
    pub fn key_bytes(&self) -> usize {
        self.info.key_size as usize
    }

    /// Length of a value as lookups return it.
    pub fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    /// `false` where this kind of map has no batch lookup.
    fn for_each_batch(&self, visit: &mut impl FnMut(&[u8], &[u8])) -> Result<bool> {
        // A hash's cursor is a 32-bit bucket number, the other kinds' is a key.
        let mut cursor = vec![0u8; self.key_bytes().max(4)];
        let mut started = false;
        let mut room = BATCH.min(self.info.max_entries as usize).max(1);
        let mut keys = vec![0u8; room * self.key_bytes()];
        let mut values = vec![0u8; room * self.value_bytes];
        loop {
            let at = cursor.as_mut_ptr() as u64;
            let mut block = Batch {
                from: if started { at } else { 0 },
                to: at,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: room as u32,
                map_fd: self.fd.as_raw_fd() as u32,
                element_flags: 0,
                flags: 0,
            };
            // SAFETY: the buffers hold `room` keys and values and the cursor is as long as the kernel makes it.
            let answer = unsafe { call(Command::MapLookupBatch, &mut block) };
            let errno = answer
                .as_ref()
                .map_or_else(|e| e.raw_os_error().unwrap_or(0), |_| 0);
            match errno {
                0 | libc::ENOENT => {
                    let pairs = keys
                        .chunks_exact(self.key_bytes())
                        .zip(values.chunks_exact(self.value_bytes));
                    pairs
                        .take(block.count as usize)
                        .for_each(|(k, v)| visit(k, v));
                    started = true;
                    if errno == libc::ENOENT {
                        return Ok(true);
                    }
                }
                // One bucket holds more than `room`: ask again from the same place.
                libc::ENOSPC if room < self.info.max_entries as usize => {
                    room *= 4;
                    keys.resize(room * self.key_bytes(), 0);
                    values.resize(room * self.value_bytes, 0);
                }
                ENOTSUPP | libc::EINVAL if !started => return Ok(false),
                _ => return Err(self.error("read", io::Error::from_raw_os_error(errno))),
            }
        }
    }

    fn for_each_single(&self, visit: &mut impl FnMut(&[u8], &[u8])) -> Result<()> {
        let mut key = vec![0; self.key_bytes()];
        let mut value = vec![0; self.value_bytes];
        let mut last: Option<Vec<u8>> = None;
        // A walk starts over when its last key has gone: a full table's worth of steps ends it in any case.
        for _ in 0..self.info.max_entries {
            if !self.next_key(last.as_deref(), &mut key)? {
                break;
            }
            if self.lookup_into(&key, &mut value)? {
                visit(&key, &value);
            }
            last = Some(key.clone());
        }
        Ok(())
    }

    /// One batch write or delete of `n` entries; on failure, how many were done.
    fn batch(
        &self,
        command: Command,
        keys: &[u8],
        values: Option<&[u8]>,
        n: usize,
    ) -> std::result::Result<(), (usize, io::Error)> {
        let mut block = Batch {
            keys: keys.as_ptr() as u64,
            values: values.map_or(0, |v| v.as_ptr() as u64),
            count: n as u32,
            map_fd: self.fd.as_raw_fd() as u32,
            ..Batch::default()
        };
        // SAFETY: the callers slice buffers that hold at least `n` keys and values.
        match unsafe { call(command, &mut block) } {
            Ok(_) => Ok(()),
            // A refusal before the first entry leaves `count` as we set it.
            Err(e) if block.count as usize >= n => Err((0, e)),
            Err(e) => Err((block.count as usize, e)),
        }
    }

    fn element(&self, key: u64, value: u64, flags: u64) -> Element {
        Element {
            map_fd: self.fd.as_raw_fd() as u32,
            zero: 0,
            key,
            value,
            flags,
        }
    }

    fn check(&self, keys: usize, count: usize, values: Option<usize>) -> Result<()> {
        let fits = keys == count * self.key_bytes()
            && values.is_none_or(|v| v == count * self.value_bytes);
        if fits {
            return Ok(());
        }
        Err(Error::refused(
            format!("use map {}", self.info.name),
            format!(
                "{count} entries of {} + {} bytes do not fit buffers of {keys} + {} bytes",
                self.key_bytes(),
                self.value_bytes,
                values.unwrap_or(0)
            ),
        ))
    }

    fn error(&self, attempt: &str, source: io::Error) -> Error {
        Error::new(format!("{attempt} map {}", self.info.name), source)
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The answer of a kernel or a kind of map that has no batches.
fn no_batch(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(ENOTSUPP | libc::EINVAL | libc::EOPNOTSUPP)
    )
}

pub(super) fn c_string(bytes: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = bytes
        .iter()
        .take_while(|&&c| c != 0)
        .map(|&c| c as u8)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
