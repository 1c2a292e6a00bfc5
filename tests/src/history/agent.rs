//! The pure parts of the agent, put together as its loop does: events in, plans out.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_agent::model::{self, HealthCheck, NodeView};
use lb_agent::plan::{Ledger, NodeAddresses, Plan, Retired, Timing, Write};
use lb_agent::snapshot::{Event, ObjectName, Snapshot};
use lb_agent::source::convert::{Converter, Options};
use lb_agent::source::refused::Refused;

use super::script::{OWN_NODE, Object};
use super::server::Told;
use super::tables::Tables;
use crate::fuzz::random::Random;

/// An address of the node that its Node object does not tell.
pub const OWN_DEVICE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 9, 9));

/// How long what is gone lingers: short, so that histories outlive it.
pub const TIMING: Timing = Timing {
    linger: 100,
    tombstone: 60,
};

/// A plan, and the Service it is of.
pub type Planned = (Option<ObjectName>, Plan);

/// An agent without a kernel.
pub struct Agent {
    converter: Converter,
    snapshot: Snapshot,
    node: NodeView,
    ledger: Ledger,
    dirty: BTreeSet<ObjectName>,
    node_changed: bool,
    ready: bool,
    retired: Retired,
}

impl Agent {
    /// A new agent, and the plan that tidies what an earlier one left.
    pub fn start(tables: &Tables, now: u32) -> (Self, Plan) {
        let (ledger, plan) = Ledger::adopt(tables.dump(), TIMING, now);
        let agent = Self {
            converter: Converter::new(Options::default(), Arc::new(Refused::default())),
            snapshot: Snapshot::default(),
            node: NodeView {
                name: OWN_NODE.into(),
                ..NodeView::default()
            },
            ledger,
            dirty: BTreeSet::new(),
            node_changed: false,
            ready: false,
            retired: Retired::default(),
        };
        (agent, plan)
    }

    pub fn take(&mut self, told: &Told) {
        let event = match told {
            Told::Begin(watch) => Some(Event::Begin(watch.kind())),
            Told::Complete(watch) => Some(Event::Complete(watch.kind())),
            Told::Apply(Object::Service(service)) => self.converter.service(service),
            Told::Apply(Object::Slice(slice)) => self.converter.slice(slice),
            Told::Apply(Object::Node(node)) => self.converter.node(node),
            Told::Delete(Object::Service(service)) => {
                self.converter.service_gone(&service.metadata)
            }
            Told::Delete(Object::Slice(slice)) => self.converter.slice_gone(&slice.metadata),
            Told::Delete(Object::Node(node)) => self.converter.node_gone(&node.metadata),
        };
        if let Some(event) = event {
            let change = self.snapshot.apply(event);
            self.node_changed |= change.node;
            self.dirty.extend(change.services);
        }
    }

    /// Whether anything may be written (J1).
    pub fn is_synced(&self) -> bool {
        self.snapshot.synced()
    }

    /// What is due, Services in an order of the seed.
    pub fn plans(&mut self, seed: u64) -> Vec<Planned> {
        let mut plans = Vec::new();
        if !self.is_synced() {
            return plans;
        }
        if self.node_changed || !self.ready {
            self.node_changed = false;
            plans.push((None, self.follow_node()));
        }
        if !self.ready {
            self.dirty
                .extend(self.snapshot.services().map(|service| service.name.clone()));
        }
        let mut dirty: Vec<_> = std::mem::take(&mut self.dirty).into_iter().collect();
        let mut random = Random::new(seed);
        for last in (1..dirty.len()).rev() {
            dirty.swap(last, random.below(last + 1));
        }
        for name in dirty {
            let plan = self.plan(&name);
            plans.push((Some(name), plan));
        }
        plans.retain(|(_, plan)| !plan.is_empty());
        plans
    }

    /// What takes away everything that no Service accounts for, once, after the first complete writing.
    pub fn first_written(&mut self) -> Option<Plan> {
        if self.ready || !self.is_synced() {
            return None;
        }
        self.ready = true;
        let services = self.snapshot.services();
        let seen: HashSet<_> = services.map(|service| service.name.clone()).collect();
        Some(self.ledger.finish_adoption(&seen))
    }

    /// What became of plans: where each that failed has to go on. They are tried again.
    pub fn done(&mut self, plans: Vec<Planned>, failed: &BTreeMap<usize, usize>) {
        let mut retire = Retired::default();
        let mut debtor = None;
        for (index, (name, plan)) in plans.into_iter().enumerate() {
            let Some(from) = failed.get(&index) else {
                retire.append(plan.retire);
                continue;
            };
            let unwritten: Vec<Write> = plan.writes.into_iter().skip(*from).collect();
            self.ledger.failed(name.as_ref(), unwritten, plan.retire);
            debtor = Some(debtor.flatten().or_else(|| name.clone()));
            match name {
                Some(name) => drop(self.dirty.insert(name)),
                None => self.node_changed = true,
            }
        }
        match debtor {
            Some(debtor) => self.ledger.failed(debtor.as_ref(), Vec::new(), retire),
            None => self.retired.append(retire),
        }
    }

    pub fn tick(&mut self, now: u32) -> Plan {
        self.ledger.tick(now)
    }

    /// The grace period is over.
    pub fn release(&mut self) {
        self.ledger.release(std::mem::take(&mut self.retired));
    }

    /// The health checks of all Services.
    pub fn checks(&self) -> Vec<HealthCheck> {
        let checks = self.snapshot.services().flat_map(|service| {
            let slices: Vec<_> = self.snapshot.slices(&service.name).collect();
            model::health_checks(service, &slices, &self.node)
        });
        checks.collect()
    }

    fn plan(&mut self, name: &ObjectName) -> Plan {
        let Some(service) = self.snapshot.service(name) else {
            return self.ledger.remove_service(name);
        };
        let slices: Vec<_> = self.snapshot.slices(name).collect();
        let options = model::Options::default();
        let ports = model::service_ports(service, &slices, &self.node, &options);
        self.ledger.apply(name, ports)
    }

    fn follow_node(&mut self) -> Plan {
        let known = self.snapshot.node();
        let told: Vec<IpAddr> = known.map(|node| node.addresses.clone()).unwrap_or_default();
        let first = |v4: bool| told.iter().copied().find(|ip| ip.is_ipv4() == v4);
        let primary: Vec<IpAddr> = [first(true), first(false)].into_iter().flatten().collect();
        let mut addresses = told.clone();
        addresses.push(OWN_DEVICE);
        let view = NodeView {
            name: OWN_NODE.into(),
            zone: known.and_then(|node| node.zone.clone()),
            addresses,
            primary,
        };
        if view != self.node {
            self.node = view;
            self.dirty
                .extend(self.snapshot.services().map(|service| service.name.clone()));
        }
        self.ledger.set_node_addresses(&NodeAddresses {
            nodeport: &self.node.primary,
            loopback: &[],
            all: &self.node.addresses,
        })
    }
}
