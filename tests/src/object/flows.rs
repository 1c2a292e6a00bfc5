//! The tables that the programs alone write: flows, fragments, affinity. Read, aged and emptied for tests.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use lb_agent::datapath::pins::Pins;
use lb_agent::sys::bpf::{Map, Outer, Table, WriteMode};
use lb_agent::sys::clock;
use lb_ebpf::abi::affinity::{Affinity, AffinityKey, CLUSTER, netns_client};
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::flow::{Flow, FlowKey, key_check};
use lb_ebpf::abi::fragment::{Fragment, FragmentKey};
use lb_ebpf::abi::outbound::{Outbound, OutboundKey};
use lb_ebpf::abi::{FLOW_SHARDS, Record, table};
use lb_ebpf::noted::mark;

/// A flow as a test wants to see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeenFlow {
    pub client: SocketAddr,
    pub dialled: SocketAddr,
    pub protocol: u8,
    pub scope: u8,
    pub new_source: SocketAddr,
    pub new_destination: SocketAddr,
    pub state: u8,
    pub flags: u8,
    pub created: u32,
    pub last_seen: u32,
}

/// Shards of one flow table.
type Shards<F, V> = Vec<Table<FlowKey<F>, V>>;

#[derive(Debug)]
pub(super) struct FlowTables {
    flows4: Shards<V4, Flow<V4>>,
    flows6: Shards<V6, Flow<V6>>,
    replies4: Shards<V4, FlowKey<V4>>,
    replies6: Shards<V6, FlowKey<V6>>,
    fragments: Table<FragmentKey, Fragment>,
    outbound: Table<OutboundKey, Outbound>,
    affinity: Table<AffinityKey, Affinity>,
}

impl FlowTables {
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        Ok(Self {
            flows4: shards(pins, table::FLOWS4)?,
            flows6: shards(pins, table::FLOWS6)?,
            replies4: shards(pins, table::REPLIES4)?,
            replies6: shards(pins, table::REPLIES6)?,
            fragments: Table::open(&pins.map(table::FRAGMENTS))?,
            outbound: Table::open(&pins.map(table::OUTBOUND))?,
            affinity: Table::open(&pins.map(table::AFFINITY))?,
        })
    }

    pub(super) fn clear(&self) -> Result<()> {
        clear(&self.flows4)?;
        clear(&self.flows6)?;
        clear(&self.replies4)?;
        clear(&self.replies6)?;
        for (key, _) in self.fragments.entries()? {
            self.fragments.delete(&key)?;
        }
        for (key, _) in self.outbound.entries()? {
            self.outbound.delete(&key)?;
        }
        for (key, _) in self.affinity.entries()? {
            self.affinity.delete(&key)?;
        }
        Ok(())
    }

    pub(super) fn seen(&self) -> Result<Vec<SeenFlow>> {
        let mut seen = see(&self.flows4)?;
        seen.extend(see(&self.flows6)?);
        Ok(seen)
    }

    pub(super) fn halves(&self) -> Result<(usize, usize)> {
        let flows = entries(&self.flows4)? + entries(&self.flows6)?;
        Ok((flows, entries(&self.replies4)? + entries(&self.replies6)?))
    }

    pub(super) fn marked(&self) -> Result<usize> {
        Ok(marked(&self.replies4)? + marked(&self.replies6)?)
    }

    /// Makes the marks those of eight seconds ago.
    pub(super) fn let_marks_lapse(&self) -> Result<()> {
        remark(&self.replies4, lapsed)?;
        remark(&self.replies6, lapsed)
    }

    pub(super) fn lose_records(&self) -> Result<()> {
        clear(&self.flows4)?;
        clear(&self.flows6)
    }

    pub(super) fn fragmented(&self) -> Result<usize> {
        Ok(self.fragments.entries()?.len())
    }

    /// Makes every conversation from a NodePort's port look as if its last packet had left `seconds` ago.
    pub(super) fn rest_outbound(&self, seconds: u32) -> Result<()> {
        let last_seen = ago(seconds);
        for (key, _) in self.outbound.entries()? {
            self.outbound
                .put(&key, &Outbound { last_seen }, WriteMode::Any)?;
        }
        Ok(())
    }

    pub(super) fn rest(&self, seconds: u32) -> Result<()> {
        let second = ago(seconds);
        age(&self.flows4, second)?;
        age(&self.flows6, second)?;
        // What answers left in their entries goes with the time, too.
        remark(&self.replies4, |_, _| 0)?;
        remark(&self.replies6, |_, _| 0)
    }

    /// Enters as many strangers as there is room for.
    pub(super) fn fill_affinity(&self) -> Result<()> {
        let room = self.affinity.max_entries() - self.affinity.count()? as u32;
        let keys: Vec<AffinityKey> = (1..=room)
            .map(|number| AffinityKey {
                client: netns_client(number.into()),
                service: u32::MAX,
                set: CLUSTER,
            })
            .collect();
        // For ever, or the sweep makes room.
        let record = Affinity {
            last_used: clock::seconds(),
            timeout: u32::MAX,
            ..Affinity::default()
        };
        let values = vec![record; keys.len()];
        Ok(self
            .affinity
            .put_many(&keys, &values)
            .map_err(|stopped| stopped.error)?)
    }

    pub(super) fn rest_affinity(&self, seconds: u32) -> Result<()> {
        let second = ago(seconds);
        for (key, record) in self.affinity.entries()? {
            let record = Affinity {
                last_used: second,
                ..record
            };
            self.affinity.put(&key, &record, WriteMode::Any)?;
        }
        Ok(())
    }
}

fn shards<K: Record, V: Record>(pins: &Pins, name: &str) -> Result<Vec<Table<K, V>>> {
    let outer = Outer::new(Map::open(&pins.map(name))?, &pins.inner())?;
    let mut shards = Vec::new();
    for slot in 0..2 * FLOW_SHARDS {
        if let Some(map) = outer.open_inner(slot)? {
            shards.push(Table::new(map)?);
        }
    }
    Ok(shards)
}

fn clear<F: Family, V: Record>(shards: &Shards<F, V>) -> Result<()>
where
    FlowKey<F>: Record,
{
    for shard in shards {
        for (key, _) in shard.entries()? {
            shard.delete(&key)?;
        }
    }
    Ok(())
}

fn entries<F: Family, V: Record>(shards: &Shards<F, V>) -> Result<usize>
where
    FlowKey<F>: Record,
{
    let counts = shards.iter().map(|shard| Ok(shard.entries()?.len()));
    counts.sum()
}

fn marked<F: Family>(shards: &Shards<F, FlowKey<F>>) -> Result<usize>
where
    FlowKey<F>: Record,
{
    let counts = shards.iter().map(|shard| {
        let entries = shard.entries()?;
        Ok(entries.iter().filter(|(_, entry)| entry.noted != 0).count())
    });
    counts.sum()
}

fn age<F: Family>(shards: &Shards<F, Flow<F>>, second: u32) -> Result<()>
where
    FlowKey<F>: Record,
    Flow<F>: Record,
{
    for shard in shards {
        for (key, flow) in shard.entries()? {
            // It was as long ago that the first packet came before the last one.
            let age = flow.last_seen.saturating_sub(flow.created);
            let flow = Flow {
                created: second.saturating_sub(age),
                last_seen: second,
                ..flow
            };
            shard.put(&key, &flow, WriteMode::Any)?;
        }
    }
    Ok(())
}

/// Gives every reply entry the mark that `of` says.
fn remark<F: Family>(
    shards: &Shards<F, FlowKey<F>>,
    of: impl Fn(&FlowKey<F>, &FlowKey<F>) -> u16,
) -> Result<()>
where
    FlowKey<F>: Record,
{
    for shard in shards {
        for (key, entry) in shard.entries()? {
            let noted = of(&key, &entry);
            shard.put(&key, &FlowKey { noted, ..entry }, WriteMode::Any)?;
        }
    }
    Ok(())
}

/// The mark that an entry had eight seconds ago.
fn lapsed<F: Family>(key: &FlowKey<F>, entry: &FlowKey<F>) -> u16 {
    mark(key_check(key), entry, ago(8))
}

fn see<F: Family>(shards: &Shards<F, Flow<F>>) -> Result<Vec<SeenFlow>>
where
    FlowKey<F>: Record,
    Flow<F>: Record,
{
    let end = |address: F::Addr, port: u16| SocketAddr::new(IpAddr::from(F::wide(address)), port);
    let mut seen = Vec::new();
    for shard in shards {
        seen.extend(shard.entries()?.into_iter().map(|(key, flow)| SeenFlow {
            client: end(key.source, key.source_port),
            dialled: end(key.destination, key.destination_port),
            protocol: key.protocol,
            scope: key.scope,
            new_source: end(flow.new_source, flow.new_source_port),
            new_destination: end(flow.new_destination, flow.new_destination_port),
            state: flow.state,
            flags: flow.flags,
            created: flow.created,
            last_seen: flow.last_seen,
        }));
    }
    Ok(seen)
}

/// A moment in the past, as the programs' clock has it.
fn ago(seconds: u32) -> u32 {
    let now = clock::seconds();
    assert!(now > seconds, "the machine runs for only {now} s");
    now - seconds
}
