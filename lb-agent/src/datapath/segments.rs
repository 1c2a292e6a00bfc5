//! Dense arrays in segments that are created when first written to.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use lb_ebpf::abi::{Record, SEGMENT_RECORDS, SEGMENT_SHIFT};

use super::Result;
use super::object::{Definition, Definitions};
use super::pins::check;
use crate::sys::bpf::{Error as KernelError, Map, Outer, Table, WriteMode};

/// An array whose record `i` is record `i % 4096` of the inner table in slot `i / 4096`.
#[derive(Debug)]
pub struct Segments<V> {
    outer: Outer,
    segments: Vec<Option<Table<u32, V>>>,
    definitions: Arc<Definitions>,
    definition: Definition,
}

impl<V: Record> Segments<V> {
    /// Opens the segments that exist.
    pub fn open(outer: Outer, definitions: Arc<Definitions>) -> Result<Self> {
        let definition = definitions
            .table(outer.map().name())?
            .inner_definition()?
            .clone();
        let mut segments = Vec::new();
        for slot in 0..outer.slots() {
            // Segments are created in order of need, but blocks may be placed anywhere: look at every slot.
            if let Some(map) = outer.open_inner(slot)? {
                check(&map, &definition, &outer.pin_path(slot), false)?;
                segments.resize_with(slot as usize + 1, || None);
                segments[slot as usize] = Some(Table::new(map)?);
            }
        }
        Ok(Self {
            outer,
            segments,
            definitions,
            definition,
        })
    }

    /// The table of tables they are in.
    pub fn outer(&self) -> &Outer {
        &self.outer
    }

    /// Records that have room now, and how many there may ever be.
    pub fn usage(&self) -> (usize, u32) {
        let segments = self.segments.iter().flatten().count();
        (
            segments * SEGMENT_RECORDS as usize,
            self.outer.slots().saturating_mul(SEGMENT_RECORDS),
        )
    }

    /// Creates the missing ones among the segments of these records, with one wait for all: setting a slot waits
    /// for running programs, which for a large list would take longer than all else. What fails here fails again,
    /// and is told, when its records are written.
    pub fn prepare(&mut self, records: impl Iterator<Item = u32>) -> crate::sys::bpf::Result<()> {
        let mut slots: Vec<u32> = records.map(|record| record >> SEGMENT_SHIFT).collect();
        slots.sort_unstable();
        slots.dedup();
        slots.retain(|&slot| slot < self.outer.slots() && !self.exists(slot));
        // One is made by the write.
        if slots.len() < 2 {
            return Ok(());
        }
        let maps = slots
            .into_iter()
            .map(|slot| Ok((slot, self.definitions.create(&self.definition)?)))
            .collect::<crate::sys::bpf::Result<Vec<(u32, Map)>>>()?;
        self.outer.set_many(&maps)?;
        for (slot, map) in maps {
            self.keep(slot, Table::new(map)?);
        }
        Ok(())
    }

    fn exists(&self, slot: u32) -> bool {
        matches!(self.segments.get(slot as usize), Some(Some(_)))
    }

    fn keep(&mut self, slot: u32, segment: Table<u32, V>) {
        let at = slot as usize;
        if at >= self.segments.len() {
            self.segments.resize_with(at + 1, || None);
        }
        self.segments[at] = Some(segment);
    }

    /// Writes records `first ..`. They may lie in several segments.
    pub fn write(&mut self, first: u32, records: &[V]) -> crate::sys::bpf::Result<()> {
        let mut index = first;
        let mut rest = records;
        while !rest.is_empty() {
            let offset = index & (SEGMENT_RECORDS - 1);
            let here = rest.len().min((SEGMENT_RECORDS - offset) as usize);
            let (now, later) = rest.split_at(here);
            let segment = self.segment(index >> SEGMENT_SHIFT)?;
            if let [only] = now {
                segment.put(&offset, only, WriteMode::Any)?;
            } else {
                let keys: Vec<u32> = (offset..offset + here as u32).collect();
                segment
                    .put_many(&keys, now)
                    .map_err(|stopped| stopped.error)?;
            }
            index = index.saturating_add(here as u32);
            rest = later;
        }
        Ok(())
    }

    /// Writes single records anywhere, in few calls.
    pub fn write_scattered(&mut self, mut records: Vec<(u32, V)>) -> crate::sys::bpf::Result<()> {
        records.sort_by_key(|(index, _)| *index);
        for run in records.chunk_by(|(a, _), (b, _)| a >> SEGMENT_SHIFT == b >> SEGMENT_SHIFT) {
            let segment = self.segment(run[0].0 >> SEGMENT_SHIFT)?;
            let (keys, values): (Vec<u32>, Vec<V>) = run
                .iter()
                .map(|(index, value)| (index & (SEGMENT_RECORDS - 1), *value))
                .unzip();
            segment
                .put_many(&keys, &values)
                .map_err(|stopped| stopped.error)?;
        }
        Ok(())
    }

    /// One record; `None` where its segment does not exist.
    pub fn get(&self, index: u32) -> Result<Option<V>> {
        match self.segments.get((index >> SEGMENT_SHIFT) as usize) {
            Some(Some(segment)) => Ok(segment.get(&(index & (SEGMENT_RECORDS - 1)))?),
            _ => Ok(None),
        }
    }

    /// Every record of the segments that exist, with its index.
    pub fn entries(&self) -> Result<Vec<(u32, V)>> {
        entries(&self.segments)
    }

    fn segment(&mut self, slot: u32) -> crate::sys::bpf::Result<&Table<u32, V>> {
        if slot >= self.outer.slots() {
            return Err(KernelError::from_errno(
                format!("write to table {}", self.outer.map().name()),
                libc::E2BIG,
            ));
        }
        if !self.exists(slot) {
            let map = self.definitions.create(&self.definition)?;
            self.outer.set(slot, map.as_fd())?;
            self.keep(slot, Table::new(map)?);
        }
        self.segments[slot as usize]
            .as_ref()
            .ok_or_else(|| unreachable!("set just above"))
    }
}

/// Every record of segments in order, with its index.
pub(super) fn entries<V: Record>(segments: &[Option<Table<u32, V>>]) -> Result<Vec<(u32, V)>> {
    let mut all = Vec::new();
    for (slot, segment) in segments.iter().enumerate() {
        if let Some(segment) = segment {
            let base = (slot as u32) << SEGMENT_SHIFT;
            all.extend(
                segment
                    .entries()?
                    .into_iter()
                    .map(|(key, value)| (base + key, value)),
            );
        }
    }
    Ok(all)
}
