//! Reads the live tables through their pins, with or without a running agent. Changes nothing.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use lb_ebpf::abi::device::Device;
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::flow::{Flow, FlowKey};
use lb_ebpf::abi::frontend::{Frontend, FrontendKey};
use lb_ebpf::abi::settings::Settings;
use lb_ebpf::abi::{ABI_VERSION, Record, SEGMENT_RECORDS, table};

use super::CommandError;
use super::live::{self, LiveTables};
use super::neighbours::{self, Neighbour};
use crate::datapath::Error;
use crate::datapath::flows::Flows;
use crate::datapath::growing::LIMIT;
use crate::datapath::pins::{self, Pins};
use crate::datapath::read::Reader;
use crate::sys::bpf::{Link, Map, Outer, Table};

/// Frontends are read again this often while some change under the reader.
const RETRIES: usize = 8;

/// How full a table is.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Usage {
    pub table: &'static str,
    /// Entries, counted by walking them.
    pub used: usize,
    /// Entries it has room for as it is.
    pub capacity: usize,
    /// Entries it may grow to.
    pub limit: usize,
}

/// A program on a hook.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hook {
    /// Name of the pin.
    pub name: String,
    pub program_id: u32,
    /// Interface index of a tc hook, 0 once the interface has gone; `None` for other hooks.
    pub interface: Option<u32>,
}

/// Everything `status` needs besides services.
#[derive(Clone, Debug, Default)]
pub(super) struct Inventory {
    pub usage: Vec<Usage>,
    /// By number.
    pub counters: Vec<u64>,
    pub devices: Vec<(u32, Device)>,
    pub settings: Settings,
    pub hooks: Vec<Hook>,
    /// Others' programs on the same devices.
    pub neighbours: Vec<Neighbour>,
}

/// The tables that say where traffic goes.
pub(super) fn tables(bpffs: &Path) -> Result<LiveTables, CommandError> {
    let place = Place::open(bpffs)?;
    place
        .tables()
        .map_err(|error| unreadable(&place.pins, &error))
}

/// Usage, counters, devices, settings and hooks.
pub(super) fn inventory(bpffs: &Path, tables: &LiveTables) -> Result<Inventory, CommandError> {
    let place = Place::open(bpffs)?;
    place
        .inventory(tables)
        .map_err(|error| unreadable(&place.pins, &error))
}

struct Place {
    pins: Pins,
    reader: Reader,
}

impl Place {
    fn open(bpffs: &Path) -> Result<Self, CommandError> {
        let pins = Pins::new(bpffs);
        // Listed to tell "not there" from "not allowed" before anything else fails for either reason.
        if let Err(error) = fs::read_dir(pins.maps()) {
            return Err(absent(bpffs, &pins, &error));
        }
        let reader = Reader::open(bpffs).map_err(|error| unreadable(&pins, &error))?;
        Ok(Place { pins, reader })
    }

    /// Frontends first: what they lead to was written before them, and stays for a while after them.
    fn tables(&self) -> Result<LiveTables, Error> {
        let frontends4 = whole(|| self.reader.frontends4())?;
        let frontends6 = whole(|| self.reader.frontends6())?;
        let state = self.reader.state()?;
        Ok(LiveTables {
            names: state.names.into_iter().collect(),
            frontends4,
            frontends6,
            endpoints4: state.endpoints4.into_iter().collect(),
            endpoints6: state.endpoints6.into_iter().collect(),
            states: state.states.into_iter().collect(),
        })
    }

    fn inventory(&self, tables: &LiveTables) -> Result<Inventory, Error> {
        let mut usage = vec![
            self.growing_usage::<FrontendKey<V4>, Frontend>(table::FRONTENDS4)?,
            self.growing_usage::<FrontendKey<V6>, Frontend>(table::FRONTENDS6)?,
            self.segments_usage(table::ENDPOINTS4, reached(&tables.frontends4))?,
            self.segments_usage(table::ENDPOINTS6, reached(&tables.frontends6))?,
        ];
        usage.push(self.flows_usage::<V4>(table::FLOWS4)?);
        usage.push(self.flows_usage::<V6>(table::FLOWS6)?);
        for name in [
            table::AFFINITY,
            table::SOURCE_RANGES,
            table::SOCKET_MORE,
            table::FRAGMENTS,
            table::DEVICES,
        ] {
            usage.push(self.fixed_usage(name)?);
        }
        let (devices, hooks) = (self.reader.devices()?, self.hooks()?);
        let indices: Vec<u32> = devices.iter().map(|(index, _)| *index).collect();
        let ours = hooks.iter().map(|hook| hook.program_id).collect();
        Ok(Inventory {
            usage,
            counters: self.reader.counters()?,
            devices,
            settings: self.reader.settings()?,
            neighbours: neighbours::on(&indices, &ours),
            hooks,
        })
    }

    fn outer(&self, name: &str) -> Result<Outer, Error> {
        Ok(Outer::new(
            Map::open_read_only(&self.pins.map(name))?,
            &self.pins.inner(),
        )?)
    }

    fn growing_usage<K: Record, V: Record>(&self, name: &'static str) -> Result<Usage, Error> {
        let (used, capacity) = match self
            .outer(name)?
            .find_inner(0)?
            .map(Table::<K, V>::new)
            .transpose()?
        {
            Some(table) => (table.count()?, table.max_entries() as usize),
            None => (0, 0),
        };
        Ok(Usage {
            table: name,
            used,
            capacity,
            limit: (LIMIT as usize).max(capacity),
        })
    }

    fn segments_usage(&self, name: &'static str, used: usize) -> Result<Usage, Error> {
        let outer = self.outer(name)?;
        let mut segments = 0;
        for slot in 0..outer.slots() {
            segments += usize::from(outer.inner_id(slot)?.is_some());
        }
        let records = SEGMENT_RECORDS as usize;
        Ok(Usage {
            table: name,
            used,
            capacity: segments * records,
            limit: outer.slots() as usize * records,
        })
    }

    fn flows_usage<F: Family>(&self, name: &'static str) -> Result<Usage, Error>
    where
        FlowKey<F>: Record,
        Flow<F>: Record,
    {
        let (flows, entries) = Flows::<F>::read(&self.pins)?;
        let (capacity, limit) = flows.room();
        Ok(Usage {
            table: name,
            used: entries.len(),
            capacity,
            limit,
        })
    }

    fn fixed_usage(&self, name: &'static str) -> Result<Usage, Error> {
        let map = Map::open_read_only(&self.pins.map(name))?;
        let mut used = 0;
        map.for_each(|_, _| used += 1)?;
        let capacity = map.info().max_entries as usize;
        Ok(Usage {
            table: name,
            used,
            capacity,
            limit: capacity,
        })
    }

    fn hooks(&self) -> Result<Vec<Hook>, Error> {
        let mut hooks = Vec::new();
        // A directory that is gone or cannot be read has no hooks to show; the tables' would have failed first.
        for path in pins::list(&self.pins.links()).unwrap_or_default() {
            let info = match Link::open(&path).and_then(|link| link.info()) {
                Ok(info) => info,
                Err(error) if error.is_absent() => continue,
                Err(error) => return Err(error.into()),
            };
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let on_device = name.starts_with("tc-") || name.starts_with("xdp-");
            let interface = on_device.then_some(info.target);
            hooks.push(Hook {
                name,
                program_id: info.program_id,
                interface,
            });
        }
        Ok(hooks)
    }
}

/// Reads until no frontend was changing under the reader; after [`RETRIES`] those that still are stay out.
fn whole<F: Family>(
    read: impl Fn() -> Result<Vec<(FrontendKey<F>, Frontend)>, Error>,
) -> Result<Vec<(FrontendKey<F>, Frontend)>, Error> {
    let is_whole = |(key, value): &(FrontendKey<F>, Frontend)| live::is_whole(key, value);
    let mut rows = read()?;
    for _ in 0..RETRIES {
        if rows.iter().all(is_whole) {
            break;
        }
        rows = read()?;
    }
    rows.retain(is_whole);
    // A walk may meet an entry twice while others come and go.
    let rows: HashMap<_, _> = rows.into_iter().collect();
    Ok(rows.into_iter().collect())
}

pub(super) fn unreadable(pins: &Pins, error: &Error) -> CommandError {
    let next = match error {
        Error::Kernel(kernel) if matches!(kernel.errno(), libc::EPERM | libc::EACCES) => {
            "run it as root, or with CAP_BPF and access to the pins"
        }
        Error::Kernel(kernel) if kernel.is_absent() => {
            "run it again: the agent may just have been starting or cleaning up"
        }
        _ => "start the agent anew; if that does not help, `beeline cleanup` and start it",
    };
    CommandError {
        what: format!("tables at {} cannot be read", pins.root().display()),
        cause: error.to_string(),
        next: next.into(),
    }
}

/// Endpoint records that frontends lead to.
fn reached<F: Family>(frontends: &[(FrontendKey<F>, Frontend)]) -> usize {
    let blocks: BTreeSet<(u32, u32)> = frontends
        .iter()
        .map(|(_, f)| {
            (
                f.block,
                f.local_count
                    .max(f.cluster_first.saturating_add(f.cluster_count)),
            )
        })
        .collect();
    blocks.iter().map(|(_, length)| *length as usize).sum()
}

fn absent(bpffs: &Path, pins: &Pins, error: &io::Error) -> CommandError {
    let what = format!("no Beeline tables at {}", pins.root().display());
    if error.kind() == io::ErrorKind::PermissionDenied {
        return CommandError {
            what,
            cause: error.to_string(),
            next: "run it as root".into(),
        };
    }
    let others: Vec<String> = fs::read_dir(bpffs.join(pins::DIRECTORY))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    if others.is_empty() {
        return CommandError {
            what,
            cause: "no agent has run on this node with this --bpffs, or the node was cleaned up".into(),
            next: "beeline agent, or --bpffs DIR as the agent has it (in a container: mount the host's)".into(),
        };
    }
    CommandError {
        what,
        cause: format!(
            "tables are there as {}, this program reads v{ABI_VERSION}",
            others.join(", ")
        ),
        next: "use the program of the agent's version".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;

    #[test]
    fn endpoint_records_are_counted_once_a_block() {
        let mut tables = sample::tables();
        assert_eq!(reached(&tables.frontends4), 4);
        let again = tables.frontends4[0];
        tables.frontends4.push(again);
        assert_eq!(reached(&tables.frontends4), 4);
    }

    #[test]
    fn a_node_without_tables_gets_advice() {
        let error = tables(Path::new("/nonexistent")).unwrap_err();
        assert_eq!(error.what, "no Beeline tables at /nonexistent/beeline/v3");
        assert!(error.next.contains("beeline agent"));
    }
}
