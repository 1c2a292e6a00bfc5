//! The mirror of the kernel's tables, and the verbs that change it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use lb_ebpf::abi::frontend::Frontend;
use lb_ebpf::abi::socket::TombstoneKey;

use super::addresses::{Addresses, NodeAddresses};
use super::blocks::{Block, Blocks};
use super::claims::{Claims, FrontendId};
use super::draft::Draft;
use super::ids::{EndpointIds, Ids};
use super::port::HeldPort;
use super::record;
use super::udp::UdpEndpoints;
use super::{NO_ID, Plan, Retired, Write};
use crate::model::{ServicePort, ServicePortId};
use crate::snapshot::{Family, ObjectName};

/// Addresses without a Service that flows are still looked up for, at most: a quarter of what their table may hold.
const MOST_LINGERING: usize = 1 << 18;

/// How long things outlive their Service or endpoint, in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// An address of which the last Service went is still looked up for flows this long: as long as a flow
    /// may be silent and live.
    pub linger: u32,
    /// Packets to a vanished UDP endpoint are answered with port-unreachable this long.
    pub tombstone: u32,
}

impl Default for Timing {
    /// Netfilter's time-out of an established TCP connection, five days; ten minutes.
    fn default() -> Self {
        Self {
            linger: 432_000,
            tombstone: 600,
        }
    }
}

/// What the kernel's tables hold. See the module documentation of `plan` for the protocol.
#[derive(Debug)]
pub struct Ledger {
    pub(super) timing: Timing,
    /// Seconds, as of the last tick.
    pub(super) now: u32,
    /// Indexed by service port id.
    pub(super) ports: Vec<Option<Box<HeldPort>>>,
    pub(super) service_ids: Ids,
    pub(super) services: HashMap<ObjectName, Vec<u32>>,
    pub(super) claims: Claims,
    pub(super) addresses: Addresses,
    pub(super) endpoint_ids: EndpointIds,
    pub(super) blocks4: Blocks,
    pub(super) blocks6: Blocks,
    pub(super) udp: UdpEndpoints,
    /// With the time they were set.
    pub(super) tombstones: HashMap<TombstoneKey, u32>,
    /// Number of the last frontend write.
    pub(super) generation: u32,
    pub(super) debts: HashMap<ObjectName, Debt>,
}

/// What a failed plan left undone for one Service.
#[derive(Debug, Default)]
pub(super) struct Debt {
    pub(super) removals: Vec<Write>,
    pub(super) frontends: Vec<FrontendId>,
    /// Addresses whose flags wait for the frontends behind them.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) retire: Retired,
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new(Timing::default(), 0)
    }
}

impl Ledger {
    /// The mirror of empty tables. `now` is the tables' clock (`lb_ebpf::clock`).
    pub fn new(timing: Timing, now: u32) -> Self {
        Self {
            timing,
            now,
            ports: Vec::new(),
            service_ids: Ids::new(NO_ID),
            services: HashMap::new(),
            claims: Claims::default(),
            addresses: Addresses::default(),
            endpoint_ids: EndpointIds::default(),
            blocks4: Blocks::default(),
            blocks6: Blocks::default(),
            udp: UdpEndpoints::default(),
            tombstones: HashMap::new(),
            generation: 0,
            debts: HashMap::new(),
        }
    }

    /// Makes the tables hold `desired` for `service`: all its service ports; those not named are removed.
    pub fn apply(&mut self, service: &ObjectName, desired: Vec<ServicePort>) -> Plan {
        let mut draft = Draft::default();
        let held = self.services.remove(service).unwrap_or_default();
        let mut kept = Vec::with_capacity(desired.len());
        // By name and by id: a Service may have as many ports as an object has room for.
        let mut known = HashMap::with_capacity(held.len());
        let mut staying = HashSet::with_capacity(desired.len());
        for id in &held {
            if let Some(port) = self.port(*id) {
                known.entry(port.name.clone()).or_insert(*id);
            }
        }
        for want in desired
            .into_iter()
            .filter(|want| want.id.service == *service)
        {
            let name = want.id.clone();
            let found = known.get(&name).copied();
            if let Some(id) = self.apply_port(found, want, &mut draft)
                && staying.insert(id)
            {
                known.insert(name, id);
                kept.push(id);
            }
        }
        for id in held.into_iter().filter(|id| !staying.contains(id)) {
            self.remove_port(id, &mut draft);
        }
        if !kept.is_empty() {
            self.services.insert(service.clone(), kept);
        }
        // So far only want of room is a problem. Where a service port found none, its frontends go on leading to what
        // the debt keeps.
        if draft.problems.is_empty() {
            self.discharge(service, &mut draft);
        }
        self.settle(draft)
    }

    /// Removes all of `service`. For its own clients no UDP endpoint gets a tombstone: it may live on behind other names.
    pub fn remove_service(&mut self, service: &ObjectName) -> Plan {
        self.apply(service, Vec::new())
    }

    /// Tells this node's addresses.
    pub fn set_node_addresses(&mut self, node: &NodeAddresses<'_>) -> Plan {
        let draft = Draft::default();
        self.addresses.set_node(node);
        self.settle(draft)
    }

    /// Ends what has outlived its time; carries removals that failed. `now` is the tables' clock.
    pub fn tick(&mut self, now: u32) -> Plan {
        self.now = now;
        let mut draft = Draft::default();
        self.addresses
            .end_lingering(now.checked_sub(self.timing.linger), MOST_LINGERING);
        if let Some(deadline) = now.checked_sub(self.timing.tombstone) {
            let old = self
                .tombstones
                .iter()
                .filter(|(_, since)| **since <= deadline)
                .map(|(key, _)| *key);
            for key in old.collect::<Vec<_>>() {
                self.lift_tombstone(key, &mut draft);
                self.udp.told((key.address, key.port));
            }
        }
        let gone = self
            .debts
            .keys()
            .filter(|service| !self.services.contains_key(*service))
            .cloned();
        for service in gone.collect::<Vec<_>>() {
            self.discharge(&service, &mut draft);
        }
        self.settle(draft)
    }

    /// Frees what a plan retired. Only after its writes are done and a grace period is over.
    pub fn release(&mut self, retired: Retired) {
        let Retired {
            blocks4,
            blocks6,
            endpoints,
            services,
        } = retired;
        blocks4
            .into_iter()
            .for_each(|block| self.blocks4.release(block));
        blocks6
            .into_iter()
            .for_each(|block| self.blocks6.release(block));
        endpoints
            .into_iter()
            .for_each(|id| self.endpoint_ids.release(id));
        services
            .into_iter()
            .for_each(|id| self.service_ids.release(id));
    }

    /// A plan could not be carried out: `unwritten` are the write that failed and those after it, `retire` is
    /// the plan's. `service` is the one it was made for, `None` for plans of addresses, ticks and adoption.
    pub fn failed(&mut self, service: Option<&ObjectName>, unwritten: Vec<Write>, retire: Retired) {
        let mut debt = Debt {
            retire,
            ..Debt::default()
        };
        let mut blocks = HashSet::new();
        for write in unwritten {
            match &write {
                Write::Frontend4 { key, .. } | Write::Frontend4Gone { key } => {
                    debt.frontends.push(record::id_of(key))
                }
                Write::Frontend6 { key, .. } | Write::Frontend6Gone { key } => {
                    debt.frontends.push(record::id_of(key))
                }
                Write::Address { address, .. } => {
                    self.addresses.doubt(*address);
                    debt.addresses.push(*address);
                }
                Write::EndpointState { state, .. } if state.flags == 0 => debt.removals.push(write),
                Write::SourceRange { allowed: false, .. }
                | Write::NameGone { .. }
                | Write::Tombstone { .. } => {
                    debt.removals.push(write);
                }
                // Part of a service port that is written anew as a whole.
                Write::EndpointState { .. }
                | Write::SourceRange { allowed: true, .. }
                | Write::Name { .. } => {}
                Write::Endpoints4 { first, .. } => drop(blocks.insert((Family::V4, *first))),
                Write::Endpoints6 { first, .. } => drop(blocks.insert((Family::V6, *first))),
            }
        }
        for key in &debt.frontends {
            // Equals no record we write, so it is written or removed the next time.
            self.claims.set_written(
                *key,
                Frontend {
                    service: NO_ID,
                    ..Frontend::default()
                },
            );
        }
        // Without a Service only ticks pay, under a name that no Service has.
        let nobody = || ObjectName {
            namespace: "".into(),
            name: "".into(),
        };
        let service = service.cloned().unwrap_or_else(nobody);
        for id in self.services.get(&service).into_iter().flatten() {
            let Some(port) = self.ports.get_mut(*id as usize).and_then(Option::as_mut) else {
                continue;
            };
            port.doubtful = true;
            // Frontends come after their blocks, so none leads to one that was not written: it is free at once. Kept
            // with the debt, one for every try, such blocks would fill the table.
            let family = port.name.family;
            let unwritten = |block: &Block| blocks.contains(&(family, block.first));
            if let Some(block) = port.block.take_if(|block| unwritten(block)) {
                port.needs_block = true;
                match family {
                    Family::V4 => self.blocks4.release(block),
                    Family::V6 => self.blocks6.release(block),
                }
            }
        }
        self.owe(service, debt);
    }

    pub(super) fn owe(&mut self, service: ObjectName, mut debt: Debt) {
        let owed = self.debts.entry(service).or_default();
        owed.removals.append(&mut debt.removals);
        owed.frontends.append(&mut debt.frontends);
        owed.addresses.append(&mut debt.addresses);
        owed.retire.append(debt.retire);
    }

    /// Name of a service port id.
    pub fn service_port(&self, id: u32) -> Option<&ServicePortId> {
        self.port(id).map(|port| &port.name)
    }

    /// Service ports in the tables.
    pub fn service_ports(&self) -> usize {
        self.services.values().map(Vec::len).sum()
    }

    /// Endpoints that clients can get, each as often as service ports have it.
    pub fn endpoints(&self) -> usize {
        let ports = self.ports.iter().flatten();
        let held = ports.flat_map(|port| &port.endpoints);
        held.filter(|endpoint| endpoint.id != NO_ID).count()
    }

    pub(super) fn port(&self, id: u32) -> Option<&HeldPort> {
        self.ports.get(id as usize)?.as_deref()
    }

    pub(super) fn discharge(&mut self, service: &ObjectName, draft: &mut Draft) {
        if let Some(debt) = self.debts.remove(service) {
            draft.outstanding.extend(debt.removals);
            debt.addresses
                .into_iter()
                .for_each(|address| self.addresses.settle(address));
            draft.touched.extend(debt.frontends);
            draft.retire.append(debt.retire);
        }
    }
}
