//! Every table: opened where pinned, created where not, refused where laid out otherwise.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread;

use lb_ebpf::abi::device::{Device, Mac};
use lb_ebpf::abi::endpoint::{Endpoint, EndpointState};
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::frontend::{Frontend, FrontendKey};
use lb_ebpf::abi::name::ServiceName;
use lb_ebpf::abi::settings::Settings;
use lb_ebpf::abi::socket::{Tombstone, TombstoneKey};
use lb_ebpf::abi::source_range::{SourceRange, SourceRangeKey};
use lb_ebpf::abi::table;

use super::addresses::Addresses;
use super::growing::Growing;
use super::newcomers::Newcomers;
use super::node_ports::{NodePorts, udp_node_port};
use super::object::{Definition, Definitions};
use super::pins::Pins;
use super::segments::Segments;
use super::shards::{FlowShards, FlowTable};
use super::{Error, Result, joined};
use crate::sys::bpf::{Counters, Map, MapKind, Outer, Table, WriteMode, pin};
use crate::sys::clock;

/// The tables the agent writes to or reads from. The programs' others exist, too, but are theirs alone.
#[derive(Debug)]
pub struct Tables {
    pub frontends4: Growing<FrontendKey<V4>, Frontend>,
    pub frontends6: Growing<FrontendKey<V6>, Frontend>,
    pub(super) node_ports: NodePorts,
    pub addresses4: Addresses<V4>,
    pub addresses6: Addresses<V6>,
    pub endpoints4: Segments<Endpoint<V4>>,
    pub endpoints6: Segments<Endpoint<V6>>,
    pub endpoint_state: Segments<EndpointState>,
    pub names: Growing<u32, ServiceName>,
    pub tombstones: Growing<TombstoneKey, Tombstone>,
    pub source_ranges: Table<SourceRangeKey, SourceRange>,
    pub devices: Table<u32, Device>,
    pub macs: Table<u32, Mac>,
    pub settings: Table<u32, Settings>,
    /// Grown by a thread of its own, see [`FlowShards::follow`].
    pub flows: Arc<FlowShards>,
    pub counters: Counters,
}

impl Tables {
    /// Opens all tables, creating what is missing.
    pub fn open(pins: &Pins, definitions: &Arc<Definitions>) -> Result<Self> {
        Self::create(pins, definitions)?;
        Self::open_created(pins, definitions)
    }

    /// Creates the tables that are missing, without what tables of tables hold: enough for programs to be loaded. Also
    /// what no agent touches is created here, so that one piece of code decides about layouts.
    pub fn create(pins: &Pins, definitions: &Definitions) -> Result<()> {
        let mut created = 0;
        for definition in definitions.tables() {
            if pins.open(definition)?.is_none() {
                let map = definitions.create(definition)?;
                pin::pin(map.as_fd(), &pins.map(&definition.name))?;
                created += 1;
            }
        }
        if created > 0 {
            tracing::info!(tables = created, directory = %pins.root().display(), "created tables");
        }
        Ok(())
    }

    /// Opens the tables, and fills tables of tables. For each the kernel waits until no program knows the state before
    /// it, some 10 ms; tables that are opened at the same time wait together.
    pub fn open_created(pins: &Pins, definitions: &Arc<Definitions>) -> Result<Self> {
        let opener = &Opener { pins, definitions };
        let flow_table = |name| move || FlowTable::open(name, opener.outer(name)?, definitions);
        let newcomers = |name| move || Newcomers::open(name, opener.outer(name)?, definitions);
        thread::scope(|scope| {
            let flows = [
                table::FLOWS4,
                table::FLOWS6,
                table::REPLIES4,
                table::REPLIES6,
            ]
            .map(|name| scope.spawn(flow_table(name)));
            let newcomers =
                [table::NEWCOMERS4, table::NEWCOMERS6].map(|name| scope.spawn(newcomers(name)));
            let frontends4 = scope.spawn(|| opener.growing(table::FRONTENDS4));
            let frontends6 = scope.spawn(|| opener.growing(table::FRONTENDS6));
            let addresses4 =
                scope.spawn(|| opener.addresses(table::ADDRESSES4, table::ADDRESS_FILTER4));
            let addresses6 =
                scope.spawn(|| opener.addresses(table::ADDRESSES6, table::ADDRESS_FILTER6));
            let names = scope.spawn(|| opener.growing(table::NAMES));
            let tombstones = scope.spawn(|| opener.growing(table::TOMBSTONES));
            let counters = || -> Result<_> { Ok(Counters::new(opener.map(table::COUNTERS)?)?) };
            let (frontends4, frontends6) = (joined(frontends4)?, joined(frontends6)?);
            Ok(Self {
                node_ports: opener.node_ports(&frontends4, &frontends6)?,
                frontends4,
                frontends6,
                addresses4: joined(addresses4)?,
                addresses6: joined(addresses6)?,
                endpoints4: opener.segments(table::ENDPOINTS4)?,
                endpoints6: opener.segments(table::ENDPOINTS6)?,
                endpoint_state: opener.segments(table::ENDPOINT_STATE)?,
                names: joined(names)?,
                tombstones: joined(tombstones)?,
                source_ranges: Table::new(opener.map(table::SOURCE_RANGES)?)?,
                devices: Table::new(opener.map(table::DEVICES)?)?,
                macs: Table::new(opener.map(table::MACS)?)?,
                settings: Table::new(opener.map(table::SETTINGS)?)?,
                flows: Arc::new(FlowShards::new(
                    flows.into_iter().map(joined).collect::<Result<_>>()?,
                    newcomers.into_iter().map(joined).collect::<Result<_>>()?,
                    counters()?,
                )?),
                counters: counters()?,
            })
        })
    }

    /// Whether somebody had tables before. Asked before [`Tables::open`].
    pub fn were_there(pins: &Pins) -> bool {
        pins.map(table::FLOWS4).exists()
    }

    /// Notes every address as one that flows come from, as other programs than these may not have noted theirs: the
    /// sweep finds the addresses that really are, and forgets the others.
    pub fn take_all_for_clients(pins: &Pins) -> Result<()> {
        let clients = Table::<u32, u32>::open(&pins.map(table::CLIENTS))?;
        let all: Vec<u32> = (0..clients.max_entries()).collect();
        clients
            .put_many(&all, &vec![clock::seconds(); all.len()])
            .map_err(|stopped| stopped.error)?;
        Ok(())
    }

    /// Writes the settings if they differ from what the programs read now; whether they did.
    pub fn set_settings(&self, settings: &Settings) -> Result<bool> {
        if self.settings.get(&0)?.as_ref() == Some(settings) {
            return Ok(false);
        }
        self.settings.put(&0, settings, WriteMode::Any)?;
        Ok(true)
    }
}

impl Tables {
    /// Name, entries and capacity of every table that grows, exact at this moment; of the flow
    /// tables at the last look.
    pub fn usage(&self) -> Result<Vec<(&'static str, usize, usize)>> {
        let mut usage = Vec::new();
        let mut note = |name, (entries, capacity): (usize, u32)| {
            usage.push((name, entries, capacity as usize))
        };
        note(table::FRONTENDS4, self.frontends4.usage()?);
        note(table::FRONTENDS6, self.frontends6.usage()?);
        note(table::ADDRESSES4, self.addresses4.usage()?);
        note(table::ADDRESSES6, self.addresses6.usage()?);
        note(table::NAMES, self.names.usage()?);
        note(table::TOMBSTONES, self.tombstones.usage()?);
        note(table::ENDPOINTS4, self.endpoints4.usage());
        note(table::ENDPOINTS6, self.endpoints6.usage());
        note(table::ENDPOINT_STATE, self.endpoint_state.usage());
        usage.extend(
            self.flows
                .usage()
                .iter()
                .map(|flows| (flows.table, flows.entries, flows.limit)),
        );
        Ok(usage)
    }
}

struct Opener<'a> {
    pins: &'a Pins,
    definitions: &'a Arc<Definitions>,
}

impl Opener<'_> {
    fn map(&self, name: &str) -> Result<Map> {
        let definition = self.definitions.table(name)?;
        self.pins
            .open(definition)?
            .ok_or_else(|| Error::Object(format!("table {name} vanished while opening it")))
    }

    fn outer(&self, name: &str) -> Result<Outer> {
        Ok(Outer::new(self.map(name)?, &self.pins.inner())?)
    }

    fn growing<K: lb_ebpf::abi::Record, V: lb_ebpf::abi::Record>(
        &self,
        name: &str,
    ) -> Result<Growing<K, V>> {
        Growing::open(self.outer(name)?, Arc::clone(self.definitions))
    }

    fn addresses<F: Family>(&self, name: &str, filter: &str) -> Result<Addresses<F>>
    where
        F::Addr: lb_ebpf::abi::Record,
    {
        Addresses::open(self.growing(name)?, self.map(filter)?)
    }

    fn node_ports(
        &self,
        frontends4: &Growing<FrontendKey<V4>, Frontend>,
        frontends6: &Growing<FrontendKey<V6>, Frontend>,
    ) -> Result<NodePorts> {
        let (known4, known6) = (frontends4.table().entries()?, frontends6.table().entries()?);
        let known4 = known4.iter().filter_map(|(key, _)| udp_node_port(key));
        let known6 = known6.iter().filter_map(|(key, _)| udp_node_port(key));
        NodePorts::open(self.map(table::UDP_NODE_PORTS)?, known4.chain(known6))
    }

    fn segments<V: lb_ebpf::abi::Record>(&self, name: &str) -> Result<Segments<V>> {
        Segments::open(self.outer(name)?, Arc::clone(self.definitions))
    }
}

impl Definition {
    /// The inner tables' definition of a table of tables.
    pub fn inner_definition(&self) -> Result<&Definition> {
        match &self.inner {
            Some(inner) if self.kind == MapKind::ArrayOfMaps as u32 => Ok(inner),
            _ => Err(Error::Object(format!(
                "table {} of the eBPF object is no table of tables",
                self.name
            ))),
        }
    }
}
