//! Reads the live tables through their pins, with or without a running agent. Changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use lb_ebpf::abi::device::Device;
use lb_ebpf::abi::endpoint::Endpoint;
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::frontend::{Frontend, FrontendKey};
use lb_ebpf::abi::settings::Settings;
use lb_ebpf::abi::{ABI_VERSION, Record, SEGMENT_RECORDS, SEGMENT_SHIFT, table};

use super::CommandError;
use super::live::{self, LiveTables};
use crate::datapath::growing::LIMIT;
use crate::datapath::pins::{self, Pins};
use crate::sys::bpf::{Counters, Error, Link, Map, Outer, Table};

/// A frontend that changed under the reader is read again this often.
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
    pub settings: Option<Settings>,
    pub hooks: Vec<Hook>,
}

/// The tables that say where traffic goes.
pub(super) fn tables(bpffs: &Path) -> Result<LiveTables, CommandError> {
    let reader = Reader::open(bpffs)?;
    reader.tables().map_err(|error| reader.failed(&error))
}

/// Usage, counters, devices, settings and hooks.
pub(super) fn inventory(bpffs: &Path, tables: &LiveTables) -> Result<Inventory, CommandError> {
    let reader = Reader::open(bpffs)?;
    reader
        .inventory(tables)
        .map_err(|error| reader.failed(&error))
}

struct Reader {
    pins: Pins,
}

impl Reader {
    fn open(bpffs: &Path) -> Result<Self, CommandError> {
        let pins = Pins::new(bpffs);
        match fs::read_dir(pins.maps()) {
            Ok(_) => Ok(Reader { pins }),
            Err(error) => Err(absent(bpffs, &pins, &error)),
        }
    }

    /// Frontends first: what they lead to was written before them, and stays for a while after them.
    fn tables(&self) -> Result<LiveTables, Error> {
        Ok(LiveTables {
            frontends4: self.frontends::<V4>(table::FRONTENDS4)?,
            frontends6: self.frontends::<V6>(table::FRONTENDS6)?,
            endpoints4: self.segments::<Endpoint<V4>>(table::ENDPOINTS4)?,
            endpoints6: self.segments::<Endpoint<V6>>(table::ENDPOINTS6)?,
            states: self.segments(table::ENDPOINT_STATE)?,
            names: match self.growing(table::NAMES)? {
                Some(names) => names.entries()?.into_iter().collect(),
                None => BTreeMap::new(),
            },
        })
    }

    fn frontends<F: Family>(&self, name: &str) -> Result<Vec<(FrontendKey<F>, Frontend)>, Error>
    where
        FrontendKey<F>: Record,
    {
        let Some(table) = self.growing::<FrontendKey<F>, Frontend>(name)? else {
            return Ok(Vec::new());
        };
        // A walk may meet an entry twice while others come and go.
        let mut whole = HashMap::new();
        for (key, mut value) in table.entries()? {
            for _ in 0..RETRIES {
                if live::is_whole(&key, &value) {
                    break;
                }
                match table.get(&key)? {
                    Some(again) => value = again,
                    None => break,
                }
            }
            if live::is_whole(&key, &value) {
                whole.insert(key, value);
            }
        }
        Ok(whole.into_iter().collect())
    }

    fn inventory(&self, tables: &LiveTables) -> Result<Inventory, Error> {
        let mut usage = vec![
            self.growing_usage::<FrontendKey<V4>, Frontend>(table::FRONTENDS4)?,
            self.growing_usage::<FrontendKey<V6>, Frontend>(table::FRONTENDS6)?,
            self.segments_usage(table::ENDPOINTS4, reached(&tables.frontends4))?,
            self.segments_usage(table::ENDPOINTS6, reached(&tables.frontends6))?,
        ];
        for name in [table::FLOWS4, table::FLOWS6] {
            usage.push(self.shards_usage(name)?);
        }
        for name in [
            table::AFFINITY,
            table::SOURCE_RANGES,
            table::SOCKET_MORE,
            table::FRAGMENTS,
            table::DEVICES,
        ] {
            usage.push(self.fixed_usage(name)?);
        }
        let devices =
            Table::<u32, Device>::open_read_only(&self.pins.map(table::DEVICES))?.entries()?;
        let settings =
            Table::<u32, Settings>::open_read_only(&self.pins.map(table::SETTINGS))?.get(&0)?;
        let counters =
            Counters::new(Map::open_read_only(&self.pins.map(table::COUNTERS))?)?.read()?;
        Ok(Inventory {
            usage,
            counters,
            devices,
            settings,
            hooks: self.hooks()?,
        })
    }

    fn outer(&self, name: &str) -> Result<Outer, Error> {
        Outer::new(
            Map::open_read_only(&self.pins.map(name))?,
            &self.pins.inner(),
        )
    }

    fn growing<K: Record, V: Record>(&self, name: &str) -> Result<Option<Table<K, V>>, Error> {
        self.outer(name)?.open_inner(0)?.map(Table::new).transpose()
    }

    fn segments<V: Record>(&self, name: &str) -> Result<BTreeMap<u32, V>, Error> {
        let outer = self.outer(name)?;
        let mut records = BTreeMap::new();
        for slot in 0..outer.slots() {
            if let Some(segment) = outer.open_inner(slot)? {
                let first = slot << SEGMENT_SHIFT;
                let segment = Table::<u32, V>::new(segment)?.entries()?;
                records.extend(
                    segment
                        .into_iter()
                        .map(|(offset, record)| (first + offset, record)),
                );
            }
        }
        Ok(records)
    }

    fn growing_usage<K: Record, V: Record>(&self, name: &'static str) -> Result<Usage, Error> {
        let (used, capacity) = match self.growing::<K, V>(name)? {
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

    fn shards_usage(&self, name: &'static str) -> Result<Usage, Error> {
        let outer = self.outer(name)?;
        let (mut used, mut capacity) = (0, 0);
        for slot in 0..outer.slots() {
            if let Some(shard) = outer.open_inner(slot)? {
                shard.for_each(|_, _| used += 1)?;
                capacity += shard.info().max_entries as usize;
            }
        }
        Ok(Usage {
            table: name,
            used,
            capacity,
            limit: capacity,
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
                Err(error) => return Err(error),
            };
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let interface = name.starts_with("tc-").then_some(info.target);
            hooks.push(Hook {
                name,
                program_id: info.program_id,
                interface,
            });
        }
        Ok(hooks)
    }

    fn failed(&self, error: &Error) -> CommandError {
        let next = match error.errno() {
            libc::EPERM | libc::EACCES => {
                "run it as root, or with CAP_BPF and access to the pins".to_owned()
            }
            libc::ENOENT => {
                "run it again: the agent may just have been starting or cleaning up".to_owned()
            }
            _ => "start the agent anew; if that does not help, `beeline cleanup` and start it"
                .to_owned(),
        };
        CommandError {
            what: format!("tables at {} cannot be read", self.pins.root().display()),
            cause: error.to_string(),
            next,
        }
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
        assert_eq!(error.what, "no Beeline tables at /nonexistent/beeline/v1");
        assert!(error.next.contains("beeline agent"));
    }
}
