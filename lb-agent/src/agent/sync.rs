//! From events to writes.

mod devices;
mod execute;
mod failed;
mod ready;
mod refusals;
mod report;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lb_ebpf::abi::table;
use tracing::{error, info};

use super::adoption::kernel_state;
use super::gauges::{Gauges, without_local_endpoints};
use super::node::{self, Addresses, Told};
use super::settings::{keep_service_cidrs, settings};
use super::sockets::Sockets;
use crate::config::{Config, LocalPods, SourceConfig};
use crate::datapath::{self, Datapath, Grace, Picture, Seat, Selection};
use crate::health::Health;
use crate::health::service::{HealthPort, ServiceHealth};
use crate::metrics::{Extent, Metrics, Policy};
use crate::model::{self, HealthCheck, NodeView, Options};
use crate::plan::{Ledger, NodeAddresses, Plan, Retired, Timing};
use crate::snapshot::{Event, Family, Kind, ObjectName, Snapshot};
use crate::sys::{clock, memory, netns};

use self::execute::frontends;
use self::failed::Failed;
use self::refusals::Refusals;

/// A Service that could not be written is tried again at the first upkeep after this time, so at the next or the one after.
const RETRY: Duration = Duration::from_secs(3);

/// Owner of everything that changes.
pub(super) struct Sync {
    config: Config,
    host_netns: u64,
    snapshot: Snapshot,
    node: NodeView,
    ledger: Ledger,
    datapath: Datapath,
    grace: Grace<Retired>,
    sockets: Sockets,
    health: Health,
    metrics: Metrics,
    checks: ServiceHealth,
    /// Health-check ports of each Service that has one.
    wanted_checks: HashMap<ObjectName, Vec<HealthCheck>>,
    /// Service ports that a Local policy leaves without endpoints here.
    no_local: HashMap<ObjectName, Vec<(Policy, Family)>>,
    dirty: HashSet<ObjectName>,
    refusals: Refusals,
    /// Services whose last writes failed.
    failed: Failed,
    /// When a first start that failed is tried again.
    retry_at: Instant,
    /// Interface addresses of this node.
    own_addresses: Vec<IpAddr>,
    told: Told,
    addresses: Addresses,
    /// Devices without programs that one might expect to have them, and why.
    left_out: BTreeMap<String, &'static str>,
    /// Devices whose programs could not be attached, and why: tried again by and by (spec J4).
    unattached: BTreeMap<String, String>,
    /// Where XDP sits among the uplinks, as last told.
    seats: BTreeMap<String, Seat>,
    node_changed: bool,
    /// Changes of slices that wait for the picture to be complete.
    pending_slices: usize,
    /// The latest picture of this node's devices.
    picture: Option<Picture>,
    selection: Selection,
    cidrs_changed: bool,
    ready: bool,
    /// Kinds of objects whose changes cannot be followed at present.
    lost: HashSet<Kind>,
    /// Programs that may come later were asked for.
    prepared: bool,
    /// When the first event came in.
    first_event: Option<Instant>,
    /// A list was taken in: what it took on its way can go back to the system.
    took_list: bool,
    gauges: Gauges,
}

impl Sync {
    /// Takes over what the tables hold.
    pub(super) fn new(
        config: &Config,
        mut datapath: Datapath,
        grace: Grace<Retired>,
        health: Health,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let host_netns = netns::cookie().context("read the network namespace's cookie")?;
        let pod_cidrs = node::pod_cidrs(config, &Told::default());
        let current = settings(config, host_netns, &[], pod_cidrs.as_deref());
        // Service CIDRs of a former agent stay in force until the cluster names its own, and the Node's pod CIDRs.
        let mut first = current;
        if let Some(former) = datapath.settings()? {
            keep_service_cidrs(&mut first, &former);
            if config.local_pods == LocalPods::NodeCidr {
                first.pod_cidrs4 = former.pod_cidrs4;
                first.pod_cidrs6 = former.pod_cidrs6;
            }
        }
        datapath.set_settings(&first)?;
        let timing = Timing {
            linger: current.timeout_tcp,
            ..Timing::default()
        };
        let state = kernel_state(datapath.kernel_state()?);
        let (ledger, plan) = Ledger::adopt(state, timing, clock::seconds());
        info!(
            service_ports = ledger.service_ports(),
            writes = plan.writes.len(),
            "read the tables"
        );
        let applied = datapath.apply(&[&plan.writes]);
        for failure in &applied.failures {
            error!(%failure, "could not tidy the tables");
        }
        let reader = datapath::Reader::open(&config.bpffs)?;
        let gauges = Gauges::new(reader);
        let sync = Self {
            config: config.clone(),
            host_netns,
            snapshot: Snapshot::default(),
            node: NodeView {
                name: config.node_name.as_str().into(),
                ..NodeView::default()
            },
            ledger,
            datapath,
            grace,
            sockets: Sockets::start().context("start the thread that ends sockets")?,
            checks: ServiceHealth::start(health.clone()),
            health,
            metrics,
            wanted_checks: HashMap::new(),
            no_local: HashMap::new(),
            dirty: HashSet::new(),
            refusals: Refusals::default(),
            failed: Failed::default(),
            retry_at: Instant::now(),
            own_addresses: Vec::new(),
            told: Told::default(),
            addresses: Addresses::default(),
            left_out: BTreeMap::new(),
            unattached: BTreeMap::new(),
            seats: BTreeMap::new(),
            node_changed: false,
            pending_slices: 0,
            picture: None,
            selection: node::selection(config),
            cidrs_changed: false,
            ready: false,
            lost: HashSet::new(),
            prepared: false,
            first_event: None,
            took_list: false,
            gauges,
        };
        sync.grace.retire(plan.retire);
        sync.metrics.table_written(table::FRONTENDS4, 0);
        Ok(sync)
    }

    /// What the metrics server reads.
    pub(super) fn gauges(&self) -> Gauges {
        self.gauges.clone()
    }

    /// Blocks and ids that no running program can hold any more.
    pub(super) fn release(&mut self, retired: Retired) {
        self.ledger.release(retired);
    }

    /// Takes in events and writes what they change.
    pub(super) fn take(&mut self, events: &mut Vec<Event>) -> anyhow::Result<()> {
        let received = Instant::now();
        self.first_event.get_or_insert(received);
        let mut triggers = Vec::new();
        let (mut services, mut slices) = (0, 0);
        for event in events.drain(..) {
            if let Some(kind) = event.changes() {
                self.metrics.source_event(kind);
            }
            let mut trigger = None;
            match &event {
                Event::Service(_) | Event::ServiceGone(_) => services += 1,
                Event::Slice(slice) => {
                    slices += 1;
                    trigger = slice.trigger_time.map(|time| (slice.family, time));
                }
                Event::SliceGone(_) => slices += 1,
                Event::Complete(kind) => {
                    self.metrics.source_list(*kind);
                    self.connected(*kind, true);
                    self.took_list = true;
                }
                Event::Found(kind) => self.connected(*kind, true),
                Event::Lost(kind) => self.connected(*kind, false),
                _ => {}
            }
            let change = self.snapshot.apply(event);
            self.node_changed |= change.node;
            self.cidrs_changed |= change.service_cidrs;
            // One that is only listed again was triggered long ago.
            triggers.extend(trigger.filter(|_| !change.services.is_empty()));
            self.dirty.extend(change.services);
        }
        self.pending_slices += slices as usize;
        self.metrics.changes_seen(services, slices);
        if !self.dirty.is_empty() {
            for family in [Family::V4, Family::V6] {
                self.health.queued(family);
                self.metrics.queued(family);
            }
        }
        if !self.complete() {
            self.metrics
                .changes_pending(self.dirty.len(), self.pending_slices);
            return Ok(());
        }
        let first = !self.ready;
        self.write(received)?;
        if !first {
            for (family, trigger) in triggers {
                self.metrics.network_programmed(family, trigger);
            }
        }
        Ok(())
    }

    /// What is due by time alone.
    pub(super) fn upkeep(&mut self) -> anyhow::Result<()> {
        if !self.datapath.programs_are_coming() {
            self.datapath.finish()?;
        }
        let plan = self.ledger.tick(clock::seconds());
        if !plan.is_empty() {
            self.execute(vec![(None, plan)]);
        }
        self.dirty
            .extend(self.failed.take_due(Instant::now(), RETRY));
        let due = !self.ready && Instant::now() >= self.retry_at
            || !self.dirty.is_empty()
            || self.node_changed
            || self.cidrs_changed;
        if self.complete() && due {
            self.write(Instant::now())?;
        }
        self.restore();
        self.follow_unattached()?;
        self.prepare_programs();
        self.follow_xdp();
        self.measure();
        if std::mem::take(&mut self.took_list) {
            memory::give_back();
        }
        Ok(())
    }

    /// Cluster and node are known. Before that nothing is written: a former agent's state would be taken for gone.
    fn complete(&self) -> bool {
        self.snapshot.synced() && self.picture.is_some()
    }

    /// Writes whatever is due. The picture is complete.
    fn write(&mut self, received: Instant) -> anyhow::Result<()> {
        self.told.hear(self.snapshot.node());
        self.pending_slices = 0;
        let mut plans = Vec::new();
        if self.cidrs_changed || self.node_changed || !self.ready {
            self.cidrs_changed = false;
            let pod_cidrs = node::pod_cidrs(&self.config, &self.told);
            let service_cidrs = self.snapshot.service_cidrs();
            let mut settings = settings(
                &self.config,
                self.host_netns,
                service_cidrs.as_deref().unwrap_or_default(),
                pod_cidrs.as_deref(),
            );
            if service_cidrs.is_none()
                && let Some(former) = self.datapath.settings()?
            {
                keep_service_cidrs(&mut settings, &former);
            }
            self.datapath.set_settings(&settings)?;
        }
        if self.node_changed || !self.ready {
            self.node_changed = false;
            self.follow_devices()?;
            plans.push((None, self.follow_node()));
        }
        if !self.ready {
            self.dirty
                .extend(self.snapshot.services().map(|service| service.name.clone()));
        }
        let mut dirty: Vec<ObjectName> = self.dirty.drain().collect();
        // Where the room ends, it is the largest that find none.
        dirty.sort_by_cached_key(|name| self.snapshot.service(name).map_or(0, frontends));
        let (changed, all) = (dirty.len(), self.snapshot.services().len());
        for name in dirty {
            self.failed.forget(&name);
            let plan = self.plan(&name);
            if plan.is_empty() {
                self.refusals.accepted(&name);
            } else {
                plans.push((Some(name), plan));
            }
        }
        self.execute(plans);
        // Ready means serving: not while the tables take nothing at all. A Service that could not be written keeps
        // nobody from the others.
        let refused = self.node_changed || changed > 0 && self.failed.len() == changed;
        if !self.ready && !refused {
            self.become_ready(received)?;
        }
        self.tell_refusals();
        self.checks.set(self.health_ports());
        self.report(
            received,
            if changed >= all.max(2) {
                Extent::Full
            } else {
                Extent::Partial
            },
        );
        Ok(())
    }

    /// The health-check ports to open, and where.
    fn health_ports(&self) -> Vec<HealthPort> {
        let on = |family| self.addresses.health_checks(&self.config, family);
        let (v4, v6) = (on(Family::V4), on(Family::V6));
        let checks = self.wanted_checks.values().flatten();
        checks
            .flat_map(|check| {
                let addresses = match check.family {
                    Family::V4 => &v4,
                    Family::V6 => &v6,
                };
                HealthPort::of(check, addresses.as_deref())
            })
            .collect()
    }

    /// The plan that brings one Service up to date.
    fn plan(&mut self, name: &ObjectName) -> Plan {
        let Some(service) = self.snapshot.service(name) else {
            self.wanted_checks.remove(name);
            self.no_local.remove(name);
            return self.ledger.remove_service(name);
        };
        let slices: Vec<_> = self.snapshot.slices(name).collect();
        let ports = model::service_ports(service, &slices, &self.node, &Options::default());
        let checks = model::health_checks(service, &slices, &self.node);
        if checks.is_empty() {
            self.wanted_checks.remove(name);
        } else {
            self.wanted_checks.insert(name.clone(), checks);
        }
        let without = without_local_endpoints(&ports);
        if without.is_empty() {
            self.no_local.remove(name);
        } else {
            self.no_local.insert(name.clone(), without);
        }
        self.ledger.apply(name, ports)
    }

    /// This node's addresses and zone changed: every Service may mean something else.
    fn follow_node(&mut self) -> Plan {
        let known = self.snapshot.node();
        self.addresses = Addresses::of(&self.config, &self.told, &self.own_addresses);
        let eligible = match known {
            Some(node) => !node.draining,
            // A directory need not hold a Node; an API server does.
            None => matches!(self.config.source, SourceConfig::Manifests(_)),
        };
        let view = NodeView {
            name: self.config.node_name.as_str().into(),
            zone: known.and_then(|node| node.zone.clone()),
            addresses: self.addresses.all.clone(),
            primary: self.addresses.primary.clone(),
        };
        if self.ready {
            self.health.set_node_eligible(eligible);
        }
        if view != self.node {
            self.node = view;
            self.dirty
                .extend(self.snapshot.services().map(|service| service.name.clone()));
        }
        self.ledger.set_node_addresses(&NodeAddresses {
            nodeport: &self.addresses.nodeport,
            loopback: &self.addresses.loopback,
            all: &self.addresses.all,
        })
    }
}

/// Microseconds since a moment, as logs take them.
fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn shown(name: &ObjectName) -> String {
    format!("Service {}/{}", name.namespace, name.name)
}
