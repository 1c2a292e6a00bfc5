//! What the kernel holds: for adoption by a new agent, and for people, with or without an agent running.

use std::path::Path;

use lb_ebpf::abi::address::{Address4, Address6, AddressUse};
use lb_ebpf::abi::device::Device;
use lb_ebpf::abi::endpoint::{Endpoint, EndpointState};
use lb_ebpf::abi::family::{V4, V6};
use lb_ebpf::abi::frontend::{Frontend, FrontendKey};
use lb_ebpf::abi::name::ServiceName;
use lb_ebpf::abi::settings::Settings;
use lb_ebpf::abi::socket::{Tombstone, TombstoneKey};
use lb_ebpf::abi::source_range::{SourceRange, SourceRangeKey};
use lb_ebpf::abi::{Record, SEGMENT_RECORDS, SEGMENT_SHIFT, SEGMENTS, table};

use super::pins::Pins;
use super::segments::entries;
use super::tables::Tables;
use super::{Error, Result};
use crate::sys::bpf::{Counters, Map, Table};

/// Everything the agent writes, as the kernel has it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct KernelState {
    pub names: Vec<(u32, ServiceName)>,
    pub frontends4: Vec<(FrontendKey<V4>, Frontend)>,
    pub frontends6: Vec<(FrontendKey<V6>, Frontend)>,
    pub addresses4: Vec<(Address4, AddressUse)>,
    pub addresses6: Vec<(Address6, AddressUse)>,
    /// Records that were never written are zero; ones no frontend names are stale.
    pub endpoints4: Vec<(u32, Endpoint<V4>)>,
    pub endpoints6: Vec<(u32, Endpoint<V6>)>,
    pub states: Vec<(u32, EndpointState)>,
    pub tombstones: Vec<(TombstoneKey, Tombstone)>,
    pub source_ranges: Vec<(SourceRangeKey, SourceRange)>,
}

impl Tables {
    /// Reads everything the agent writes.
    pub fn state(&self) -> Result<KernelState> {
        Ok(KernelState {
            names: self.names.table().entries()?,
            frontends4: self.frontends4.table().entries()?,
            frontends6: self.frontends6.table().entries()?,
            addresses4: self.addresses4.table().entries()?,
            addresses6: self.addresses6.table().entries()?,
            endpoints4: self.endpoints4.entries()?,
            endpoints6: self.endpoints6.entries()?,
            states: self.endpoint_state.entries()?,
            tombstones: self.tombstones.table().entries()?,
            source_ranges: self.source_ranges.entries()?,
        })
    }
}

/// The pinned tables, for reading alone. Nothing is created or changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reader {
    pins: Pins,
}

impl Reader {
    /// Finds the tables of this version below a BPF file system.
    pub fn open(bpffs: &Path) -> Result<Self> {
        let pins = Pins::new(bpffs);
        match std::fs::metadata(pins.maps()) {
            Ok(_) => Ok(Self { pins }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::Environment(format!(
                "no tables of this version at {}: no agent has run here, or it was given another --bpffs",
                pins.root().display()
            ))),
            Err(e) => Err(Error::io(format!("open {}", pins.maps().display()), e)),
        }
    }

    /// Reads everything the agent writes.
    pub fn state(&self) -> Result<KernelState> {
        Ok(KernelState {
            names: self.names()?,
            frontends4: self.frontends4()?,
            frontends6: self.frontends6()?,
            addresses4: self.grown(table::ADDRESSES4)?,
            addresses6: self.grown(table::ADDRESSES6)?,
            endpoints4: entries(&self.segments(table::ENDPOINTS4)?)?,
            endpoints6: entries(&self.segments(table::ENDPOINTS6)?)?,
            states: entries(&self.segments(table::ENDPOINT_STATE)?)?,
            tombstones: self.grown(table::TOMBSTONES)?,
            source_ranges: self
                .table::<SourceRangeKey, SourceRange>(table::SOURCE_RANGES)?
                .entries()?,
        })
    }

    /// Names of service ports, by id.
    pub fn names(&self) -> Result<Vec<(u32, ServiceName)>> {
        self.grown(table::NAMES)
    }

    pub fn frontends4(&self) -> Result<Vec<(FrontendKey<V4>, Frontend)>> {
        self.grown(table::FRONTENDS4)
    }

    pub fn frontends6(&self) -> Result<Vec<(FrontendKey<V6>, Frontend)>> {
        self.grown(table::FRONTENDS6)
    }

    /// `count` records of a block, from record `first`. A block that was rewritten meanwhile shows in the records'
    /// service.
    pub fn block4(&self, first: u32, count: u32) -> Result<Vec<Endpoint<V4>>> {
        self.block(table::ENDPOINTS4, first, count)
    }

    /// See [`Reader::block4`].
    pub fn block6(&self, first: u32, count: u32) -> Result<Vec<Endpoint<V6>>> {
        self.block(table::ENDPOINTS6, first, count)
    }

    /// States of endpoint ids.
    pub fn states(&self) -> Result<Vec<(u32, EndpointState)>> {
        entries(&self.segments(table::ENDPOINT_STATE)?)
    }

    pub fn settings(&self) -> Result<Settings> {
        Ok(self.table(table::SETTINGS)?.get(&0u32)?.unwrap_or_default())
    }

    pub fn devices(&self) -> Result<Vec<(u32, Device)>> {
        Ok(self.table(table::DEVICES)?.entries()?)
    }

    /// Counters by number, see `lb_ebpf::abi::counter`.
    pub fn counters(&self) -> Result<Vec<u64>> {
        Ok(Counters::new(Map::open_read_only(&self.pins.map(table::COUNTERS))?)?.read()?)
    }

    fn table<K: Record, V: Record>(&self, name: &str) -> Result<Table<K, V>> {
        Ok(Table::open_read_only(&self.pins.map(name))?)
    }

    fn grown<K: Record, V: Record>(&self, name: &str) -> Result<Vec<(K, V)>> {
        Ok(Table::open_read_only(&self.inner(name, 0))?.entries()?)
    }

    fn segments<V: Record>(&self, name: &str) -> Result<Vec<Option<Table<u32, V>>>> {
        let mut segments = Vec::new();
        for slot in 0..SEGMENTS {
            let path = self.inner(name, slot);
            if path.exists() {
                segments.resize_with(slot as usize + 1, || None);
                segments[slot as usize] = Some(Table::open_read_only(&path)?);
            }
        }
        Ok(segments)
    }

    fn block<V: Record>(&self, name: &str, first: u32, count: u32) -> Result<Vec<V>> {
        let mut records = Vec::new();
        if count == 0 {
            return Ok(records);
        }
        let end = first.saturating_add(count);
        let mut at = first;
        while at < end {
            let slot = at >> SEGMENT_SHIFT;
            let segment: Table<u32, V> = Table::open_read_only(&self.inner(name, slot))?;
            let next = end.min((slot + 1) << SEGMENT_SHIFT);
            for record in at..next {
                records.extend(segment.get(&(record & (SEGMENT_RECORDS - 1)))?);
            }
            at = next;
        }
        Ok(records)
    }

    fn inner(&self, name: &str, slot: u32) -> std::path::PathBuf {
        crate::sys::bpf::inner_path(&self.pins.inner(), name, slot)
    }
}
