//! The kernel's tables in memory, and what its programs make of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_agent::plan::{KernelState, NO_BLOCK, NO_ID, Write};
use lb_ebpf::abi::address::Address6;
use lb_ebpf::abi::endpoint::{Endpoint, EndpointState};
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::frontend::{Frontend, FrontendKey, key_check};
use lb_ebpf::abi::name::ServiceName;
use lb_ebpf::abi::socket::{Tombstone, TombstoneKey};
use lb_ebpf::abi::source_range::{SourceRangeKey, SourceRangePrefix};
use lb_ebpf::abi::{SEGMENT_RECORDS, UDP};

use crate::oracle::picture::{Dialled, Met, PortName};

/// What the kernel holds.
#[derive(Clone, Default)]
pub struct Tables {
    names: BTreeMap<u32, (PortName, ServiceName)>,
    /// Who had each id last: clients do not need the name.
    owners: BTreeMap<u32, PortName>,
    pub frontends: BTreeMap<Dialled, Frontend>,
    records4: Vec<Endpoint<V4>>,
    records6: Vec<Endpoint<V6>>,
    states: Vec<EndpointState>,
    pub addresses: BTreeMap<IpAddr, u32>,
    pub ranges: BTreeSet<(u32, IpAddr, u8)>,
    /// With the time they were set.
    pub tombstones: BTreeMap<(IpAddr, u16), u32>,
}

/// An endpoint's id with its generation.
pub type Life = (u32, u32);

/// What a client meets at a frontend, as of one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    pub owner: PortName,
    pub service: u32,
    pub flags: u32,
    pub affinity_seconds: u32,
    pub local: BTreeMap<Met, Life>,
    pub cluster: BTreeMap<Met, Life>,
}

impl Tables {
    /// Does what the kernel would. An error is a write no kernel would take, or no program could use.
    pub fn execute(&mut self, write: &Write, now: u32) -> Result<(), String> {
        match write {
            Write::Endpoints4 { first, records } => put(&mut self.records4, *first, records)?,
            Write::Endpoints6 { first, records } => put(&mut self.records6, *first, records)?,
            Write::EndpointState { id, state } => {
                if self.states.len() <= *id as usize {
                    self.states
                        .resize(*id as usize + 1, EndpointState::default());
                }
                self.states[*id as usize] = *state;
            }
            Write::Name { id, name } => {
                let read = read_name(name).ok_or("a name that cannot be read back")?;
                self.owners.insert(*id, read.clone());
                self.names.insert(*id, (read, **name));
            }
            Write::NameGone { id } => drop(self.names.remove(id)),
            Write::Frontend4 { key, frontend } => self.publish(key, frontend)?,
            Write::Frontend6 { key, frontend } => self.publish(key, frontend)?,
            Write::Frontend4Gone { key } => drop(self.frontends.remove(&dialled(key))),
            Write::Frontend6Gone { key } => drop(self.frontends.remove(&dialled(key))),
            Write::Address { address, flags: 0 } => drop(self.addresses.remove(address)),
            Write::Address { address, flags } => drop(self.addresses.insert(*address, *flags)),
            Write::SourceRange {
                service,
                address,
                length,
                allowed,
            } => {
                let range = (*service, IpAddr::from(*address), *length);
                if *allowed {
                    self.ranges.insert(range);
                } else {
                    self.ranges.remove(&range);
                }
            }
            Write::Tombstone { key, present } => {
                let key = (IpAddr::from(key.address), key.port);
                if *present {
                    self.tombstones.insert(key, now);
                } else {
                    self.tombstones.remove(&key);
                }
            }
        }
        Ok(())
    }

    fn publish<F: Family>(
        &mut self,
        key: &FrontendKey<F>,
        frontend: &Frontend,
    ) -> Result<(), String>
    where
        IpAddr: From<F::Addr>,
    {
        if frontend.check != key_check(key) || frontend.generation != frontend.generation_end {
            return Err("a frontend's record that no program takes for whole".into());
        }
        self.frontends.insert(dialled(key), *frontend);
        Ok(())
    }

    /// What a client meets there; `None` if nothing is there.
    pub fn resolve(&self, dialled: &Dialled) -> Result<Option<Resolved>, String> {
        let Some(frontend) = self.frontends.get(dialled) else {
            return Ok(None);
        };
        let owner = self.owners.get(&frontend.service);
        let owner = owner.ok_or_else(|| format!("{dialled:?} leads to a nameless service"))?;
        let set = |first: u32, count: u32| -> Result<BTreeMap<Met, Life>, String> {
            let records = first..first + count;
            let met: BTreeMap<_, _> = records
                .map(|place| self.met(dialled, frontend, place))
                .collect::<Result<_, _>>()?;
            if met.len() == count as usize {
                Ok(met)
            } else {
                Err(format!("{dialled:?} meets an endpoint twice: {met:?}"))
            }
        };
        Ok(Some(Resolved {
            owner: owner.clone(),
            service: frontend.service,
            flags: frontend.flags,
            affinity_seconds: frontend.affinity_seconds,
            local: set(0, frontend.local_count)?,
            cluster: set(frontend.cluster_first, frontend.cluster_count)?,
        }))
    }

    /// All that a frontend's record leads to, in order.
    pub fn all_met(&self, at: &Dialled, frontend: &Frontend) -> Result<Vec<Met>, String> {
        let used = frontend
            .local_count
            .max(frontend.cluster_first + frontend.cluster_count);
        let met = (0..used).map(|place| self.met(at, frontend, place));
        met.map(|met| met.map(|(met, _)| met)).collect()
    }

    fn met(&self, at: &Dialled, frontend: &Frontend, place: u32) -> Result<(Met, Life), String> {
        let index = frontend.block.wrapping_add(place) as usize;
        let record = match at.address {
            IpAddr::V4(_) => self.records4.get(index).map(parts),
            IpAddr::V6(_) => self.records6.get(index).map(parts),
        };
        match record {
            Some((met, id, service)) if service == frontend.service && id != NO_ID => {
                Ok((met, (id, self.state(id).generation)))
            }
            other => Err(format!("{at:?} meets no endpoint of its own: {other:?}")),
        }
    }

    pub fn state(&self, id: u32) -> EndpointState {
        self.states.get(id as usize).copied().unwrap_or_default()
    }

    /// Ids with flags.
    pub fn live_states(&self) -> impl Iterator<Item = (u32, EndpointState)> {
        (0..)
            .zip(self.states.iter().copied())
            .filter(|(_, state)| state.flags != 0)
    }

    pub fn names(&self) -> impl Iterator<Item = (u32, &PortName)> {
        self.names.iter().map(|(id, (name, _))| (*id, name))
    }

    /// The frontends whose records a write of endpoints would change under them.
    pub fn trodden(&self, v4: bool, first: u32, count: u32) -> Option<&Dialled> {
        let written = first..first + count;
        let of_family = self
            .frontends
            .iter()
            .filter(|(at, _)| at.address.is_ipv4() == v4);
        let mut trodden = of_family.filter(|(_, frontend)| {
            let used = frontend
                .local_count
                .max(frontend.cluster_first + frontend.cluster_count);
            frontend.block != NO_BLOCK
                && frontend.block < written.end
                && written.start < frontend.block + used
        });
        trodden.next().map(|(at, _)| at)
    }

    /// As an agent that starts reads it.
    pub fn dump(&self) -> KernelState {
        let mut state = KernelState {
            names: self
                .names
                .iter()
                .map(|(id, (_, name))| (*id, *name))
                .collect(),
            endpoints4: self
                .records4
                .chunks(SEGMENT_RECORDS as usize)
                .map(<[_]>::to_vec)
                .collect(),
            endpoints6: self
                .records6
                .chunks(SEGMENT_RECORDS as usize)
                .map(<[_]>::to_vec)
                .collect(),
            states: self.states.clone(),
            addresses: self
                .addresses
                .iter()
                .map(|(ip, flags)| (*ip, *flags))
                .collect(),
            ..KernelState::default()
        };
        for (at, frontend) in &self.frontends {
            match at.address {
                IpAddr::V4(v4) => state.frontends4.push((table_key(at, v4.into()), *frontend)),
                IpAddr::V6(v6) => state.frontends6.push((table_key(at, v6.into()), *frontend)),
            }
        }
        state
            .tombstones
            .extend(self.tombstones.iter().map(|((address, port), since)| {
                let key = TombstoneKey {
                    address: Address6::from(*address),
                    port: *port,
                    protocol: UDP,
                    zero: 0,
                };
                (key, Tombstone { since: *since })
            }));
        state
            .source_ranges
            .extend(
                self.ranges
                    .iter()
                    .map(|(service, address, length)| SourceRangeKey {
                        prefix_length: 32 + u32::from(*length),
                        prefix: SourceRangePrefix {
                            service: service.to_be_bytes(),
                            address: Address6::from(*address),
                        },
                    }),
            );
        state
    }
}

fn put<F: Family>(
    table: &mut Vec<Endpoint<F>>,
    first: u32,
    records: &[Endpoint<F>],
) -> Result<(), String> {
    let end = first + records.len() as u32;
    if records.is_empty() {
        return Err(format!("a write of no records, from {first}"));
    }
    if table.len() < end as usize {
        table.resize(end as usize, Endpoint::default());
    }
    table[first as usize..end as usize].copy_from_slice(records);
    Ok(())
}

fn parts<F: Family>(record: &Endpoint<F>) -> (Met, u32, u32)
where
    IpAddr: From<F::Addr>,
{
    let met = (IpAddr::from(record.address), record.port, record.flags);
    (met, record.id, record.service)
}

fn table_key<F: Family>(at: &Dialled, address: F::Addr) -> FrontendKey<F> {
    FrontendKey {
        address,
        port: at.port,
        protocol: at.protocol,
        zero: 0,
    }
}

/// What a key of the table means.
pub fn dialled<F: Family>(key: &FrontendKey<F>) -> Dialled
where
    IpAddr: From<F::Addr>,
{
    Dialled {
        address: key.address.into(),
        port: key.port,
        protocol: key.protocol,
    }
}

fn read_name(name: &ServiceName) -> Option<PortName> {
    let text = |bytes: &[u8; 64]| {
        let text = bytes.split(|byte| *byte == 0).next()?;
        String::from_utf8(text.to_vec()).ok()
    };
    Some(PortName {
        namespace: text(&name.namespace)?,
        service: text(&name.name)?,
        port: text(&name.port)?,
        protocol: name.protocol,
        family: name.family,
    })
}
