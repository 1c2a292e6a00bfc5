//! Orders the writes of many plans into common phases.
//!
//! [`steps`] is that order, and all of it: whoever carries out plans, on the kernel's tables or on a picture of
//! them, goes by it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use lb_ebpf::abi::address::{Address4, Address6, AddressUse};
use lb_ebpf::abi::endpoint::{Endpoint, EndpointState};
use lb_ebpf::abi::family::{V4, V6};
use lb_ebpf::abi::frontend::{Frontend, FrontendKey};
use lb_ebpf::abi::name::ServiceName;
use lb_ebpf::abi::socket::{Tombstone, TombstoneKey};
use lb_ebpf::abi::source_range::{SourceRange, SourceRangeKey, SourceRangePrefix};

use crate::plan::Write;
use crate::sys::clock;

/// Writes of several plans that go out together, in any order among themselves.
pub struct Step<'p, 'w> {
    plans: &'p [&'w [Write]],
    group: std::ops::Range<usize>,
    phase: Phase,
}

/// A write and where it stands.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'w> {
    /// Index of its plan.
    pub plan: usize,
    /// Index in that plan.
    pub at: usize,
    pub write: &'w Write,
}

/// How plans, each for another Service (or none), are carried out: step by step.
pub fn steps<'p, 'w>(plans: &'p [&'w [Write]]) -> impl Iterator<Item = Step<'p, 'w>> {
    groups(plans).into_iter().flat_map(move |group| {
        Phase::ALL.into_iter().map(move |phase| Step {
            plans,
            group: group.clone(),
            phase,
        })
    })
}

impl<'w> Step<'_, 'w> {
    /// Plan by plan, each plan's in its order.
    pub fn writes(&self) -> impl Iterator<Item = Placed<'w>> {
        self.group.clone().flat_map(|plan| {
            let mut phase = Phase::Prepare;
            let placed = self.plans[plan].iter().enumerate().map(move |(at, write)| {
                phase = phase.next(write);
                (phase, Placed { plan, at, write })
            });
            placed.filter_map(|(phase, placed)| (phase == self.phase).then_some(placed))
        })
    }
}

/// How far a batch of plans came: which of them failed, and whom that stops.
#[derive(Default)]
pub struct Progress {
    failed: HashSet<usize>,
    /// Service ports whose names or blocks may not have been written.
    unwritten: HashSet<u32>,
}

impl Progress {
    /// `plan` goes no further.
    pub fn fail(&mut self, plan: usize, writes: &[Write]) {
        self.failed.insert(plan);
        for write in writes {
            match write {
                Write::Name { id, .. } => drop(self.unwritten.insert(*id)),
                Write::Endpoints4 { records, .. } => {
                    self.unwritten
                        .extend(records.first().map(|record| record.service));
                }
                Write::Endpoints6 { records, .. } => {
                    self.unwritten
                        .extend(records.first().map(|record| record.service));
                }
                _ => {}
            }
        }
    }

    pub fn is_failed(&self, plan: usize) -> bool {
        self.failed.contains(&plan)
    }

    /// Whether a write would lead clients to a service port of a failed plan: a Service that gives up an address
    /// leaves it to the next one that claims it, in its own plan.
    pub fn forbids(&self, write: &Write) -> bool {
        match write {
            Write::Frontend4 { frontend, .. } | Write::Frontend6 { frontend, .. } => {
                self.unwritten.contains(&frontend.service)
            }
            _ => false,
        }
    }
}

/// Runs of plans that write no frontend, address or tombstone twice.
fn groups(plans: &[&[Write]]) -> Vec<std::ops::Range<usize>> {
    let mut groups = Vec::new();
    let (mut start, mut keys) = (0, HashMap::new());
    for (index, plan) in plans.iter().enumerate() {
        let contested = plan.iter().filter_map(contested);
        let clash = contested
            .clone()
            .any(|key| keys.get(&key).is_some_and(|&other| other != index));
        if clash {
            groups.push(start..index);
            start = index;
            keys.clear();
        }
        keys.extend(contested.map(|key| (key, index)));
    }
    if start < plans.len() {
        groups.push(start..plans.len());
    }
    groups
}

/// A key that several Services may want.
#[derive(PartialEq, Eq, Hash)]
enum Contested {
    Frontend4(FrontendKey<V4>),
    Frontend6(FrontendKey<V6>),
    Address(IpAddr),
    Tombstone(TombstoneKey),
}

fn contested(write: &Write) -> Option<Contested> {
    match write {
        Write::Frontend4 { key, .. } | Write::Frontend4Gone { key } => {
            Some(Contested::Frontend4(*key))
        }
        Write::Frontend6 { key, .. } | Write::Frontend6Gone { key } => {
            Some(Contested::Frontend6(*key))
        }
        Write::Address { address, .. } => Some(Contested::Address(*address)),
        Write::Tombstone { key, .. } => Some(Contested::Tombstone(*key)),
        Write::Endpoints4 { .. }
        | Write::Endpoints6 { .. }
        | Write::EndpointState { .. }
        | Write::Name { .. }
        | Write::NameGone { .. }
        | Write::SourceRange { .. } => None,
    }
}

/// Steps of a plan that must follow each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Phase {
    /// Names, and states of ids that nobody may miss.
    Prepare,
    /// New blocks, which nobody reaches yet, and what only permits. A state behind these takes something away, and
    /// waits for the frontends to lead elsewhere: that may be in another plan.
    Fill,
    /// Frontends lead to their new blocks.
    Publish,
    /// Addresses become ours.
    Open,
    /// Frontends go.
    Withdraw,
    /// What nobody reaches any more.
    Clean,
}

impl Phase {
    const ALL: [Self; 6] = [
        Self::Prepare,
        Self::Fill,
        Self::Publish,
        Self::Open,
        Self::Withdraw,
        Self::Clean,
    ];

    /// The phase of the next write of a plan, `self` being that of the write before: never an earlier one.
    fn next(self, write: &Write) -> Self {
        match write {
            // What takes away cleans up, also in a plan without frontends: another plan of the same group may be
            // the one that leads clients elsewhere.
            Write::NameGone { .. }
            | Write::SourceRange { allowed: false, .. }
            | Write::Tombstone { present: true, .. } => Self::Clean,
            Write::EndpointState { state, .. } if state.flags == 0 => Self::Clean,
            // Before the frontends these prepare, behind them they clean up.
            Write::Name { .. } | Write::EndpointState { .. } => {
                if self == Self::Prepare {
                    Self::Prepare
                } else {
                    Self::Clean
                }
            }
            Write::Endpoints4 { .. }
            | Write::Endpoints6 { .. }
            | Write::SourceRange { .. }
            | Write::Tombstone { .. } => {
                if self <= Self::Fill {
                    Self::Fill
                } else {
                    Self::Clean
                }
            }
            Write::Frontend4 { .. } | Write::Frontend6 { .. } => self.max(Self::Publish),
            Write::Address { .. } => {
                if self <= Self::Open {
                    Self::Open
                } else {
                    Self::Clean
                }
            }
            Write::Frontend4Gone { .. } | Write::Frontend6Gone { .. } => self.max(Self::Withdraw),
        }
    }
}

/// The later write to a key, with its plan and place in it. `None` removes the key.
pub(super) type Changes<K, V> = HashMap<K, ((usize, usize), Option<V>)>;

/// One phase's writes, by table.
#[derive(Default)]
pub(super) struct Staged<'a> {
    pub(super) endpoints4: Vec<(usize, u32, &'a [Endpoint<V4>])>,
    pub(super) endpoints6: Vec<(usize, u32, &'a [Endpoint<V6>])>,
    pub(super) states: BTreeMap<u32, (usize, EndpointState)>,
    pub(super) names: Changes<u32, ServiceName>,
    pub(super) frontends4: Changes<FrontendKey<V4>, Frontend>,
    pub(super) frontends6: Changes<FrontendKey<V6>, Frontend>,
    pub(super) addresses4: Changes<Address4, AddressUse>,
    pub(super) addresses6: Changes<Address6, AddressUse>,
    pub(super) source_ranges: Changes<SourceRangeKey, SourceRange>,
    pub(super) tombstones: Changes<TombstoneKey, Tombstone>,
}

impl<'a> Staged<'a> {
    /// Takes in a write. The later of two to one key counts.
    pub(super) fn add(&mut self, placed: Placed<'a>) {
        let batch = placed.plan;
        let from = (placed.plan, placed.at);
        match placed.write {
            Write::Endpoints4 { first, records } => self.endpoints4.push((batch, *first, records)),
            Write::Endpoints6 { first, records } => self.endpoints6.push((batch, *first, records)),
            Write::EndpointState { id, state } => {
                self.states.insert(*id, (batch, *state));
            }
            Write::Name { id, name } => {
                self.names.insert(*id, (from, Some(**name)));
            }
            Write::NameGone { id } => {
                self.names.insert(*id, (from, None));
            }
            Write::Frontend4 { key, frontend } => {
                self.frontends4.insert(*key, (from, Some(*frontend)));
            }
            Write::Frontend6 { key, frontend } => {
                self.frontends6.insert(*key, (from, Some(*frontend)));
            }
            Write::Frontend4Gone { key } => {
                self.frontends4.insert(*key, (from, None));
            }
            Write::Frontend6Gone { key } => {
                self.frontends6.insert(*key, (from, None));
            }
            Write::Address { address, flags } => {
                let value = (from, (*flags != 0).then_some(AddressUse { flags: *flags }));
                match address {
                    IpAddr::V4(v4) => drop(self.addresses4.insert(Address4::from(*v4), value)),
                    IpAddr::V6(v6) => drop(self.addresses6.insert(Address6::from(*v6), value)),
                }
            }
            Write::SourceRange {
                service,
                address,
                length,
                allowed,
            } => {
                let prefix = SourceRangePrefix {
                    service: service.to_be_bytes(),
                    address: *address,
                };
                let key = SourceRangeKey {
                    prefix_length: 32 + u32::from(*length),
                    prefix,
                };
                self.source_ranges
                    .insert(key, (from, allowed.then_some(SourceRange { allowed: 1 })));
            }
            Write::Tombstone { key, present } => {
                let value = present.then(|| Tombstone {
                    since: clock::seconds(),
                });
                self.tombstones.insert(*key, (from, value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_ebpf::abi::endpoint::SERVING;

    use super::*;

    fn key(port: u16) -> FrontendKey<V4> {
        FrontendKey {
            port,
            ..FrontendKey::default()
        }
    }

    fn put(port: u16) -> Write {
        Write::Frontend4 {
            key: key(port),
            frontend: Frontend::default(),
        }
    }

    fn gone(port: u16) -> Write {
        Write::Frontend4Gone { key: key(port) }
    }

    fn address(flags: u32) -> Write {
        Write::Address {
            address: IpAddr::from([10, 96, 0, 1]),
            flags,
        }
    }

    fn state(generation: u32) -> Write {
        Write::EndpointState {
            id: 1,
            state: EndpointState {
                generation,
                flags: SERVING,
            },
        }
    }

    fn phases(writes: &[Write]) -> Vec<Phase> {
        let follow = |phase: &mut Phase, write: &Write| {
            *phase = phase.next(write);
            Some(*phase)
        };
        writes.iter().scan(Phase::Prepare, follow).collect()
    }

    #[test]
    fn a_state_prepares_before_the_frontends_and_cleans_up_behind_them() {
        let phases = phases(&[
            state(1),
            put(80),
            address(1),
            gone(81),
            state(2),
            address(0),
        ]);
        use Phase::{Clean, Open, Prepare, Publish, Withdraw};
        assert_eq!(phases, [Prepare, Publish, Open, Withdraw, Clean, Clean]);
    }

    #[test]
    fn a_state_behind_a_block_waits_for_the_plan_that_has_the_frontend() {
        let block = Write::Endpoints4 {
            first: 0,
            records: vec![Endpoint::default()],
        };
        let (loses, wins) = ([state(1), block, state(2)], [put(80)]);
        let plans = [&loses[..], &wins[..]];
        let order = steps(&plans).flat_map(|step| step.writes().collect::<Vec<_>>());
        let order: Vec<_> = order.map(|placed| (placed.plan, placed.at)).collect();
        assert_eq!(order, [(0, 0), (0, 1), (1, 0), (0, 2)]);
    }

    #[test]
    fn a_plan_that_only_takes_away_waits_for_the_plan_that_leads_elsewhere() {
        let dead = Write::EndpointState {
            id: 0,
            state: EndpointState::default(),
        };
        let (leaves, comes) = ([dead, Write::NameGone { id: 0 }], [put(80)]);
        let plans = [&leaves[..], &comes[..]];
        let order = steps(&plans).flat_map(|step| step.writes().collect::<Vec<_>>());
        assert_eq!(
            order.map(|placed| placed.plan).collect::<Vec<_>>(),
            [1, 0, 0]
        );
    }

    #[test]
    fn nobody_is_led_to_a_service_port_whose_plan_failed() {
        let lead = |service| Write::Frontend4 {
            key: key(80),
            frontend: Frontend {
                service,
                ..Frontend::default()
            },
        };
        let name = Box::new(ServiceName {
            namespace: [0; 64],
            name: [0; 64],
            port: [0; 64],
            family: 4,
            protocol: 6,
            zero: [0; 2],
        });
        let mut progress = Progress::default();
        progress.fail(0, &[Write::Name { id: 7, name }, lead(8)]);
        assert!(progress.is_failed(0) && !progress.is_failed(1));
        assert!(progress.forbids(&lead(7)) && !progress.forbids(&lead(8)));
    }

    #[test]
    fn plans_go_out_phase_by_phase() {
        let (one, other) = ([state(1), put(80), gone(82)], [state(2), put(81)]);
        let plans = [&one[..], &other[..]];
        let order: Vec<Vec<_>> = steps(&plans)
            .map(|step| {
                step.writes()
                    .map(|placed| (placed.plan, placed.at))
                    .collect()
            })
            .filter(|writes: &Vec<_>| !writes.is_empty())
            .collect();
        let expected = [vec![(0, 0), (1, 0)], vec![(0, 1), (1, 1)], vec![(0, 2)]];
        assert_eq!(order, expected);
    }

    #[test]
    fn plans_that_want_one_frontend_go_one_after_the_other() {
        let (leaves, comes, other) = ([gone(80)], [put(80)], [put(81)]);
        assert_eq!(groups(&[&leaves, &other, &comes]), [0..2, 2..3]);
        assert_eq!(groups(&[&leaves, &other]).len(), 1);
    }

    #[test]
    fn a_tombstone_is_lifted_behind_the_plan_that_sets_it() {
        let tombstone = |present| Write::Tombstone {
            key: TombstoneKey::default(),
            present,
        };
        let (leaves, comes) = ([tombstone(true)], [tombstone(false)]);
        assert_eq!(groups(&[&leaves, &comes]), [0..1, 1..2]);
        assert!(groups(&[]).is_empty());
    }
}
