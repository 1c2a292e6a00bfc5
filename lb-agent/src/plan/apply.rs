//! What one service port needs in the tables: its endpoints, block, source ranges and frontends.

use lb_ebpf::abi::endpoint::{IN_CLUSTER, IN_LOCAL};
use lb_ebpf::abi::family::{V4, V6};

use super::blocks::Block;
use super::draft::Draft;
use super::ledger::Ledger;
use super::port::{Held, HeldPort, Merge, Range, USED, ranges};
use super::record::{self, Counts};
use super::settle::tombstone_key;
use super::udp::Parting;
use super::{NO_ID, Problem, Write};
use crate::model::{self, ServicePort, ServicePortId};
use crate::snapshot::{Family, Protocol};

impl Ledger {
    /// Returns the id, `None` if there is none and will be none.
    pub(super) fn apply_port(
        &mut self,
        found: Option<u32>,
        want: ServicePort,
        draft: &mut Draft,
    ) -> Option<u32> {
        let port = found.and_then(|id| self.port(id));
        let doubtful = port.is_some_and(|port| port.doubtful);
        let udp = want.id.protocol == Protocol::Udp;
        let merge = Merge::of(
            port.map_or(&[], |port| &port.endpoints),
            &want.endpoints,
            udp,
        );
        let rewrite = merge.block_changed || port.is_some_and(|port| port.needs_block);
        let block = match self.room(&merge, rewrite, &want.id) {
            Ok(block) => block,
            Err(problem) => {
                draft.problems.push(*problem);
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
        self.update_endpoints(&mut port, id, merge, draft);
        port.doubtful = false;
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
    ) -> Result<Option<Block>, Box<Problem>> {
        let full = || {
            Box::new(Problem::EndpointTableFull {
                service: name.clone(),
            })
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
        // One more for the terminator.
        let len = u32::try_from(merge.records + 1).map_err(|_| full())?;
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
        service: u32,
        merge: Merge,
        draft: &mut Draft,
    ) {
        let doubtful = port.doubtful;
        let mut next = merge.next;
        for change in &merge.restated {
            let id = next[change.index].id;
            if let Some(flags) = change.between.filter(|_| !doubtful) {
                draft.state(id, self.endpoint_ids.state(id, flags), false);
            }
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
            // Frontends may lead to either set of any of them until they are written.
            for held in next.iter().filter(|held| held.id != NO_ID) {
                let (id, flags) = (held.id, held.state_flags());
                for (flags, late) in [(flags | IN_CLUSTER | IN_LOCAL, false), (flags, true)] {
                    draft.state(id, self.endpoint_ids.state(id, flags), late);
                }
            }
        }
        for id in merge.dead {
            self.retire_endpoint(id, draft);
        }
        for held in merge.appeared {
            self.udp.join(held.key());
            if held.selected() {
                self.udp.regain(held.key(), service);
            }
            self.lift_tombstone(tombstone_key(held.key()), draft);
        }
        draft.parted.extend(merge.vanished.into_iter().map(|held| {
            let used = held.id != NO_ID || held.flags & USED != 0;
            let parting = if used {
                Parting::Owing(service)
            } else {
                Parting::Even
            };
            (held.key(), parting)
        }));
        port.endpoints = next;
    }

    fn retire_endpoint(&mut self, id: u32, draft: &mut Draft) {
        self.endpoint_ids.raise(id);
        draft.state(id, self.endpoint_ids.state(id, 0), true);
        draft.retire.endpoints.push(id);
    }

    fn publish(&mut self, port: &mut HeldPort, id: u32, block: Option<Block>, draft: &mut Draft) {
        retire_block(port, draft);
        port.needs_block = false;
        port.block = block;
        port.counts = Counts::default();
        if let Some(Block { first, .. }) = block {
            let (write, counts) = match port.name.family {
                Family::V4 => block_write::<V4>(&port.endpoints, id, first),
                Family::V6 => block_write::<V6>(&port.endpoints, id, first),
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
            draft.touched.push(key);
        }
        let old = std::mem::replace(&mut port.frontends, want);
        for old in &old {
            let key = port.key(old);
            let kept = port.frontend(key).copied();
            if kept.is_none() {
                self.claims.unclaim(key, id);
                draft.touched.push(key);
            }
            if kept.is_none_or(|kept| kept.kind != old.kind) {
                self.addresses.unclaim(old.address, old.kind, self.now);
            }
        }
    }

    pub(super) fn remove_port(&mut self, id: u32, draft: &mut Draft) {
        let Some(mut port) = self.ports.get_mut(id as usize).and_then(Option::take) else {
            return;
        };
        self.update_frontends(&mut port, id, Vec::new(), draft);
        for held in &port.endpoints {
            if held.id != NO_ID {
                self.retire_endpoint(held.id, draft);
            }
            if port.udp() {
                draft.parted.push((held.key(), Parting::Even));
            }
        }
        self.udp.forget(id);
        retire_block(&mut port, draft);
        update_ranges(&mut port, id, Vec::new(), false, draft);
        draft.names_gone.push(Write::NameGone { id });
        draft.retire.services.push(id);
    }
}

fn block_write<F: record::Wire>(held: &[Held], id: u32, first: u32) -> (Write, Counts) {
    let (records, counts) = record::block::<F>(held, id);
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
    want: Vec<Range>,
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
