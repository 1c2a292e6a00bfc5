//! Tables that do what the kernel's do, and readers that do what its programs do.

use lb_ebpf::abi::address::Address6;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_ebpf::abi::endpoint::{Endpoint, EndpointState};
use lb_ebpf::abi::family::{V4, V6};
use lb_ebpf::abi::frontend::Frontend;
use lb_ebpf::abi::name::ServiceName;
use lb_ebpf::abi::socket::Tombstone;
use lb_ebpf::abi::source_range::SourceRangeKey;
use lb_ebpf::abi::{SEGMENT_RECORDS, frontend};

use super::super::claims::FrontendId;
use super::super::{KernelState, NO_ID, Retired, Write, record};

#[derive(Clone, Default, PartialEq, Debug)]
pub(super) struct Fake {
    pub(super) names: BTreeMap<u32, ServiceName>,
    pub(super) frontends: BTreeMap<FrontendId, Frontend>,
    endpoints4: BTreeMap<u32, Endpoint<V4>>,
    endpoints6: BTreeMap<u32, Endpoint<V6>>,
    pub(super) states: BTreeMap<u32, EndpointState>,
    pub(super) addresses: BTreeMap<IpAddr, u32>,
    pub(super) ranges: BTreeSet<(u32, Address6, u8)>,
    pub(super) tombstones: BTreeSet<(Address6, u16)>,
}

/// An endpoint as a program meets it: address, port, record flags, id.
pub(super) type Met = (IpAddr, u16, u16, u32);

/// What a program makes of a frontend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Resolved {
    pub(super) service: u32,
    pub(super) flags: u32,
    pub(super) affinity: u32,
    pub(super) local: BTreeSet<Met>,
    pub(super) cluster: BTreeSet<Met>,
}

impl Fake {
    pub(super) fn execute(&mut self, write: &Write) {
        match write {
            Write::Endpoints4 { first, records } => put(&mut self.endpoints4, *first, records),
            Write::Endpoints6 { first, records } => put(&mut self.endpoints6, *first, records),
            Write::EndpointState { id, state } => {
                self.states.insert(*id, *state);
            }
            Write::Name { id, name } => {
                self.names.insert(*id, **name);
            }
            Write::NameGone { id } => {
                self.names.remove(id);
            }
            Write::Frontend4 { key, frontend } => {
                assert_eq!(frontend.check, frontend::key_check(key));
                self.frontends.insert(record::id_of(key), *frontend);
            }
            Write::Frontend6 { key, frontend } => {
                assert_eq!(frontend.check, frontend::key_check(key));
                self.frontends.insert(record::id_of(key), *frontend);
            }
            Write::Frontend4Gone { key } => {
                self.frontends.remove(&record::id_of(key));
            }
            Write::Frontend6Gone { key } => {
                self.frontends.remove(&record::id_of(key));
            }
            Write::Address { address, flags: 0 } => {
                self.addresses.remove(address);
            }
            Write::Address { address, flags } => {
                self.addresses.insert(*address, *flags);
            }
            Write::SourceRange {
                service,
                address,
                length,
                allowed,
            } => {
                let range = (*service, *address, *length);
                let _ = if *allowed {
                    self.ranges.insert(range)
                } else {
                    self.ranges.remove(&range)
                };
            }
            Write::Tombstone { key, present } => {
                let key = (key.address, key.port);
                let _ = if *present {
                    self.tombstones.insert(key)
                } else {
                    self.tombstones.remove(&key)
                };
            }
        }
    }

    /// Spoils retired blocks: whoever still reaches one is caught.
    pub(super) fn poison(&mut self, retired: &Retired) {
        for block in &retired.blocks4 {
            (block.first..block.first + block.len).for_each(|at| {
                self.endpoints4.remove(&at);
            });
        }
        for block in &retired.blocks6 {
            (block.first..block.first + block.len).for_each(|at| {
                self.endpoints6.remove(&at);
            });
        }
    }

    pub(super) fn resolve(&self) -> BTreeMap<FrontendId, Resolved> {
        self.frontends
            .iter()
            .map(|(key, frontend)| (*key, self.resolve_one(*key, frontend)))
            .collect()
    }

    fn resolve_one(&self, key: FrontendId, frontend: &Frontend) -> Resolved {
        assert_eq!(frontend.generation, frontend.generation_end);
        let set = |first: u32, count: u32| {
            let range = first..first + count;
            range
                .map(|index| self.met(key, frontend, frontend.block.wrapping_add(index)))
                .collect()
        };
        Resolved {
            service: frontend.service,
            flags: frontend.flags,
            affinity: frontend.affinity_seconds,
            local: set(0, frontend.local_count),
            cluster: set(frontend.cluster_first, frontend.cluster_count),
        }
    }

    fn met(&self, key: FrontendId, frontend: &Frontend, at: u32) -> Met {
        let (address, port, flags, id, service): (IpAddr, _, _, _, _) = if key.address.is_ipv4() {
            let e = self.endpoints4.get(&at).expect("a record of a live block");
            (e.address.into(), e.port, e.flags, e.id, e.service)
        } else {
            let e = self.endpoints6.get(&at).expect("a record of a live block");
            (e.address.into(), e.port, e.flags, e.id, e.service)
        };
        assert_eq!(service, frontend.service, "a block of another service port");
        assert_ne!(id, NO_ID);
        (address, port, flags, id)
    }

    /// The tables of a dump.
    pub(super) fn of(state: &KernelState) -> Self {
        let flat4 = state.endpoints4.iter().flatten().copied();
        let flat6 = state.endpoints6.iter().flatten().copied();
        let mut fake = Self {
            names: state.names.iter().copied().collect(),
            endpoints4: (0..).zip(flat4).collect(),
            endpoints6: (0..).zip(flat6).collect(),
            states: (0..).zip(state.states.iter().copied()).collect(),
            addresses: state.addresses.iter().copied().collect(),
            ..Self::default()
        };
        fake.frontends.extend(
            state
                .frontends4
                .iter()
                .map(|(key, record)| (record::id_of(key), *record)),
        );
        fake.frontends.extend(
            state
                .frontends6
                .iter()
                .map(|(key, record)| (record::id_of(key), *record)),
        );
        fake
    }

    /// Nothing that a program can reach.
    pub(super) fn is_idle(&self) -> bool {
        self.names.is_empty()
            && self.frontends.is_empty()
            && self.addresses.is_empty()
            && self.ranges.is_empty()
    }

    pub(super) fn dump(&self) -> KernelState {
        let mut state = KernelState {
            names: self.names.iter().map(|(id, name)| (*id, *name)).collect(),
            endpoints4: segments(&self.endpoints4),
            endpoints6: segments(&self.endpoints6),
            states: dense(&self.states),
            addresses: self
                .addresses
                .iter()
                .map(|(address, flags)| (*address, *flags))
                .collect(),
            ..KernelState::default()
        };
        for (key, record) in &self.frontends {
            match record::frontend(*key, Some(*record)) {
                Write::Frontend4 { key, frontend } => state.frontends4.push((key, frontend)),
                Write::Frontend6 { key, frontend } => state.frontends6.push((key, frontend)),
                other => panic!("{other:?} is no frontend"),
            }
        }
        for (address, port) in &self.tombstones {
            let key = super::TombstoneKey {
                address: *address,
                port: *port,
                protocol: lb_ebpf::abi::UDP,
                zero: 0,
            };
            state.tombstones.push((key, Tombstone { since: 0 }));
        }
        for (service, address, length) in &self.ranges {
            state.source_ranges.push(SourceRangeKey {
                prefix_length: 32 + u32::from(*length),
                prefix: lb_ebpf::abi::source_range::SourceRangePrefix {
                    service: service.to_be_bytes(),
                    address: *address,
                },
            });
        }
        state
    }
}

fn put<R: Copy>(table: &mut BTreeMap<u32, R>, first: u32, records: &[R]) {
    assert_ne!(records.len(), 0, "a block without records");
    table.extend((first..).zip(records.iter().copied()));
}

fn dense<R: Copy + Default>(table: &BTreeMap<u32, R>) -> Vec<R> {
    let end = table.last_key_value().map_or(0, |(last, _)| last + 1);
    let mut all = vec![R::default(); end as usize];
    table
        .iter()
        .for_each(|(at, record)| all[*at as usize] = *record);
    all
}

fn segments<F: lb_ebpf::abi::family::Family>(
    table: &BTreeMap<u32, Endpoint<F>>,
) -> Vec<Vec<Endpoint<F>>> {
    dense(table)
        .chunks(SEGMENT_RECORDS as usize)
        .map(<[_]>::to_vec)
        .collect()
}

/// Addresses and ports of a set.
pub(super) fn names(set: &BTreeSet<Met>) -> Vec<String> {
    set.iter()
        .map(|(address, ..)| address.to_string())
        .collect()
}

/// The 16 bytes of an address.
pub(super) fn wide(address: IpAddr) -> Address6 {
    address.into()
}
