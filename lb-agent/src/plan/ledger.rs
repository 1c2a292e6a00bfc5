//! The mirror of the kernel's tables, and the verbs that change it.

use std::collections::HashMap;
use std::net::IpAddr;

use lb_ebpf::abi::SEGMENT_RECORDS;
use lb_ebpf::abi::family::{V4, V6};
use lb_ebpf::abi::frontend::Frontend;
use lb_ebpf::abi::socket::TombstoneKey;

use super::addresses::Addresses;
use super::blocks::{Block, Blocks};
use super::claims::{Claims, FrontendId};
use super::draft::Draft;
use super::ids::{EndpointIds, Ids};
use super::port::{Held, HeldPort, Merge, USED, ranges};
use super::record::{self, Counts};
use super::{NO_ID, Plan, Problem, Retired, Write};
use crate::model::{self, ServicePort, ServicePortId};
use crate::snapshot::{Family, ObjectName};

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
    /// How many service ports have a UDP endpoint, by address and port.
    pub(super) udp_users: HashMap<([u8; 16], u16), u32>,
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
            udp_users: HashMap::new(),
            tombstones: HashMap::new(),
            generation: 0,
            debts: HashMap::new(),
        }
    }

    /// Makes the tables hold `desired` for `service`: all its service ports; those not named are removed.
    pub fn apply(&mut self, service: &ObjectName, desired: Vec<ServicePort>) -> Plan {
        let mut draft = self.draft(Some(service));
        let held = self.services.remove(service).unwrap_or_default();
        let mut kept = Vec::with_capacity(desired.len());
        for want in desired
            .into_iter()
            .filter(|want| want.id.service == *service)
        {
            let named = |id: &u32| self.port(*id).is_some_and(|port| port.name == want.id);
            let found = held.iter().chain(&kept).copied().find(named);
            let id = self.apply_port(found, want, &mut draft);
            kept.extend(id.filter(|id| !kept.contains(id)));
        }
        for id in held.into_iter().filter(|id| !kept.contains(id)) {
            self.remove_port(id, &mut draft);
        }
        if !kept.is_empty() {
            self.services.insert(service.clone(), kept);
        }
        self.settle(draft)
    }

    /// Removes all of `service`. Its UDP endpoints get no tombstones: they may live on behind other names.
    pub fn remove_service(&mut self, service: &ObjectName) -> Plan {
        self.apply(service, Vec::new())
    }

    /// Tells this node's addresses: those NodePorts are served on, and all of them.
    pub fn set_node_addresses(&mut self, nodeport: &[IpAddr], local: &[IpAddr]) -> Plan {
        let draft = self.draft(None);
        self.addresses.set_node(nodeport, local);
        self.settle(draft)
    }

    /// Ends what has outlived its time; carries removals that failed. `now` is the tables' clock.
    pub fn tick(&mut self, now: u32) -> Plan {
        self.now = now;
        let mut draft = self.draft(None);
        if let Some(deadline) = now.checked_sub(self.timing.linger) {
            self.addresses.end_lingering(deadline);
        }
        if let Some(deadline) = now.checked_sub(self.timing.tombstone) {
            let old = self
                .tombstones
                .iter()
                .filter(|(_, since)| **since <= deadline)
                .map(|(key, _)| *key);
            for key in old.collect::<Vec<_>>() {
                self.lift_tombstone(key, &mut draft);
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
    /// the plan's. `service` is the one it was made for, `None` for plans of addresses and ticks.
    pub fn failed(&mut self, service: Option<&ObjectName>, unwritten: Vec<Write>, retire: Retired) {
        let mut debt = Debt {
            retire,
            ..Debt::default()
        };
        for write in unwritten {
            match &write {
                Write::Frontend4 { key, .. } | Write::Frontend4Gone { key } => {
                    debt.frontends.push(record::id_of(key))
                }
                Write::Frontend6 { key, .. } | Write::Frontend6Gone { key } => {
                    debt.frontends.push(record::id_of(key))
                }
                Write::Address { address, .. } => self.addresses.doubt(*address),
                Write::EndpointState { state, .. } if state.flags == 0 => debt.removals.push(write),
                Write::SourceRange { allowed: false, .. }
                | Write::NameGone { .. }
                | Write::Tombstone { .. } => {
                    debt.removals.push(write);
                }
                // Part of a service port that is written anew as a whole.
                Write::EndpointState { .. }
                | Write::SourceRange { allowed: true, .. }
                | Write::Name { .. }
                | Write::Endpoints4 { .. }
                | Write::Endpoints6 { .. } => {}
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
            if let Some(port) = self.ports.get_mut(*id as usize).and_then(Option::as_mut) {
                port.doubtful = true;
            }
        }
        let owed = self.debts.entry(service).or_default();
        owed.removals.append(&mut debt.removals);
        owed.frontends.append(&mut debt.frontends);
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

    pub(super) fn port(&self, id: u32) -> Option<&HeldPort> {
        self.ports.get(id as usize)?.as_deref()
    }

    fn draft(&mut self, service: Option<&ObjectName>) -> Draft {
        let mut draft = Draft::default();
        if let Some(service) = service {
            self.discharge(service, &mut draft);
        }
        draft
    }

    fn discharge(&mut self, service: &ObjectName, draft: &mut Draft) {
        if let Some(debt) = self.debts.remove(service) {
            draft.outstanding.extend(debt.removals);
            draft
                .touched
                .extend(debt.frontends.into_iter().map(|key| (key, false)));
            draft.retire.append(debt.retire);
        }
    }

    /// Returns the id, `None` if there is none and will be none.
    fn apply_port(
        &mut self,
        found: Option<u32>,
        want: ServicePort,
        draft: &mut Draft,
    ) -> Option<u32> {
        let port = found.and_then(|id| self.port(id));
        let doubtful = port.is_some_and(|port| port.doubtful);
        let udp = want.id.protocol == crate::snapshot::Protocol::Udp;
        let merge = Merge::of(
            port.map_or(&[], |port| &port.endpoints),
            &want.endpoints,
            udp,
        );
        let rewrite = merge.block_changed || doubtful;
        let block = match self.room(&merge, rewrite, &want.id) {
            Ok(block) => block,
            Err(problem) => {
                draft.problems.push(problem);
                return found;
            }
        };
        let id = match found {
            Some(id) => id,
            None => self.add_port(&want.id)?,
        };
        if found.is_none() || doubtful {
            draft.names.push(Write::Name {
                id,
                name: Box::new(record::name(&want.id)),
            });
        }
        let mut port = self.ports[id as usize].take()?;
        port.doubtful = false;
        self.update_endpoints(&mut port, merge, doubtful, draft);
        if rewrite {
            self.publish(&mut port, id, block, draft);
        }
        update_ranges(&mut port, id, ranges(&want), doubtful, draft);
        port.affinity_seconds = want.affinity_seconds;
        port.has_any = want.has_any;
        port.ranges_admit_node = want.ranges_admit_node;
        // The snapshot's own strings: those read from the kernel would be a second copy.
        port.name = want.id;
        self.update_frontends(&mut port, id, want.frontends, draft);
        self.ports[id as usize] = Some(port);
        Some(id)
    }

    /// Makes sure that nothing can fail half-way; takes the new block.
    fn room(
        &mut self,
        merge: &Merge,
        rewrite: bool,
        name: &ServicePortId,
    ) -> Result<Option<Block>, Problem> {
        let limit = SEGMENT_RECORDS as usize;
        if merge.records > limit {
            return Err(Problem::TooManyEndpoints {
                service: name.clone(),
                endpoints: merge.records,
                limit,
            });
        }
        let full = || Problem::EndpointTableFull {
            service: name.clone(),
        };
        if self.endpoint_ids.remaining() < merge.fresh.len() || self.service_ids.remaining() == 0 {
            return Err(full());
        }
        if !rewrite || merge.records == 0 {
            return Ok(None);
        }
        let blocks = if name.family == Family::V4 {
            &mut self.blocks4
        } else {
            &mut self.blocks6
        };
        // One more for the terminator, unless the segment's end is one.
        let len = (merge.records + 1).min(limit) as u32;
        blocks.allocate(len).map(Some).ok_or_else(full)
    }

    fn add_port(&mut self, name: &ServicePortId) -> Option<u32> {
        let id = self.service_ids.take()?;
        if self.ports.len() <= id as usize {
            self.ports.resize_with(id as usize + 1, || None);
        }
        self.ports[id as usize] = Some(Box::new(HeldPort::new(name.clone())));
        Some(id)
    }

    fn update_endpoints(
        &mut self,
        port: &mut HeldPort,
        merge: Merge,
        doubtful: bool,
        draft: &mut Draft,
    ) {
        let mut next = merge.next;
        for change in &merge.restated {
            let id = next[change.index].id;
            if change.stopped {
                self.endpoint_ids.raise(id);
            }
            if !doubtful {
                draft.state(
                    id,
                    self.endpoint_ids
                        .state(id, next[change.index].state_flags()),
                    change.loses,
                );
            }
        }
        for index in merge.fresh {
            // `room` counted them.
            let Some(id) = self.endpoint_ids.take() else {
                continue;
            };
            next[index].id = id;
            if !doubtful {
                draft.state(
                    id,
                    self.endpoint_ids.state(id, next[index].state_flags()),
                    false,
                );
            }
        }
        if doubtful {
            for held in next.iter().filter(|held| held.id != NO_ID) {
                draft.state(
                    held.id,
                    self.endpoint_ids.state(held.id, held.state_flags()),
                    false,
                );
            }
        }
        for id in merge.dead {
            self.retire_endpoint(id, draft);
        }
        for held in merge.appeared {
            *self.udp_users.entry((held.address, held.port)).or_default() += 1;
            self.lift_tombstone(tombstone_key(&held), draft);
        }
        draft.vanished.extend(
            merge
                .vanished
                .into_iter()
                .map(|held| (port.name.family, held)),
        );
        port.endpoints = next;
    }

    fn retire_endpoint(&mut self, id: u32, draft: &mut Draft) {
        self.endpoint_ids.raise(id);
        draft.state(id, self.endpoint_ids.state(id, 0), true);
        draft.retire.endpoints.push(id);
    }

    fn publish(&mut self, port: &mut HeldPort, id: u32, block: Option<Block>, draft: &mut Draft) {
        retire_block(port, draft);
        port.block = block;
        port.counts = Counts::default();
        if let Some(Block { first, len }) = block {
            let (write, counts) = match port.name.family {
                Family::V4 => block_write::<V4>(&port.endpoints, id, first, len),
                Family::V6 => block_write::<V6>(&port.endpoints, id, first, len),
            };
            port.counts = counts;
            draft.blocks.push(write);
        }
    }

    fn update_frontends(
        &mut self,
        port: &mut HeldPort,
        id: u32,
        want: Vec<model::Frontend>,
        draft: &mut Draft,
    ) {
        for new in &want {
            let key = port.key(new);
            let held = port.frontend(key).copied();
            if held.is_none() {
                self.claims.claim(key, id);
            }
            if held.is_none_or(|held| held.kind != new.kind) {
                self.addresses.claim(new.address, new.kind);
            }
            draft
                .touched
                .push((key, held.is_none_or(|held| held.kind != new.kind)));
        }
        let old = std::mem::replace(&mut port.frontends, want);
        for old in &old {
            let key = port.key(old);
            let kept = port.frontend(key).copied();
            if kept.is_none() {
                self.claims.unclaim(key, id);
                draft.touched.push((key, true));
            }
            if kept.is_none_or(|kept| kept.kind != old.kind) {
                self.addresses.unclaim(old.address, old.kind, self.now);
            }
        }
    }

    fn remove_port(&mut self, id: u32, draft: &mut Draft) {
        let Some(mut port) = self.ports.get_mut(id as usize).and_then(Option::take) else {
            return;
        };
        self.update_frontends(&mut port, id, Vec::new(), draft);
        for held in &port.endpoints {
            if held.id != NO_ID {
                self.retire_endpoint(held.id, draft);
            }
            if port.udp() {
                self.leave_udp(held);
            }
        }
        retire_block(&mut port, draft);
        update_ranges(&mut port, id, Vec::new(), false, draft);
        draft.names_gone.push(Write::NameGone { id });
        draft.retire.services.push(id);
    }

    /// Returns whether no service port has the endpoint any more.
    pub(super) fn leave_udp(&mut self, held: &Held) -> bool {
        let key = (held.address, held.port);
        let users = self.udp_users.get_mut(&key).map(|users| {
            *users = users.saturating_sub(1);
            *users
        });
        if users == Some(0) {
            self.udp_users.remove(&key);
        }
        users.unwrap_or(0) == 0
    }

    pub(super) fn lift_tombstone(&mut self, key: TombstoneKey, draft: &mut Draft) {
        if self.tombstones.remove(&key).is_some() {
            self.addresses.tombstone(unwide(key.address), false);
            draft.permits.push(Write::Tombstone {
                key,
                present: false,
            });
        }
    }

    /// Decides who has each frontend that was touched, and completes the plan.
    pub(super) fn settle(&mut self, mut draft: Draft) -> Plan {
        let mut touched = std::mem::take(&mut draft.touched);
        // Changed claims first among equals, so that they survive.
        touched.sort_unstable_by_key(|(key, changed)| (*key, !changed));
        touched.dedup_by_key(|(key, _)| *key);
        for (key, changed) in touched {
            self.settle_frontend(key, changed, &mut draft);
        }
        for (family, held) in std::mem::take(&mut draft.vanished) {
            if self.leave_udp(&held) && (held.id != NO_ID || held.flags & USED != 0) {
                let key = tombstone_key(&held);
                if self.tombstones.insert(key, self.now).is_none() {
                    self.addresses
                        .tombstone(record::address(family, held.address), true);
                }
                draft
                    .withdrawals
                    .push(Write::Tombstone { key, present: true });
            }
        }
        for write in std::mem::take(&mut draft.outstanding) {
            self.settle_outstanding(write, &mut draft);
        }
        self.addresses.flush(&mut draft.opening, &mut draft.closing);
        draft.finish()
    }

    fn settle_frontend(&mut self, key: FrontendId, changed: bool, draft: &mut Draft) {
        let ports = &self.ports;
        let port = |id: u32| ports.get(id as usize).and_then(Option::as_deref);
        let winner = self
            .claims
            .elect(key, |id| port(id).map(|port| port.rank(key)));
        let found = winner.and_then(|id| Some((id, port(id)?, port(id)?.frontend(key)?)));
        let Some((id, winner, frontend)) = found else {
            if self.claims.forget(key) {
                draft.frontends_gone.push(record::frontend(key, None));
            }
            return;
        };
        if changed {
            let losers = self.claims.waiting(key).iter().filter_map(|id| port(*id));
            draft
                .problems
                .extend(losers.map(|loser| Problem::FrontendTaken {
                    loser: loser.name.clone(),
                    winner: winner.name.clone(),
                    address: key.address,
                    port: key.port,
                }));
        }
        if winner.doubtful {
            // Its block may never have been written, so its frontends wait for its next plan. What another
            // service port left under the key, or may have left, must not stay: that block may go.
            if self
                .claims
                .written(key)
                .is_some_and(|held| held.service != id)
            {
                self.claims.clear_written(key);
                draft.frontends_gone.push(record::frontend(key, None));
            }
            return;
        }
        let mut wanted = winner.record(id, frontend);
        let same = |held: Frontend| {
            Frontend {
                generation: 0,
                generation_end: 0,
                ..held
            } == wanted
        };
        if !self.claims.written(key).is_some_and(same) {
            self.generation = self.generation.wrapping_add(1);
            wanted.generation = self.generation;
            wanted.generation_end = self.generation;
            self.claims.set_written(key, wanted);
            draft.frontends.push(record::frontend(key, Some(wanted)));
        }
    }

    fn settle_outstanding(&mut self, write: Write, draft: &mut Draft) {
        match &write {
            Write::EndpointState { .. } => draft.late_states.push(write),
            Write::SourceRange {
                service,
                address,
                length,
                ..
            } => {
                let held = |port: &HeldPort| port.ranges.contains(&(*address, *length));
                if !self.port(*service).is_some_and(held) {
                    draft.withdrawals.push(write);
                }
            }
            Write::Tombstone { key, present } => {
                if self.tombstones.contains_key(key) == *present {
                    draft.withdrawals.push(write);
                }
            }
            Write::NameGone { .. } => draft.names_gone.push(write),
            // `failed` keeps no others.
            Write::Endpoints4 { .. }
            | Write::Endpoints6 { .. }
            | Write::Name { .. }
            | Write::Frontend4 { .. }
            | Write::Frontend6 { .. }
            | Write::Frontend4Gone { .. }
            | Write::Frontend6Gone { .. }
            | Write::Address { .. } => {}
        }
    }
}

fn block_write<F: record::Wire>(held: &[Held], id: u32, first: u32, len: u32) -> (Write, Counts) {
    let (records, counts) = record::block::<F>(held, id, len);
    (F::write(first, records), counts)
}

fn retire_block(port: &mut HeldPort, draft: &mut Draft) {
    let list = match port.name.family {
        Family::V4 => &mut draft.retire.blocks4,
        Family::V6 => &mut draft.retire.blocks6,
    };
    list.extend(port.block.take());
}

fn update_ranges(
    port: &mut HeldPort,
    id: u32,
    want: Vec<super::port::Range>,
    doubtful: bool,
    draft: &mut Draft,
) {
    for range in want
        .iter()
        .filter(|range| doubtful || port.ranges.binary_search(range).is_err())
    {
        draft.range(id, *range, true);
    }
    for range in port
        .ranges
        .iter()
        .filter(|range| want.binary_search(range).is_err())
    {
        draft.range(id, *range, false);
    }
    port.ranges = want;
}

fn tombstone_key(held: &Held) -> TombstoneKey {
    TombstoneKey {
        address: held.address,
        port: held.port,
        protocol: lb_ebpf::abi::UDP,
        zero: 0,
    }
}

/// A table's 16-byte address; mapped IPv4 becomes IPv4 again.
pub(super) fn unwide(bytes: [u8; 16]) -> IpAddr {
    std::net::Ipv6Addr::from(bytes).to_canonical()
}
