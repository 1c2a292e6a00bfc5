//! From the tables of an earlier agent to a ledger, whatever write that agent died after.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use lb_ebpf::abi::SEGMENT_RECORDS;
use lb_ebpf::abi::endpoint::{Endpoint, EndpointState};
use lb_ebpf::abi::family::{V4, V6};
use lb_ebpf::abi::frontend::{
    Frontend, FrontendKey, HAS_ENDPOINTS, LOCAL_POLICY, NODE_ALLOWED, SOURCE_RANGES,
};
use lb_ebpf::abi::name::ServiceName;
use lb_ebpf::abi::socket::{Tombstone, TombstoneKey};
use lb_ebpf::abi::source_range::SourceRangeKey;

use super::blocks::{Block, Blocks, RECORDS};
use super::claims::FrontendId;
use super::draft::Draft;
use super::ids::{EndpointIds, Ids};
use super::ledger::{Ledger, Timing};
use super::port::HeldPort;
use super::read::{needed, read};
use super::record::{self, Counts};
use super::settle::unwide;
use super::{NO_BLOCK, NO_ID, Plan, Retired, Write};
use crate::model;
use crate::snapshot::{Family, ObjectName};

/// Service port ids above this were never given out by us.
const SANE_IDS: u32 = 1 << 22;

/// Everything the tables hold, as dumped.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct KernelState {
    pub names: Vec<(u32, ServiceName)>,
    pub frontends4: Vec<(FrontendKey<V4>, Frontend)>,
    pub frontends6: Vec<(FrontendKey<V6>, Frontend)>,
    /// Whole segments by number; empty where a segment does not exist.
    pub endpoints4: Vec<Vec<Endpoint<V4>>>,
    pub endpoints6: Vec<Vec<Endpoint<V6>>>,
    /// By endpoint id, all segments in a row.
    pub states: Vec<EndpointState>,
    pub addresses: Vec<(IpAddr, u32)>,
    pub tombstones: Vec<(TombstoneKey, Tombstone)>,
    pub source_ranges: Vec<SourceRangeKey>,
}

impl Ledger {
    /// Takes over tables. The plan tidies what an unfinished plan left that nobody can reach; carry it out,
    /// then [`Ledger::apply`] every Service, then [`Ledger::finish_adoption`]. Where nothing changed, none of
    /// them writes.
    pub fn adopt(state: KernelState, timing: Timing, now: u32) -> (Ledger, Plan) {
        let mut adoption = Adoption {
            ledger: Ledger::new(timing, now),
            ..Adoption::default()
        };
        adoption.used.resize(state.states.len(), false);
        for (address, flags) in &state.addresses {
            adoption.ledger.addresses.adopt(*address, *flags, now);
        }
        adoption.names(&state.names);
        state
            .frontends4
            .iter()
            .for_each(|(key, record)| adoption.frontend(record::id_of(key), *record));
        state
            .frontends6
            .iter()
            .for_each(|(key, record)| adoption.frontend(record::id_of(key), *record));
        adoption.source_ranges(&state.source_ranges);
        adoption.blocks(&state);
        adoption.older_blocks(&state);
        adoption.finish(&state)
    }

    /// All Services have been applied; those not in `seen` are gone from the cluster, and so is everything in
    /// the tables that no Service accounts for.
    pub fn finish_adoption(&mut self, seen: &HashSet<ObjectName>) -> Plan {
        let gone: Vec<ObjectName> = self
            .services
            .keys()
            .filter(|service| !seen.contains(*service))
            .cloned()
            .collect();
        // One plan, in the order of one: frontends of all go before the endpoints of any.
        let mut draft = Draft::default();
        for service in gone {
            self.discharge(&service, &mut draft);
            for id in self.services.remove(&service).unwrap_or_default() {
                self.remove_port(id, &mut draft);
            }
        }
        draft.touched.extend(self.claims.ownerless());
        self.addresses.finish_adoption(self.now);
        self.settle(draft)
    }
}

/// An adoption under way.
#[derive(Default)]
struct Adoption {
    ledger: Ledger,
    draft: Draft,
    /// By endpoint id: some service port has it.
    used: Vec<bool>,
    /// By service port id: the newest of its frontend records.
    newest: HashMap<u32, Frontend>,
    /// Records of frontends that a dying agent did not come to.
    records: Vec<(u32, Frontend)>,
    /// Service port ids that anything names.
    services: HashSet<u32>,
    blocks4: Vec<Block>,
    blocks6: Vec<Block>,
}

impl Adoption {
    fn names(&mut self, names: &[(u32, ServiceName)]) {
        let mut known = HashSet::new();
        for (id, name) in names {
            let parsed = record::parse_name(name).filter(|_| *id < SANE_IDS);
            let Some(name) = parsed.filter(|name| known.insert(name.clone())) else {
                self.draft.names_gone.push(Write::NameGone { id: *id });
                continue;
            };
            let ports = &mut self.ledger.ports;
            if ports.len() <= *id as usize {
                ports.resize_with(*id as usize + 1, || None);
            }
            self.ledger
                .services
                .entry(name.service.clone())
                .or_default()
                .push(*id);
            self.services.insert(*id);
            ports[*id as usize] = Some(Box::new(HeldPort::new(name)));
        }
    }

    fn frontend(&mut self, key: FrontendId, record: Frontend) {
        let id = record.service;
        self.ledger.generation = self.ledger.generation.max(record.generation);
        self.ledger.claims.set_written(key, record);
        self.services.insert(id);
        let port = self
            .ledger
            .ports
            .get_mut(id as usize)
            .and_then(Option::as_mut);
        let family = Family::of(key.address);
        let port = port.filter(|port| {
            port.name.family == family && record::number(port.name.protocol) == key.protocol
        });
        let (Some(port), Some(kind)) = (port, record::kind(record.flags)) else {
            // Nobody claims it, so it goes when all Services are known. Until then its block stays.
            self.block_stays(family, &record);
            return;
        };
        port.frontends.push(model::Frontend {
            address: key.address,
            port: key.port,
            kind,
            local_policy: record.flags & LOCAL_POLICY != 0,
            source_ranges: record.flags & SOURCE_RANGES != 0,
        });
        port.ranges_admit_node |= record.flags & NODE_ALLOWED != 0;
        self.ledger.claims.claim(key, id);
        self.ledger.addresses.claim(key.address, kind);
        let newest = self.newest.entry(id).or_insert(record);
        if newest.generation < record.generation {
            self.records.push((id, std::mem::replace(newest, record)));
        } else if newest.generation != record.generation {
            self.records.push((id, record));
        }
    }

    fn source_ranges(&mut self, keys: &[SourceRangeKey]) {
        for key in keys {
            let id = u32::from_be_bytes(key.prefix.service);
            let range = (
                key.prefix.address,
                key.prefix_length.saturating_sub(32).min(128) as u8,
            );
            match self
                .ledger
                .ports
                .get_mut(id as usize)
                .and_then(Option::as_mut)
            {
                Some(port) => port.ranges.push(range),
                None => self.draft.range(id, range, false),
            }
        }
        for port in self.ledger.ports.iter_mut().flatten() {
            port.ranges.sort_unstable();
        }
    }

    /// What each service port's newest frontend leads to.
    fn blocks(&mut self, state: &KernelState) {
        let newest = std::mem::take(&mut self.newest);
        for (id, record) in &newest {
            let Some(mut port) = self
                .ledger
                .ports
                .get_mut(*id as usize)
                .and_then(Option::take)
            else {
                continue;
            };
            port.frontends.sort_unstable();
            port.affinity_seconds = record.affinity_seconds;
            port.has_any = record.flags & HAS_ENDPOINTS != 0;
            match read(state, port.name.family, *id, record) {
                Some(found) => {
                    port.doubtful = found.doubtful;
                    if found.len > 0 {
                        let block = Block {
                            first: record.block,
                            len: found.len,
                        };
                        self.used_blocks(port.name.family).push(block);
                        port.block = Some(block);
                    }
                    port.counts = Counts {
                        local_count: record.local_count,
                        cluster_first: record.cluster_first,
                        cluster_count: record.cluster_count,
                    };
                    port.endpoints = found.held;
                    self.take_ids(&mut port);
                }
                None => {
                    port.doubtful = true;
                    self.block_stays(port.name.family, record);
                }
            }
            port.needs_block = port.doubtful;
            self.ledger.ports[*id as usize] = Some(port);
        }
        self.newest = newest;
    }

    /// Sorts the endpoints and takes their ids; one that is there twice, or whose id is taken, is dropped.
    fn take_ids(&mut self, port: &mut HeldPort) {
        let before = port.endpoints.len();
        port.endpoints.sort_by_key(|held| (held.address, held.port));
        port.endpoints
            .dedup_by_key(|held| (held.address, held.port));
        let used = &mut self.used;
        port.endpoints
            .retain(|held| match used.get_mut(held.id as usize) {
                Some(used) => !std::mem::replace(used, true),
                None => false,
            });
        port.doubtful |= port.endpoints.len() != before;
        if port.udp() {
            for held in &port.endpoints {
                self.ledger.udp.join(held.key());
            }
        }
    }

    /// Blocks that older frontends of a service port still lead to: they and the ids in them go when the
    /// Service's next plan has rewritten those frontends.
    fn older_blocks(&mut self, state: &KernelState) {
        let mut seen = HashSet::new();
        for (id, record) in std::mem::take(&mut self.records) {
            let block = (
                record.block,
                record.local_count,
                record.cluster_first,
                record.cluster_count,
            );
            let current = self
                .newest
                .get(&id)
                .is_some_and(|newest| newest.block == record.block);
            let Some(port) = self.ledger.port(id) else {
                continue;
            };
            if current || record.block == NO_BLOCK || !seen.insert((port.name.family, block)) {
                continue;
            }
            let (family, service) = (port.name.family, port.name.service.clone());
            let Some(found) = read(state, family, id, &record) else {
                self.block_stays(family, &record);
                continue;
            };
            let block = Block {
                first: record.block,
                len: found.len,
            };
            self.used_blocks(family).push(block);
            let mut retire = Retired::default();
            match family {
                Family::V4 => retire.blocks4.push(block),
                Family::V6 => retire.blocks6.push(block),
            }
            for held in found.held {
                if let Some(used) = self.used.get_mut(held.id as usize).filter(|used| !**used) {
                    *used = true;
                    retire.endpoints.push(held.id);
                }
            }
            self.ledger
                .debts
                .entry(service)
                .or_default()
                .retire
                .append(retire);
        }
    }

    fn finish(self, state: &KernelState) -> (Ledger, Plan) {
        let Self {
            mut ledger,
            mut draft,
            mut used,
            services,
            blocks4,
            blocks6,
            ..
        } = self;
        ledger.addresses.adopted();
        ledger.blocks4 = Blocks::adopt(blocks4);
        ledger.blocks6 = Blocks::adopt(blocks6);
        let next = services
            .iter()
            .filter(|id| **id < SANE_IDS)
            .max()
            .map_or(0, |id| id + 1);
        ledger.service_ids = Ids::adopt(NO_ID, next, |id| services.contains(&id));

        // States that nobody reaches: new ids whose block was never published, old ids of one that was.
        let live = state
            .states
            .iter()
            .rposition(|state| *state != EndpointState::default())
            .map_or(0, |last| last + 1);
        let states = &state.states[..live];
        let orphan = |id: &usize| states[*id].flags != 0 && !used[*id];
        let orphans: Vec<usize> = (0..live).filter(orphan).collect();
        orphans.iter().for_each(|id| used[*id] = true);
        let generations = states.iter().map(|state| state.generation).collect();
        ledger.endpoint_ids = EndpointIds::adopt(generations, |id| {
            used.get(id as usize).copied().unwrap_or(false)
        });
        for id in orphans {
            let id = id as u32;
            ledger.endpoint_ids.raise(id);
            draft.state(id, ledger.endpoint_ids.state(id, 0), true);
            draft.retire.endpoints.push(id);
        }
        let mut debts = std::mem::take(&mut ledger.debts);
        for debt in debts.values_mut() {
            for id in &debt.retire.endpoints {
                ledger.endpoint_ids.raise(*id);
                debt.removals.push(Write::EndpointState {
                    id: *id,
                    state: ledger.endpoint_ids.state(*id, 0),
                });
            }
        }
        ledger.debts = debts;

        for (key, tombstone) in &state.tombstones {
            ledger.tombstones.insert(*key, tombstone.since);
            ledger.addresses.tombstone(unwide(key.address), true);
        }
        ledger.addresses.adopted();
        for (key, _) in &state.tombstones {
            if ledger.udp.has((key.address, key.port)) {
                ledger.lift_tombstone(*key, &mut draft);
            }
        }
        let plan = ledger.settle(draft);
        (ledger, plan)
    }

    /// A block of which we do not know the length is never used again by this run.
    fn block_stays(&mut self, family: Family, record: &Frontend) {
        if record.block != NO_BLOCK {
            // What does not fit into the table tells nothing, and must not take all of it.
            let fits = |len: &u32| *len <= RECORDS.saturating_sub(record.block);
            let len = needed(record)
                .filter(fits)
                .unwrap_or(SEGMENT_RECORDS)
                .max(1);
            self.used_blocks(family).push(Block {
                first: record.block,
                len,
            });
        }
    }

    fn used_blocks(&mut self, family: Family) -> &mut Vec<Block> {
        match family {
            Family::V4 => &mut self.blocks4,
            Family::V6 => &mut self.blocks6,
        }
    }
}
